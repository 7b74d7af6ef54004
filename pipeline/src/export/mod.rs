//! `xlstm-data export`: a split for other tools.
//!
//! | to | what is written | for |
//! |---|---|---|
//! | `croissant` | one JSON-LD file (Croissant 1.1 with PROV-O) | catalogs, search engines, loaders |
//! | `sha256sums` | one text file, dataset and inputs | `sha256sum -c` |
//! | `parquet` | a folder, one file a shard | pandas, DuckDB, Spark |
//! | `arrow-stream` | a folder, one file a shard | `datasets.Dataset.from_file`, which maps streams only |
//!
//! Tables come by document or by row, each record with where it is from: provenance in columns outlives
//! file metadata. Every shard's digest is checked before its content is passed on, and every file is there
//! whole or not at all.

mod croissant;
mod sums;
mod tables;
mod token_losses;
mod vectors;
mod write;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
pub use token_losses::{TokenLossTable, TokenLosses};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::{FileRecord, Layout};
use xlstm_manifests::{Error, Sha256Digest, printable};

use crate::audit::corpus::Corpus;
use crate::audit::splits_at;
use crate::report::{CommandError, Outcome, bytes, write_json};

/// Write a split in another format: Croissant metadata, checksums, Parquet or Arrow streams
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// Folder of a split, or its manifest
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT")]
    pub to: Format,
    /// File (croissant, sha256sums) or folder (parquet, arrow-stream) to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Records of tables: documents, or packed rows with the documents in them
    #[arg(long = "as", value_name = "RECORDS", default_value = "documents")]
    pub records: Records,
    /// Add each document's text to tables, decoded from its tokens
    #[arg(long)]
    pub with_text: bool,
    /// Croissant: the page where the dataset is published
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Croissant: who publishes it
    #[arg(long, value_name = "NAME")]
    pub creator: Option<String>,
    /// Croissant: when it was published
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date_published: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What a split can be exported to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Croissant 1.1 metadata (JSON-LD)
    Croissant,
    /// Checksums of the dataset's files and of its inputs
    Sha256sums,
    /// Parquet tables
    Parquet,
    /// Arrow IPC streams
    ArrowStream,
}

/// What a record of a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Records {
    /// One document each
    Documents,
    /// One packed row each, with the list of documents in it
    Rows,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The dataset's identity.
    pub root: Sha256Digest,
    /// The files, in order.
    pub files: Vec<ExportedFile>,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportedFile {
    /// Where.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its content.
    pub sha256: Sha256Digest,
    /// Records in it, for tables.
    pub records: Option<u64>,
}

/// Exports a split.
///
/// # Errors
/// When the split cannot be read or is damaged, when the format does not fit it, or when writing fails.
pub fn export(args: &ExportArgs) -> Result<ExportReport, CommandError> {
    let corpus = Corpus::open(&one_split(&args.path)?)?;
    let manifest = corpus.manifest();
    let files = match args.to {
        Format::Croissant => vec![write::text(&args.out, &croissant::render(manifest, args)?)?],
        Format::Sha256sums => vec![write::text(&args.out, &sums::render(manifest)?)?],
        Format::Parquet | Format::ArrowStream => {
            if args.records == Records::Rows && !manifest.layout.has_rows() {
                return Err(CommandError::Usage(
                    "this split is stored by document and has no rows: export it with --as documents".into(),
                ));
            }
            let has_text = match manifest.layout {
                Layout::Packed | Layout::Documents => true,
                Layout::Examples | Layout::Vectors => false,
            };
            if args.with_text && !has_text {
                return Err(CommandError::Usage(
                    "a split of examples has no text: export it without --with-text".into(),
                ));
            }
            tables::export(&corpus, args)?
        }
    };
    Ok(ExportReport { root: manifest.root, files })
}

fn one_split(path: &Path) -> Result<PathBuf, CommandError> {
    let mut splits = splits_at(path)?;
    match (splits.pop(), splits.is_empty()) {
        (Some(split), true) => Ok(split),
        _ => {
            let found = splits.len() + 1;
            let path = path.display();
            Err(CommandError::Usage(format!("`{path}`: expected one split, found {found}: name one of them")))
        }
    }
}

/// Checks a file's bytes before they are passed on.
fn check_file(folder: &Path, record: &FileRecord) -> Result<(), CommandError> {
    let path = record.path.resolve(folder)?;
    let (size, sha256) = digest_file(&path)?;
    if (size, sha256) == (record.size, record.sha256) {
        return Ok(());
    }
    let expected = format!("{} bytes, sha256 {}", record.size, record.sha256);
    Err(Error::damaged(&path, expected, format!("{size} bytes, sha256 {sha256}")).into())
}

/// Runs the command: what was written goes to `out`.
///
/// # Errors
/// As [`export`], and when the report cannot be written.
pub fn run(args: &ExportArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = export(args)?;
    if args.json {
        write_json(out, &report)?;
    } else {
        if report.files.is_empty() {
            writeln!(out, "nothing was written: the split holds no document")?;
        }
        for file in &report.files {
            writeln!(out, "{}  {} ({})", file.sha256, printable::path(&file.path), bytes(file.size))?;
        }
    }
    Ok(Outcome::Clean)
}
