//! The strongest evidence for a figure: it comes out again.

use std::path::Path;

use xlstm_manifests::Dataset;
use xlstm_manifests::recipe::{Precision, Recipe};
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, METRICS_NAME, RunManifest};

use super::Chain;
use crate::checkpoint::{self, MODEL_NAME};
use crate::communicator::SingleProcess;
use crate::error::Result;
use crate::loader::Shape;
use crate::metrics::{Line, read_lines};
use crate::model::Placement;
use crate::run::load_model;
use crate::signals::Signals;
use crate::train::measure;

/// Largest difference from the recorded loss, in nats a token: rounding of another device or batch size.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Float32 => 1e-4,
        Precision::Tf32 | Precision::Bfloat16 => 1e-2,
    }
}

impl Chain {
    /// Computes the newest validation again whose checkpoint is there, in float32 on the CPU.
    pub(super) fn figure(&mut self, folder: &Path, run: &RunManifest, recipe: &Recipe) -> Result<()> {
        let path = folder.join(METRICS_NAME);
        let checkpoints = folder.join(CHECKPOINTS_NAME);
        let saved = checkpoint::list(&checkpoints)?;
        let lines = if path.is_file() { read_lines(&path)? } else { Vec::new() };
        let figure = lines.iter().rfind(|line| line.is_validation() && saved.contains(&line.step));
        let Some((figure, recorded)) = figure.and_then(|line| Some((line, line.loss?))) else {
            self.not_at_hand("figure", &path, "no validation whose checkpoint was kept");
            return Ok(());
        };
        let data = run.validation.as_ref().and_then(|data| Dataset::open(&data.path).ok());
        let Some(data) = data else {
            self.not_at_hand(
                "figure",
                &path,
                "the validation split is not here: it cannot be computed again",
            );
            return Ok(());
        };
        let parameters = checkpoint::folder_of(&checkpoints, figure.step).join(MODEL_NAME);
        let loss = match again(&parameters, &data, figure, recipe) {
            Ok(loss) => loss,
            Err(error) => {
                self.failed("figure", &path, error.to_string());
                return Ok(());
            }
        };
        let step = figure.step;
        if (loss - recorded).abs() <= tolerance(recipe.training.precision) {
            let detail = format!(
                "validation loss after step {step}: recorded {recorded:.6}, computed again {loss:.6}"
            );
            self.ok("figure", &path, detail);
        } else {
            self.failed(
                "figure",
                &path,
                format!("validation loss after step {step}: expected {loss}, found {recorded}"),
            );
        }
        Ok(())
    }
}

fn again(parameters: &Path, data: &Dataset, figure: &Line, recipe: &Recipe) -> Result<f64> {
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    let (model, _) = load_model(parameters, None, placement)?;
    let shape = Shape {
        rows: 1,
        context: usize::try_from(recipe.training.context_length).unwrap_or(1),
        resets: recipe.training.reset_at_document_boundaries,
    };
    let rows = figure.rows.unwrap_or(0);
    let measured = measure(&model, data, rows, shape, &SingleProcess, &Signals::default())?;
    Ok(measured.map_or(f64::NAN, |measured| measured.loss))
}
