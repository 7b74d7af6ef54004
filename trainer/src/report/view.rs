//! Everything that a page shows of one run, read once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::recipe::{self, Recipe};
use xlstm_manifests::run_manifest::{METRICS_NAME, RECIPE_NAME, RUN_NAME, RunManifest, Session};
use xlstm_pipeline::report::Cell;

use crate::checkpoint::CheckpointRecord;
use crate::error::Result;
use crate::metrics::Line;
use crate::provenance::{CheckpointLink, DatasetLink, InitialLink, RunLinks, is_trained_on, newest_figure};

/// A run as a page shows it.
#[derive(Debug)]
pub struct RunView {
    /// Its name: the folder's, made longer where two runs have the same.
    pub name: String,
    /// Its folder, as given.
    pub folder: PathBuf,
    /// What it is made from.
    pub manifest: RunManifest,
    /// Its resolved recipe.
    pub recipe: Recipe,
    /// The last line of each training step.
    pub steps: BTreeMap<u64, Line>,
    /// The last line of each validation.
    pub validations: BTreeMap<u64, Line>,
    /// Seconds from the start of each session to its last line, together.
    pub seconds: Option<f64>,
    /// Checkpoints that are there, ascending.
    pub checkpoints: Vec<CheckpointRecord>,
    /// The training split, or the datasets of a mixture.
    pub train: Vec<DatasetLink>,
    /// The validation split.
    pub validation: Option<DatasetLink>,
    /// The parameters that it began with, where they were not drawn.
    pub initial: Option<InitialLink>,
    /// SHA-256 of `run.json`, `recipe.toml` and `metrics.jsonl`.
    pub digests: BTreeMap<&'static str, Sha256Digest>,
    /// What a reader must know: files that are missing or are not what they were.
    pub notes: Vec<String>,
}

/// The unit of the losses of these runs.
pub(super) fn loss_unit(runs: &[RunView]) -> &'static str {
    match runs.iter().filter(|run| run.is_of_numbers()).count() {
        0 => "nats a token",
        numbers if numbers == runs.len() => "mean squared error",
        _ => "nats a token, or mean squared error of numbers",
    }
}

/// A loss in a table.
pub(super) fn loss_cell(loss: f64) -> Cell {
    let small = loss != 0.0 && loss.abs() < 0.01;
    if small { Cell::number(loss, &format!("{loss:.3e}")) } else { Cell::decimals(loss, 4) }
}

