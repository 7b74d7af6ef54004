//! The report of an evaluation: `report.json`, every figure beside the digests of what it was computed from.
//!
//! ```text
//! OUT/
//!   report.json    this file; an evaluation without it is unfinished
//!   report.csv     the same figures as a table, one line for each total, source, domain, set and position
//!   report.md      the same figures for people
//!   documents.csv  figures of each document (perplexity, PALOMA)
//!   .work/         only while an evaluation is unfinished: what each rank has scored so far
//! ```
//! Read it from the figure outwards: `results` ─► `setting` (protocol, precision) ─► `model` (checkpoint, digests of
//! its files) ─► `run` (run manifest, recipe, training root) and `dataset` (root, manifest, tokenizer, revision).
//!
//! All sums are nats in float64, over tokens that were *targets*; bytes are UTF-8 bytes of text. `marks` says what a
//! reader must know before using a figure (a source that is missing, documents that were left out). Unknown keys are
//! refused within a version.

mod figures;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::atomic::{Written, write_atomic};
use xlstm_manifests::run_manifest::{DatasetRef, Program, RecipeRef};
use xlstm_manifests::{Error as ContractError, Sha256Digest};

use crate::checkpoint::FileDigest;
use crate::error::{Result, TrainError};

pub use figures::{
    Accuracy, AccuracyFigures, AccuracyLengths, AccuracyPositions, Average, AverageKind, BatchSpeed,
    EndError, ErrorFigures, ErrorLengths, ErrorPositions, Extrapolation, ExtrapolationLength,
    ExtrapolationText, Frequency, GenerationTime, Interval, Named, Paloma, PalomaSource, Perplexity,
    Position, ScaledAccuracy, SquaredError, Statistics, Throughput,
};

/// The value of `format`.
pub const REPORT_FORMAT: &str = "xlstm-evaluation";
/// The version written, and the newest one read.
pub const REPORT_VERSION: u32 = 1;
/// The report's name in an evaluation's folder.
pub const REPORT_NAME: &str = "report.json";
/// Perplexities end here, as in PALOMA's official evaluator: JSON has no infinity.
pub const MAX_PERPLEXITY: f64 = 1e30;

/// An evaluation: what was measured, on what, by what, and the figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Always [`REPORT_FORMAT`].
    pub format: String,
    /// [`REPORT_VERSION`] when written.
    pub version: u32,
    /// The parameters.
    pub model: ModelLink,
    /// The run that they come from; absent for a file by itself.
    pub run: Option<RunLink>,
    /// The data; absent where none was needed (throughput).
    pub dataset: Option<DatasetLink>,
    /// The program that measured.
    pub program: Program,
    /// How it measured, as far as it decides the figures.
    pub setting: Setting,
    /// What it took. Decides no figure but those of a throughput measurement.
    pub effort: Effort,
    /// What a reader must know before using the figures.
    pub marks: Vec<Mark>,
    /// The figures.
    pub results: Results,
}

/// The parameters that were evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelLink {
    /// Where they were, as found from the command line. A hint: the digests are what counts.
    pub path: PathBuf,
    /// The checkpoint's step; absent for a file by itself.
    pub step: Option<u64>,
    /// Tokens that the model was trained on up to that step.
    pub tokens: Option<u64>,
    /// Size and SHA-256 of the checkpoint's files, by name. All were recomputed before the evaluation.
    pub files: BTreeMap<String, FileDigest>,
    /// Trainable numbers.
    pub parameters: u64,
    /// In the paper's terms: `xLSTM[7:1], 24 blocks (sLSTM at 3, 20), width 768`.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocabulary_size: u64,
    /// Tokens of the contexts that it was trained with; absent where that is not recorded, and in older reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
}

/// The run that a checkpoint belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLink {
    /// Its folder, as given. A hint.
    pub path: PathBuf,
    /// SHA-256 of its `run.json` at the time of the evaluation (a resume appends to it).
    pub manifest_sha256: Sha256Digest,
    /// Its recipe.
    pub recipe: RecipeRef,
    /// Its training split; of a mixture its root and its totals.
    pub train: DatasetRef,
    /// The datasets of a mixture; absent where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<DatasetRef>,
}

impl RunLink {
    /// The datasets that it was trained on: one, or those of a mixture.
    #[must_use]
    pub fn trained_on(&self) -> &[DatasetRef] {
        if self.mixture.is_empty() { std::slice::from_ref(&self.train) } else { &self.mixture }
    }
}

