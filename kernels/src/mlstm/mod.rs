//! mLSTM: a matrix memory for each head, written and read by keys and queries (paper eq. 19–27).
//!
//! ```text
//! m_t = max(log σ(f~_t) + m_{t-1}, i~_t)                      the stabilizer
//! C_t = exp(log σ(f~_t) + m_{t-1} - m_t) C_{t-1} + exp(i~_t - m_t) k_t v_tᵀ / √K
//! n_t = exp(log σ(f~_t) + m_{t-1} - m_t) n_{t-1} + exp(i~_t - m_t) k_t / √K
//! h_t = C_tᵀ q_t / (max(|n_t·q_t|, exp(-m_t)) + 1e-6)
//! ```
//!
//! The conventions are those of the official package: keys carry the factor 1/√K, C is `k vᵀ` (keys by values), the
//! forget gate is a sigmoid, gates arrive as pre-activations. An *empty* state is C = 0, n = 0, m = −∞; that of the
//! official step mode (all zeros) differs from it only through the 1e-6.
//!
//! The ladder:
//! 1. [`MlstmKernel::Reference`]: all pairs of steps at once, quadratic in time, differentiated by libtorch; any
//!    device, any type. It is what the others are measured against.
//! 2. [`mlstm_step`]: one step, for generation; constant memory.
//! 3. [`MlstmKernel::Composed`]: the reference chunk by chunk, the state carried; linear in time, on any device.
//! 4. [`MlstmKernel::Chunkwise`]: pairs inside chunks, states between them; linear in time; backward by hand.
//! 5. The same on a GPU in float32 or TF32, between products of libtorch (`cuda/precise.rs`): what
//!    [`MlstmKernel::Auto`] is there.
//! 6. [`crate::cuda::mlstm`]: the same on a GPU in bf16, all of it by this project's kernels.

mod chunkwise;
mod reference;
mod step;

use crate::KernelError;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use tch::{Device, Kind, Tensor};

pub use step::mlstm_step;

/// Added to the denominator, as in the official package.
pub const EPSILON: f64 = 1e-6;

/// What mLSTM remembers of the past.
#[derive(Debug)]
pub struct MlstmState {
    /// The matrix memory C, `(B, H, K, V)`, divided by exp(m).
    pub matrix: Tensor,
    /// The normalizer n, `(B, H, K)`, divided by exp(m).
    pub normalizer: Tensor,
    /// The stabilizer m, `(B, H)`: logarithm of the scale of the other two; −∞ when nothing is remembered.
    pub maximum: Tensor,
}

impl MlstmState {
    /// A state that remembers nothing.
    pub fn empty(
        batch: i64,
        heads: i64,
        key_width: i64,
        value_width: i64,
        kind: Kind,
        device: Device,
    ) -> Self {
        let options = (kind, device);
        Self {
            matrix: Tensor::zeros([batch, heads, key_width, value_width], options),
            normalizer: Tensor::zeros([batch, heads, key_width], options),
            maximum: Tensor::full([batch, heads], f64::NEG_INFINITY, options),
        }
    }

    /// Another handle on the same memory.
    pub fn shallow_clone(&self) -> Self {
        Self {
            matrix: self.matrix.shallow_clone(),
            normalizer: self.normalizer.shallow_clone(),
            maximum: self.maximum.shallow_clone(),
        }
    }

    /// The same values without their history: no gradient flows to the steps before.
    pub fn detach(&self) -> Self {
        Self {
            matrix: self.matrix.detach(),
            normalizer: self.normalizer.detach(),
            maximum: self.maximum.detach(),
        }
    }

    fn to_kind(&self, kind: Kind) -> Self {
        Self {
            matrix: self.matrix.to_kind(kind),
            normalizer: self.normalizer.to_kind(kind),
            maximum: self.maximum.to_kind(kind),
        }
    }
}

/// Which version computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MlstmKernel {
    /// The fastest that knows the device.
    #[default]
    Auto,
    /// Quadratic in time, differentiated by libtorch; any device.
    Reference,
    /// The reference on chunks of the sequence, one after the other, differentiated by libtorch; any device.
    Composed,
    /// Linear in time, backward by hand; CPU.
    Chunkwise,
}

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MlstmOptions {
    /// Which version computes.
    pub kernel: MlstmKernel,
    /// Steps in a chunk of the chunkwise version; `None` leaves the choice to it.
    pub chunk: Option<usize>,
}

