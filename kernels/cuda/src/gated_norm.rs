//! How norms of heads with the gate behind them are called: `gated_norm.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a warp, and warps of a block: `WARP` and `WARPS` of the source.
const WARP: u32 = 32;
const WARPS: u32 = 4;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GatedNormForm {
    head: u32,
    rms: bool,
    float32: bool,
    float32_input: bool,
}

impl GatedNormForm {
    /// For heads of `head` numbers, a power of two from 16 to 1024; `None` for others, for which there is no kernel. `rms`: by the root
    /// of the mean square, rather than a layer norm. `float32`: gates and outputs are float32, rather than bf16; `float32_input`:
    /// likewise what is normed.
    #[must_use]
    pub fn new(head: u32, rms: bool, [float32, float32_input]: [bool; 2]) -> Option<Self> {
        let known = head.is_power_of_two() && (16..=1024).contains(&head);
        known.then_some(Self { head, rms, float32, float32_input })
    }

    /// What `gated_norm.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![
            ("HEAD", self.head),
            ("RMS", self.rms.into()),
            ("FLOAT32", self.float32.into()),
            ("FLOAT32_INPUT", self.float32_input.into()),
        ]
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::gated_norm(architecture, self)
    }

    /// Warps that the heads of a token take, some of which have several.
    fn groups(self, heads: u32) -> u32 {
        heads.div_ceil((WARP / (self.head / 4).min(WARP)).max(1))
    }

    /// Tokens that a warp of the backward pass walks over: some four thousand warps in all.
    #[must_use]
    pub fn tokens_per_warp(self, tokens: u64, heads: u32) -> u32 {
        let wanted = (tokens * u64::from(self.groups(heads)) / 4096).clamp(1, 64);
        u32::try_from(wanted).unwrap_or(64)
    }

    /// The forward or the backward pass. A row of the backward pass's partial sums holds the weights' and the biases', 2 · H · E.
    #[must_use]
    pub fn launch(self, tokens: u64, heads: u32, backward: bool) -> LayerLaunch {
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (kernel, grid, parts) = if backward {
            let slots = narrow(tokens.div_ceil(self.tokens_per_warp(tokens, heads).into()));
            let blocks = slots.div_ceil(WARPS);
            ("gated_norm_backward", [blocks, self.groups(heads), 1], blocks.saturating_mul(WARPS))
        } else {
            let warps = tokens * u64::from(self.groups(heads));
            ("gated_norm", [narrow(warps.div_ceil(WARPS.into())), 1, 1], 0)
        };
        LayerLaunch { kernel, shape: LaunchShape { grid, threads: WARPS * WARP, shared_bytes: 0 }, parts }
    }
}

/// `GatedNormParameters` of `gated_norm.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "gated_norm.cu says it")]
pub struct GatedNormParameters {
    pub tokens: i64,
    pub heads: i32,
    pub tokens_per_warp: i32,
    pub epsilon: f32,
    pub weight_stride: i32,
    pub gate_stride: i64,
    pub input: u64,
    pub weight: u64,
    pub bias: u64,
    pub gate: u64,
    pub output: u64,
    pub output_gradient: u64,
    pub input_gradient: u64,
    pub gate_gradient: u64,
    pub partial: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_every_head_of_every_token() {
        assert_eq!(size_of::<GatedNormParameters>(), 32 + 9 * 8);
        let form =
            |head| GatedNormForm::new(head, true, [false, false]).expect("a size there is a kernel for");
        // Two heads of 64 in a warp, one of 256.
        assert_eq!(form(64).launch(33, 5, false).shape.grid, [(33 * 3_u32).div_ceil(4), 1, 1]);
        assert_eq!(form(256).launch(33, 5, false).shape.grid, [(33 * 5_u32).div_ceil(4), 1, 1]);
        for (head, tokens, heads) in [(16, 1, 1), (64, 333, 16), (128, 20_480, 8), (1024, 70_000, 1)] {
            let launch = form(head).launch(tokens, heads, true);
            let each = form(head).tokens_per_warp(tokens, heads);
            assert!(u64::from(launch.parts) * u64::from(each) >= tokens);
            assert_eq!(launch.shape.grid[0] * WARPS, launch.parts);
            let kernels = form(head).specialization(Architecture::Sm80).source.kernels();
            assert!(kernels.contains(&launch.kernel));
        }
        for head in [0, 8, 96, 2048] {
            assert_eq!(GatedNormForm::new(head, false, [true, true]), None);
        }
    }
}
