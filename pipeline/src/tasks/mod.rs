//! Generated experiments: the synthetic tasks of the paper's Section 4.1 and Long Range Arena's ListOps.
//!
//! ```text
//! (task, parameters, seed, split) ─SHA-256─► key ─┐
//!                                sample number ───┴─ChaCha8─► draws ─► prompt, answer ─► Example
//! ```
//! A sample is a function of these and nothing else, so threads, parts and order decide no byte. A row is the
//! prompt, then padding; targets already stand at the position where they are predicted, so a trainer must not
//! shift them. The model never sees an answer token: the first one is predicted at the last token of the prompt,
//! the others at paddings. Splits cannot meet: see [`Split`].

mod formal;
mod list_operations;
mod neighbor;
mod parameters;
mod random;
mod recall;
mod shards;
pub mod streamed;
pub mod written;

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use xlstm_manifests::stored::Stored;
use xlstm_manifests::{examples, vectors};

pub use neighbor::VectorExample;
pub use parameters::{Parameters, Range, Ties};

/// Padding, and the filler of MQAR, in every task.
pub const PAD: u16 = 0;

/// One sample, in vectors as long as a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// What the model reads: the prompt, then [`PAD`].
    pub input_ids: Vec<u16>,
    /// What it must say at each position; `None` is not scored.
    pub targets: Vec<Option<u16>>,
    /// Positions that count: prompt and answer without the answer's last token. Padding follows.
    pub length: usize,
}

impl Example {
    /// An example of `row_length` paddings, to be filled by [`Task::example`].
    #[must_use]
    pub fn empty(row_length: usize) -> Self {
        Self { input_ids: vec![PAD; row_length], targets: vec![None; row_length], length: 0 }
    }

    /// Makes it `row_length` paddings again.
    pub fn clear(&mut self, row_length: usize) {
        self.input_ids.clear();
        self.input_ids.resize(row_length, PAD);
        self.targets.clear();
        self.targets.resize(row_length, None);
        self.length = 0;
    }
}

/// One sample of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// Of tokens.
    Tokens(Example),
    /// Of numbers.
    Numbers(VectorExample),
}

impl Sample {
    /// One of the kind that `task` makes, to be filled.
    #[must_use]
    pub fn empty(task: &dyn Task) -> Self {
        match task.input_width() {
            Some(_) => Self::Numbers(VectorExample::default()),
            None => Self::Tokens(Example::default()),
        }
    }

    /// Makes it sample `number` of `split`.
    ///
    /// # Errors
    /// As [`Task::example`].
    pub fn fill(&mut self, task: &dyn Task, split: Split, number: u64) -> Result<(), TaskError> {
        match self {
            Self::Tokens(example) => task.example(split, number, example),
            Self::Numbers(example) => task.vectors(split, number, example),
        }
    }

    /// Sample `number` of `split`.
    ///
    /// # Errors
    /// As [`Task::example`].
    pub fn make(task: &dyn Task, split: Split, number: u64) -> Result<Self, TaskError> {
        let mut sample = Self::empty(task);
        sample.fill(task, split, number)?;
        Ok(sample)
    }

    /// Positions that count.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Tokens(example) => example.length,
            Self::Numbers(example) => example.length,
        }
    }

    /// It as the format has it. No task's rows are longer than the format stores.
    #[must_use]
    pub fn stored(&self) -> Stored<'_> {
        let length = u16::try_from(self.length()).unwrap_or(u16::MAX);
        match self {
            Self::Tokens(Example { input_ids, targets, .. }) => {
                Stored::Tokens(examples::Example { input_ids, targets, length })
            }
            Self::Numbers(VectorExample { inputs, targets, .. }) => {
                Stored::Numbers(vectors::VectorExample { inputs, targets, length })
            }
        }
    }
}

