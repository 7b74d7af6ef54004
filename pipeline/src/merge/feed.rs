//! The documents of a part, in order, into the builder of the whole.

use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::examples::Example;
use xlstm_manifests::manifest::{Input, Layout, SetTotals};
use xlstm_manifests::spans::Span;
use xlstm_manifests::stored::{Stored, StoredRow};
use xlstm_manifests::vectors::VectorExample;

use super::{LoadedPart, MergeError, check};
use crate::audit::progress::ByteProgress;
use crate::engine::BEYOND_MAX_TOKENS;
use crate::split::{Cursor, DocumentMeta, InputMeta, SplitBuilder, TokenizedDocument};

/// Whether the whole has the tokens that were asked for.
fn has_enough(builder: &SplitBuilder, limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| builder.tally().totals().tokens >= limit)
}

/// Feeds one input after another, dropping what comes before the cursor or after the limit.
struct Feeder<'a> {
    builder: &'a mut SplitBuilder,
    part: &'a LoadedPart,
    /// Index of the part's first input in the whole.
    first_input: u32,
    cursor: Cursor,
    limit: Option<u64>,
    progress: &'a ByteProgress,
    /// The part's input that is open, and documents of it beyond the limit.
    open: Option<(u32, u64)>,
    /// The next input of the part to begin.
    next: u32,
}

/// Feeds the documents of `part`, whose first input is number `first_input` of the whole, to the builder.
pub(super) fn feed_part(
    builder: &mut SplitBuilder,
    part: &LoadedPart,
    first_input: u32,
    cursor: Cursor,
    (limit, progress): (Option<u64>, &ByteProgress),
) -> Result<(), MergeError> {
    if has_enough(builder, limit) && !builder.is_interrupted() {
        return Ok(());
    }
    let next = cursor.input.saturating_sub(first_input);
    let mut feeder = Feeder { builder, part, first_input, cursor, limit, progress, open: None, next };
    match part.manifest.layout {
        Layout::Packed => feeder.packed()?,
        Layout::Documents => feeder.documents()?,
        Layout::Examples | Layout::Vectors => feeder.examples()?,
    }
    feeder.begin_up_to(part.manifest.inputs.len() as u32)?;
    feeder.end_open();
    Ok(())
}

impl Feeder<'_> {
    fn examples(&mut self) -> Result<(), MergeError> {
        let dataset = check::rows(self.part)?;
        for (number, shard) in self.part.manifest.shards.iter().enumerate() {
            self.progress.advance(shard.file.size);
            for span in dataset.spans(number)?.iter() {
                if self.is_done(span.input, span.record) {
                    continue;
                }
                let Some(row) = dataset.stored(span.row)? else { continue };
                let (mut ids, mut numbers) = (Vec::new(), Vec::new());
                let example = match row {
                    StoredRow::Tokens(row) => {
                        ids.extend(row.targets());
                        let (input_ids, length) = (row.input_ids, row.length);
                        Stored::Tokens(Example { input_ids, targets: &ids, length })
                    }
                    StoredRow::Numbers(row) => {
                        numbers.extend(row.targets());
                        let (inputs, length) = (row.inputs, row.length);
                        Stored::Numbers(VectorExample { inputs, targets: &numbers, length })
                    }
                };
                let meta = DocumentMeta {
                    set: name(span.set, &self.part.manifest.sets),
                    id: span.id,
                    ..DocumentMeta::of_example(span.record, example.digest())
                };
                self.push(span.input, &TokenizedDocument::of_example(&meta, example))?;
            }
        }
        Ok(())
    }

    fn packed(&mut self) -> Result<(), MergeError> {
        let dataset = check::rows(self.part)?;
        let mut ids = Vec::new();
        for (number, shard) in self.part.manifest.shards.iter().enumerate() {
            self.progress.advance(shard.file.size);
            for span in dataset.spans(number)?.iter() {
                if self.is_done(span.input, span.record) {
                    continue;
                }
                let Span { input, record, bytes, digest, .. } = span;
                ids.clear();
                dataset.read_tokens(span.row, span.offset, span.length.saturating_sub(1), &mut ids)?;
                let manifest = &self.part.manifest;
                let meta = DocumentMeta {
                    record,
                    bytes,
                    chars: 0,
                    words: 0,
                    digest,
                    set: name(span.set, &manifest.sets),
                    id: span.id,
                    license: name(span.license, &manifest.record_licenses),
                    source: name(span.source, &manifest.record_sources),
                    truncated: false,
                };
                self.push(input, &TokenizedDocument { meta: &meta, ids: &ids, kept: None, example: None })?;
            }
        }
        Ok(())
    }

    fn documents(&mut self) -> Result<(), MergeError> {
        check::documents(self.part)?;
        for shard in &self.part.manifest.shards {
            self.progress.advance(shard.file.size);
            let path = shard.file.path.resolve(&self.part.folder)?;
            for document in DocumentShard::open(&path, shard.file.records)?.iter() {
                if self.is_done(document.input, document.record) {
                    continue;
                }
                let manifest = &self.part.manifest;
                let meta = DocumentMeta {
                    record: document.record,
                    bytes: document.bytes,
                    chars: document.chars,
                    words: document.words,
                    digest: document.digest,
                    set: Some(format!("{}/{}", document.source, document.domain)),
                    id: document.id,
                    license: name(document.license, &manifest.record_licenses),
                    source: name(document.record_source, &manifest.record_sources),
                    truncated: document.truncated,
                };
                let (input, ids) = (document.input, &document.ids);
                self.push(input, &TokenizedDocument { meta: &meta, ids, kept: None, example: None })?;
            }
        }
        Ok(())
    }

    /// Whether a document of the part was stored by an earlier run.
    fn is_done(&self, input: u32, record: u64) -> bool {
        (self.first_input + input, record) < (self.cursor.input, self.cursor.record)
    }

    fn push(&mut self, input: u32, document: &TokenizedDocument<'_>) -> Result<(), MergeError> {
        self.begin_up_to(input + 1)?;
        if has_enough(self.builder, self.limit) && !self.builder.is_interrupted() {
            if let Some((_, beyond)) = &mut self.open {
                *beyond += 1;
            }
            return Ok(());
        }
        Ok(self.builder.document(document)?)
    }

    /// Begins inputs, each after ending the one before, until `end` of them have begun (or the limit is met).
    fn begin_up_to(&mut self, end: u32) -> Result<(), MergeError> {
        while self.next < end {
            self.end_open();
            let resumes = self.first_input + self.next == self.cursor.input && self.builder.is_interrupted();
            if has_enough(self.builder, self.limit) && !resumes {
                return Ok(());
            }
            self.builder.begin_input(meta(&self.part.manifest.inputs[self.next as usize]))?;
            self.open = Some((self.next, 0));
            self.next += 1;
        }
        Ok(())
    }

    fn end_open(&mut self) {
        let Some((input, beyond)) = self.open.take() else { return };
        for (reason, count) in &self.part.manifest.inputs[input as usize].counts.left_out {
            self.builder.left_out(reason, *count);
        }
        if beyond > 0 {
            self.builder.left_out(BEYOND_MAX_TOKENS, beyond);
        }
        self.builder.end_input();
    }
}

/// The name that an index of a document stands for.
fn name(index: Option<u16>, list: &[SetTotals]) -> Option<String> {
    list.get(usize::from(index?)).map(|total| total.name.clone())
}

fn meta(input: &Input) -> InputMeta {
    InputMeta {
        path: input.path.clone(),
        format: input.format.clone(),
        size: input.size,
        sha256: input.sha256,
        declared: input.declared.clone(),
        licence: input.licence.clone(),
    }
}
