//! What is scored: a split as sequences, each token a target exactly once.
//!
//! ```text
//! sequence   one context of the model: a stretch of a packed row, or a window of a document
//! part       the targets of one document within one sequence
//! document   its parts in stream order; its figure is their sum, whatever was computed together
//! ```
//! Sequences, parts and documents are numbered before anything is computed. What a sequence contributes has a fixed
//! place, so figures do not depend on batches, ranks or interruptions.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use xlstm_manifests::documents::{DocumentShard, Window, read_windows, windows};
use xlstm_manifests::manifest::{Layout, Manifest};
use xlstm_manifests::rows::{Rows as _, Sequences, shift};
use xlstm_manifests::{Dataset, Error as ContractError};

use super::results::Protocol;
use crate::error::{Result, TrainError};

/// What text is stored as, where its next tokens are to be predicted.
pub(super) const TEXT_LAYOUTS: &str = "text: layout `packed` or `documents`";
/// What to do about a split of examples in its place.
pub(super) const TEXT_HINT: &str =
    "the targets of examples are stored, not the next token: score them with `xlstm-eval accuracy`";

/// Positions in the context are counted in groups of powers of two: 0, 1, 2 to 3, 4 to 7, …
#[must_use]
pub fn position_group(position: usize) -> usize {
    (usize::BITS - position.leading_zeros()) as usize
}

/// The positions of group `group`.
#[must_use]
pub fn positions_of(group: usize) -> Range<u64> {
    if group == 0 { 0..1 } else { 1 << (group - 1)..1 << group }
}

/// A document of the split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentInfo {
    /// Index into [`Corpus::sets`].
    pub set: Option<u32>,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Its tokens, with the separator where the layout has one.
    pub tokens: u64,
    /// Index into the manifest's inputs.
    pub input: u32,
    /// Record number in that input.
    pub record: u64,
}

/// Targets of one document in one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index into [`Corpus::documents`].
    pub document: u32,
    /// Targets.
    pub tokens: u32,
}

/// One context of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    place: SequenceSource,
    /// Tokens that go in.
    pub length: u32,
    /// How many of them come before the one that the first target follows.
    pub skipped: u32,
    /// Its parts, in [`Corpus::parts`], in target order.
    pub parts: Range<usize>,
}

impl Sequence {
    /// Targets.
    #[must_use]
    pub fn targets(&self) -> usize {
        (self.length - self.skipped) as usize
    }

    /// Groups of positions that its targets can lie in: see [`position_group`].
    #[must_use]
    pub fn groups(&self) -> usize {
        position_group((self.length as usize).saturating_sub(1)) + 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SequenceSource {
    /// From token `start` of a row on.
    Row { row: u64, start: u32 },
    /// A window of document `document` of shard `shard`.
    Window { shard: u32, window: Window },
}

/// The tokens of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceTokens {
    /// What goes in, [`Sequence::length`] ids.
    pub inputs: Vec<i64>,
    /// What is to come out, for all but the first [`Sequence::skipped`] inputs.
    pub targets: Vec<i64>,
    /// Inputs at which a document begins; empty where the caller did not ask.
    pub resets: Vec<usize>,
}

#[derive(Debug)]
enum Data {
    Packed(Box<Dataset>),
    Documents(Vec<DocumentShard>),
}

/// How a split is to be cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// How documents become windows. A packed split's rows are always cut as in training.
    pub protocol: Protocol,
    /// Tokens that a sequence has at most; none: as the split was prepared for.
    pub context_length: Option<u32>,
    /// Only the first rows (packed) or documents; none: all.
    pub first: Option<u64>,
    /// Whether to note where documents begin inside a row.
    pub resets: bool,
}

/// A split, cut into sequences.
#[derive(Debug)]
pub struct Corpus {
    manifest: Manifest,
    data: Data,
    separator: u16,
    resets: bool,
    /// Tokens that a sequence has at most.
    pub context_length: u32,
    /// Names of sets; `source/domain` for PALOMA.
    pub sets: Vec<String>,
    /// The documents that have a target, in stream order.
    pub documents: Vec<DocumentInfo>,
    /// All parts, in stream order.
    pub parts: Vec<Part>,
    /// All sequences, in stream order.
    pub sequences: Vec<Sequence>,
    /// Documents of the split without a single token.
    pub empty_documents: u64,
    /// Whether windows are not those that the split was prepared with.
    pub other_windows: bool,
    /// The bucket of each id, by how often it occurs in the training split, where figures by frequency are wanted.
    pub buckets: Option<Vec<u8>>,
}

