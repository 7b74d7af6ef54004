//! `xlstm-data audit`: is this split what its manifest says, and does it come from where it says?
//!
//! ```text
//! files      present, none extra, size, SHA-256            manifest ⇄ manifest-sha256.txt ⇄ bytes
//! manifest   canonical, free of contradictions, root
//! content    rows full, ids in the vocabulary, separators after documents and nowhere else,
//!            documents tile the stream in input order, counts by input and set, Merkle roots, windows
//! --text     tokens spell the text whose digest is stored            (needs no source)
//! --deep     documents read again from their sources and tokenized anew; copies that a list left out (--duplicates), too
//! --sources  repository, revision and digests asked of the Hub
//! ```
//! All findings are collected, each names its file, and any makes the exit code 1.

mod copies;
pub(crate) mod corpus;
mod deep;
mod deep_examples;
mod duplicates;
mod finding;
mod folder;
mod generated;
mod html;
pub(crate) mod locate;
pub(crate) mod progress;
mod rows;
mod sample;
mod selection;
mod sources_check;
mod spans;
mod spelling;
mod split;
mod stream;
mod summary;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use deep::DeepReport;
pub(crate) use deep::{fields_of, format_of, with_mark};
pub use duplicates::Duplicates;
pub use finding::{Check, Finding};
pub use folder::{INPUTS_POINTER, splits_at};
pub use html::{write_licences, write_sets};
pub use sample::Amount;
pub use sources_check::SourcesReport;
pub use split::Checked;
pub use summary::{SetShare, Summary};

use crate::duplicates::Copies;
use crate::report::{CommandError, Outcome, write_json};
use progress::ByteProgress;

/// Check a prepared dataset: files, digests, content, and where it came from
#[derive(Debug, Clone, clap::Args)]
pub struct AuditArgs {
    /// Folder of a split, a folder with several splits, or a manifest
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Decode all tokens and compare with the stored text digests (needs no source)
    #[arg(long)]
    pub text: bool,
    /// Read N documents (or `all`) again from their source files, tokenize them anew and compare
    #[arg(long, value_name = "N|all")]
    pub deep: Option<Amount>,
    /// Which documents `--deep N` picks
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "deep")]
    pub seed: u64,
    /// Folder of the source files, where they are not where `prepare` left them
    #[arg(long, value_name = "DIR", requires = "deep")]
    pub inputs: Option<PathBuf>,
    /// The list of copies that `prepare --drop-duplicates` was given, for `--deep` to apply again
    #[arg(long, value_name = "FILE", requires = "deep")]
    pub duplicates: Option<PathBuf>,
    /// Ask the Hub whether repository, revision and each file's digest still stand
    #[arg(long)]
    pub sources: bool,
    /// Also write the report as a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

impl AuditArgs {
    /// The arguments for an audit of `paths` with nothing else asked for.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            text: false,
            deep: None,
            seed: 0,
            inputs: None,
            duplicates: None,
            sources: false,
            html: None,
            json: false,
        }
    }
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditReport {
    /// Whether nothing was found anywhere.
    pub clean: bool,
    /// The splits, in the order in which they were named.
    pub splits: Vec<SplitReport>,
}

/// What an audit found in one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitReport {
    /// The split's folder, as it was named.
    pub folder: PathBuf,
    /// All that is wrong, by file.
    pub findings: Vec<Finding>,
    /// How much was looked at.
    pub checked: Checked,
    /// The split in figures; absent when there is no readable manifest.
    pub summary: Option<Summary>,
    /// Documents whose tokens were decoded and compared with their digests (`--text`).
    pub text_documents: Option<u64>,
    /// What `--deep` did.
    pub deep: Option<DeepReport>,
    /// What the Hub said (`--sources`).
    pub sources: Option<SourcesReport>,
    /// What was asked for and could not be done because of what was found.
    pub not_done: Vec<String>,
}

/// Audits the splits that `paths` name.
///
/// # Errors
/// When a path names no split, the list of copies is of none of the splits, or the Hub cannot be asked. What is wrong inside a split is a finding, not an
/// error.
pub fn audit(args: &AuditArgs) -> Result<AuditReport, CommandError> {
    let mut folders = Vec::new();
    for path in &args.paths {
        folders.extend(splits_at(path)?);
    }
    let copies = args.duplicates.as_deref().map(|path| copies::load(path, &folders)).transpose()?;
    let total = folders.iter().map(|folder| folder_bytes(folder)).sum();
    let progress = ByteProgress::over_bytes("audit", total);
    let splits = folders.iter().map(|folder| audit_split(folder, args, copies.as_ref(), &progress));
    let splits = splits.collect::<Result<Vec<SplitReport>, _>>()?;
    Ok(AuditReport { clean: splits.iter().all(|split| split.findings.is_empty()), splits })
}

fn audit_split(
    folder: &Path,
    args: &AuditArgs,
    copies: Option<&Copies>,
    progress: &ByteProgress,
) -> Result<SplitReport, CommandError> {
    let split::SplitCheck { manifest, stream, checked, mut findings } = split::check(folder, progress);
    let summary = manifest.as_ref().map(|manifest| Summary::new(manifest, stream.as_ref()));
    let mut not_done = Vec::new();
    let sources = match &manifest {
        Some(manifest) if args.sources => Some(sources_check::check(manifest, &mut findings)?),
        _ => None,
    };
    // What reads documents through their spans relies on files and spans that hold.
    let sound = findings.is_sound();
    let mut possible = |asked: bool, what: &str| {
        if asked && !sound {
            not_done.push(format!("{what}: not done, since the split itself is not right"));
        }
        asked && sound
    };
    let text = possible(args.text, "--text");
    let deep = possible(args.deep.is_some(), "--deep");
    let text_documents = if text { Some(spelling::check(folder, &mut findings)?) } else { None };
    let dropped = manifest.as_ref().and_then(|manifest| manifest.selection.drop_duplicates.as_ref());
    let copies =
        copies.filter(|copies| dropped.is_some_and(|dropped| copies::is_of(copies, dropped, &mut findings)));
    let deep = match args.deep.filter(|_| deep) {
        Some(amount) => {
            not_done.extend(dropped.filter(|_| copies.is_none()).map(copies::needed));
            let asked = deep::Asked { amount, seed: args.seed, inputs: args.inputs.as_deref(), copies };
            Some(deep::check(folder, asked, &mut findings)?)
        }
        None => None,
    };
    let folder = folder.into();
    let findings = findings.finish();
    Ok(SplitReport { folder, findings, checked, summary, text_documents, deep, sources, not_done })
}

fn folder_bytes(folder: &Path) -> u64 {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

/// Runs the command: the report goes to `out`.
///
/// # Errors
/// As [`audit`], and when the report cannot be written.
pub fn run(args: &AuditArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = audit(args)?;
    if let Some(path) = &args.html {
        xlstm_manifests::atomic::write_atomic(path, html::page(&report).as_bytes())?;
    }
    if args.json {
        write_json(out, &report)?;
    } else {
        text::write(out, &report)?;
    }
    Ok(Outcome::of(report.clean))
}
