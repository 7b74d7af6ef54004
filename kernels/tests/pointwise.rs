//! Convolution, norms, block-diagonal maps and gates against plain compositions of libtorch.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::{assert_close, check_gradients, leaf, random, random_flags};
use tch::{Device, Kind, Tensor};
use xlstm_kernels::conv::{ConvInput, ConvOutput, causal_conv_silu};
use xlstm_kernels::gates::{
    GateWeights, MlstmOutputInput, block_linear, gelu_gate, mlstm_gates, mlstm_output,
};
use xlstm_kernels::norm::{head_norm, layer_norm};

fn conv(x: &Tensor, w: &Tensor, b: &Tensor, state: Option<&Tensor>, resets: Option<&Tensor>) -> ConvOutput {
    let input = ConvInput { x_BTD: x, weight_D1W: w, bias_D: Some(b), state, resets_BT: resets };
    causal_conv_silu(&input).unwrap()
}

/// libtorch's convolution over a padded, transposed copy.
fn plain_conv(x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    let [_, time, width] = <[i64; 3]>::try_from(x.size()).unwrap();
    let taps = w.size()[2];
    let y = x.transpose(1, 2).conv1d(w, Some(b), 1, taps - 1, 1, width);
    y.narrow(2, 0, time).transpose(1, 2).silu()
}

#[test]
fn conv_equals_libtorch() {
    for (seed, [batch, time, width, taps]) in
        [[2, 9, 5, 4], [1, 1, 3, 4], [3, 2, 130, 4], [2, 33, 17, 2], [2, 20, 8, 1], [1, 40, 300, 4]]
            .into_iter()
            .enumerate()
    {
        let kind = Kind::Double;
        let normal = |offset: i64, size: &[i64]| random(seed as i64 * 8 + offset, size, kind);
        let (x, w, b) = (normal(0, &[batch, time, width]), normal(1, &[width, 1, taps]), normal(2, &[width]));
        let weights = normal(3, &[batch, time, width]);
        let (x0, w0, b0) = (leaf(&x), leaf(&w), leaf(&b));
        (plain_conv(&x0, &w0, &b0) * &weights).sum(kind).backward();
        let (x1, w1, b1) = (leaf(&x), leaf(&w), leaf(&b));
        let output = conv(&x1, &w1, &b1, None, None);
        assert_close("y", &output.y_BTD, &plain_conv(&x, &w, &b), 1e-12);
        (output.y_BTD * &weights).sum(kind).backward();
        for (name, found, expected) in [("x", &x1, &x0), ("weight", &w1, &w0), ("bias", &b1, &b0)] {
            assert_close(name, &found.grad(), &expected.grad(), 1e-12);
        }
        let single = |tensor: &Tensor| tensor.to_kind(Kind::Float);
        let output = conv(&single(&x), &single(&w), &single(&b), None, None);
        assert_close("fp32", &output.y_BTD, &plain_conv(&x, &w, &b), 1e-6);
    }
}

#[test]
fn conv_split_anywhere_equals_the_whole() {
    let (x, w) = (random(1, &[2, 11, 6], Kind::Double), random(2, &[6, 1, 4], Kind::Double));
    let b = random(3, &[6], Kind::Double);
    let resets = random_flags(2, &[2, 11], 0.2);
    for resets in [None, Some(&resets)] {
        let whole = conv(&x, &w, &b, None, resets);
        for split in 1..11 {
            let reset = |start: i64, length: i64| resets.map(|resets| resets.narrow(1, start, length));
            let first = conv(&x.narrow(1, 0, split), &w, &b, None, reset(0, split).as_ref());
            let rest = reset(split, 11 - split);
            let second = conv(&x.narrow(1, split, 11 - split), &w, &b, Some(&first.state), rest.as_ref());
            let joined = Tensor::cat(&[first.y_BTD, second.y_BTD], 1);
            assert_close(&format!("split at {split}"), &joined, &whole.y_BTD, 1e-13);
            assert_close("state", &second.state, &whole.state, 1e-13);
        }
    }
}

