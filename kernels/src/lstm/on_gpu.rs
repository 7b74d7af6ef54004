//! LSTM on a GPU by the float32 kernel that it shares with sLSTM (`crate::cuda`), gradients of states included.

use tch::{Kind, Tensor};

use super::{LstmInput, LstmOutput, LstmState};
use crate::KernelError;
use crate::cuda::{self, Cell, RecurrentInput};

/// Whether there is a kernel for this call.
pub(super) fn fits(input: &LstmInput<'_>, kind: Kind) -> bool {
    let units = input.x_BTGHE.size().last().copied().unwrap_or(0);
    kind == Kind::Float && cuda::enabled(input.x_BTGHE.device()) && cuda::recurrent_fits(units, input.x_BTGHE)
}

/// The kernel has four states, of which an LSTM uses the first two.
pub(super) fn lstm(input: &LstmInput<'_>, state: &LstmState) -> Result<LstmOutput, KernelError> {
    let unused = state.hidden.f_zeros_like()?;
    let state_SBHE = Tensor::f_stack(&[&state.hidden, &state.cell, &unused, &unused], 0)?;
    let (h_BTHE, last_SBHE) = cuda::recurrent(&RecurrentInput {
        x_BTGHE: input.x_BTGHE,
        recurrent_HEGE: input.recurrent_HEGE,
        bias_GHE: input.bias_GHE,
        state_SBHE: Some(&state_SBHE),
        resets_BT: input.resets_BT,
        cell: Cell::Lstm,
        exponential_forget: false,
        gradient_clip: None,
    })?;
    let state = LstmState { hidden: last_SBHE.f_select(0, 0)?, cell: last_SBHE.f_select(0, 1)? };
    Ok(LstmOutput { h_BTHE, state })
}
