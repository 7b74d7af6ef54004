//! What all blocks have in common: one call, and a state by name.
//!
//! ```text
//! plain   x ─────────► Block::forward ──────► x'                 the block adds its output to the residual itself
//! fused   (x, delta) ─► FusedBlock::forward ─► (x + delta, d)     and leaves its own output to the next one's norm
//! ```
//! Kernels that add and normalize in one pass need the second form; a block may have both. A block's state is a list of
//! named tensors whose first axis is the batch, so that saving, detaching and joining are written once, here. A state
//! whose size grows with the text (a key-value cache) joins in its own way.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};
use xlstm_manifests::recipe::ComputePath;

use super::dropout::BlockDropout;
use crate::error::{Result, TrainError};

/// What one pass through a block is given besides its input.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockCall<'a> {
    /// Type of the matrix products; `None`: that of the parameters.
    pub(super) precision: Option<Kind>,
    /// The state after everything before; `None`: nothing was before.
    pub(super) state: Option<&'a BlockState>,
    /// Whether the state after the last token is used. A block may leave it out of what it returns otherwise.
    pub(super) keeps_state: bool,
    /// `(B, T)`, Bool: where a document begins and everything before is forgotten; `None`: nowhere.
    pub(super) resets_BT: Option<&'a Tensor>,
    /// `(1 or B, T)`, Int64: each token's place in its document, from 0. Only for networks that ask for it
    /// (`Parts::positional`).
    pub(super) positions_BT: Option<&'a Tensor>,
    /// What is dropped in training.
    pub(super) dropout: Option<&'a BlockDropout>,
}

impl BlockCall<'_> {
    /// The output of a branch (counted from 0) as it is added to the residual: in training some of it may be dropped.
    pub(super) fn dropped(&self, delta_BTC: Tensor, branch: u64) -> Result<Tensor> {
        match self.dropout {
            Some(dropout) => dropout.of_branch(&delta_BTC, branch),
            None => Ok(delta_BTC),
        }
    }
}

/// What goes from block to block.
#[derive(Debug)]
pub(super) struct Residual {
    /// `(B, T, C)`, in the parameters' type.
    pub(super) x_BTC: Tensor,
    /// The last block's output, which is yet to be added, `(B, T, C)`; `None` where it is added already.
    pub(super) delta_BTC: Option<Tensor>,
}

/// A residual block.
pub(super) trait Block: Debug + Send {
    /// `x` with the block's output added, and the state after the last token.
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)>;

    /// The block by fused kernels, where it has any.
    fn fused(&self) -> Option<&dyn FusedBlock> {
        None
    }

    /// States of single sequences as the state of a batch.
    fn join(&self, states: &[&BlockState]) -> Result<BlockState> {
        BlockState::concatenate(states)
    }

    /// Whether the state is larger after every token (a key-value cache).
    fn state_grows(&self) -> bool {
        false
    }

    /// Derives once what every call would derive from the parameters again: they change no more.
    fn freeze(&mut self, products: Option<Kind>) -> Result<()> {
        let _ = products;
        Ok(())
    }
}

/// A residual block by this project's kernels for GPUs.
pub(super) trait FusedBlock {
    /// The residual with what was yet to be added, and this block's output, which is left to the next block. Called only
    /// where `ComputePath` says so.
    fn forward(&self, residual: &Residual, call: &BlockCall<'_>) -> Result<(Residual, BlockState)>;

    /// What to [`step`](Self::step) in: `state`, in its own memory or another, and whatever else a step needs.
    fn step_state(&self, state: BlockState) -> Result<BlockState>;

    /// As [`forward`](Self::forward) of one token, `(B, 1, C)`, after a state that it moves on where it lies. Without
    /// gradients.
    fn step(&self, residual: &Residual, state: &BlockState) -> Result<Residual>;
}

/// A block that a checkpointed forward pass may call again from the thread that goes backward.
pub(super) type SharedBlock = Arc<Mutex<Box<dyn Block>>>;

/// The fused form of a block that has one.
pub(super) fn fused(block: &dyn Block) -> Result<&dyn FusedBlock> {
    block
        .fused()
        .ok_or_else(|| TrainError::Internal("expected a block with fused kernels, found one without".into()))
}

pub(super) fn lock(block: &Mutex<Box<dyn Block>>) -> MutexGuard<'_, Box<dyn Block>> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Residual {
    /// With nothing left to add.
    pub(super) fn new(x_BTC: Tensor) -> Self {
        Self { x_BTC, delta_BTC: None }
    }

    /// Through one block.
    pub(super) fn through(
        &self,
        block: &Mutex<Box<dyn Block>>,
        path: ComputePath,
        call: &BlockCall<'_>,
    ) -> Result<(Self, BlockState)> {
        let block = lock(block);
        if path != ComputePath::FusedGpu {
            let (x_BTC, state) = block.forward(&self.x_BTC, call)?;
            return Ok((Self::new(x_BTC), state));
        }
        fused(block.as_ref())?.forward(self, call)
    }

