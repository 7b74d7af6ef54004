//! What the kernels are told: tensors by address and stride, as Rust names them and as `mlstm.cuh` lays them out.

use crate::driver::TensorMap;
use crate::precise::GateAddresses;

/// Strides of an activation's first axes in elements; the last axis is contiguous.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// From one sequence of the batch to the next.
    pub batch: i64,
    /// From one head to the next.
    pub head: i64,
    /// From one token to the next.
    pub token: i64,
}

impl Strides {
    /// Those of a contiguous `(B, T, H, width)`.
    #[must_use]
    pub fn token_major(tokens: i64, heads: i64, width: i64) -> Self {
        Self { batch: tokens * heads * width, head: width, token: heads * width }
    }
}

/// Device addresses of an mLSTM call. Queries, keys, values and output are bf16, gates fp32 (before exp and before
/// log sigmoid); gradients have the type and strides of what they belong to and may be 0 in a forward pass.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "names say it")]
pub struct MlstmTensors {
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub input_gate: u64,
    pub forget_gate: u64,
    pub output: u64,
    /// dh; or dh / den, where the plan says that it comes divided.
    pub output_gradient: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub input_gate_gradient: u64,
    pub forget_gate_gradient: u64,
    /// dh / den · h of every token and head, `(B, T, H)` fp32, where dh comes divided; otherwise 0.
    pub output_dot: u64,
    /// `(B, T)`, one byte each, nonzero where everything before the token is forgotten; where the plan says that there are
    /// resets, otherwise 0.
    pub resets: u64,
    /// The state before the first token, or zeros.
    pub initial: StateAddresses,
    /// Where the state after the last token goes, in a forward pass, or zeros.
    pub last: StateAddresses,
    /// Gradient of the state after the last token, or zeros.
    pub last_gradient: StateAddresses,
    /// Where the gradient of the state before the first token goes, or zeros.
    pub initial_gradient: StateAddresses,
}

/// Device addresses of a state of every sequence and head, fp32: `k vᵀ / √K` summed and divided by exp(maximum).
/// Gradients have no maximum: the state is the same whatever it was divided by.
#[derive(Debug, Clone, Copy, Default)]
pub struct StateAddresses {
    /// `(B, H, K, V)`.
    pub matrix: u64,
    /// `(B, H, K)`.
    pub normalizer: u64,
    /// `(B, H)`, −∞ for a state that remembers nothing; 0 for a gradient.
    pub maximum: u64,
}

/// `MlstmParameters` of `mlstm.cuh`, field by field, but for what the copy engine must know.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MlstmParameters {
    pub(super) batch_heads: i32,
    pub(super) heads: i32,
    pub(super) tokens: i32,
    pub(super) chunks: i32,
    pub(super) key_scale: f32,
    pub(super) epsilon: f32,
    pub(super) qk: Strides,
    pub(super) v: Strides,
    pub(super) gate: Strides,
    pub(super) query: u64,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) input_gate: u64,
    pub(super) forget_gate: u64,
    pub(super) output: u64,
    pub(super) resets: u64,
    pub(super) initial_matrix: u64,
    pub(super) initial_norm: u64,
    pub(super) initial_maximum: u64,
    pub(super) final_matrix: u64,
    pub(super) final_norm: u64,
    pub(super) final_maximum: u64,
    pub(super) final_matrix_gradient: u64,
    pub(super) final_norm_gradient: u64,
    pub(super) initial_matrix_gradient: u64,
    pub(super) initial_norm_gradient: u64,
    pub(super) log_forget_sum: u64,
    pub(super) exponent: u64,
    pub(super) local_maximum: u64,
    pub(super) maximum: u64,
    pub(super) carry: u64,
    pub(super) keep: u64,
    pub(super) chunk_forget: u64,
    pub(super) chunk_maximum: u64,
    pub(super) decay: u64,
    pub(super) state_weight: u64,
    pub(super) segment_start: u64,
    pub(super) states: u64,
    pub(super) norm_states: u64,
    pub(super) scores: u64,
    pub(super) row_sums: u64,
    pub(super) query_norm: u64,
    pub(super) output_rest: u64,
    pub(super) inverse_denominator: u64,
    pub(super) output_gradient: u64,
    pub(super) divided_gradient: u64,
    pub(super) gradient_scale: u64,
    pub(super) query_gradient: u64,
    pub(super) key_gradient: u64,
    pub(super) value_gradient: u64,
    pub(super) input_gate_gradient: u64,
    pub(super) forget_gate_gradient: u64,
    pub(super) norm_gradient: u64,
    pub(super) gradient_weight: u64,
    pub(super) gradient_column: u64,
    pub(super) output_dot: u64,
    pub(super) state_gradients: u64,
    pub(super) norm_state_gradients: u64,
    pub(super) score_gradients: u64,
    pub(super) query_dot: u64,
    pub(super) key_carry_dot: u64,
    pub(super) key_dot: u64,
    pub(super) decay_gradient: u64,
}

/// What a kernel takes: the parameters, and maps of the tensors that the copy engine reads.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub struct MlstmArguments {
    pub(super) parameters: MlstmParameters,
    pub(super) maps: [TensorMap; 9],
}

impl MlstmParameters {
    /// For the kernels of `mlstm_gates.cu` alone; sizes are B·H, H, T and N.
    pub(crate) fn of_gates(
        [batch_heads, heads, tokens, chunks]: [i32; 4],
        gate: Strides,
        addresses: &GateAddresses,
    ) -> Self {
        Self {
            batch_heads,
            heads,
            tokens,
            chunks,
            key_scale: 1.0,
            epsilon: 1e-6,
            gate,
            input_gate: addresses.input_gate,
            forget_gate: addresses.forget_gate,
            resets: addresses.resets,
            segment_start: addresses.segment_start,
            initial_matrix: addresses.initial_matrix,
            initial_maximum: addresses.initial_maximum,
            final_maximum: addresses.final_maximum,
            final_matrix_gradient: addresses.final_matrix_gradient,
            log_forget_sum: addresses.log_forget_sum,
            exponent: addresses.exponent,
            local_maximum: addresses.local_maximum,
            maximum: addresses.maximum,
            carry: addresses.carry,
            keep: addresses.keep,
            chunk_forget: addresses.chunk_forget,
            chunk_maximum: addresses.chunk_maximum,
            decay: addresses.decay,
            state_weight: addresses.state_weight,
            query_dot: addresses.query_dot,
            key_carry_dot: addresses.key_carry_dot,
            key_dot: addresses.key_dot,
            decay_gradient: addresses.decay_gradient,
            input_gate_gradient: addresses.input_gate_gradient,
            forget_gate_gradient: addresses.forget_gate_gradient,
            ..Self::default()
        }
    }
}

impl MlstmArguments {
    /// Without maps, which the gates' kernels do not read.
    pub(crate) fn of_gates(parameters: MlstmParameters) -> Self {
        Self { parameters, maps: [TensorMap::default(); 9] }
    }
}
