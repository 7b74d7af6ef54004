//! sLSTM with the whole loop over time in one call, on the CPU (`cpu/slstm.h`), with a backward pass by hand.
//!
//! Why it is faster than the loop of libtorch calls: a step of that loop is a dozen operations of a few microseconds
//! each on a few hundred numbers; here it is one pass over them. R is block-diagonal, so each head runs through time
//! on a core of its own, with its block of R in that core's cache and no barrier between steps.
//!
//! Backward (paper eq. 41–51), with d· for gradients and everything divided by exp(m) as in the forward pass:
//!
//! ```text
//! dc += dy·o / n        dn −= dy·o·c / n²
//! do~ = dy·(c/n)·o(1−o)        dz~ = dc·i·(1−z²)        di~ = (dc·z + dn)·i
//! d log σ(f~) = (dc·c_{t−1} + dn·n_{t−1})·f        dc_{t−1} = dc·f        dn_{t−1} = dn·f
//! dy_{t−1} = R (di~, df~, dz~, do~), clamped if so asked for        dR = Σ_t y_{t−1} (di~, df~, dz~, do~)ᵀ
//! ```
//!
//! dR is one matrix product over all steps at the end. The stabiliser m has a gradient only where the final state
//! has one; it runs back to whichever of i~ and log σ(f~) + m_{t−1} it was taken from.

use super::{Sizes, SlstmInput, SlstmOutput, SlstmState};
use crate::KernelError;
use crate::cpu::{self, SlstmGradients, SlstmKept, SlstmProblem, address, empty, optional_address};
use std::ffi::c_void;
use tch::{Kind, Tensor};
use xlstm_bridge::autograd::{Backward, Forward, custom_function};
use xlstm_bridge::{BoxError, BridgeError};

/// y, the final state and the kept lines: how many tensors the forward pass makes.
const MADE: usize = 12;
/// x, R, b and the initial state.
const INPUTS: usize = 7;

pub(super) fn slstm(
    input: &SlstmInput<'_>,
    initial: &SlstmState,
    sizes: Sizes,
    gradient_clip: Option<f64>,
) -> Result<SlstmOutput, KernelError> {
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let inputs = [
        input.x_BTGHE,
        input.recurrent_HEGE,
        input.bias_GHE,
        &initial.hidden,
        &initial.cell,
        &initial.normalizer,
        &initial.maximum,
    ];
    let clip = gradient_clip.unwrap_or(0.0);
    let mut outputs = custom_function(
        "slstm_fused",
        &inputs.map(Some),
        |_| Ok(forward(&inputs, resets_BT, sizes)),
        move |context| backward(context, sizes, clip),
    )?
    .into_iter();
    let mut next = || {
        outputs.next().ok_or_else(|| BridgeError::Contract {
            name: "slstm_fused",
            expected: "5 outputs".into(),
            found: "fewer".into(),
        })
    };
    let y_BTHE = next()?;
    let state = SlstmState { hidden: next()?, cell: next()?, normalizer: next()?, maximum: next()? };
    Ok(SlstmOutput { y_BTHE, state })
}

fn forward(inputs: &[&Tensor; INPUTS], resets_BT: Option<Tensor>, sizes: Sizes) -> Forward {
    let Sizes { batch, time, heads, width, .. } = sizes;
    let kind = inputs[0].kind();
    let dense = inputs.map(Tensor::contiguous);
    let sequence = [batch, time, heads, width];
    let state = [batch, heads, width];
    let mut made = vec![empty(&sequence, kind)];
    made.extend((0..4).map(|_| empty(&state, kind)));
    made.extend((0..7).map(|_| empty(&sequence, kind)));
    let table = cpu::table();
    // SAFETY: every address is that of a dense tensor of the size that cpu/abi.h states, alive during the call.
    unsafe {
        if kind == Kind::Double {
            (table.slstm_forward_f64)(&problem(&dense, resets_BT.as_ref(), &made, sizes, 0.0));
        } else {
            (table.slstm_forward_f32)(&problem(&dense, resets_BT.as_ref(), &made, sizes, 0.0));
        }
    }
    let outputs = made[..5].iter().map(Tensor::shallow_clone).collect();
    let mut saved = made;
    // The inputs themselves are saved, where they are dense, so that a change in place is noticed.
    saved.extend(
        inputs.iter().zip(dense).map(
            |(input, dense)| {
                if input.is_contiguous() { input.shallow_clone() } else { dense }
            },
        ),
    );
    saved.extend(resets_BT);
    Forward { outputs, saved }
}

fn problem<T>(
    inputs: &[Tensor],
    resets_BT: Option<&Tensor>,
    made: &[Tensor],
    sizes: Sizes,
    clip: T,
) -> SlstmProblem<T> {
    let input = |index: usize| address::<T>(&inputs[index]).cast_const();
    SlstmProblem {
        batch: sizes.batch,
        time: sizes.time,
        heads: sizes.heads,
        width: sizes.width,
        exponential_forget: i64::from(sizes.exponential_forget),
        clip,
        x: input(0),
        recurrent: input(1),
        bias: input(2),
        resets: optional_address::<c_void>(resets_BT).cast(),
        initial: [3, 4, 5, 6].map(input),
        y: address(&made[0]),
        kept: SlstmKept {
            input: address(&made[5]),
            forget: address(&made[6]),
            z: address(&made[7]),
            o: address(&made[8]),
            cell: address(&made[9]),
            normalizer: address(&made[10]),
            maximum: address(&made[11]),
        },
        last: [1, 2, 3, 4].map(|index| address(&made[index])),
    }
}

fn backward(context: &Backward, sizes: Sizes, clip: f64) -> Result<Vec<Option<Tensor>>, BoxError> {
    let saved = &context.saved;
    if saved.len() < MADE + INPUTS || context.gradients.len() != 5 {
        return Err(format!("{} saved tensors, expected at least {}", saved.len(), MADE + INPUTS).into());
    }
    let (made, inputs) = saved.split_at(MADE);
    let resets_BT = inputs.get(INPUTS);
    let given: Vec<Option<Tensor>> =
        context.gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::contiguous)).collect();
    let results: Vec<Tensor> =
        inputs[..INPUTS].iter().map(|input| empty(&input.size(), input.kind())).collect();
    let table = cpu::table();
    // SAFETY: every address is that of a dense tensor of the size that cpu/abi.h states, alive during the call.
    unsafe {
        if made[0].kind() == Kind::Double {
            let problem = problem(inputs, resets_BT, made, sizes, clip);
            (table.slstm_backward_f64)(&problem, &gradients(&given, &results));
        } else {
            let problem = problem(inputs, resets_BT, made, sizes, clip as f32);
            (table.slstm_backward_f32)(&problem, &gradients(&given, &results));
        }
    }
    Ok(results.into_iter().map(Some).collect())
}

fn gradients<T>(given: &[Option<Tensor>], results: &[Tensor]) -> SlstmGradients<T> {
    let given = |index: usize| optional_address::<T>(given[index].as_ref()).cast_const();
    SlstmGradients {
        y: given(0),
        last: [1, 2, 3, 4].map(given),
        x: address(&results[0]),
        recurrent: address(&results[1]),
        bias: address(&results[2]),
        initial: [3, 4, 5, 6].map(|index| address(&results[index])),
    }
}
