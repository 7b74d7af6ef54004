//! `xlstm-data overlap`: how much of an evaluation set stands in the training set.
//!
//! ```text
//! EVAL  ─► keys of documents and paragraphs ─► Bloom filter                     (1, 2)
//! TRAIN ─► keys that the filter knows: suspects                                 (3)
//! EVAL  ─► suspects that really are in EVAL: confirmed, with their domain       (4)
//! TRAIN ─► documents with suspects, once more: confirmed and false hits by set  (5)
//! ```
//! Texts come from the stored tokens, which spell them exactly, so no source file is needed. Memory holds
//! the filter, the suspects and one bit for each document of TRAIN, whatever the corpora's sizes. A hit is
//! only reported when the same 128-bit digest was found on both sides.

mod bloom;
mod html;
mod list;
mod paragraphs;
pub(crate) mod scan;
mod steps;
mod text;

use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::{CommandError, Outcome, write_json};

/// Find documents and paragraphs of evaluation sets in a training set
#[derive(Debug, Clone, clap::Args)]
pub struct OverlapArgs {
    /// The training set: folder of a split or of several, or a manifest; or a training run: all that it was trained on
    #[arg(value_name = "TRAIN")]
    pub train: PathBuf,
    /// The evaluation sets
    #[arg(value_name = "EVAL", required = true)]
    pub eval: Vec<PathBuf>,
    /// Share of strangers that the Bloom filter takes for members (they are sorted out afterwards)
    #[arg(long, value_name = "RATE", default_value_t = 1e-6, value_parser = rate)]
    pub false_positive_rate: f64,
    /// Write each training document with a hit as a line of JSON
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Also write the report as a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate < 1.0);
    rate.ok_or_else(|| format!("expected a number between 0 and 1, both excluded, found `{text}`"))
}

/// How two corpora overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// The training splits.
    pub train: Vec<PathBuf>,
    /// The evaluation splits.
    pub eval: Vec<PathBuf>,
    /// By evaluation set or domain.
    pub eval_sets: Vec<EvalSet>,
    /// All of them.
    pub eval_total: EvalSet,
    /// By training set.
    pub train_sets: Vec<TrainSet>,
    /// All of them.
    pub train_total: TrainSet,
    /// The filter that found suspects.
    pub filter: Filter,
}

/// What of an evaluation set is in the training set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalSet {
    /// Its name: domain, set, or the split where documents have none.
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// Documents whose whole text is a training document.
    pub documents_identical: u64,
    /// Documents that are identical or have a paragraph in the training set.
    pub documents_hit: u64,
    /// Paragraphs of at least 13 words.
    pub paragraphs: u64,
    /// Those of them that are in the training set.
    pub paragraphs_hit: u64,
}

/// What of a training set is in the evaluation sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainSet {
    /// Its name.
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// Tokens, without separators.
    pub tokens: u64,
    /// Documents whose whole text is an evaluation document.
    pub documents_identical: u64,
    /// Documents that are identical or have a paragraph of an evaluation set: those that PALOMA's
    /// decontamination would drop.
    pub documents_hit: u64,
    /// Tokens of those.
    pub tokens_hit: u64,
    /// Paragraphs of at least 13 words that are in an evaluation set.
    pub paragraphs_hit: u64,
}

/// The Bloom filter, and how often it was wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Documents and paragraphs of the evaluation sets that were put in.
    pub members: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bits that each member sets.
    pub places: u32,
    /// The false-positive rate it was made for.
    pub false_positive_rate: f64,
    /// Keys of the training set that were asked about.
    pub asked: u64,
    /// Different keys that the filter knew and that are in the evaluation sets.
    pub confirmed: u64,
    /// Different keys that the filter knew and that are not.
    pub false_positives: u64,
}

/// Compares the corpora.
///
/// # Errors
/// When a split cannot be opened or read, or the list cannot be written.
pub fn overlap(args: &OverlapArgs) -> Result<OverlapReport, CommandError> {
    steps::overlap(args)
}

/// Runs the command: the report goes to `out`. An overlap is a result, not a failure: the exit code is 0.
///
/// # Errors
/// As [`overlap`], and when the report cannot be written.
pub fn run(args: &OverlapArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = overlap(args)?;
    if let Some(path) = &args.html {
        xlstm_manifests::atomic::write_atomic(path, html::page(&report).as_bytes())?;
    }
    if args.json {
        write_json(out, &report)?;
    } else {
        text::write(out, &report)?;
    }
    Ok(Outcome::Clean)
}
