//! The sweep's data: generated once, by the code behind `xlstm-data prepare task`.

use std::path::{Path, PathBuf};

use xlstm_manifests::Manifest;
use xlstm_manifests::atomic::FolderLock;
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Split, paper_examples};

use super::Data;
use crate::error::{Result, TrainError};

/// Rows in a shard.
const ROWS_PER_SHARD: u64 = 1 << 16;

/// The folder of a task's data.
pub(super) fn folder(out: &Path, data: &Data) -> PathBuf {
    out.join("data").join(data.label())
}

/// Makes all splits of `data` that are not there. Other processes of the same sweep wait.
///
/// # Errors
/// When the folder holds other data, or cannot be written.
pub(super) fn prepare(out: &Path, data: &Data, threads: usize) -> Result<PathBuf> {
    let task = data.generator()?;
    let folder = folder(out, data);
    fs_err::create_dir_all(&folder)?;
    let _lock = wait_for(&folder.join(".lock"))?;
    for split in Split::ALL {
        let examples = data.examples.get(split.name()).copied();
        let examples = examples.unwrap_or_else(|| paper_examples(&data.task, split));
        let plan = TaskPlan::new(&*task, split, examples, ROWS_PER_SHARD);
        plan.and_then(|plan| plan.execute(&folder, threads, false))
            .map_err(|error| TrainError::Usage(format!("data of {}: {error:#}", data.label())))?;
    }
    Ok(folder)
}

/// The vocabulary of prepared data.
pub(super) fn vocabulary_size(folder: &Path) -> Result<u64> {
    Ok(u64::from(Manifest::load(&folder.join(Split::Train.name()))?.tokenizer.vocabulary_size))
}

/// Tasks of an array start together: one makes the data, the others wait for it.
fn wait_for(path: &Path) -> Result<FolderLock> {
    loop {
        match FolderLock::acquire(path) {
            Ok(lock) => return Ok(lock),
            Err(xlstm_manifests::Error::Locked { .. }) => {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
