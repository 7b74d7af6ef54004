//! How this process joins a run: alone, or as one rank of several.
//!
//! Ranks are told who they are as `torchrun` does it: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`,
//! `MASTER_PORT`.

use crate::communicator::{Communicator, SingleProcess};
use crate::error::{Result, TrainError};

/// The communicator of this process.
///
/// # Errors
/// When more than one rank is asked for.
pub fn connect(processes: u64) -> Result<Box<dyn Communicator>> {
    let world = std::env::var("WORLD_SIZE").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
    if processes > 1 || world > 1 {
        return Err(TrainError::Usage(format!(
            "expected one process, found {}: this build has no process groups",
            processes.max(world)
        )));
    }
    Ok(Box::new(SingleProcess))
}
