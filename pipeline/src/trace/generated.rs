//! A generated sample with its solution, in symbols, made again from the manifest's generator.

use serde::Serialize;
use serde_json::Value;
use xlstm_manifests::{Error, Manifest};

use super::TraceReport;
use crate::audit::corpus::Corpus;
use crate::report::CommandError;
use crate::tasks::written::generated;
use crate::tasks::{Sample, Task};

/// A sample as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleTrace {
    /// Name, version, parameters and seed of the generator.
    pub generator: Value,
    /// What the model reads, up to the last position that is scored.
    pub inputs: Vec<String>,
    /// What it must say: position and symbol.
    pub targets: Vec<(u64, String)>,
    /// Whether the stored row is the sample that the generator makes.
    pub agrees: bool,
}

/// The sample behind the one document of `report`, of a generated split.
///
/// # Errors
/// When the manifest's generator is not one of this program, or the row cannot be read.
pub(super) fn sample(corpus: &Corpus, report: &TraceReport) -> Result<Option<SampleTrace>, CommandError> {
    let manifest = corpus.manifest();
    let (Some(generator), Some(dataset)) = (&manifest.source.generator, corpus.rows()) else {
        return Ok(None);
    };
    let [document] = &report.documents[..] else { return Ok(None) };
    let made = generated(manifest).map_err(|error| CommandError::Usage(error.to_string()))?;
    let input = manifest.inputs.iter().position(|input| input.path.as_str() == document.input.path);
    let input = input.and_then(|input| u32::try_from(input).ok());
    let input = input.ok_or_else(|| {
        let file = Manifest::locate(corpus.folder());
        Error::damaged(&file, "an input for each document", "a document that names another")
    })?;
    let sample =
        made.sample(input, document.record).map_err(|error| CommandError::Usage(error.to_string()))?;
    // There is one example a row, in the order of the documents.
    let stored = dataset.stored(document.document)?;
    let agrees = stored.is_some_and(|row| row.digest() == sample.stored().digest());
    let (inputs, targets) = in_words(&*made.task, &sample);
    Ok(Some(SampleTrace { generator: generator.clone(), inputs, targets, agrees }))
}

/// Inputs up to the sample's length, and targets with their positions.
fn in_words(task: &dyn Task, sample: &Sample) -> (Vec<String>, Vec<(u64, String)>) {
    match sample {
        Sample::Tokens(example) => {
            let targets = (0..).zip(&example.targets).filter_map(|(at, id)| Some((at, task.symbol((*id)?))));
            let inputs = example.input_ids.iter().take(example.length).map(|&id| task.symbol(id));
            (inputs.collect(), targets.collect())
        }
        Sample::Numbers(example) => {
            let width = task.input_width().unwrap_or(1).max(1) as usize;
            let targets = (0u64..).zip(&example.targets).enumerate().filter_map(|(index, (at, target))| {
                let reason = task.reason(example, index).map(|reason| format!(" ({reason})"));
                Some((at, format!("{}{}", (*target)?, reason.unwrap_or_default())))
            });
            let vectors = example.inputs.chunks(width).take(example.length).map(vector);
            (vectors.collect(), targets.collect())
        }
    }
}

/// The numbers of a position: `(0.6, -0.8, 0.25)`, each so that it reads back as the same float32.
pub(super) fn vector(numbers: &[f32]) -> String {
    format!("({})", numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(", "))
}
