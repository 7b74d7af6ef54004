//! Shards that are full, on their way to the disk and into the journal.
//!
//! ```text
//! builder ─► Closing (the rest of a shard's writing) ─► finisher thread: fsync, rename, spans ─► a line of the journal
//!    └◄──────────────────────────── shards that are durable ◄────────────────────────────────────────┘
//! ```
//! Making a shard durable waits for the disk; the builder need not. Shards become durable in stream order, and a journal
//! line is appended only after its shard is durable. When the ledger is dropped, what was begun is finished first.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::Error as ContractError;
use xlstm_manifests::manifest::Shard;

use super::journal::{Journal, Snapshot, Trees};
use super::{Cursor, SplitError};

/// The rest of a shard's writing, and what it comes to: the shard, and the trees up to its end.
pub(super) type Closing = Box<dyn FnOnce() -> Result<(Shard, Trees), SplitError> + Send>;

/// The state at the moment when a shard was full, which lacks only what the closing tells.
pub(super) type Moment = Box<dyn FnOnce(Shard, Trees) -> Snapshot + Send>;

/// Shards that may wait while another one is made durable. None: the spans of each are in memory, and of short documents
/// those are many.
const WAITING: usize = 0;

struct Job {
    closing: Closing,
    moment: Moment,
}

pub(super) struct Ledger {
    shards: Vec<Shard>,
    /// The trees up to the end of the last durable shard.
    trees: Trees,
    durable: Cursor,
    in_flight: usize,
    /// `None` once no further shard will come.
    jobs: Option<Sender<Job>>,
    done: Receiver<Result<Snapshot, SplitError>>,
    finisher: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Goes on from the `snapshots` that the journal holds.
    pub(super) fn new(mut journal: Journal, snapshots: Vec<Snapshot>) -> Result<Self, SplitError> {
        let (jobs, to_do) = crossbeam_channel::bounded::<Job>(WAITING);
        let (results, done) = crossbeam_channel::unbounded();
        let work = move || {
            for Job { closing, moment } in to_do {
                let result = closing().and_then(|(shard, trees)| {
                    let snapshot = moment(shard, trees);
                    journal.append(&snapshot)?;
                    Ok(snapshot)
                });
                let failed = result.is_err();
                // The builder is gone only when nobody waits for shards any longer.
                if results.send(result).is_err() || failed {
                    return;
                }
            }
        };
        let finisher = std::thread::Builder::new().name("finisher".into()).spawn(work)?;
        let mut ledger = Self {
            shards: Vec::new(),
            trees: Trees::default(),
            durable: Cursor::default(),
            in_flight: snapshots.len(),
            jobs: Some(jobs),
            done,
            finisher: Some(finisher),
        };
        snapshots.into_iter().for_each(|snapshot| ledger.take(snapshot));
        Ok(ledger)
    }

    /// Shards that are durable.
    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Where a later run would go on.
    pub(super) fn durable(&self) -> Cursor {
        self.durable
    }

    /// All shards, durable or not yet.
    pub(super) fn len(&self) -> usize {
        self.shards.len() + self.in_flight
    }

    /// Hands a full shard over.
    ///
    /// # Errors
    /// When an earlier shard could not be made durable.
    pub(super) fn note(&mut self, closing: Closing, moment: Moment) -> Result<(), SplitError> {
        while let Ok(result) = self.done.try_recv() {
            self.take(result?);
        }
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { closing, moment }).is_ok());
        self.in_flight += 1;
        if sent { Ok(()) } else { Err(self.failure(stopped())) }
    }

    /// Waits until every shard that was handed over is durable.
    ///
    /// # Errors
    /// When one could not be made durable.
    pub(super) fn settle(&mut self) -> Result<(), SplitError> {
        while self.in_flight > 0 {
            let result = self.done.recv().map_err(|_| stopped())?;
            self.take(result?);
        }
        Ok(())
    }

    /// The shards and trees of all that was handed over.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub(super) fn finish(mut self) -> Result<(Vec<Shard>, Trees), SplitError> {
        self.settle()?;
        Ok((std::mem::take(&mut self.shards), std::mem::take(&mut self.trees)))
    }

    /// Why writing has stopped: `error`, unless the finisher knows the cause of it.
    pub(super) fn failure(&mut self, error: SplitError) -> SplitError {
        self.end();
        let cause = self.done.try_iter().find_map(Result::err);
        cause.filter(|cause| !cause.is_internal()).unwrap_or(error)
    }

    fn take(&mut self, snapshot: Snapshot) {
        self.in_flight -= 1;
        self.durable = snapshot.cursor;
        self.trees = snapshot.trees;
        self.shards.push(snapshot.shard);
    }

    /// Lets the finisher do what it was given, and waits for its end.
    fn end(&mut self) {
        self.jobs = None;
        if let Some(finisher) = self.finisher.take() {
            // A panic there has left its result out, which whoever waits for it notices.
            let _ = finisher.join();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

fn stopped() -> SplitError {
    ContractError::internal("the thread that makes shards durable ended early").into()
}
