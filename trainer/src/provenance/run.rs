//! A run's folder: what it is made from and what it has left.

use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::run_manifest::{
    CHECKPOINTS_NAME, METRICS_NAME, Program, RECIPE_NAME, RUN_NAME, RunManifest, Session,
};

use super::{DatasetLink, FileLink, InitialLink, Recorded, Role};
use crate::checkpoint::{self, CheckpointRecord};
use crate::error::Result;
use crate::metrics::{Line, read_lines};

/// A run with everything that it leads to.
#[derive(Debug)]
pub struct RunLinks {
    /// Its folder.
    pub folder: PathBuf,
    /// What it is made from, as recorded.
    pub manifest: RunManifest,
    /// Its resolved recipe.
    pub recipe: FileLink,
    /// Its metrics; `None` where the file is missing.
    pub lines: Option<Vec<Line>>,
    /// Its checkpoints, ascending.
    pub checkpoints: Vec<CheckpointLink>,
    /// The training split, or the datasets of a mixture in their order.
    pub train: Vec<DatasetLink>,
    /// The validation split.
    pub validation: Option<DatasetLink>,
    /// The parameters that it began with, where they were not drawn.
    pub initial: Option<InitialLink>,
}

/// A checkpoint of a run.
#[derive(Debug)]
pub struct CheckpointLink {
    /// The step after which it was written.
    pub step: u64,
    /// Its folder.
    pub folder: PathBuf,
    /// What it says of itself; an error where that was damaged.
    pub state: Result<CheckpointRecord>,
}

impl CheckpointLink {
    /// Its files with their recorded digests; none where its state cannot be read.
    #[must_use]
    pub fn files(&self) -> Vec<FileLink> {
        self.state.as_ref().map_or_else(|_| Vec::new(), |state| files(&self.folder, state))
    }
}

/// The files of a checkpoint in `folder`.
pub(super) fn files(folder: &Path, state: &CheckpointRecord) -> Vec<FileLink> {
    let link = |(name, file): (&String, &checkpoint::FileDigest)| {
        FileLink::new(folder, name, file.sha256, Some(file.size))
    };
    state.files.iter().map(link).collect()
}

impl RunLinks {
    /// Reads the run in `folder`; its datasets are also looked for below the folders `more`.
    ///
    /// # Errors
    /// When there is no run manifest, or the folder or its metrics cannot be read. What else is damaged or missing is a
    /// link that says so.
    pub fn read(folder: &Path, more: &[PathBuf]) -> Result<Self> {
        Self::read_behind(folder, more, 0)
    }

    /// As [`read`](Self::read), with so many runs that began with this one's parameters, directly or not.
    pub(super) fn read_behind(folder: &Path, more: &[PathBuf], before: usize) -> Result<Self> {
        let manifest = RunManifest::load(folder)?;
        let metrics = folder.join(METRICS_NAME);
        let lines = if metrics.is_file() { Some(read_lines(&metrics)?) } else { None };
        let parent = folder.join(CHECKPOINTS_NAME);
        let checkpoints = checkpoint::list(&parent)?.into_iter().map(|step| {
            let folder = checkpoint::folder_of(&parent, step);
            CheckpointLink { step, state: checkpoint::open(&folder), folder }
        });
        let trained_on: Vec<_> = manifest.trained_on().into_iter().map(|(_, data)| data).collect();
        let find = |role, data| DatasetLink::find(role, Recorded::from(data), folder, more);
        Ok(Self {
            folder: folder.into(),
            recipe: FileLink::new(folder, RECIPE_NAME, manifest.recipe.sha256, None),
            lines,
            checkpoints: checkpoints.collect(),
            train: DatasetLink::find_all(trained_on.into_iter(), folder, more),
            validation: manifest.validation.as_ref().map(|data| find(Role::Validation, data)),
            initial: manifest
                .initialized_from
                .as_ref()
                .map(|recorded| InitialLink::find(recorded, folder, more, before)),
            manifest,
        })
    }

    /// The file of its manifest.
    #[must_use]
    pub fn manifest_file(&self) -> PathBuf {
        self.folder.join(RUN_NAME)
    }

    /// The file of its metrics.
    #[must_use]
    pub fn metrics_file(&self) -> PathBuf {
        self.folder.join(METRICS_NAME)
    }

    /// The validation after `step`, or the one that stands for the run ([`newest_figure`]).
    #[must_use]
    pub fn figure(&self, step: Option<u64>) -> Option<&Line> {
        let lines = self.lines.iter().flatten();
        let measured = lines.filter(|line| line.is_validation() && step.is_none_or(|step| line.step == step));
        newest_figure(measured, |step| self.checkpoint(step).is_some())
    }

    /// The checkpoint after this step, if it was kept.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> Option<&CheckpointLink> {
        self.checkpoints.iter().find(|checkpoint| checkpoint.step == step)
    }

    /// The program that computed `step`, and its session; step 0 is the first session's.
    #[must_use]
    pub fn made_by(&self, step: u64) -> (&Program, Option<&Session>) {
        made_by(&self.manifest, step)
    }

    /// Whether it was validated on the split that it was trained on.
    #[must_use]
    pub fn validated_on_training_data(&self) -> bool {
        is_trained_on(&self.manifest, self.manifest.validation.as_ref().map(|data| data.root))
    }
}

/// Whether the split of this root is one that a run was trained on.
pub(crate) fn is_trained_on(manifest: &RunManifest, root: Option<Sha256Digest>) -> bool {
    manifest.trained_on().iter().any(|(_, data)| Some(data.root) == root)
}

/// The newest of these validations that has a checkpoint; where none has one, the newest.
pub fn newest_figure<'a>(
    measured: impl DoubleEndedIterator<Item = &'a Line>,
    saved: impl Fn(u64) -> bool,
) -> Option<&'a Line> {
    let mut newest = None;
    for line in measured.rev() {
        if saved(line.step) {
            return Some(line);
        }
        newest = newest.or(Some(line));
    }
    newest
}

/// The program that computed `step`, and its session; step 0 is the first session's.
pub(crate) fn made_by(manifest: &RunManifest, step: u64) -> (&Program, Option<&Session>) {
    let session = manifest.session_of_step(step.max(1));
    (session.map_or(&manifest.program, |session| &session.program), session)
}
