//! Checkpoints: folders that are whole or not there, marked, retained by rule, written beside training.
//!
//! ```text
//! RUN/checkpoints/
//!   step-00000100/
//!     model.safetensors       parameters, official names: `xlstm-eval` and the official package read it as it is
//!     optimizer.safetensors   first.NAME and second.NAME, the moments of AdamW
//!     state.json              step, digests and sizes of the two files, the dataset's root
//!     DONE                    made last; a folder without it is not a checkpoint
//!   step-00000200.partial/    being written; a later start removes it
//!   best                      a link to the checkpoint of the lowest validation loss (`checkpoint.keep_best`)
//! ```
//! There is no generator state: nothing is drawn after the first parameters, and the order of rows is arithmetic.
//! A checkpoint with its run manifest therefore fixes the rest of the run bit by bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::atomic::{sync_folder, write_atomic};

use crate::error::{Result, TrainError};
use crate::guard::guarded;
use crate::tensor_file;

/// The parameters' file.
pub const MODEL_NAME: &str = "model.safetensors";
/// The moments' file.
pub const OPTIMIZER_NAME: &str = "optimizer.safetensors";
const STATE_NAME: &str = "state.json";
const DONE_NAME: &str = "DONE";
/// The link to the best checkpoint.
pub const BEST_NAME: &str = "best";
const PARTIAL: &str = ".partial";

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRecord {
    /// Updates that went into it.
    pub step: u64,
    /// Tokens that went into it.
    pub tokens: u64,
    /// Root of the training split.
    pub train_root: Sha256Digest,
    /// Size and SHA-256 of each file.
    pub files: BTreeMap<String, FileDigest>,
}

/// Size and digest of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: Sha256Digest,
}

/// Everything that a checkpoint holds, in memory of its own.
pub struct Snapshot {
    /// Updates so far.
    pub step: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Root of the training split.
    pub train_root: Sha256Digest,
    /// Parameters by name.
    pub model: Vec<(String, Tensor)>,
    /// Moments by name.
    pub optimizer: Vec<(String, Tensor)>,
    /// Metadata of the parameters' file.
    pub metadata: BTreeMap<String, String>,
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// The newest ones.
    pub keep_last: usize,
    /// Multiples of this step stay for good; 0: none.
    pub keep_every: u64,
}

/// The folder of the checkpoint after `step`.
#[must_use]
pub fn folder_of(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:08}"))
}

/// The steps of all whole checkpoints, ascending.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list(checkpoints: &Path) -> Result<Vec<u64>> {
    let mut steps = Vec::new();
    if !checkpoints.is_dir() {
        return Ok(steps);
    }
    for entry in fs_err::read_dir(checkpoints)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        steps.extend(step_of(&name).filter(|_| path.join(DONE_NAME).is_file()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The step of a folder with exactly the name that [`folder_of`] gives it: `step-9` is somebody else's.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_of(Path::new(""), step) == Path::new(name)).then_some(step)
}

/// Whether a folder is a checkpoint's: whether it has a state.
#[must_use]
pub fn is_checkpoint(folder: &Path) -> bool {
    folder.join(STATE_NAME).is_file()
}

/// Reads `state.json` of a checkpoint and checks its files' sizes.
///
/// # Errors
/// When the checkpoint is not whole.
pub fn open(folder: &Path) -> Result<CheckpointRecord> {
    let hint =
        "this checkpoint cannot be used: name another, or remove the folder to go on from the one before";
    if !folder.join(DONE_NAME).is_file() {
        return Err(TrainError::file(folder, "a checkpoint with a `DONE` mark", "none", hint));
    }
    let path = folder.join(STATE_NAME);
    let state: CheckpointRecord = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|error| TrainError::file(&path, "a checkpoint's state", error.to_string(), hint))?;
    for (name, expected) in &state.files {
        let file = folder.join(name);
        let size = fs_err::metadata(&file).map_or(0, |metadata| metadata.len());
        if size != expected.size {
            let expected = format!("{} bytes", expected.size);
            return Err(TrainError::file(&file, expected, format!("{size} bytes"), hint));
        }
    }
    Ok(state)
}

/// Checks the digests of a checkpoint's files.
///
/// # Errors
/// When a file was altered.
pub fn verify(folder: &Path, state: &CheckpointRecord) -> Result<()> {
    state.files.keys().try_for_each(|name| verify_file(folder, state, name))
}

