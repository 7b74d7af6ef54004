//! Linear maps and the chunked cross-entropy against libtorch.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::{assert_close, check_gradients, leaf, random, random_classes};
use tch::{Kind, Reduction, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::cross_entropy::{CrossEntropyOptions, projected_cross_entropy};
use xlstm_kernels::linear::linear;

#[test]
fn linear_equals_libtorch_at_odd_sizes() {
    for (seed, [rows, width, outputs]) in
        [[16, 1, 1], [17, 5, 3], [64, 48, 96], [131, 77, 50], [600, 200, 300], [40, 700, 1000], [16, 9000, 9]]
            .into_iter()
            .enumerate()
    {
        let normal = |offset: i64, size: &[i64]| leaf(&random(seed as i64 * 8 + offset, size, Kind::Float));
        let (x, w, b) = (normal(0, &[1, rows, width]), normal(1, &[outputs, width]), normal(2, &[outputs]));
        let weights = random(99, &[1, rows, outputs], Kind::Float);
        let y = linear(&x, &w, Some(&b)).unwrap();
        (&y * &weights).sum(Kind::Float).backward();
        let exact = |tensor: &Tensor| leaf(&tensor.to_kind(Kind::Double));
        let (x64, w64, b64) = (exact(&x), exact(&w), exact(&b));
        let y64 = x64.linear(&w64, Some(&b64));
        (&y64 * weights.to_kind(Kind::Double)).sum(Kind::Double).backward();
        let what = format!("{rows} x {width} x {outputs}");
        assert_close(&what, &y, &y64, 2e-6);
        for (found, expected) in [(&x, &x64), (&w, &w64), (&b, &b64)] {
            assert_close(&what, &found.grad(), &expected.grad(), 3e-6);
        }
    }
}

#[test]
fn linear_takes_views_and_names_wrong_shapes() {
    let (x, w) = (random(1, &[40, 30], Kind::Float), random(2, &[30, 20], Kind::Float));
    let y = linear(&x.transpose(0, 1).contiguous().transpose(0, 1), &w.tr(), None).unwrap();
    assert_close("views", &y, &x.matmul(&w), 2e-6);
    let error = linear(&x, &w, None).unwrap_err();
    assert_eq!(error.to_string(), "linear: x_D has shape [40, 30], expected a last dimension of 20");
}

fn targets(rows: i64, vocabulary: i64) -> Tensor {
    random_classes(4, rows, vocabulary)
}

#[test]
fn cross_entropy_equals_libtorch_at_every_chunk_size() {
    for kind in [Kind::Double, Kind::Float] {
        let (hidden, weight) = (random(1, &[45, 24], kind), random(2, &[103, 24], kind));
        let targets = targets(45, 103);
        for row in [3, 17, 44] {
            let _ = targets.narrow(0, row, 1).fill_(-100);
        }
        let (h0, w0) = (leaf(&hidden), leaf(&weight));
        let expected =
            h0.matmul(&w0.tr()).cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, 0.0);
        (&expected * 0.5).backward();
        for chunk_rows in [Some(1), Some(7), Some(16), Some(45), Some(1000), None] {
            let (h, w) = (leaf(&hidden), leaf(&weight));
            let options = CrossEntropyOptions { chunk_rows, ..CrossEntropyOptions::default() };
            let output = projected_cross_entropy(&h, &w, &targets, &options).unwrap();
            assert_eq!(output.count, 42);
            (&output.loss * 0.5).backward();
            let tolerance = if kind == Kind::Double { 1e-12 } else { 3e-6 };
            assert_close("loss", &output.loss, &expected, tolerance);
            assert_close("hidden", &h.grad(), &h0.grad(), tolerance);
            assert_close("weight", &w.grad(), &w0.grad(), tolerance);
            assert_eq!(output.token_losses_N.double_value(&[3]), 0.0);
            let mean = output.token_losses_N.sum(kind) / 42.0;
            assert_close("token losses", &mean, &expected, tolerance);
        }
    }
}

#[test]
fn cross_entropy_of_large_logits_is_finite_and_right() {
    let hidden = random(1, &[20, 8], Kind::Double) * 300.0;
    let weight = random(2, &[50, 8], Kind::Double);
    let targets = targets(20, 50);
    let logits = hidden.matmul(&weight.tr());
    let expected = logits.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::None, -100, 0.0);
    let found = projected_cross_entropy(
        &hidden.to_kind(Kind::Float),
        &weight.to_kind(Kind::Float),
        &targets,
        &CrossEntropyOptions::default(),
    );
    assert_close("losses", &found.unwrap().token_losses_N, &expected, 1e-5);
}

#[test]
fn cross_entropy_gradients_agree_with_finite_differences() {
    let (hidden, weight) = (leaf(&random(1, &[6, 4], Kind::Double)), leaf(&random(2, &[9, 4], Kind::Double)));
    let targets = targets(6, 9);
    let options = CrossEntropyOptions { chunk_rows: Some(4), ..CrossEntropyOptions::default() };
    check_gradients(&[("hidden", &hidden), ("weight", &weight)], &|| {
        projected_cross_entropy(&hidden, &weight, &targets, &options).unwrap().loss * 3.0
    });
}

#[test]
fn targets_out_of_range_and_no_targets_are_errors() {
    let (hidden, weight) = (random(1, &[3, 4], Kind::Float), random(2, &[9, 4], Kind::Float));
    for wrong in [[0, 9, 1], [0, -1, 1], [-100, -100, -100]] {
        let targets = Tensor::from_slice(&wrong).to_kind(Kind::Int64);
        let error = projected_cross_entropy(&hidden, &weight, &targets, &CrossEntropyOptions::default());
        assert!(matches!(error.unwrap_err(), KernelError::Option { option: "targets_N", .. }), "{wrong:?}");
    }
}
