//! The accuracy of a finished run on the validation and the test split: what a sweep compares.
//!
//! A target is right when its logit is the largest of the whole vocabulary; accuracy is the share of right ones among all
//! scored positions of a split, so samples with long answers weigh more (paper, Section 4.1, as the released code has it).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;
use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::rows::IGNORE;
use xlstm_manifests::{Dataset, Error as DataError, Manifest};

use crate::device::DeviceInfo;
use crate::error::Result;
use crate::evaluation::open::open_model;
use crate::metrics::score_targets;
use crate::model::Model;

/// In a run's folder; a run with it is finished.
pub(super) const ACCURACY_NAME: &str = "sweep-accuracy.json";
/// Positions of a batch.
const BATCH_POSITIONS: usize = 1 << 14;

/// What came out of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The step of the checkpoint.
    pub step: u64,
    /// Share of the validation split's targets that are right.
    pub validation: f64,
    /// The same of the test split.
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
    let mut others = BTreeMap::new();
    for folder in also {
        let label = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let found = accuracy(&opened.model, &Dataset::open(&folder.join("test"))?)?;
        others.insert(label, found);
    }
    let measured = Measured {
        step: opened.link.step.unwrap_or_default(),
        validation: accuracy(&opened.model, &Dataset::open(&data.join("validation"))?)?,
        test: accuracy(&opened.model, &Dataset::open(&data.join("test"))?)?,
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

/// Share of the scored targets of `dataset` that are right.
fn accuracy(model: &Model, dataset: &Dataset) -> Result<f64> {
    let row_length = dataset.manifest().packing.row_length as usize;
    let rows: Vec<u64> = (0..dataset.rows()).collect();
    let (mut right, mut scored) = (0, 0);
    for rows in rows.chunks((BATCH_POSITIONS / row_length.max(1)).max(1)) {
        let (batch_right, batch_scored) = batch(model, dataset, rows)?;
        right += batch_right;
        scored += batch_scored;
    }
    if scored == 0 {
        let file = Manifest::locate(dataset.folder());
        return Err(
            DataError::mismatch(&file, "examples with targets", "none", "prepare the split again").into()
        );
    }
    Ok(right as f64 / scored as f64)
}

/// Right and scored targets of some rows. Positions behind the longest example are left out: they decide nothing.
fn batch(model: &Model, dataset: &Dataset, rows: &[u64]) -> Result<(u64, u64)> {
    let mut examples = Vec::with_capacity(rows.len());
    for &row in rows {
        let example = dataset.example(row)?;
        examples.push(example.ok_or_else(|| {
            let file = Manifest::locate(dataset.folder());
            DataError::mismatch(&file, "layout `examples`", "packed rows", "a sweep is over generated tasks")
        })?);
    }
    let longest = examples.iter().map(|example| usize::from(example.length)).max().unwrap_or(1);
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for example in &examples {
        inputs.extend(example.input_ids[..longest].iter().map(|&id| i64::from(id)));
        targets.extend(example.targets().take(longest).map(|target| target.map_or(IGNORE, i64::from)));
    }
    let (shape, device) = ([examples.len() as i64, longest as i64], model.placement().device);
    let tensor = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_view(shape)?.f_to_device(device);
    let scores = score_targets(model, &tensor(&inputs)?, &tensor(&targets)?, None)?;
    Ok((scores.correct_count(), scores.correct.len() as u64))
}
