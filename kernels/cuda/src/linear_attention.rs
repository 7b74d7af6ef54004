//! How gated linear attention is called: `linear_attention.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Steps read ahead together: `STEPS` of the source, of which two such pieces are in memory.
const STEPS: u32 = 8;
/// Columns or rows of the state that a thread owns: `OWN` of the source.
const OWN: u32 = 4;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearAttentionSizes {
    key: u32,
    value: u32,
    bonus: bool,
}

/// A pass over the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearAttentionPass {
    /// Outputs and the last state.
    Forward,
    /// Gradient of the queries.
    Queries,
    /// Gradients of keys, decays and bonus, after that of the queries.
    Keys,
    /// Gradients of values and of the first state.
    Values,
}

impl LinearAttentionPass {
    fn kernel(self) -> &'static str {
        match self {
            Self::Forward => "linear_attention_forward",
            Self::Queries => "linear_attention_queries",
            Self::Keys => "linear_attention_keys",
            Self::Values => "linear_attention_values",
        }
    }

    /// Whether sums go over keys, so that threads own values.
    fn is_over_keys(self) -> bool {
        matches!(self, Self::Forward | Self::Values)
    }
}

impl LinearAttentionSizes {
    /// For heads of so many keys and values, each a power of two from 16 to 512; `None` for others, for which there is no kernel.
    /// `bonus`: the state is read before the update, and the current step by a bonus (RWKV).
    #[must_use]
    pub fn new(key: u32, value: u32, bonus: bool) -> Option<Self> {
        let known = |size: u32| size.is_power_of_two() && (16..=512).contains(&size);
        (known(key) && known(value)).then_some(Self { key, value, bonus })
    }

    /// What `linear_attention.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("KEYS", self.key), ("VALUES", self.value), ("BONUS", self.bonus.into())]
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::linear_attention(architecture, self)
    }

    /// One pass over `batch` sequences of `heads` heads: blocks and memory as `Layout` of the source has them.
    #[must_use]
    pub fn launch(self, pass: LinearAttentionPass, batch: u32, heads: u32) -> LayerLaunch {
        let over_keys = pass.is_over_keys();
        let (contracted, owned) = if over_keys { (self.key, self.value) } else { (self.value, self.key) };
        let lanes = (contracted / 16).clamp(4, 32);
        let threads = (owned / OWN * lanes).clamp(32, 128);
        let block = threads / lanes * OWN;
        let (long, short) = match pass {
            LinearAttentionPass::Forward | LinearAttentionPass::Values => (3, 1),
            LinearAttentionPass::Queries => (2, 2),
            LinearAttentionPass::Keys => (2, 4),
        };
        let shared_bytes = 2 * STEPS * 4 * (long * contracted + short * block);
        let shape = LaunchShape { grid: [owned.div_ceil(block), heads, batch], threads, shared_bytes };
        LayerLaunch { kernel: pass.kernel(), shape, parts: 0 }
    }
}

/// `LinearAttentionParameters` of `linear_attention.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "linear_attention.cu says it")]
pub struct LinearAttentionParameters {
    pub tokens: i32,
    pub heads: i32,
    pub token_decay: i32,
    pub scale: f32,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub decay: u64,
    pub bonus: u64,
    pub resets: u64,
    pub initial: u64,
    pub output: u64,
    pub last: u64,
    pub output_gradient: u64,
    pub last_gradient: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub decay_gradient: u64,
    pub bonus_gradient: u64,
    pub initial_gradient: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSES: [LinearAttentionPass; 4] = [
        LinearAttentionPass::Forward,
        LinearAttentionPass::Queries,
        LinearAttentionPass::Keys,
        LinearAttentionPass::Values,
    ];

    #[test]
    fn every_size_fits_the_smallest_multiprocessor() {
        assert_eq!(size_of::<LinearAttentionParameters>(), 16 + 17 * 8);
        let powers = [16, 32, 64, 128, 256, 512];
        for (key, value) in powers.into_iter().flat_map(|key| powers.map(|value| (key, value))) {
            let sizes = LinearAttentionSizes::new(key, value, false).expect("a size there is a kernel for");
            for pass in PASSES {
                let launch = sizes.launch(pass, 3, 5);
                assert!(launch.shape.shared_bytes <= 98 * 1024, "{key} x {value}: {launch:?}");
                assert_eq!(launch.shape.grid[1..], [5, 3]);
                let kernels = sizes.specialization(Architecture::Sm80).source.kernels();
                assert!(kernels.contains(&launch.kernel));
            }
        }
        for (key, value) in [(8, 64), (64, 1024), (96, 64), (64, 0)] {
            assert_eq!(LinearAttentionSizes::new(key, value, true), None);
        }
    }

    #[test]
    fn blocks_cover_all_columns_and_no_warp_is_part_of_one() {
        let sizes = LinearAttentionSizes::new(128, 256, false).expect("a size there is a kernel for");
        let forward = sizes.launch(LinearAttentionPass::Forward, 2, 4).shape;
        assert_eq!((forward.grid, forward.threads), ([4, 4, 2], 128), "64 of 256 columns in a block");
        let small = LinearAttentionSizes::new(16, 16, false).expect("a size there is a kernel for");
        assert_eq!(small.launch(LinearAttentionPass::Keys, 1, 1).shape.threads, 32);
    }
}
