//! Opening what is to be evaluated. Everything that can be refused is refused here, before anything is computed:
//! a checkpoint whose bytes are not those that were saved, parameters that are not numbers, a dataset that an audit
//! does not pass, a tokenizer that the model was not trained with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Kind;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::origin::Origin;
use xlstm_manifests::recipe::{Precision, Recipe};
use xlstm_manifests::run_manifest::{RUN_NAME, RunManifest};
use xlstm_manifests::{Manifest, identity, printable};
use xlstm_pipeline::audit::{AuditArgs, audit, splits_at};
use xlstm_pipeline::report::CommandError;

use super::results::{DatasetLink, Mark, MarkKind, ModelLink, RunLink};
use crate::checkpoint::{self, FileDigest};
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::loader::OtherKind;
use crate::model::{Model, Placement, import};
use crate::run::{check_finite, find_parameters, recipe_of, run_of, trained_context};

/// Findings of an audit that are listed in full.
const SHOWN: usize = 8;

/// Types that matrix products can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EvaluationPrecision {
    /// float32 throughout.
    Float32,
    /// Matrix products in bfloat16, everything else in float32: the paper's evaluations.
    Bfloat16,
    /// float64 throughout, to check the others.
    Float64,
}

impl EvaluationPrecision {
    /// Its name in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float64 => "float64",
        }
    }

    pub(crate) fn placement(self, device: tch::Device) -> Placement {
        let precision = if self == Self::Bfloat16 { Precision::Bfloat16 } else { Precision::Float32 };
        let placement = Placement::new(device, precision, false);
        if self == Self::Float64 { Placement { kind: Kind::Double, ..placement } } else { placement }
    }
}

/// A model with where it comes from.
#[derive(Debug)]
pub struct OpenedModel {
    /// The model.
    pub model: Model,
    /// Its files.
    pub link: ModelLink,
    /// Its run.
    pub run: Option<RunLink>,
    /// Its run's recipe.
    pub recipe: Option<Recipe>,
    /// The type of its matrix products.
    pub precision: EvaluationPrecision,
    /// What a reader must know of it.
    pub marks: Vec<Mark>,
}

/// Opens the model for a path that names a run, a checkpoint or a safetensors file, and checks every byte of it.
///
/// # Errors
/// When there is none, a digest does not match, or a parameter is not a number (the error names it).
pub fn open_model(
    path: &Path,
    step: Option<u64>,
    precision: Option<EvaluationPrecision>,
    device: &DeviceInfo,
) -> Result<OpenedModel> {
    let file = find_parameters(path, step)?;
    let (recipe, context_length) = (recipe_of(&file)?, trained_context(&file)?);
    let (files, step, tokens) = verify_files(&file)?;
    let precision = precision.unwrap_or(match recipe.as_ref().map(|recipe| recipe.training.precision) {
        Some(Precision::Bfloat16) => EvaluationPrecision::Bfloat16,
        _ => EvaluationPrecision::Float32,
    });
    let mut model = import(&file, precision.placement(device.device))?;
    check_finite(&model, &file)?;
    model.freeze()?;
    let run = run_link(&file)?;
    let mut marks = Vec::new();
    if run.is_none() {
        marks.push(Mark {
            kind: MarkKind::NoRun,
            text: "the parameters' run is not known: how they were trained cannot be followed".into(),
        });
    }
    let link = ModelLink {
        path: file,
        step,
        tokens,
        files,
        parameters: model.parameter_count(),
        architecture: model.config().label(),
        vocabulary_size: model.config().vocabulary_size(),
        context_length,
    };
    Ok(OpenedModel { model, link, run, recipe, precision, marks })
}

type Verified = (BTreeMap<String, FileDigest>, Option<u64>, Option<u64>);

/// Digests of the parameters' file, or of the whole checkpoint that it belongs to, checked against its state.
fn verify_files(file: &Path) -> Result<Verified> {
    let folder = file.parent().unwrap_or(Path::new("."));
    if file.file_name().is_some_and(|name| name == checkpoint::MODEL_NAME)
        && checkpoint::is_checkpoint(folder)
    {
        let state = checkpoint::open(folder)?;
        checkpoint::verify(folder, &state)?;
        return Ok((state.files, Some(state.step), Some(state.tokens)));
    }
    let (size, sha256) = digest_file(file)?;
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok((BTreeMap::from([(name, FileDigest { size, sha256 })]), None, None))
}

/// The run of which a file is a checkpoint.
fn run_link(file: &Path) -> Result<Option<RunLink>> {
    let Some(path) = run_of(file)? else { return Ok(None) };
    let manifest = RunManifest::load(&path)?.located(&path, &[]);
    let (_, manifest_sha256) = digest_file(&path.join(RUN_NAME))?;
    let RunManifest { recipe, train, mixture, .. } = manifest;
    Ok(Some(RunLink { path, manifest_sha256, recipe, train, mixture }))
}

/// The split to evaluate for a path that names a split, its manifest, or a dataset with `split` in it.
///
/// # Errors
/// When there is none.
pub fn find_split(path: &Path, split: &str) -> Result<PathBuf> {
    let splits = splits_at(path)?;
    if let [only] = splits.as_slice() {
        return Ok(only.clone());
    }
    let named = splits.iter().find(|folder| folder.file_name().is_some_and(|name| name == split));
    named.cloned().ok_or_else(|| {
        let found = splits.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        TrainError::file(path, format!("a split `{split}`"), found, "name the folder of one split")
    })
}

