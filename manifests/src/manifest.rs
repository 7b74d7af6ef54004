//! The manifest: what a split is, where it came from, every digest and every count.
//!
//! `manifest.json` is canonical JSON (module `canonical`), so the same dataset is the same bytes.
//! Unknown keys are refused within a version: a reader that skipped one could not vouch for the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::canonical;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::identity;
use crate::safe_path::SafePath;
use crate::versioned::FileKind;

/// The value of `format`.
pub const FORMAT: &str = "xlstm-dataset";
/// The newest version read; [`Layout::version`] is written.
pub const VERSION: u32 = 3;
/// The file's name inside a split's folder.
pub const MANIFEST_NAME: &str = "manifest.json";

/// How tokens are laid out in shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Documents end to end, each followed by `<|endoftext|>`, cut into rows of equal length.
    Packed,
    /// One row a document, no separator (PALOMA: a document is never packed with another).
    Documents,
    /// One row an example: inputs and targets of equal length, stored side by side.
    Examples,
    /// One row an example of numbers: real-valued inputs, several a position, and targets.
    Vectors,
}

impl Layout {
    /// Its name in a manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::Documents => "documents",
            Self::Examples => "examples",
            Self::Vectors => "vectors",
        }
    }

    /// The oldest version of the format that has it, which is the one written: readers of that version go on.
    #[must_use]
    pub fn version(self) -> u32 {
        match self {
            Self::Packed | Self::Documents => 1,
            Self::Examples => 2,
            Self::Vectors => 3,
        }
    }

    /// Whether rows have one length for the whole split, so that a model can be trained on them.
    #[must_use]
    pub fn has_rows(self) -> bool {
        match self {
            Self::Packed | Self::Examples | Self::Vectors => true,
            Self::Documents => false,
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Everything known about one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// [`Layout::version`] when written.
    pub version: u32,
    /// The dataset's identity: see module `identity`.
    pub root: Sha256Digest,
    /// `train`, `validation`, `test`.
    pub split: String,
    /// Packed rows, documents or examples.
    pub layout: Layout,
    /// Where the documents come from, and under which licenses.
    pub source: Source,
    /// Which of the source's documents were asked for.
    pub selection: Selection,
    /// The tokenizer and what pins its behavior.
    pub tokenizer: Tokenizer,
    /// How tokens became rows.
    pub packing: Packing,
    /// Every file that was read, in stream order.
    pub inputs: Vec<Input>,
    /// Every shard, in stream order.
    pub shards: Vec<Shard>,
    /// Files beside the shards that are neither shard nor spans (PALOMA's domain table).
    pub files: Vec<FileRecord>,
    /// Totals by set, in order of first appearance; spans refer to a set by its index here.
    pub sets: Vec<SetTotals>,
    /// Totals by the license that documents carry themselves, in order of first appearance; spans refer to a license by
    /// its index here. Documents that carry none are in no entry.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub record_licenses: Vec<SetTotals>,
    /// Totals by the source that documents name themselves, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub record_sources: Vec<SetTotals>,
    /// Totals over the split.
    pub totals: Totals,
    /// Merkle root over the rows' tokens (packed), the documents' tokens or the examples.
    pub tokens_root: Sha256Digest,
    /// Merkle root over the documents: input, record, length, digest.
    pub documents_root: Sha256Digest,
    /// Set while this is one task's part of a whole that `merge` puts together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<Part>,
    /// The program that wrote it.
    pub tool: Tool,
}

/// Where documents come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Dataset profile: `slimpajama/original`, `paloma`, `crates`, `local`, …
    pub profile: String,
    /// Repository on the Hub.
    pub repository: Option<String>,
    /// The revision that was asked for.
    pub requested_revision: Option<String>,
    /// The commit that it stood for, 40 hex digits.
    pub resolved_revision: Option<String>,
    /// What is said about the license, and by whom. Statements can contradict each other: all are kept.
    pub licences: Vec<Licence>,
    /// Of generated data: name, version, parameters and seed of the generator, which stand for source files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generator: Option<serde_json::Value>,
    /// What the caller said of files that were compared with nothing; the repository above is then absent. Read it
    /// through [`crate::origin::Origin`], which knows how earlier versions wrote it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub claimed: Option<Claim>,
}

/// What somebody said of a split's inputs without its having been checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The repository on the Hub that they are said to be of.
    pub repository: String,
    /// The revision that was named.
    pub revision: Option<String>,
    /// Who says so.
    pub claimed_by: String,
}

/// One statement about a license.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// Who says so: dataset card, repository metadata, crate manifest.
    pub claimed_by: String,
    /// The statement, quoted.
    pub statement: String,
    /// SPDX expression where the statement is one.
    pub spdx: Option<String>,
}