    /// As [`through`](Self::through), keeping the input alone for the backward pass, which computes the block again.
    pub(super) fn through_checkpointed(
        &self,
        block: &SharedBlock,
        path: ComputePath,
        call: &BlockCall<'_>,
    ) -> Result<Self> {
        let (block, precision, dropout) = (Arc::clone(block), call.precision, call.dropout.cloned());
        let copy = |tensor: Option<&Tensor>| tensor.map(Tensor::shallow_clone);
        let (resets, positions) = (copy(call.resets_BT), copy(call.positions_BT));
        let inputs: Vec<&Tensor> = std::iter::once(&self.x_BTC).chain(&self.delta_BTC).collect();
        let outputs = xlstm_bridge::autograd::checkpoint("block", &inputs, move |inputs| {
            let delta_BTC = inputs.get(1).map(Tensor::shallow_clone);
            let residual = Self { x_BTC: inputs[0].shallow_clone(), delta_BTC };
            let (resets_BT, positions_BT) = (resets.as_ref(), positions.as_ref());
            let call = BlockCall {
                precision,
                state: None,
                keeps_state: false,
                resets_BT,
                positions_BT,
                dropout: dropout.as_ref(),
            };
            let (next, _) = residual.through(&block, path, &call)?;
            // With nothing to add, a fused block's sum is its input, and an output must be a tensor of its own.
            let same = next.delta_BTC.is_some() && residual.delta_BTC.is_none();
            let x_BTC = if same { next.x_BTC.f_mul_scalar(1.0)? } else { next.x_BTC };
            Ok(std::iter::once(x_BTC).chain(next.delta_BTC).collect())
        })?;
        let mut outputs = outputs.into_iter();
        let x_BTC = outputs.next().ok_or_else(|| TrainError::Internal("a block gave no output".into()))?;
        Ok(Self { x_BTC, delta_BTC: outputs.next() })
    }
}

/// Tensors of a state under their names.
pub(super) type NamedTensors = Vec<(&'static str, Tensor)>;

/// What a block remembers between two calls: named tensors, batch first.
#[derive(Debug, Default)]
pub struct BlockState {
    tensors: Vec<(Cow<'static, str>, Tensor)>,
}

impl BlockState {
    /// A state of these tensors, `(B, …)` each.
    pub(super) fn new(tensors: impl IntoIterator<Item = (&'static str, Tensor)>) -> Self {
        Self { tensors: tensors.into_iter().map(|(name, tensor)| (Cow::Borrowed(name), tensor)).collect() }
    }

    /// As read from a file.
    pub(super) fn from_named(tensors: Vec<(String, Tensor)>) -> Self {
        Self { tensors: tensors.into_iter().map(|(name, tensor)| (Cow::Owned(name), tensor)).collect() }
    }

    /// With another tensor, which is no part of what is remembered but of the memory to step in.
    pub(super) fn with(mut self, name: &'static str, tensor: Tensor) -> Self {
        self.tensors.push((Cow::Borrowed(name), tensor));
        self
    }

    /// A tensor that the state may have.
    pub(super) fn get(&self, wanted: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(name, _)| name == wanted).map(|(_, tensor)| tensor)
    }

    /// A tensor that the state of this kind of block has.
    pub(super) fn need(&self, wanted: &str) -> Result<Tensor> {
        self.get(wanted).map(Tensor::shallow_clone).ok_or_else(|| {
            let found: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_ref()).collect();
            TrainError::Internal(format!("expected `{wanted}` in a block's state, found {found:?}"))
        })
    }

    /// All tensors with their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_ref(), tensor))
    }

    /// The same values without their history.
    pub(super) fn detach(&self) -> Self {
        let detached = |(name, tensor): &(Cow<'static, str>, Tensor)| (name.clone(), tensor.detach());
        Self { tensors: self.tensors.iter().map(detached).collect() }
    }

    /// A copy that shares no memory with this one.
    pub(super) fn copy(&self) -> Result<Self> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let mut copy = tensor.f_empty_like()?;
            copy.f_copy_(&tensor.detach())?;
            tensors.push((name.clone(), copy));
        }
        Ok(Self { tensors })
    }

    /// The states of these sequences of the batch, by their places (Int64).
    pub(super) fn select(&self, places: &Tensor) -> Result<Self> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            tensors.push((name.clone(), tensor.f_index_select(0, places)?));
        }
        Ok(Self { tensors })
    }

    /// Takes on the values of another state of the same sizes, all of whose tensors this one has, where they lie.
    pub(super) fn overwrite(&self, with: &Self) -> Result<()> {
        for (name, tensor) in &with.tensors {
            self.need(name)?.f_copy_(tensor)?;
        }
        Ok(())
    }

    /// States of one kind and of equal sizes as one, along the batch.
    pub(super) fn concatenate(states: &[&Self]) -> Result<Self> {
        let Some(first) = states.first() else { return Ok(Self::default()) };
        if states.len() == 1 {
            let same = |(name, tensor): &(Cow<'static, str>, Tensor)| (name.clone(), tensor.shallow_clone());
            return Ok(Self { tensors: first.tensors.iter().map(same).collect() });
        }
        let mut tensors = Vec::with_capacity(first.tensors.len());
        for (name, _) in &first.tensors {
            let parts = states.iter().map(|state| state.need(name)).collect::<Result<Vec<_>>>()?;
            tensors.push((name.clone(), Tensor::f_cat(&parts, 0)?));
        }
        Ok(Self { tensors })
    }
}
