//! The figures of a report, kind by kind.

use serde::{Deserialize, Serialize};

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
    /// `exp(loss)`, at most [`super::MAX_PERPLEXITY`].
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
    /// By how often a target occurs in the training split, in decades; empty where no counts were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frequencies: Vec<Frequency>,
}

/// Targets that occur so often in the training split (paper, Figure 2, right).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frequency {
    /// Fewest occurrences.
    pub first: u64,
    /// Most; absent: any number.
    pub last: Option<u64>,
    /// Tokens of the vocabulary that occur so often in the training split.
    pub types: u64,
    /// Targets.
    pub tokens: u64,
    /// Their negative log-likelihood in nats.
    pub nll: f64,
    /// `exp(nll / tokens)`, at most [`super::MAX_PERPLEXITY`]; absent where there is no target.
    pub perplexity: Option<f64>,
}

impl Frequency {
    /// The number of occurrences in words.
    #[must_use]
    pub fn name(&self) -> String {
        match self.last {
            Some(last) => range_name(self.first, last),
            None => format!("{} and more", self.first),
        }
    }
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

/// Figures of `xlstm-eval squared-error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SquaredError {
    /// Over everything.
    pub total: ErrorFigures,
    /// At the last target of each example, where the whole sequence has been seen.
    pub at_end: EndError,
    /// Variance of the targets: the mean squared error of the best constant.
    pub target_variance: f64,
    /// By the examples' length, ascending; lengths without an example are left out.
    pub lengths: Vec<ErrorLengths>,
    /// By the position at which a target stands, from 0, ascending; positions without a target are left out.
    pub positions: Vec<ErrorPositions>,
}

/// How far off the targets of some examples are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorFigures {
    /// Examples.
    pub examples: u64,
    /// Their scored targets.
    pub targets: u64,
    /// Sum of the squares of prediction less target.
    pub squared_error: f64,
    /// `squared_error / targets`.
    pub mean_squared_error: f64,
    /// Its 95 % confidence interval over examples (delta method for a ratio of sums), not below 0; absent where they are
    /// too few.
    pub interval: Option<Interval>,
}

/// How far off the last targets are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndError {
    /// Examples, one last target each.
    pub examples: u64,
    /// Sum of the squares there.
    pub squared_error: f64,
    /// `squared_error / examples`.
    pub mean_squared_error: f64,
    /// Its 95 % confidence interval, not below 0; absent where there are too few.
    pub interval: Option<Interval>,
}

/// Examples whose length lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorLengths {
    /// Fewest positions that count.
    pub first: u64,
    /// Most.
    pub last: u64,
    /// Their figures.
    pub figures: ErrorFigures,
}

impl ErrorLengths {
    /// The length, or the range of lengths, in words.
    #[must_use]
    pub fn name(&self) -> String {
        range_name(self.first, self.last)
    }
}

/// Targets whose position lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorPositions {
    /// First position, from 0.
    pub first: u64,
    /// Last.
    pub last: u64,
    /// Targets there.
    pub targets: u64,
    /// Sum of their squared errors.
    pub squared_error: f64,
    /// `squared_error / targets`.
    pub mean_squared_error: f64,
}

impl ErrorPositions {
    /// The position, or the range of positions, in words.
    #[must_use]
    pub fn name(&self) -> String {
        range_name(self.first, self.last)
    }
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