/// Checks a split as `xlstm-data audit` does: every file's digest, and that content and manifest agree.
///
/// # Errors
/// Naming what was found.
pub fn check_dataset(path: &Path) -> Result<()> {
    let report = audit(&AuditArgs::new(vec![path.into()])).map_err(|error| audit_error(path, &error))?;
    let findings: Vec<String> = report
        .splits
        .iter()
        .flat_map(|split| &split.findings)
        .map(|finding| {
            let text = format!("{}: {}: {}", finding.file, finding.check.name(), finding.message);
            format!("  {}", printable::text(&text))
        })
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    let more = findings.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("\n  … and {more} more") } else { String::new() };
    let found = format!("\n{}{more}\n", findings[..findings.len().min(SHOWN)].join("\n"));
    let hint = "nothing was evaluated: prepare the split again";
    Err(TrainError::file(path, "a split that `xlstm-data audit` passes", found, hint))
}

/// Why an audit could not be done, of the same class.
fn audit_error(path: &Path, error: &CommandError) -> TrainError {
    if error.exit_code() == 2 {
        return TrainError::internal(format!("`{}`: {error}", printable::path(path)));
    }
    let hint = "`xlstm-data audit` tells more";
    TrainError::file(path, "a split that can be audited", error.to_string(), hint)
}

/// What a report says of a split, and whether the model can be evaluated on it.
///
/// # Errors
/// When the split's tokenizer is not the one that the model was trained with, or the model has fewer ids.
pub fn link_dataset(path: &Path, manifest: &Manifest, opened: &mut OpenedModel) -> Result<DatasetLink> {
    let file = Manifest::locate(path);
    if let Some(OtherKind { expected, found, .. }) = OtherKind::between(opened.model.config(), manifest) {
        let hint = "evaluate a model on rows of the kind that it was trained on";
        return Err(TrainError::file(&file, format!("{expected} for this model"), found, hint));
    }
    let tokenizer_sha256 = identity::tokenizer(&manifest.tokenizer);
    let needed = u64::from(manifest.tokenizer.vocabulary_size);
    if opened.link.vocabulary_size < needed {
        let expected = format!("ids below {}, the model's vocabulary", opened.link.vocabulary_size);
        let hint = "evaluate on a split that was prepared with the model's tokenizer";
        return Err(TrainError::file(&file, expected, format!("a vocabulary of {needed}"), hint));
    }
    match opened.run.as_ref().and_then(trained_tokenizer) {
        Some(trained) if trained == tokenizer_sha256 => {}
        Some(_) if is_of_the_trained_task(manifest, opened) => {}
        Some(trained) => {
            let expected = format!("the tokenizer that the model was trained with, SHA-256 {trained}");
            let found = format!("`{}`, SHA-256 {tokenizer_sha256}", manifest.tokenizer.name);
            let hint = "evaluate on a split that was prepared with the model's tokenizer";
            return Err(TrainError::file(&file, expected, found, hint));
        }
        None => opened.marks.push(Mark {
            kind: MarkKind::TokenizerUnchecked,
            text: "it is not recorded which tokenizer the model was trained with: that it is the dataset's could \
                   not be checked"
                .into(),
        }),
    }
    let trained_on = |run: &RunLink| run.trained_on().iter().any(|data| data.root == manifest.root);
    if opened.run.as_ref().is_some_and(trained_on) {
        opened.marks.push(Mark {
            kind: MarkKind::TrainingData,
            text: "this is the split that the model was trained on: the figures say nothing about other text"
                .into(),
        });
    }
    let origin = Origin::of(manifest);
    if let Some(claim) = &origin.claimed {
        opened
            .marks
            .push(Mark { kind: MarkKind::OnlyClaimed, text: format!("the data is {}", claim.sentence()) });
    }
    let (_, manifest_sha256) = digest_file(&file)?;
    Ok(DatasetLink {
        path: path.into(),
        root: manifest.root,
        manifest_sha256,
        split: manifest.split.clone(),
        profile: manifest.source.profile.clone(),
        repository: origin.repository,
        revision: origin.revision,
        documents: manifest.totals.documents,
        tokens: manifest.totals.tokens,
        tokenizer: manifest.tokenizer.name.clone(),
        tokenizer_sha256,
    })
}

/// Whether a generated split is of the task that the model was trained on, whose ids mean the same at any length: what pins
/// them is the generator with all its parameters, so that splits of other lengths differ in it. A mark says so where the
/// training split is not at hand to compare vocabularies with.
fn is_of_the_trained_task(manifest: &Manifest, opened: &mut OpenedModel) -> bool {
    let Some(run) = &opened.run else { return false };
    // All datasets of a mixture have one tokenizer, and so one task.
    let [train, ..] = run.trained_on() else { return false };
    if manifest.source.generator.is_none() || train.profile != manifest.source.profile {
        return false;
    }
    match Manifest::load(&train.path) {
        Ok(trained) if trained.root == train.root => {
            trained.tokenizer.vocabulary_size == manifest.tokenizer.vocabulary_size
        }
        _ => {
            opened.marks.push(Mark {
                kind: MarkKind::TokenizerUnchecked,
                text: format!(
                    "the training split is not at hand: it is of the same task, `{}`, and that its ids are the same could \
                     not be checked",
                    manifest.source.profile
                ),
            });
            true
        }
    }
}

/// The digest of the tokenizer of a run's training split: as recorded, or as the split still says at its place.
fn trained_tokenizer(run: &RunLink) -> Option<xlstm_manifests::Sha256Digest> {
    run.train.tokenizer_sha256.or_else(|| {
        let train = run.trained_on().first()?;
        let manifest = Manifest::load(&train.path).ok()?;
        (manifest.root == train.root).then(|| identity::tokenizer(&manifest.tokenizer))
    })
}
