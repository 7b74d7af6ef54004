//! The `.cu` and `.cuh` files, which are part of the binary.

/// Headers that sources include, by the name they are included under.
pub(crate) const HEADERS: [(&str, &str); 7] = [
    ("common.cuh", include_str!("../common.cuh")),
    ("bulk.cuh", include_str!("../bulk.cuh")),
    ("vector.cuh", include_str!("../vector.cuh")),
    ("tiles.cuh", include_str!("../tiles.cuh")),
    ("gemm.cuh", include_str!("../gemm.cuh")),
    ("mlstm.cuh", include_str!("../mlstm.cuh")),
    ("linear_attention_chunks.cuh", include_str!("../linear_attention_chunks.cuh")),
];

/// A `.cu` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Stabilizers and gate gradients of the mLSTM.
    MlstmGates,
    /// States between chunks and their gradients.
    MlstmStates,
    /// Products inside a chunk.
    MlstmScores,
    /// Output and gradients of queries, keys and values.
    MlstmOutputs,
    /// What stands between the products of the float32 mLSTM.
    MlstmPrecise,
    /// The float32 mLSTM over at most 64 tokens.
    MlstmShort,
    /// One token of the mLSTM, for generation.
    MlstmStep,
    /// One token's products, with what stands before them.
    StepProduct,
    /// The bf16 sLSTM, forward and backward.
    Slstm,
    /// sLSTM and LSTM in float32.
    Recurrent,
    /// Gated linear attention, step by step in float32.
    LinearAttention,
    /// Gated linear attention in chunks, with products in bf16: states between chunks and their gradients.
    LinearAttentionChunkStates,
    /// The same: outputs, and gradients of values.
    LinearAttentionChunkResults,
    /// The same: gradients of queries, keys, decays and bonus.
    LinearAttentionChunkGradients,
    /// Scans of HGRN and RWKV-4, in float32.
    Scan,
    /// Mamba's selective scan.
    SelectiveScan,
    /// RWKV's mixes of each token with the one before.
    TokenShift,
    /// Norms of heads with the gate behind them.
    GatedNorm,
    /// Rotary positions and SwiGLU.
    Transformer,
    /// Dropout.
    Dropout,
    /// Convolution, norms and gates between the matrix products.
    Pointwise,
    /// Convolution, queries, keys, values and gates of an mLSTM block.
    Inner,
    /// Queries, keys and values in float32.
    Projections,
    /// Residual and layer norm.
    Residual,
    /// Softmax and cross-entropy.
    CrossEntropy,
    /// Sums of columns.
    Sums,
}

impl Source {
    /// All sources of the mLSTM layer.
    pub const MLSTM: [Self; 4] = [Self::MlstmGates, Self::MlstmStates, Self::MlstmScores, Self::MlstmOutputs];

    /// All sources of gated linear attention in chunks.
    pub const LINEAR_ATTENTION_CHUNKS: [Self; 3] = [
        Self::LinearAttentionChunkStates,
        Self::LinearAttentionChunkResults,
        Self::LinearAttentionChunkGradients,
    ];

