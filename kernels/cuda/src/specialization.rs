//! Which source is compiled for which sizes, and the list of those that the paper's models use.
//!
//! Sizes are compile-time constants (`-D`): loops unroll, tiles that cannot be partial need no test, and fragments stay
//! in registers. What may differ between calls of one model (batch, tokens, strides) is a run-time parameter.

use std::fmt;

use crate::recurrent::{Cell, RecurrentSizes};
use crate::short::ShortSizes;
use crate::slstm::Direction;

/// Headers that sources include, by the name they are included under.
pub(crate) const HEADERS: [(&str, &str); 5] = [
    ("common.cuh", include_str!("../common.cuh")),
    ("bulk.cuh", include_str!("../bulk.cuh")),
    ("vector.cuh", include_str!("../vector.cuh")),
    ("gemm.cuh", include_str!("../gemm.cuh")),
    ("mlstm.cuh", include_str!("../mlstm.cuh")),
];

/// What machine code is made for: a compute capability, and whether it may use what only that one has.
///
/// Kernels come in two kinds: with `wgmma` and the copy engine (9.0 alone, whose `wgmma` no later GPU has), and with
/// `mma.sync` and `cp.async` (all others). What else differs is the shared memory of a multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Compute capability 8.0 (A100): 164 KiB of shared memory a multiprocessor.
    Sm80,
    /// 8.6 and 8.7 (RTX 30, A10, A40): 100 KiB.
    Sm86,
    /// 8.9 (RTX 40, L4, L40): 100 KiB.
    Sm89,
    /// 9.0 with its own instructions (H100, H200): `wgmma`, clusters and the copy engine; 228 KiB.
    Sm90a,
    /// 10.0 and 10.3 (B200, B300): 228 KiB.
    Sm100,
    /// 12.0 and 12.1 (RTX 50, RTX PRO): 100 KiB.
    Sm120,
    /// The code of 8.0 as PTX, which the driver of any later GPU assembles: to test that path, and its speed.
    Ptx80,
    /// The code of 8.6 as PTX, with the tiles that its shared memory allows.
    Ptx86,
}

