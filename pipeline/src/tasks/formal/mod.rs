//! The fifteen formal-language tasks of the paper's Section 4.1 and Appendix B.1.1 (Figures 4 and 12), and a variant.
//!
//! A sample is a prompt and an answer, together N tokens, its *length*; for Set and Stack Manipulation, whose answers
//! vary, N is the largest total. N is uniform over the lengths that the task can have inside the split's range: 3 to
//! 40 in training, 40 to 256 in evaluation. The row:
//!
//! ```text
//! input_ids   prompt (P)            PAD × (A − 1)   PAD …
//! targets     none × (P − 1)  answer (A)            none …      length = P + A − 1
//! ```
//! Each [`Language`] is an entry of a table: ids, possible lengths, the accuracy of a guess, and a function that draws.

mod arithmetic;
mod automata;
mod strings;

use serde_json::{Value, json};

use super::random::{Draws, Keys, first_digest_byte};
use super::{Example, Parameters, Range, Split, Task, TaskError, Ties};

/// Of the generators: raised when a change alters samples.
const VERSION: u32 = 1;
/// How often a prompt is drawn for a sample. The rarest share is a quarter: failing this often means there is none.
const ATTEMPTS: u32 = 4096;
/// Fewer different prompts than this at the shortest evaluated length, and splits would be empty or known by heart.
const MIN_PROMPTS: f64 = 4096.0;
/// Longest sample: brackets are drawn by recursion.
const MAX_LENGTH: u32 = 8192;

/// Prompt and answer of a sample, as a language draws them.
#[derive(Debug, Default)]
struct Sample {
    prompt: Vec<u16>,
    answer: Vec<u16>,
}

/// A task's definition.
struct Language {
    name: &'static str,
    vocabulary_size: u32,
    /// A guess is right once in this many times: the paper's random baseline.
    guesses: u32,
    /// Shortest length, and the distance between possible lengths.
    shortest: u32,
    step: u32,
    /// Draws a sample of length `n`.
    draw: fn(n: usize, draws: &mut Draws, ties: Ties, sample: &mut Sample),
    /// How many different prompts of length `n` there are.
    prompts: fn(n: u32) -> f64,
    /// An id as people write it.
    symbol: fn(id: u16) -> String,
}

/// All of them.
fn languages() -> impl Iterator<Item = &'static Language> {
    strings::LANGUAGES.iter().chain(automata::LANGUAGES).chain(arithmetic::LANGUAGES)
}

/// Names of all formal-language tasks.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    languages().map(|language| language.name)
}

/// A formal-language task with its parameters.
pub(super) struct FormalTask {
    language: &'static Language,
    train: Range,
    evaluation: Range,
    row_length: u32,
    ties: Ties,
    seed: u64,
    keys: Keys,
}

impl FormalTask {
    /// The task `name`; nothing if no language has the name.
    pub(super) fn new(name: &str, seed: u64, given: &Parameters) -> Option<Result<Self, TaskError>> {
        let language = languages().find(|language| language.name == name)?;
        Some(Self::with_language(language, seed, given))
    }

    fn with_language(language: &'static Language, seed: u64, given: &Parameters) -> Result<Self, TaskError> {
        let mut taken = vec!["train_length", "evaluation_length", "row_length"];
        if language.name == "majority" {
            taken.push("ties");
        }
        given.only(language.name, &taken)?;
        let train = given.train_length.unwrap_or(Range { min: 3, max: 40 });
        let evaluation = given.evaluation_length.unwrap_or(Range { min: 40, max: 256 });
        let row_length = given.row_length.unwrap_or_else(|| train.max.max(evaluation.max).max(256));
        let ties = given.ties.unwrap_or_default();
        let mut task =
            Self { language, train, evaluation, row_length, ties, seed, keys: Keys::of(&Value::Null)? };
        task.check()?;
        task.keys = Keys::of(&task.spec())?;
        Ok(task)
    }