#[test]
fn conv_resets_equal_separate_sequences() {
    let (x, w) = (random(1, &[1, 12, 6], Kind::Double), random(2, &[6, 1, 4], Kind::Double));
    let b = random(3, &[6], Kind::Double);
    let resets = Tensor::zeros([1, 12], (Kind::Bool, Device::Cpu));
    for time in [5, 7] {
        let _ = resets.narrow(1, time, 1).fill_(1);
    }
    let whole = conv(&x, &w, &b, None, Some(&resets));
    for (start, end) in [(0, 5), (5, 7), (7, 12)] {
        let alone = conv(&x.narrow(1, start, end - start), &w, &b, None, None);
        assert_close("y", &whole.y_BTD.narrow(1, start, end - start), &alone.y_BTD, 1e-13);
    }
}

#[test]
fn conv_gradients_agree_with_finite_differences() {
    let (x, w) = (leaf(&random(1, &[2, 6, 3], Kind::Double)), leaf(&random(2, &[3, 1, 4], Kind::Double)));
    let b = leaf(&random(3, &[3], Kind::Double));
    let plain = random(4, &[2, 3, 3], Kind::Double);
    let state = leaf(&plain);
    let resets = random_flags(6, &[2, 6], 0.2);
    let weights = random(5, &[2, 6, 3], Kind::Double);
    let loss =
        |state: &Tensor| (conv(&x, &w, &b, Some(state), Some(&resets)).y_BTD * &weights).sum(Kind::Double);
    check_gradients(&[("x", &x), ("weight", &w), ("bias", &b)], &|| loss(&plain));
    for tensor in [&x, &w, &b] {
        let mut gradient = tensor.grad();
        let _ = gradient.zero_();
    }
    check_gradients(&[("x", &x), ("weight", &w), ("bias", &b), ("state", &state)], &|| loss(&state));
}

/// Halves of a projection are read where they lie.
#[test]
fn halves_of_a_projection_need_no_copy() {
    let both = leaf(&random(1, &[2, 7, 24], Kind::Double));
    let w = random(2, &[12, 1, 4], Kind::Double);
    let b = random(3, &[12], Kind::Double);
    let blocks = random(4, &[3, 4, 4], Kind::Double);
    let halves = both.chunk(2, -1);
    let y = conv(&halves[0], &w, &b, None, None).y_BTD + block_linear(&halves[1], &blocks).unwrap();
    y.square().sum(Kind::Double).backward();
    let copied = leaf(&both);
    let halves: Vec<Tensor> = copied.chunk(2, -1).iter().map(Tensor::contiguous).collect();
    let expected = conv(&halves[0], &w, &b, None, None).y_BTD + block_linear(&halves[1], &blocks).unwrap();
    expected.square().sum(Kind::Double).backward();
    assert!(y.equal(&expected));
    assert!(both.grad().equal(&copied.grad()));
}

#[test]
fn block_linear_equals_a_block_diagonal_matrix() {
    for (seed, [blocks, outputs, inputs]) in
        [[2, 5, 4], [6, 4, 4], [5, 4, 4], [33, 4, 4], [4, 16, 16]].into_iter().enumerate()
    {
        let kind = Kind::Double;
        let x = random(seed as i64, &[2, 13, blocks * inputs], kind);
        let w = random(seed as i64 + 50, &[blocks, outputs, inputs], kind);
        let dense = |w: &Tensor| {
            let rows: Vec<Tensor> = (0..blocks)
                .map(|block| {
                    w.select(0, block).constant_pad_nd([block * inputs, (blocks - 1 - block) * inputs])
                })
                .collect();
            Tensor::cat(&rows, 0)
        };
        let weights = random(99, &[2, 13, blocks * outputs], kind);
        let (x0, w0, x1, w1) = (leaf(&x), leaf(&w), leaf(&x), leaf(&w));
        let expected = x0.matmul(&dense(&w0).tr());
        (&expected * &weights).sum(kind).backward();
        let found = block_linear(&x1, &w1).unwrap();
        (&found * &weights).sum(kind).backward();
        assert_close("y", &found, &expected, 1e-12);
        assert_close("x", &x1.grad(), &x0.grad(), 1e-12);
        assert_close("weight", &w1.grad(), &w0.grad(), 1e-12);
    }
}

