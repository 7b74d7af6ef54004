//! Which source is compiled for which sizes.
//!
//! Sizes are compile-time constants (`-D`): loops unroll, tiles that cannot be partial need no test, and fragments stay
//! in registers. What may differ between calls of one model (batch, tokens, strides) is a run-time parameter.

use std::fmt;

use crate::gated_norm::GatedNormForm;
use crate::layers::ResidualForm;
use crate::linear_attention::LinearAttentionSizes;
use crate::mlstm_step::StepSizes;
use crate::recurrent::RecurrentSizes;
use crate::selective_scan::SelectiveScanForm;
use crate::short::ShortSizes;
use crate::step_product::ProductSizes;
use crate::token_shift::TokenShiftForm;
use crate::{Architecture, Source};

/// Head sizes of an mLSTM layer and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MlstmSizes {
    /// Width of a head's queries and keys: a multiple of 8, up to 1280.
    pub key: u32,
    /// Width of a head's values: a multiple of 8, up to 1280.
    pub value: u32,
    /// Tokens of a chunk: 128, 256 or 512.
    pub chunk: u32,
}

impl MlstmSizes {
    /// Heads of this size with the chunk that was the fastest for them on an H200 (docs/benchmarks): longer chunks have
    /// fewer states to write and read, and more scores. No longer than a sequence of `tokens` needs.
    #[must_use]
    pub fn fastest(key: u32, value: u32, tokens: u32) -> Self {
        let chunk = match u64::from(key) * u64::from(value) {
            cells if tokens > 256 && cells >= 512 * 512 => 512,
            cells if tokens > 128 && cells >= 256 * 256 => 256,
            _ => 128,
        };
        Self { key, value, chunk }
    }

    /// Operand tiles: steps of the products and copies in flight, so that two blocks fit a multiprocessor. With `wgmma`,
    /// 64 × 3 was the fastest at every size on an H100 (docs/benchmarks): 96 KiB a block. Without, 32 × 4 takes 64 KiB,
    /// and 32 × 3 takes the 48 KiB that 100 KiB a multiprocessor leave.
    #[must_use]
    pub fn tiles(architecture: Architecture) -> (u32, u32) {
        match architecture.shared_kibibytes() {
            _ if architecture.has_wgmma() => (64, 3),
            100 => (32, 3),
            _ => (32, 4),
        }
    }
}

/// Head size of a bf16 sLSTM layer and how it is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlstmSizes {
    /// Units of a head.
    pub units: u32,
    /// Blocks that share a head: `units / group` is 32 or 64.
    pub group: u32,
    /// Warps that share one sum.
    pub split: u32,
    /// Rows of the batch in a block, in sixteens.
    pub batch_tiles: u32,
    /// Whether the group is a cluster of blocks (of up to 16; above 8 the launch must allow it) or meets in device memory.
    pub clustered: bool,
}

/// One compilation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Specialization {
    /// The source.
    pub source: Source,
    /// The target.
    pub architecture: Architecture,
    defines: Vec<(&'static str, u32)>,
}

impl Specialization {
    /// A source of the mLSTM layer for these sizes.
    #[must_use]
    pub fn mlstm(source: Source, architecture: Architecture, sizes: MlstmSizes) -> Self {
        let (block_k, stages) = MlstmSizes::tiles(architecture);
        let defines = vec![
            ("DQK", sizes.key),
            ("DV", sizes.value),
            ("CHUNK", sizes.chunk),
            ("BLOCK_K", block_k),
            ("STAGES", stages),
        ];
        Self { source, architecture, defines }
    }

    /// The bf16 sLSTM for these sizes.
    #[must_use]
    pub fn slstm(architecture: Architecture, sizes: SlstmSizes) -> Self {
        let defines = vec![
            ("UNITS", sizes.units),
            ("GROUP", sizes.group),
            ("SPLIT", sizes.split),
            ("BATCH_TILES", sizes.batch_tiles),
            ("CLUSTERED", sizes.clustered.into()),
        ];
        Self { source: Source::Slstm, architecture, defines }
    }

    /// sLSTM or LSTM in float32.
    #[must_use]
    pub fn recurrent(architecture: Architecture, sizes: RecurrentSizes) -> Self {
        Self { source: Source::Recurrent, architecture, defines: sizes.defines() }
    }

