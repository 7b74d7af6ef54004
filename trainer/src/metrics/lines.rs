//! `metrics.jsonl`: one JSON object a line, appended and flushed, so that a killed run has told everything up to
//! its last step.
//!
//! `kind` is `train` (a step), `validation` (a measurement after a step; 0 is before the first) or `session` (the
//! program started). After a resume from a checkpoint, steps past it appear again: readers take the last line of a
//! kind for a step.

use std::io::{BufRead as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// One line. What does not apply is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// `train`, `validation` or `session`.
    pub kind: String,
    /// The step that it is about.
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// Mean negative log-likelihood in nats a token; of a model of numbers the mean squared error, without a perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// exp(loss).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Share of the scored targets that came out first (validation, where targets are stored).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Norm of all gradients before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Of this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Tokens so far (train), tokens measured (validation).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Over all ranks, since the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Share of the time that training waited for data, since the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_wait_share: Option<f64>,
    /// Operations by the architecture's formula over the device's dense bf16 peak, where that
    /// is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flop_utilization: Option<f64>,
    /// Most memory of the process so far, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Rows measured (validation); fewer than the split has when the recipe names a prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows of the split (validation).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_of_split: Option<u64>,
    /// Entropy of the measured tokens' own frequencies, nats a token (validation).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unigram_entropy: Option<f64>,
    /// Variance of the measured targets, where they are numbers (validation).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_variance: Option<f64>,
    /// Rows of each dataset so far, in the order of the run manifest's `mixture` (train, of a mixture).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_by_dataset: Option<Vec<u64>>,
    /// Ranks (session).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub world: Option<u64>,
}

impl Line {
    /// Whether this is a measurement of something: earlier versions wrote a loss of 0 for a split without rows.
    #[must_use]
    pub fn is_validation(&self) -> bool {
        self.kind == "validation" && self.tokens != Some(0) && self.loss.is_some()
    }
}

/// Appends lines to a file.
pub struct Lines(fs_err::File);

impl Lines {
    /// Opens the file for appending. A last line that a kill cut in two is ended first.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn append(path: &Path) -> Result<Self> {
        let cut = fs_err::read(path).is_ok_and(|content| content.last().is_some_and(|&byte| byte != b'\n'));
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        if cut {
            file.write_all(b"\n")?;
        }
        Ok(Self(file))
    }

    /// Writes one line, in one piece.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(TrainError::internal)?;
        text.push(b'\n');
        self.0.write_all(&text)?;
        Ok(self.0.flush()?)
    }
}

/// All lines that can be read; one that a kill cut in two is left out.
///
/// # Errors
/// When the file cannot be read.
pub fn read_lines(path: &Path) -> Result<Vec<Line>> {
    let reader = std::io::BufReader::new(fs_err::File::open(path)?);
    let mut lines = Vec::new();
    for line in reader.lines() {
        lines.extend(serde_json::from_str(&line?));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = Line { kind: "train".into(), step: 1, loss: Some(2.5), ..Line::default() };
        Lines::append(&path).unwrap().write(&line).unwrap();
        let mut content = fs_err::read(&path).unwrap();
        content.extend(b"{\"kind\":\"tr");
        fs_err::write(&path, content).unwrap();
        let second = Line { step: 2, ..line.clone() };
        Lines::append(&path).unwrap().write(&second).unwrap();
        assert_eq!(read_lines(&path).unwrap(), [line, second]);
    }
}
