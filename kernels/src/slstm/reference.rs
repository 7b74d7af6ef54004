//! sLSTM as a loop of libtorch calls, one step after the other, differentiated by libtorch.
//!
//! Plain and slow (a dozen small operations for each step); in `Double` the yardstick for the fused version.

use super::{SlstmInput, SlstmOptions, SlstmOutput, SlstmState};
use crate::KernelError;
use crate::recurrent::Sizes;
use tch::Tensor;
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::{Named, Output};

pub(super) fn slstm(
    input: &SlstmInput<'_>,
    initial: &SlstmState,
    sizes: Sizes,
    options: &SlstmOptions,
) -> Result<SlstmOutput, KernelError> {
    let weight_HEF = input.recurrent_HEGE.reshape([sizes.heads, sizes.width, 4 * sizes.width]);
    let mut state = initial.shallow_clone();
    let mut outputs = Vec::with_capacity(usize::try_from(sizes.time).unwrap_or(0));
    for time in 0..sizes.time {
        if let Some(resets_BT) = input.resets_BT {
            let kept_B11 = resets_BT.select(1, time).logical_not().view([sizes.batch, 1, 1]);
            state = state.map(|tensor| tensor * kept_B11.to_kind(tensor.kind()));
        }
        let hidden_BHE = clipped(&state.hidden, options.gradient_clip)?;
        // (H, B, E) times (H, E, G·E) as one batched product.
        let mixed_HBF = hidden_BHE.transpose(0, 1).matmul(&weight_HEF);
        let mixed_BGHE = mixed_HBF.view([sizes.heads, sizes.batch, 4, sizes.width]).permute([1, 2, 0, 3]);
        let gates_BGHE = input.x_BTGHE.select(1, time) + mixed_BGHE + input.bias_GHE;
        state = step(&gates_BGHE, &state, options.exponential_forget);
        outputs.push(state.hidden.shallow_clone());
    }
    Ok(SlstmOutput { y_BTHE: Tensor::stack(&outputs, 1), state })
}

/// One step from the sum of all that enters the gates.
fn step(gates_BGHE: &Tensor, state: &SlstmState, exponential_forget: bool) -> SlstmState {
    let gate = |index: i64| gates_BGHE.select(1, index);
    let i_BHE = gate(0);
    let forget_BHE = if exponential_forget { gate(1) } else { gate(1).log_sigmoid() };
    let kept_BHE = forget_BHE + &state.maximum;
    let first_BHE = state.normalizer.eq(0.0);
    let maximum = i_BHE.where_self(&first_BHE, &i_BHE.maximum(&kept_BHE));
    let input_BHE = (&i_BHE - &maximum).exp().clamp_max(1.0);
    let forget_BHE = (kept_BHE - &maximum).exp().clamp_max(1.0);
    let cell = &forget_BHE * &state.cell + &input_BHE * gate(2).tanh();
    let normalizer = forget_BHE * &state.normalizer + input_BHE;
    let hidden = gate(3).sigmoid() * &cell / &normalizer;
    SlstmState { hidden, cell, normalizer, maximum }
}

/// The identity, whose gradient is clamped.
fn clipped(hidden_BHE: &Tensor, gradient_clip: Option<f64>) -> Result<Tensor, KernelError> {
    let Some(clip) = gradient_clip else { return Ok(hidden_BHE.shallow_clone()) };
    let output = node(
        "clip_gradient",
        Output { y: Some(hidden_BHE) },
        |_| Ok((Output { y: hidden_BHE.copy() }, ())),
        move |(), upstream, _| {
            Ok(upstream.map(|gradient| gradient.map(|gradient| gradient.clamp(-clip, clip))))
        },
    )?;
    Ok(output.y)
}
