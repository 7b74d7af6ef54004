//! How the float32 mLSTM over short sequences is called: `mlstm_short.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Tokens of the longest sequence.
const LONGEST: u32 = 64;

/// Threads of a block: `THREADS` and `BACKWARD_THREADS` of the source.
const THREADS: [u32; 2] = [128, 256];

/// Bytes of shared memory that the source declares itself, at most.
const STATIC_BYTES: u32 = 4096;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShortSizes {
    length: u32,
    key: u32,
    value: u32,
}

impl ShortSizes {
    /// For sequences of so many tokens and heads of `key` and `value` numbers; `None` where there is no kernel: more than 64
    /// tokens, heads that are no multiple of 8, or more shared memory than a block of this GPU has.
    #[must_use]
    pub fn new(architecture: Architecture, tokens: u32, key: u32, value: u32) -> Option<Self> {
        let known = (1..=LONGEST).contains(&tokens);
        let heads = [key, value].iter().all(|&head| head.is_multiple_of(8) && (8..=256).contains(&head));
        let sizes = Self { length: tokens.next_multiple_of(8), key, value };
        let room = (architecture.shared_kibibytes() - 1) * 1024;
        (known && heads && sizes.backward_bytes() + STATIC_BYTES <= room).then_some(sizes)
    }

    /// What `mlstm_short.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("LENGTH", self.length), ("KEY", self.key), ("VALUE", self.value)]
    }

    /// Rows of queries and keys, of values, and of scores, each four floats longer than its numbers.
    fn row_bytes(self) -> [u32; 3] {
        [self.key, self.value, self.length].map(|width| 4 * self.length * (width + 4))
    }

    fn forward_bytes(self) -> u32 {
        let [key, value, scores] = self.row_bytes();
        2 * key + value + scores
    }

    fn backward_bytes(self) -> u32 {
        let [key, value, scores] = self.row_bytes();
        2 * (key + value + scores)
    }

    /// The forward or the backward pass: a block a head of a sequence.
    #[must_use]
    pub fn launch(self, batch: u32, heads: u32, backward: bool) -> LayerLaunch {
        let (kernel, shared_bytes) = match backward {
            false => ("mlstm_short", self.forward_bytes()),
            true => ("mlstm_short_backward", self.backward_bytes()),
        };
        let shape =
            LaunchShape { grid: [heads, batch, 1], threads: THREADS[usize::from(backward)], shared_bytes };
        LayerLaunch { kernel, shape, parts: 0 }
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::short(architecture, self)
    }
}

/// `ShortParameters` of `mlstm_short.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "mlstm_short.cu says it")]
pub struct ShortParameters {
    pub heads: i32,
    pub tokens: i32,
    pub key_scale: f32,
    pub epsilon: f32,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub input_gate: u64,
    pub forget_gate: u64,
    pub resets: u64,
    pub output: u64,
    pub norm: u64,
    pub inverse_denominator: u64,
    pub output_gradient: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub input_gate_gradient: u64,
    pub forget_gate_gradient: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_end_where_a_block_has_no_more_memory() {
        assert_eq!(size_of::<ShortParameters>(), 16 + 15 * 8);
        let fits = |architecture, tokens, head| ShortSizes::new(architecture, tokens, head, head).is_some();
        assert!(fits(Architecture::Sm86, 40, 64) && !fits(Architecture::Sm86, 64, 64));
        assert!(fits(Architecture::Sm80, 64, 64) && !fits(Architecture::Sm80, 64, 128));
        assert!(fits(Architecture::Sm90a, 64, 128) && !fits(Architecture::Sm90a, 64, 256));
        assert!(!fits(Architecture::Sm90a, 65, 64) && !fits(Architecture::Sm90a, 0, 64));
        assert!(!fits(Architecture::Sm90a, 40, 12) && fits(Architecture::Sm90a, 1, 8));
    }

    #[test]
    fn a_launch_is_as_large_as_its_rows() {
        let sizes = ShortSizes::new(Architecture::Sm90a, 37, 64, 32).expect("a size there is a kernel for");
        let launch = sizes.launch(256, 4, true);
        assert_eq!(launch.shape.grid, [4, 256, 1]);
        assert_eq!(launch.shape.shared_bytes, 4 * 40 * 2 * (68 + 36 + 44));
        assert_eq!(sizes.launch(1, 1, false).shape.shared_bytes, 4 * 40 * (2 * 68 + 36 + 44));
    }
}
