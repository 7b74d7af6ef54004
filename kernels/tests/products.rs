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
    for (seed, [rows, width, outputs]) in [
        [1, 1, 1],
        [1, 40, 7],
        [3, 333, 50],
        [5, 768, 1030],
        [15, 70, 9],
        [16, 1, 1],
        [17, 5, 3],
        [64, 48, 96],
        [131, 77, 50],
        [600, 200, 300],
        [40, 700, 1000],
        [16, 9000, 9],
    ]
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
fn few_rows_are_summed_alike_whatever_their_number_and_that_of_threads() {
    for (width, outputs) in [(100, 37), (768, 3000), (33, 5)] {
        let (x, w) = (random(1, &[15, width], Kind::Float), random(2, &[outputs, width], Kind::Float));
        let all = linear(&x, &w, None).unwrap();
        for rows in [1, 2, 4, 7] {
            for first in [0, 15 - rows] {
                let some = linear(&x.narrow(0, first, rows), &w, None).unwrap();
                assert!(
                    some.equal(&all.narrow(0, first, rows)),
                    "{rows} rows from {first}, {width} x {outputs}"
                );
            }
        }
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        let alone = linear(&x, &w, None).unwrap();
        tch::set_num_threads(threads);
        assert!(alone.equal(&all), "{width} x {outputs}");
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

/// Loss of each token and gradients of the mean, by the kernel and by libtorch in fp64.
fn both_ways(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> [[Tensor; 3]; 2] {
    let (h, w) = (leaf(hidden), leaf(weight));
    let found = projected_cross_entropy(&h, &w, targets, &CrossEntropyOptions::default()).unwrap();
    found.loss.backward();
    let (h64, w64) = (leaf(&hidden.to_kind(Kind::Double)), leaf(&weight.to_kind(Kind::Double)));
    let losses =
        h64.matmul(&w64.tr()).cross_entropy_loss(targets, None::<&Tensor>, Reduction::None, -100, 0.0);
    (losses.sum(Kind::Double) / found.count as f64).backward();
    [[found.token_losses_N, h.grad(), w.grad()], [losses.detach(), h64.grad(), w64.grad()]]
}

#[test]
fn cross_entropy_follows_logits_that_rise_along_the_vocabulary() {
    // Every tile of words is far above the one before, for some tokens; for the others far below.
    let hidden = random(1, &[70, 3], Kind::Double);
    let rising = Tensor::linspace(-60.0, 60.0, 2001, (Kind::Double, tch::Device::Cpu));
    let weight = rising.unsqueeze(1) * random(2, &[1, 3], Kind::Double);
    let targets = targets(70, 2001);
    for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 2e-5)] {
        let [found, expected] = both_ways(&hidden.to_kind(kind), &weight.to_kind(kind), &targets);
        for (what, (found, expected)) in
            ["losses", "hidden", "weight"].iter().zip(found.iter().zip(&expected))
        {
            assert_close(what, found, expected, tolerance);
        }
    }
}

#[test]
fn cross_entropy_of_a_sure_prediction_keeps_its_digits() {
    // The target's logit is about 20 above all others: 1 - p is 1e-6 and has no digits left when p is rounded first.
    let weight = random(1, &[500, 32], Kind::Float) * 0.05;
    let targets = Tensor::arange(40, (Kind::Int64, tch::Device::Cpu)) * 11;
    let chosen = weight.index_select(0, &targets);
    let hidden = &chosen / chosen.square().sum_dim_intlist([1_i64].as_slice(), true, Kind::Float) * 20.0;
    let [found, expected] = both_ways(&hidden, &weight, &targets);
    assert!(expected[0].max().double_value(&[]) < 0.1, "{}", expected[0].max());
    for (found, expected) in found.iter().zip(&expected) {
        // Token by token and word by word, relative to each one's own size.
        let size = expected.abs().reshape([expected.size()[0], -1]).amax([1_i64].as_slice(), true);
        let error = (found.to_kind(Kind::Double) - expected).abs().reshape([expected.size()[0], -1]) / size;
        assert!(error.max().double_value(&[]) < 2e-5, "{}", error.max());
    }
}

#[test]
fn what_is_not_a_number_stays_with_its_token() {
    let (hidden, weight) = (random(1, &[30, 8], Kind::Float), random(2, &[400, 8], Kind::Float));
    let targets = targets(30, 400);
    let clean = both_ways(&hidden, &weight, &targets.index_fill(0, &Tensor::from_slice(&[7_i64]), -100.0));
    let _ = hidden.narrow(0, 7, 1).fill_(f64::NAN);
    let options = CrossEntropyOptions::default();
    let spoilt = projected_cross_entropy(&hidden, &weight, &targets, &options).unwrap();
    assert!(spoilt.loss.double_value(&[]).is_nan());
    assert_eq!(spoilt.token_losses_N.isnan().nonzero().view([-1]).int64_value(&[0]), 7);
    assert_eq!(spoilt.token_losses_N.isnan().sum(Kind::Int64).int64_value(&[]), 1);
    // Ignored, it changes nothing, and its gradient is zero.
    let _ = targets.narrow(0, 7, 1).fill_(-100);
    let (h, w) = (leaf(&hidden), leaf(&weight));
    projected_cross_entropy(&h, &w, &targets, &options).unwrap().loss.backward();
    assert_close("hidden", &h.grad(), &clean[0][1], 1e-6);
    assert_close("weight", &w.grad(), &clean[0][2], 1e-6);
    assert_eq!(h.grad().narrow(0, 7, 1).abs().max().double_value(&[]), 0.0);
}

#[test]
fn cross_entropy_without_gradients_gives_the_same_losses() {
    let (hidden, weight) = (random(1, &[100, 20], Kind::Float), random(2, &[777, 20], Kind::Float));
    let targets = targets(100, 777);
    let losses = |hidden: &Tensor| {
        let options = CrossEntropyOptions::default();
        projected_cross_entropy(hidden, &weight, &targets, &options).unwrap().token_losses_N
    };
    assert!(losses(&leaf(&hidden)).equal(&losses(&hidden)));
    let one_word = projected_cross_entropy(
        &leaf(&hidden),
        &weight.narrow(0, 0, 1),
        &Tensor::zeros([100], (Kind::Int64, tch::Device::Cpu)),
        &CrossEntropyOptions::default(),
    );
    assert_eq!(one_word.unwrap().loss.double_value(&[]), 0.0);
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
