//! LSTM: sigmoid gates and a cell, mixed within each head from step to step; what sLSTM is compared with.
//!
//! For each unit, as PyTorch has it (whose g is called z here, as in [`crate::slstm`]):
//!
//! ```text
//! (i~, f~, z~, o~) = x_t + R h_{t-1} + b
//! c_t = σ(f~) c_{t-1} + σ(i~) tanh(z~)        h_t = σ(o~) tanh(c_t)
//! ```
//!
//! The first state is all zeros. R is block-diagonal, and dense with a single head. Layouts are those of
//! [`crate::slstm`], whose [`canonical_recurrent`](crate::slstm::canonical_recurrent) turns PyTorch's `weight_hh` into R.
//!
//! The ladder: [`LstmKernel::Reference`], a loop of libtorch calls over time, differentiated by libtorch; and
//! [`LstmKernel::Fused`], the whole loop in one call with a backward pass by hand. On a GPU, [`LstmKernel::Auto`] is the
//! kernel of [`crate::cuda`] for float32, and the loop where there is none for a head's size. [`lstm_layer`] is libtorch's own
//! LSTM, which computes layers with one wide head on a GPU.

mod fused;
mod layer;
mod on_gpu;
mod reference;

pub use layer::{KERNEL_UNITS, LstmLayer, layer_fits, lstm_layer};

use crate::KernelError;
use crate::recurrent::Arguments;
use tch::{Device, Kind, Tensor};

/// What LSTM remembers of the past; each `(B, H, E)`.
#[derive(Debug)]
pub struct LstmState {
    /// Output of the last step, h.
    pub hidden: Tensor,
    /// Cell c.
    pub cell: Tensor,
}

impl LstmState {
    fn map(&self, function: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { hidden: function(&self.hidden), cell: function(&self.cell) }
    }
}

/// Which version computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LstmKernel {
    /// The fastest that knows the device.
    #[default]
    Auto,
    /// A loop of libtorch calls; any device.
    Reference,
    /// The whole loop in one call, backward by hand; CPU.
    Fused,
}

/// Arguments of [`lstm`].
#[derive(Debug, Clone, Copy)]
pub struct LstmInput<'a> {
    /// Gate inputs W x, `(B, T, G, H, E)`, gates in the order input, forget, z (cell input), output.
    pub x_BTGHE: &'a Tensor,
    /// Recurrent weights, `(H, E in, G, E out)`.
    pub recurrent_HEGE: &'a Tensor,
    /// Biases, `(G, H, E)`.
    pub bias_GHE: &'a Tensor,
    /// State before the first step; `None` is zeros.
    pub state: Option<&'a LstmState>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`lstm`].
#[derive(Debug)]
pub struct LstmOutput {
    /// Outputs h, `(B, T, H, E)`, in the type of `x_BTGHE`.
    pub h_BTHE: Tensor,
    /// State after the last step, in the computing type.
    pub state: LstmState,
}

/// LSTM over a whole sequence (or one step of it, for generation). Gradients flow to every floating-point argument, the
/// initial state included.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn lstm(input: &LstmInput<'_>, kernel: LstmKernel) -> Result<LstmOutput, KernelError> {
    let LstmInput { x_BTGHE, recurrent_HEGE, bias_GHE, state, resets_BT } = *input;
    let arguments = Arguments { function: "lstm", x_BTGHE, recurrent_HEGE, bias_GHE, resets_BT };
    let state = state.map(|state| [("state.hidden", &state.hidden), ("state.cell", &state.cell)]);
    let (sizes, kind) = arguments.check(state.into_iter().flatten())?;
    let (output_kind, device) = (input.x_BTGHE.kind(), input.x_BTGHE.device());
    let x_BTGHE = input.x_BTGHE.to_kind(kind);
    let recurrent_HEGE = input.recurrent_HEGE.to_kind(kind);
    let bias_GHE = input.bias_GHE.to_kind(kind);
    let state = match input.state {
        Some(state) => state.map(|tensor| tensor.to_kind(kind)),
        None => {
            let zeros = || Tensor::zeros([sizes.batch, sizes.heads, sizes.width], (kind, device));
            LstmState { hidden: zeros(), cell: zeros() }
        }
    };
    let converted = LstmInput {
        x_BTGHE: &x_BTGHE,
        recurrent_HEGE: &recurrent_HEGE,
        bias_GHE: &bias_GHE,
        state: Some(&state),
        resets_BT: input.resets_BT,
    };
    if kernel == LstmKernel::Fused {
        arguments.expect_cpu()?;
    }
    let output = match kernel {
        LstmKernel::Auto if on_gpu::fits(&converted, kind) => {
            // The kernel reads bf16 itself, and knows what stands before the first step without being told.
            let x_BTGHE = if output_kind == Kind::BFloat16 { input.x_BTGHE } else { &x_BTGHE };
            let state = input.state.map(|_| &state);
            on_gpu::lstm(&LstmInput { x_BTGHE, state, ..converted })?
        }
        LstmKernel::Auto if device != Device::Cpu => reference::lstm(&converted, &state, sizes),
        LstmKernel::Reference => reference::lstm(&converted, &state, sizes),
        LstmKernel::Auto | LstmKernel::Fused => fused::lstm(&converted, &state, sizes)?,
    };
    Ok(LstmOutput { h_BTHE: output.h_BTHE.to_kind(output_kind), state: output.state })
}
