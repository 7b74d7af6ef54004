//! Rows as a model takes them: inputs, targets, and where documents begin. Only the dataset knows how they are stored.
//!
//! ```text
//! tokens    t0 t1 t2 … t(n-1)
//! targets   t0 t1 t2 … t(n-1)    each token of the corpus is predicted exactly once
//! inputs    E  t0 t1 … t(n-2)    shifted right; E is the token before them, the separator where there is none
//! ```
//! [`shift`] is the one place where this is done: the loader, validation, evaluation and extrapolation use it. Targets
//! that are stored ([`Targets::Stored`](crate::manifest::Targets)) stand at the position where they are predicted and
//! are not shifted.

use std::fmt::Debug;
use std::path::Path;

use crate::dataset::Dataset;
use crate::error::Result;
use crate::manifest::{Manifest, Packing, Targets};
use crate::packed::Row;
use crate::spans::Span;
use crate::stored::StoredRow;

/// A target at which nothing is predicted, as PyTorch's losses have it.
pub const IGNORE: i64 = -100;

/// A target of numbers at which nothing is predicted: datasets hold finite numbers alone.
pub const NO_NUMBER: f32 = f32::NAN;

/// The positions of some rows, one row after the other: tokens, or of a split of numbers numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sequences {
    /// Tokens that go in.
    pub inputs: Vec<i64>,
    /// What is to come out after it; [`IGNORE`] where nothing is predicted.
    pub targets: Vec<i64>,
    /// Numbers that go in and come out, where they stand in place of tokens.
    pub numbers: Numbers,
    /// Whether a document begins there; empty unless it was asked for.
    pub starts: Vec<bool>,
    /// Positions that count, of each row: what follows them is padding.
    pub lengths: Vec<u16>,
}

/// The positions of some rows of numbers, one row after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbers {
    /// Several a position, as the manifest's `packing.input_width` says.
    pub inputs: Vec<f32>,
    /// One a position; [`NO_NUMBER`] where nothing is predicted.
    pub targets: Vec<f32>,
}

impl Sequences {
    /// Drops all positions and keeps the memory.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.targets.clear();
        self.numbers.inputs.clear();
        self.numbers.targets.clear();
        self.starts.clear();
        self.lengths.clear();
    }

    /// Targets that are predicted.
    #[must_use]
    pub fn scored(&self) -> u64 {
        let tokens = self.targets.iter().filter(|&&target| target != IGNORE).count();
        let numbers = self.numbers.targets.iter().filter(|target| !target.is_nan()).count();
        (tokens + numbers) as u64
    }

    /// Positions, of tokens or of numbers.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.targets.len() + self.numbers.targets.len()
    }

    /// Appends a row of tokens whose targets are stored, `length` positions of which count.
    pub fn push_tokens(&mut self, inputs: &[u16], targets: impl Iterator<Item = Option<u16>>, length: u16) {
        self.inputs.extend(inputs.iter().map(|&id| i64::from(id)));
        self.targets.extend(targets.map(|target| target.map_or(IGNORE, i64::from)));
        self.lengths.push(length);
    }

    /// Appends a row of numbers, `length` positions of which count.
    pub fn push_numbers(&mut self, inputs: &[f32], targets: impl Iterator<Item = Option<f32>>, length: u16) {
        self.lengths.push(length);
        self.numbers.inputs.extend_from_slice(inputs);
        self.numbers.targets.extend(targets.map(|target| target.unwrap_or(NO_NUMBER)));
    }
}

/// Appends `tokens` as targets, each after the one before it; `before` stands before the first.
pub fn shift(before: u16, tokens: &[u16], into: &mut Sequences) {
    let Some((_, earlier)) = tokens.split_last() else { return };
    into.inputs.push(i64::from(before));
    into.inputs.extend(earlier.iter().map(|&id| i64::from(id)));
    into.targets.extend(tokens.iter().map(|&id| i64::from(id)));
}

/// Rows that can be read in any order, from any thread: of one split, or of a mixture of several.
pub trait Readable: Send + Sync {
    /// How all rows are packed.
    fn packing(&self) -> &Packing;

    /// As [`Rows::targets_in`].
    ///
    /// # Errors
    /// As [`Rows::targets_in`].
    fn targets_in(&self, row: u64) -> Result<u64>;

    /// As [`Rows::read`].
    ///
    /// # Errors
    /// As [`Rows::read`].
    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()>;
}

