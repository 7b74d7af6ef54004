//! What can be chosen of a task. The same names stand in manifests, in recipes and, with dashes, on the command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TaskError;

/// Numbers from `min` to `max`, both included. Written `3..40` on the command line and `[3, 40]` in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Range {
    /// The smallest.
    pub min: u32,
    /// The largest.
    pub max: u32,
}

impl Range {
    /// Refuses an empty range.
    pub(super) fn check(self, task: &str, option: &str) -> Result<(), TaskError> {
        if self.min <= self.max && self.min > 0 {
            return Ok(());
        }
        Err(TaskError::Parameter(format!(
            "{task}: expected {option} MIN..MAX with 1 ≤ MIN ≤ MAX, both included, found {self}"
        )))
    }
}

impl From<(u32, u32)> for Range {
    fn from((min, max): (u32, u32)) -> Self {
        Self { min, max }
    }
}

impl From<Range> for (u32, u32) {
    fn from(range: Range) -> Self {
        (range.min, range.max)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}..{}", self.min, self.max)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (min, max) = text.split_once("..")?;
            Some(Self { min: min.parse().ok()?, max: max.parse().ok()? })
        };
        parse().ok_or_else(|| format!("expected MIN..MAX, both included, such as 3..40, found `{text}`"))
    }
}

/// Which of several most frequent symbols is the answer of `majority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// The one with the smallest id.
    #[default]
    Smallest,
    /// The one that occurs first.
    First,
}

/// Chosen parameters; what is absent has the paper's value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    /// Formal languages: lengths in training [default: 3..40]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_length: Option<Range>,
    /// Formal languages: lengths in validation and test [default: 40..256]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation_length: Option<Range>,
    /// Lengths [default: 501..1999 for ListOps, 2..64 for nearest-neighbor search]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Range>,
    /// Positions in a row [default: 256 for formal languages, 2048 for ListOps]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_length: Option<u32>,
    /// `majority`: which of several is the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ties: Option<Ties>,
    /// MQAR: number of ids [default: 8192]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<u32>,
    /// MQAR: tokens of a sample [default: 64]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// MQAR: key-value pairs [default: 4]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<u32>,
}

impl Parameters {
    /// Refuses what is given and not among the `taken` names.
    pub(super) fn only(&self, task: &str, taken: &[&str]) -> Result<(), TaskError> {
        let given = [
            ("train_length", self.train_length.is_some()),
            ("evaluation_length", self.evaluation_length.is_some()),
            ("length", self.length.is_some()),
            ("row_length", self.row_length.is_some()),
            ("ties", self.ties.is_some()),
            ("vocabulary", self.vocabulary.is_some()),
            ("context_length", self.context_length.is_some()),
            ("pairs", self.pairs.is_some()),
        ];
        match given.iter().find(|(name, given)| *given && !taken.contains(name)) {
            Some((name, _)) => Err(TaskError::Parameter(format!(
                "{task} has no parameter `{name}`; it has {}",
                taken.join(", ")
            ))),
            None => Ok(()),
        }
    }
}
