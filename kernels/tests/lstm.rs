//! LSTM: the fused version against the fp64 reference and libtorch's own LSTM, with states, resets and extreme gates.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::{
    assert_close, check_gradients, compare_all, expect_errors_of_libtorch_twice, leaf, random, random_flags,
    rounded, weighted_sum, with_gradients,
};
use tch::{Kind, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::lstm::{
    LstmInput, LstmKernel, LstmLayer, LstmOutput, LstmState, layer_fits, lstm, lstm_layer,
};

const NAMES: [&str; 5] = ["x", "recurrent", "bias", "hidden", "cell"];

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
        ];
        Self { inputs: inputs.iter().map(rounded).collect(), resets_BT: None }
    }

    fn with_resets(mut self, probability: f64) -> Self {
        let size = &self.inputs[0].size()[..2];
        self.resets_BT = Some(random_flags(3, size, probability));
        self
    }

    fn leaves(&self, kind: Kind) -> Vec<Tensor> {
        self.inputs.iter().map(|input| leaf(&input.to_kind(kind))).collect()
    }

    fn run(&self, kernel: LstmKernel, kind: Kind) -> Vec<(String, Tensor)> {
        let leaves = self.leaves(kind);
        let output = apply(&leaves, self.resets_BT.as_ref(), kernel);
        loss(&output, kind).backward();
        let LstmState { hidden, cell } = &output.state;
        let outputs = [("h", &output.h_BTHE), ("final hidden", hidden), ("final cell", cell)];
        with_gradients(&outputs, &NAMES, &leaves)
    }
}

fn apply(leaves: &[Tensor], resets_BT: Option<&Tensor>, kernel: LstmKernel) -> LstmOutput {
    let state = LstmState { hidden: leaves[3].shallow_clone(), cell: leaves[4].shallow_clone() };
    let input = LstmInput {
        x_BTGHE: &leaves[0],
        recurrent_HEGE: &leaves[1],
        bias_GHE: &leaves[2],
        state: Some(&state),
        resets_BT,
    };
    lstm(&input, kernel).unwrap()
}

/// Every output with fixed random weights.
fn loss(output: &LstmOutput, kind: Kind) -> Tensor {
    let outputs = [&output.h_BTHE, &output.state.hidden, &output.state.cell];
    weighted_sum(&outputs, kind)
}

#[test]
fn fused_equals_the_reference() {
    let shapes = [[1, 1, 1, 1], [1, 7, 2, 3], [2, 19, 3, 8], [3, 12, 2, 17], [5, 9, 1, 33], [9, 5, 2, 64]];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for resets in [0.0, 0.2] {
            let case = Case::new(seed as i64, shape, 1.5).with_resets(resets);
            let expected = case.run(LstmKernel::Reference, Kind::Double);
            let found = case.run(LstmKernel::Fused, Kind::Double);
            compare_all(&format!("{shape:?}, resets {resets}"), &found, &expected, 1e-10);
        }
    }
}

/// One head is libtorch's LSTM, whose code is not ours.
#[test]
fn one_head_equals_libtorch() {
    let (batch, time, width) = (3, 17, 12);
    let case = Case::new(7, [batch, time, 1, width], 1.0);
    let [x, recurrent, bias, hidden, cell] = [0, 1, 2, 3, 4].map(|index: usize| &case.inputs[index]);
    let found = apply(&case.inputs, None, LstmKernel::Fused);
    // The gate inputs as they are: the input's weights are the identity.
    let identity = Tensor::eye(4 * width, (Kind::Double, tch::Device::Cpu));
    let weight_hh = recurrent.view([width, 4 * width]).transpose(0, 1).contiguous();
    let flat = bias.reshape([-1]);
    let (expected, last_hidden, last_cell) = x.view([batch, time, 4 * width]).lstm(
        &[hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous()],
        &[identity, weight_hh, flat.shallow_clone(), flat.zeros_like()],
        true,
        1,
        0.0,
        false,
        false,
        true,
    );
    assert_close("h", &found.h_BTHE.squeeze_dim(2), &expected, 1e-12);
    assert_close("hidden", &found.state.hidden.transpose(0, 1), &last_hidden, 1e-12);
    assert_close("cell", &found.state.cell.transpose(0, 1), &last_cell, 1e-12);
}

