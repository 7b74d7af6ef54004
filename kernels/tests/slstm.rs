//! sLSTM: the fused version against the fp64 reference, at odd sizes, with states, resets, clipping, extreme gates.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::{
    assert_close, check_gradients, compare_all, expect_errors_of_libtorch_twice, leaf, random, random_flags,
    relative_error, rounded, weighted_sum, with_gradients,
};
use tch::{Kind, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::slstm::{
    SlstmInput, SlstmKernel, SlstmLayout, SlstmOptions, SlstmOutput, SlstmState, canonical_bias,
    canonical_recurrent, slstm,
};

const NAMES: [&str; 7] = ["x", "recurrent", "bias", "hidden", "cell", "normalizer", "maximum"];

/// x, R, b and an initial state, in fp64.
struct Case {
    inputs: Vec<Tensor>,
    resets_BT: Option<Tensor>,
}

impl Case {
    fn new(seed: i64, [batch, time, heads, width]: [i64; 4], gate_scale: f64) -> Self {
        let normal = |offset: i64, size: &[i64]| random(seed * 16 + offset, size, Kind::Double);
        let state = [batch, heads, width];
        let inputs = [
            normal(0, &[batch, time, 4, heads, width]) * gate_scale,
            normal(1, &[heads, width, 4, width]) * (width as f64).powf(-0.5),
            normal(2, &[4, heads, width]),
            normal(3, &state),
            normal(4, &state),
            normal(5, &state).abs() + 0.5,
            normal(6, &state),
        ];
        Self { inputs: inputs.iter().map(rounded).collect(), resets_BT: None }
    }

    fn with_resets(mut self, probability: f64) -> Self {
        let size = &self.inputs[0].size()[..2];
        self.resets_BT = Some(random_flags(3, size, probability));
        self
    }

    fn run(&self, options: SlstmOptions, kind: Kind) -> Vec<(String, Tensor)> {
        let leaves: Vec<Tensor> = self.inputs.iter().map(|input| leaf(&input.to_kind(kind))).collect();
        let output = apply(&leaves, self.resets_BT.as_ref(), options);
        loss(&output, kind).backward();
        let SlstmState { hidden, cell, normalizer, maximum } = &output.state;
        let outputs = [
            ("y", &output.y_BTHE),
            ("final hidden", hidden),
            ("final cell", cell),
            ("final normalizer", normalizer),
            ("final maximum", maximum),
        ];
        with_gradients(&outputs, &NAMES, &leaves)
    }
}

fn apply(leaves: &[Tensor], resets_BT: Option<&Tensor>, options: SlstmOptions) -> SlstmOutput {
    let state = SlstmState {
        hidden: leaves[3].shallow_clone(),
        cell: leaves[4].shallow_clone(),
        normalizer: leaves[5].shallow_clone(),
        maximum: leaves[6].shallow_clone(),
    };
    let input = SlstmInput {
        x_BTGHE: &leaves[0],
        recurrent_HEGE: &leaves[1],
        bias_GHE: &leaves[2],
        state: Some(&state),
        resets_BT,
    };
    slstm(&input, &options).unwrap()
}

/// Every output with fixed random weights.
fn loss(output: &SlstmOutput, kind: Kind) -> Tensor {
    let state = &output.state;
    let outputs = [&output.y_BTHE, &state.hidden, &state.cell, &state.normalizer, &state.maximum];
    weighted_sum(&outputs, kind)
}

fn with(kernel: SlstmKernel) -> SlstmOptions {
    SlstmOptions { kernel, ..SlstmOptions::default() }
}

#[test]
fn fused_equals_the_reference() {
    let shapes = [[1, 1, 1, 1], [1, 7, 2, 3], [2, 19, 3, 8], [3, 12, 2, 17], [5, 9, 1, 33], [9, 5, 2, 64]];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for resets in [0.0, 0.2] {
            let case = Case::new(seed as i64, shape, 1.5).with_resets(resets);
            let expected = case.run(with(SlstmKernel::Reference), Kind::Double);
            let found = case.run(with(SlstmKernel::Fused), Kind::Double);
            compare_all(&format!("{shape:?}, resets {resets}"), &found, &expected, 1e-10);
        }
    }
}

