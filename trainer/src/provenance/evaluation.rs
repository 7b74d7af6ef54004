//! An evaluation's report: the checkpoint, the run and the split that it names.

use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, RUN_NAME, RunManifest};

use super::{DatasetLink, FileLink, Recorded, Role, RunLinks};
use crate::checkpoint::{self, CheckpointRecord, MODEL_NAME};
use crate::error::Result;
use crate::evaluation::results::{DatasetLink as DatasetRecord, Report, RunLink as RunRecord};

/// A report with everything that it leads to.
#[derive(Debug)]
pub struct EvaluationLinks {
    /// The report's file.
    pub path: PathBuf,
    /// Folder of the evaluated checkpoint, or of the file of parameters.
    pub folder: PathBuf,
    /// The evaluated files with their digests.
    pub files: Vec<FileLink>,
    /// What the checkpoint says of itself, where the folder is one that can be read.
    pub state: Option<CheckpointRecord>,
    /// The run that the checkpoint belongs to.
    pub run: Option<ParentRun>,
    /// The evaluated split; absent where there was no data.
    pub dataset: Option<DatasetLink>,
}

/// The run of an evaluated checkpoint.
#[derive(Debug)]
pub struct ParentRun {
    /// What the report says of it, with its folder as found now.
    pub recorded: RunRecord,
    /// Its links; `None` where there is no run in that folder, an error where it cannot be read.
    pub found: Option<Result<RunLinks>>,
    /// What it was trained on, where the run itself is not found.
    pub train: Vec<DatasetLink>,
}

impl EvaluationLinks {
    /// The links of a report that was read from `path`; datasets are also looked for below the folders `more`.
    #[must_use]
    pub fn of(report: &Report, path: &Path, more: &[PathBuf]) -> Self {
        let (mut model, mut run) = (report.model.path.clone(), report.run.clone());
        if let Some(record) = &mut run
            && let Some(own) = own_run(record, path)
        {
            let kept = report.model.step.map(|step| checkpoint::folder_of(&own.join(CHECKPOINTS_NAME), step));
            if let Some(folder) = kept.filter(|folder| folder.is_dir()) {
                model = folder.join(MODEL_NAME);
            }
            record.path = own;
        }
        let parent = |path: &Path| path.parent().unwrap_or(Path::new("")).to_path_buf();
        let folder = if model.is_dir() { model } else { parent(&model) };
        let files = report
            .model
            .files
            .iter()
            .map(|(name, file)| FileLink::new(&folder, name, file.sha256, Some(file.size)));
        let from = run.as_ref().map_or_else(|| parent(path), |run| run.path.clone());
        let find =
            |data: &DatasetRecord| DatasetLink::find(Role::Evaluated, Recorded::from(data), &from, more);
        Self {
            path: path.into(),
            files: files.collect(),
            state: checkpoint::open(&folder).ok(),
            folder,
            dataset: report.dataset.as_ref().map(find),
            run: run.map(|recorded| ParentRun::find(recorded, more)),
        }
    }
}

impl ParentRun {
    fn find(recorded: RunRecord, more: &[PathBuf]) -> Self {
        let here = recorded.path.join(RUN_NAME).is_file();
        let found = here.then(|| RunLinks::read(&recorded.path, more));
        let train = match found {
            Some(_) => Vec::new(),
            None => DatasetLink::find_all(recorded.trained_on().iter(), &recorded.path, more),
        };
        Self { recorded, found, train }
    }

    /// What the run was trained on: as the run has it, or else as the report.
    #[must_use]
    pub fn trained_on(&self) -> &[DatasetLink] {
        match &self.found {
            Some(Ok(found)) => &found.train,
            _ => &self.train,
        }
    }
}

impl From<&DatasetRecord> for Recorded {
    fn from(data: &DatasetRecord) -> Self {
        let manifest_sha256: Option<Sha256Digest> = Some(data.manifest_sha256);
        Self {
            root: data.root,
            path: data.path.clone(),
            split: data.split.clone(),
            profile: data.profile.clone(),
            tokens: data.tokens,
            rows: None,
            manifest_sha256,
        }
    }
}

/// A report that lies in its run's folder moves with it: the run is then where the report is, whatever lies at the
/// recorded path.
fn own_run(recorded: &RunRecord, path: &Path) -> Option<PathBuf> {
    let own = path.ancestors().skip(1).take(3).find(|folder| folder.join(RUN_NAME).is_file())?;
    let run = RunManifest::load(own).ok()?;
    let same = run.recipe == recorded.recipe && run.train.root == recorded.train.root;
    same.then(|| own.into())
}
