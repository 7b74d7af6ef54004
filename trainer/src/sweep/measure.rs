//! What came out of a finished run on the validation and the test split: what a sweep compares.
//!
//! Of tokens the accuracy: a target is right when its logit is the largest of the whole vocabulary, and accuracy is the share
//! of right ones among all scored positions of a split, so samples with long answers weigh more (paper, Section 4.1, as the
//! released code has it). Of numbers the mean squared error, pooled likewise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::rows::Rows;
use xlstm_manifests::{Error as DataError, Manifest};
use xlstm_pipeline::tasks::streamed;

use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::evaluation::open::open_model;
use crate::loader::{BatchShape, MicroBatch, OtherKind};
use crate::metrics::score_targets;
use crate::model::Model;

/// In a run's folder; a run with it is finished.
pub(super) const ACCURACY_NAME: &str = "sweep-accuracy.json";
/// Positions of a batch.
const BATCH_POSITIONS: usize = 1 << 14;

/// What came out of a run: accuracies, or of numbers mean squared errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The step of the checkpoint.
    pub step: u64,
    /// On the validation split.
    pub validation: f64,
    /// On the test split.
    pub test: f64,
    /// The same of the test splits of other data, by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
}

/// Measures the newest checkpoint of `run` on the splits in the folder `data`, and on the test splits in the folders `also`,
/// whose names are their labels; notes it in the run's folder.
///
/// # Errors
/// When there is no checkpoint, or a split cannot be read or has no examples.
pub fn measure_run(run: &Path, data: &Path, also: &[PathBuf], device: &DeviceInfo) -> Result<Measured> {
    let opened = open_model(run, None, None, device)?;
    let on = |split: &Path| measure(&opened.model, streamed::open(split)?.as_ref());
    let mut others = BTreeMap::new();
    for folder in also {
        let label = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        others.insert(label, on(&folder.join("test"))?);
    }
    let measured = Measured {
        step: opened.link.step.unwrap_or_default(),
        validation: on(&data.join("validation"))?,
        test: on(&data.join("test"))?,
        also: others,
    };
    let text = serde_json::to_vec(&measured).map_err(std::io::Error::other)?;
    write_atomic(&run.join(ACCURACY_NAME), &text)?;
    Ok(measured)
}

/// What was measured of the run in `folder`, if it was.
pub(super) fn load(folder: &Path) -> Option<Measured> {
    serde_json::from_slice(&fs_err::read(folder.join(ACCURACY_NAME)).ok()?).ok()
}

/// Right ones among the scored targets of `dataset`, or their squared error, a target.
fn measure(model: &Model, dataset: &dyn Rows) -> Result<f64> {
    let file = Manifest::locate(dataset.folder());
    if let Some(OtherKind { expected, found, hint }) = OtherKind::between(model.config(), dataset.manifest())
    {
        return Err(TrainError::file(&file, expected, found, hint));
    }
    let context = dataset.manifest().packing.row_length as usize;
    let shape = BatchShape { rows: (BATCH_POSITIONS / context.max(1)).max(1), context, resets: false };
    let rows: Vec<StepRow> = (0..dataset.rows()).map(|row| StepRow { epoch: 0, row }).collect();
    let (mut sum, mut scored) = (0.0, 0);
    for rows in rows.chunks(shape.rows) {
        // Positions behind the last target are left out: they decide nothing.
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, targets, _) = batch.tensors(model.placement().device)?;
        sum += if batch.is_of_numbers() {
            model.sequence_losses(&inputs, &targets, None)?.iter().sum()
        } else {
            score_targets(model, &inputs, &targets, None)?.correct_count() as f64
        };
        scored += batch.tokens;
    }
    if scored == 0 {
        return Err(
            DataError::mismatch(&file, "examples with targets", "none", "prepare the split again").into()
        );
    }
    Ok(sum / scored as f64)
}
