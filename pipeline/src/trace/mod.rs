//! `xlstm-data trace`: where does this row, or this token, come from?
//!
//! ```text
//! row ─► shard (digest, Merkle root) ─► documents in it (spans) ─► token ─► document, place in its text
//!                                                                     └──► input file (sha256, published digest) ─► repository @ revision
//! ```
//! The row is proved against the shard's Merkle root, which the manifest's `root` covers. The text around a
//! token is decoded from the stored tokens; where the source file can be found, its digest is checked, the
//! record read again, and the same place shown in it.

mod find;
mod generated;
pub mod step;
mod text;

use std::io::Write;
use std::path::PathBuf;

pub use generated::SampleTrace;
use serde::Serialize;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{Claim, Declared};

use crate::report::{CommandError, Outcome, write_json};

/// Show which documents a row holds, and which file, record and text a token comes from
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["row", "document", "step"])))]
pub struct TraceArgs {
    /// Folder of a split, or its manifest [default with --run: where the run found it]
    #[arg(value_name = "PATH", required_unless_present = "run")]
    pub path: Option<PathBuf>,
    /// Row of the split, from 0
    #[arg(long, value_name = "R")]
    pub row: Option<u64>,
    /// Document of the split, from 0 in stream order
    #[arg(long, value_name = "N")]
    pub document: Option<u64>,
    /// Folder of a training run: which documents went into --step of it
    #[arg(long, value_name = "RUN", requires = "step", conflicts_with = "token")]
    pub run: Option<PathBuf>,
    /// Step of the run, from 1
    #[arg(long, value_name = "S", requires = "run")]
    pub step: Option<u64>,
    /// Only the rows of this rank
    #[arg(long, value_name = "RANK", requires = "run")]
    pub rank: Option<u64>,
    /// Token in the row or document, from 0
    #[arg(long, value_name = "T")]
    pub token: Option<u64>,
    /// Folder of the source files, where they are not where `prepare` left them
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// Bytes of text to show before and after the token
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub around: usize,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Where a row or a token comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceReport {
    /// `train`, `validation`, …
    pub split: String,
    /// The dataset's identity.
    pub root: Sha256Digest,
    /// The row, when one was asked for.
    pub row: Option<RowTrace>,
    /// The documents in the row, or the one that was asked for.
    pub documents: Vec<DocumentTrace>,
    /// The token, when one was asked for.
    pub token: Option<TokenTrace>,
    /// Of a generated split: the sample with its solution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleTrace>,
    /// What was found to be wrong on the way.
    pub problems: Vec<String>,
}

/// A row and the proof that it is the one that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowTrace {
    /// Number in the split.
    pub row: u64,
    /// The shard's file.
    pub shard: String,
    /// SHA-256 of the shard, as the manifest has it.
    pub shard_sha256: Sha256Digest,
    /// Number in the shard.
    pub row_in_shard: u64,
    /// Valid tokens.
    pub tokens: u64,
    /// Position of its first token in the split's stream.
    pub first_position: u64,
    /// Merkle leaf of its tokens.
    pub leaf: Sha256Digest,
    /// Merkle root over the shard's rows, as the manifest has it.
    pub tokens_root: Sha256Digest,
    /// Whether the rows of the shard, this one among them, give that root.
    pub proved: bool,
}

/// A document and its chain of origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DocumentTrace {
    /// Number in the split's stream.
    pub document: u64,
    /// First and last token of the row that are the document's (for a row).
    pub tokens_of_row: Option<(u64, u64)>,
    /// Tokens of its text, without separator.
    pub tokens: u64,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Its set.
    pub set: Option<String>,
    /// The source's own name for it.
    pub id: Option<String>,
    /// The license that it carries itself.
    pub license: Option<String>,
    /// Where it says that it is from.
    pub source: Option<String>,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
    /// Record number in its input.
    pub record: u64,
    /// The input it was read from.
    pub input: InputTrace,
}

/// A source file, from the bytes that were read to where they were published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputTrace {
    /// Path in the repository, or below the folder that was given.
    pub path: String,
    /// SHA-256 computed before use.
    pub sha256: Sha256Digest,
    /// The digest that was published for it and that it was compared with.
    pub declared: Option<Declared>,
    /// What was only said of it, and compared with nothing.
    pub claimed: Option<Claim>,
    /// Repository on the Hub that it was compared with.
    pub repository: Option<String>,
    /// The commit.
    pub revision: Option<String>,
    /// What is said about its license, and by whom.
    pub licences: Vec<String>,
}

/// A token in its document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenTrace {
    /// Number in the row or document that was asked about.
    pub token: u64,
    /// The document, by its number in the split.
    pub document: u64,
    /// The id; none where inputs are numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// Whether it is the separator after the document.
    pub separator: bool,
    /// What is to come out there, of an example: an id, or `not scored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Number in the document.
    pub token_of_document: u64,
    /// First byte of the document's text that it spells.
    pub byte_of_document: u64,
    /// The text around it, from the stored tokens.
    pub text: Excerpt,
    /// The same place in the source file.
    pub source: SourceTrace,
}

/// A stretch of text with the token marked. Bytes that are half of a character are shown as U+FFFD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// Text before the token.
    pub before: String,
    /// The token's own text.
    pub token: String,
    /// Text after it.
    pub after: String,
}

/// The source file read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SourceTrace {
    /// The file is here and the record's text is the document's.
    Agrees {
        /// The file on this machine.
        file: PathBuf,
        /// The text around the token.
        text: Excerpt,
    },
    /// The file is here, but says something else.
    Differs {
        /// What differs.
        problem: String,
    },
    /// The file is not here, or is not the one that was read.
    NotAtHand {
        /// Where it was looked for, and what to do.
        reason: String,
    },
}

/// Traces what `args` ask for.
///
/// # Errors
/// When the split cannot be opened, or has no such row, document or token.
pub fn trace(args: &TraceArgs) -> Result<TraceReport, CommandError> {
    find::trace(args)
}

/// Runs the command: the report goes to `out`.
///
/// # Errors
/// As [`trace`], and when the report cannot be written.
pub fn run(args: &TraceArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    if let (Some(run), Some(step)) = (&args.run, args.step) {
        return step::run(args, run, step, out);
    }
    let report = trace(args)?;
    if args.json {
        write_json(out, &report)?;
    } else {
        text::write(out, &report)?;
    }
    Ok(Outcome::of(report.problems.is_empty()))
}
