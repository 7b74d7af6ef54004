//! LSTM as a loop of libtorch calls, one step after the other, differentiated by libtorch.
//!
//! In `Double` the yardstick for the fused version; on a GPU what computes heads that have no kernel.

use super::{LstmInput, LstmOutput, LstmState};
use crate::recurrent::Sizes;
use tch::Tensor;

pub(super) fn lstm(input: &LstmInput<'_>, initial: &LstmState, sizes: Sizes) -> LstmOutput {
    let weight_HEF = input.recurrent_HEGE.reshape([sizes.heads, sizes.width, 4 * sizes.width]);
    let x_BTGHE = input.x_BTGHE + input.bias_GHE;
    let mut state = initial.map(Tensor::shallow_clone);
    let mut outputs = Vec::with_capacity(usize::try_from(sizes.time).unwrap_or(0));
    for time in 0..sizes.time {
        if let Some(resets_BT) = input.resets_BT {
            let kept_B11 = resets_BT.select(1, time).logical_not().view([sizes.batch, 1, 1]);
            state = state.map(|tensor| tensor * kept_B11.to_kind(tensor.kind()));
        }
        // (H, B, E) times (H, E, G·E) as one batched product.
        let mixed_HBF = state.hidden.transpose(0, 1).matmul(&weight_HEF);
        let mixed_BGHE = mixed_HBF.view([sizes.heads, sizes.batch, 4, sizes.width]).permute([1, 2, 0, 3]);
        let gates_BGHE = x_BTGHE.select(1, time) + mixed_BGHE;
        let gate = |index: i64| gates_BGHE.select(1, index);
        let cell = gate(1).sigmoid() * &state.cell + gate(0).sigmoid() * gate(2).tanh();
        let hidden = gate(3).sigmoid() * cell.tanh();
        outputs.push(hidden.shallow_clone());
        state = LstmState { hidden, cell };
    }
    LstmOutput { h_BTHE: Tensor::stack(&outputs, 1), state }
}
