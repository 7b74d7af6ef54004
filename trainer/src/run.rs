//! Finding things in a run's folder.

use std::path::{Path, PathBuf};

use xlstm_manifests::recipe::{self, Recipe};
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, RECIPE_NAME, RUN_NAME};

use crate::checkpoint::{self, MODEL_NAME};
use crate::error::{Result, TrainError};

/// The parameters' file for a path that names a run's folder, a checkpoint's folder, or the file.
///
/// # Errors
/// When there is none, or the run has no checkpoint after that step.
pub fn find_parameters(path: &Path, step: Option<u64>) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.into());
    }
    if path.join(MODEL_NAME).is_file() {
        checkpoint::open(path)?;
        return Ok(path.join(MODEL_NAME));
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

/// The recipe of the run that `path` names or lies in; `None` for a file by itself.
///
/// # Errors
/// When the recipe does not resolve.
pub fn recipe_of(path: &Path) -> Result<Option<Recipe>> {
    for folder in path.ancestors().take(4) {
        let file = folder.join(RECIPE_NAME);
        if file.is_file() {
            return Ok(Some(recipe::load(&file.display().to_string(), &[])?));
        }
    }
    Ok(None)
}
