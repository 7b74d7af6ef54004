//! What a run is asked to do, and which recipe and training split that means.
//!
//! A run that goes on knows its recipe and its splits; whatever the command line names must agree with them (`setup`).

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{Layout, MANIFEST_NAME};
use xlstm_manifests::mixed_rows::Mixture;
use xlstm_manifests::mixture::Weight;
use xlstm_manifests::recipe::{self, Recipe};
use xlstm_manifests::rows::{Readable as _, Rows};
use xlstm_manifests::run_manifest::{RECIPE_NAME, RunManifest};

use super::data::{open_training, weighted};
use super::setup::check_folder;
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::loader::OtherKind;

/// Whether the steps of a run on a GPU are recorded as a CUDA graph and replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum RecordSteps {
    /// Where a step is one micro-batch of one process, up to four fifths of the GPU's memory; above two fifths only where validations
    /// are at least 100 steps apart.
    #[default]
    Auto,
    /// Always; it is an error where that cannot be.
    On,
    /// Never.
    Off,
}

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// The training splits, each as `DIR` or `DIR=WEIGHT`; on a resume, the run knows them.
    pub manifests: Vec<PathBuf>,
    /// The validation split.
    pub validation: Option<PathBuf>,
    /// A recipe by name or file; none: one is chosen, or the run's on a resume.
    pub recipe: Option<String>,
    /// `key=value` on top of it.
    pub overrides: Vec<String>,
    /// The run's folder; none: `runs/RECIPE-ROOT`.
    pub out: Option<PathBuf>,
    /// Go on with the run in that folder.
    pub resume: bool,
    /// Whether steps are recorded.
    pub cuda_graph: RecordSteps,
    /// A run, a checkpoint or a file whose parameters a new run begins with.
    pub init_from: Option<PathBuf>,
    /// Whether it begins with that checkpoint's moments too.
    pub init_optimizer: bool,
}

/// A run's folder as it was found.
pub(super) struct Existing {
    pub(super) manifest: RunManifest,
    pub(super) recipe: Recipe,
}

impl TrainOptions {
    /// The training splits that are named, with their weights.
    pub(super) fn named(&self) -> Result<Vec<(PathBuf, Weight)>> {
        self.manifests.iter().map(|text| weighted(text)).collect()
    }

    /// The run to go on with, where there is one.
    pub(super) fn existing(&self) -> Result<Option<Existing>> {
        let Some(out) = self.out.as_deref().filter(|_| self.resume) else { return Ok(None) };
        check_folder(out, true)?;
        let manifest = RunManifest::load(out)?;
        let path = out.join(RECIPE_NAME);
        let (_, sha256) = xlstm_manifests::digest::digest_file(&path)?;
        if sha256 != manifest.recipe.sha256 {
            let hint = "a run goes on with the recipe that it began with: restore the file";
            return Err(TrainError::file(
                &path,
                manifest.recipe.sha256.to_string(),
                sha256.to_string(),
                hint,
            ));
        }
        let mut recipe = recipe::load(&path.display().to_string(), &[])?;
        recipe.name.clone_from(&manifest.recipe.name);
        Ok(Some(Existing { manifest, recipe }))
    }
}

/// The recipe that these options mean on this device, with the training data.
///
/// # Errors
/// When no dataset is named, one cannot be opened, they are unlike, or the recipe does not resolve.
pub fn resolve_recipe(options: &TrainOptions, device: &DeviceInfo) -> Result<(Recipe, Mixture)> {
    let existing = options.existing()?;
    let train = open_training(options, existing.as_ref())?;
    let row_length = u64::from(train.packing().row_length);
    let recipe = match (&options.recipe, existing) {
        (Some(name), _) => recipe::load(name, &options.overrides)?,
        (None, Some(existing)) => recipe::resolve(&existing.recipe, &options.overrides)?,
        (None, None) => {
            let chosen = recipe::choose(device.accelerator(), train.tokens(), row_length)?;
            recipe::resolve(&chosen, &options.overrides)?
        }
    };
    for part in train.parts() {
        check_kind(&recipe, part.data.as_ref())?;
        check_vocabulary(&recipe, part.data.as_ref(), &part.path)?;
        check_context(&recipe, part.data.as_ref())?;
    }
    recipe.rows_per_step(row_length)?;
    Ok((recipe, train))
}

/// A model of tokens is trained on tokens, one of numbers on as many numbers a position.
fn check_kind(recipe: &Recipe, dataset: &dyn Rows) -> Result<()> {
    let Some(OtherKind { expected, found, hint }) = OtherKind::between(&recipe.model, dataset.manifest())
    else {
        return Ok(());
    };
    let file = dataset.folder().join(MANIFEST_NAME);
    let expected = format!("{expected} for recipe `{}`", recipe.name);
    Err(TrainError::file(&file, expected, found, hint))
}

/// Text may be cut into shorter contexts; an example is one.
fn check_context(recipe: &Recipe, dataset: &dyn Rows) -> Result<()> {
    let row_length = u64::from(dataset.manifest().packing.row_length);
    let found = recipe.training.context_length;
    match dataset.manifest().layout {
        Layout::Examples | Layout::Vectors if found != row_length => Err(TrainError::Usage(format!(
            "recipe `{}`: `training.context_length` expected {row_length}, the positions of an example of `{}`, found \
             {found}: examples are never cut",
            recipe.name,
            dataset.folder().display()
        ))),
        Layout::Examples | Layout::Vectors | Layout::Packed | Layout::Documents => Ok(()),
    }
}

fn check_vocabulary(recipe: &Recipe, dataset: &dyn Rows, path: &Path) -> Result<()> {
    let (needed, found) =
        (u64::from(dataset.manifest().tokenizer.vocabulary_size), recipe.model.vocabulary_size());
    if found >= needed {
        return Ok(());
    }
    Err(TrainError::Usage(format!(
        "recipe `{}`: `model.vocabulary_size` expected at least {needed}, the ids of `{}`, found {found}",
        recipe.name,
        path.display()
    )))
}
