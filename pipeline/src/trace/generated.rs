//! A generated sample with its solution, in symbols, made again from the manifest's generator.

use serde::Serialize;
use serde_json::Value;

use super::TraceReport;
use crate::audit::corpus::Corpus;
use crate::report::CommandError;
use crate::tasks::written::generated;
use crate::tasks::{Example, Task};

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
    let missing =
        || CommandError::Internal(format!("input `{}` is not in the manifest", document.input.path));
    let input = input.ok_or_else(missing)?;
    let mut example = Example::default();
    made.example(input, document.record, &mut example)
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    // There is one example a row, in the order of the documents.
    let stored = dataset.example(document.document)?;
    let agrees = stored.is_some_and(|row| {
        row.input_ids == example.input_ids
            && row.targets().eq(example.targets.iter().copied())
            && usize::from(row.length) == example.length
    });
    let task: &dyn Task = &*made.task;
    let targets = (0..).zip(&example.targets).filter_map(|(at, id)| Some((at, task.symbol((*id)?))));
    Ok(Some(SampleTrace {
        generator: generator.clone(),
        inputs: example.input_ids[..example.length].iter().map(|&id| task.symbol(id)).collect(),
        targets: targets.collect(),
        agrees,
    }))
}
