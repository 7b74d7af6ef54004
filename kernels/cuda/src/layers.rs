//! How the kernels around the cells are called: parameters and launches of `pointwise.cu`, `inner.cu`,
//! `residual.cu`, `cross_entropy.cu` and `sums.cu`.
//!
//! Each structure is that of its source, field by field; addresses are device addresses, 0 for null. Activations are
//! bf16, parameters, statistics and partial sums fp32. A launch covers everything; the caller makes the partial sums'
//! memory of the rows that the launch's `parts` says, and adds them with [`ColumnParameters`].

use crate::driver::LaunchShape;

/// A kernel's name and launch, and the rows of partial sums that it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLaunch {
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks and threads.
    pub shape: LaunchShape,
    /// Rows of partial sums; 0 for none.
    pub parts: u32,
}

fn launch(kernel: &'static str, grid: [u32; 3], threads: u32, parts: u32) -> LayerLaunch {
    LayerLaunch { kernel, shape: LaunchShape { grid, threads, shared_bytes: 0 }, parts }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Most tokens that a thread of the convolution walks over.
const LONGEST_RUN: u32 = 64;

/// Causal convolution of 4 taps, with SiLU or without.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "pointwise.cu says it")]
pub struct ConvParameters {
    pub batch: i32,
    pub tokens: i32,
    pub width: i32,
    pub run: i32,
    pub input_stride: i64,
    pub input: u64,
    pub weight: u64,
    pub bias: u64,
    pub output: u64,
    pub output_gradient: u64,
    pub added: u64,
    pub input_gradient: u64,
    pub partial: u64,
    pub resets: u64,
    pub window: u64,
    pub window_gradient: u64,
    pub linear: i32,
    pub unused: i32,
}

impl ConvParameters {
    /// Width of a row of partial sums: four weights and the bias of each channel.
    pub const PARTIAL: u32 = 5;

    /// Tokens of a thread's run: 64, or fewer where that leaves multiprocessors without work, since a run is a loop that
    /// nothing shortens.
    #[must_use]
    pub fn run(batch: u32, tokens: u32, width: u32) -> u32 {
        let columns = u64::from(batch) * u64::from(width.div_ceil(512));
        let wanted = (8 * 132_u64).div_ceil(columns.max(1)).max(1);
        narrow(u64::from(tokens).div_ceil(wanted)).clamp(8, LONGEST_RUN)
    }

    /// Forward or backward, for sizes as they stand in the structure.
    #[must_use]
    pub fn launch(batch: u32, tokens: u32, width: u32, backward: bool) -> LayerLaunch {
        let grid = [width.div_ceil(512), tokens.div_ceil(Self::run(batch, tokens, width)), batch];
        if backward {
            launch("conv_silu_backward", grid, 128, grid[1] * batch)
        } else {
            launch("conv_silu", grid, 64, 0)
        }
    }
}

/// Norm of each head, with or without skip and gate.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "pointwise.cu says it")]
pub struct NormParameters {
    pub heads: i32,
    pub tokens_per_warp: i32,
    pub tokens: i64,
    pub epsilon: f32,
    pub gate_stride: i64,
    pub input: u64,
    pub weight: u64,
    pub skip: u64,
    pub branch: u64,
    pub gate: u64,
    pub output: u64,
    pub statistics: u64,
    pub output_gradient: u64,
    pub input_gradient: u64,
    pub branch_gradient: u64,
    pub gate_gradient: u64,
    pub partial: u64,
    pub rest: u64,
    pub inverse_denominator: u64,
    pub dots: u64,
}

impl NormParameters {
    /// Tokens that a warp of the backward pass walks over.
    #[must_use]
    pub fn tokens_per_warp(tokens: u64, heads: u32) -> u32 {
        narrow((tokens * u64::from(heads) / 4096).clamp(1, 64))
    }

    /// Forward or backward. A row of partial sums holds the weight's and the skip's, 2 · D.
    #[must_use]
    pub fn launch(tokens: u64, heads: u32, backward: bool) -> LayerLaunch {
        if backward {
            let warps =
                narrow(tokens.div_ceil(u64::from(Self::tokens_per_warp(tokens, heads)))).div_ceil(4) * 4;
            launch("head_norm_gate_backward", [warps / 4, heads, 1], 128, warps)
        } else {
            launch("head_norm_gate", [narrow((tokens * u64::from(heads)).div_ceil(4)), 1, 1], 128, 0)
        }
    }
}

/// GELU gate.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "pointwise.cu says it")]
pub struct GeluParameters {
    pub rows: i64,
    pub width: i32,
    pub projected: u64,
    pub output: u64,
    pub output_gradient: u64,
    pub projected_gradient: u64,
}

impl GeluParameters {
    /// Forward or backward.
    #[must_use]
    pub fn launch(rows: u64, width: u32, backward: bool) -> LayerLaunch {
        let grid = [narrow((rows * u64::from(width)).div_ceil(2048)), 1, 1];
        launch(if backward { "gelu_gate_backward" } else { "gelu_gate" }, grid, 256, 0)
    }
}

/// Convolution, queries, keys, values and gates of an mLSTM block.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "inner.cu says it")]
pub struct InnerParameters {
    pub batch: i32,
    pub tokens: i32,
    pub width: i32,
    pub run: i32,
    pub input_stride: i64,
    pub input: u64,
    pub conv_weight: u64,
    pub conv_bias: u64,
    pub query_weight: u64,
    pub key_weight: u64,
    pub value_weight: u64,
    pub gate_weight: u64,
    pub gate_bias: u64,
    pub conv: u64,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub gates: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub added: u64,
    pub gate_gradient: u64,
    pub input_gradient: u64,
    pub partial: u64,
    pub resets: u64,
    pub window: u64,
    pub window_gradient: u64,
}

impl InnerParameters {
    /// Width of a row of partial sums, for each channel: four numbers of each of three matrices, M of c and of a, four
    /// taps and the bias.
    #[must_use]
    pub fn partial(gates: u32) -> u32 {
        12 + 2 * gates + 5
    }

    /// Tokens of a lane's run. Forward, as many as weights are worth loading for, and yet two blocks for each of 132
    /// multiprocessors; backward 64, where the three tokens that follow a run cost 6 %.
    #[must_use]
    pub fn run(batch: u32, tokens: u32, backward: bool) -> u32 {
        if backward {
            return 64;
        }
        let all = u64::from(batch) * u64::from(tokens);
        if all >= 8 * 8 * 2 * 132 { 8 } else { 4 }
    }

    /// Forward or backward: eight runs a warp, none beyond its sequence.
    #[must_use]
    pub fn launch(batch: u32, tokens: u32, width: u32, backward: bool) -> LayerLaunch {
        let runs = (batch * tokens.div_ceil(Self::run(batch, tokens, backward))).div_ceil(8);
        if backward {
            launch("conv_projections_backward", [width.div_ceil(64), runs, 1], 128, runs)
        } else {
            launch("conv_projections", [runs, 1, 1], 256, 0)
        }
    }
}

/// Queries, keys and values in float32.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "projections.cu says it")]
pub struct ProjectionParameters {
    pub tokens: i64,
    pub a_stride: i64,
    pub width: i32,
    pub run: i32,
    pub c: u64,
    pub a: u64,
    pub query_weight: u64,
    pub key_weight: u64,
    pub value_weight: u64,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub c_gradient: u64,
    pub a_gradient: u64,
    pub partial: u64,
}

impl ProjectionParameters {
    /// Tokens of a thread's run: enough blocks for every multiprocessor, weights loaded for as many tokens as that leaves.
    #[must_use]
    pub fn run(tokens: u64, width: u32) -> u32 {
        let blocks = 8 * 132 / u64::from(width.div_ceil(512)).max(1);
        narrow(tokens.div_ceil(blocks.max(1))).clamp(4, 64)
    }

    /// Forward or backward. A row of partial sums holds 12 numbers for each channel.
    #[must_use]
    pub fn launch(tokens: u64, width: u32, backward: bool) -> LayerLaunch {
        let runs = narrow(tokens.div_ceil(u64::from(Self::run(tokens, width))));
        let grid = [width.div_ceil(512), runs, 1];
        if backward {
            launch("block_projections_backward", grid, 128, runs)
        } else {
            launch("block_projections", grid, 128, 0)
        }
    }
}

/// Residual and layer norm.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "residual.cu says it")]
pub struct ResidualParameters {
    pub tokens: i64,
    pub rows_per_block: i32,
    pub epsilon: f32,
    pub residual: u64,
    pub delta: u64,
    pub weight: u64,
    pub bias: u64,
    pub sum: u64,
    pub output: u64,
    pub statistics: u64,
    pub output_gradient: u64,
    pub sum_gradient: u64,
    pub residual_gradient: u64,
    pub delta_gradient: u64,
    pub partial: u64,
}

/// How a residual is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResidualForm {
    /// A layer norm whose weight is the scale less one: xLSTM.
    ScaleLessOne,
    /// A layer norm with a scale, and a bias or none.
    Layer,
    /// By the root of the mean square, with a scale.
    Rms,
}

