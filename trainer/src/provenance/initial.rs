//! The parameters that a run began with, and the run that made them.

use std::path::{Path, PathBuf};

use xlstm_manifests::run_manifest::{Initialization, RUN_NAME};

use super::{FileLink, RunLinks};
use crate::checkpoint::OPTIMIZER_NAME;
use crate::error::Result;

/// Runs that are followed one behind the other: a longer chain is no chain that anybody trained.
const LONGEST: usize = 32;

/// The parameters that a run began with.
#[derive(Debug)]
pub struct InitialLink {
    /// As the run recorded them.
    pub recorded: Initialization,
    /// The file of parameters, and of moments where they were taken.
    pub files: Vec<FileLink>,
    /// Folder of the run that made them, as found from here; `None` for a file by itself.
    pub folder: Option<PathBuf>,
    /// That run's links; `None` where it is not at hand.
    pub run: Option<Result<Box<RunLinks>>>,
}

impl InitialLink {
    /// The link that a run in `folder` recorded; `before` runs were followed already.
    pub(super) fn find(recorded: &Initialization, folder: &Path, more: &[PathBuf], before: usize) -> Self {
        let seen = |path: &Path| {
            let from_run = folder.join(path);
            if from_run.exists() { from_run } else { path.to_path_buf() }
        };
        let file = seen(&recorded.path);
        let link = |path: PathBuf, sha256| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            FileLink { name, path, sha256, size: None }
        };
        let mut files = vec![link(file.clone(), recorded.sha256)];
        let moments =
            recorded.moments.map(|moments| link(file.with_file_name(OPTIMIZER_NAME), moments.sha256));
        files.extend(moments);
        let parent = recorded.run.as_ref().map(|run| seen(&run.path));
        let here = parent.as_ref().filter(|path| path.join(RUN_NAME).is_file() && before < LONGEST);
        let run = here.map(|path| RunLinks::read_behind(path, more, before + 1).map(Box::new));
        Self { recorded: recorded.clone(), files, folder: parent, run }
    }

    /// What differs between the run that is there and the one that was recorded; empty where nothing does.
    #[must_use]
    pub fn differences(&self) -> Vec<String> {
        let (Some(recorded), Some(Ok(found))) = (&self.recorded.run, &self.run) else { return Vec::new() };
        let mut wrong = Vec::new();
        let mut compare = |what: &str, expected: String, found: String| {
            if expected != found {
                wrong.push(format!("{what}: expected {expected}, found {found}"));
            }
        };
        let manifest = &found.manifest;
        compare("recipe", recorded.recipe.sha256.to_string(), manifest.recipe.sha256.to_string());
        compare("training root", recorded.train_root.to_string(), manifest.train.root.to_string());
        wrong
    }
}
