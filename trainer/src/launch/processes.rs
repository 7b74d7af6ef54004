//! The communicator of several processes.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BridgeError;
use xlstm_bridge::distributed::{Group, Reducer, Store};

use super::watch::Shared;
use crate::communicator::Communicator;
use crate::error::{Result, TrainError};

/// Flags that travel: the bits that are in use.
const FLAG_BITS: usize = 8;

/// This process as one rank of several.
pub(super) struct Processes {
    pub(super) shared: Arc<Shared>,
    pub(super) group: Group,
    pub(super) store: Store,
    pub(super) reducer: RefCell<Option<Reducer>>,
}

impl Processes {
    /// Does what all ranks do together, and says which rank is lost when it fails.
    fn together<T>(&self, call: impl FnOnce() -> std::result::Result<T, BridgeError>) -> Result<T> {
        self.shared.step();
        call().map_err(|error| self.shared.diagnose(error.into()))
    }

    fn facts(&self, rank: u64) -> Result<Vec<(String, String)>> {
        let bytes = self
            .store
            .get(&format!("facts/{rank}"), self.shared.timeout)
            .map_err(|error| self.shared.diagnose(error.into()))?;
        serde_json::from_slice(&bytes).map_err(TrainError::internal)
    }
}

impl Communicator for Processes {
    fn rank(&self) -> u64 {
        self.shared.place.rank
    }

    fn world_size(&self) -> u64 {
        self.shared.place.world
    }

    fn any_flags(&self, flags: u64) -> Result<u64> {
        let mut bits: [f64; FLAG_BITS] = std::array::from_fn(|bit| ((flags >> bit) & 1) as f64);
        self.sum(&mut bits)?;
        Ok(bits.iter().enumerate().filter(|(_, count)| **count > 0.0).map(|(bit, _)| 1 << bit).sum())
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let tensor = Tensor::f_from_slice(values)?;
        self.together(|| self.group.sum(&tensor))?;
        tensor.f_copy_data(values, values.len())?;
        Ok(())
    }

    fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        self.together(|| self.group.broadcast(tensors))
    }

    fn sum_gradients_of(&self, parameters: &[Tensor]) -> Result<()> {
        let reducer = self.together(|| self.group.reducer(parameters))?;
        *self.reducer.borrow_mut() = Some(reducer);
        Ok(())
    }

    fn before_backward(&self, last: bool) -> Result<()> {
        match self.reducer.borrow().as_ref().filter(|_| last) {
            Some(reducer) => self.together(|| reducer.prepare()),
            None => Ok(()),
        }
    }

    fn finish_gradients(&self, _parameters: &[Tensor]) -> Result<()> {
        match self.reducer.borrow().as_ref() {
            Some(reducer) => self.together(|| reducer.check()),
            None => Ok(()),
        }
    }

    fn barrier(&self) -> Result<()> {
        let tensor = Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?;
        self.together(|| self.group.sum(&tensor))
    }

    fn agree(&self, facts: &[(&'static str, String)]) -> Result<()> {
        let text = serde_json::to_vec(facts).map_err(TrainError::internal)?;
        self.store.set(&format!("facts/{}", self.rank()), &text)?;
        let first = self.facts(0)?;
        for rank in 1..self.world_size() {
            let other = self.facts(rank)?;
            if let Some(((what, expected), (_, found))) = first.iter().zip(&other).find(|(a, b)| a != b) {
                return Err(TrainError::Disagree {
                    what: what.clone(),
                    first: differing(expected, found),
                    rank,
                    host: self.shared.host_of(rank),
                    found: differing(found, expected),
                });
            }
        }
        self.barrier()
    }

    fn run_is_in(&self, run: &Path) {
        let mut known = self.shared.run.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *known = Some(run.into());
    }

    fn explain(&self, error: TrainError) -> TrainError {
        match error {
            // A gradient that did not arrive comes out of the backward pass as an error of libtorch.
            TrainError::Bridge(_) | TrainError::Torch(_) if !error.is_out_of_memory() => {
                self.group.abandon();
                self.shared.diagnose(error)
            }
            other => other,
        }
    }
}

/// The lines of `text` that are not in `other`; a text of one line as it is.
fn differing(text: &str, other: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !other.lines().any(|found| found == *line)).collect();
    if lines.is_empty() { text.to_owned() } else { lines.join(", ") }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Its hooks reach into the group.
        self.reducer.borrow_mut().take();
    }
}
