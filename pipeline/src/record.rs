//! What every source yields: one record at a time, numbered as the source numbers it.
//!
//! A record number is the 0-based line of a JSON-lines file, row of a Parquet file or entry of a crate
//! archive; whole-file formats (text, Markdown) have the single record 0. Numbers count every record,
//! also those left out, so that a span leads back to its bytes without re-filtering.

use std::collections::BTreeMap;

/// One document as its source holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// 0-based position in the input file, counting every record.
    pub number: u64,
    /// The document's text, exactly as stored (no normalization).
    pub text: String,
    /// The source's own name for the document: PALOMA's `id`, a path inside an archive.
    pub id: Option<String>,
    /// The set it counts towards: `redpajama_set_name`, PALOMA's domain, a file extension.
    pub set: Option<String>,
    /// The license that it carries itself.
    pub license: Option<String>,
    /// Where it says that it is from: `meta.source`, a repository, a site.
    pub source: Option<String>,
    /// Whether the source says that the text was cut (PALOMA's `metadata.truncated_portion`).
    pub truncated: bool,
}

/// Why a record cannot be used. The name is what the manifest counts it under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BadRecord {
    /// The line is not valid JSON.
    InvalidJson,
    /// The text field is absent or null.
    MissingText,
    /// The text field holds something else than a string.
    TextNotString,
    /// The bytes are not UTF-8.
    InvalidUtf8,
}

impl BadRecord {
    /// The reason as the manifest and `--on-bad-record skip` name it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid-json",
            Self::MissingText => "missing-text",
            Self::TextNotString => "text-not-a-string",
            Self::InvalidUtf8 => "invalid-utf-8",
        }
    }
}

/// What a reader yields: a record, or a record that cannot be used (the reader can go on after it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A usable record.
    Record(Record),
    /// A record that cannot be used: its number, why, and what was found.
    Bad {
        /// 0-based position in the input file.
        number: u64,
        /// The class it is counted under.
        reason: BadRecord,
        /// What was found, for the error message (one line, no document text beyond a few characters).
        found: String,
    },
}

/// Counts of records left out, by reason.
pub type LeftOut = BTreeMap<String, u64>;
