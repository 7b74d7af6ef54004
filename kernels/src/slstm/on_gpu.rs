//! The sLSTM on a GPU by the float32 kernels of [`crate::cuda`].
//!
//! They compute everything that the module beside this one promises, gradients of states included, for most sizes of
//! heads up to 640 units; the bf16 kernels, whose states get no gradients, are for whoever asks for them by name.

use tch::{Kind, Tensor};

use super::{SlstmInput, SlstmOptions, SlstmOutput, SlstmState};
use crate::KernelError;
use crate::cuda::{self, Cell, RecurrentInput};

/// Whether there is a kernel for this call.
pub(super) fn fits(input: &SlstmInput<'_>, _options: &SlstmOptions, kind: Kind) -> bool {
    let units = input.x_BTGHE.size().last().copied().unwrap_or(0);
    kind == Kind::Float && cuda::enabled(input.x_BTGHE.device()) && cuda::recurrent_fits(units, input.x_BTGHE)
}

pub(super) fn slstm(input: &SlstmInput<'_>, options: &SlstmOptions) -> Result<SlstmOutput, KernelError> {
    let state_SBHE = match input.state {
        Some(SlstmState { hidden, cell, normalizer, maximum }) => {
            Some(Tensor::f_stack(&[hidden, cell, normalizer, maximum], 0)?)
        }
        None => None,
    };
    let (y_BTHE, last_SBHE) = cuda::recurrent(&RecurrentInput {
        x_BTGHE: input.x_BTGHE,
        recurrent_HEGE: input.recurrent_HEGE,
        bias_GHE: input.bias_GHE,
        state_SBHE: state_SBHE.as_ref(),
        resets_BT: input.resets_BT,
        cell: Cell::Slstm,
        exponential_forget: options.exponential_forget,
        gradient_clip: options.gradient_clip,
    })?;
    let part = |index: i64| last_SBHE.f_select(0, index);
    let state = SlstmState { hidden: part(0)?, cell: part(1)?, normalizer: part(2)?, maximum: part(3)? };
    Ok(SlstmOutput { y_BTHE, state })
}
