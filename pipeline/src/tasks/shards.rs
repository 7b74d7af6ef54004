//! The shards of a generated split, made several at a time and taken in order.
//!
//! ```text
//! threads ─┬─ worker: shard 0 ─ batches of samples ─► digests, leaves ─► file ─┐
//!          ├─ worker: shard 1 ─ …                                              ├─► in order ─► SplitBuilder
//!          └─ worker: shard 2 ─ …                                              ┘
//! ```
//! A sample is a function of its number, so a shard needs nothing of the shards before it; Merkle trees are put together
//! from sections. Where there are more threads than shards, a worker's batches are made by a team of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context as _;
use rayon::ThreadPool;
use rayon::prelude::*;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::examples::BATCH_ROWS;
use xlstm_manifests::manifest::Packing;
use xlstm_manifests::rows_writer::RowBatch as _;
use xlstm_manifests::stored::{StoredBatch, StoredShape};

use super::{Sample, Split, Task};
use crate::split::{ExamplesShard, MadeShard, SplitError};

/// Samples of an input.
pub(super) const SHARE: u64 = 1 << 16;

/// Consecutive samples of a split: one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of the first sample.
    pub first: u64,
    /// How many there are.
    pub examples: u64,
}

/// What shards are made of.
pub(super) struct Shards<'a> {
    pub(super) task: &'a dyn Task,
    pub(super) split: Split,
    pub(super) packing: &'a Packing,
    pub(super) shape: StoredShape,
    /// All but the last have [`SHARE`] samples.
    pub(super) shares: &'a [Share],
    pub(super) folder: &'a Path,
    /// Whether they are written, or only digested.
    pub(super) kept: bool,
}

/// Samples that are a record batch of a shard.
struct Batch {
    examples: StoredBatch,
    digests: Vec<Sha256Digest>,
    /// Made here where a team shares the work; else beside the file's own digest, which is faster.
    leaves: Option<Vec<Sha256Digest>>,
}

impl Shards<'_> {
    /// Rows of the split.
    pub(super) fn rows(&self) -> u64 {
        self.shares.iter().map(|share| share.examples).sum()
    }

    /// Rows of shard `index`.
    pub(super) fn rows_of(&self, index: usize) -> Range<u64> {
        let most = self.packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        let start = most.saturating_mul(index as u64).min(self.rows());
        start..start.saturating_add(most).min(self.rows())
    }

    fn count(&self) -> usize {
        let most = self.packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        usize::try_from(self.rows().div_ceil(most)).unwrap_or(usize::MAX)
    }

    /// Makes all shards from number `first` on; `take` gets them in order.
    ///
    /// # Errors
    /// The first in order, of a sample, a file or `take`.
    pub(super) fn each(
        &self,
        first: usize,
        threads: usize,
        mut take: impl FnMut(MadeShard) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let count = self.count();
        let workers = threads.min(count.saturating_sub(first)).max(1);
        let teams = (0..workers)
            .map(|worker| team(threads / workers + usize::from(worker < threads % workers)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (next, stop) = (&AtomicUsize::new(first), &AtomicBool::new(false));
        let (sender, made) = crossbeam_channel::unbounded();
        std::thread::scope(|scope| {
            for team in teams {
                let sender = sender.clone();
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        // Nobody listens any longer after an error.
                        if index >= count || sender.send((index, self.make(index, &team, stop))).is_err() {
                            return;
                        }
                    }
                });
            }
            // The workers' own are the last: when they end, so does waiting for them.
            drop(sender);
            let mut early = BTreeMap::new();
            let result = (first..count).try_for_each(|index| {
                while !early.contains_key(&index) {
                    let (found, shard) = made.recv().context("a thread that makes samples ended early")?;
                    early.insert(found, shard);
                }
                early.remove(&index).context("a shard was made and is lost")?.and_then(&mut take)
            });
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    /// Makes shard `index`.
    fn make(&self, index: usize, team: &Option<ThreadPool>, stop: &AtomicBool) -> anyhow::Result<MadeShard> {
        let rows = self.rows_of(index);
        let mut shard = ExamplesShard::create(self.folder, (self.packing, self.shape), index, self.kept)?;
        let batches: Vec<Range<u64>> = (rows.start..rows.end)
            .step_by(BATCH_ROWS)
            .map(|start| start..rows.end.min(start + BATCH_ROWS as u64))
            .collect();
        let mut write = |batches: Vec<Batch>| {
            batches.into_iter().try_for_each(|Batch { examples, digests, leaves }| {
                shard.write(examples, &digests, leaves, place)
            })
        };
        let going = || match stop.load(Ordering::Relaxed) {
            true => Err(anyhow::anyhow!("another shard could not be made")),
            false => Ok(()),
        };
        match team {
            None => {
                for rows in batches {
                    going()?;
                    write(vec![self.batch(rows, false)?])?;
                }
            }
            Some(team) => {
                let together = |batches: &[Range<u64>]| -> anyhow::Result<Vec<Batch>> {
                    going()?;
                    batches.par_iter().map(|rows| self.batch(rows.clone(), true)).collect()
                };
                team.install(|| {
                    let mut ready = Vec::new();
                    for batches in batches.chunks(2 * team.current_num_threads()) {
                        let before = std::mem::take(&mut ready);
                        let (written, made) = rayon::join(|| write(before), || together(batches));
                        written?;
                        ready = made?;
                    }
                    anyhow::Ok(write(ready)?)
                })?;
            }
        }
        Ok(shard.finish()?)
    }

    fn batch(&self, rows: Range<u64>, with_leaves: bool) -> anyhow::Result<Batch> {
        let mut examples = StoredBatch::new(self.shape);
        let mut sample = Sample::empty(self.task);
        for number in rows {
            let (input, record) = place(number);
            let share = self.shares.get(input as usize).context("a row lies behind the last sample")?;
            sample.fill(self.task, self.split, share.first + record)?;
            if let Some((expected, found)) = sample.stored().complaint(self.shape) {
                return Err(SplitError::Example { input, record, expected, found }.into());
            }
            examples.push(&sample.stored())?;
        }
        let (digests, leaves) = (examples.digests(), with_leaves.then(|| examples.leaves()));
        Ok(Batch { examples, digests, leaves })
    }
}

/// Threads of one worker, where it has more than itself.
fn team(threads: usize) -> anyhow::Result<Option<ThreadPool>> {
    if threads < 2 {
        return Ok(None);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map(Some).context("the threads that make samples could not be started")
}

/// Input and record of a row. A split has fewer than 2^48 rows.
pub(super) fn place(row: u64) -> (u32, u64) {
    (u32::try_from(row / SHARE).unwrap_or(u32::MAX), row % SHARE)
}
