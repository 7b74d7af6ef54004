//! sLSTM: scalar memories with exponential gating, mixed within each head from step to step (paper eq. 8–17).
//!
//! As the official package computes it, for each unit:
//!
//! ```text
//! (i~, f~, z~, o~) = x_t + R y_{t-1} + b
//! m_t = i~                                    where n_{t-1} = 0
//!     = max(i~, m_{t-1} + log σ(f~))          elsewhere
//! i = min(exp(i~ - m_t), 1)      f = min(exp(m_{t-1} + log σ(f~) - m_t), 1)
//! c_t = f c_{t-1} + i tanh(z~)   n_t = f n_{t-1} + i   y_t = σ(o~) c_t / n_t
//! ```
//!
//! The first state is all zeros. R is block-diagonal: a head's units see only that head's y. [`canonical_recurrent`]
//! and [`canonical_bias`] turn the two layouts of published weights into the one used here:
//!
//! | layout | `_recurrent_kernel_` | `_bias_` |
//! |---|---|---|
//! | canonical | `(H, E in, G, E out)` | `(G, H, E)` |
//! | vanilla | `(H, G·E out, E in)` | flat `(G·H·E)` |
//! | cuda | `(H, E in, G·E out)` | flat `(H·G·E)` |
//!
//! The ladder: [`SlstmKernel::Reference`], a loop of libtorch calls over time, differentiated by libtorch; and
//! [`SlstmKernel::Fused`], the whole loop in one call with a backward pass by hand. On a GPU, [`SlstmKernel::Auto`] is the
//! kernel of [`crate::cuda`] for float32.

mod fused;
mod on_gpu;
mod reference;

use crate::KernelError;
use crate::recurrent::Arguments;
use crate::shape::{dimensions, expect_shape};
use tch::{Device, Kind, Tensor};

/// What sLSTM remembers of the past; each `(B, H, E)`.
#[derive(Debug)]
pub struct SlstmState {
    /// Output of the last step, y.
    pub hidden: Tensor,
    /// Cell c, divided by exp(m).
    pub cell: Tensor,
    /// Normalizer n, divided by exp(m); zero where nothing is remembered.
    pub normalizer: Tensor,
    /// Stabilizer m.
    pub maximum: Tensor,
}

impl SlstmState {
    /// A state that remembers nothing: all zeros.
    pub fn empty(batch: i64, heads: i64, width: i64, kind: Kind, device: Device) -> Self {
        let zeros = || Tensor::zeros([batch, heads, width], (kind, device));
        Self { hidden: zeros(), cell: zeros(), normalizer: zeros(), maximum: zeros() }
    }

    /// Another handle on the same memory.
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// The same values without their history: no gradient flows to the steps before.
    pub fn detach(&self) -> Self {
        self.map(Tensor::detach)
    }

    fn map(&self, function: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            hidden: function(&self.hidden),
            cell: function(&self.cell),
            normalizer: function(&self.normalizer),
            maximum: function(&self.maximum),
        }
    }

    fn fields(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("state.hidden", &self.hidden),
            ("state.cell", &self.cell),
            ("state.normalizer", &self.normalizer),
            ("state.maximum", &self.maximum),
        ]
    }
}

/// How published weights lay `_recurrent_kernel_` and `_bias_` out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlstmLayout {
    /// The official package's plain backend.
    Vanilla,
    /// The official package's CUDA backend.
    Cuda,
}

/// `_recurrent_kernel_` of either layout as `(H, E in, G, E out)`: a view where possible; gradients flow through.
///
/// # Errors
/// When the shape does not fit the layout.
pub fn canonical_recurrent(weight: &Tensor, layout: SlstmLayout) -> Result<Tensor, KernelError> {
    const NAME: &str = "canonical_recurrent";
    let [heads, first, second] = dimensions(NAME, "_recurrent_kernel_", weight)?;
    let width = first.min(second);
    match layout {
        SlstmLayout::Vanilla => {
            expect_shape(NAME, "_recurrent_kernel_", weight, &[heads, 4 * width, width])?;
            Ok(weight.view([heads, 4, width, width]).permute([0, 3, 1, 2]))
        }
        SlstmLayout::Cuda => {
            expect_shape(NAME, "_recurrent_kernel_", weight, &[heads, width, 4 * width])?;
            Ok(weight.view([heads, width, 4, width]))
        }
    }
}

