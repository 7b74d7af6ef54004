//! The run manifest: `run.json` in a run's folder, from which every step's rows can be computed again.
//!
//! ```text
//! RUN/
//!   run.json           this file: dataset roots, recipe, order, program, device, sessions
//!   recipe.toml        the resolved recipe, as `--recipe` takes it
//!   metrics.jsonl      one line for each logged step, appended and flushed
//!   checkpoints/       step-00000100/ …, each with a DONE mark when it is whole
//! ```
//! A run begins with one session; each resume appends another, because the number of ranks may change (the rows of
//! a step do not: only how ranks share them). Nothing else is ever changed in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic::write_atomic;
use crate::canonical;
pub use crate::dataset_ref::{DatasetRef, find_dataset, path_from};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::order::{ALGORITHM, Order, StepRow};
use crate::versioned::FileKind;

/// The value of `format`.
pub const RUN_FORMAT: &str = "xlstm-run";
/// The newest version that is read. What is written is as old as its content allows: [`RunManifest::version_needed`].
pub const RUN_VERSION: u32 = 3;
/// The file's name in a run's folder.
pub const RUN_NAME: &str = "run.json";
/// The resolved recipe's name in a run's folder.
pub const RECIPE_NAME: &str = "recipe.toml";
/// The metrics' name in a run's folder.
pub const METRICS_NAME: &str = "metrics.jsonl";
/// The folder of checkpoints in a run's folder.
pub const CHECKPOINTS_NAME: &str = "checkpoints";

/// What a run is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunManifest {
    /// Always [`RUN_FORMAT`].
    pub format: String,
    /// 3 where it was trained on a mixture, 2 where it began with given parameters, else 1.
    pub version: u32,
    /// The training split; of a mixture its root and its totals.
    pub train: DatasetRef,
    /// The datasets of a mixture, as `order.datasets` has them; absent where there is one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub mixture: Vec<DatasetRef>,
    /// The validation split.
    pub validation: Option<DatasetRef>,
    /// The recipe after `--set`.
    pub recipe: RecipeRef,
    /// What decides the batches.
    pub order: Order,
    /// Seed of the parameters' initial values.
    pub initialization_seed: u64,
    /// The parameters that it began with instead; absent where they were drawn.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initialized_from: Option<Initialization>,
    /// Trainable numbers of the model.
    pub parameters: u64,
    /// The program that began the run.
    pub program: Program,
    /// Each start of the program on this run, oldest first.
    pub sessions: Vec<Session>,
}

/// The parameters that a run began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initialization {
    /// Where the file was, from the run's folder, or absolute. A hint: the digest is what counts.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
    /// Moments of the optimizer, where they were taken too.
    pub moments: Option<InitialMoments>,
    /// The run that made the parameters, where the file is a checkpoint's.
    pub run: Option<InitialRun>,
}

/// Moments that a run began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialMoments {
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
    /// Updates that went into them: the optimizer counts on from there.
    pub updates: u64,
}

/// The run that made a run's first parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialRun {
    /// Where its folder was, as the path of the file.
    pub path: PathBuf,
    /// The step after which the parameters were saved.
    pub step: u64,
    /// Its recipe.
    pub recipe: RecipeRef,
    /// Root of its training split.
    pub train_root: Sha256Digest,
}

/// The recipe that a run follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeRef {
    /// Its name.
    pub name: String,
    /// SHA-256 of [`RECIPE_NAME`].
    pub sha256: Sha256Digest,
}

/// A program and what it was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Source commit, with `-dirty` where the tree differed; `unknown` outside a repository.
    pub commit: String,
    /// SHA-256 of the running binary.
    pub binary_sha256: Option<Sha256Digest>,
    /// Version of libtorch.
    pub libtorch: String,
    /// Versions of the kernels in use, by name.
    pub kernels: String,
}

/// One start of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The first step that it computes: 1, or one after the checkpoint it went on from.
    pub first_step: u64,
    /// Ranks.
    pub world: u64,
    /// Where it computes: `cpu (2 threads, AVX2)`, a GPU's name.
    pub device: String,
    /// `float32` or `bfloat16`.
    pub precision: String,
    /// Seconds since 1970.
    pub started_at: u64,
    /// The program of this session.
    pub program: Program,
}

const KIND: FileKind = FileKind {
    format: RUN_FORMAT,
    version: RUN_VERSION,
    file: RUN_NAME,
    what: "a run manifest",
    hint: "name the folder that `xlstm-train --out` was given",
};

impl RunManifest {
    /// The file for a path that names a run's folder or the file itself.
    #[must_use]
    pub fn locate(path: &Path) -> PathBuf {
        KIND.locate(path)
    }

    /// Reads a run manifest.
    ///
    /// # Errors
    /// When it is missing, is none, is newer than this program, or names an order that is not known here.
    pub fn load(path: &Path) -> Result<Self> {
        let path = Self::locate(path);
        let run: Self = KIND.read(&path)?;
        if run.order.algorithm != ALGORITHM {
            return Err(Error::mismatch(
                &path,
                format!("order `{ALGORITHM}`"),
                format!("`{}`", run.order.algorithm),
                "use the program version that made the run",
            ));
        }
        run.check(&path)?;
        run.check_mixture(&path)?;
        Ok(run)
    }

    /// The version of the format that this content needs.
    #[must_use]
    pub fn version_needed(&self) -> u32 {
        match (&self.initialized_from, self.mixture.is_empty()) {
            (_, false) => 3,
            (Some(_), true) => 2,
            (None, true) => 1,
        }
    }