const LAYER_NAMES: [&str; 7] =
    ["x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "state.hidden", "state.cell"];

/// Inputs, PyTorch's four parameters, and a state, in fp64.
fn layer_inputs(seed: i64, [batch, time, inputs, units]: [i64; 4]) -> Vec<Tensor> {
    let normal = |offset: i64, size: &[i64]| random(seed * 16 + offset, size, Kind::Double);
    let scale = (units as f64).powf(-0.5);
    let tensors = [
        normal(0, &[batch, time, inputs]),
        normal(1, &[4 * units, inputs]) * scale,
        normal(2, &[4 * units, units]) * scale,
        normal(3, &[4 * units]) * 0.3,
        normal(4, &[4 * units]) * 0.3,
        normal(5, &[batch, 1, units]) * 0.5,
        normal(6, &[batch, 1, units]),
    ];
    tensors.iter().map(rounded).collect()
}

/// A layer as the trainer computes it where libtorch's LSTM does not: a product for the gate inputs, and the cell.
fn layer_by_cell(x: &[Tensor], with_state: bool, kernel: LstmKernel) -> LstmOutput {
    let (size, units) = (x[0].size(), x[2].size()[1]);
    let raw = x[0].matmul(&x[1].transpose(0, 1)).view([size[0], size[1], 4, 1, units]);
    let recurrent = x[2].view([4, units, units]).permute([2, 0, 1]).unsqueeze(0);
    let state = LstmState { hidden: x[5].shallow_clone(), cell: x[6].shallow_clone() };
    let input = LstmInput {
        x_BTGHE: &raw,
        recurrent_HEGE: &recurrent,
        bias_GHE: &(&x[3] + &x[4]).view([4, 1, units]),
        state: with_state.then_some(&state),
        resets_BT: None,
    };
    lstm(&input, kernel).unwrap()
}

fn layer_by_libtorch(x: &[Tensor], with_state: bool, kind: Kind) -> LstmOutput {
    let state = LstmState { hidden: x[5].shallow_clone(), cell: x[6].shallow_clone() };
    let layer = LstmLayer::of([0, 1, 2, 3, 4].map(|index: usize| &x[index]));
    lstm_layer(&layer.from_state(with_state.then_some(&state)), kind, false).unwrap()
}

/// Outputs, the last state, and gradients of everything.
fn layer_results(output: &LstmOutput, leaves: &[Tensor], kind: Kind) -> Vec<(String, Tensor)> {
    loss(output, kind).backward();
    let LstmState { hidden, cell } = &output.state;
    let outputs = [("h", &output.h_BTHE), ("final hidden", hidden), ("final cell", cell)];
    with_gradients(&outputs, &LAYER_NAMES, leaves)
}

/// libtorch's own LSTM takes the same parameters to the same outputs, states and gradients as our cells do.
#[test]
fn a_layer_by_libtorch_equals_product_and_cell() {
    let shapes = [[3, 17, 12, 12], [2, 33, 24, 24], [1, 1, 8, 8], [5, 9, 7, 16]];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for with_state in [true, false] {
            let inputs = layer_inputs(90 + seed as i64, shape);
            for (kind, kernel, tolerance) in [
                (Kind::Double, LstmKernel::Reference, 1e-12),
                (Kind::Float, LstmKernel::Fused, 1e-5),
                (Kind::Float, LstmKernel::Reference, 1e-5),
            ] {
                let leaves = || -> Vec<Tensor> {
                    let used = if with_state { 7 } else { 5 };
                    let leaf_of = |(index, tensor): (usize, &Tensor)| {
                        let tensor = tensor.to_kind(kind);
                        if index < used { leaf(&tensor) } else { tensor }
                    };
                    inputs.iter().enumerate().map(leaf_of).collect()
                };
                let used = if with_state { 7 } else { 5 };
                let (ours, theirs) = (leaves(), leaves());
                let expected = layer_by_cell(&ours, with_state, kernel);
                let expected = layer_results(&expected, &ours[..used], kind);
                let found = layer_by_libtorch(&theirs, with_state, kind);
                assert_eq!(found.h_BTHE.kind(), kind);
                assert!(found.h_BTHE.is_contiguous());
                let found = layer_results(&found, &theirs[..used], kind);
                let what = format!("{shape:?}, {kind:?}, {kernel:?}, a state: {with_state}");
                compare_all(&what, &found, &expected, tolerance);
            }
        }
    }
}

/// A state carried from one part of a text to the next gives what the whole gives.
#[test]
fn a_layer_by_libtorch_goes_on_from_its_state() {
    let inputs: Vec<Tensor> =
        layer_inputs(97, [2, 24, 10, 16]).iter().map(|tensor| tensor.to_kind(Kind::Float)).collect();
    let whole = layer_by_libtorch(&inputs, true, Kind::Float);
    for split in [1, 11, 23] {
        let part = |from: i64, length: i64, state: &LstmState| {
            let mut own: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
            own[0] = inputs[0].narrow(1, from, length);
            own[5] = state.hidden.shallow_clone();
            own[6] = state.cell.shallow_clone();
            layer_by_libtorch(&own, true, Kind::Float)
        };
        let before = LstmState { hidden: inputs[5].shallow_clone(), cell: inputs[6].shallow_clone() };
        let head = part(0, split, &before);
        let tail = part(split, 24 - split, &head.state);
        let h_BTHE = Tensor::cat(&[&head.h_BTHE, &tail.h_BTHE], 1);
        assert_close("h", &h_BTHE, &whole.h_BTHE, 1e-6);
        assert_close("hidden", &tail.state.hidden, &whole.state.hidden, 1e-6);
        assert_close("cell", &tail.state.cell, &whole.state.cell, 1e-6);
    }
}

