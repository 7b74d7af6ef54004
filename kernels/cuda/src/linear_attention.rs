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
    float32: bool,
}

/// Threads of `JOINING` of the source.
const JOINING: u32 = 256;

/// Threads that a pass should have: more than that find no room on a GPU's multiprocessors beside each other. The same on every GPU,
/// so that sums are cut at the same places.
const ENOUGH_THREADS: u32 = 1 << 16;
/// Fewest tokens of a segment: below, what lies at its borders costs more than it.
const SHORTEST_SEGMENT: u32 = 64;

/// How each sequence is cut, so that a GPU has work for all its multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// How many.
    pub count: u32,
    /// Tokens of all but the last.
    pub tokens: u32,
}

/// A pass over the sequence, or over all segments of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearAttentionPass {
    /// What each segment makes of a state of zeros.
    States,
    /// The states at all borders, of those.
    JoinStates,
    /// Outputs and the last state.
    Forward,
    /// Gradient of the queries.
    Queries,
    /// What each segment makes of a state without a gradient.
    StateGradients,
    /// The gradients of the states at all borders, of those.
    JoinGradients,
    /// Gradients of keys, decays and bonus, after that of the queries.
    Keys,
    /// Gradients of values and of the first state.
    Values,
}

impl LinearAttentionPass {
    fn kernel(self) -> &'static str {
        match self {
            Self::States => "linear_attention_states",
            Self::JoinStates => "linear_attention_join_states",
            Self::StateGradients => "linear_attention_state_gradients",
            Self::JoinGradients => "linear_attention_join_gradients",
            Self::Forward => "linear_attention_forward",
            Self::Queries => "linear_attention_queries",
            Self::Keys => "linear_attention_keys",
            Self::Values => "linear_attention_values",
        }
    }

    /// Whether only what is cut into segments needs it.
    #[must_use]
    pub fn is_of_borders(self) -> bool {
        matches!(self, Self::States | Self::JoinStates | Self::StateGradients | Self::JoinGradients)
    }

    /// Whether sums go over keys, so that threads own values.
    fn is_over_keys(self) -> bool {
        !matches!(self, Self::Queries | Self::Keys)
    }
}

impl LinearAttentionSizes {
    /// For heads of so many keys and values, each a power of two from 16 to 512; `None` for others, for which there is no kernel.
    /// `bonus`: the state is read before the update, and the current step by a bonus (RWKV). Queries, keys, values and outputs are
    /// float32 ([`in_bf16`](Self::in_bf16): bf16).
    #[must_use]
    pub fn new(key: u32, value: u32, bonus: bool) -> Option<Self> {
        let known = |size: u32| size.is_power_of_two() && (16..=512).contains(&size);
        (known(key) && known(value)).then_some(Self { key, value, bonus, float32: true })
    }

    /// The same with queries, keys, values and outputs in bf16.
    #[must_use]
    pub fn in_bf16(self) -> Self {
        Self { float32: false, ..self }
    }

    /// What `linear_attention.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![
            ("KEYS", self.key),
            ("VALUES", self.value),
            ("BONUS", self.bonus.into()),
            ("FLOAT32", self.float32.into()),
        ]
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::linear_attention(architecture, self)
    }

    /// How `batch` sequences of `tokens` and `heads` are cut.
    #[must_use]
    pub fn segments(self, batch: u32, tokens: u32, heads: u32) -> Segments {
        let whole = self.launch(LinearAttentionPass::Forward, batch, heads, 1).shape;
        let threads = whole.grid.iter().fold(whole.threads, |product, size| product.saturating_mul(*size));
        let wanted = (ENOUGH_THREADS / threads.max(1)).clamp(1, (tokens / SHORTEST_SEGMENT).max(1));
        let each = tokens.div_ceil(wanted).next_multiple_of(STEPS);
        Segments { count: tokens.div_ceil(each).max(1), tokens: each }
    }

    /// One pass over `batch` sequences of `heads` heads in so many segments: blocks and memory as `Layout` of the source has
    /// them.
    #[must_use]
    pub fn launch(self, pass: LinearAttentionPass, batch: u32, heads: u32, segments: u32) -> LayerLaunch {
        use LinearAttentionPass as Pass;
        if matches!(pass, Pass::JoinStates | Pass::JoinGradients) {
            let grid = [(self.key * self.value).div_ceil(JOINING), heads, batch];
            let shape = LaunchShape { grid, threads: JOINING, shared_bytes: 0 };
            return LayerLaunch { kernel: pass.kernel(), shape, parts: 0 };
        }
        let over_keys = pass.is_over_keys();
        let (contracted, owned) = if over_keys { (self.key, self.value) } else { (self.value, self.key) };
        let lanes = (contracted / 16).clamp(4, 32);
        let threads = (owned / OWN * lanes).clamp(32, 128);
        let block = threads / lanes * OWN;
        let element = if self.float32 { 4 } else { 2 };
        // Decays stand along the keys, of which the passes over keys read all.
        let decays = 4 * if over_keys { contracted } else { block };
        let step = match pass {
            Pass::Forward | Pass::Values | Pass::Queries => decays + element * (2 * contracted + block),
            Pass::Keys => decays + element * (2 * contracted + 2 * block) + 4 * block,
            Pass::States | Pass::StateGradients | Pass::JoinStates | Pass::JoinGradients => {
                decays + element * (contracted + block)
            }
        };
        let shared_bytes = 2 * STEPS * step;
        let grid = [owned.div_ceil(block), heads, batch.saturating_mul(segments)];
        LayerLaunch { kernel: pass.kernel(), shape: LaunchShape { grid, threads, shared_bytes }, parts: 0 }
    }
}

