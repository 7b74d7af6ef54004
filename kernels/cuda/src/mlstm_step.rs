//! How one token of an mLSTM block, from its up-projection to its cell's output, is called: `mlstm_step.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block: `THREADS` of the source.
const THREADS: u32 = 256;

/// Columns of a head's matrix that a block may own, the fewest bytes a block and row last.
const COLUMNS: [u32; 5] = [128, 64, 32, 16, 8];

/// Blocks that keep an H100 busy (docs/benchmarks/gpu/inference.md): 16 columns were the fastest for one sequence of four heads of
/// 384, 32 for four of 1024.
const ENOUGH_BLOCKS: u64 = 96;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepSizes {
    heads: u32,
    head: u32,
    columns: u32,
}

impl StepSizes {
    /// For so many heads of `head` numbers each, and so many sequences; `None` where there is no kernel: no heads, or heads
    /// that are no multiple of 8, or wider than 1280.
    ///
    /// A block owns as many columns as leave enough blocks: a row of it is read in pieces of four bytes a column, and
    /// pieces of less than 64 bytes are half thrown away.
    #[must_use]
    pub fn new(heads: u32, head: u32, sequences: u32) -> Option<Self> {
        if !(8..=1280).contains(&head) || !head.is_multiple_of(8) || heads == 0 {
            return None;
        }
        let whole = |columns: &u32| head.is_multiple_of(*columns);
        let enough = |columns: &u32| {
            u64::from(heads) * u64::from(sequences) * u64::from(head / columns) >= ENOUGH_BLOCKS
        };
        let fits: Vec<u32> = COLUMNS.into_iter().filter(whole).collect();
        let narrowest = fits.iter().rev().find(|&&columns| columns >= 16).or(fits.last()).copied()?;
        let columns = fits.into_iter().find(enough).map_or(narrowest, |columns| columns.max(narrowest));
        Some(Self { heads, head, columns })
    }

    /// What `mlstm_step.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("HEADS", self.heads), ("HEAD", self.head), ("COLUMNS", self.columns)]
    }

    /// A block a piece of a head of a sequence.
    #[must_use]
    pub fn launch(self, batch: u32) -> LayerLaunch {
        let grid = [self.head / self.columns, self.heads, batch];
        let shape = LaunchShape { grid, threads: THREADS, shared_bytes: 0 };
        LayerLaunch { kernel: "mlstm_step", shape, parts: 0 }
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::mlstm_step(architecture, self)
    }
}

/// `StepParameters` of `mlstm_step.cu`, field by field; addresses are device addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "mlstm_step.cu says it")]
pub struct StepParameters {
    pub key_scale: f32,
    pub epsilon: f32,
    pub input_stride: i64,
    pub input: u64,
    pub conv_weight: u64,
    pub conv_bias: u64,
    pub query_weight: u64,
    pub key_weight: u64,
    pub value_weight: u64,
    pub gate_weight: u64,
    pub gate_bias: u64,
    pub matrix: u64,
    pub normalizer: u64,
    pub maximum: u64,
    pub window: u64,
    pub arrived: u64,
    pub branch: u64,
    pub output: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_heads_are_cut_into_more_blocks() {
        assert_eq!(size_of::<StepParameters>(), 8 + 8 + 15 * 8);
        let columns = |head, sequences| StepSizes::new(4, head, sequences).map(|sizes| sizes.columns);
        assert_eq!(columns(384, 1), Some(16));
        assert_eq!(columns(384, 8), Some(128));
        assert_eq!(columns(384, 128), Some(128));
        assert_eq!(columns(1024, 1), Some(32));
        assert_eq!(columns(24, 1), Some(8));
        assert_eq!(columns(12, 1), None);
        assert_eq!(columns(1288, 1), None);
    }

    #[test]
    fn a_launch_covers_every_column_of_every_head() {
        let launch = StepSizes::new(4, 384, 1).expect("a size there is a kernel for").launch(1);
        assert_eq!(launch.shape.grid, [24, 4, 1]);
    }
}
