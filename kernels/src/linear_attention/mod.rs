//! Gated linear attention: a matrix of keys by values for each head, which decays key by key (GLA, HGRN2, RetNet,
//! RWKV-5, RWKV-6).
//!
//! ```text
//! S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ
//! o_t = scale · S_tᵀ q_t                                GLA, HGRN2, RetNet: read after the update
//! o_t = scale · (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ q_t       RWKV: before it, with a bonus u for the current step
//! ```
//!
//! | method | log decay g | scale | bonus |
//! |---|---|---|---|
//! | RetNet | [`LogDecay::Head`], log(1 − 2^(−5−h)) | 1/√K | – |
//! | GLA | [`LogDecay::Token`], log σ(·) / 16 | 1/√K | – |
//! | HGRN2 | [`LogDecay::Token`], log f, with k = 1 − f | 1/√K | – |
//! | RWKV-5 | [`LogDecay::Key`], −exp(w) | 1 | u |
//! | RWKV-6 | [`LogDecay::Token`], −exp(w_t) | 1 | u |
//!
//! The ladder: [`LinearAttentionKernel::Reference`], step by step, differentiated by libtorch;
//! [`LinearAttentionKernel::Composed`], chunk by chunk with libtorch's products; and
//! [`LinearAttentionKernel::Fused`], step by step with a backward pass by hand, on the CPU (`cpu/linear_attention.h`) and, in
//! float32 and bf16 for heads of a power of two from 16 to 512, on a GPU (`cuda/linear_attention.cu`; in bf16 from 64 tokens on, where the
//! head sizes allow, in chunks: `cuda/linear_attention_chunks.cuh`). None divides by a decay, so a log decay of −500 is as good as one of
//! −0.01. B, T, H, K, V as in the crate's legend.

mod composed;
mod fused;
mod reference;

use crate::KernelError;
use crate::cuda;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::named_tensors;

/// Logarithms of what is left of the state after a step; none above 0.
#[derive(Debug, Clone, Copy)]
pub enum LogDecay<'a> {
    /// `(H)`: one number a head, the same at every step.
    Head(&'a Tensor),
    /// `(H, K)`: one a key, the same at every step.
    Key(&'a Tensor),
    /// `(B, T, H, K)`.
    Token(&'a Tensor),
}

impl<'a> LogDecay<'a> {
    fn tensor(self) -> &'a Tensor {
        match self {
            Self::Head(tensor) | Self::Key(tensor) | Self::Token(tensor) => tensor,
        }
    }

    fn with(self, tensor: &Tensor) -> LogDecay<'_> {
        match self {
            Self::Head(_) => LogDecay::Head(tensor),
            Self::Key(_) => LogDecay::Key(tensor),
            Self::Token(_) => LogDecay::Token(tensor),
        }
    }

    /// Broadcast against `(B, T, H, K)`: a view.
    fn broadcast(self) -> Tensor {
        match self {
            Self::Head(tensor) => tensor.view([1, 1, -1, 1]),
            Self::Key(tensor) => tensor.unsqueeze(0).unsqueeze(0),
            Self::Token(tensor) => tensor.shallow_clone(),
        }
    }
}

/// Which version computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearAttentionKernel {
    /// The fastest that knows the device.
    #[default]
    Auto,
    /// A loop of libtorch calls; any device.
    Reference,
    /// Chunks, with libtorch's products; any device.
    Composed,
    /// The whole loop in one call, backward by hand; the CPU, and a GPU for heads of a power of two from 16 to 512. Computed in fp32;
    /// on a GPU queries, keys and values that are all bf16 are read as they are and, from 64 tokens on and with heads of 64 keys and values
    /// or, without a bonus, 128 keys and 128 or 256 values, computed in chunks whose products are in bf16, with fp32 sums and states.
    Fused,
}

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearAttentionOptions {
    /// Which version computes.
    pub kernel: LinearAttentionKernel,
    /// Steps in a chunk of the composed version, rounded up to a power of two; `None` leaves the choice to it.
    pub chunk: Option<usize>,
}

/// Arguments of [`linear_attention`].
#[derive(Debug, Clone, Copy)]
pub struct LinearAttentionInput<'a> {
    /// Queries, `(B, T, H, K)`.
    pub q_BTHK: &'a Tensor,
    /// Keys, `(B, T, H, K)`.
    pub k_BTHK: &'a Tensor,
    /// Values, `(B, T, H, V)`.
    pub v_BTHV: &'a Tensor,
    /// Log decays.
    pub log_decay: LogDecay<'a>,
    /// u, `(H, K)`: the state is read before the update, and the current step by this.
    pub bonus_HK: Option<&'a Tensor>,
    /// Factor of the result.
    pub scale: f64,
    /// State before the first step, `(B, H, K, V)`; `None` is zeros.
    pub state_BHKV: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`linear_attention`].
#[derive(Debug)]
pub struct LinearAttentionOutput {
    /// `(B, T, H, V)`, in the type of `v_BTHV`.
    pub o_BTHV: Tensor,
    /// State after the last step, `(B, H, K, V)`, in the computing type.
    pub state_BHKV: Tensor,
}

named_tensors! {
    /// What both fused versions differentiate by.
    pub(crate) struct Inputs<T> {
        pub(crate) q_BTHK: T,
        pub(crate) k_BTHK: T,
        pub(crate) v_BTHV: T,
        pub(crate) log_decay: T,
        pub(crate) bonus_HK: T,
        pub(crate) state_BHKV: T,
    }

    /// What they give.
    pub(crate) struct Outputs<T> { pub(crate) o_BTHV: T, pub(crate) state_BHKV: T }
}