/// `LinearAttentionParameters` of `linear_attention.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "linear_attention.cu says it")]
pub struct LinearAttentionParameters {
    pub tokens: i32,
    pub heads: i32,
    pub segments: i32,
    pub segment_tokens: i32,
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
    pub states: u64,
    pub state_gradients: u64,
    pub products: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSES: [LinearAttentionPass; 8] = [
        LinearAttentionPass::States,
        LinearAttentionPass::JoinStates,
        LinearAttentionPass::Forward,
        LinearAttentionPass::Queries,
        LinearAttentionPass::StateGradients,
        LinearAttentionPass::JoinGradients,
        LinearAttentionPass::Keys,
        LinearAttentionPass::Values,
    ];

    #[test]
    fn every_size_fits_the_smallest_multiprocessor() {
        assert_eq!(size_of::<LinearAttentionParameters>(), 24 + 20 * 8);
        let powers = [16, 32, 64, 128, 256, 512];
        for (key, value) in powers.into_iter().flat_map(|key| powers.map(|value| (key, value))) {
            let sizes = LinearAttentionSizes::new(key, value, false).expect("a size there is a kernel for");
            for pass in PASSES {
                let launch = sizes.launch(pass, 3, 5, 1);
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
        let forward = sizes.launch(LinearAttentionPass::Forward, 2, 4, 1).shape;
        assert_eq!((forward.grid, forward.threads), ([4, 4, 2], 128), "64 of 256 columns in a block");
        let small = LinearAttentionSizes::new(16, 16, false).expect("a size there is a kernel for");
        assert_eq!(small.launch(LinearAttentionPass::Keys, 1, 1, 1).shape.threads, 32);
    }

    #[test]
    fn segments_cover_every_token_and_none_is_empty() {
        for (key, value) in [(16, 16), (64, 64), (128, 256), (512, 512)] {
            let sizes = LinearAttentionSizes::new(key, value, true).expect("a size there is a kernel for");
            for (batch, heads) in [(1, 1), (5, 16), (32, 2), (600, 16)] {
                for tokens in [1, 63, 64, 65, 127, 128, 129, 1000, 2048, 65_536] {
                    let Segments { count, tokens: each } = sizes.segments(batch, tokens, heads);
                    assert!(count >= 1 && (count - 1) * each < tokens && count * each >= tokens);
                    assert!(count == 1 || each >= SHORTEST_SEGMENT);
                }
            }
        }
        let rwkv = LinearAttentionSizes::new(64, 64, true).expect("a size there is a kernel for");
        assert_eq!(rwkv.segments(5, 2048, 16), Segments { count: 12, tokens: 176 });
        assert_eq!(rwkv.segments(5, 1, 16).count, 1, "a step of generation");
        assert_eq!(rwkv.segments(128, 2048, 16).count, 1, "enough rows");
        assert_eq!(rwkv.launch(LinearAttentionPass::Forward, 5, 16, 12).shape.grid, [1, 16, 60]);
    }
}
