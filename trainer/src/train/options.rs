//! What a run is asked to do, and which recipe and training split that means.
//!
//! A run that goes on knows its recipe and its splits; whatever the command line names must agree with them (`setup`).

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{Layout, MANIFEST_NAME};
use xlstm_manifests::recipe::{self, Recipe};
use xlstm_manifests::rows::Rows;
use xlstm_manifests::run_manifest::{RECIPE_NAME, RunManifest};
use xlstm_pipeline::tasks::streamed;

use super::setup::check_folder;
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::loader::OtherKind;

/// Whether the steps of a run on a GPU are recorded as a CUDA graph and replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum RecordSteps {
    /// Where a step is one micro-batch of one process that takes little of the GPU's memory.
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
    /// The training split; on a resume, the run knows it.
    pub manifest: Option<PathBuf>,
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

/// The recipe that these options mean on this device, with the training split.
///
/// # Errors
/// When no dataset is named, it cannot be opened, or the recipe does not resolve.
pub fn resolve_recipe(
    options: &TrainOptions,
    device: &DeviceInfo,
) -> Result<(Recipe, Box<dyn Rows>, PathBuf)> {
    let existing = options.existing()?;
    let run = options.out.as_deref().unwrap_or(Path::new(""));
    let known = existing.as_ref().map(|existing| existing.manifest.located(run, &[]).train.path);
    let path = options.manifest.clone().or(known).ok_or_else(|| {
        TrainError::Usage(
            "expected --manifest DIR, the training split that `xlstm-data prepare` made (or --resume with --out RUN)"
                .into(),
        )
    })?;
    let path = split_folder(path, "train");
    let train = streamed::open(&path)?;
    check_rows(train.as_ref(), "training")?;
    let recipe = match (&options.recipe, existing) {
        (Some(name), _) => recipe::load(name, &options.overrides)?,
        (None, Some(existing)) => recipe::resolve(&existing.recipe, &options.overrides)?,
        (None, None) => {
            let manifest = train.manifest();
            let row_length = u64::from(manifest.packing.row_length);
            let chosen = recipe::choose(device.accelerator(), manifest.totals.tokens, row_length)?;
            recipe::resolve(&chosen, &options.overrides)?
        }
    };
    check_kind(&recipe, train.as_ref())?;
    check_vocabulary(&recipe, train.as_ref(), &path)?;
    recipe.rows_per_step(u64::from(train.manifest().packing.row_length))?;
    check_context(&recipe, train.as_ref())?;
    Ok((recipe, train, path))
}

/// The folder of `split` where `path` names a whole dataset, else `path` itself.
pub(super) fn split_folder(path: PathBuf, split: &str) -> PathBuf {
    let inside = path.join(split);
    let whole = !path.join(MANIFEST_NAME).exists() && inside.join(MANIFEST_NAME).is_file();
    if whole { inside } else { path }
}

/// The folder of `split` where `path` names a whole dataset that has it.
pub(super) fn beside(path: Option<&Path>, split: &str) -> Option<PathBuf> {
    path.map(|path| (path, split_folder(path.into(), split)))
        .filter(|(path, found)| found != path)
        .map(|(_, found)| found)
}

/// A split without rows has nothing to learn from or to measure.
pub(super) fn check_rows(dataset: &dyn Rows, what: &str) -> Result<()> {
    if dataset.rows() > 0 {
        return Ok(());
    }
    let hint = "every record of its inputs was left out: see `totals.left_out` there, and prepare it from other inputs";
    let file = dataset.folder().join(MANIFEST_NAME);
    Err(TrainError::file(&file, format!("a {what} split with at least one row"), "none", hint))
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
