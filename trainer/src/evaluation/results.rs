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

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::atomic::{Written, write_atomic};
use xlstm_manifests::run_manifest::{DatasetRef, Program, RecipeRef};
use xlstm_manifests::{Error as ContractError, Sha256Digest};

use crate::checkpoint::FileDigest;
use crate::error::{Result, TrainError};

/// The value of `format`.
pub const REPORT_FORMAT: &str = "xlstm-evaluation";
/// The version written, and the newest one read.
pub const REPORT_VERSION: u32 = 1;
/// The report's name in an evaluation's folder.
pub const REPORT_NAME: &str = "report.json";
/// Perplexities end here, as in PALOMA's official evaluator: JSON has no infinity.
pub const LARGEST_PERPLEXITY: f64 = 1e30;

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
    /// Its training split.
    pub train: DatasetRef,
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
    /// Digest of what pins the tokenizer's behaviour (`identity::tokenizer`).
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
    /// Where it computed: `cpu (2 threads, AVX2)`, a card's name.
    pub device: String,
    /// Whether the state is reset where a document begins inside a row.
    pub reset_at_document_boundaries: bool,
    /// The part of the data that was asked for: the first so many rows or documents; absent: all.
    pub first: Option<u64>,
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
    /// Tokens through the model a second, of all ranks together; context is counted, padding is not.
    pub tokens_per_second: f64,
    /// Ranks of the last session.
    pub world: u64,
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
}

/// Sums over some documents, and what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Documents with at least one scored token.
    pub documents: u64,
    /// Scored tokens.
    pub tokens: u64,
    /// UTF-8 bytes of the documents that were scored whole.
    pub bytes: u64,
    /// Negative log-likelihood of the scored tokens, in nats.
    pub nll: f64,
    /// Nats a token: `nll / tokens`.
    pub loss: f64,
    /// 95 % confidence interval of `loss` over documents (module `statistics`); absent where they are too few.
    pub loss_interval: Option<Interval>,
    /// `exp(loss)`, at most [`LARGEST_PERPLEXITY`].
    pub perplexity: f64,
    /// `exp` of `loss_interval`.
    pub perplexity_interval: Option<Interval>,
    /// `nll / (bytes · ln 2)` over the documents that were scored whole; absent where those have no bytes.
    pub bits_per_byte: Option<f64>,
    /// Its 95 % confidence interval, as that of `loss`.
    pub bits_per_byte_interval: Option<Interval>,
}

/// A confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Statistics with a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The set or domain.
    pub name: String,
    /// Its figures.
    pub statistics: Statistics,
}

/// Targets whose place in the context lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Smallest index, from 0, of the input that the target follows.
    pub first: u64,
    /// Largest.
    pub last: u64,
    /// Targets.
    pub tokens: u64,
    /// Their negative log-likelihood in nats.
    pub nll: f64,
    /// `exp(nll / tokens)`.
    pub perplexity: f64,
}

/// Figures of `xlstm-eval perplexity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {
    /// Over everything.
    pub total: Statistics,
    /// By set, in the manifest's order; documents without a set are in none.
    pub sets: Vec<Named>,
    /// By position in the context, in powers of two.
    pub positions: Vec<Position>,
}

/// Figures of `xlstm-eval paloma`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paloma {
    /// The sixteen sources in the paper's order (Table 4, then Table 9), missing ones too; others after them.
    pub sources: Vec<PalomaSource>,
    /// The averages; each names what it lacks.
    pub averages: Vec<Average>,
    /// Over all tokens of all sources that are there.
    pub total: Statistics,
    /// By position in the context, in powers of two.
    pub positions: Vec<Position>,
}

/// One source of PALOMA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PalomaSource {
    /// Its folder on the Hub: `c4_en`.
    pub source: String,
    /// Its name in the xLSTM paper's tables: `C4`.
    pub name: String,
    /// Over all its tokens; absent when the dataset has none of it.
    pub statistics: Option<Statistics>,
    /// Mean of its domains' perplexities (PALOMA's macro average); absent as above.
    pub macro_perplexity: Option<f64>,
    /// Its domains, in the dataset's order.
    pub domains: Vec<Named>,
    /// Of a source without domains: by the number of its file on the Hub (`00000003`), as Table 10 of the xLSTM paper
    /// lists C4, mC4, Refined Web, Gab and 4chan. In no average.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Named>,
}

/// One average over sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Average {
    /// For programs: see [`AverageKind`].
    pub kind: AverageKind,
    /// What it is, in words.
    pub name: String,
    /// Its perplexity over the sources that are there; absent when there is none.
    pub perplexity: Option<f64>,
    /// Folders of the sources that belong to it and are there.
    pub over: Vec<String>,
    /// Folders of the sources that belong to it and are missing: the figure then compares with no other's.
    pub missing: Vec<String>,
}

