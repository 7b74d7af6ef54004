//! Which documents went into a step of a run: recomputed from the run manifest, never logged.
//!
//! The order of rows is arithmetic over (root, seed, epoch, step), so the run manifest and the dataset are
//! enough. The dataset's root must be the one that the run began with.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use xlstm_manifests::run_manifest::RunManifest;
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
    /// The dataset's identity.
    pub root: Sha256Digest,
    /// The rows, in the order in which they stand in the batch.
    pub rows: Vec<StepRowTrace>,
}

/// A row of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepRowTrace {
    /// Which pass over the data, from 0.
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
    let path = args.path.clone().unwrap_or_else(|| manifest.train.path.clone());
    let dataset = Dataset::open(&path)?;
    manifest.train.check(dataset.manifest(), &path)?;
    let rows = manifest
        .rows_of_step(step, args.rank)?
        .into_iter()
        .map(|row| {
            let documents = dataset.documents_in_row(row.row)?.into_iter().map(|span| {
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
            Ok(StepRowTrace { epoch: row.epoch, row: row.row, documents: documents.collect() })
        })
        .collect::<Result<_, CommandError>>()?;
    Ok(StepReport { run: run.to_path_buf(), step, rank: args.rank, root: manifest.train.root, rows })
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
        "run {}, step {}{rank}: {} rows of dataset {}",
        report.run.display(),
        step,
        report.rows.len(),
        report.root
    )?;
    for row in &report.rows {
        writeln!(out, "row {} (pass {})", row.row, row.epoch)?;
        for document in &row.documents {
            let name = document.id.as_deref().map_or(String::new(), |id| format!(" `{id}`"));
            let set = document.set.as_deref().map_or(String::new(), |set| format!(", set {set}"));
            writeln!(
                out,
                "  {} record {}{name}{set}, text sha256 {}",
                document.source, document.record, document.digest
            )?;
        }
    }
    Ok(Outcome::Clean)
}