/// The split that was evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetLink {
    /// Its folder, as given. A hint.
    pub path: PathBuf,
    /// Its identity.
    pub root: Sha256Digest,
    /// SHA-256 of its `manifest.json`.
    pub manifest_sha256: Sha256Digest,
    /// Its split.
    pub split: String,
    /// The profile it was prepared from.
    pub profile: String,
    /// Repository on the Hub.
    pub repository: Option<String>,
    /// Commit of that repository.
    pub revision: Option<String>,
    /// Its documents in all.
    pub documents: u64,
    /// Its tokens in all.
    pub tokens: u64,
    /// The tokenizer's name.
    pub tokenizer: String,
    /// Digest of what pins the tokenizer's behavior (`identity::tokenizer`).
    pub tokenizer_sha256: Sha256Digest,
}

/// What decides the figures besides model and data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// How text is cut into what one forward pass sees, and how figures are averaged.
    pub protocol: Protocol,
    /// Tokens that one forward pass sees at most.
    pub context_length: u64,
    /// Type of the matrix products: `float32`, `bfloat16`, `float64`.
    pub precision: String,
    /// Where it computed: `cpu (2 threads, AVX2)`, a GPU's name.
    pub device: String,
    /// Whether the state is reset where a document begins inside a row.
    pub reset_at_document_boundaries: bool,
    /// The part of the data that was asked for: the first so many rows or documents; absent: all.
    pub first: Option<u64>,
    /// The counts by token that figures by frequency are of; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountsLink>,
}

/// Counts by token, as `xlstm-data count` writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountsLink {
    /// The file, as it was given.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: Sha256Digest,
    /// Root of the split that was counted.
    pub root: Sha256Digest,
}

/// How text is cut and scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A packed split's rows, as in training: each row is a context of its own, its first input the separator.
    PackedRows,
    /// xLSTM paper, section 4.3: each document in windows of 2048; the last is filled up with preceding tokens, of
    /// which only the remaining ones are scored. Averages are the paper's.
    Paper,
    /// In older reports only: what [`Self::Paper`] does, under another name.
    Official,
    /// PALOMA's text (guideline G5): as above, but windows never overlap; the last one is short.
    Disjoint,
    /// Long stretches of tokens, of growing length.
    Extrapolation,
    /// No data: time is measured.
    Throughput,
    /// The targets that a split of examples stores, each example a context of its own.
    StoredTargets,
}

/// What an evaluation took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// Seconds of all ranks together, also in earlier sessions that were killed, for batches that were finished.
    pub seconds: f64,
    /// Tokens through the model a second, of all ranks together; context is counted, padding is not. Absent where no time
    /// was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Ranks of the last session.
    pub world: u64,
}

impl Effort {
    /// `tokens` through the model on `world` ranks side by side, in `seconds` of all of them together.
    #[must_use]
    pub fn new(tokens: f64, seconds: f64, world: u64) -> Self {
        Self { seconds, tokens_per_second: rate(tokens * world as f64, seconds), world }
    }
}

/// `count` a second; `None` where no time passed.
#[must_use]
pub fn rate(count: f64, seconds: f64) -> Option<f64> {
    Some(count / seconds).filter(|rate| seconds > 0.0 && rate.is_finite())
}

/// Something that a reader must know before using a figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// What kind of thing, for programs.
    pub kind: MarkKind,
    /// The same in words, for people.
    pub text: String,
}

/// Kinds of marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// A source of PALOMA has no document in the dataset.
    MissingSource,
    /// The dataset left records out, or holds documents without tokens.
    LeftOut,
    /// Documents of a single token, whose only prediction comes from the separator.
    ShortDocuments,
    /// Only a part of the data was evaluated.
    Partial,
    /// It could not be checked that the model was trained with the dataset's tokenizer.
    TokenizerUnchecked,
    /// The model's run is not known: a file by itself.
    NoRun,
    /// The dataset was evaluated in windows that its manifest does not have.
    OtherWindows,
    /// The windows are longer than the contexts that the model was trained with.
    LongerThanTrained,
    /// The split is the one that the model was trained on.
    TrainingData,
    /// Frequencies are not those of the split that the model was trained on, or it is not known.
    OtherCounts,
    /// The split's files were compared with nothing: where they are from is only claimed.
    OnlyClaimed,
}

/// The figures, by kind of evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Results {
    /// `xlstm-eval perplexity`.
    Perplexity(Perplexity),
    /// `xlstm-eval paloma`.
    Paloma(Paloma),
    /// `xlstm-eval extrapolate`.
    Extrapolation(Extrapolation),
    /// `xlstm-eval throughput`.
    Throughput(Throughput),
    /// `xlstm-eval accuracy`.
    Accuracy(Accuracy),
    /// `xlstm-eval squared-error`.
    SquaredError(SquaredError),
}

#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

