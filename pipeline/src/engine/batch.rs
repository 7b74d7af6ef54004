//! A stretch of records on its way through a tokenizer thread.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::documents::count_words;
use xlstm_manifests::manifest::{DUPLICATE, Layout, Met};

use super::asked;
use super::{EngineError, Filter};
use crate::duplicates::InputCopies;
use crate::record::{BadRecord, Entry, Record};
use crate::split::DocumentMeta;
use crate::tokenizer::{EncodeScratch, Gpt2Tokenizer};

/// Records in source order, with where the result is awaited.
pub(super) struct Job<'a> {
    pub(super) entries: Vec<Entry>,
    /// Bytes held against the budget.
    pub(super) cost: usize,
    /// The copies of their input that are left out.
    pub(super) copies: Option<&'a InputCopies>,
    pub(super) result: Sender<Result<Tokenized, EngineError>>,
}

/// A batch after tokenization.
pub(super) struct Tokenized {
    pub(super) ids: Arc<Vec<u16>>,
    pub(super) items: Vec<Item>,
    pub(super) met: Met,
    pub(super) cost: usize,
}

/// What became of one record.
pub(super) enum Item {
    Document(Box<WantedDocument>),
    LeftOut(&'static str),
    Bad {
        number: u64,
        reason: BadRecord,
        found: String,
    },
    /// At the place of a copy stands another text than the list of copies says.
    NotTheCopy {
        number: u64,
        expected: Sha256Digest,
        found: Sha256Digest,
    },
}

/// A document that is wanted.
pub(super) struct WantedDocument {
    pub(super) meta: DocumentMeta,
    /// Its tokens among `ids` of the batch.
    pub(super) ids: Range<usize>,
}

/// What a tokenizer thread does with every record.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) tokenizer: &'a Gpt2Tokenizer,
    pub(super) filter: &'a Filter,
    pub(super) layout: Layout,
}

/// A tokenizer thread: until the queue closes.
pub(super) fn worker(jobs: &Receiver<Job<'_>>, work: Work<'_>) {
    let mut scratch = EncodeScratch::default();
    for job in jobs {
        let result = work.tokenize(job.entries, job.cost, job.copies, &mut scratch);
        // The collector is gone only when the run has failed: nobody waits for this batch.
        let _ = job.result.send(result);
    }
}

impl Work<'_> {
    fn tokenize(
        &self,
        entries: Vec<Entry>,
        cost: usize,
        copies: Option<&InputCopies>,
        scratch: &mut EncodeScratch,
    ) -> Result<Tokenized, EngineError> {
        // Code has a little more than two bytes a token; untouched capacity costs nothing.
        let mut ids = Vec::with_capacity(cost / 2);
        let mut items = Vec::with_capacity(entries.len());
        let met = asked::see(&entries, &self.filter.exclude_sets);
        // All at once, which is faster than one by one.
        let records = entries.iter().filter_map(|step| match step {
            Entry::Record(record) if self.left_out(record).is_none() => Some(record.text.as_bytes()),
            Entry::Record(_) | Entry::Bad { .. } => None,
        });
        let mut digests = Sha256Digest::of_each(records).into_iter();
        for step in entries {
            items.push(match step {
                Entry::Bad { number, reason, found } => Item::Bad { number, reason, found },
                Entry::Record(record) => match self.left_out(&record) {
                    Some(reason) => Item::LeftOut(reason),
                    None => {
                        let digest =
                            digests.next().unwrap_or_else(|| Sha256Digest::of(record.text.as_bytes()));
                        match self.left_out_by_digest(record.number, &digest, copies) {
                            Some(item) => item,
                            None => self.keep(record, digest, scratch, &mut ids)?,
                        }
                    }
                },
            });
        }
        // What is kept of a batch holds all of it until its shard is written.
        if ids.len() < ids.capacity() / 4 {
            ids.shrink_to_fit();
        }
        Ok(Tokenized { ids: Arc::new(ids), items, met, cost })
    }

    /// Why a record is left out before its digest is known.
    fn left_out(&self, record: &Record) -> Option<&'static str> {
        self.filter.before_digest(&record.text, record.set.as_deref())
    }

    /// What becomes of a record that is left out by its digest, or by its place in the list of copies.
    fn left_out_by_digest(
        &self,
        number: u64,
        digest: &Sha256Digest,
        copies: Option<&InputCopies>,
    ) -> Option<Item> {
        if let Some(reason) = self.filter.by_digest(digest) {
            return Some(Item::LeftOut(reason));
        }
        let expected = *copies?.records.get(&number)?;
        Some(if expected == *digest {
            Item::LeftOut(DUPLICATE)
        } else {
            Item::NotTheCopy { number, expected, found: *digest }
        })
    }

    /// Tokenizes a record.
    fn keep(
        &self,
        record: Record,
        digest: Sha256Digest,
        scratch: &mut EncodeScratch,
        ids: &mut Vec<u16>,
    ) -> Result<Item, EngineError> {
        let start = ids.len();
        self.tokenizer.encode_into(scratch, &record.text, ids)?;
        let (chars, words) = match self.layout {
            Layout::Packed | Layout::Examples | Layout::Vectors => (0, 0),
            Layout::Documents => (record.text.chars().count() as u64, count_words(&record.text)),
        };
        let Record { number, text, id, set, license, source, truncated } = record;
        let bytes = text.len() as u64;
        let meta =
            DocumentMeta { record: number, bytes, chars, words, digest, set, id, license, source, truncated };
        Ok(Item::Document(Box::new(WantedDocument { meta, ids: start..ids.len() })))
    }
}
