//! What ranks tell each other. One process needs none of it; process groups implement the same trait.
//!
//! Gradients are *summed* over ranks: each rank scales its loss by its share of the step's tokens, so that ranks with
//! different numbers of rows weigh as they should.

use std::path::Path;

use tch::Tensor;

use crate::error::{Result, TrainError};

/// A bit for each thing that one rank may have to tell all others between two micro-batches.
pub mod flags {
    /// A signal asks to save and stop.
    pub const STOP: u64 = 1;
    /// Loss or gradient is not finite.
    pub const NOT_FINITE: u64 = 2;
    /// A rank failed in another way.
    pub const FAILED: u64 = 4;
    /// It is time for a checkpoint, by the first rank's clock.
    pub const SAVE: u64 = 8;
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

    /// From now on the gradients of these parameters are summed over all ranks, by the backward passes that
    /// [`before_backward`](Self::before_backward) announces.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags), and when ranks differ in the parameters.
    fn sum_gradients_of(&self, _parameters: &[Tensor]) -> Result<()> {
        Ok(())
    }

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

    /// Every rank's value, by rank.
    ///
    /// # Errors
    /// As [`any_flags`](Self::any_flags).
    fn gather(&self, value: f64) -> Result<Vec<f64>> {
        let mut values: Vec<f64> = (0..self.world_size()).map(|_| 0.0).collect();
        if let Some(own) = usize::try_from(self.rank()).ok().and_then(|rank| values.get_mut(rank)) {
            *own = value;
        }
        self.sum(&mut values)?;
        Ok(values)
    }

    /// Compares what this rank was started with, name by name, with what the others were.
    ///
    /// # Errors
    /// [`TrainError::Disagree`] on every rank, naming both values; and as [`any_flags`](Self::any_flags).
    fn agree(&self, _facts: &[(&'static str, String)]) -> Result<()> {
        Ok(())
    }

    /// Says where the run's checkpoints are, for the message when a rank is lost.
    fn run_is_in(&self, _run: &Path) {}

    /// Finds out whether an error of libtorch comes from a rank that is lost, and says which.
    fn explain(&self, error: TrainError) -> TrainError {
        error
    }
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
