//! What a model remembers between two calls: constant in size, whatever the text's length.

use tch::Tensor;
use xlstm_kernels::mlstm::MlstmState;
use xlstm_kernels::slstm::SlstmState;

/// State of one block.
#[derive(Debug)]
pub struct BlockState {
    /// The last inputs of the convolution, `(B, taps - 1, D)`; `None` without one.
    pub convolution: Option<Tensor>,
    /// The cell.
    pub cell: CellState,
}

/// State of one cell.
#[derive(Debug)]
pub enum CellState {
    /// Matrix memory.
    Mlstm(MlstmState),
    /// Scalar memories.
    Slstm(SlstmState),
}

/// State of a whole model, one entry for each block.
#[derive(Debug)]
pub struct ModelState {
    /// In block order.
    pub blocks: Vec<BlockState>,
}

impl ModelState {
    /// The same values without their history.
    #[must_use]
    pub fn detach(&self) -> Self {
        let block = |block: &BlockState| BlockState {
            convolution: block.convolution.as_ref().map(Tensor::detach),
            cell: match &block.cell {
                CellState::Mlstm(state) => CellState::Mlstm(state.detach()),
                CellState::Slstm(state) => CellState::Slstm(state.detach()),
            },
        };
        Self { blocks: self.blocks.iter().map(block).collect() }
    }

    /// Every tensor with a name, for saving.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let mut push = |name: &str, tensor: &Tensor| {
                all.push((format!("blocks.{index}.{name}"), tensor.shallow_clone()));
            };
            if let Some(convolution) = &block.convolution {
                push("convolution", convolution);
            }
            match &block.cell {
                CellState::Mlstm(state) => {
                    push("mlstm.matrix", &state.matrix);
                    push("mlstm.normalizer", &state.normalizer);
                    push("mlstm.maximum", &state.maximum);
                }
                CellState::Slstm(state) => {
                    push("slstm.hidden", &state.hidden);
                    push("slstm.cell", &state.cell);
                    push("slstm.normalizer", &state.normalizer);
                    push("slstm.maximum", &state.maximum);
                }
            }
        }
        all
    }

    /// The state whose [`tensors`](Self::tensors) these are; `None` when a block's are incomplete.
    #[must_use]
    pub fn from_tensors(tensors: &[(String, Tensor)], blocks: usize) -> Option<Self> {
        let get = |index: usize, name: &str| {
            let wanted = format!("blocks.{index}.{name}");
            tensors.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor.shallow_clone())
        };
        let block = |index: usize| {
            let cell = if let Some(matrix) = get(index, "mlstm.matrix") {
                CellState::Mlstm(MlstmState {
                    matrix,
                    normalizer: get(index, "mlstm.normalizer")?,
                    maximum: get(index, "mlstm.maximum")?,
                })
            } else {
                CellState::Slstm(SlstmState {
                    hidden: get(index, "slstm.hidden")?,
                    cell: get(index, "slstm.cell")?,
                    normalizer: get(index, "slstm.normalizer")?,
                    maximum: get(index, "slstm.maximum")?,
                })
            };
            Some(BlockState { convolution: get(index, "convolution"), cell })
        };
        Some(Self { blocks: (0..blocks).map(block).collect::<Option<_>>()? })
    }
}