/// Arguments of [`mlstm`].
#[derive(Debug, Clone, Copy)]
pub struct MlstmInput<'a> {
    /// Queries, `(B, T, H, K)`.
    pub q_BTHK: &'a Tensor,
    /// Keys, `(B, T, H, K)`, not yet scaled.
    pub k_BTHK: &'a Tensor,
    /// Values, `(B, T, H, V)`.
    pub v_BTHV: &'a Tensor,
    /// Input gate pre-activations, `(B, T, H)`.
    pub i_BTH: &'a Tensor,
    /// Forget gate pre-activations, `(B, T, H)`.
    pub f_BTH: &'a Tensor,
    /// State before the first step; `None` is the empty one.
    pub state: Option<&'a MlstmState>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`mlstm`].
#[derive(Debug)]
pub struct MlstmOutput {
    /// Hidden values h, `(B, T, H, V)`, in the type of `v_BTHV`.
    pub h_BTHV: Tensor,
    /// State after the last step, in the computing type.
    pub state: MlstmState,
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

/// mLSTM over a whole sequence. Gradients flow to every floating-point argument, the initial state included.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn mlstm(input: &MlstmInput<'_>, options: &MlstmOptions) -> Result<MlstmOutput, KernelError> {
    let (sizes, kind) = check(input)?;
    let output_kind = input.v_BTHV.kind();
    let converted = Converted::new(input, kind);
    let input = converted.borrow(input.resets_BT);
    let device = input.q_BTHK.device();
    let output = match options.kernel {
        MlstmKernel::Chunkwise if device != Device::Cpu => {
            let expected = "the CPU (the chunkwise kernel knows no other)".to_owned();
            return Err(KernelError::Device {
                function: "mlstm",
                argument: "q_BTHK",
                expected,
                found: device,
            });
        }
        MlstmKernel::Auto if kind == Kind::Float && crate::cuda::enabled(device) => {
            crate::cuda::mlstm_precise(&input)?
        }
        MlstmKernel::Auto if device != Device::Cpu => composed(&input, sizes, options.chunk),
        MlstmKernel::Composed => composed(&input, sizes, options.chunk),
        MlstmKernel::Reference => reference::mlstm(&input, sizes),
        MlstmKernel::Auto | MlstmKernel::Chunkwise => chunkwise::mlstm(&input, sizes, options.chunk, true)?,
    };
    Ok(MlstmOutput { h_BTHV: output.h_BTHV.to_kind(output_kind), state: output.state })
}

/// As [`mlstm`], for a caller that does not go on from the last state: h alone, `(B, T, H, V)`, in the type of `v_BTHV`. It
/// is not formed then, where the version that computes can leave it out: the chunkwise one on a CPU, and on a GPU in
/// float32 sequences of at most 64 steps without a state before them, which have a kernel of their own.
///
/// # Errors
/// As [`mlstm`].
pub fn mlstm_hidden(input: &MlstmInput<'_>, options: &MlstmOptions) -> Result<Tensor, KernelError> {
    let (sizes, kind) = check(input)?;
    let device = input.q_BTHK.device();
    let converted = Converted::new(input, kind);
    let own = converted.borrow(input.resets_BT);
    let chosen = match options.kernel {
        MlstmKernel::Auto if device == Device::Cpu => {
            chunkwise::mlstm(&own, sizes, options.chunk, false)?.h_BTHV
        }
        MlstmKernel::Auto if crate::cuda::enabled(device) && crate::cuda::mlstm_short_fits(&own)? => {
            crate::cuda::mlstm_short(&own)?
        }
        _ => return Ok(mlstm(input, options)?.h_BTHV),
    };
    Ok(chosen.to_kind(input.v_BTHV.kind()))
}

/// Steps in a chunk of the composed version.
const COMPOSED_CHUNK: i64 = 256;

