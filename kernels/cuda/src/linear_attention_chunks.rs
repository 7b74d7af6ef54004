//! How gated linear attention in chunks is called: `linear_attention_chunks.cuh` and the sources that include it.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::source::Source;
use crate::{Architecture, Specialization};

/// Tokens of a chunk: `CHUNK` of the sources.
pub const CHUNK: u32 = 64;
/// Bytes of a chunk's scores in bf16: `SCORES_BYTES` of the sources.
const SCORES_BYTES: u32 = CHUNK * CHUNK * 2;
/// Bytes of the sums of 64 keys, as the kernels of the states have them.
const STATE_SUMS_BYTES: u32 = CHUNK * (64 + 4) * 4;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearAttentionChunkSizes {
    key: u32,
    value: u32,
    bonus: bool,
}

/// A kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearAttentionChunkPass {
    /// Sums of decays that are given by token.
    Sums,
    /// States that enter chunks, and the last.
    States,
    /// Outputs and scores.
    Outputs,
    /// Gradients of the states that leave chunks, and of the first.
    StateGradients,
    /// Gradients of queries, keys, decays and bonus.
    Keys,
    /// Gradients of values.
    Values,
}

impl LinearAttentionChunkPass {
    fn source(self) -> Source {
        match self {
            Self::Sums | Self::States | Self::StateGradients => Source::LinearAttentionChunkStates,
            Self::Outputs | Self::Values => Source::LinearAttentionChunkResults,
            Self::Keys => Source::LinearAttentionChunkGradients,
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Self::Sums => "linear_attention_chunk_sums",
            Self::States => "linear_attention_chunk_states",
            Self::Outputs => "linear_attention_chunk_outputs",
            Self::StateGradients => "linear_attention_chunk_state_gradients",
            Self::Keys => "linear_attention_chunk_keys",
            Self::Values => "linear_attention_chunk_values",
        }
    }
}

impl LinearAttentionChunkSizes {
    /// For heads of 64 keys and values and, without a bonus, of 128 keys and 128 or 256 values; `None` for others, which were never
    /// checked on a GPU. `bonus`: the state is read before the update, and the current step by a bonus (RWKV).
    #[must_use]
    pub fn new(key: u32, value: u32, bonus: bool) -> Option<Self> {
        let known = matches!((key, value, bonus), (64, 64, _) | (128, 128 | 256, false));
        known.then_some(Self { key, value, bonus })
    }

    /// What the sources are compiled with.
    fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("KEYS", self.key), ("VALUES", self.value), ("BONUS", self.bonus.into())]
    }

    /// What to compile for a pass.
    #[must_use]
    pub fn specialization(
        self,
        pass: LinearAttentionChunkPass,
        architecture: Architecture,
    ) -> Specialization {
        Specialization::of_source(pass.source(), architecture, self.defines())
    }

    /// What to compile for all passes.
    #[must_use]
    pub fn specializations(self, architecture: Architecture) -> [Specialization; 3] {
        Source::LINEAR_ATTENTION_CHUNKS
            .map(|source| Specialization::of_source(source, architecture, self.defines()))
    }

    /// One kernel over `batch` sequences of `heads` heads and `chunks` chunks.
    #[must_use]
    pub fn launch(self, pass: LinearAttentionChunkPass, batch: u32, heads: u32, chunks: u32) -> LayerLaunch {
        use LinearAttentionChunkPass as Pass;
        let tokens_bytes = CHUNK * self.key * 2;
        let sums_bytes = CHUNK * (self.key + 4) * 4;
        let stage = self.key * 128 + CHUNK * 128;
        let (blocks, threads, shared_bytes) = match pass {
            Pass::Sums => (chunks, self.key, 0),
            Pass::States | Pass::StateGradients => {
                // `VALUE_TILE` and `STATE_STAGE` of linear_attention_chunk_states.cu.
                let values = self.value.min(128);
                let stage = CHUNK * (64 + values) * 2;
                (self.key / 64 * (self.value / values), 2 * values, 2 * stage + STATE_SUMS_BYTES)
            }
            Pass::Outputs => (chunks, 128, SCORES_BYTES + (2 * tokens_bytes + sums_bytes).max(2 * stage)),
            Pass::Values => (chunks, 128, SCORES_BYTES + (tokens_bytes + sums_bytes).max(2 * stage)),
            Pass::Keys => {
                (chunks, 4 * self.key, SCORES_BYTES + (2 * tokens_bytes + sums_bytes).max(2 * stage))
            }
        };
        let shape = LaunchShape { grid: [blocks, heads, batch], threads, shared_bytes };
        LayerLaunch { kernel: pass.kernel(), shape, parts: 0 }
    }
}

/// `LinearAttentionChunkParameters` of `linear_attention_chunks.cuh`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "linear_attention_chunks.cuh says it")]
pub struct LinearAttentionChunkParameters {
    pub tokens: i32,
    pub heads: i32,
    pub chunks: i32,
    pub token_decay: i32,
    pub scale: f32,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub log_decay: u64,
    pub bonus: u64,
    pub resets: u64,
    pub initial: u64,
    pub output: u64,
    pub last: u64,
    pub sums: u64,
    pub states: u64,
    pub scores: u64,
    pub output_gradient: u64,
    pub last_gradient: u64,
    pub state_gradients: u64,
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

    const PASSES: [LinearAttentionChunkPass; 6] = [
        LinearAttentionChunkPass::Sums,
        LinearAttentionChunkPass::States,
        LinearAttentionChunkPass::Outputs,
        LinearAttentionChunkPass::StateGradients,
        LinearAttentionChunkPass::Keys,
        LinearAttentionChunkPass::Values,
    ];

    #[test]
    fn every_size_fits_the_smallest_multiprocessor() {
        assert_eq!(size_of::<LinearAttentionChunkParameters>(), 24 + 21 * 8);
        for (key, value) in [(64, 64), (128, 128), (128, 256)] {
            let sizes =
                LinearAttentionChunkSizes::new(key, value, false).expect("a size there is a kernel for");
            for pass in PASSES {
                let launch = sizes.launch(pass, 3, 5, 7);
                // Of 99 KiB; what the kernel of the keys has beside this is at most 7 KiB.
                assert!(launch.shape.shared_bytes <= 91 * 1024, "{key} x {value}: {launch:?}");
                assert_eq!(launch.shape.grid[1..], [5, 3]);
                let kernels = sizes.specialization(pass, Architecture::Sm80).source.kernels();
                assert!(kernels.contains(&launch.kernel));
            }
        }
        for (key, value) in [(32, 64), (256, 256), (64, 128), (128, 96), (128, 128)] {
            assert_eq!(LinearAttentionChunkSizes::new(key, value, true), None);
        }
    }
}