/// Which of the splits a sample belongs to.
///
/// Prompts of different splits are never equal, although no split reads another one: the first byte of SHA-256
/// over the prompt's ids (u16, little-endian) is at least 128 in training, below 64 in validation, and 64 to 127
/// in the test split. Other prompts are drawn again. Formal-language prompts shorter than any evaluated one are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What learning rates and checkpoints are chosen by.
    Validation,
    /// What is reported.
    Test,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation` or `test`: the folder's name, and part of the random key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// Whether a prompt whose digest begins with `first` belongs here.
    #[must_use]
    pub fn holds(self, first: u8) -> bool {
        match self {
            Self::Train => first >= 128,
            Self::Validation => first < 64,
            Self::Test => (64..128).contains(&first),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = TaskError;

    fn from_str(text: &str) -> Result<Self, TaskError> {
        Self::ALL.into_iter().find(|split| split.name() == text).ok_or_else(|| {
            TaskError::Parameter(format!(
                "expected the split `train`, `validation` or `test`, found `{text}`"
            ))
        })
    }
}

/// Why a task or a sample of it cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// No task has this name.
    #[error("no task is named `{found}`; there are {known}")]
    UnknownTask {
        /// The name as given.
        found: String,
        /// All names.
        known: String,
    },
    /// A parameter that the task cannot have; the text says which, what was expected and what was found.
    #[error("{0}")]
    Parameter(String),
    /// Samples of one kind were wanted of a task that makes the other.
    #[error("{task}: its samples are made of {made_of}")]
    Kind {
        /// The task.
        task: String,
        /// `tokens` or `numbers`.
        made_of: &'static str,
    },
    /// No prompt of the wanted length falls to the split.
    #[error(
        "{task}: none of {attempts} prompts drawn for sample {number} of {split} falls to that split, so there are too \
         few different prompts of its length; evaluate longer ones"
    )]
    NoPrompt {
        /// The task.
        task: String,
        /// The split.
        split: Split,
        /// The sample.
        number: u64,
        /// How many prompts were drawn.
        attempts: u64,
    },
}

/// A generator of samples.
pub trait Task: Send + Sync {
    /// Name, generator version, parameters and seed, in canonical form: all that decides a sample beside split and
    /// number. Its digest stands for the source file in a manifest.
    fn spec(&self) -> Value;

    /// All ids, inputs and targets, are below this number; 1 where a position is one number to be predicted.
    fn vocabulary_size(&self) -> u32;

    /// Numbers of a position, of a task whose rows are made of numbers; `None`: of tokens.
    fn input_width(&self) -> Option<u32> {
        None
    }

    /// Positions in a row.
    fn row_length(&self) -> u32;

    /// The accuracy of a guess, as numerator and denominator: the paper's `s_rand`. Scaled accuracy is
    /// (accuracy − s_rand) / (1 − s_rand). Nobody guesses a real number: 0.
    fn random_accuracy(&self) -> (u32, u32);

    /// An id as people write it.
    fn symbol(&self, id: u16) -> String;

    /// Why the target at position `at` of a sample of numbers is the one it is.
    fn reason(&self, example: &VectorExample, at: usize) -> Option<String> {
        let _ = (example, at);
        None
    }

    /// How many different prompts `split` has, or a number that is not above it.
    fn distinct(&self, split: Split) -> f64;

    /// Mean of [`Example::length`] over `split`.
    fn mean_length(&self, split: Split) -> f64;

    /// Makes sample `number` of `split`, in place of what `out` holds.
    ///
    /// # Errors
    /// When the split has no such sample ([`TaskError::NoPrompt`]), or samples are made of numbers.
    fn example(&self, split: Split, number: u64, out: &mut Example) -> Result<(), TaskError>;

    /// As [`example`](Self::example), where samples are made of numbers ([`input_width`](Self::input_width)).
    ///
    /// # Errors
    /// As [`example`](Self::example); when samples are made of tokens.
    fn vectors(&self, split: Split, number: u64, out: &mut VectorExample) -> Result<(), TaskError> {
        let _ = (split, number, out);
        Err(TaskError::Kind {
            task: self.spec()["task"].as_str().unwrap_or_default().into(),
            made_of: "tokens",
        })
    }
}

/// Names of all tasks that [`by_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    formal::names().chain([recall::NAME, list_operations::NAME, neighbor::NAME])
}

/// The task `name`, with defaults where `parameters` says nothing.
///
/// # Errors
/// When no task has the name, or it cannot have these parameters.
pub fn by_name(name: &str, seed: u64, parameters: &Parameters) -> Result<Box<dyn Task>, TaskError> {
    if let Some(task) = formal::FormalTask::new(name, seed, parameters) {
        return Ok(Box::new(task?));
    }
    match name {
        recall::NAME => Ok(Box::new(recall::Recall::new(seed, parameters)?)),
        list_operations::NAME => Ok(Box::new(list_operations::ListOperations::new(seed, parameters)?)),
        neighbor::NAME => Ok(Box::new(neighbor::NearestNeighbor::new(seed, parameters)?)),
        _ => {
            Err(TaskError::UnknownTask { found: name.into(), known: names().collect::<Vec<_>>().join(", ") })
        }
    }
}

/// The task that [`Task::spec`] describes.
///
/// # Errors
/// When it is not a spec, or of another version of the generator, whose samples would differ.
pub fn from_spec(spec: &Value) -> Result<Box<dyn Task>, TaskError> {
    let fail =
        |what: &str| TaskError::Parameter(format!("expected the spec of a task, found {spec}: {what}"));
    let name = spec["task"].as_str().ok_or_else(|| fail("`task` is no text"))?;
    let seed = spec["seed"].as_u64().ok_or_else(|| fail("`seed` is no number"))?;
    let parameters =
        serde_json::from_value(spec["parameters"].clone()).map_err(|error| fail(&error.to_string()))?;
    let task = by_name(name, seed, &parameters)?;
    if task.spec() == *spec {
        Ok(task)
    } else {
        Err(fail(&format!("this program makes {}; use the version of xlstm-data that wrote it", task.spec())))
    }
}

/// How many examples the paper has: the formal languages' 100,000 steps of 256 (Appendix B.1.1), MQAR's 100,000 and 3,000
/// (B.1.2), the published ListOps' 96,000 and 2,000, nearest-neighbor search's 8192 (B).
#[must_use]
pub fn paper_examples(name: &str, split: Split) -> u64 {
    let [train, others] = match name {
        recall::NAME => [100_000, 3_000],
        list_operations::NAME => [96_000, 2_000],
        neighbor::NAME => [8_192, 8_192],
        _ => [25_600_000, 8_192],
    };
    if split == Split::Train { train } else { others }
}

/// Refuses a split without samples, and one with more than there are.
///
/// # Errors
/// As said.
pub fn check_examples(task: &dyn Task, split: Split, examples: u64) -> Result<(), TaskError> {
    let name = task.spec()["task"].as_str().unwrap_or_default().to_owned();
    if examples == 0 {
        return Err(TaskError::Parameter(format!("{name}, {split}: expected at least one example, found 0")));
    }
    let distinct = task.distinct(split);
    if examples as f64 > distinct {
        return Err(TaskError::Parameter(format!(
            "{name}, {split}: {examples} examples were asked for and only {distinct:.0} different ones are sure to exist: \
             ask for fewer or longer ones"
        )));
    }
    Ok(())
}
