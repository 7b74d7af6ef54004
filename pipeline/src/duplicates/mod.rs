//! `xlstm-data duplicates`: documents of a corpus that are the same, or nearly.
//!
//! ```text
//! documents ─► digest of the text: exact copies
//!      └ one of each ─► MinHash, cut into bands ─► documents that share a band ─► their shingles compared: near copies
//! ```
//! Texts come from the stored tokens, as for `overlap`. Two texts are near when the Jaccard similarity of their shingles (five
//! words in a row) reaches the threshold: it is computed from all shingles of both, and MinHash only chooses which pairs are
//! looked at (module `minhash`). Nothing is removed: `prepare --drop-duplicates` takes the list (module `list`). Memory holds some three kilobytes a document.

mod again;
mod list;
mod minhash;
mod steps;
mod text;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use xlstm_manifests::Sha256Digest;

pub use list::{Copies, InputCopies, OtherBytes};

use crate::report::{CommandError, Outcome, write_json};

/// Find documents of a corpus that are the same as an earlier one, or nearly (MinHash)
#[derive(Debug, Clone, clap::Args)]
pub struct DuplicatesArgs {
    /// Folders of splits or of several, or manifests: looked at as one corpus
    #[arg(value_name = "SPLIT", required = true)]
    pub paths: Vec<PathBuf>,
    /// Jaccard similarity of five-word shingles from which two documents are near copies
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share)]
    pub threshold: f64,
    /// Write each copy as a line of JSON, with the earlier document that it is a copy of; `prepare --drop-duplicates`
    /// leaves them out
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.5..=1.0).contains(share));
    share.ok_or_else(|| format!("expected a number from 0.5 to 1, found `{text}`"))
}

/// How many copies a corpus has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DuplicatesReport {
    /// The splits.
    pub splits: Vec<PathBuf>,
    /// Their roots.
    pub roots: Vec<Sha256Digest>,
    /// Similarity from which documents are near copies.
    pub threshold: f64,
    /// By set, or by split where documents have none.
    pub sets: Vec<SetCopies>,
    /// All of them.
    pub total: SetCopies,
    /// Those copies that are an earlier document once more: the same record of the same file, in another split or in one that
    /// was named twice. They are in no list.
    pub again: u64,
    /// Pairs whose shingles were compared.
    pub pairs_compared: u64,
    /// Those of them that reached the threshold.
    pub pairs_near: u64,
}

/// The copies of a set: documents behind the first one of their kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SetCopies {
    /// Its name.
    pub name: String,
    /// Its documents.
    pub documents: u64,
    /// Their tokens, without separators.
    pub tokens: u64,
    /// Documents whose text is that of an earlier one.
    pub exact: u64,
    /// Their tokens.
    pub exact_tokens: u64,
    /// Other documents that are near an earlier one.
    pub near: u64,
    /// Their tokens.
    pub near_tokens: u64,
}

/// Looks for copies.
///
/// # Errors
/// When a split cannot be opened or read, or the list cannot be written.
pub fn duplicates(args: &DuplicatesArgs) -> Result<DuplicatesReport, CommandError> {
    steps::duplicates(args)
}

/// Runs the command: the report goes to `out`. Copies are a result, not a failure: the exit code is 0.
///
/// # Errors
/// As [`duplicates`], and when the report cannot be written.
pub fn run(args: &DuplicatesArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = duplicates(args)?;
    if args.json {
        write_json(out, &report)?;
    } else {
        text::write(out, &report)?;
    }
    Ok(Outcome::Clean)
}