impl Architecture {
    /// All that machine code is made for, in the order of their compute capability.
    pub const NATIVE: [Self; 6] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a, Self::Sm100, Self::Sm120];

    /// The name that NVRTC uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
            Self::Sm100 => "sm_100",
            Self::Sm120 => "sm_120",
            Self::Ptx80 => "compute_80",
            Self::Ptx86 => "compute_86",
        }
    }

    /// What a GPU of this compute capability runs; `None` for one that the kernels do not know. Machine code runs on
    /// later minor versions of its major version too.
    #[must_use]
    pub fn of_capability(major: i32, minor: i32) -> Option<Self> {
        match (major, minor) {
            (8, 0) => Some(Self::Sm80),
            (8, 6..=8) => Some(Self::Sm86),
            (8, 9) => Some(Self::Sm89),
            (9, 0) => Some(Self::Sm90a),
            (10, _) => Some(Self::Sm100),
            (12, _) => Some(Self::Sm120),
            _ => None,
        }
    }

    /// What `--gpu-architecture` asks for: `8.0` or `8.6`, as PTX.
    ///
    /// # Errors
    /// The names it knows, where `name` is none of them.
    pub fn forced(name: &str) -> Result<Self, String> {
        match name {
            "8.0" => Ok(Self::Ptx80),
            "8.6" => Ok(Self::Ptx86),
            _ => Err(format!("expected 8.0 or 8.6, found `{name}`")),
        }
    }

    /// Whether the code is PTX, which the driver assembles.
    #[must_use]
    pub fn is_ptx(self) -> bool {
        matches!(self, Self::Ptx80 | Self::Ptx86)
    }

    /// Whether products are `wgmma` on tiles that the copy engine brings (`BULK` in `bulk.cuh`).
    #[must_use]
    pub fn has_wgmma(self) -> bool {
        self == Self::Sm90a
    }

    /// Whether blocks of a kernel can share memory as a cluster.
    #[must_use]
    pub fn has_clusters(self) -> bool {
        matches!(self, Self::Sm90a | Self::Sm100 | Self::Sm120)
    }

    /// Whether clusters of up to 16 blocks hold an sLSTM head; those of 12.0 have 8 blocks, of less memory.
    #[must_use]
    pub fn has_large_clusters(self) -> bool {
        matches!(self, Self::Sm90a | Self::Sm100)
    }

    /// Shared memory of a multiprocessor in KiB, one of them the system's for each block that runs on it.
    #[must_use]
    pub fn shared_kibibytes(self) -> u32 {
        match self {
            Self::Sm80 | Self::Ptx80 => 164,
            Self::Sm86 | Self::Sm89 | Self::Sm120 | Self::Ptx86 => 100,
            Self::Sm90a | Self::Sm100 => 228,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

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
    /// The bf16 sLSTM, forward and backward.
    Slstm,
    /// sLSTM and LSTM in float32.
    Recurrent,
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
            Self::Slstm => "slstm.cu",
            Self::Recurrent => "recurrent.cu",
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
            Self::Slstm => include_str!("../slstm.cu"),
            Self::Recurrent => include_str!("../recurrent.cu"),
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
            Self::Slstm => &["slstm_backward", "slstm_forward"],
            Self::Recurrent => &["recurrent_backward", "recurrent_forward", "recurrent_weights"],
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

    /// Residual and layer norm of this width (a multiple of 4, up to 4096).
    #[must_use]
    pub fn residual(architecture: Architecture, width: u32) -> Self {
        Self { source: Source::Residual, architecture, defines: vec![("WIDTH", width)] }
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

/// Every compilation that a model of the paper needs: mLSTM heads of 384 to 1280 (125M to 2.7B) and 64 and 128
/// (synthetic tasks), 128 × 256 (the published kernels' benchmark), sLSTM heads of 192 to
/// 640 in bf16 and of 8 to 512 in float32, LSTMs of 128 and 512 units. `everything`: all of it for
/// every compute capability; otherwise the whole list for 8.0 and 9.0, and the smallest, a middle and the largest size for
/// the others, which have the sources of 8.0.
#[must_use]
pub fn paper_specializations(everything: bool) -> Vec<Specialization> {
    let mut all = Vec::new();
    for architecture in Architecture::NATIVE {
        let whole = everything || matches!(architecture, Architecture::Sm80 | Architecture::Sm90a);
        let heads: &[u32] = if whole { &[64, 192, 384, 512, 768, 1024, 1280] } else { &[64, 384, 1280] };
        let widths: &[u32] = if whole { &[768, 1024, 1536, 2048, 2560] } else { &[768] };
        let mlstm: &[(u32, u32)] = if whole {
            &[
                (64, 64),
                (128, 128),
                (128, 256),
                (384, 384),
                (512, 512),
                (768, 768),
                (1024, 1024),
                (1280, 1280),
            ]
        } else {
            &[(64, 64), (384, 384), (1280, 1280)]
        };
        for float32 in [false, true] {
            all.extend(heads.iter().map(|&head| Specialization::pointwise(architecture, head, float32)));
        }
        all.push(Specialization::projections(architecture));
        all.extend(widths.iter().map(|&width| Specialization::residual(architecture, width)));
        all.extend([false, true].map(|boundaries| Specialization::inner(architecture, 8, boundaries)));
        all.push(Specialization::cross_entropy(architecture, 50304));
        all.push(Specialization::sums(architecture));
        all.extend(slstm_specializations(architecture, whole));
        all.push(Specialization::precise(architecture));
        let short: &[(u32, u32)] =
            if whole { &[(40, 64), (64, 32), (64, 64), (64, 128)] } else { &[(40, 64)] };
        all.extend(short.iter().filter_map(|&(tokens, head)| {
            let sizes = ShortSizes::new(architecture, tokens, head, head)?;
            Some(Specialization::short(architecture, sizes))
        }));
        for &(key, value) in mlstm {
            let sizes = MlstmSizes::fastest(key, value, 2048);
            all.extend(Source::MLSTM.map(|source| Specialization::mlstm(source, architecture, sizes)));
        }
    }
    all
}

/// The sLSTM of the paper's models in bf16 at every batch, and of its small ones in float32; the smallest and the largest
/// unless `whole`.
fn slstm_specializations(architecture: Architecture, whole: bool) -> Vec<Specialization> {
    let half: &[u32] = if whole { &[192, 256, 384, 512, 640] } else { &[192, 640] };
    let single: &[u32] = if whole { &[8, 16, 24, 32, 64, 128, 192, 256, 512] } else { &[8, 128, 512] };
    let mut all: Vec<Specialization> = Vec::new();
    for (&units, batch) in half.iter().flat_map(|units| [16, 32, 64, 256].map(|batch| (units, batch))) {
        for direction in [Direction::Forward, Direction::Backward] {
            let sizes = SlstmSizes::fastest(architecture, units, batch, direction);
            all.extend(sizes.map(|sizes| Specialization::slstm(architecture, sizes)));
        }
    }
    let lstm = [32, 128, 512].map(|units| (units, Cell::Lstm));
    let sizes = single.iter().map(|&units| (units, Cell::Slstm)).chain(lstm);
    let sizes = sizes.filter_map(|(units, cell)| RecurrentSizes::new(units, cell));
    all.extend(sizes.map(|sizes| Specialization::recurrent(architecture, sizes)));
    let mut once = Vec::new();
    for one in all {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}
