//! A request, resolved from the command line: plain values, nothing opened yet.

use std::path::PathBuf;
use std::sync::Arc;

use crate::duplicates::Copies;

/// Which dataset is wanted.
#[derive(Debug, Clone)]
pub enum DatasetRequest {
    /// SlimPajama from the Hub.
    SlimPajama(SlimPajamaRequest),
    /// PALOMA from the Hub.
    Paloma(PalomaRequest),
    /// The crates of a lock file.
    Crates(CratesRequest),
    /// Files of this machine.
    Local(LocalRequest),
}

/// SlimPajama.
#[derive(Debug, Clone)]
pub struct SlimPajamaRequest {
    /// Catalog profile: `original`, `reupload`, `6b`.
    pub profile: String,
    /// Revision to take in place of the catalog's.
    pub revision: Option<String>,
    /// Splits; empty for all.
    pub splits: Vec<String>,
}

/// PALOMA.
#[derive(Debug, Clone)]
pub struct PalomaRequest {
    /// Revision to take in place of the catalog's.
    pub revision: Option<String>,
    /// Splits; empty for all.
    pub splits: Vec<String>,
    /// Sources by folder name; empty for all sixteen.
    pub sources: Vec<String>,
}

/// The crates of a lock file.
#[derive(Debug, Clone)]
pub struct CratesRequest {
    /// What whoever prepares the crates says of their license, beside each crate's own statement.
    pub license: Option<String>,
    /// The lock file.
    pub lockfile: PathBuf,
    /// Share of documents held out for validation.
    pub holdout: Option<String>,
}

/// Files of this machine.
#[derive(Debug, Clone)]
pub struct LocalRequest {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// Field that holds the text.
    pub text_field: String,
    /// Field that names the set.
    pub set_field: Option<String>,
    /// Field that names the document.
    pub id_field: Option<String>,
    /// Field that holds a document's own license.
    pub license_field: Option<String>,
    /// License of all files, as whoever prepares them states it.
    pub license: Option<String>,
    /// Field that says where a document is from.
    pub source_field: Option<String>,
    /// Share of documents held out for validation.
    pub holdout: Option<String>,
    /// Name of the split when nothing is held out.
    pub split: String,
}

/// One task of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// 1-based.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// What all datasets have in common.
#[derive(Debug, Clone)]
pub struct Common {
    /// Output folder: one folder a split is made in it.
    pub out: PathBuf,
    /// Tokenizer threads.
    pub threads: usize,
    /// Stop after the document that reaches this many tokens.
    pub max_tokens: Option<u64>,
    /// Sets left out.
    pub exclude_sets: Vec<String>,
    /// Copies left out.
    pub drop_duplicates: Option<Arc<Copies>>,
    /// Skip bad records instead of failing.
    pub skip_bad_records: bool,
    /// One task of an array.
    pub task: Option<Task>,
    /// Rows in a shard.
    pub rows_per_shard: u64,
    /// Discard what an earlier run left.
    pub restart: bool,
    /// Files already downloaded.
    pub from: Option<PathBuf>,
    /// Where downloads go; below `out` when absent.
    pub downloads: Option<PathBuf>,
    /// Remove a download once what was read from it is durable.
    pub discard_downloads: bool,
    /// Downloads at the same time.
    pub parallel_downloads: usize,
    /// Never ask the Hub.
    pub offline: bool,
}

impl Common {
    /// Where downloads go.
    #[must_use]
    pub fn downloads(&self) -> PathBuf {
        self.downloads.clone().unwrap_or_else(|| self.out.join("downloads"))
    }

    /// `fail` or `skip`, as a manifest names it.
    #[must_use]
    pub fn on_bad_record(&self) -> String {
        if self.skip_bad_records { "skip" } else { "fail" }.into()
    }
}