impl<'a> Inputs<Option<&'a Tensor>> {
    /// Of a call, with the log decays as its version takes them.
    pub(crate) fn of(input: &LinearAttentionInput<'a>, log_decay: &'a Tensor) -> Self {
        Self {
            q_BTHK: Some(input.q_BTHK),
            k_BTHK: Some(input.k_BTHK),
            v_BTHV: Some(input.v_BTHV),
            log_decay: Some(log_decay),
            bonus_HK: input.bonus_HK,
            state_BHKV: input.state_BHKV,
        }
    }
}

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: i64,
    time: i64,
    heads: i64,
    key: i64,
    value: i64,
}

/// Gated linear attention over a whole sequence, or one step of it. Gradients flow to every floating-point argument, the
/// state included.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn linear_attention(
    input: &LinearAttentionInput<'_>,
    options: &LinearAttentionOptions,
) -> Result<LinearAttentionOutput, KernelError> {
    let (sizes, kind) = check(input)?;
    let output_kind = input.v_BTHV.kind();
    let device = input.q_BTHK.device();
    let product_kind = match (device, output_kind) {
        (Device::Cuda(_), Kind::BFloat16 | Kind::Half) => output_kind,
        _ => kind,
    };
    let convert = |tensor: &Tensor| tensor.to_kind(kind);
    let decay = convert(input.log_decay.tensor());
    let (bonus_HK, state_BHKV) = (input.bonus_HK.map(convert), input.state_BHKV.map(convert));
    let prepared = LinearAttentionInput {
        log_decay: input.log_decay.with(&decay),
        bonus_HK: bonus_HK.as_ref(),
        state_BHKV: state_BHKV.as_ref(),
        ..*input
    };
    let with_kernels = matches!(options.kernel, LinearAttentionKernel::Auto | LinearAttentionKernel::Fused);
    if with_kernels && kind == Kind::Float && cuda::linear_attention_fits(&prepared) {
        return cuda::linear_attention(&prepared);
    }
    let (q_BTHK, k_BTHK, v_BTHV) = (convert(input.q_BTHK), convert(input.k_BTHK), convert(input.v_BTHV));
    let converted = LinearAttentionInput { q_BTHK: &q_BTHK, k_BTHK: &k_BTHK, v_BTHV: &v_BTHV, ..prepared };
    let output = match options.kernel {
        LinearAttentionKernel::Auto | LinearAttentionKernel::Fused
            if cuda::linear_attention_fits(&converted) =>
        {
            cuda::linear_attention(&converted)?
        }
        LinearAttentionKernel::Fused if device != Device::Cpu => {
            let expected = "the CPU, or heads of a power of two from 16 to 512, all of float32 or all of bfloat16, on a GPU".to_owned();
            let (function, argument) = ("linear_attention", "q_BTHK");
            return Err(KernelError::Device { function, argument, expected, found: device });
        }
        LinearAttentionKernel::Reference => reference::linear_attention(&converted, sizes),
        LinearAttentionKernel::Composed => {
            composed::linear_attention(&converted, sizes, product_kind, options.chunk)?
        }
        LinearAttentionKernel::Auto if device != Device::Cpu => {
            composed::linear_attention(&converted, sizes, product_kind, options.chunk)?
        }
        LinearAttentionKernel::Auto | LinearAttentionKernel::Fused => {
            fused::linear_attention(&converted, sizes)?
        }
    };
    Ok(LinearAttentionOutput { o_BTHV: output.o_BTHV.to_kind(output_kind), ..output })
}

fn check(input: &LinearAttentionInput<'_>) -> Result<(Sizes, Kind), KernelError> {
    const NAME: &str = "linear_attention";
    let [batch, time, heads, key] = dimensions(NAME, "q_BTHK", input.q_BTHK)?;
    let [_, _, _, value] = dimensions(NAME, "v_BTHV", input.v_BTHV)?;
    expect_shape(NAME, "k_BTHK", input.k_BTHK, &[batch, time, heads, key])?;
    expect_shape(NAME, "v_BTHV", input.v_BTHV, &[batch, time, heads, value])?;
    match input.log_decay {
        LogDecay::Head(tensor) => expect_shape(NAME, "log_decay", tensor, &[heads])?,
        LogDecay::Key(tensor) => expect_shape(NAME, "log_decay", tensor, &[heads, key])?,
        LogDecay::Token(tensor) => expect_shape(NAME, "log_decay", tensor, &[batch, time, heads, key])?,
    }
    if let Some(bonus_HK) = input.bonus_HK {
        expect_shape(NAME, "bonus_HK", bonus_HK, &[heads, key])?;
    }
    if let Some(state_BHKV) = input.state_BHKV {
        expect_shape(NAME, "state_BHKV", state_BHKV, &[batch, heads, key, value])?;
    }
    expect_resets(NAME, input.resets_BT, input.q_BTHK, [batch, time])?;
    if batch * time * heads * key * value == 0 {
        let (found, expected) = (input.q_BTHK.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "q_BTHK", expected, found });
    }
    let mut kind = computing_kind(NAME, "q_BTHK", input.q_BTHK)?;
    let others =
        [("k_BTHK", input.k_BTHK), ("v_BTHV", input.v_BTHV), ("log_decay", input.log_decay.tensor())];
    let optional = [("bonus_HK", input.bonus_HK), ("state_BHKV", input.state_BHKV)];
    let optional = optional.into_iter().filter_map(|(name, tensor)| tensor.map(|tensor| (name, tensor)));
    for (argument, tensor) in others.into_iter().chain(optional) {
        expect_device(NAME, argument, tensor, input.q_BTHK)?;
        if computing_kind(NAME, argument, tensor)? == Kind::Double {
            kind = Kind::Double;
        }
    }
    Ok((Sizes { batch, time, heads, key, value }, kind))
}
