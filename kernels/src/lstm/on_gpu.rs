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

/// The kernel has four states, of which an LSTM uses the first two. Gate inputs are float32 or bf16, all else float32.
pub(super) fn lstm(input: &LstmInput<'_>) -> Result<LstmOutput, KernelError> {
    let stack = |state: &LstmState| -> Result<Tensor, KernelError> {
        let unused = state.hidden.f_zeros_like()?;
        Ok(Tensor::f_stack(&[&state.hidden, &state.cell, &unused, &unused], 0)?)
    };
    let state_SBHE = input.state.map(stack).transpose()?;
    let (h_BTHE, last_SBHE) = cuda::recurrent(&RecurrentInput {
        x_BTGHE: input.x_BTGHE,
        recurrent_HEGE: input.recurrent_HEGE,
        bias_GHE: input.bias_GHE,
        state_SBHE: state_SBHE.as_ref(),
        resets_BT: input.resets_BT,
        cell: Cell::Lstm,
        exponential_forget: false,
        gradient_clip: None,
    })?;
    let state = LstmState { hidden: last_SBHE.f_select(0, 0)?, cell: last_SBHE.f_select(0, 1)? };
    Ok(LstmOutput { h_BTHE, state })
}