/// A number as the 32 bits in which an evaluation keeps it.
fn in_32_bits<N: TryInto<u32> + Copy + std::fmt::Display>(what: &str, number: N) -> Result<u32> {
    number.try_into().map_err(|_| {
        let most = u32::MAX;
        TrainError::Usage(format!(
            "expected at most {most} {what}, found {number}: evaluate a part of them with --first"
        ))
    })
}

impl Corpus {
    /// Opens the split whose folder or manifest `path` names and cuts it.
    ///
    /// # Errors
    /// When a file cannot be read, or the context length does not fit the split's rows.
    pub fn open(path: &Path, cut: Cut) -> Result<Self> {
        let manifest = Manifest::load(path)?;
        let row_length = manifest.packing.row_length;
        let context_length = cut.context_length.unwrap_or(row_length);
        let separator = manifest.tokenizer.end_of_text;
        let resets = match manifest.layout {
            Layout::Packed => cut.resets,
            Layout::Documents | Layout::Examples | Layout::Vectors => false,
        };
        let mut corpus = Self {
            data: Data::Documents(Vec::new()),
            separator,
            resets,
            context_length,
            sets: Vec::new(),
            documents: Vec::new(),
            parts: Vec::new(),
            sequences: Vec::new(),
            empty_documents: 0,
            other_windows: false,
            buckets: None,
            manifest,
        };
        match corpus.manifest.layout {
            Layout::Packed => {
                if context_length == 0 || row_length % context_length != 0 {
                    return Err(TrainError::Usage(format!(
                        "expected a context length that divides the rows of {row_length} tokens of `{}`, found \
                         {context_length}",
                        path.display()
                    )));
                }
                let dataset = Dataset::open(path)?;
                corpus.cut_rows(&dataset, cut.first)?;
                corpus.data = Data::Packed(Box::new(dataset));
            }
            Layout::Documents => corpus.cut_documents(path, cut)?,
            layout @ (Layout::Examples | Layout::Vectors) => {
                let file = Manifest::locate(path);
                return Err(TrainError::file(&file, TEXT_LAYOUTS, format!("layout `{layout}`"), TEXT_HINT));
            }
        }
        Ok(corpus)
    }

