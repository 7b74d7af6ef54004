//! Reader threads: each claims the next input, checks its bytes, and cuts it into batches.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use crossbeam_channel::Sender;
use xlstm_manifests::{Error as ContractError, Sha256Digest, digest};

use super::batch::Job;
use super::{AwaitedBatch, EngineError, EngineOptions, InputStream, Provided, Shared, StreamSender};
use crate::hub;
use crate::plan::Location;
use crate::record::Entry;
use crate::sources::{self, SourceError};

/// Text in a batch: large enough to amortize hand-over, small enough to spread over threads.
const BATCH_BYTES: usize = 512 << 10;
/// Records in a batch at most.
const BATCH_RECORDS: usize = 4096;
/// What a record costs beside its text.
const RECORD_OVERHEAD: usize = 128;

/// What the reader threads of a run have in common.
#[derive(Clone, Copy)]
pub(super) struct Readers<'a, 'p> {
    pub(super) shared: &'a Shared<'p>,
    pub(super) options: &'a EngineOptions,
}

/// Where a reader thread sends what it has read.
pub(super) struct Outlets<'a> {
    pub(super) jobs: Sender<Job<'a>>,
    pub(super) streams: StreamSender,
}

type BatchSender = Sender<Result<AwaitedBatch, EngineError>>;

/// A file whose bytes were checked.
struct Verified {
    size: u64,
    sha256: Sha256Digest,
    modified: Option<SystemTime>,
}

impl<'a> Readers<'a, '_> {
    /// A reader thread: until there is no further input or the run ends.
    pub(super) fn run(&self, outlets: &Outlets<'a>) {
        while let Some((provided, start, batches)) = self.claim(&outlets.streams) {
            match verify(&provided) {
                Ok(verified) => {
                    let _ = start.send(Ok((verified.size, verified.sha256)));
                    if let Err(error) = self.read_input(&provided, &verified, &outlets.jobs, &batches) {
                        let _ = batches.send(Err(error));
                    }
                }
                Err(error) => {
                    let _ = start.send(Err(error));
                }
            }
        }
    }

    /// Claims the next input, and tells the collector of it.
    #[expect(clippy::type_complexity, reason = "two senders of one input")]
    fn claim(
        &self,
        streams: &StreamSender,
    ) -> Option<(Provided, Sender<Result<(u64, Sha256Digest), EngineError>>, BatchSender)> {
        let mut provider = self.shared.provider.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.is_cancelled() || self.shared.enough.load(Ordering::Relaxed) {
            return None;
        }
        match provider.provide()? {
            Err(error) => {
                let _ = streams.send(Err(error));
                None
            }
            Ok(provided) => {
                let (start_sender, start) = crossbeam_channel::bounded(1);
                let (batch_sender, batches) = crossbeam_channel::unbounded();
                let stream = InputStream { provided: provided.clone(), start, batches };
                // Sent under the lock, so that streams arrive in input order.
                streams.send(Ok(stream)).ok()?;
                Some((provided, start_sender, batch_sender))
            }
        }
    }

    /// Cuts an input into batches, until its end or until nobody takes them.
    fn read_input(
        &self,
        provided: &Provided,
        verified: &Verified,
        jobs: &Sender<Job<'a>>,
        batches: &BatchSender,
    ) -> Result<(), EngineError> {
        let Self { shared, options } = *self;
        let from = if provided.index == shared.cursor.input { shared.cursor.record } else { 0 };
        let mut reader = sources::open(&provided.path, provided.planned.format, &options.fields, from)?;
        let (budget, index) = (Arc::clone(&shared.budget), provided.index);
        reader.set_gate(Box::new(move || budget.wait_alone(index)));
        let copies = match &options.filter.copies {
            Some(copies) => copies.of_input(provided.planned.path.as_str(), &verified.sha256)?,
            None => None,
        };
        let mut entries = Vec::new();
        let mut cost = 0;
        loop {
            let step = reader.next_entry().transpose()?;
            let ended = step.is_none();
            if let Some(mut step) = step {
                if let Entry::Record(record) = &mut step {
                    provided.planned.name_set(record);
                    cost += record.text.len();
                }
                cost += RECORD_OVERHEAD;
                entries.push(step);
            }
            if cost >= BATCH_BYTES || entries.len() >= BATCH_RECORDS || (ended && !entries.is_empty()) {
                if !shared.budget.acquire(provided.index, cost) {
                    return Ok(());
                }
                let (result, awaited) = crossbeam_channel::bounded(1);
                let job = Job { entries: std::mem::take(&mut entries), cost, copies, result };
                cost = 0;
                if batches.send(Ok(awaited)).is_err() || jobs.send(job).is_err() {
                    return Ok(());
                }
            }
            if ended {
                break;
            }
        }
        let metadata = fs_err::metadata(&provided.path).map_err(ContractError::from)?;
        if metadata.len() != verified.size || metadata.modified().ok() != verified.modified {
            return Err(EngineError::Changed { path: provided.path.clone() });
        }
        Ok(())
    }
}

/// Size, digest and time of modification; the content is checked against the declared digest.
fn verify(provided: &Provided) -> Result<Verified, EngineError> {
    let path = &provided.path;
    let metadata = fs_err::metadata(path).map_err(ContractError::from)?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile { path: path.clone() }.into());
    }
    sources::check_size(path, provided.planned.format)?;
    let modified = metadata.modified().ok();
    let (size, sha256) = match (provided.verified, &provided.planned.location) {
        (Some(verified), _) => verified,
        (None, Location::Remote(file)) => {
            let found = hub::verify_file(path, file)?;
            (found.size, found.sha256)
        }
        (None, Location::Local(_)) => digest::digest_file(path)?,
    };
    let planned = &provided.planned;
    if let Some(expected) = planned.size.filter(|&expected| expected != size) {
        return Err(wrong_input(path, &format!("{expected} bytes"), &format!("{size} bytes")));
    }
    if let Some(declared) = planned.declared.as_ref().filter(|declared| declared.algorithm == "sha256") {
        let found = sha256.to_string();
        if declared.digest != found {
            return Err(wrong_input(path, &format!("SHA-256 {} ({})", declared.digest, declared.by), &found));
        }
    }
    Ok(Verified { size, sha256, modified })
}

fn wrong_input(path: &Path, expected: &str, found: &str) -> EngineError {
    let hint = "the file is damaged or another one: remove it and let it be fetched again";
    ContractError::mismatch(path, expected, found, hint).into()
}