    /// A source with what it is compiled with.
    pub(crate) fn of_source(
        source: Source,
        architecture: Architecture,
        defines: Vec<(&'static str, u32)>,
    ) -> Self {
        Self { source, architecture, defines }
    }

    /// Gated linear attention in float32, for these sizes.
    #[must_use]
    pub fn linear_attention(architecture: Architecture, sizes: LinearAttentionSizes) -> Self {
        Self { source: Source::LinearAttention, architecture, defines: sizes.defines() }
    }

    /// Scans of HGRN and RWKV-4.
    #[must_use]
    pub fn scan(architecture: Architecture) -> Self {
        Self { source: Source::Scan, architecture, defines: Vec::new() }
    }

    /// Mamba's selective scan, in this form.
    #[must_use]
    pub fn selective_scan(architecture: Architecture, form: SelectiveScanForm) -> Self {
        Self { source: Source::SelectiveScan, architecture, defines: form.defines() }
    }

    /// Mixes of each token with the one before, in this form.
    #[must_use]
    pub fn token_shift(architecture: Architecture, form: TokenShiftForm) -> Self {
        Self { source: Source::TokenShift, architecture, defines: form.defines() }
    }

    /// Norms of heads with the gate behind them, in this form.
    #[must_use]
    pub fn gated_norm(architecture: Architecture, form: GatedNormForm) -> Self {
        Self { source: Source::GatedNorm, architecture, defines: form.defines() }
    }

    /// Rotary positions and SwiGLU, on activations of bf16 or of float32.
    #[must_use]
    pub fn transformer(architecture: Architecture, float32: bool) -> Self {
        Self { source: Source::Transformer, architecture, defines: vec![("FLOAT32", float32.into())] }
    }

    /// Dropout of numbers of bf16 or of float32.
    #[must_use]
    pub fn dropout(architecture: Architecture, float32: bool) -> Self {
        Self { source: Source::Dropout, architecture, defines: vec![("FLOAT32", float32.into())] }
    }

    /// Convolution, norms and gates for heads of `head` units (a multiple of 8, up to 1280), on activations of bf16 or of
    /// float32.
    #[must_use]
    pub fn pointwise(architecture: Architecture, head: u32, float32: bool) -> Self {
        let defines = vec![("HEAD", head), ("FLOAT32", float32.into())];
        Self { source: Source::Pointwise, architecture, defines }
    }

    /// Queries, keys and values in float32, for any width.
    #[must_use]
    pub fn projections(architecture: Architecture) -> Self {
        Self { source: Source::Projections, architecture, defines: Vec::new() }
    }

    /// Convolution, queries, keys and values beside so many gates (two for each head, at most 8). `boundaries`: sequences
    /// may begin anew within, or go on from what came before.
    #[must_use]
    pub fn inner(architecture: Architecture, gates: u32, boundaries: bool) -> Self {
        let defines = vec![("GATES", gates), ("BOUNDARIES", boundaries.into())];
        Self { source: Source::Inner, architecture, defines }
    }

    /// Residual and norm of this width (a multiple of 4, up to 4096).
    #[must_use]
    pub fn residual(architecture: Architecture, width: u32, form: ResidualForm) -> Self {
        let defines = vec![("WIDTH", width), ("FORM", form.number())];
        Self { source: Source::Residual, architecture, defines }
    }

    /// Cross-entropy over a vocabulary of this size (a multiple of 8).
    #[must_use]
    pub fn cross_entropy(architecture: Architecture, vocabulary: u32) -> Self {
        Self { source: Source::CrossEntropy, architecture, defines: vec![("VOCABULARY", vocabulary)] }
    }

    /// Between the products of the float32 mLSTM, for any sizes.
    #[must_use]
    pub fn precise(architecture: Architecture) -> Self {
        Self { source: Source::MlstmPrecise, architecture, defines: Vec::new() }
    }

    /// The float32 mLSTM over short sequences, for these sizes.
    #[must_use]
    pub fn short(architecture: Architecture, sizes: ShortSizes) -> Self {
        Self { source: Source::MlstmShort, architecture, defines: sizes.defines() }
    }

    /// One token of the mLSTM, for these sizes.
    #[must_use]
    pub fn mlstm_step(architecture: Architecture, sizes: StepSizes) -> Self {
        Self { source: Source::MlstmStep, architecture, defines: sizes.defines() }
    }

    /// One token's products, for these sizes.
    #[must_use]
    pub fn step_product(architecture: Architecture, sizes: ProductSizes) -> Self {
        Self { source: Source::StepProduct, architecture, defines: sizes.defines() }
    }

    /// Sums of columns.
    #[must_use]
    pub fn sums(architecture: Architecture) -> Self {
        Self { source: Source::Sums, architecture, defines: Vec::new() }
    }

    /// NVRTC's options, in a fixed order.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={}", self.architecture), "--std=c++17".to_owned()];
        if !self.architecture.is_ptx() {
            options.push("--ptxas-options=-v".to_owned());
        }
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }
}

impl fmt::Display for Specialization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.source.file_name(), self.architecture)?;
        self.defines.iter().try_for_each(|(name, value)| write!(formatter, " {name}={value}"))
    }
}