/// `_bias_` of either layout as `(G, H, E)`: a view; gradients flow through.
///
/// # Errors
/// When the size is no multiple of four gates times `heads`.
pub fn canonical_bias(bias: &Tensor, heads: i64, layout: SlstmLayout) -> Result<Tensor, KernelError> {
    const NAME: &str = "canonical_bias";
    let [size] = dimensions(NAME, "_bias_", bias)?;
    let width = size / (4 * heads).max(1);
    expect_shape(NAME, "_bias_", bias, &[4 * heads * width])?;
    match layout {
        SlstmLayout::Vanilla => Ok(bias.view([4, heads, width])),
        SlstmLayout::Cuda => Ok(bias.view([heads, 4, width]).transpose(0, 1)),
    }
}

/// Which version computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlstmKernel {
    /// The fastest that knows the device.
    #[default]
    Auto,
    /// A loop of libtorch calls; any device.
    Reference,
    /// The whole loop in one call, backward by hand; CPU.
    Fused,
}

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SlstmOptions {
    /// Which version computes.
    pub kernel: SlstmKernel,
    /// Clamp the gradient that flows back through R into y_{t-1} to this magnitude. The paper says 10; the released
    /// code, and the default, do not clamp.
    pub gradient_clip: Option<f64>,
    /// Forget by exp(f~), the paper's other choice (eq. 14), instead of σ(f~): log σ(f~) above becomes f~. It is not bounded
    /// by 1, so a memory can also grow.
    pub exponential_forget: bool,
}

/// Arguments of [`slstm`].
#[derive(Debug, Clone, Copy)]
pub struct SlstmInput<'a> {
    /// Gate inputs W x, `(B, T, G, H, E)`.
    pub x_BTGHE: &'a Tensor,
    /// Recurrent weights, `(H, E in, G, E out)`; see [`canonical_recurrent`].
    pub recurrent_HEGE: &'a Tensor,
    /// Biases, `(G, H, E)`; see [`canonical_bias`].
    pub bias_GHE: &'a Tensor,
    /// State before the first step; `None` is the empty one.
    pub state: Option<&'a SlstmState>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`slstm`].
#[derive(Debug)]
pub struct SlstmOutput {
    /// Outputs y, `(B, T, H, E)`, in the type of `x_BTGHE`.
    pub y_BTHE: Tensor,
    /// State after the last step, in the computing type.
    pub state: SlstmState,
}

/// sLSTM over a whole sequence (or one step of it, for generation). Gradients flow to every floating-point argument,
/// the initial state included.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn slstm(input: &SlstmInput<'_>, options: &SlstmOptions) -> Result<SlstmOutput, KernelError> {
    const NAME: &str = "slstm";
    let SlstmInput { x_BTGHE, recurrent_HEGE, bias_GHE, state, resets_BT } = *input;
    let arguments = Arguments { function: NAME, x_BTGHE, recurrent_HEGE, bias_GHE, resets_BT };
    let (sizes, kind) = arguments.check(state.map(SlstmState::fields).into_iter().flatten())?;
    if let Some(clip) = options.gradient_clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
        let (option, expected) = ("gradient_clip", "a positive number");
        return Err(KernelError::Option { function: NAME, option, expected, found: clip.to_string() });
    }
    let output_kind = input.x_BTGHE.kind();
    let x_BTGHE = input.x_BTGHE.to_kind(kind);
    let recurrent_HEGE = input.recurrent_HEGE.to_kind(kind);
    let bias_GHE = input.bias_GHE.to_kind(kind);
    let state = match input.state {
        Some(state) => state.map(|tensor| tensor.to_kind(kind)),
        None => SlstmState::empty(sizes.batch, sizes.heads, sizes.width, kind, x_BTGHE.device()),
    };
    let converted = SlstmInput {
        x_BTGHE: &x_BTGHE,
        recurrent_HEGE: &recurrent_HEGE,
        bias_GHE: &bias_GHE,
        state: Some(&state),
        resets_BT: input.resets_BT,
    };
    let device = x_BTGHE.device();
    if options.kernel == SlstmKernel::Fused {
        arguments.expect_cpu()?;
    }
    let output = match options.kernel {
        SlstmKernel::Auto if on_gpu::fits(input, options, kind) => on_gpu::slstm(&converted, options)?,
        SlstmKernel::Auto if device != Device::Cpu => reference::slstm(&converted, &state, sizes, options)?,
        SlstmKernel::Reference => reference::slstm(&converted, &state, sizes, options)?,
        SlstmKernel::Auto | SlstmKernel::Fused => fused::slstm(&converted, &state, sizes, options)?,
    };
    Ok(SlstmOutput { y_BTHE: output.y_BTHE.to_kind(output_kind), state: output.state })
}