    /// The datasets that it was trained on, with their rows in an epoch of the mixture: one with 1, or several.
    #[must_use]
    pub fn trained_on(&self) -> Vec<(u64, &DatasetRef)> {
        if self.mixture.is_empty() {
            return vec![(1, &self.train)];
        }
        self.order.datasets.iter().map(|dataset| dataset.weight).zip(&self.mixture).collect()
    }

    /// Updates of the optimizer before the run's first step.
    #[must_use]
    pub fn updates_before(&self) -> u64 {
        let moments = self.initialized_from.as_ref().and_then(|from| from.moments);
        moments.map_or(0, |moments| moments.updates)
    }

    /// This manifest with the folders in which its splits are found now ([`DatasetRef::find`]); a split that is nowhere
    /// keeps its recorded folder.
    #[must_use]
    pub fn located(&self, run: &Path, more: &[PathBuf]) -> Self {
        let mut located = self.clone();
        let all =
            std::iter::once(&mut located.train).chain(&mut located.mixture).chain(&mut located.validation);
        for data in all {
            if let Some(found) = data.find(run, more) {
                data.path = found;
            }
        }
        located
    }

    /// Writes `run.json` into the folder `run`, whole or not at all.
    ///
    /// # Errors
    /// When writing fails.
    pub fn store(&self, run: &Path) -> Result<()> {
        let bytes = canonical::to_canonical_file(self).map_err(Error::internal)?;
        write_atomic(&run.join(RUN_NAME), &bytes)?;
        Ok(())
    }

    /// The session that computed `step`: the last one that had begun by then.
    #[must_use]
    pub fn session_of_step(&self, step: u64) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.first_step <= step)
    }

    /// The rows that went into `step` (from 1): all of them, or those of one rank.
    ///
    /// # Errors
    /// For step 0, and for a rank that the step's session did not have.
    pub fn rows_of_step(&self, step: u64, rank: Option<u64>) -> Result<Vec<StepRow>> {
        let file = Path::new(RUN_NAME);
        if step == 0 {
            let hint = "steps count from 1; step 0 is the state before the first update";
            return Err(Error::mismatch(file, "a step from 1", "step 0", hint));
        }
        let rows = self.order.rows_of_step(step);
        let Some(rank) = rank else { return Ok(rows) };
        let world = self.session_of_step(step).map_or(1, |session| session.world);
        if rank >= world {
            return Err(Error::mismatch(
                file,
                format!("a rank below {world}, the ranks at step {step}"),
                format!("rank {rank}"),
                "leave --rank out to see the whole step",
            ));
        }
        Ok(rows[self.order.rank_range(rank, world)].to_vec())
    }
}

/// The rows that went into `step` (from 1) of the run in the folder `run`, all or those of one rank.
///
/// # Errors
/// As [`RunManifest::load`] and [`RunManifest::rows_of_step`].
pub fn rows_of_step(run: &Path, step: u64, rank: Option<u64>) -> Result<Vec<StepRow>> {
    RunManifest::load(run)?.rows_of_step(step, rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RunManifest {
        let root = Sha256Digest::of(b"data");
        let program = Program {
            name: "xlstm-train".into(),
            version: "0".into(),
            commit: "unknown".into(),
            binary_sha256: None,
            libtorch: "2.11.0".into(),
            kernels: "cpu".into(),
        };
        let session = |first_step, world| Session {
            first_step,
            world,
            device: "cpu".into(),
            precision: "float32".into(),
            started_at: 0,
            program: program.clone(),
        };
        RunManifest {
            format: RUN_FORMAT.into(),
            version: 1,
            train: DatasetRef {
                root,
                path: "data/train".into(),
                split: "train".into(),
                profile: "local".into(),
                rows: 50,
                tokens: 400,
                tokenizer_sha256: None,
            },
            mixture: Vec::new(),
            validation: None,
            recipe: RecipeRef { name: "test".into(), sha256: root },
            order: Order {
                algorithm: ALGORITHM.into(),
                root,
                seed: 1,
                rows: 50,
                rows_per_step: 6,
                row_length: 8,
                tokens: 400,
                datasets: Vec::new(),
            },
            initialization_seed: 1,
            initialized_from: None,
            parameters: 10,
            sessions: vec![session(1, 1), session(11, 2), session(15, 3)],
            program,
        }
    }

    #[test]
    fn ranks_follow_the_session_and_rows_do_not() {
        let folder = tempfile::tempdir().unwrap();
        sample().store(folder.path()).unwrap();
        let all = |step| rows_of_step(folder.path(), step, None).unwrap();
        let rank = |step, rank| rows_of_step(folder.path(), step, Some(rank));
        assert_eq!(rank(10, 0).unwrap(), all(10));
        assert_eq!(rank(11, 1).unwrap(), all(11)[3..]);
        assert_eq!(rank(15, 2).unwrap(), all(15)[4..]);
        let error = rank(10, 1).unwrap_err().to_string();
        assert!(error.contains("a rank below 1") && error.contains("found rank 1"), "{error}");
        assert!(rows_of_step(folder.path(), 0, None).is_err());
    }

    #[test]
    fn another_format_or_order_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = sample();
        run.order.algorithm = "shuffle".into();
        run.store(folder.path()).unwrap();
        let error = RunManifest::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("order `feistel-1`"), "{error}");
        fs_err::write(folder.path().join(RUN_NAME), "{}").unwrap();
        assert!(RunManifest::load(folder.path()).is_err());
    }
}
