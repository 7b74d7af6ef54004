//! Finding things in a run's folder.

use std::path::{Path, PathBuf};

use xlstm_manifests::recipe::{self, Recipe};
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, RECIPE_NAME, RUN_NAME};

use crate::checkpoint::{self, BEST_NAME, CheckpointRecord, MODEL_NAME};
use crate::error::{Result, TrainError};
use crate::hugging_face::CONFIG_NAME;
use crate::model::{Model, Placement, describes_model, import};
use crate::tensor_file::TensorFile;

/// The parameters' file for a path that names a run's folder, a checkpoint's folder, or the file.
///
/// # Errors
/// When there is none, or the run has no checkpoint after that step; and for a model in the form of transformers, which
/// `xlstm-train import` reads.
pub fn find_parameters(path: &Path, step: Option<u64>) -> Result<PathBuf> {
    if path.is_file() {
        refuse_transformers(path)?;
        return Ok(path.into());
    }
    if path.join(MODEL_NAME).is_file() {
        if !checkpoint::is_checkpoint(path) {
            refuse_transformers(&path.join(MODEL_NAME))?;
        }
        checkpoint::open(path)?;
        // What the best checkpoint's link means now: it may mean another one later.
        let is_link = path.file_name().is_some_and(|name| name == BEST_NAME) && path.is_symlink();
        let folder = if is_link {
            fs_err::read_link(path).map(|target| path.with_file_name(target))?
        } else {
            path.into()
        };
        return Ok(folder.join(MODEL_NAME));
    }
    if !path.join(RUN_NAME).is_file() {
        let hint = "name the folder that `xlstm-train --out` was given, one of its checkpoints, or a safetensors file";
        return Err(TrainError::file(path, "a run, a checkpoint or a file of parameters", "none", hint));
    }
    let checkpoints = path.join(CHECKPOINTS_NAME);
    let steps = checkpoint::list(&checkpoints)?;
    let found = match step {
        None => steps.last().copied(),
        Some(step) => steps.iter().copied().find(|&other| other == step),
    };
    let Some(step) = found else {
        let expected =
            step.map_or_else(|| "a checkpoint".to_owned(), |step| format!("a checkpoint after step {step}"));
        return Err(TrainError::file(
            &checkpoints,
            expected,
            format!("{steps:?}"),
            "train further or name another step",
        ));
    };
    let folder = checkpoint::folder_of(&checkpoints, step);
    checkpoint::open(&folder)?;
    Ok(folder.join(MODEL_NAME))
}

/// Refuses a file that says nothing of its model, with a configuration of transformers beside it: names and shapes can be
/// those of this program, where what decides the numbers is not.
fn refuse_transformers(file: &Path) -> Result<()> {
    if !file.with_file_name(CONFIG_NAME).is_file() {
        return Ok(());
    }
    // What is wrong with the file itself, its reader says.
    let says_nothing = TensorFile::open(file).is_ok_and(|file| !describes_model(&file));
    if !says_nothing {
        return Ok(());
    }
    let hint = "`xlstm-train import` reads it into a file that can be named here";
    let found = format!("no description in its metadata, and a `{CONFIG_NAME}` of another program beside it");
    Err(TrainError::file(file, "a file of parameters that describes its model", found, hint))
}

/// The model for a path as in [`find_parameters`], and its file. What every command that uses a checkpoint goes through:
/// a file that is not what the checkpoint recorded, and parameters that are no numbers, are refused.
///
/// # Errors
/// When there is no such file, it was altered or describes no model, or a parameter is not finite.
pub fn load_model(path: &Path, step: Option<u64>, placement: Placement) -> Result<(Model, PathBuf)> {
    let file = find_parameters(path, step)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    if file.file_name().is_some_and(|name| name == MODEL_NAME) && checkpoint::is_checkpoint(folder) {
        checkpoint::verify_file(folder, &checkpoint::open(folder)?, MODEL_NAME)?;
    }
    let model = import(&file, placement)?;
    check_finite(&model, &file)?;
    Ok((model, file))
}