    fn check(&self) -> Result<(), TaskError> {
        let name = self.language.name;
        for (option, range) in [("train_length", self.train), ("evaluation_length", self.evaluation)] {
            range.check(name, option)?;
            if self.possible(range).is_none() {
                return Err(TaskError::Parameter(format!(
                    "{name} has no sample with a length in {option} {range}: its lengths are {} and every {} from \
                     there on (prompt and answer together)",
                    self.language.shortest,
                    if self.language.step == 1 { "number" } else { "second number" },
                )));
            }
        }
        let longest = self.train.max.max(self.evaluation.max);
        if longest > MAX_LENGTH || self.row_length < longest - 1 || self.row_length > MAX_LENGTH {
            return Err(TaskError::Parameter(format!(
                "{name}: samples of up to {longest} tokens need a row of at least {} and at most {MAX_LENGTH} positions, \
                 found row_length {}",
                longest - 1,
                self.row_length
            )));
        }
        match self.possible(self.evaluation) {
            Some((first, _)) if (self.language.prompts)(first) < MIN_PROMPTS => {
                Err(TaskError::Parameter(format!(
                    "{name} has only {} different prompts of length {first}, too few to be shared out among training, \
                 validation and test: let evaluation_length begin at a length with {MIN_PROMPTS} or more",
                    (self.language.prompts)(first)
                )))
            }
            _ => Ok(()),
        }
    }

    /// First length of the task in `range`, and how many there are.
    fn possible(&self, range: Range) -> Option<(u32, u32)> {
        let Language { shortest, step, .. } = *self.language;
        let first = shortest + range.min.saturating_sub(shortest).div_ceil(step) * step;
        (first <= range.max).then(|| (first, (range.max - first) / step + 1))
    }

    fn range(&self, split: Split) -> Range {
        if split == Split::Train { self.train } else { self.evaluation }
    }

    /// Whether prompts of length `n` are shared out among the splits.
    fn is_shared_out(&self, n: u32) -> bool {
        n >= self.evaluation.min
    }
}

impl Task for FormalTask {
    fn spec(&self) -> Value {
        let mut parameters = json!({
            "train_length": [self.train.min, self.train.max],
            "evaluation_length": [self.evaluation.min, self.evaluation.max],
            "row_length": self.row_length,
        });
        if self.language.name == "majority" {
            parameters["ties"] = json!(self.ties);
        }
        json!({"task": self.language.name, "version": VERSION, "seed": self.seed, "parameters": parameters})
    }

    fn vocabulary_size(&self) -> u32 {
        self.language.vocabulary_size
    }

    fn row_length(&self) -> u32 {
        self.row_length
    }

    fn random_accuracy(&self) -> (u32, u32) {
        (1, self.language.guesses)
    }

    fn symbol(&self, id: u16) -> String {
        if id == super::PAD { "PAD".into() } else { (self.language.symbol)(id) }
    }

    fn distinct(&self, split: Split) -> f64 {
        let Some((first, count)) = self.possible(self.range(split)) else { return 0.0 };
        let share = |n| match (self.is_shared_out(n), split) {
            (false, _) => 1.0,
            (true, Split::Train) => 0.5,
            (true, _) => 0.25,
        };
        (0..count)
            .map(|i| first + i * self.language.step)
            .map(|n| share(n) * (self.language.prompts)(n))
            .sum()
    }

    fn mean_length(&self, split: Split) -> f64 {
        let Some((first, count)) = self.possible(self.range(split)) else { return 0.0 };
        f64::from(first) + f64::from((count - 1) * self.language.step) / 2.0 - 1.0
    }

    fn example(&self, split: Split, number: u64, out: &mut Example) -> Result<(), TaskError> {
        let mut draws = self.keys.draws(split, number);
        let (first, count) = self.possible(self.range(split)).unwrap_or((self.language.shortest, 1));
        let n = first + draws.below(count) * self.language.step;
        let mut sample =
            Sample { prompt: Vec::with_capacity(n as usize), answer: Vec::with_capacity(n as usize) };
        for _ in 0..ATTEMPTS {
            sample.prompt.clear();
            sample.answer.clear();
            (self.language.draw)(n as usize, &mut draws, self.ties, &mut sample);
            if !self.is_shared_out(n) || split.holds(first_digest_byte(&sample.prompt)) {
                write_row(&sample, self.row_length as usize, out);
                return Ok(());
            }
        }
        Err(TaskError::NoPrompt {
            task: self.language.name.into(),
            split,
            number,
            attempts: u64::from(ATTEMPTS),
        })
    }
}

/// Prompt, then masked answer; targets where they are predicted.
fn write_row(sample: &Sample, row_length: usize, out: &mut Example) {
    let (prompt, answer) = (&sample.prompt, &sample.answer);
    out.clear(row_length);
    out.input_ids[..prompt.len()].copy_from_slice(prompt);
    for (target, &id) in out.targets[prompt.len() - 1..].iter_mut().zip(answer) {
        *target = Some(id);
    }
    out.length = prompt.len() + answer.len() - 1;
}
