//! mLSTM: every version against the fp64 reference, at odd sizes, with states, resets and extreme gates.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::mlstm::{Case, NAMES, Shape, apply, chunkwise, compare, composed, reference, with_input};
use common::{assert_close, check_gradients, leaf, random, relative_error};
use tch::{Kind, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::mlstm::{MlstmOptions, MlstmState, mlstm_hidden, mlstm_step};

const SMALL: Shape = Shape { batch: 2, time: 37, heads: 3, key: 10, value: 7 };

fn at(time: i64) -> Shape {
    Shape { batch: 2, time, heads: 2, key: 24, value: 20 }
}

#[test]
fn chunkwise_equals_the_reference_at_every_chunk_size() {
    for with_state in [false, true] {
        for resets in [0.0, 0.15] {
            let case = Case::new(1, SMALL, 1.0, with_state).with_resets(resets, 5);
            let expected = case.run(reference(), Kind::Double);
            for chunk in [1, 2, 5, 8, 16, 33, 36, 37, 64] {
                let what = format!("chunk {chunk}, state {with_state}, resets {resets}");
                compare(&what, &case.run(chunkwise(chunk), Kind::Double), &expected, 1e-10);
            }
        }
    }
}

#[test]
fn the_composed_version_equals_the_reference_at_every_chunk_size() {
    for (with_state, resets) in [(false, 0.0), (true, 0.0), (true, 0.15), (false, 0.15)] {
        let case = Case::new(9, SMALL, 3.0, with_state).with_resets(resets, 5);
        let expected = case.run(reference(), Kind::Double);
        for chunk in [1, 5, 36, 37, 64] {
            let what = format!("composed, chunk {chunk}, state {with_state}, resets {resets}");
            compare(&what, &case.run(composed(chunk), Kind::Double), &expected, 1e-10);
        }
    }
}

#[test]
fn chunkwise_equals_the_reference_at_odd_lengths() {
    for time in [1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 200] {
        let case = Case::new(2, at(time), 1.0, true);
        let expected = case.run(reference(), Kind::Double);
        for chunk in [64, 128] {
            let what = format!("time {time}, chunk {chunk}");
            compare(&what, &case.run(chunkwise(chunk), Kind::Double), &expected, 1e-10);
        }
    }
}

/// Errors in fp32 are at most twice those of libtorch's own operations in fp32, both against fp64.
#[test]
fn fp32_errors_are_those_of_libtorch_at_most_twice() {
    for (seed, gate_scale) in [(3, 1.0), (4, 5.0), (5, 20.0)] {
        for time in [7, 64, 129, 301] {
            let case = Case::new(seed, at(time), gate_scale, true).rounded();
            let expected = case.run(reference(), Kind::Double);
            let plain = case.run(reference(), Kind::Float);
            for chunk in [16, 64, 128] {
                let found = case.run(chunkwise(chunk), Kind::Float);
                for ((name, found), ((_, plain), (_, expected))) in
                    found.iter().zip(plain.iter().zip(&expected))
                {
                    let (ours, theirs) = (relative_error(found, expected), relative_error(plain, expected));
                    // Where libtorch happens to be exact, a few units in the last place are allowed. The gradient
                    // of m is a difference of two large sums over the states.
                    let floor = if name == "gradient of maximum" { 1e-4 } else { 2e-6 };
                    assert!(
                        ours <= 2.0 * theirs + floor,
                        "gates {gate_scale}, time {time}, chunk {chunk}, {name}: {ours:.2e} against {theirs:.2e}"
                    );
                }
            }
        }
    }
}

#[test]
fn gates_of_plus_and_minus_a_hundred_stay_finite() {
    let case = Case::new(6, at(130), 1.0, false);
    for (i, f) in [(100.0, 100.0), (100.0, -100.0), (-100.0, 100.0), (-100.0, -100.0)] {
        let mut case = Case { inputs: case.inputs.iter().map(Tensor::copy).collect(), resets_BT: None };
        let sign = case.inputs[3].sign();
        case.inputs[3] = (&case.inputs[3] + i).detach();
        case.inputs[4] = (sign * f).detach();
        let expected = case.run(reference(), Kind::Double);
        // Some of these gradients are zero but for rounding, so the scale is at least one.
        for ((name, found), (_, expected)) in case.run(chunkwise(32), Kind::Double).iter().zip(&expected) {
            let scale = expected.abs().max().double_value(&[]).max(1.0);
            let error = (found - expected).abs().max().double_value(&[]) / scale;
            assert!(error < 1e-10, "i {i}, f ±{f}: {name}: {error:.2e}");
        }
        for (name, tensor) in case.run(chunkwise(32), Kind::Float) {
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "i {i}, f ±{f}: {name} is not finite");
        }
    }
}

