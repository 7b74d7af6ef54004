//! Reader threads: each claims the next input, checks its bytes, and cuts it into batches.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::{Error as ContractError, Sha256Digest, digest};

use super::batch::{Job, Tokenized};
use super::{EngineError, EngineOptions, Provided, Shared, Stream, StreamSender};
use crate::hub;
use crate::plan::Location;
use crate::record::Step;
use crate::sources::{self, SourceError};

/// Text in a batch: large enough to amortise hand-over, small enough to spread over threads.
const BATCH_BYTES: usize = 512 << 10;
/// Records in a batch at most.
const BATCH_RECORDS: usize = 4096;
/// What a record costs beside its text.
const RECORD_OVERHEAD: usize = 128;

type BatchSender = Sender<Result<Receiver<Result<Tokenized, EngineError>>, EngineError>>;

/// A reader thread: until there is no further input or the run ends.
pub(super) fn reader(
    shared: &Shared<'_>,
    options: &EngineOptions,
    work: &Sender<Job>,
    streams: &StreamSender,
) {
    loop {
        let (path, index, planned, verified, start, batches) = {
            let mut provider = shared.provider.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.is_cancelled() || shared.enough.load(Ordering::Relaxed) {
                return;
            }
            match provider.provide() {
                None => return,
                Some(Err(error)) => {
                    let _ = streams.send(Err(error));
                    return;
                }
                Some(Ok(provided)) => {
                    let (start_sender, start) = crossbeam_channel::bounded(1);
                    let (batch_sender, batches) = crossbeam_channel::unbounded();
                    let claimed = (
                        provided.path.clone(),
                        provided.index,
                        provided.planned.clone(),
                        provided.verified,
                        start_sender,
                        batch_sender,
                    );
                    // Sent under the lock, so that streams arrive in input order.
                    if streams.send(Ok(Stream { provided, start, batches })).is_err() {
                        return;
                    }
                    claimed
                }
            }
        };
        let provided = Provided { index, planned, path, verified };
        match verify(&provided) {
            Ok((size, sha256, modified)) => {
                let _ = start.send(Ok((size, sha256)));
                if let Err(error) = read_input(shared, options, work, &batches, &provided, size, modified) {
                    let _ = batches.send(Err(error));
                }
            }
            Err(error) => {
                let _ = start.send(Err(error));
            }
        }
    }
}

/// Size, digest and time of modification; the content is checked against the declared digest.
fn verify(provided: &Provided) -> Result<(u64, Sha256Digest, Option<SystemTime>), EngineError> {
    let path = &provided.path;
    let metadata = fs_err::metadata(path).map_err(ContractError::from)?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile { path: path.clone() }.into());
    }
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
    Ok((size, sha256, modified))
}

fn wrong_input(path: &Path, expected: &str, found: &str) -> EngineError {
    let hint = "the file is damaged or another one: remove it and let it be fetched again";
    ContractError::mismatch(path, expected, found, hint).into()
}

fn read_input(
    shared: &Shared<'_>,
    options: &EngineOptions,
    work: &Sender<Job>,
    batches: &BatchSender,
    provided: &Provided,
    size: u64,
    modified: Option<SystemTime>,
) -> Result<(), EngineError> {
    let from = if provided.index == shared.cursor.input { shared.cursor.record } else { 0 };
    let mut reader = sources::open(&provided.path, provided.planned.format, &options.fields, from)?;
    let (budget, index) = (Arc::clone(&shared.budget), provided.index);
    reader.set_gate(Box::new(move || budget.wait_alone(index)));
    let mut steps = Vec::new();
    let mut cost = 0;
    loop {
        let step = reader.next_step().transpose()?;
        let ended = step.is_none();
        if let Some(mut step) = step {
            if let Step::Record(record) = &mut step {
                provided.planned.name_set(record);
                cost += record.text.len();
            }
            cost += RECORD_OVERHEAD;
            steps.push(step);
        }
        if cost >= BATCH_BYTES || steps.len() >= BATCH_RECORDS || (ended && !steps.is_empty()) {
            if !shared.budget.acquire(provided.index, cost) {
                return Ok(());
            }
            let (result, awaited) = crossbeam_channel::bounded(1);
            let job = Job { steps: std::mem::take(&mut steps), cost, result };
            cost = 0;
            if batches.send(Ok(awaited)).is_err() || work.send(job).is_err() {
                return Ok(());
            }
        }
        if ended {
            break;
        }
    }
    let metadata = fs_err::metadata(&provided.path).map_err(ContractError::from)?;
    if metadata.len() != size || metadata.modified().ok() != modified {
        return Err(EngineError::Changed { path: provided.path.clone() });
    }
    Ok(())
}
