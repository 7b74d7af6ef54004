//! From rows to batches, one step ahead of the training thread.
//!
//! ```text
//! row       t0 t1 t2 t3 … t2047        valid tokens; the rest of a short last row is ignored
//! targets   t0 t1 t2 t3 … t2047        each token of the corpus is predicted exactly once
//! inputs    E  t0 t1 t2 … t2046        shifted right, the separator (`<|endoftext|>`, 50256) first
//! ```
//! With a context shorter than a row, a row becomes several sequences: the same two lines cut into equal pieces, so
//! a piece's first input is the token before it. Which rows make up which step is `xlstm_manifests::order`; the
//! loader keeps no state that a resumed run would need.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tch::{Device, Tensor};
use xlstm_manifests::Dataset;
use xlstm_manifests::order::{Order, StepRow};

use crate::error::{Result, TrainError};
use crate::model::IGNORE_TARGET;

/// Micro-batches that wait at most.
const AHEAD: usize = 8;

/// How rows become sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
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
    /// Tokens in a sequence.
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
    /// The rows' tokens.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn read(dataset: &Dataset, rows: &[StepRow], shape: Shape) -> Result<Self> {
        let mut batch = Self {
            rows: rows.to_vec(),
            context: shape.context,
            inputs: Vec::new(),
            targets: Vec::new(),
            resets: Vec::new(),
            tokens: 0,
        };
        let separator = i64::from(dataset.manifest().tokenizer.end_of_text);
        for row in rows {
            let found = dataset.row(row.row)?;
            let (ids, length) = (found.ids, found.length);
            // Past the end of a short row stands filler: any known id will do as an input there.
            let token = |index: usize| if index < length { i64::from(ids[index]) } else { separator };
            batch.inputs.push(separator);
            batch.inputs.extend((1..ids.len()).map(|index| token(index - 1)));
            let target = |index: usize| if index < length { i64::from(ids[index]) } else { IGNORE_TARGET };
            batch.targets.extend((0..ids.len()).map(target));
            batch.tokens += length as u64;
            if shape.resets {
                let start = batch.resets.len();
                batch.resets.resize(start + ids.len(), false);
                for span in dataset.documents_in_row(row.row)? {
                    if span.row == row.row && span.offset > 0 {
                        batch.resets[start + usize::from(span.offset)] = true;
                    }
                }
            }
        }
        Ok(batch)
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
            // From memory that the card reads itself, so that nothing waits for the copy.
            let kind = tensor.kind();
            Ok(xlstm_bridge::lists::pinned(&tensor)?.f_to_device_(device, kind, true, false)?)
        };
        let inputs = on_device(Tensor::f_from_slice(&self.inputs)?)?;
        let targets = on_device(Tensor::f_from_slice(&self.targets)?)?;
        let resets =
            if self.resets.is_empty() { None } else { Some(on_device(Tensor::f_from_slice(&self.resets)?)?) };
        Ok((inputs, targets, resets))
    }
}

/// What a loader is to read.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which rows make up which step.
    pub order: Order,
    /// This rank.
    pub rank: u64,
    /// All ranks.
    pub world: u64,
    /// How rows become sequences.
    pub shape: Shape,
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
    pub fn start(dataset: Arc<Dataset>, plan: Plan) -> Self {
        let (sender, receiver) = bounded(AHEAD);
        let thread = std::thread::spawn(move || read_all(&dataset, &plan, &sender));
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

fn read_all(dataset: &Dataset, plan: &Plan, sender: &Sender<Result<MicroBatch>>) {
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