#[test]
fn what_a_layer_by_libtorch_cannot_is_left_to_others_and_wrong_shapes_are_named() {
    let gpu = tch::Device::Cuda(0);
    assert!(layer_fits(gpu, 1, 512, false));
    assert!(!layer_fits(gpu, 1, 512, true), "documents within sequences");
    assert!(!layer_fits(gpu, 4, 512, false), "a block-diagonal matrix");
    assert!(!layer_fits(gpu, 1, 128, false), "a kernel's size");
    assert!(!layer_fits(tch::Device::Cpu, 1, 512, false), "another device");
    let mut inputs = layer_inputs(99, [2, 5, 8, 8]);
    inputs[3] = inputs[3].narrow(0, 0, 8);
    let layer = LstmLayer::of([0, 1, 2, 3, 4].map(|index: usize| &inputs[index]));
    let error = lstm_layer(&layer, Kind::Double, false).unwrap_err();
    assert!(matches!(error, KernelError::Shape { argument: "bias_ih_F", .. }), "{error}");
}

/// Errors in fp32 are at most twice those of libtorch's own operations in fp32, both against fp64.
#[test]
fn fp32_errors_are_those_of_libtorch_at_most_twice() {
    for (seed, gate_scale) in [(30, 1.0), (31, 5.0), (32, 20.0)] {
        for shape in [[2, 33, 2, 24], [1, 120, 1, 64]] {
            let case = Case::new(seed, shape, gate_scale);
            let expected = case.run(LstmKernel::Reference, Kind::Double);
            let plain = case.run(LstmKernel::Reference, Kind::Float);
            let found = case.run(LstmKernel::Fused, Kind::Float);
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
        for (name, tensor) in case.run(LstmKernel::Fused, Kind::Float) {
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "i {i}, f {f}: {name} is not finite");
        }
    }
}

#[test]
fn a_nan_is_not_lost() {
    let case = Case::new(41, [1, 9, 1, 4], 1.0);
    for gate in 0..4 {
        let inputs: Vec<Tensor> = case.inputs.iter().map(Tensor::copy).collect();
        let _ = inputs[0].narrow(1, 3, 1).narrow(2, gate, 1).narrow(4, 1, 1).fill_(f64::NAN);
        let output = apply(&inputs, None, LstmKernel::Fused);
        assert!(!bool::try_from(output.h_BTHE.isfinite().all()).unwrap(), "a NaN in gate {gate}");
    }
}

#[test]
fn split_sequences_equal_the_whole() {
    let case = Case::new(50, [2, 24, 2, 8], 1.0).with_resets(0.05);
    let resets_BT = case.resets_BT.as_ref().unwrap();
    for kernel in [LstmKernel::Reference, LstmKernel::Fused] {
        let whole = case.leaves(Kind::Double);
        let output = apply(&whole, Some(resets_BT), kernel);
        loss(&output, Kind::Double).backward();
        for split in [1, 11, 23] {
            let leaves = case.leaves(Kind::Double);
            let mut first: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
            first[0] = leaves[0].narrow(1, 0, split);
            let head = apply(&first, Some(&resets_BT.narrow(1, 0, split)), kernel);
            let mut second: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
            second[0] = leaves[0].narrow(1, split, 24 - split);
            second[3] = head.state.hidden.shallow_clone();
            second[4] = head.state.cell.shallow_clone();
            let tail = apply(&second, Some(&resets_BT.narrow(1, split, 24 - split)), kernel);
            let h_BTHE = Tensor::cat(&[&head.h_BTHE, &tail.h_BTHE], 1);
            assert_close("h", &h_BTHE, &output.h_BTHE, 1e-12);
            loss(&LstmOutput { h_BTHE, state: tail.state }, Kind::Double).backward();
            for (name, (found, expected)) in NAMES.iter().zip(leaves.iter().zip(&whole)) {
                assert_close(&format!("{name} split at {split}"), &found.grad(), &expected.grad(), 1e-9);
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let case = Case::new(60, [2, 7, 2, 3], 1.0).with_resets(0.1);
    let leaves = case.leaves(Kind::Double);
    let named: Vec<(&str, &Tensor)> = NAMES.iter().copied().zip(&leaves).collect();
    check_gradients(&named, &|| {
        loss(&apply(&leaves, case.resets_BT.as_ref(), LstmKernel::Fused), Kind::Double)
    });
}

#[test]
fn half_precision_is_computed_in_single_and_wrong_shapes_are_named() {
    let case = Case::new(80, [2, 20, 2, 8], 1.0);
    let x = case.inputs[0].to_kind(Kind::BFloat16);
    let [recurrent, bias] = [1, 2].map(|index: usize| case.inputs[index].to_kind(Kind::Float));
    let input =
        LstmInput { x_BTGHE: &x, recurrent_HEGE: &recurrent, bias_GHE: &bias, state: None, resets_BT: None };
    let output = lstm(&input, LstmKernel::Auto).unwrap();
    assert_eq!((output.h_BTHE.kind(), output.state.cell.kind()), (Kind::BFloat16, Kind::Float));
    let transposed = recurrent.transpose(1, 2);
    let error = lstm(&LstmInput { recurrent_HEGE: &transposed, ..input }, LstmKernel::Auto).unwrap_err();
    assert!(matches!(error, KernelError::Shape { argument: "recurrent_HEGE", .. }), "{error}");
}
