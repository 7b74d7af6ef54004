//! What ranks tell each other. One process needs none of it; process groups implement the same trait.
//!
//! Gradients are *summed* over ranks: each rank scales its loss by its share of the step's tokens, so that ranks with
//! different numbers of rows weigh as they should.

use tch::Tensor;

use crate::error::Result;

/// A bit for each thing that one rank may have to tell all others between two micro-batches.
pub mod flags {
    /// A signal asks to save and stop.
    pub const STOP: u64 = 1;
    /// Loss or gradient is not finite.
    pub const NOT_FINITE: u64 = 2;
    /// A rank failed in another way.
    pub const FAILED: u64 = 4;
}

/// Collective operations over the ranks of a run. Every rank makes the same calls in the same order.
pub trait Communicator {
    /// This rank, from 0.
    fn rank(&self) -> u64;

    /// How many there are.
    fn world_size(&self) -> u64;

    /// The flags that any rank has set.
    ///
    /// # Errors
    /// When a rank is gone or does not answer in time.
    fn any_flags(&self, flags: u64) -> Result<u64>;

    /// Sums each value over all ranks, in place.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn sum(&self, values: &mut [f64]) -> Result<()>;

    /// Copies rank 0's tensors over those of the others.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn broadcast(&self, tensors: &[Tensor]) -> Result<()>;

    /// Called before each micro-batch's backward pass; `last` when gradients are to be summed in it or after it.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn before_backward(&self, last: bool) -> Result<()>;

    /// Returns when the gradients of all parameters are sums over all ranks.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn finish_gradients(&self, parameters: &[Tensor]) -> Result<()>;

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn barrier(&self) -> Result<()>;
}

/// One process alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleProcess;

impl Communicator for SingleProcess {
    fn rank(&self) -> u64 {
        0
    }

    fn world_size(&self) -> u64 {
        1
    }

    fn any_flags(&self, flags: u64) -> Result<u64> {
        Ok(flags)
    }

    fn sum(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _tensors: &[Tensor]) -> Result<()> {
        Ok(())
    }

    fn before_backward(&self, _last: bool) -> Result<()> {
        Ok(())
    }

    fn finish_gradients(&self, _parameters: &[Tensor]) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
