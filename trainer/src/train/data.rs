//! The data of a run: the training splits with their weights, and the validation split.
//!
//! From here on a run has one [`Mixture`], also of one dataset; only what names datasets asks for its parts.

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{MANIFEST_NAME, Packing};
use xlstm_manifests::mixed_rows::{Mixture, Part};
use xlstm_manifests::mixture::{Weight, lowest_terms};
use xlstm_manifests::printable;
use xlstm_manifests::rows::{Readable as _, Rows};
use xlstm_manifests::run_manifest::RunManifest;
use xlstm_pipeline::tasks::streamed;

use super::options::{Existing, TrainOptions};
use crate::command_line::say;
use crate::error::{Result, TrainError};

/// The training data that is named, or else the run's.
pub(super) fn open_training(options: &TrainOptions, existing: Option<&Existing>) -> Result<Mixture> {
    let run = options.out.as_deref().unwrap_or(Path::new(""));
    let named = options.named()?;
    let parts: Vec<(PathBuf, u64)> = if named.is_empty() {
        let existing = existing.ok_or_else(|| {
            TrainError::Usage(
                "expected --manifest DIR, the training split that `xlstm-data prepare` made (or --resume with --out RUN)"
                    .into(),
            )
        })?;
        let located = existing.manifest.located(run, &[]);
        located.trained_on().into_iter().map(|(weight, data)| (data.path.clone(), weight)).collect()
    } else {
        let (paths, weights): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        let weights =
            lowest_terms(&weights).map_err(|error| TrainError::Usage(format!("--manifest: {error}")))?;
        paths.into_iter().zip(weights).collect()
    };
    let open = |(path, weight)| -> Result<Part> {
        let path = split_folder(path, "train");
        let data = streamed::open(&path)?;
        check_rows(data.as_ref(), "training")?;
        Ok(Part { data, path, weight })
    };
    Ok(Mixture::new(parts.into_iter().map(open).collect::<Result<_>>()?)?)
}

/// A split with its weight in a mixture, `DIR` or `DIR=WEIGHT`. What is there under the whole text is no weight.
pub(super) fn weighted(text: &Path) -> Result<(PathBuf, Weight)> {
    let parts = text.to_str().and_then(|text| text.rsplit_once('='));
    let Some((folder, weight)) = parts.filter(|_| !text.exists()) else {
        return Ok((text.into(), Weight::ONE));
    };
    let weight = weight.parse().map_err(|error| {
        TrainError::Usage(format!(
            "--manifest {}: there is no such folder, and as a weight: {error}",
            printable::path(text)
        ))
    })?;
    Ok((folder.into(), weight))
}

/// The folder of `split` where `path` names a whole dataset, else `path` itself.
fn split_folder(path: PathBuf, split: &str) -> PathBuf {
    let inside = path.join(split);
    let whole = !path.join(MANIFEST_NAME).exists() && inside.join(MANIFEST_NAME).is_file();
    if whole { inside } else { path }
}

/// The folder of `split` where `path` names a whole dataset that has it.
fn beside(path: &Path, split: &str) -> Option<PathBuf> {
    Some(split_folder(path.into(), split)).filter(|found| found != path)
}

/// A split without rows has nothing to learn from or to measure.
fn check_rows(dataset: &dyn Rows, what: &str) -> Result<()> {
    if dataset.rows() > 0 {
        return Ok(());
    }
    let hint = "every record of its inputs was left out: see `totals.left_out` there, and prepare it from other inputs";
    let file = dataset.folder().join(MANIFEST_NAME);
    Err(TrainError::file(&file, format!("a {what} split with at least one row"), "none", hint))
}

/// The validation split: the one that is named, else the run's, else the one beside the training split.
pub(super) fn open_validation(
    options: &TrainOptions,
    existing: Option<&Existing>,
    train: &Mixture,
) -> Result<Option<(Box<dyn Rows>, PathBuf)>> {
    let run = options.out.as_deref().unwrap_or(Path::new(""));
    let known = existing.and_then(|existing| existing.manifest.located(run, &[]).validation);
    let path = options
        .validation
        .clone()
        .map(|path| split_folder(path, "validation"))
        .or_else(|| known.map(|data| data.path))
        .or(beside_training(options)?);
    let Some(path) = path else { return Ok(None) };
    let validation = streamed::open(&path)?;
    check_validation(validation.as_ref(), &path, train)?;
    Ok(Some((validation, path)))
}

/// The validation split must have rows that the training context fits.
fn check_validation(validation: &dyn Rows, path: &Path, train: &Mixture) -> Result<()> {
    check_rows(validation, "validation")?;
    let (wanted, found) = (train.layout(), validation.manifest().layout);
    if wanted != found {
        let hint = "measure a model on what it is trained for: prepare both splits alike";
        let expected = format!("layout `{wanted}`, as in the training split");
        return Err(TrainError::file(path, expected, format!("layout `{found}`"), hint));
    }
    let (trained, measured) = (train.packing(), &validation.manifest().packing);
    let width = |packing: &Packing| packing.input_width.unwrap_or(0);
    if width(trained) != width(measured) {
        let expected = format!("{} numbers a position, as in the training split", width(trained));
        let hint = "prepare both splits alike";
        return Err(TrainError::file(path, expected, width(measured).to_string(), hint));
    }
    let (row_length, found) = (trained.row_length, measured.row_length);
    if found == row_length {
        return Ok(());
    }
    let hint = "prepare both splits with the same row length";
    Err(TrainError::file(
        path,
        format!("rows of {row_length} tokens, as in the training split"),
        found.to_string(),
        hint,
    ))
}

/// Says what a reader of its figures must know of the validation split.
pub(super) fn say_of_validation(validation: Option<&(Box<dyn Rows>, PathBuf)>, train: &Mixture) {
    let Some((data, path)) = validation else {
        if train.parts().len() > 1 {
            say("note: no validation: a mixture has no split beside it, name one with --validation DIR");
        }
        return;
    };
    let trained = |part: &Part| part.data.manifest().root == data.manifest().root;
    if train.parts().iter().any(trained) {
        say(&format!(
            "warning: `{}` is the training split too: its figures say nothing about other text",
            path.display()
        ));
    }
}

/// The validation split of the dataset that the one training split belongs to. Of a mixture none is meant.
fn beside_training(options: &TrainOptions) -> Result<Option<PathBuf>> {
    match options.named()?.as_slice() {
        [(only, _)] => Ok(beside(only, "validation")),
        _ => Ok(None),
    }
}

/// A resumed run goes on with the datasets and weights that it began with.
pub(super) fn check_same_data(run: &RunManifest, train: &Mixture) -> Result<()> {
    if run.train.root == train.root() {
        return Ok(());
    }
    if let ([only], [], false) = (train.parts(), run.mixture.as_slice(), run.order.is_mixed()) {
        return Ok(run.train.check(only.data.manifest(), &only.path)?);
    }
    let began: Vec<String> =
        run.trained_on().iter().map(|(weight, data)| format!("{}={weight}", data.root)).collect();
    let found: Vec<String> =
        train.parts().iter().map(|part| format!("{}={}", part.data.manifest().root, part.weight)).collect();
    Err(TrainError::Usage(format!(
        "expected the datasets and weights that this run began with, in their order: {}\nfound: {}\nleave --manifest out to \
         go on with it, or begin a new run with another --out",
        began.join(", "),
        found.join(", ")
    )))
}