/// Which documents of the source were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Path of the field that holds the text, for formats that have fields.
    pub text_field: Option<String>,
    /// Path of the field that names the set.
    pub set_field: Option<String>,
    /// Path of the field that names the document, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id_field: Option<String>,
    /// Path of the field that holds a document's own license, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub license_field: Option<String>,
    /// Path of the field that says where a document is from, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_field: Option<String>,
    /// Sets left out, sorted.
    pub exclude_sets: Vec<String>,
    /// The prefix that was asked for: documents in order until their tokens reach this number.
    pub max_tokens: Option<u64>,
    /// The share of documents held out, and which side of the cut this split is.
    pub holdout: Option<Holdout>,
    /// The list of copies that were left out, where one was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drop_duplicates: Option<DropDuplicates>,
    /// What happens to a record that cannot be used: `fail` or `skip` (then counted in `left_out`).
    pub on_bad_record: String,
}

/// A validation split cut by document digest: a document is held out when the first 8 bytes of its
/// SHA-256, read as a big-endian number, are below `fraction` × 2^64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holdout {
    /// Decimal fraction, as given.
    pub fraction: String,
    /// Whether this split is the held-out side.
    pub held_out: bool,
}

/// Copies left out by a list of `xlstm-data duplicates`, which names each by input, record and digest of its text. Those
/// of this split's inputs that the rest of the selection asks for are counted in `left_out` as [`DUPLICATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropDuplicates {
    /// SHA-256 of the list's file.
    pub list_sha256: Sha256Digest,
    /// Documents that the list names, of this split's inputs or others.
    pub documents: u64,
}

/// The reason that a document of the list of [`DropDuplicates`] is counted under.
pub const DUPLICATE: &str = "duplicate";

/// The tokenizer and what pins its behavior.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// `gpt2`.
    pub name: String,
    /// The library that ran it.
    pub engine: String,
    /// That library's version.
    pub engine_version: String,
    /// Vocabulary files by name, with their SHA-256.
    pub files: BTreeMap<String, Sha256Digest>,
    /// Ids are below this number.
    pub vocabulary_size: u32,
    /// Id of the document separator.
    pub end_of_text: u16,
    /// What happens to text that spells a special token.
    pub special_tokens: String,
    /// Digest of the ids of a fixed set of strings: catches a change of behavior that file digests miss.
    pub probe_sha256: Sha256Digest,
}

/// How tokens became rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PackingInFile", into = "PackingInFile")]
pub struct Packing {
    /// Tokens in a row (packed, examples), or in an evaluation window (documents).
    pub row_length: u32,
    /// Rows in a full shard (packed, examples; absent for documents). Decides no token.
    pub rows_per_shard: Option<u64>,
    /// Whether each document is followed by `end_of_text`.
    pub append_end_of_text: bool,
    /// Numbers of a position that go in (vectors; absent where inputs are tokens).
    pub input_width: Option<u32>,
    /// What is to be predicted from a row.
    pub targets: Targets,
}

impl Packing {
    /// The row length in the 16 bits that shards store it in. A manifest that was loaded has no longer rows.
    ///
    /// # Errors
    /// When rows are longer than 65,535 tokens.
    pub fn stored_row_length(&self) -> Result<u16> {
        u16::try_from(self.row_length).map_err(|_| {
            Error::Internal(format!("rows of {} tokens, where {} are the most", self.row_length, u16::MAX))
        })
    }
}

/// What is to be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// Each token from those before it; the separator stands before the first. Module `rows` has the shift.
    NextToken,
    /// What the shards store beside the inputs, position by position, without a shift.
    Stored,
}

/// How version 1 says [`Targets::NextToken`]: one sentence for each layout. They stay, so that the same dataset is
/// the same bytes.
const NEXT_IN_ROW: &str =
    "every valid token of a row is a target; the inputs are the row shifted right by one, end_of_text first";
const NEXT_IN_WINDOW: &str =
    "windows say which tokens are scored after which context; position -1 is end_of_text";
const STORED: &str = "stored";

/// [`Packing`] as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackingInFile {
    row_length: u32,
    rows_per_shard: Option<u64>,
    append_end_of_text: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    input_width: Option<u32>,
    targets: String,
}

impl From<Packing> for PackingInFile {
    fn from(packing: Packing) -> Self {
        let targets = match packing.targets {
            Targets::NextToken if packing.append_end_of_text => NEXT_IN_ROW,
            Targets::NextToken => NEXT_IN_WINDOW,
            Targets::Stored => STORED,
        };
        let Packing { row_length, rows_per_shard, append_end_of_text, input_width, .. } = packing;
        Self { row_length, rows_per_shard, append_end_of_text, input_width, targets: targets.into() }
    }
}

impl TryFrom<PackingInFile> for Packing {
    type Error = String;

    fn try_from(packing: PackingInFile) -> std::result::Result<Self, String> {
        let targets = match packing.targets.as_str() {
            NEXT_IN_ROW | NEXT_IN_WINDOW => Targets::NextToken,
            STORED => Targets::Stored,
            other => {
                return Err(format!(
                    "expected `{STORED}` or one of the two sentences of docs/reference/dataset-format.md in `targets`, found \
                     `{other}`"
                ));
            }
        };
        let PackingInFile { row_length, rows_per_shard, append_end_of_text, input_width, .. } = packing;
        Ok(Self { row_length, rows_per_shard, append_end_of_text, input_width, targets })
    }
}

