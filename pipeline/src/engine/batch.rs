//! A stretch of records on its way through a tokenizer thread.

use std::ops::Range;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::documents::count_words;
use xlstm_manifests::manifest::Layout;

use super::asked::Seen;
use super::{EngineError, Filter};
use crate::record::{BadRecord, Record, Step};
use crate::tokenizer::{EncodeScratch, Gpt2Tokenizer};

/// Records in source order, with where the result is awaited.
pub(super) struct Job {
    pub(super) steps: Vec<Step>,
    /// Bytes held against the budget.
    pub(super) cost: usize,
    pub(super) result: Sender<Result<Tokenized, EngineError>>,
}

/// A batch after tokenization.
pub(super) struct Tokenized {
    pub(super) ids: Vec<u16>,
    pub(super) items: Vec<Item>,
    pub(super) seen: Seen,
    pub(super) cost: usize,
}

/// What became of one record.
pub(super) enum Item {
    Document(Box<Kept>),
    LeftOut(&'static str),
    Bad { number: u64, reason: BadRecord, found: String },
}

/// A document that is wanted; its tokens are `ids` of the batch.
pub(super) struct Kept {
    pub(super) record: u64,
    pub(super) ids: Range<usize>,
    pub(super) bytes: u64,
    pub(super) chars: u64,
    pub(super) words: u64,
    pub(super) digest: Sha256Digest,
    pub(super) set: Option<String>,
    pub(super) id: Option<String>,
    pub(super) license: Option<String>,
    pub(super) source: Option<String>,
    pub(super) truncated: bool,
}

/// A tokenizer thread: until the queue closes.
pub(super) fn worker(work: &Receiver<Job>, tokenizer: &Gpt2Tokenizer, filter: &Filter, layout: Layout) {
    let mut scratch = EncodeScratch::default();
    for job in work {
        let result = tokenize(job.steps, job.cost, tokenizer, &mut scratch, filter, layout);
        // The collector is gone only when the run has failed: nobody waits for this batch.
        let _ = job.result.send(result);
    }
}

fn tokenize(
    steps: Vec<Step>,
    cost: usize,
    tokenizer: &Gpt2Tokenizer,
    scratch: &mut EncodeScratch,
    filter: &Filter,
    layout: Layout,
) -> Result<Tokenized, EngineError> {
    // Code has a little more than two bytes a token; untouched capacity costs nothing.
    let mut ids = Vec::with_capacity(cost / 2);
    let mut items = Vec::with_capacity(steps.len());
    let seen = Seen::of(&steps, &filter.exclude_sets);
    // All at once, which is faster than one by one.
    let records = steps.iter().filter_map(|step| match step {
        Step::Record(record) => Some(record),
        Step::Bad { .. } => None,
    });
    let wanted = records.filter(|record| filter.before_digest(&record.text, record.set.as_deref()).is_none());
    let mut digests = Sha256Digest::of_each(wanted.map(|record| record.text.as_bytes())).into_iter();
    for step in steps {
        items.push(match step {
            Step::Record(record) => {
                match keep(record, &mut digests, tokenizer, scratch, filter, layout, &mut ids)? {
                    Ok(kept) => Item::Document(Box::new(kept)),
                    Err(reason) => Item::LeftOut(reason),
                }
            }
            Step::Bad { number, reason, found } => Item::Bad { number, reason, found },
        });
    }
    Ok(Tokenized { ids, items, seen, cost })
}

/// `digests` are those of the records that the filter does not leave out before, this one's next.
fn keep(
    record: Record,
    digests: &mut impl Iterator<Item = Sha256Digest>,
    tokenizer: &Gpt2Tokenizer,
    scratch: &mut EncodeScratch,
    filter: &Filter,
    layout: Layout,
    ids: &mut Vec<u16>,
) -> Result<Result<Kept, &'static str>, EngineError> {
    if let Some(reason) = filter.before_digest(&record.text, record.set.as_deref()) {
        return Ok(Err(reason));
    }
    let digest = digests.next().unwrap_or_else(|| Sha256Digest::of(record.text.as_bytes()));
    if let Some(reason) = filter.by_digest(&digest) {
        return Ok(Err(reason));
    }
    let start = ids.len();
    tokenizer.encode_into(scratch, &record.text, ids)?;
    let (chars, words) = match layout {
        Layout::Packed | Layout::Examples => (0, 0),
        Layout::Documents => (record.text.chars().count() as u64, count_words(&record.text)),
    };
    Ok(Ok(Kept {
        record: record.number,
        ids: start..ids.len(),
        bytes: record.text.len() as u64,
        chars,
        words,
        digest,
        set: record.set,
        id: record.id,
        license: record.license,
        source: record.source,
        truncated: record.truncated,
    }))
}