/// Checks the digest of one of a checkpoint's files.
///
/// # Errors
/// When the file was altered, or the state does not know it.
pub fn verify_file(folder: &Path, state: &CheckpointRecord, name: &str) -> Result<()> {
    let file = folder.join(name);
    let hint = "the file was altered after it was written: go on from another checkpoint";
    let expected = state
        .files
        .get(name)
        .ok_or_else(|| TrainError::file(&file, "a file that the checkpoint lists", "none", hint))?;
    let (_, sha256) = xlstm_manifests::digest::digest_file(&file)?;
    if sha256 == expected.sha256 {
        return Ok(());
    }
    let expected = format!("SHA-256 {}", expected.sha256);
    Err(TrainError::file(&file, expected, sha256.to_string(), hint))
}

/// Writes a checkpoint, marks it, and removes what the rule does not keep.
///
/// # Errors
/// When writing fails; checkpoints that are there stay as they are.
pub fn write(checkpoints: &Path, snapshot: &Snapshot, retention: Retention) -> Result<PathBuf> {
    fs_err::create_dir_all(checkpoints)?;
    let folder = folder_of(checkpoints, snapshot.step);
    let mut partial = folder.clone().into_os_string();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    remove(&partial)?;
    let written = write_partial(&partial, snapshot);
    if written.is_err() {
        // Room for the next attempt; the reason is already known.
        let _ = remove(&partial);
    }
    written?;
    remove(&folder)?;
    fs_err::rename(&partial, &folder)?;
    sync_folder(&folder)?;
    write_atomic(&folder.join(DONE_NAME), format!("{}\n", snapshot.step).as_bytes())?;
    retain(checkpoints, retention)?;
    Ok(folder)
}

fn write_partial(partial: &Path, snapshot: &Snapshot) -> Result<()> {
    fs_err::create_dir_all(partial)?;
    let mut files = BTreeMap::new();
    let nothing = BTreeMap::new();
    for (name, metadata, tensors) in
        [(MODEL_NAME, &snapshot.metadata, &snapshot.model), (OPTIMIZER_NAME, &nothing, &snapshot.optimizer)]
    {
        let written = tensor_file::write(&partial.join(name), metadata, tensors)?;
        files.insert(name.to_owned(), FileDigest { size: written.size, sha256: written.sha256 });
    }
    let (step, tokens, train_root) = (snapshot.step, snapshot.tokens, snapshot.train_root);
    let state = CheckpointRecord { step, tokens, train_root, files };
    let text = serde_json::to_vec_pretty(&state).map_err(std::io::Error::other)?;
    write_atomic(&partial.join(STATE_NAME), &text)?;
    Ok(())
}

/// The step of the best checkpoint, where one is marked.
#[must_use]
pub fn best(checkpoints: &Path) -> Option<u64> {
    let target = std::fs::read_link(checkpoints.join(BEST_NAME)).ok()?;
    step_of(target.to_str()?).filter(|&step| folder_of(checkpoints, step).join(DONE_NAME).is_file())
}

/// Marks the checkpoint after `step` as the best, and removes what no rule keeps any more.
///
/// # Errors
/// When there is no such checkpoint, or the link cannot be made.
pub fn mark_best(checkpoints: &Path, step: u64, retention: Retention) -> Result<()> {
    open(&folder_of(checkpoints, step))?;
    let (link, partial) = (checkpoints.join(BEST_NAME), checkpoints.join(format!("{BEST_NAME}{PARTIAL}")));
    match fs_err::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs_err::os::unix::fs::symlink(folder_of(Path::new(""), step), &partial)?;
    fs_err::rename(&partial, &link)?;
    sync_folder(checkpoints)?;
    retain(checkpoints, retention)
}