#[test]
fn a_nan_is_not_lost() {
    let case = Case::new(7, at(40), 1.0, false);
    for input in 0..5 {
        let mut inputs: Vec<Tensor> = case.inputs.iter().map(Tensor::copy).collect();
        let _ = inputs[input].view([-1]).narrow(0, 5, 1).fill_(f64::NAN);
        let output = tch::no_grad(|| apply(&inputs, None, chunkwise(16)));
        let lost = bool::try_from(output.h_BTHV.isfinite().all()).unwrap();
        assert!(!lost, "a NaN in {} does not reach h", NAMES[input]);
        inputs.truncate(5);
    }
}

/// Splitting anywhere, with the state handed on, gives the whole; gradients through the state too.
#[test]
fn split_sequences_equal_the_whole() {
    let case = Case::new(8, at(50), 1.0, true).with_resets(0.04, 9);
    let resets_BT = case.resets_BT.as_ref().unwrap();
    let weights = random(77, &[2, 50, 2, 20], Kind::Double);
    for options in [reference(), chunkwise(16)] {
        let whole: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
        let output = apply(&whole, Some(resets_BT), options);
        ((&output.h_BTHV * &weights).sum(Kind::Double) + output.state.matrix.sin().sum(Kind::Double))
            .backward();
        for split in [1, 16, 23, 49] {
            let leaves: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
            let part = |start: i64, length: i64, state: &[Tensor]| {
                let mut inputs: Vec<Tensor> =
                    leaves[..5].iter().map(|x| x.narrow(1, start, length)).collect();
                inputs.extend(state.iter().map(Tensor::shallow_clone));
                apply(&inputs, Some(&resets_BT.narrow(1, start, length)), options)
            };
            let first = part(0, split, &leaves[5..]);
            let MlstmState { matrix, normalizer, maximum } = first.state;
            let second = part(split, 50 - split, &[matrix, normalizer, maximum]);
            let h_BTHV = Tensor::cat(&[&first.h_BTHV, &second.h_BTHV], 1);
            assert_close("h", &h_BTHV, &output.h_BTHV, 1e-12);
            ((h_BTHV * &weights).sum(Kind::Double) + second.state.matrix.sin().sum(Kind::Double)).backward();
            for (name, (found, expected)) in NAMES.iter().zip(leaves.iter().zip(&whole)) {
                assert_close(&format!("{name} split at {split}"), &found.grad(), &expected.grad(), 1e-9);
            }
        }
    }
}

/// Without the last state, which nobody goes on from: the same numbers to the last bit, gradients too, in one chunk and many.
#[test]
fn hidden_values_alone_are_those_beside_a_state() {
    for (time, with_state, resets) in
        [(40, false, 0.0), (1, true, 0.0), (200, true, 0.03), (300, false, 0.03)]
    {
        let case = Case::new(15, at(time), 1.0, with_state).with_resets(resets, 4);
        let run = |alone: bool| {
            let leaves: Vec<Tensor> = case.inputs.iter().map(|x| leaf(&x.to_kind(Kind::Float))).collect();
            let h_BTHV = with_input(&leaves, case.resets_BT.as_ref(), |input| match alone {
                true => mlstm_hidden(input, &MlstmOptions::default()).unwrap(),
                false => xlstm_kernels::mlstm::mlstm(input, &MlstmOptions::default()).unwrap().h_BTHV,
            });
            (&h_BTHV * random(3, &h_BTHV.size(), Kind::Float)).sum(Kind::Float).backward();
            let mut found = vec![h_BTHV.detach()];
            found.extend(leaves.iter().map(Tensor::grad));
            found
        };
        let (alone, beside) = (run(true), run(false));
        assert_eq!(alone.len(), beside.len());
        for (index, (alone, beside)) in alone.iter().zip(&beside).enumerate() {
            assert_eq!(alone, beside, "tensor {index} of {time} steps, state {with_state}, resets {resets}");
        }
    }
}

