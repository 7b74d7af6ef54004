//! How many tokens the files of a plan will give, from a sample of those that are on this machine.
//!
//! ```text
//! file ─► all of it, or pieces (sources::read_share) ─► wanted documents: counted, bytes of their text
//!                                                   └► every n-th stretch of that text ─► tokenized
//! tokens of the file = (tokens / byte of the stretches × bytes of text + separators) / share that was read
//! ```
//! Stretches go over the ends of documents, so that each byte of text is as likely in the sample as any other. Files that are not
//! read (too many of them, or still on the Hub) are taken to give as many tokens a byte as those of their format that are;
//! where there are none, as English web text does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use serde::Serialize;
use xlstm_manifests::printable;

use super::request::Common;
use super::sampled_copies::SampledCopies;
use super::turns::{Turn, Turns};
use super::{Context, here};
use crate::plan::{Plan, PlannedInput, format_name, is_compressed};
use crate::record::Entry;
use crate::sources::{self, Format};
use crate::tokenizer::{EncodeScratch, Gpt2Tokenizer};

/// GPT-2 tokens in a compressed byte of English web text, about (SlimPajama: 627 G tokens in 895 GB).
const TOKENS_PER_COMPRESSED_BYTE: f64 = 0.7;
/// GPT-2 tokens in a byte of English web text, about.
const TOKENS_PER_BYTE: f64 = 0.235;
/// Bytes of one file that are read.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of all files that are read: beyond, every n-th file is.
const ALL_BYTES: u64 = 1 << 30;
/// Bytes of text that are tokenized, over all files.
const TEXT_BYTES: u64 = 64 << 20;
/// The same of one file, at least and at most.
const FILE_TEXT: (u64, u64) = (64 << 10, 8 << 20);
/// Bytes of text that are tokenized together: the cuts at their ends are too few to count.
const STRETCH: u64 = 8 << 10;
/// Bytes of text in a compressed byte, about: only how much is tokenized depends on it.
const TEXT_PER_COMPRESSED_BYTE: u64 = 4;

/// What an estimate stands on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Files that were read, all of them or in pieces.
    pub files: u64,
    /// Their bytes that were read.
    pub file_bytes: u64,
    /// Documents in them that are wanted.
    pub documents: u64,
    /// Bytes of text that were tokenized.
    pub text_bytes: u64,
}

/// Tokens of a plan's files, before a holdout or `--max-tokens`.
#[derive(Debug, Clone, Default)]
pub(super) struct Estimate {
    pub(super) tokens: f64,
    pub(super) sample: Sample,
    /// What could not be read.
    pub(super) notes: Vec<String>,
}

/// One file's part of it.
#[derive(Debug, Clone, Default)]
struct FileEstimate {
    tokens: f64,
    sample: Sample,
    unusable: u64,
    note: Option<String>,
}

/// The estimates of a request's plans. Plans that share files (the sides of a holdout) share what was read of them.
pub(super) struct Estimator<'a> {
    common: &'a Common,
    context: &'a Context,
    read: Mutex<BTreeMap<PathBuf, FileEstimate>>,
    /// Of large records, over all files.
    turns: Arc<Turns>,
}

impl<'a> Estimator<'a> {
    pub(super) fn new(common: &'a Common, context: &'a Context) -> Self {
        Self { common, context, read: Mutex::default(), turns: Arc::default() }
    }

    pub(super) fn estimate(&self, plan: &Plan) -> Estimate {
        let files = self.to_read(plan);
        let text_bytes = (TEXT_BYTES / files.len().max(1) as u64).clamp(FILE_TEXT.0, FILE_TEXT.1);
        let read: Vec<(&PlannedInput, FileEstimate)> = files
            .into_par_iter()
            .map(|(input, path)| (input, self.file(plan, input, &path, text_bytes)))
            .collect();
        let mut estimate = Estimate::default();
        // Tokens and bytes by format.
        let mut rates: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        let mut done = BTreeMap::new();
        let mut unusable = (0, None);
        for (input, file) in read {
            if let Some(note) = file.note {
                estimate.notes.push(note);
                continue;
            }
            let rate = rates.entry(format_name(input.format)).or_default();
            *rate = (rate.0 + file.tokens, rate.1 + input.size.unwrap_or(0) as f64);
            if file.unusable > 0 {
                unusable = (unusable.0 + file.unusable, unusable.1.or(Some(&input.path)));
            }
            let Sample { files, file_bytes, documents, text_bytes } = &mut estimate.sample;
            *files += file.sample.files;
            *file_bytes += file.sample.file_bytes;
            *documents += file.sample.documents;
            *text_bytes += file.sample.text_bytes;
            done.insert(&input.path, file.tokens);
        }
        if let (count, Some(first)) = unusable {
            let first = printable::text(first.as_str());
            estimate.notes.push(format!(
                "the sample has {count} records that cannot be used (first in `{first}`): `prepare` stops at such a record, or \
                 leaves it out with --on-bad-record skip"
            ));
        }
        estimate.tokens = plan
            .inputs
            .iter()
            .map(|input| match (done.get(&input.path), rates.get(format_name(input.format))) {
                (Some(tokens), _) => *tokens,
                (None, Some((tokens, bytes))) if *bytes > 0.0 => {
                    tokens / bytes * input.size.unwrap_or(0) as f64
                }
                _ => input.size.unwrap_or(0) as f64 * typical(input.format),
            })
            .sum();
        estimate
    }