    /// The split's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn cut_rows(&mut self, dataset: &Dataset, first: Option<u64>) -> Result<()> {
        self.sets = self.manifest.sets.iter().map(|set| set.name.clone()).collect();
        let rows = dataset.rows().min(first.unwrap_or(u64::MAX));
        let row_length = u64::from(self.manifest.packing.row_length);
        let end = (rows * row_length).min(self.manifest.totals.tokens);
        // Where each document ends in the stream; spans tile it.
        let mut ends = Vec::new();
        for number in 0..self.manifest.shards.len() {
            for span in dataset.spans(number)?.iter() {
                let start = span.row * row_length + u64::from(span.offset);
                if start >= end {
                    break;
                }
                ends.push(start + span.length);
                self.documents.push(DocumentInfo {
                    set: span.set.map(u32::from),
                    bytes: span.bytes,
                    tokens: span.length,
                    input: span.input,
                    record: span.record,
                });
            }
        }
        let context = u64::from(self.context_length);
        let mut document = 0;
        for sequence in 0..end.div_ceil(context) {
            let (start, stop) = (sequence * context, ((sequence + 1) * context).min(end));
            let (first_part, mut position) = (self.parts.len(), start);
            while position < stop {
                while ends.get(document).is_some_and(|&end| end <= position) {
                    document += 1;
                }
                let Some(&document_end) = ends.get(document) else {
                    let folder = dataset.folder();
                    let found = format!("none at token {position} of the stream");
                    return Err(ContractError::damaged(folder, "a document for every token", found).into());
                };
                let until = document_end.min(stop);
                self.parts.push(Part {
                    document: in_32_bits("documents", document)?,
                    tokens: in_32_bits("tokens in a part", until - position)?,
                });
                position = until;
            }
            self.sequences.push(Sequence {
                place: SequenceSource::Row {
                    row: start / row_length,
                    start: in_32_bits("tokens in a row", start % row_length)?,
                },
                length: in_32_bits("tokens in a sequence", stop - start)?,
                skipped: 0,
                parts: first_part..self.parts.len(),
            });
        }
        Ok(())
    }

    fn cut_documents(&mut self, path: &Path, cut: Cut) -> Result<()> {
        let file = Manifest::locate(path);
        let folder = file.parent().unwrap_or(Path::new("."));
        let prepared = self.manifest.packing.row_length;
        self.other_windows = self.context_length != prepared;
        let length = u16::try_from(self.context_length).ok().filter(|&length| length > 0);
        let length = length.ok_or_else(|| {
            let found = self.context_length;
            TrainError::Usage(format!("expected a context length from 1 to 65535, found {found}"))
        })?;
        let mut sets: HashMap<String, u32> = HashMap::new();
        let mut shards = Vec::new();
        let mut left = cut.first.unwrap_or(u64::MAX);
        for (number, record) in self.manifest.shards.clone().iter().enumerate() {
            let shard = DocumentShard::open(&record.file.path.resolve(folder)?, record.file.records)?;
            let stored = read_windows(&record.companion.path.resolve(folder)?, record.companion.records)?;
            let mut stored = stored.into_iter().peekable();
            for (row, document) in shard.iter().enumerate() {
                if left == 0 {
                    break;
                }
                left -= 1;
                let row = in_32_bits("documents in a shard", row)?;
                let tokens = document.ids.len() as u64;
                if tokens == 0 {
                    self.empty_documents += 1;
                    continue;
                }
                let name = if document.domain == document.source {
                    document.source
                } else {
                    format!("{}/{}", document.source, document.domain)
                };
                let next = in_32_bits("sets", sets.len())?;
                let set = *sets.entry(name.clone()).or_insert(next);
                if set == next {
                    self.sets.push(name);
                }
                self.documents.push(DocumentInfo {
                    set: Some(set),
                    bytes: document.bytes,
                    tokens,
                    input: document.input,
                    record: document.record,
                });
                let shard_number = in_32_bits("shards", number)?;
                if self.other_windows {
                    for window in windows(row, tokens, length) {
                        self.push_window(shard_number, window, cut.protocol)?;
                    }
                } else {
                    while let Some(window) = stored.next_if(|window| window.document == row) {
                        self.push_window(shard_number, window, cut.protocol)?;
                    }
                }
            }
            shards.push(shard);
        }
        self.data = Data::Documents(shards);
        Ok(())
    }

    fn push_window(&mut self, shard: u32, mut window: Window, protocol: Protocol) -> Result<()> {
        if protocol == Protocol::Disjoint {
            window.context = 1;
        }
        let first = self.parts.len();
        let document = in_32_bits("documents", self.documents.len() - 1)?;
        self.parts.push(Part { document, tokens: u32::from(window.predicted) });
        self.sequences.push(Sequence {
            place: SequenceSource::Window { shard, window },
            length: u32::from(window.context) + u32::from(window.predicted) - 1,
            skipped: u32::from(window.context) - 1,
            parts: first..self.parts.len(),
        });
        Ok(())
    }

    /// The tokens of a sequence.
    ///
    /// # Errors
    /// When a shard cannot be read, or a window reaches outside its document.
    pub fn tokens(&self, sequence: &Sequence) -> Result<SequenceTokens> {
        match (&self.data, sequence.place) {
            (Data::Packed(dataset), SequenceSource::Row { row, start }) => {
                let mut read = Sequences::default();
                dataset.read(row, self.resets, &mut read)?;
                let own = start as usize..(start + sequence.length) as usize;
                let resets = read.starts.get(own.clone()).unwrap_or_default();
                Ok(SequenceTokens {
                    resets: resets
                        .iter()
                        .enumerate()
                        .filter_map(|(at, &begins)| begins.then_some(at))
                        .collect(),
                    inputs: read.inputs[own.clone()].to_vec(),
                    targets: read.targets[own].to_vec(),
                })
            }
            (Data::Documents(shards), SequenceSource::Window { shard, window }) => {
                let document =
                    shards.get(shard as usize).and_then(|shard| shard.get(window.document as usize));
                let found = document.and_then(|document| self.window_tokens(&document.ids, window));
                found.ok_or_else(|| {
                    // The audit, which came before, looked at every window.
                    TrainError::Internal(format!("expected window {window:?} inside its document"))
                })
            }
            _ => Err(TrainError::Internal("expected a sequence of this split, found one of another".into())),
        }
    }

    fn window_tokens(&self, ids: &[u16], window: Window) -> Option<SequenceTokens> {
        let start = usize::try_from(window.start).ok()?;
        let end = start.checked_add(usize::from(window.predicted))?;
        // The context's first token is an input only: index -1 stands for the separator.
        let skipped = usize::from(window.context).checked_sub(1)?;
        let first = start.checked_sub(skipped)?;
        let before = first.checked_sub(1).map_or(Some(self.separator), |index| ids.get(index).copied())?;
        let mut read = Sequences::default();
        shift(before, ids.get(first..end)?, &mut read);
        Some(SequenceTokens {
            targets: read.targets.split_off(skipped),
            inputs: read.inputs,
            resets: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_fall_into_powers_of_two() {
        for position in [0, 1, 2, 3, 4, 7, 8, 1023, 1024, 2047] {
            assert!(positions_of(position_group(position)).contains(&(position as u64)), "{position}");
        }
        assert_eq!(position_group(2047), 11);
    }
}