/// A digest that somebody else published for an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// `sha256`, or `git-blob-sha1` for a small file of a repository.
    pub algorithm: String,
    /// Hex digits.
    pub digest: String,
    /// Who published it: `hub`, `Cargo.lock`.
    pub by: String,
}

/// One file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Path in the repository, or below the folder that was given.
    pub path: SafePath,
    /// How it was read: `jsonl`, `jsonl.zst`, `jsonl.gz`, `parquet`, `text`, `crate`.
    pub format: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 computed before use.
    pub sha256: Sha256Digest,
    /// The digest that was published for it, which the content was checked against.
    pub declared: Option<Declared>,
    /// License of this file where it carries its own.
    pub licence: Option<String>,
    /// What was read from it.
    pub counts: InputCounts,
}

/// What was read from an input. `documents` and the values of `left_out` add up to its records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputCounts {
    /// Documents used.
    pub documents: u64,
    /// Records left out, by reason.
    pub left_out: BTreeMap<String, u64>,
    /// UTF-8 bytes of the used documents' text.
    pub text_bytes: u64,
    /// Tokens of the used documents, separators included.
    pub tokens: u64,
}

/// A file of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Path below the split's folder.
    pub path: SafePath,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Records that it holds.
    pub records: u64,
}

/// A shard with its companion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// The Arrow file; `records` counts rows (packed), documents or examples.
    pub file: FileRecord,
    /// Valid tokens; of examples all positions.
    pub tokens: u64,
    /// Merkle root over this shard's rows or documents: unchanged when the file is recompressed.
    pub tokens_root: Sha256Digest,
    /// Packed: spans of the documents that start in this shard. Examples: their spans. Documents: evaluation windows.
    pub companion: FileRecord,
}

/// Totals of one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTotals {
    /// `redpajama_set_name`, `source/domain` of PALOMA, kind of file, …
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// UTF-8 bytes of text.
    pub text_bytes: u64,
    /// Tokens, separators included.
    pub tokens: u64,
}

/// Totals of a split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Documents.
    pub documents: u64,
    /// UTF-8 bytes of text.
    pub text_bytes: u64,
    /// Tokens, separators included.
    pub tokens: u64,
    /// Rows (packed), documents or examples.
    pub rows: u64,
    /// Records left out, by reason, over all inputs.
    pub left_out: BTreeMap<String, u64>,
}

/// One task's part of a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// 1-based.
    pub index: u32,
    /// How many parts there are.
    pub count: u32,
    /// Digest of the whole's input list and settings: parts of different wholes never mix.
    pub plan: Sha256Digest,
    /// Inputs at the end of the list that no part reads, since `max_tokens` should be reached before them.
    pub not_planned: u64,
    /// What its records had of what the options ask for; none: an older part, or a run of one that was resumed and whose
    /// journal does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<Met>,
}

/// What records had of what options ask for. Whether an option names something that no record has is known only when all
/// parts are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Met {
    /// Options whose field a record has: `--set-field`, `--id-field`, `--license-field`, `--source-field`.
    pub fields: BTreeSet<String>,
    /// Sets that occur, where sets are excluded: those, and some of the others.
    pub sets: BTreeSet<String>,
}

/// The program that wrote a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

const KIND: FileKind = FileKind {
    format: FORMAT,
    version: VERSION,
    file: MANIFEST_NAME,
    what: "a manifest",
    hint: "name the folder of one split (such as DIR/train) of a finished `xlstm-data prepare`",
};

impl Manifest {
    /// The manifest file for a path that names a split's folder or the manifest itself.
    #[must_use]
    pub fn locate(path: &Path) -> PathBuf {
        KIND.locate(path)
    }

    /// Inputs that are byte for byte an earlier one, each with the earlier one before it.
    #[must_use]
    pub fn duplicate_inputs(&self) -> Vec<(&SafePath, &SafePath)> {
        let mut first = BTreeMap::new();
        let mut pairs = Vec::new();
        for input in &self.inputs {
            match first.get(&input.sha256) {
                Some(&earlier) => pairs.push((earlier, &input.path)),
                None => {
                    first.insert(input.sha256, &input.path);
                }
            }
        }
        pairs
    }

    /// Reads and checks a manifest: format, version, shape, paths, sums and `root`. No shard is opened.
    ///
    /// # Errors
    /// When the file is missing, is no manifest, is newer than this program, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self> {
        let path = Self::locate(path);
        let manifest = KIND.read(&path)?;
        identity::check(&path, &manifest)?;
        Ok(manifest)
    }

    /// The bytes of `manifest.json`.
    ///
    /// # Errors
    /// When a count is above 2^53 and so has no canonical form.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        canonical::to_canonical_file(self).map_err(Error::internal)
    }

    /// Every file of the split but the manifest and the checksums.
    pub fn data_files(&self) -> impl Iterator<Item = &FileRecord> {
        self.shards.iter().flat_map(|shard| [&shard.file, &shard.companion]).chain(&self.files)
    }
}