#[test]
fn an_exponential_forget_gate_equals_the_reference_and_its_finite_differences() {
    let options = |kernel| SlstmOptions { kernel, exponential_forget: true, ..SlstmOptions::default() };
    for (seed, shape) in [[1, 1, 1, 1], [2, 19, 3, 8], [3, 12, 2, 17]].into_iter().enumerate() {
        for gate_scale in [1.0, 8.0] {
            let case = Case::new(60 + seed as i64, shape, gate_scale).with_resets(0.1);
            let expected = case.run(options(SlstmKernel::Reference), Kind::Double);
            let found = case.run(options(SlstmKernel::Fused), Kind::Double);
            compare_all(&format!("{shape:?}, gates {gate_scale}"), &found, &expected, 1e-10);
            let sigmoid = case.run(with(SlstmKernel::Fused), Kind::Double);
            assert!(relative_error(&found[0].1, &sigmoid[0].1) > 1e-3 || shape[1] == 1, "{shape:?}");
        }
    }
    let case = Case::new(70, [2, 5, 2, 3], 1.0);
    let leaves: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
    let named: Vec<(&str, &Tensor)> = NAMES.into_iter().zip(&leaves).collect();
    check_gradients(&named, &|| loss(&apply(&leaves, None, options(SlstmKernel::Fused)), Kind::Double));
}

#[test]
fn clipping_acts_on_the_recurrent_gradient_alone() {
    let case = Case::new(20, [2, 15, 2, 8], 1.0).with_resets(0.1);
    for clip in [0.01, 0.3, 10.0] {
        let options = |kernel| SlstmOptions { kernel, gradient_clip: Some(clip), ..SlstmOptions::default() };
        let expected = case.run(options(SlstmKernel::Reference), Kind::Double);
        let found = case.run(options(SlstmKernel::Fused), Kind::Double);
        compare_all(&format!("clip {clip}"), &found, &expected, 1e-10);
    }
    let free = case.run(with(SlstmKernel::Fused), Kind::Double);
    let clipped =
        SlstmOptions { kernel: SlstmKernel::Fused, gradient_clip: Some(0.01), ..SlstmOptions::default() };
    let clipped = case.run(clipped, Kind::Double);
    assert!(relative_error(&clipped[5].1, &free[5].1) > 1e-3, "a small limit changes the gradient of x");
}

/// Errors in fp32 are at most twice those of libtorch's own operations in fp32, both against fp64.
#[test]
fn fp32_errors_are_those_of_libtorch_at_most_twice() {
    for (seed, gate_scale) in [(30, 1.0), (31, 5.0), (32, 20.0)] {
        for shape in [[2, 33, 2, 24], [1, 120, 4, 16]] {
            let case = Case::new(seed, shape, gate_scale);
            let expected = case.run(with(SlstmKernel::Reference), Kind::Double);
            let plain = case.run(with(SlstmKernel::Reference), Kind::Float);
            let found = case.run(with(SlstmKernel::Fused), Kind::Float);
            let what = format!("gates {gate_scale}, {shape:?}");
            expect_errors_of_libtorch_twice(&what, &found, &plain, &expected);
        }
    }
}

#[test]
fn gates_of_plus_and_minus_a_hundred_stay_finite() {
    for (i, f) in [(100.0, 100.0), (100.0, -100.0), (-100.0, 100.0), (-100.0, -100.0)] {
        let mut case = Case::new(40, [2, 25, 2, 6], 1.0);
        let shift = Tensor::from_slice(&[i, f, 100.0, -100.0]).view([1, 1, 4, 1, 1]);
        case.inputs[0] = (&case.inputs[0] + shift).detach();
        let expected = case.run(with(SlstmKernel::Reference), Kind::Double);
        for ((name, found), (_, expected)) in
            case.run(with(SlstmKernel::Fused), Kind::Double).iter().zip(&expected)
        {
            let scale = expected.abs().max().double_value(&[]).max(1e-3);
            let error = (found - expected).abs().max().double_value(&[]) / scale;
            assert!(error < 1e-9, "i {i}, f {f}: {name}: {error:.2e}");
        }
        for (name, tensor) in case.run(with(SlstmKernel::Fused), Kind::Float) {
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "i {i}, f {f}: {name} is not finite");
        }
    }
}