/// Which average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AverageKind {
    /// Plain mean of the perplexities of Table 4's twelve sources: the paper's last column.
    PaperTable4,
    /// The same over all sixteen sources.
    MeanOfSources,
    /// Mean over all domains of all sources: every domain weighs the same.
    MeanOfDomains,
    /// `exp` of the mean over all tokens.
    Micro,
    /// The same without the three fringe sources (Manosphere, Gab, 4chan) and code, as in PALOMA's Figure 1.
    MicroWithoutFringeAndCode,
}

/// Figures of `xlstm-eval extrapolate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extrapolation {
    /// Where the long stretches come from.
    pub text: ExtrapolationText,
    /// The context length that the model was trained with.
    pub trained_length: Option<u64>,
    /// One entry for each context length, ascending.
    pub lengths: Vec<ExtrapolationLength>,
    /// By position in the longest context, in powers of two.
    pub positions: Vec<Position>,
}

/// Where long stretches of tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtrapolationText {
    /// Documents at least as long as the longest context.
    Documents,
    /// The packed stream, documents joined by separators.
    Stream,
}

/// One context length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtrapolationLength {
    /// Tokens in the context.
    pub length: u64,
    /// Contexts that were scored.
    pub contexts: u64,
    /// Scored tokens, the same ones at every length.
    pub tokens: u64,
    /// Their negative log-likelihood in nats.
    pub nll: f64,
    /// `exp(nll / tokens)`.
    pub perplexity: f64,
    /// Its 95 % confidence interval over the longest contexts; absent where they are too few.
    pub perplexity_interval: Option<Interval>,
}

/// Figures of `xlstm-eval throughput` (paper, Figure 9).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throughput {
    /// Tokens of the prompt.
    pub prefill: u64,
    /// Time against generated tokens, at batch size 1.
    pub generation: Vec<GenerationTime>,
    /// Speed against batch size.
    pub batches: Vec<BatchSpeed>,
}

/// Time to generate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationTime {
    /// Tokens generated after the prompt.
    pub tokens: u64,
    /// Seconds since the prompt was handed over, median of the repetitions.
    pub seconds: f64,
}

/// Generation speed of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSpeed {
    /// Sequences at once.
    pub batch: u64,
    /// Tokens generated for each of them.
    pub tokens: u64,
    /// Tokens a second over the batch, prompt included in the time, median of the repetitions.
    pub tokens_per_second: f64,
}

/// Figures of `xlstm-eval accuracy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Over everything.
    pub total: AccuracyFigures,
    /// By the examples' length, ascending; lengths without an example are left out.
    pub lengths: Vec<AccuracyLengths>,
    /// By the position at which a target stands, from 0, ascending; positions without a target are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<AccuracyPositions>,
    /// Of a generated task: the accuracy of a guess, and what is beyond it as a share of what could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<ScaledAccuracy>,
}

/// Accuracy as the paper's Figure 4 has it: 0 is a guess, 1 is perfect; below a guess it is negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaledAccuracy {
    /// Accuracy of a guess among the possible answers: a number of the task, not of the split.
    pub chance: f64,
    /// `(accuracy - chance) / (1 - chance)` over everything.
    pub total: f64,
}

impl ScaledAccuracy {
    /// Of an accuracy, where a guess has `chance`.
    #[must_use]
    pub fn of(accuracy: f64, chance: f64) -> Self {
        Self { chance, total: (accuracy - chance) / (1.0 - chance) }
    }
}

/// Targets whose position lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyPositions {
    /// First position, from 0.
    pub first: u64,
    /// Last.
    pub last: u64,
    /// Targets there.
    pub targets: u64,
    /// Those whose logit was the largest.
    pub correct: u64,
    /// `correct / targets`.
    pub accuracy: f64,
    /// Their negative log-likelihood, in nats.
    pub nll: f64,
}

impl AccuracyPositions {
    /// The position, or the range of positions, in words.
    #[must_use]
    pub fn name(&self) -> String {
        range_name(self.first, self.last)
    }
}

fn range_name(first: u64, last: u64) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

/// How many targets of some examples came out first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyFigures {
    /// Examples.
    pub examples: u64,
    /// Their scored targets.
    pub targets: u64,
    /// Targets whose logit was the largest of the whole vocabulary.
    pub correct: u64,
    /// `correct / targets`.
    pub accuracy: f64,
    /// Its 95 % confidence interval over examples (delta method for a ratio of sums), cut to 0 and 1; absent where they are
    /// too few.
    pub accuracy_interval: Option<Interval>,
    /// Negative log-likelihood of the targets, in nats.
    pub nll: f64,
    /// Nats a target: `nll / targets`.
    pub loss: f64,
}

/// Examples whose length lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyLengths {
    /// Fewest positions that count.
    pub first: u64,
    /// Most.
    pub last: u64,
    /// Their figures.
    pub figures: AccuracyFigures,
}

impl AccuracyLengths {
    /// The length, or the range of lengths, in words.
    #[must_use]
    pub fn name(&self) -> String {
        range_name(self.first, self.last)
    }
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
            Results::Throughput(_) | Results::Accuracy(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            },
            effort: Effort { seconds: 1.5, tokens_per_second: 2.5, world: 1 },
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