/// Tokens of the contexts that the model in this file was trained with: as the recipe of its run has it, where the file is a
/// checkpoint of one, or else as the file itself says; `None` where neither does.
///
/// # Errors
/// When the recipe or the file cannot be read.
pub fn trained_context(file: &Path) -> Result<Option<u64>> {
    let run = CheckpointFile::at(file)?.and_then(|found| found.run);
    if let Some(recipe) = run.map(|run| run.join(RECIPE_NAME)).filter(|recipe| recipe.is_file()) {
        return Ok(Some(recipe::load(&recipe.display().to_string(), &[])?.training.context_length));
    }
    let file = TensorFile::open(file)?;
    let own = file.metadata().get("context_length").and_then(|text| text.parse().ok());
    let config =
        file.metadata().get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    Ok(own.or_else(|| config?.get("context_length")?.as_u64()).filter(|&length| length > 0))
}

/// Refuses a model of which a parameter is not a number.
///
/// # Errors
/// Naming the first such parameter.
pub fn check_finite(model: &Model, file: &Path) -> Result<()> {
    let Some(name) = model.first_not_finite()? else { return Ok(()) };
    let hint =
        "the model overflowed in training, or the file was damaged: use an earlier checkpoint (--step N)";
    Err(TrainError::file(file, format!("finite numbers in `{name}`"), "NaN or infinity", hint))
}

/// The parameters' file of a checkpoint.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    /// The checkpoint's folder, absolute and without links.
    pub(crate) folder: PathBuf,
    /// What the checkpoint records.
    pub(crate) state: CheckpointRecord,
    /// The run that made it; `None` where the checkpoint's folder is not in its place in a run.
    pub(crate) run: Option<PathBuf>,
}

impl CheckpointFile {
    /// Looks where `file` really lies, whatever link or relative path names it; `None` where that is in no checkpoint. A file
    /// that only lies somewhere in a run's folder is not made by that run. Digests are not compared here.
    ///
    /// # Errors
    /// When there is no such file, or its checkpoint is not whole.
    pub(crate) fn at(file: &Path) -> Result<Option<Self>> {
        let file = fs_err::canonicalize(file)?;
        let Some(folder) = file.parent() else { return Ok(None) };
        if file.file_name().is_none_or(|name| name != MODEL_NAME) || !checkpoint::is_checkpoint(folder) {
            return Ok(None);
        }
        let state = checkpoint::open(folder)?;
        let run = match (folder.parent(), folder.ancestors().nth(2)) {
            (Some(checkpoints), Some(run))
                if run.join(RUN_NAME).is_file()
                    && checkpoints == run.join(CHECKPOINTS_NAME)
                    && folder == checkpoint::folder_of(checkpoints, state.step) =>
            {
                Some(run.to_path_buf())
            }
            _ => None,
        };
        Ok(Some(Self { folder: folder.to_path_buf(), state, run }))
    }
}

/// The run of which `file` is a checkpoint's parameters, as the path names it where it does; `None` for a file that only lies
/// somewhere in a run's folder, or in none.
///
/// # Errors
/// When there is no such file, or its checkpoint is not whole.
pub fn run_of(file: &Path) -> Result<Option<PathBuf>> {
    let Some(real) = CheckpointFile::at(file)?.and_then(|found| found.run) else { return Ok(None) };
    let is_it = |folder: &&Path| fs_err::canonicalize(folder).is_ok_and(|folder| folder == real);
    let named = file.ancestors().skip(1).take(3).find(is_it);
    Ok(Some(named.map_or_else(|| real.clone(), Path::to_path_buf)))
}

/// The recipe of the run of which `file` is a checkpoint's parameters; `None` where there is none.
///
/// # Errors
/// As [`run_of`], and when the recipe does not resolve.
pub fn recipe_of(file: &Path) -> Result<Option<Recipe>> {
    let recipe = run_of(file)?.map(|run| run.join(RECIPE_NAME)).filter(|recipe| recipe.is_file());
    recipe.map(|recipe| Ok(recipe::load(&recipe.display().to_string(), &[])?)).transpose()
}
