//! Which documents went into a step of a run: recomputed from the run manifest, never logged.
//!
//! The order of rows is arithmetic over (root, seed, epoch, step), so the run manifest and the dataset are
//! enough. The dataset's root must be the one that the run began with; of a mixture, each dataset's.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::printable;
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, DatasetRef, METRICS_NAME, RECIPE_NAME, RunManifest};
use xlstm_manifests::{Dataset, Sha256Digest};

use super::TraceArgs;
use crate::report::{CommandError, Outcome, write_json};

/// The rows and documents of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// The run's folder.
    pub run: PathBuf,
    /// The step, from 1.
    pub step: u64,
    /// The rank, if one was asked for.
    pub rank: Option<u64>,
    /// The dataset's identity, or the mixture's.
    pub root: Sha256Digest,
    /// Identities of the datasets of a mixture, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<Sha256Digest>,
    /// The rows, in the order in which they stand in the batch.
    pub rows: Vec<StepRowTrace>,
}

/// A row of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepRowTrace {
    /// Of a mixture: which dataset the row is of, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<usize>,
    /// Which pass over the dataset, from 0.
    pub epoch: u64,
    /// The row of the dataset.
    pub row: u64,
    /// The documents with tokens in it.
    pub documents: Vec<StepDocument>,
}

/// A document with tokens in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepDocument {
    /// The source file.
    pub source: String,
    /// SHA-256 of the source file.
    pub source_sha256: Sha256Digest,
    /// Record in it.
    pub record: u64,
    /// The source's own name for the document.
    pub id: Option<String>,
    /// Its set.
    pub set: Option<String>,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
}

/// Traces `step` of the run in folder `run`.
///
/// # Errors
/// When the run or its dataset cannot be opened, the dataset is another one, or there is no such step or rank.
pub fn trace_step(args: &TraceArgs, run: &Path, step: u64) -> Result<StepReport, CommandError> {
    let manifest = RunManifest::load(run)?;
    check_step(run, step)?;
    let datasets = open_trained_on(&manifest, args, run)?;
    let mixed = manifest.order.is_mixed();
    let rows = manifest
        .rows_of_step(step, args.rank)?
        .into_iter()
        .map(|StepRow { epoch, row }| {
            let (number, row) = manifest.order.place(row);
            let dataset = &datasets[number];
            let documents = dataset.documents_in_row(row)?.into_iter().map(|span| {
                let input = dataset.manifest().inputs.get(span.input as usize);
                let set = span.set.and_then(|set| dataset.manifest().sets.get(usize::from(set)));
                StepDocument {
                    source: input.map_or_else(String::new, |input| input.path.to_string()),
                    source_sha256: input.map_or(Sha256Digest([0; 32]), |input| input.sha256),
                    record: span.record,
                    id: span.id,
                    set: set.map(|set| set.name.clone()),
                    digest: span.digest,
                }
            });
            let documents = documents.collect();
            Ok(StepRowTrace { dataset: mixed.then_some(number + 1), epoch, row, documents })
        })
        .collect::<Result<_, CommandError>>()?;
    let (run, rank, root) = (run.to_path_buf(), args.rank, manifest.train.root);
    let mixture = manifest.mixture.iter().map(|data| data.root).collect();
    Ok(StepReport { run, step, rank, root, mixture, rows })
}

/// The datasets that a run was trained on, in their order, found by their roots. The path that is named is the one
/// dataset's, or a folder with those of a mixture in it.
fn open_trained_on(
    manifest: &RunManifest,
    args: &TraceArgs,
    run: &Path,
) -> Result<Vec<Dataset>, CommandError> {
    let open = |(_, data): (u64, &DatasetRef)| {
        let named = match &args.path {
            Some(path) if manifest.order.is_mixed() => data.find(run, std::slice::from_ref(path)),
            Some(path) => Some(path.clone()),
            None => data.find(run, &[]),
        };
        let path = named.unwrap_or_else(|| data.path.clone());
        let dataset = Dataset::open(&path)?;
        data.check(dataset.manifest(), &path)?;
        Ok(dataset)
    };
    manifest.trained_on().into_iter().map(open).collect()
}

/// Refuses a step that the run never comes to, or has not come to yet: what was not computed has no rows.
fn check_step(run: &Path, step: u64) -> Result<(), CommandError> {
    let folder = if run.is_dir() { run } else { run.parent().unwrap_or(Path::new(".")) };
    let refuse = |expected: String| {
        let run = printable::path(folder);
        Err(CommandError::Usage(format!("`{run}`: expected a step {expected}, found step {step}")))
    };
    let recipe = fs_err::read_to_string(folder.join(RECIPE_NAME)).ok();
    let recipe = recipe.and_then(|text| text.parse::<toml::Table>().ok());
    let steps = recipe.as_ref().and_then(|recipe| recipe.get("training")?.get("steps")?.as_integer());
    if let Some(steps) = steps.and_then(|steps| u64::try_from(steps).ok()).filter(|&steps| step > steps) {
        return refuse(format!("up to {steps}, the last of this run's recipe"));
    }
    match last_recorded(folder)? {
        Some(last) if step > last => refuse(format!("up to {last}, the last that this run has recorded")),
        _ => Ok(()),
    }
}

/// The last step that metrics or a checkpoint show; `None` if neither exists.
fn last_recorded(run: &Path) -> Result<Option<u64>, CommandError> {
    let metrics = match fs_err::read(run.join(METRICS_NAME)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        metrics => metrics?,
    };
    // A line that a kill has torn is no step.
    let metrics = String::from_utf8_lossy(&metrics);
    let of_line = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
    let checkpoints = fs_err::read_dir(run.join(CHECKPOINTS_NAME)).into_iter().flatten().flatten();
    let of_folder = |name: &str| name.strip_prefix("step-")?.parse::<u64>().ok();
    let saved = checkpoints.filter_map(|entry| of_folder(entry.file_name().to_str()?));
    Ok(metrics.lines().filter_map(of_line).chain(saved).max())
}

/// Runs the command: the report goes to `out`.
///
/// # Errors
/// As [`trace_step`], and when the report cannot be written.
pub fn run(args: &TraceArgs, run: &Path, step: u64, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = trace_step(args, run, step)?;
    if args.json {
        write_json(out, &report)?;
        return Ok(Outcome::Clean);
    }
    let rank = report.rank.map_or(String::new(), |rank| format!(", rank {rank}"));
    writeln!(
        out,
        "run {}, step {}{rank}: {} rows of {} {}",
        printable::path(&report.run),
        step,
        report.rows.len(),
        if report.mixture.is_empty() { "dataset" } else { "mixture" },
        report.root
    )?;
    for (number, root) in report.mixture.iter().enumerate() {
        writeln!(out, "dataset {}: {root}", number + 1)?;
    }
    for row in &report.rows {
        let dataset = row.dataset.map_or(String::new(), |number| format!(" of dataset {number}"));
        writeln!(out, "row {}{dataset} (pass {})", row.row, row.epoch)?;
        for document in &row.documents {
            let StepDocument { source, record, id, set, digest, .. } = document;
            let name = id.as_deref().map_or(String::new(), |id| format!(" `{id}`"));
            let set = set.as_deref().map_or(String::new(), |set| format!(", set {set}"));
            let line = format!("{source} record {record}{name}{set}");
            writeln!(out, "  {}, text sha256 {digest}", printable::text(&line))?;
        }
    }
    Ok(Outcome::Clean)
}