#[test]
fn a_nan_is_not_lost() {
    let case = Case::new(41, [1, 9, 1, 4], 1.0);
    for gate in 0..4 {
        let mut inputs: Vec<Tensor> = case.inputs.iter().map(Tensor::copy).collect();
        let _ = inputs[0].narrow(1, 3, 1).narrow(2, gate, 1).narrow(4, 1, 1).fill_(f64::NAN);
        let output = apply(&inputs, None, with(SlstmKernel::Fused));
        assert!(
            !bool::try_from(output.y_BTHE.isfinite().all()).unwrap(),
            "a NaN in gate {gate} does not reach y"
        );
        inputs.clear();
    }
}

#[test]
fn split_sequences_equal_the_whole() {
    let case = Case::new(50, [2, 24, 2, 8], 1.0).with_resets(0.05);
    let resets_BT = case.resets_BT.as_ref().unwrap();
    for kernel in [SlstmKernel::Reference, SlstmKernel::Fused] {
        let whole: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
        let output = apply(&whole, Some(resets_BT), with(kernel));
        loss(&output, Kind::Double).backward();
        for split in [1, 11, 23] {
            let leaves: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
            let mut first: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
            first[0] = leaves[0].narrow(1, 0, split);
            let head = apply(&first, Some(&resets_BT.narrow(1, 0, split)), with(kernel));
            let rest = leaves[0].narrow(1, split, 24 - split);
            let SlstmState { hidden, cell, normalizer, maximum } = head.state;
            let second = [
                rest,
                leaves[1].shallow_clone(),
                leaves[2].shallow_clone(),
                hidden,
                cell,
                normalizer,
                maximum,
            ];
            let tail = apply(&second, Some(&resets_BT.narrow(1, split, 24 - split)), with(kernel));
            let joined =
                SlstmOutput { y_BTHE: Tensor::cat(&[&head.y_BTHE, &tail.y_BTHE], 1), state: tail.state };
            assert_close("y", &joined.y_BTHE, &output.y_BTHE, 1e-12);
            loss(&joined, Kind::Double).backward();
            for (name, (found, expected)) in NAMES.iter().zip(leaves.iter().zip(&whole)) {
                assert_close(&format!("{name} split at {split}"), &found.grad(), &expected.grad(), 1e-9);
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let case = Case::new(60, [2, 7, 2, 3], 1.0).with_resets(0.1);
    for kernel in [SlstmKernel::Reference, SlstmKernel::Fused] {
        let leaves: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
        let named: Vec<(&str, &Tensor)> = NAMES.iter().copied().zip(&leaves).collect();
        check_gradients(&named, &|| {
            loss(&apply(&leaves, case.resets_BT.as_ref(), with(kernel)), Kind::Double)
        });
    }
}

#[test]
fn layouts_of_published_weights() {
    let canonical = random(70, &[2, 3, 4, 3], Kind::Double);
    let vanilla = canonical.permute([0, 2, 3, 1]).reshape([2, 12, 3]);
    let cuda = canonical.reshape([2, 3, 12]);
    assert!(canonical_recurrent(&vanilla, SlstmLayout::Vanilla).unwrap().equal(&canonical));
    assert!(canonical_recurrent(&cuda, SlstmLayout::Cuda).unwrap().equal(&canonical));
    let bias = random(71, &[4, 2, 3], Kind::Double);
    let flat = bias.reshape([-1]);
    assert!(canonical_bias(&flat, 2, SlstmLayout::Vanilla).unwrap().equal(&bias));
    let flat = bias.transpose(0, 1).reshape([-1]);
    assert!(canonical_bias(&flat, 2, SlstmLayout::Cuda).unwrap().equal(&bias));
    let error = canonical_recurrent(&cuda, SlstmLayout::Vanilla).unwrap_err();
    assert!(matches!(error, KernelError::Shape { argument: "_recurrent_kernel_", .. }));
}

#[test]
fn half_precision_is_computed_in_single() {
    let case = Case::new(80, [2, 20, 2, 8], 1.0);
    let x = case.inputs[0].to_kind(Kind::BFloat16);
    let [recurrent, bias] = [1, 2].map(|index: usize| case.inputs[index].to_kind(Kind::Float));
    let input =
        SlstmInput { x_BTGHE: &x, recurrent_HEGE: &recurrent, bias_GHE: &bias, state: None, resets_BT: None };
    let output = slstm(&input, &SlstmOptions::default()).unwrap();
    assert_eq!((output.y_BTHE.kind(), output.state.cell.kind()), (Kind::BFloat16, Kind::Float));
}