    /// Files on this machine that are read: all, or every n-th where they are too much.
    fn to_read<'p>(&self, plan: &'p Plan) -> Vec<(&'p PlannedInput, PathBuf)> {
        let folders = here::folders(self.common);
        let here = |input| here::place_of(plan, input, &folders, self.context);
        let files: Vec<_> = plan.inputs.iter().filter_map(|input| Some((input, here(input)?))).collect();
        let cost = |input: &PlannedInput| match input.format {
            Format::Text { .. } | Format::Crate => input.size.unwrap_or(0),
            Format::JsonLines { .. } | Format::Parquet => input.size.unwrap_or(0).min(FILE_BYTES),
        };
        let total: u64 = files.iter().map(|(input, _)| cost(input)).sum();
        let every = usize::try_from(total.div_ceil(ALL_BYTES).max(1)).unwrap_or(usize::MAX);
        files.into_iter().step_by(every).collect()
    }

    fn file(&self, plan: &Plan, input: &PlannedInput, path: &Path, text_bytes: u64) -> FileEstimate {
        let known = |read: &BTreeMap<PathBuf, FileEstimate>| read.get(path).cloned();
        if let Some(known) = self.read.lock().ok().and_then(|read| known(&read)) {
            return known;
        }
        let found = self.read_file(plan, input, path, text_bytes).unwrap_or_else(|problem| FileEstimate {
            note: Some(format!(
                "`{}` could not be sampled, so its tokens are estimated by its size: {problem}",
                printable::text(input.path.as_str())
            )),
            ..FileEstimate::default()
        });
        if let Ok(mut read) = self.read.lock() {
            read.insert(path.into(), found.clone());
        }
        found
    }

    fn read_file(
        &self,
        plan: &Plan,
        input: &PlannedInput,
        path: &Path,
        text_bytes: u64,
    ) -> Result<FileEstimate, String> {
        let size = input.size.unwrap_or(0);
        let text =
            if is_compressed(input.format) { TEXT_PER_COMPRESSED_BYTE } else { 1 } * size.min(FILE_BYTES);
        let mut stretches = Stretches::new(&self.context.tokenizer, text.div_ceil(text_bytes).max(1));
        let list = self.common.drop_duplicates.as_deref();
        let numbers = sources::numbers_hold(input.format, size, FILE_BYTES);
        let mut copies = SampledCopies::new(list, input.path.as_str(), numbers);
        let (mut documents, mut unusable, mut failed) = (0_u64, 0, None);
        let turn = Turn::new(&self.turns);
        let gate = || turn.gate();
        let share =
            sources::read_share(
                path,
                input.format,
                &plan.fields,
                FILE_BYTES,
                &gate,
                &mut |entry| match entry {
                    Entry::Bad { .. } => unusable += 1,
                    Entry::Record(mut record) => {
                        input.name_set(&mut record);
                        let excluded =
                            record.set.as_ref().is_some_and(|set| self.common.exclude_sets.contains(set));
                        if !record.text.is_empty()
                            && !excluded
                            && !copies.leave_out(record.number, &record.text)
                        {
                            documents += 1;
                            failed = failed.take().or(stretches.add(&record.text).err());
                        }
                    }
                },
            );
        let share = share.map_err(|error| error.to_string())?;
        if let Some(error) = failed {
            return Err(error.to_string());
        }
        let separators = if plan.spec.packing.append_end_of_text { documents } else { 0 };
        let tokens = (stretches.tokens_of_all() + separators as f64) / share.max(f64::MIN_POSITIVE);
        let file_bytes = (share * size as f64).round() as u64;
        let sample = Sample { files: 1, file_bytes, documents, text_bytes: stretches.sampled };
        Ok(FileEstimate { tokens, sample, unusable, note: None })
    }
}

/// Tokens a byte where nothing is known.
fn typical(format: Format) -> f64 {
    if is_compressed(format) { TOKENS_PER_COMPRESSED_BYTE } else { TOKENS_PER_BYTE }
}

/// Every n-th stretch of a stream of texts, tokenized.
struct Stretches<'a> {
    tokenizer: &'a Gpt2Tokenizer,
    scratch: EncodeScratch,
    ids: Vec<u16>,
    every: u64,
    /// Bytes of text so far.
    all: u64,
    /// Those that were tokenized, and their tokens.
    sampled: u64,
    tokens: u64,
}

impl<'a> Stretches<'a> {
    fn new(tokenizer: &'a Gpt2Tokenizer, every: u64) -> Self {
        let (scratch, ids) = (EncodeScratch::default(), Vec::new());
        Self { tokenizer, scratch, ids, every, all: 0, sampled: 0, tokens: 0 }
    }

    fn add(&mut self, text: &str) -> Result<(), crate::tokenizer::TokenizerError> {
        let (start, length) = (self.all, text.len() as u64);
        self.all += length;
        if self.every == 1 {
            return self.tokenize(text);
        }
        let period = self.every * STRETCH;
        let mut stretch = start / period * period;
        while stretch < start + length {
            let from = stretch.saturating_sub(start);
            let to = (stretch + STRETCH).saturating_sub(start).min(length);
            if from < to {
                // Both are at most the text's length.
                let at = |place: u64| text.floor_char_boundary(usize::try_from(place).unwrap_or(text.len()));
                self.tokenize(&text[at(from)..at(to)])?;
            }
            stretch += period;
        }
        Ok(())
    }

    fn tokenize(&mut self, text: &str) -> Result<(), crate::tokenizer::TokenizerError> {
        self.ids.clear();
        self.tokenizer.encode_into(&mut self.scratch, text, &mut self.ids)?;
        self.sampled += text.len() as u64;
        self.tokens += self.ids.len() as u64;
        Ok(())
    }

    /// Tokens of all texts, as the stretches have them.
    fn tokens_of_all(&self) -> f64 {
        if self.sampled == 0 { 0.0 } else { self.tokens as f64 / self.sampled as f64 * self.all as f64 }
    }
}