/// A reset makes what follows a sequence of its own.
#[test]
fn resets_equal_separate_sequences() {
    let case = Case::new(10, Shape { batch: 1, ..at(60) }, 1.0, false);
    let resets_BT = Tensor::zeros([1, 60], (Kind::Bool, tch::Device::Cpu));
    for time in [13, 14, 40] {
        let _ = resets_BT.narrow(1, time, 1).fill_(1);
    }
    for options in [reference(), chunkwise(16)] {
        let whole = apply(&case.inputs, Some(&resets_BT), options);
        for (start, end) in [(0, 13), (13, 14), (14, 40), (40, 60)] {
            let inputs: Vec<Tensor> = case.inputs.iter().map(|x| x.narrow(1, start, end - start)).collect();
            let alone = apply(&inputs, None, options);
            assert_close("h", &whole.h_BTHV.narrow(1, start, end - start), &alone.h_BTHV, 1e-12);
            if end == 60 {
                assert_close("state", &whole.state.matrix, &alone.state.matrix, 1e-12);
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let case = Case::new(11, Shape { batch: 2, time: 11, heads: 2, key: 3, value: 4 }, 1.0, true)
        .with_resets(0.1, 3);
    for options in [reference(), chunkwise(4)] {
        let leaves: Vec<Tensor> = case.inputs.iter().map(leaf).collect();
        let weights = random(5, &[2, 11, 2, 4], Kind::Double);
        let loss = || {
            let output = apply(&leaves, case.resets_BT.as_ref(), options);
            let state = output.state;
            (output.h_BTHV * &weights).sum(Kind::Double)
                + state.matrix.sin().sum(Kind::Double)
                + state.normalizer.cos().sum(Kind::Double)
                + state.maximum.sin().sum(Kind::Double)
        };
        let named: Vec<(&str, &Tensor)> = NAMES.iter().copied().zip(&leaves).collect();
        check_gradients(&named, &loss);
    }
}

#[test]
fn steps_equal_the_sequence() {
    let case = Case::new(12, at(21), 1.0, true);
    let whole = apply(&case.inputs, None, chunkwise(8));
    let [matrix, normalizer, maximum] = [5, 6, 7].map(|index| case.inputs[index].shallow_clone());
    let mut state = MlstmState { matrix, normalizer, maximum };
    for time in 0..21 {
        let at: Vec<Tensor> = case.inputs[..5].iter().map(|input| input.select(1, time)).collect();
        let (h_BHV, next) = mlstm_step(&at[0], &at[1], &at[2], &at[3], &at[4], &state).unwrap();
        assert_close("h", &h_BHV, &whole.h_BTHV.select(1, time), 1e-12);
        state = next;
    }
    assert_close("matrix", &state.matrix, &whole.state.matrix, 1e-12);
    assert_close("maximum", &state.maximum, &whole.state.maximum, 1e-12);
}

#[test]
fn an_empty_state_is_no_state() {
    let case = Case::new(13, at(20), 1.0, false);
    let MlstmState { matrix, normalizer, maximum } =
        MlstmState::empty(2, 2, 24, 20, Kind::Double, tch::Device::Cpu);
    let mut inputs: Vec<Tensor> = case.inputs.iter().map(Tensor::shallow_clone).collect();
    inputs.extend([matrix, normalizer, maximum]);
    for options in [reference(), chunkwise(8)] {
        let (with, without) = (apply(&inputs, None, options), apply(&case.inputs, None, options));
        assert_close("h", &with.h_BTHV, &without.h_BTHV, 1e-14);
    }
}

#[test]
fn half_precision_is_computed_in_single() {
    let case = Case::new(14, at(70), 1.0, false);
    let halves: Vec<Tensor> = case.inputs.iter().map(|input| input.to_kind(Kind::BFloat16)).collect();
    let found = apply(&halves, None, MlstmOptions::default());
    assert_eq!(found.h_BTHV.kind(), Kind::BFloat16);
    assert_eq!(found.state.matrix.kind(), Kind::Float);
    let exact: Vec<Tensor> = halves.iter().map(|input| input.to_kind(Kind::Double)).collect();
    assert_close("h", &found.h_BTHV, &apply(&exact, None, reference()).h_BTHV, 4e-3);
}

#[test]
fn transposed_views_are_accepted() {
    let case = Case::new(15, at(33), 1.0, false);
    let views: Vec<Tensor> =
        case.inputs.iter().map(|input| input.transpose(1, 2).contiguous().transpose(1, 2)).collect();
    let (found, expected) = (apply(&views, None, chunkwise(16)), apply(&case.inputs, None, chunkwise(16)));
    assert!(found.h_BTHV.equal(&expected.h_BTHV));
}

#[test]
fn the_result_does_not_depend_on_the_run() {
    let case = Case::new(16, at(150), 1.0, true);
    for kind in [Kind::Float, Kind::Double] {
        let first = case.run(chunkwise(32), kind);
        for _ in 0..10 {
            for ((name, again), (_, first)) in case.run(chunkwise(32), kind).iter().zip(&first) {
                assert!(again.equal(first), "{name} differs between runs");
            }
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let case = Case::new(17, at(5), 1.0, false);
    let call = |index: usize, replacement: Tensor| {
        let mut inputs: Vec<Tensor> = case.inputs.iter().map(Tensor::shallow_clone).collect();
        inputs[index] = replacement;
        let input = xlstm_kernels::mlstm::MlstmInput {
            q_BTHK: &inputs[0],
            k_BTHK: &inputs[1],
            v_BTHV: &inputs[2],
            i_BTH: &inputs[3],
            f_BTH: &inputs[4],
            state: None,
            resets_BT: None,
        };
        xlstm_kernels::mlstm::mlstm(&input, &MlstmOptions::default()).unwrap_err()
    };
    let error = call(1, random(0, &[2, 5, 2, 23], Kind::Double));
    assert_eq!(error.to_string(), "mlstm: k_BTHK has shape [2, 5, 2, 23], expected [2, 5, 2, 24]");
    let error = call(3, random(0, &[2, 5, 2, 1], Kind::Double));
    assert!(matches!(error, KernelError::Shape { argument: "i_BTH", .. }));
    let error = call(0, Tensor::zeros([2, 5, 2, 24], (Kind::Int64, tch::Device::Cpu)));
    assert!(matches!(error, KernelError::Kind { argument: "q_BTHK", .. }));
}
