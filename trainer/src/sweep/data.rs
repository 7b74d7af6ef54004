//! The sweep's data: generated once, by the code behind `xlstm-data prepare task`.

use std::path::{Path, PathBuf};

use xlstm_manifests::Manifest;
use xlstm_manifests::atomic::FolderLock;
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Split, Task, paper_examples};

use super::Data;
use crate::error::{Result, TrainError};

/// Rows in a shard.
const ROWS_PER_SHARD: u64 = 1 << 16;
/// Training examples above which no shards are kept: rows are made again when they are wanted. The paper's 25.6 million
/// samples would be 30 GB.
const STREAMED_FROM: u64 = 1 << 20;

/// The folder of a task's data.
pub(super) fn folder(out: &Path, data: &Data) -> PathBuf {
    folder_of(out, data.label())
}

/// The folder of the data called `label`.
pub(super) fn folder_of(out: &Path, label: &str) -> PathBuf {
    out.join("data").join(label)
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
        make(&*task, split, examples, &folder, threads).map_err(|error| refused(data.label(), &error))?;
    }
    for also in &data.also {
        let task = data.generator_with(&also.parameters)?;
        let examples = also.examples.unwrap_or_else(|| paper_examples(&data.task, Split::Test));
        let folder = folder_of(out, &also.label);
        make(&*task, Split::Test, examples, &folder, threads)
            .map_err(|error| refused(&also.label, &error))?;
    }
    Ok(folder)
}

/// Makes one split, unless it is there.
fn make(task: &dyn Task, split: Split, examples: u64, folder: &Path, threads: usize) -> anyhow::Result<()> {
    let plan = TaskPlan::new(task, split, examples, ROWS_PER_SHARD)?;
    let streamed = split == Split::Train && examples > STREAMED_FROM;
    let plan = if streamed { plan.streamed() } else { plan };
    plan.execute(folder, threads, false).map(|_| ())
}

fn refused(label: &str, error: &anyhow::Error) -> TrainError {
    TrainError::Usage(format!("data of {label}: {error:#}"))
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
