//! The strongest evidence for a figure: it comes out again.

use std::path::Path;

use xlstm_manifests::Dataset;
use xlstm_manifests::recipe::{Precision, Recipe};

use super::Chain;
use crate::checkpoint::MODEL_NAME;
use crate::communicator::SingleProcess;
use crate::error::{Result, TrainError};
use crate::loader::BatchShape;
use crate::metrics::Line;
use crate::model::Placement;
use crate::provenance::RunLinks;
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
    pub(super) fn figure(&mut self, run: &RunLinks, recipe: &Recipe) -> Result<()> {
        let path = run.metrics_file();
        let figure = run.figure(None).and_then(|line| Some((line, line.loss?, run.checkpoint(line.step)?)));
        let Some((figure, recorded, checkpoint)) = figure else {
            self.not_at_hand("figure", &path, "no validation whose checkpoint was kept");
            return Ok(());
        };
        let here = run.validation.as_ref().filter(|data| data.manifest().is_some());
        let data = here.and_then(|data| Dataset::open(&data.folder).ok());
        let Some(data) = data else {
            self.not_at_hand(
                "figure",
                &path,
                "the validation split is not here: it cannot be computed again",
            );
            return Ok(());
        };
        let parameters = checkpoint.folder.join(MODEL_NAME);
        let loss = match again(&parameters, &data, figure, recipe) {
            Ok(loss) => loss,
            Err(error) => {
                self.failed("figure", &path, error.to_string());
                return Ok(());
            }
        };
        let step = figure.step;
        // Squared errors become small: theirs is a share.
        let unit = if recipe.model.input_width() > 0 { recorded.abs() } else { 1.0 };
        if (loss - recorded).abs() <= tolerance(recipe.training.precision) * unit {
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
    let context = recipe.training.context_length;
    let shape = BatchShape {
        rows: 1,
        context: usize::try_from(context)
            .map_err(|_| TrainError::Internal(format!("a context of {context} tokens")))?,
        resets: recipe.training.reset_at_document_boundaries,
    };
    // Where the number of rows was not recorded, the whole split was measured: 0 asks for that.
    let rows = figure.rows.unwrap_or(0);
    let measured = measure(&model, data, rows, shape, &SingleProcess, &Signals::default())?;
    let stopped = || TrainError::Internal("a measurement without signals was stopped by one".into());
    Ok(measured.ok_or_else(stopped)?.loss)
}