/// The reference on one chunk after the other.
fn composed(input: &MlstmInput<'_>, sizes: Sizes, chunk: Option<usize>) -> MlstmOutput {
    let chunk = chunk.and_then(|chunk| i64::try_from(chunk).ok()).unwrap_or(COMPOSED_CHUNK).max(1);
    let mut state: Option<MlstmState> = input.state.map(MlstmState::shallow_clone);
    let mut outputs = Vec::new();
    let mut start = 0;
    while start < sizes.time {
        let time = chunk.min(sizes.time - start);
        let part = |tensor: &Tensor| tensor.narrow(1, start, time);
        let resets_BT = input.resets_BT.map(part);
        let output = reference::mlstm(
            &MlstmInput {
                q_BTHK: &part(input.q_BTHK),
                k_BTHK: &part(input.k_BTHK),
                v_BTHV: &part(input.v_BTHV),
                i_BTH: &part(input.i_BTH),
                f_BTH: &part(input.f_BTH),
                state: state.as_ref(),
                resets_BT: resets_BT.as_ref(),
            },
            Sizes { time, ..sizes },
        );
        outputs.push(output.h_BTHV);
        state = Some(output.state);
        start += time;
    }
    let state = state.unwrap_or_else(|| {
        let Sizes { batch, heads, key, value, .. } = sizes;
        MlstmState::empty(batch, heads, key, value, input.q_BTHK.kind(), input.q_BTHK.device())
    });
    MlstmOutput { h_BTHV: Tensor::cat(&outputs, 1), state }
}

/// The arguments in the computing type.
struct Converted {
    tensors: [Tensor; 5],
    state: Option<MlstmState>,
}

impl Converted {
    fn new(input: &MlstmInput<'_>, kind: Kind) -> Self {
        let tensors = [input.q_BTHK, input.k_BTHK, input.v_BTHV, input.i_BTH, input.f_BTH];
        Self {
            tensors: tensors.map(|tensor| tensor.to_kind(kind)),
            state: input.state.map(|state| state.to_kind(kind)),
        }
    }

    fn borrow<'a>(&'a self, resets_BT: Option<&'a Tensor>) -> MlstmInput<'a> {
        let [q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH] = &self.tensors;
        MlstmInput { q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, state: self.state.as_ref(), resets_BT }
    }
}

fn check(input: &MlstmInput<'_>) -> Result<(Sizes, Kind), KernelError> {
    const NAME: &str = "mlstm";
    let [batch, time, heads, key] = dimensions(NAME, "q_BTHK", input.q_BTHK)?;
    let [_, _, _, value] = dimensions(NAME, "v_BTHV", input.v_BTHV)?;
    expect_shape(NAME, "k_BTHK", input.k_BTHK, &[batch, time, heads, key])?;
    expect_shape(NAME, "v_BTHV", input.v_BTHV, &[batch, time, heads, value])?;
    expect_shape(NAME, "i_BTH", input.i_BTH, &[batch, time, heads])?;
    expect_shape(NAME, "f_BTH", input.f_BTH, &[batch, time, heads])?;
    expect_resets(NAME, input.resets_BT, input.q_BTHK, [batch, time])?;
    if batch * time * heads * key * value == 0 {
        let expected = "sizes of at least 1".to_owned();
        return Err(KernelError::Shape {
            function: NAME,
            argument: "q_BTHK",
            expected,
            found: input.q_BTHK.size(),
        });
    }
    let mut kind = computing_kind(NAME, "q_BTHK", input.q_BTHK)?;
    let others =
        [("k_BTHK", input.k_BTHK), ("v_BTHV", input.v_BTHV), ("i_BTH", input.i_BTH), ("f_BTH", input.f_BTH)];
    for (argument, tensor) in others {
        expect_device(NAME, argument, tensor, input.q_BTHK)?;
        if computing_kind(NAME, argument, tensor)? == Kind::Double {
            kind = Kind::Double;
        }
    }
    if let Some(state) = input.state {
        expect_shape(NAME, "state.matrix", &state.matrix, &[batch, heads, key, value])?;
        expect_shape(NAME, "state.normalizer", &state.normalizer, &[batch, heads, key])?;
        expect_shape(NAME, "state.maximum", &state.maximum, &[batch, heads])?;
        expect_device(NAME, "state.matrix", &state.matrix, input.q_BTHK)?;
    }
    Ok((Sizes { batch, time, heads, key, value }, kind))
}