impl Report {
    /// The file for a path that names an evaluation's folder or the file itself.
    #[must_use]
    pub fn locate(path: &Path) -> PathBuf {
        if path.is_dir() { path.join(REPORT_NAME) } else { path.into() }
    }

    /// Reads a report.
    ///
    /// # Errors
    /// When it is missing, is none, or is newer than this program.
    pub fn load(path: &Path) -> Result<Self> {
        let path = Self::locate(path);
        let hint = "name the folder that `xlstm-eval … --out` was given, of a finished evaluation";
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(TrainError::file(&path, "an evaluation's report", "no such file", hint));
            }
            Err(error) => return Err(error.into()),
        };
        let damaged = |error: serde_json::Error| {
            TrainError::file(&path, "an evaluation's report", error.to_string(), hint)
        };
        let header: Header = serde_json::from_slice(&bytes).map_err(damaged)?;
        if header.format != REPORT_FORMAT {
            let expected = format!("format `{REPORT_FORMAT}`");
            return Err(TrainError::file(&path, expected, format!("`{}`", header.format), hint));
        }
        if header.version > REPORT_VERSION {
            let (found, supported) = (header.version, REPORT_VERSION);
            return Err(ContractError::NewerVersion { path, found, supported }.into());
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// Writes `report.json` into `folder`, whole or not at all.
    ///
    /// # Errors
    /// When writing fails.
    pub fn store(&self, folder: &Path) -> Result<Written> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(TrainError::internal)?;
        bytes.push(b'\n');
        Ok(write_atomic(&folder.join(REPORT_NAME), &bytes)?)
    }

    /// The figure that stands for the whole evaluation: a perplexity, where there is one.
    #[must_use]
    pub fn headline(&self) -> Option<f64> {
        match &self.results {
            Results::Perplexity(results) => Some(results.total.perplexity),
            Results::Paloma(results) => Some(results.total.perplexity),
            Results::Extrapolation(results) => results.lengths.last().map(|length| length.perplexity),
            Results::Throughput(_) | Results::Accuracy(_) | Results::SquaredError(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_speed_stands_on_no_time() {
        assert_eq!(Effort::new(10.0, 4.0, 2).tokens_per_second, Some(5.0));
        let none = Effort::new(10.0, 0.0, 1);
        assert_eq!(none.tokens_per_second, None);
        assert_eq!(rate(0.0, 0.0), None);
        let written = serde_json::to_string(&none).unwrap();
        assert!(!written.contains("tokens_per_second"), "{written}");
        assert_eq!(serde_json::from_str::<Effort>(&written).unwrap(), none);
    }

    #[test]
    fn a_report_comes_back_as_it_was_and_strangers_are_refused() {
        let digest = Sha256Digest::of(b"x");
        let program = crate::environment::program_named("xlstm-eval");
        let lengths = vec![ExtrapolationLength {
            length: 4096,
            contexts: 2,
            tokens: 8192,
            nll: 0.1 + 0.2,
            perplexity: 1.0 / 3.0,
            perplexity_interval: Some(Interval { low: 0.3, high: 0.4 }),
        }];
        let report = Report {
            format: REPORT_FORMAT.into(),
            version: REPORT_VERSION,
            model: ModelLink {
                path: "model.safetensors".into(),
                step: None,
                tokens: None,
                files: BTreeMap::from([("m".to_owned(), FileDigest { size: 1, sha256: digest })]),
                parameters: 1,
                architecture: "xLSTM[1:0]".into(),
                vocabulary_size: 64,
                context_length: None,
            },
            run: None,
            dataset: None,
            program,
            setting: Setting {
                protocol: Protocol::Extrapolation,
                context_length: 4096,
                precision: "float32".into(),
                device: "cpu".into(),
                reset_at_document_boundaries: false,
                first: None,
                counts: None,
            },
            effort: Effort { seconds: 1.5, tokens_per_second: Some(2.5), world: 1 },
            marks: vec![Mark { kind: MarkKind::NoRun, text: "no run".into() }],
            results: Results::Extrapolation(Extrapolation {
                text: ExtrapolationText::Documents,
                trained_length: Some(2048),
                lengths,
                positions: vec![],
            }),
        };
        let folder = tempfile::tempdir().unwrap();
        report.store(folder.path()).unwrap();
        assert_eq!(Report::load(folder.path()).unwrap(), report);
        assert_eq!(report.headline(), Some(1.0 / 3.0));
        let path = folder.path().join(REPORT_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
        assert!(Report::load(&path).unwrap_err().to_string().contains("version 2"));
        fs_err::write(&path, text.replacen("\"trained_length\"", "\"trained\"", 1)).unwrap();
        assert!(Report::load(&path).unwrap_err().to_string().contains("trained"));
    }
}
