//! From rows to batches, one step ahead of the training thread.
//!
//! What goes in and what is to come out is `xlstm_manifests::rows`. With a context shorter than a row, a row becomes
//! several sequences: its inputs and targets cut into equal pieces, so a piece's first input is the token before it.
//! Rows with stored targets end where nothing is to be predicted any more: a batch is cut behind its last target, since a
//! model looks back alone. Which rows make up which step is `xlstm_manifests::order`; the loader keeps no state that a resumed run would need.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tch::{Device, Tensor};
use xlstm_manifests::manifest::Targets;
use xlstm_manifests::order::{Order, StepRow};
use xlstm_manifests::rows::{self, Rows, Sequences};

use crate::error::{Result, TrainError};
use crate::model::{IGNORE_TARGET, TargetCount};

/// Micro-batches that wait at most.
const PREFETCH: usize = 8;
/// Cut sequences have a multiple of this many positions: few different shapes, and whole vectors.
const WHOLE: usize = 8;

const _: () =
    assert!(rows::IGNORE == IGNORE_TARGET, "the reader and the loss agree on what is not predicted");

/// How rows become sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows in a micro-batch.
    pub rows: usize,
    /// Tokens in a sequence; divides the row length.
    pub context: usize,
    /// Whether to mark where documents begin.
    pub resets: bool,
}

/// Rows as one rank computes them at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// The rows, in order.
    pub rows: Vec<StepRow>,
    /// Tokens in a sequence: the shape's context, or up to the last stored target of the batch.
    pub context: usize,
    /// `(sequences, context)`.
    pub inputs: Vec<i64>,
    /// `(sequences, context)`; [`IGNORE_TARGET`] past the end of a short row.
    pub targets: Vec<i64>,
    /// `(sequences, context)`: whether a document begins here; empty when not asked for.
    pub resets: Vec<bool>,
    /// Targets that count.
    pub tokens: u64,
}

impl MicroBatch {
    /// The rows' positions.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn read<R: Rows + ?Sized>(dataset: &R, rows: &[StepRow], shape: BatchShape) -> Result<Self> {
        let mut read = Sequences::default();
        for row in rows {
            dataset.read(row.row, shape.resets, &mut read)?;
        }
        let tokens = read.scored();
        let packing = &dataset.manifest().packing;
        let whole_rows = shape.context == packing.row_length as usize;
        let context = match packing.targets {
            Targets::Stored if whole_rows => cut(&mut read, shape.context),
            Targets::Stored | Targets::NextToken => shape.context,
        };
        let Sequences { inputs, targets, starts: resets } = read;
        Ok(Self { rows: rows.to_vec(), context, inputs, targets, resets, tokens })
    }

    /// The targets that count, for the loss; a batch without any has a loss of zero.
    #[must_use]
    pub fn target_count(&self) -> TargetCount<'static> {
        TargetCount::Known(i64::try_from(self.tokens).unwrap_or(i64::MAX).max(1))
    }

    /// Inputs and targets, `(sequences, context)`, Int64, and the reset mask where there is one.
    ///
    /// # Errors
    /// When libtorch cannot make them.
    pub fn tensors(&self, device: Device) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let context = i64::try_from(self.context).unwrap_or(i64::MAX);
        let on_device = |tensor: Tensor| -> Result<Tensor> {
            let tensor = tensor.f_view([-1, context])?;
            if !matches!(device, Device::Cuda(_)) {
                return Ok(tensor.f_to_device(device)?);
            }
            // From memory that the GPU reads itself, so that nothing waits for the copy.
            let kind = tensor.kind();
            Ok(xlstm_bridge::memory::pinned(&tensor)?.f_to_device_(device, kind, true, false)?)
        };
        let inputs = on_device(Tensor::f_from_slice(&self.inputs)?)?;
        let targets = on_device(Tensor::f_from_slice(&self.targets)?)?;
        let resets =
            if self.resets.is_empty() { None } else { Some(on_device(Tensor::f_from_slice(&self.resets)?)?) };
        Ok((inputs, targets, resets))
    }
}

/// Drops the positions behind the last target of all rows, and returns how many are left of each.
fn cut(read: &mut Sequences, context: usize) -> usize {
    fn keep<T: Copy>(values: &mut Vec<T>, context: usize, kept: usize) {
        *values = values.chunks(context).flat_map(|row| &row[..kept.min(row.len())]).copied().collect();
    }
    let rows = read.targets.chunks(context.max(1));
    let last = rows.filter_map(|row| row.iter().rposition(|&target| target != IGNORE_TARGET)).max();
    let kept = last.map_or(1, |last| last + 1).next_multiple_of(WHOLE).min(context);
    if kept < context {
        keep(&mut read.inputs, context, kept);
        keep(&mut read.targets, context, kept);
        keep(&mut read.starts, context, kept);
    }
    kept
}

/// What a loader is to read.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Which rows make up which step.
    pub order: Order,
    /// This rank.
    pub rank: u64,
    /// All ranks.
    pub world: u64,
    /// How rows become sequences.
    pub shape: BatchShape,
    /// The first step.
    pub first_step: u64,
    /// The last step.
    pub last_step: u64,
}

/// Reads micro-batches on a thread of its own.
pub struct Loader {
    receiver: Receiver<Result<MicroBatch>>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
}

impl Loader {
    /// Starts reading.
    #[must_use]
    pub fn start<R: Rows + ?Sized + 'static>(dataset: Arc<R>, plan: LoaderOptions) -> Self {
        let (sender, receiver) = bounded(PREFETCH);
        let thread = std::thread::spawn(move || read_all(dataset.as_ref(), &plan, &sender));
        Self { receiver, thread: Some(thread), waited: Duration::ZERO }
    }

    /// The next micro-batch, steps in order, each step's in order.
    ///
    /// # Errors
    /// When a shard cannot be read, or after the last step.
    pub fn next_batch(&mut self) -> Result<MicroBatch> {
        let begin = Instant::now();
        let received = self.receiver.recv();
        self.waited += begin.elapsed();
        received.unwrap_or(Err(TrainError::LoaderGone))
    }

    /// Time spent waiting for data since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The thread stops at its next send.
        self.receiver = crossbeam_channel::never();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_all<R: Rows + ?Sized>(dataset: &R, plan: &LoaderOptions, sender: &Sender<Result<MicroBatch>>) {
    for step in plan.first_step..=plan.last_step {
        let rows = plan.order.rows_of_step(step);
        for rows in rows[plan.order.rank_range(plan.rank, plan.world)].chunks(plan.shape.rows.max(1)) {
            let batch = MicroBatch::read(dataset, rows, plan.shape);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    }
}
