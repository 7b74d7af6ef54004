//! What every reporting command shares: its outcome, its errors, numbers as people read them, and pages.
//!
//! A command prints text, or with `--json` exactly one JSON object, on stdout; `--html FILE` writes a page
//! that needs nothing else: styles, plots (inline SVG) and a small script are inside it and it asks no server for
//! anything.
//! Exit codes: 0 nothing to report, 1 findings or wrong input, 2 a fault of the program.

pub mod axis;
mod cell;
mod curves;
mod html;
mod numbers;
mod order;
mod plot;
#[cfg(test)]
mod tests;

use std::io::Write;

use serde::Serialize;
use xlstm_manifests::printable;

pub use cell::Cell;
pub use curves::{Band, Cloud, Curves, Series};
pub use html::{Page, Table, escape};
pub use numbers::{bytes, count, duration, moment, percent, percent_of, share};
pub use order::{Ranged, Ranked, intervals, rankings};
pub use plot::{Bar, bar_chart, histogram};

use crate::tokenizer::TokenizerError;

/// How a command that could run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Nothing to report: exit code 0.
    Clean,
    /// Something was found that the user must look at: exit code 1.
    Findings,
}

impl Outcome {
    /// [`Outcome::Clean`] when `clean`.
    pub fn of(clean: bool) -> Self {
        if clean { Self::Clean } else { Self::Findings }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Findings => 1,
        }
    }
}

/// Why a command could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// A dataset on disk is not what it should be.
    #[error(transparent)]
    Dataset(#[from] xlstm_manifests::Error),
    /// The operating system refused; the text names the path. It stays visible as the cause, so that a
    /// closed pipe can be told from a full disk.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The arguments ask for something that is not there.
    #[error("{0}")]
    Usage(String),
    /// The tokenizer could not be built.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A value could not be written as JSON, Arrow or Parquet: a fault of the program.
    #[error("internal fault: {0}; please report it")]
    Internal(String),
}

impl CommandError {
    /// The process's exit code: 1 for the user's input or data, 2 for a fault of the program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Internal(_) | Self::Tokenizer(_) => 2,
            Self::Dataset(error) if error.is_internal() => 2,
            _ => 1,
        }
    }
}

/// Writes `value` as one JSON object and a newline.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CommandError::Internal(e.to_string()))?;
    Ok(writeln!(out, "{}", printable::json(&text))?)
}