/// Removes checkpoints that the rule does not keep, oldest first.
fn retain(checkpoints: &Path, retention: Retention) -> Result<()> {
    let steps = list(checkpoints)?;
    let (old, best) = (steps.len().saturating_sub(retention.keep_last.max(1)), best(checkpoints));
    for &step in steps[..old].iter().filter(|&&step| Some(step) != best) {
        if retention.keep_every == 0 || step % retention.keep_every != 0 {
            let folder = folder_of(checkpoints, step);
            // The mark goes first, so that a folder half removed is not taken for a checkpoint.
            fs_err::remove_file(folder.join(DONE_NAME))?;
            fs_err::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

/// Removes what an interrupted start left half-written.
///
/// # Errors
/// When it cannot be removed.
pub fn clean(checkpoints: &Path) -> Result<()> {
    if !checkpoints.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(checkpoints)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let ours = step_of(name.strip_suffix(PARTIAL).unwrap_or(&name)).is_some();
        if ours && path.is_dir() && !path.join(DONE_NAME).is_file() {
            fs_err::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs_err::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Writes one checkpoint at a time on a thread of its own.
pub struct Writer {
    checkpoints: PathBuf,
    retention: Retention,
    running: Option<JoinHandle<Result<PathBuf>>>,
}

impl Writer {
    /// A writer into this folder.
    #[must_use]
    pub fn new(checkpoints: PathBuf, retention: Retention) -> Self {
        Self { checkpoints, retention, running: None }
    }

    /// Starts writing, after the one before is done. Returns how that one ended.
    ///
    /// # Errors
    /// What went wrong with the checkpoint before; this one is being written all the same.
    pub fn begin(&mut self, snapshot: Snapshot) -> Result<()> {
        let before = self.finish();
        let (checkpoints, retention) = (self.checkpoints.clone(), self.retention);
        self.running =
            Some(std::thread::spawn(move || guarded(|| write(&checkpoints, &snapshot, retention))));
        before
    }

    /// Marks the checkpoint after `step` as the best, once it is written.
    ///
    /// # Errors
    /// What went wrong with writing it, or with the mark.
    pub fn mark_best(&mut self, step: u64) -> Result<()> {
        self.finish()?;
        mark_best(&self.checkpoints, step, self.retention)
    }

    /// Waits for the checkpoint that is being written.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn finish(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        match running.join() {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(TrainError::Internal("the thread that writes checkpoints ended".into())),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Reached after another failure only, which is the one to report.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(step: u64) -> Snapshot {
        let tensors = vec![("w".to_owned(), Tensor::from_slice(&[step as f32, 2.0]))];
        let model = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let (train_root, metadata) = (Sha256Digest::of(b"x"), BTreeMap::new());
        Snapshot { step, tokens: step * 10, train_root, model, optimizer: tensors, metadata }
    }

    #[test]
    fn the_newest_and_the_multiples_stay() {
        let folder = tempfile::tempdir().unwrap();
        for step in [10, 20, 30, 40, 50] {
            write(folder.path(), &snapshot(step), Retention { keep_last: 2, keep_every: 20 }).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap(), [20, 40, 50]);
        let newest = folder_of(folder.path(), 50);
        let state = open(&newest).unwrap();
        assert_eq!((state.step, state.tokens), (50, 500));
        verify(&newest, &state).unwrap();
    }

    #[test]
    fn the_best_stays_until_there_is_a_better_one() {
        let folder = tempfile::tempdir().unwrap();
        let retention = Retention { keep_last: 1, keep_every: 0 };
        let save = |step| write(folder.path(), &snapshot(step), retention).unwrap();
        save(10);
        assert_eq!(best(folder.path()), None);
        mark_best(folder.path(), 10, retention).unwrap();
        save(20);
        save(30);
        assert_eq!((best(folder.path()), list(folder.path()).unwrap()), (Some(10), vec![10, 30]));
        assert_eq!(open(&folder.path().join(BEST_NAME)).unwrap().step, 10, "a link that can be followed");
        mark_best(folder.path(), 30, retention).unwrap();
        assert_eq!((best(folder.path()), list(folder.path()).unwrap()), (Some(30), vec![30]));
        assert!(mark_best(folder.path(), 40, retention).is_err(), "no such checkpoint");
    }

    #[test]
    fn folders_with_other_names_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 123_456_789] {
            write(folder.path(), &snapshot(step), Retention { keep_last: 5, keep_every: 0 }).unwrap();
        }
        for name in ["step-9", "step-000000009", "step-notes"] {
            fs_err::create_dir(folder.path().join(name)).unwrap();
        }
        fs_err::write(folder.path().join("step-9/DONE"), "9\n").unwrap();
        fs_err::create_dir(folder.path().join("step-00000002.partial")).unwrap();
        clean(folder.path()).unwrap();
        assert_eq!(list(folder.path()).unwrap(), [1, 123_456_789]);
        assert!(folder.path().join("step-notes").is_dir() && folder.path().join("step-9").is_dir());
        assert!(!folder.path().join("step-00000002.partial").exists());
    }

    #[test]
    fn what_is_not_whole_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let retention = Retention { keep_last: 5, keep_every: 0 };
        for step in [1, 2] {
            write(folder.path(), &snapshot(step), retention).unwrap();
        }
        let second = folder_of(folder.path(), 2);
        let model = second.join(MODEL_NAME);
        let content = fs_err::read(&model).unwrap();
        fs_err::write(&model, &content[..content.len() - 1]).unwrap();
        let error = open(&second).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("bytes"), "{error}");
        let mut altered = content.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs_err::write(&model, &altered).unwrap();
        let error = verify(&second, &open(&second).unwrap()).unwrap_err().to_string();
        assert!(error.contains("SHA-256"), "{error}");
        fs_err::remove_file(second.join(DONE_NAME)).unwrap();
        assert_eq!(list(folder.path()).unwrap(), [1]);
        clean(folder.path()).unwrap();
        assert!(!second.exists() && folder_of(folder.path(), 1).exists());
    }
}