impl ResidualForm {
    /// `FORM` of the source.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::ScaleLessOne => 0,
            Self::Layer => 1,
            Self::Rms => 2,
        }
    }

    /// Rows of the width in a row of the backward pass's partial sums: of the weight, and of a bias.
    #[must_use]
    pub fn sums(self) -> i64 {
        if self == Self::Layer { 2 } else { 1 }
    }
}

impl ResidualParameters {
    /// Rows that a block of the backward pass walks over: some eight blocks on each of 132 multiprocessors.
    #[must_use]
    pub fn rows_per_block(tokens: u64) -> u32 {
        narrow(tokens.div_ceil(8 * 132)).max(1)
    }

    /// Forward or backward.
    #[must_use]
    pub fn launch(tokens: u64, backward: bool) -> LayerLaunch {
        if backward {
            let blocks = narrow(tokens.div_ceil(u64::from(Self::rows_per_block(tokens))));
            launch("add_layer_norm_backward", [blocks, 1, 1], 128, blocks)
        } else {
            launch("add_layer_norm", [narrow(tokens), 1, 1], 128, 0)
        }
    }
}

/// Softmax and cross-entropy.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "cross_entropy.cu says it")]
pub struct CrossEntropyParameters {
    pub rows: i32,
    pub scale: f32,
    pub ignore: i64,
    pub targets: u64,
    pub logits: u64,
    pub wide_logits: u64,
    pub losses: u64,
}

