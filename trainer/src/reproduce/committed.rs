//! What lies in a folder of results and below: evaluation reports, results of sweeps, runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use xlstm_manifests::run_manifest::RUN_NAME;

use crate::error::{Result, TrainError};
use crate::evaluation::results::{REPORT_FORMAT, Report};
use crate::sweep;

/// All that was found.
#[derive(Default)]
pub(super) struct Committed {
    /// The folder.
    pub(super) folder: PathBuf,
    /// Evaluation reports by path.
    pub(super) reports: BTreeMap<PathBuf, Report>,
    /// Results of sweeps, by name.
    pub(super) sweeps: Vec<FoundSweep>,
    /// Folders of runs.
    pub(super) runs: Vec<PathBuf>,
}

/// Results of a sweep, with the folder that they lie in.
pub(super) struct FoundSweep {
    pub(super) folder: PathBuf,
    pub(super) results: sweep::Results,
}

/// What a file says that it is.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    format: String,
}

impl Committed {
    /// Reads `folder`, if there is such a folder.
    ///
    /// # Errors
    /// When a file in it is no JSON, or is not what it says that it is.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut found = Self { folder: folder.into(), ..Self::default() };
        found.add(folder)?;
        found.sweeps.sort_by(|a, b| a.results.sweep.cmp(&b.results.sweep));
        found.runs.sort();
        Ok(found)
    }

    /// Files of other formats are left alone.
    fn add(&mut self, folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            return Ok(());
        }
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
                continue;
            }
            if path.file_name().is_some_and(|name| name == RUN_NAME) {
                self.runs.push(folder.into());
            }
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let bytes = fs_err::read(&path)?;
            let unreadable = |error: serde_json::Error| {
                let hint = "write it again with the command that made it";
                TrainError::file(&path, "a report or a sweep's results", error.to_string(), hint)
            };
            let header: Header = serde_json::from_slice(&bytes).map_err(unreadable)?;
            if header.format == sweep::SWEEP_FORMAT {
                let results = serde_json::from_slice(&bytes).map_err(unreadable)?;
                self.sweeps.push(FoundSweep { folder: folder.into(), results });
            } else if header.format == REPORT_FORMAT {
                self.reports.insert(path.clone(), Report::load(&path)?);
            }
        }
        Ok(())
    }
}
