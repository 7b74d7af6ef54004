//! The order of launches, and how many blocks each has.

use super::MlstmPlan;
use crate::driver::LaunchShape;
use crate::{MlstmSizes, Source};

/// One kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The file that holds the kernel.
    pub source: Source,
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks, threads, shared memory.
    pub shape: LaunchShape,
}

impl MlstmPlan {
    /// The launches of the forward pass, in order.
    #[must_use]
    pub fn forward(&self) -> Vec<Launch> {
        let (.., row_tiles) = self.tiles();
        vec![
            self.by_token("mlstm_gates_local"),
            self.by_token("mlstm_gates_carry"),
            self.by_state("mlstm_states"),
            self.by_chunk(Source::MlstmScores, "mlstm_scores", row_tiles * (row_tiles + 1) / 2),
            self.by_chunk(Source::MlstmOutputs, "mlstm_output", row_tiles * self.tiles().1),
        ]
    }

    /// The launches of the backward pass, in order.
    #[must_use]
    pub fn backward(&self) -> Vec<Launch> {
        let (key_tiles, value_tiles, row_tiles) = self.tiles();
        let triangle = row_tiles * (row_tiles + 1) / 2;
        let tokens = self.batch_heads() * self.chunks() * u64::from(self.sizes.chunk);
        let prepare = LaunchShape { grid: [narrow(tokens.div_ceil(8)), 1, 1], threads: 256, shared_bytes: 0 };
        let prepare = if self.divided {
            self.by_token("mlstm_backward_prepare_dotted")
        } else {
            Launch { source: Source::MlstmGates, kernel: "mlstm_backward_prepare", shape: prepare }
        };
        let mut all = Vec::new();
        if !self.keep {
            all.push(self.by_state("mlstm_states"));
            all.push(self.by_chunk(Source::MlstmScores, "mlstm_scores", triangle));
        }
        all.extend([
            prepare,
            self.by_state("mlstm_state_gradients"),
            self.by_chunk(Source::MlstmScores, "mlstm_score_gradients", triangle),
            self.by_chunk(Source::MlstmOutputs, "mlstm_value_gradient", row_tiles * value_tiles),
            self.by_chunk(Source::MlstmOutputs, "mlstm_query_gradient", row_tiles * key_tiles),
            self.by_chunk(Source::MlstmOutputs, "mlstm_key_gradient", row_tiles * key_tiles),
            self.by_token("mlstm_gate_gradients"),
        ]);
        all
    }

    fn by_token(&self, kernel: &'static str) -> Launch {
        let grid = [narrow(self.chunks()), narrow(self.batch_heads()), 1];
        let shape = LaunchShape { grid, threads: self.sizes.chunk, shared_bytes: 0 };
        Launch { source: Source::MlstmGates, kernel, shape }
    }

    /// A ring of two operand tiles a stage, 128 by `block_k` bf16. Those of the copy engine lie swizzled, on a boundary of
    /// 1024 bytes, with two barriers each.
    fn ring_bytes(&self, extra: u32) -> u32 {
        let (block_k, stages) = MlstmSizes::tiles(self.architecture);
        let bulk = self.architecture.has_wgmma();
        let (before, barriers) = if bulk { (1024, 16) } else { (0, 0) };
        before + stages * (2 * 128 * block_k * 2 + extra * block_k + barriers)
    }

    fn by_state(&self, kernel: &'static str) -> Launch {
        let (key_tiles, value_tiles, _) = self.tiles();
        let grid = [narrow(key_tiles * value_tiles), narrow(self.batch_heads()), 1];
        // Beside the operands, two bf16 a token: its weight and the normalizer's column.
        let shape = LaunchShape { grid, threads: 128, shared_bytes: self.ring_bytes(4) };
        Launch { source: Source::MlstmStates, kernel, shape }
    }

    fn by_chunk(&self, source: Source, kernel: &'static str, tiles: u64) -> Launch {
        let grid = [narrow(tiles), narrow(self.chunks()), narrow(self.batch_heads())];
        Launch { source, kernel, shape: LaunchShape { grid, threads: 128, shared_bytes: self.ring_bytes(0) } }
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