impl<R: Rows + ?Sized> Readable for R {
    fn packing(&self) -> &Packing {
        &self.manifest().packing
    }

    fn targets_in(&self, row: u64) -> Result<u64> {
        Rows::targets_in(self, row)
    }

    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()> {
        Rows::read(self, row, starts, into)
    }
}

/// A split whose rows can be read in any order, from any thread.
pub trait Rows: Debug + Send + Sync {
    /// The manifest.
    fn manifest(&self) -> &Manifest;

    /// The split's folder.
    fn folder(&self) -> &Path;

    /// Number of rows.
    fn rows(&self) -> u64;

    /// Targets of row `row` that are predicted: rows count by it in a mean.
    ///
    /// # Errors
    /// When there is no such row, or its shard cannot be read.
    fn targets_in(&self, row: u64) -> Result<u64>;

    /// Appends the positions of row `row`, as many as the row is long; with `starts` also where documents begin.
    ///
    /// # Errors
    /// When there is no such row, or its shard cannot be read.
    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()>;

    /// The documents that have tokens in row `row`, in stream order.
    ///
    /// # Errors
    /// When a spans file cannot be read.
    fn documents_in_row(&self, row: u64) -> Result<Vec<Span>>;
}

impl Rows for Dataset {
    fn manifest(&self) -> &Manifest {
        Self::manifest(self)
    }

    fn folder(&self) -> &Path {
        Self::folder(self)
    }

    fn rows(&self) -> u64 {
        Self::rows(self)
    }

    /// Of packed rows the manifest says it, and no shard is opened.
    fn targets_in(&self, row: u64) -> Result<u64> {
        let manifest = self.manifest();
        match manifest.packing.targets {
            Targets::NextToken => {
                let row_length = u64::from(manifest.packing.row_length);
                Ok(manifest.totals.tokens.saturating_sub(row.saturating_mul(row_length)).min(row_length))
            }
            Targets::Stored => Ok(self.stored(row)?.map_or(0, |example| example.scored() as u64)),
        }
    }

    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()> {
        let first = into.positions();
        match self.stored(row)? {
            Some(StoredRow::Numbers(example)) => {
                into.push_numbers(example.inputs, example.targets(), example.length);
            }
            Some(StoredRow::Tokens(example)) => {
                into.push_tokens(example.input_ids, example.targets(), example.length);
            }
            None => read_packed(self.row(row)?, self.manifest().tokenizer.end_of_text, into),
        }
        if starts {
            let begin = into.starts.len();
            into.starts.resize(begin + into.positions() - first, false);
            for span in Self::documents_in_row(self, row)? {
                // A row's first position is a beginning anyway.
                let own = span.row == row && span.offset > 0;
                if let Some(start) = into.starts.get_mut(begin + usize::from(span.offset)).filter(|_| own) {
                    *start = true;
                }
            }
        }
        Ok(())
    }

    fn documents_in_row(&self, row: u64) -> Result<Vec<Span>> {
        Self::documents_in_row(self, row)
    }
}

/// Each row is its own context: the separator precedes its first token, however the row before ends.
/// Positions past the end of a short row have the separator as input, which is a known id, and no target.
fn read_packed(row: Row<'_>, separator: u16, into: &mut Sequences) {
    let length = into.inputs.len() + row.ids.len();
    // Rows are not longer than the format's 16 bits.
    into.lengths.push(u16::try_from(row.length).unwrap_or(u16::MAX));
    shift(separator, row.tokens(), into);
    if row.length < row.ids.len() {
        // The last token is an input too: what follows it is not scored.
        into.inputs.extend(row.tokens().last().map(|&id| i64::from(id)));
        into.inputs.resize(length, i64::from(separator));
        into.targets.resize(length, IGNORE);
    }
}

/// Opens the split whose folder or manifest `path` names; rows are checked against the manifest before their first use.
///
/// # Errors
/// As [`Dataset::open_checked`].
pub fn open(path: &Path) -> Result<Box<dyn Rows>> {
    Ok(Box::new(Dataset::open_checked(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once_after_the_one_before() {
        let mut found = Sequences::default();
        shift(9, &[1, 2, 3], &mut found);
        shift(9, &[], &mut found);
        shift(7, &[4], &mut found);
        assert_eq!(found.inputs, [9, 1, 2, 7]);
        assert_eq!(found.targets, [1, 2, 3, 4]);
        assert_eq!(found.scored(), 4);
    }
}
