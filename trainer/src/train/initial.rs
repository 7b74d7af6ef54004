//! Parameters that a new run begins with instead of drawing them: `--init-from`.
//!
//! The file's digest, and the run that made it, go into the new run's manifest: so the chain from a figure goes on through
//! both runs' data. What does not fit the recipe's model is refused before a file of the run is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xlstm_manifests::digest::digest_file;
use xlstm_manifests::recipe::{ModelConfig, Recipe};
use xlstm_manifests::run_manifest::{
    InitialMoments, InitialRun, Initialization, RUN_NAME, RunManifest, path_from,
};

use super::options::TrainOptions;
use crate::checkpoint::{self, MODEL_NAME, OPTIMIZER_NAME};
use crate::error::{Result, TrainError};
use crate::model::{Model, check_sizes, described_model};
use crate::optimizer::AdamW;
use crate::run::{check_finite, find_parameters};
use crate::tensor_file::TensorFile;

/// Keys of a model that decide its first values or its training, and not what it computes.
const NOT_THE_MODEL: &[&str] = &[
    "mlstm.input_gate_bias",
    "mlstm.forget_gate_bias",
    "mlstm.input_gate_bias_learnable",
    "mlstm.forget_gate_bias_learnable",
    "slstm.recurrent_init",
    "slstm.bias_init",
    "slstm.weight_init",
    "slstm.recurrent_gradient_clip",
    "weight_init",
    "sine_frequency",
];

/// Parameters for a new run, found and checked.
#[derive(Debug)]
pub(super) struct Initial {
    file: PathBuf,
    /// As the run's manifest records it, with paths as they are from here.
    record: Initialization,
}

impl Initial {
    /// Finds what the options name, and compares it with the recipe's model; `None` where they name nothing.
    ///
    /// # Errors
    /// When there is no such file, it was altered, or it is of another model: the tensors and options are named.
    pub(super) fn find(options: &TrainOptions, recipe: &Recipe) -> Result<Option<Self>> {
        let Some(path) = &options.init_from else { return Ok(None) };
        let file = find_parameters(path, None)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let is_checkpoint =
            file.file_name().is_some_and(|name| name == MODEL_NAME) && checkpoint::is_checkpoint(folder);
        let state = if is_checkpoint { Some(checkpoint::open(folder)?) } else { None };
        if let Some(state) = &state {
            checkpoint::verify_file(folder, state, MODEL_NAME)?;
        }
        let tensors = TensorFile::open(&file)?;
        check_sizes(&recipe.model, &tensors)?;
        if let Some(described) = described_model(&tensors)? {
            check_same_model(&file, &described, recipe)?;
        }
        let moments = match (&state, options.init_optimizer) {
            (_, false) => None,
            (Some(state), true) => {
                checkpoint::verify_file(folder, state, OPTIMIZER_NAME)?;
                let (_, sha256) = digest_file(&folder.join(OPTIMIZER_NAME))?;
                Some(InitialMoments { sha256, updates: state.step + updates_before(folder)? })
            }
            (None, true) => {
                let hint = "leave --init-optimizer out to begin with fresh moments";
                let expected = format!("a checkpoint, with `{OPTIMIZER_NAME}` beside the parameters");
                return Err(TrainError::file(&file, expected, "a file by itself", hint));
            }
        };
        let (_, sha256) = digest_file(&file)?;
        let run = state.as_ref().map(|state| made_by(folder, state)).transpose()?.flatten();
        let record = Initialization { path: file.clone(), sha256, moments, run };
        Ok(Some(Self { file, record }))
    }

    /// As the manifest of the run in folder `run` has it.
    pub(super) fn record(&self, run: &Path) -> Initialization {
        let mut record = self.record.clone();
        record.path = path_from(run, &record.path);
        if let Some(made_by) = &mut record.run {
            made_by.path = path_from(run, &made_by.path);
        }
        record
    }

    /// What ranks must agree on.
    pub(super) fn digest(&self) -> String {
        let moments = self.record.moments.map(|moments| moments.sha256.to_string());
        format!("{} {}", self.record.sha256, moments.unwrap_or_default())
    }

    /// Puts the parameters, and the moments where they were asked for, in place of the first ones.
    ///
    /// # Errors
    /// When parameters are missing, of another shape or no numbers: they are named.
    pub(super) fn load(&self, model: &Model, optimizer: &mut AdamW) -> Result<()> {
        model.load(&TensorFile::open(&self.file)?, "")?;
        check_finite(model, &self.file)?;
        if let Some(moments) = self.record.moments {
            optimizer.load(&TensorFile::open(&self.file.with_file_name(OPTIMIZER_NAME))?, moments.updates)?;
        }
        Ok(())
    }

    /// For the first lines of a run.
    pub(super) fn label(&self) -> String {
        let Initialization { sha256, moments, run, .. } = &self.record;
        let from = match run {
            Some(run) => format!("step {} of {}", run.step, run.recipe.name),
            None => "a file".to_owned(),
        };
        let moments = if moments.is_some() { ", with moments" } else { "" };
        format!("{from}{moments}: {} (SHA-256 {sha256})", self.file.display())
    }
}

/// Updates of the optimizer before the first step of the run that a checkpoint in `folder` belongs to.
fn updates_before(folder: &Path) -> Result<u64> {
    Ok(run_of(folder)?.map_or(0, |(_, manifest)| manifest.updates_before()))
}

/// The run that a checkpoint's folder lies in.
fn run_of(folder: &Path) -> Result<Option<(PathBuf, RunManifest)>> {
    let Some(run) = folder.ancestors().skip(1).take(2).find(|run| run.join(RUN_NAME).is_file()) else {
        return Ok(None);
    };
    Ok(Some((run.into(), RunManifest::load(run)?)))
}

fn made_by(folder: &Path, state: &checkpoint::CheckpointRecord) -> Result<Option<InitialRun>> {
    let Some((path, manifest)) = run_of(folder)? else { return Ok(None) };
    Ok(Some(InitialRun { path, step: state.step, recipe: manifest.recipe, train_root: state.train_root }))
}

/// Refuses parameters of a model that computes otherwise with the same shapes: other heads, other gates.
fn check_same_model(file: &Path, found: &ModelConfig, recipe: &Recipe) -> Result<()> {
    let (expected, found) = (flat(&recipe.model)?, flat(found)?);
    let differ = |(key, value): &(&String, &String)| {
        found.get(*key) != Some(*value) && !NOT_THE_MODEL.contains(&key.as_str())
    };
    let wrong: Vec<String> = expected
        .iter()
        .filter(differ)
        .map(|(key, value)| {
            let found = found.get(key).map_or("none", String::as_str);
            format!("  model.{key}: expected {value}, found {found}")
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(TrainError::Usage(format!(
        "`{}` holds another model than recipe `{}`:\n{}\nchoose the recipe that it was trained with, or set these keys",
        file.display(),
        recipe.name,
        wrong.join("\n")
    )))
}

/// The options of a model by their dotted names.
fn flat(model: &ModelConfig) -> Result<BTreeMap<String, String>> {
    fn collect(table: &toml::Table, prefix: &str, into: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => collect(inner, &format!("{prefix}{key}."), into),
                other => {
                    into.insert(format!("{prefix}{key}"), other.to_string());
                }
            }
        }
    }
    let table = toml::Table::try_from(model).map_err(TrainError::internal)?;
    let mut values = BTreeMap::new();
    collect(&table, "", &mut values);
    Ok(values)
}