    /// The file's name in `kernels/cuda/`.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::MlstmGates => "mlstm_gates.cu",
            Self::MlstmStates => "mlstm_states.cu",
            Self::MlstmScores => "mlstm_scores.cu",
            Self::MlstmOutputs => "mlstm_outputs.cu",
            Self::MlstmPrecise => "mlstm_precise.cu",
            Self::MlstmShort => "mlstm_short.cu",
            Self::MlstmStep => "mlstm_step.cu",
            Self::StepProduct => "step_product.cu",
            Self::Slstm => "slstm.cu",
            Self::Recurrent => "recurrent.cu",
            Self::LinearAttention => "linear_attention.cu",
            Self::LinearAttentionChunkStates => "linear_attention_chunk_states.cu",
            Self::LinearAttentionChunkResults => "linear_attention_chunk_results.cu",
            Self::LinearAttentionChunkGradients => "linear_attention_chunk_gradients.cu",
            Self::Scan => "scan.cu",
            Self::SelectiveScan => "selective_scan.cu",
            Self::TokenShift => "token_shift.cu",
            Self::GatedNorm => "gated_norm.cu",
            Self::Transformer => "transformer.cu",
            Self::Dropout => "dropout.cu",
            Self::Pointwise => "pointwise.cu",
            Self::Inner => "inner.cu",
            Self::Projections => "projections.cu",
            Self::Residual => "residual.cu",
            Self::CrossEntropy => "cross_entropy.cu",
            Self::Sums => "sums.cu",
        }
    }

    /// The file's text.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::MlstmGates => include_str!("../mlstm_gates.cu"),
            Self::MlstmStates => include_str!("../mlstm_states.cu"),
            Self::MlstmScores => include_str!("../mlstm_scores.cu"),
            Self::MlstmOutputs => include_str!("../mlstm_outputs.cu"),
            Self::MlstmPrecise => include_str!("../mlstm_precise.cu"),
            Self::MlstmShort => include_str!("../mlstm_short.cu"),
            Self::MlstmStep => include_str!("../mlstm_step.cu"),
            Self::StepProduct => include_str!("../step_product.cu"),
            Self::Slstm => include_str!("../slstm.cu"),
            Self::Recurrent => include_str!("../recurrent.cu"),
            Self::LinearAttention => include_str!("../linear_attention.cu"),
            Self::LinearAttentionChunkStates => include_str!("../linear_attention_chunk_states.cu"),
            Self::LinearAttentionChunkResults => include_str!("../linear_attention_chunk_results.cu"),
            Self::LinearAttentionChunkGradients => include_str!("../linear_attention_chunk_gradients.cu"),
            Self::Scan => include_str!("../scan.cu"),
            Self::SelectiveScan => include_str!("../selective_scan.cu"),
            Self::TokenShift => include_str!("../token_shift.cu"),
            Self::GatedNorm => include_str!("../gated_norm.cu"),
            Self::Transformer => include_str!("../transformer.cu"),
            Self::Dropout => include_str!("../dropout.cu"),
            Self::Pointwise => include_str!("../pointwise.cu"),
            Self::Inner => include_str!("../inner.cu"),
            Self::Projections => include_str!("../projections.cu"),
            Self::Residual => include_str!("../residual.cu"),
            Self::CrossEntropy => include_str!("../cross_entropy.cu"),
            Self::Sums => include_str!("../sums.cu"),
        }
    }

    /// The kernels that the file defines, sorted.
    #[must_use]
    pub fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::MlstmGates => &[
                "mlstm_backward_prepare",
                "mlstm_backward_prepare_dotted",
                "mlstm_gate_gradients",
                "mlstm_gates_carry",
                "mlstm_gates_local",
            ],
            Self::MlstmStates => &["mlstm_state_gradients", "mlstm_states"],
            Self::MlstmScores => &["mlstm_score_gradients", "mlstm_scores"],
            Self::MlstmOutputs => {
                &["mlstm_key_gradient", "mlstm_output", "mlstm_query_gradient", "mlstm_value_gradient"]
            }
            Self::MlstmPrecise => &[
                "precise_denominator",
                "precise_prepare",
                "precise_rows",
                "precise_score_gradients",
                "precise_scores",
                "precise_state_gradients",
                "precise_states",
            ],
            Self::MlstmShort => &["mlstm_short", "mlstm_short_backward"],
            Self::MlstmStep => &["mlstm_step"],
            Self::StepProduct => &["step_product"],
            Self::Slstm => &["slstm_backward", "slstm_forward"],
            Self::Recurrent => &["recurrent_backward", "recurrent_forward", "recurrent_weights"],
            Self::LinearAttention => &[
                "linear_attention_forward",
                "linear_attention_join_gradients",
                "linear_attention_join_states",
                "linear_attention_keys",
                "linear_attention_queries",
                "linear_attention_state_gradients",
                "linear_attention_states",
                "linear_attention_values",
            ],
            Self::LinearAttentionChunkStates => &[
                "linear_attention_chunk_state_gradients",
                "linear_attention_chunk_states",
                "linear_attention_chunk_sums",
            ],
            Self::LinearAttentionChunkResults => {
                &["linear_attention_chunk_outputs", "linear_attention_chunk_values"]
            }
            Self::LinearAttentionChunkGradients => &["linear_attention_chunk_keys"],
            Self::Scan => &["linear_scan_backward", "linear_scan_forward", "wkv_backward", "wkv_forward"],
            Self::SelectiveScan => &["selective_scan_backward", "selective_scan_forward"],
            Self::TokenShift => &["token_shift", "token_shift_backward"],
            Self::GatedNorm => &["gated_norm", "gated_norm_backward"],
            Self::Transformer => &["rotary", "swiglu", "swiglu_backward"],
            Self::Dropout => &["dropout"],
            Self::Pointwise => &[
                "conv_silu",
                "conv_silu_backward",
                "gelu_gate",
                "gelu_gate_backward",
                "head_norm_gate",
                "head_norm_gate_backward",
            ],
            Self::Inner => &["conv_projections", "conv_projections_backward"],
            Self::Projections => &["block_projections", "block_projections_backward"],
            Self::Residual => &["add_layer_norm", "add_layer_norm_backward"],
            Self::CrossEntropy => &["cross_entropy", "cross_entropy_losses"],
            Self::Sums => &["column_sums"],
        }
    }
}
