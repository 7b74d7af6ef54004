//! What a model remembers between two calls: each block's state, and how far the text has come.

use tch::Tensor;

use super::BlockState;
use crate::error::Result;

/// The name under which positions are saved.
const POSITIONS: &str = "positions";

/// State of a whole model.
#[derive(Debug, Default)]
pub struct ModelState {
    /// In block order.
    pub blocks: Vec<BlockState>,
    /// `(B,)`, Int64: the next token's place in its document. `None` for models that know no positions.
    pub positions_B: Option<Tensor>,
}

impl ModelState {
    /// The same values without their history.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            blocks: self.blocks.iter().map(BlockState::detach).collect(),
            positions_B: self.positions_B.as_ref().map(Tensor::detach),
        }
    }

    /// A copy that shares no memory with this one.
    pub(super) fn copy(&self) -> Result<Self> {
        let positions_B = match &self.positions_B {
            // Possibly one number seen by all sequences: each has its own place in the copy.
            Some(positions_B) => Some(positions_B.f_contiguous()?.f_add_scalar(0)?),
            None => None,
        };
        Ok(Self { blocks: self.blocks.iter().map(BlockState::copy).collect::<Result<_>>()?, positions_B })
    }

    /// Takes on the values of another state of the same model and batch, where these tensors lie.
    pub(super) fn overwrite(&self, with: &Self) -> Result<()> {
        for (own, other) in self.blocks.iter().zip(&with.blocks) {
            own.overwrite(other)?;
        }
        if let (Some(own), Some(other)) = (&self.positions_B, &with.positions_B) {
            own.shallow_clone().f_copy_(other)?;
        }
        Ok(())
    }

    /// The states of these sequences of the batch, by their places (Int64).
    pub(super) fn select(&self, places: &Tensor) -> Result<Self> {
        let positions_B = match &self.positions_B {
            Some(positions_B) => Some(positions_B.f_index_select(0, places)?),
            None => None,
        };
        let blocks = self.blocks.iter().map(|block| block.select(places)).collect::<Result<_>>()?;
        Ok(Self { blocks, positions_B })
    }

    /// Every tensor with a name, for saving: `blocks.0.mlstm.matrix`.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let named =
                |(name, tensor): (&str, &Tensor)| (format!("blocks.{index}.{name}"), tensor.shallow_clone());
            all.extend(block.iter().map(named));
        }
        all.extend(self.positions_B.as_ref().map(|tensor| (POSITIONS.to_owned(), tensor.shallow_clone())));
        all
    }

    /// The state whose [`tensors`](Self::tensors) these are; `None` when there is nothing of one of the blocks.
    #[must_use]
    pub fn from_tensors(tensors: &[(String, Tensor)], blocks: usize) -> Option<Self> {
        let block = |index: usize| {
            let prefix = format!("blocks.{index}.");
            let own = tensors.iter().filter_map(|(name, tensor)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), tensor.shallow_clone()))
            });
            let own: Vec<_> = own.collect();
            (!own.is_empty()).then(|| BlockState::from_named(own))
        };
        let positions = tensors.iter().find(|(name, _)| name == POSITIONS);
        Some(Self {
            blocks: (0..blocks).map(block).collect::<Option<_>>()?,
            positions_B: positions.map(|(_, tensor)| tensor.shallow_clone()),
        })
    }
}
