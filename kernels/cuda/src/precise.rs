//! How the float32 mLSTM is called: `mlstm_precise.cu` between libtorch's products, and the gates of `mlstm_gates.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::mlstm::{MlstmArguments, MlstmParameters, Strides};
use crate::{Architecture, MlstmSizes, Source, Specialization};

/// `PreciseParameters` of `mlstm_precise.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "mlstm_precise.cu says it")]
pub struct PreciseParameters {
    pub chunks: i32,
    pub length: i32,
    pub width: i32,
    pub blocks: i32,
    pub rows: i64,
    pub key_scale: f32,
    pub epsilon: f32,
    pub x: u64,
    pub own: u64,
    pub vector: u64,
    pub factor: u64,
    pub vector_factor: u64,
    pub dots: u64,
    pub log_forget_sum: u64,
    pub exponent: u64,
    pub maximum: u64,
    pub decay: u64,
    pub segment_start: u64,
    pub norm_gradient: u64,
    pub row_sums: u64,
    pub query_norm: u64,
    pub inverse_denominator: u64,
    pub states: u64,
    pub outer: u64,
    pub last: u64,
    pub partial: u64,
    pub outer_factor: f32,
    pub last_factor: f32,
}

/// A kernel of `mlstm_precise.cu` that takes a row a warp.
#[must_use]
pub fn by_row(kernel: &'static str, rows: u64) -> LayerLaunch {
    let blocks = u32::try_from(rows.div_ceil(8)).unwrap_or(u32::MAX);
    LayerLaunch {
        kernel,
        shape: LaunchShape { grid: [blocks, 1, 1], threads: 256, shared_bytes: 0 },
        parts: 0,
    }
}

/// A scan over the chunks of every head, of states of so many numbers; `parts` counts the blocks of a head.
#[must_use]
pub fn by_state(kernel: &'static str, width: u32, heads: u32) -> LayerLaunch {
    let blocks = width.div_ceil(256);
    LayerLaunch {
        kernel,
        shape: LaunchShape { grid: [blocks, heads, 1], threads: 256, shared_bytes: 0 },
        parts: blocks,
    }
}

/// Sizes of a call, as the gates see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSizes {
    /// Sequences.
    pub batch: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens of a sequence.
    pub tokens: u32,
    /// Tokens of a chunk, a multiple of 32 up to 256.
    pub chunk: u32,
}

/// Device addresses of what the gates' kernels read and write: fields of `MlstmParameters` (`mlstm.cuh`).
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "mlstm.cuh says it")]
pub struct GateAddresses {
    pub input_gate: u64,
    pub forget_gate: u64,
    pub resets: u64,
    pub segment_start: u64,
    pub initial_matrix: u64,
    pub initial_maximum: u64,
    pub final_maximum: u64,
    pub final_matrix_gradient: u64,
    pub log_forget_sum: u64,
    pub exponent: u64,
    pub local_maximum: u64,
    pub maximum: u64,
    pub carry: u64,
    pub keep: u64,
    pub chunk_forget: u64,
    pub chunk_maximum: u64,
    pub decay: u64,
    pub state_weight: u64,
    pub query_dot: u64,
    pub key_carry_dot: u64,
    pub key_dot: u64,
    pub decay_gradient: u64,
    pub input_gate_gradient: u64,
    pub forget_gate_gradient: u64,
}

impl GateSizes {
    /// Chunks of a sequence.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.tokens.div_ceil(self.chunk)
    }

    /// What to compile: heads of one tile, whose dots are one number a token.
    #[must_use]
    pub fn specialization(&self, architecture: Architecture) -> Specialization {
        let sizes = MlstmSizes { key: 128, value: 128, chunk: self.chunk };
        Specialization::mlstm(Source::MlstmGates, architecture, sizes)
    }

    /// A kernel of `mlstm_gates.cu`: a block a chunk and head, a thread a token.
    #[must_use]
    pub fn launch(&self, kernel: &'static str) -> LayerLaunch {
        let grid = [self.chunks(), self.batch * self.heads, 1];
        LayerLaunch { kernel, shape: LaunchShape { grid, threads: self.chunk, shared_bytes: 0 }, parts: 0 }
    }

    /// What these kernels take; gates are dense, `(B, T, H)`.
    #[must_use]
    pub fn arguments(&self, addresses: &GateAddresses) -> MlstmArguments {
        let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let sizes = [self.batch * self.heads, self.heads, self.tokens, self.chunks()].map(int);
        let strides = Strides::token_major(self.tokens.into(), self.heads.into(), 1);
        MlstmArguments::of_gates(MlstmParameters::of_gates(sizes, strides, addresses))
    }
}