/// The norm as it is defined.
fn plain_norm(x: &Tensor) -> Tensor {
    let centered = x - x.mean_dim(-1, true, None::<Kind>);
    let variance = centered.square().mean_dim(-1, true, None::<Kind>);
    centered / (variance + 1e-5).sqrt()
}

#[test]
fn norms_equal_their_definition() {
    let kind = Kind::Double;
    let (x, w) = (random(1, &[2, 5, 12], kind), random(2, &[12], kind));
    let expected = plain_norm(&x) * (&w + 1.0);
    assert_close("layer norm", &layer_norm(&x, &w, 1e-5).unwrap(), &expected, 1e-12);
    let heads = x.view([2, 5, 3, 4]);
    let expected = plain_norm(&heads).view([2, 5, 12]) * (&w + 1.0);
    assert_close("head norm", &head_norm(&heads, &w, 1e-5).unwrap(), &expected, 1e-12);
}

#[test]
fn the_output_of_mlstm_equals_its_definition() {
    for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 4e-6)] {
        for [batch, time, heads, width] in [[2, 7, 3, 10], [1, 1, 1, 4], [2, 20, 4, 64]] {
            let size = [batch, time, heads * width];
            let both = random(5, &[batch, time, 2 * heads * width], kind);
            let tensors = [
                random(1, &[batch, time, heads, width], kind) * 2.0,
                random(2, &[heads * width], kind),
                random(3, &[heads * width], kind),
                random(4, &size, kind),
            ];
            let weights = random(6, &size, kind);
            let run = |fused: bool| {
                let leaves: Vec<Tensor> = tensors.iter().chain([&both]).map(leaf).collect();
                let z = &leaves[4].chunk(2, -1)[1];
                let y = if fused {
                    let input = MlstmOutputInput {
                        h_BTHE: &leaves[0],
                        norm_weight_D: &leaves[1],
                        skip_D: &leaves[2],
                        conv_BTD: &leaves[3],
                        z_BTD: z,
                    };
                    mlstm_output(&input, 1e-5).unwrap()
                } else {
                    let normal = plain_norm(&leaves[0]).view(size) * (&leaves[1] + 1.0);
                    (normal + &leaves[2] * &leaves[3]) * z.silu()
                };
                (&y * &weights).sum(kind).backward();
                (y, leaves)
            };
            let ((y, leaves), (expected, plain)) = (run(true), run(false));
            assert_close("y", &y, &expected, tolerance);
            for (index, (found, expected)) in leaves.iter().zip(&plain).enumerate() {
                assert_close(&format!("gradient {index}"), &found.grad(), &expected.grad(), tolerance);
            }
        }
    }
}

#[test]
fn gates_equal_their_definition() {
    let kind = Kind::Double;
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, &[2, 9, 8], kind));
    let (iw, fw) = (random(4, &[2, 24], kind), random(5, &[2, 24], kind));
    let (ib, fb) = (random(6, &[2], kind), random(7, &[2], kind));
    let weights = GateWeights { input_weight: &iw, input_bias: &ib, forget_weight: &fw, forget_bias: &fb };
    let (i, f) = mlstm_gates(&q, &k, &v, &weights).unwrap();
    let joined = Tensor::cat(&[&q, &k, &v], -1);
    assert_close("i", &i, &joined.linear(&iw, Some(&ib)), 1e-12);
    assert_close("f", &f, &joined.linear(&fw, Some(&fb)), 1e-12);
    let y = gelu_gate(&q).unwrap();
    assert_close("gelu", &y, &(q.narrow(-1, 0, 4).gelu("none") * q.narrow(-1, 4, 4)), 1e-14);
    assert!(gelu_gate(&q.narrow(-1, 0, 5)).is_err());
}