impl CrossEntropyParameters {
    /// With gradients (bf16 logits) or losses alone (fp32 logits): a block a row, or, of a small vocabulary, eight.
    #[must_use]
    pub fn launch(rows: u32, vocabulary: u32, gradients: bool) -> LayerLaunch {
        let kernel = if gradients { "cross_entropy" } else { "cross_entropy_losses" };
        if vocabulary <= 2048 {
            launch(kernel, [rows.div_ceil(8), 1, 1], 256, 0)
        } else {
            launch(kernel, [rows, 1, 1], 1024, 0)
        }
    }
}

/// Sums of columns.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "sums.cu says it")]
pub struct ColumnParameters {
    pub rows: i32,
    pub columns: i32,
    pub values: u64,
    pub sums: u64,
}

impl ColumnParameters {
    /// The one launch.
    #[must_use]
    pub fn launch(columns: u32) -> LayerLaunch {
        launch("column_sums", [columns.div_ceil(32), 1, 1], 1024, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;

    /// Size of a C structure from the text of its source.
    fn size_in_source(source: Source, name: &str) -> usize {
        let text = source.text();
        let start = text.find(&format!("struct {name} {{")).expect("the structure");
        let body = &text[start..start + text[start..].find("};").expect("its end")];
        let code: String =
            body.lines().skip(1).map(|line| line.split("//").next().unwrap_or_default()).collect();
        // Functions come after the fields.
        let code = code.split("DEVICE").next().unwrap_or_default();
        let mut size = 0_usize;
        for declaration in code.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            for (index, field) in declaration.split(',').enumerate() {
                let wide = if declaration.contains('*') {
                    assert!(field.contains('*'), "{declaration}");
                    true
                } else {
                    declaration.starts_with("i64")
                };
                let width = if wide { 8 } else { 4 };
                size = size.next_multiple_of(width) + width;
                assert!(index == 0 || !field.is_empty());
            }
        }
        size.next_multiple_of(8)
    }

    #[test]
    fn structures_are_as_long_as_their_sources_say() {
        let pairs = [
            (Source::Pointwise, "ConvParameters", size_of::<ConvParameters>()),
            (Source::Pointwise, "NormParameters", size_of::<NormParameters>()),
            (Source::Pointwise, "GeluParameters", size_of::<GeluParameters>()),
            (Source::Inner, "InnerParameters", size_of::<InnerParameters>()),
            (Source::Projections, "ProjectionParameters", size_of::<ProjectionParameters>()),
            (Source::Residual, "ResidualParameters", size_of::<ResidualParameters>()),
            (Source::CrossEntropy, "CrossEntropyParameters", size_of::<CrossEntropyParameters>()),
            (Source::Sums, "ColumnParameters", size_of::<ColumnParameters>()),
            (Source::MlstmPrecise, "PreciseParameters", size_of::<crate::precise::PreciseParameters>()),
        ];
        for (source, name, size) in pairs {
            assert_eq!(size_in_source(source, name), size, "{name}");
        }
    }

    #[test]
    fn every_launch_names_a_kernel_and_covers_every_token() {
        for backward in [false, true] {
            let all = [
                (Source::Pointwise, ConvParameters::launch(3, 130, 1536, backward)),
                (Source::Pointwise, NormParameters::launch(390, 4, backward)),
                (Source::Pointwise, GeluParameters::launch(390, 1024, backward)),
                (Source::Inner, InnerParameters::launch(3, 130, 1536, backward)),
                (Source::Residual, ResidualParameters::launch(390, backward)),
                (Source::CrossEntropy, CrossEntropyParameters::launch(390, 128, backward)),
            ];
            for (source, launch) in all {
                assert!(source.kernels().contains(&launch.kernel), "{}", launch.kernel);
            }
        }
        for tokens in [1_u64, 31, 32, 33, 65_536, 1_000_003] {
            for backward in [false, true] {
                let one = u32::try_from(tokens).expect("a test's size");
                let run = InnerParameters::run(2, one, backward);
                let runs =
                    8 * InnerParameters::launch(2, one, 1536, backward).shape.grid[usize::from(backward)];
                assert!(
                    run.is_multiple_of(2)
                        && runs >= 2 * one.div_ceil(run)
                        && runs < 2 * one.div_ceil(run) + 8
                );
            }
            let launch = ResidualParameters::launch(tokens, true);
            let rows = u64::from(ResidualParameters::rows_per_block(tokens));
            assert!(
                u64::from(launch.parts) * rows >= tokens && (u64::from(launch.parts) - 1) * rows < tokens
            );
        }
    }
}