impl RunView {
    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// When its manifest or recipe cannot be read, or a checkpoint's state is damaged.
    pub fn load(folder: &Path) -> Result<Self> {
        let RunLinks { manifest, lines, checkpoints, train, validation, initial, .. } =
            RunLinks::read(folder, &[])?;
        let recipe = recipe::load(&folder.join(RECIPE_NAME).display().to_string(), &[])?;
        let mut notes = Vec::new();
        let mut digests = BTreeMap::new();
        for name in [RUN_NAME, RECIPE_NAME, METRICS_NAME] {
            if folder.join(name).is_file() {
                digests.insert(name, digest_file(&folder.join(name))?.1);
            }
        }
        if digests.get(RECIPE_NAME) != Some(&manifest.recipe.sha256) {
            let expected = manifest.recipe.sha256;
            notes.push(format!("{RECIPE_NAME} is not the one that the run began with (SHA-256 {expected})."));
        }
        let lines = lines.unwrap_or_else(|| {
            notes.push(format!("{METRICS_NAME} is missing: there are no curves."));
            Vec::new()
        });
        let of_kind = |kind: &str| {
            let lines = lines.iter().filter(|line| line.kind == kind);
            lines.map(|line| (line.step, line.clone())).collect::<BTreeMap<_, _>>()
        };
        let mut validations = of_kind("validation");
        let before = validations.len();
        validations.retain(|_, line| line.is_validation());
        if validations.len() < before {
            notes.push(
                "Validations of no token were recorded: they measured nothing and are left out.".into(),
            );
        }
        let checkpoints =
            checkpoints.into_iter().map(|CheckpointLink { state, .. }| state).collect::<Result<Vec<_>>>()?;
        if is_trained_on(&manifest, manifest.validation.as_ref().map(|data| data.root)) {
            notes.push(
                "It was validated on its own training split: that says nothing about other text.".into(),
            );
        }
        notes.extend(train.iter().chain(&validation).filter_map(DatasetLink::absence));
        let name = folder
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Self {
            name: name.unwrap_or_else(|| folder.display().to_string()),
            folder: folder.into(),
            steps: of_kind("train"),
            validations,
            seconds: seconds(&lines),
            manifest,
            recipe,
            checkpoints,
            train,
            validation,
            initial,
            digests,
            notes,
        })
    }

    /// Reads several runs; names that occur twice become paths.
    ///
    /// # Errors
    /// As [`RunView::load`].
    pub fn load_all(folders: &[PathBuf]) -> Result<Vec<Self>> {
        let mut runs = folders.iter().map(|folder| Self::load(folder)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for run in &mut runs {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = run.folder.display().to_string();
            }
        }
        Ok(runs)
    }

    /// Whether its loss is a squared error, of numbers, and not nats a token.
    #[must_use]
    pub fn is_of_numbers(&self) -> bool {
        self.recipe.model.input_width() > 0
    }

    /// A loss with its unit, and the perplexity that it is where there is one.
    #[must_use]
    pub fn loss_in_words(&self, loss: f64) -> String {
        if self.is_of_numbers() {
            format!("mean squared error {loss:.4e}")
        } else {
            format!("loss {loss:.4} nats a token, perplexity {:.2}", loss.exp())
        }
    }

    /// The last step that was logged.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        let logged = self.steps.keys().chain(self.validations.keys()).max().copied().unwrap_or(0);
        self.checkpoints.last().map_or(logged, |state| state.step.max(logged))
    }

    /// Tokens that a step of training takes.
    #[must_use]
    pub fn tokens_per_step(&self) -> u64 {
        self.recipe.training.tokens_per_step
    }

    /// The newest validation whose checkpoint is there, or else the newest: the figure that stands for the run.
    #[must_use]
    pub fn figure(&self) -> Option<&Line> {
        newest_figure(self.validations.values(), |step| self.checkpoint(step).is_some())
    }

    /// The checkpoint after this step, if it is there.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> Option<&CheckpointRecord> {
        self.checkpoints.iter().find(|state| state.step == step)
    }

    /// Sessions, oldest first.
    #[must_use]
    pub fn sessions(&self) -> &[Session] {
        &self.manifest.sessions
    }

    /// Values of the logged steps with their tokens, where the line has the value.
    #[must_use]
    pub fn values(&self, value: impl Fn(&Line) -> Option<f64>) -> Vec<(f64, f64)> {
        let tokens = |line: &Line| line.tokens.unwrap_or(line.step * self.tokens_per_step());
        self.steps.values().filter_map(|line| Some((tokens(line) as f64, value(line)?))).collect()
    }
}

/// Time from each session's start to its last line, summed; `None` where nothing was logged after a start.
fn seconds(lines: &[Line]) -> Option<f64> {
    let (mut total, mut start, mut last) = (0.0, None, 0.0);
    for line in lines {
        if line.kind == "session" {
            total += start.map_or(0.0, |start: f64| last - start);
            start = Some(line.time);
        }
        last = line.time;
    }
    let total = total + start.map_or(0.0, |start| last - start);
    (total > 0.0).then_some(total)
}

/// The value in the middle; `None` of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_between_sessions_does_not_count() {
        let line = |kind: &str, time| Line { kind: kind.into(), time, ..Line::default() };
        let lines =
            [line("session", 10.0), line("train", 14.0), line("session", 100.0), line("train", 103.0)];
        assert_eq!(seconds(&lines), Some(7.0));
        assert_eq!(seconds(&lines[..1]), None, "no time stands on nothing");
        assert_eq!(seconds(&[]), None);
        assert_eq!(median([3.0, 1.0, f64::NAN, 2.0].into_iter()), Some(2.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
