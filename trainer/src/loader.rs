//! From rows to batches, one step ahead of the training thread.
//!
//! What goes in and what is to come out is `xlstm_manifests::rows`. With a context shorter than a row, a row becomes
//! several sequences: its inputs and targets cut into equal pieces, so a piece's first input is the token before it.
//! Rows with stored targets end where nothing is to be predicted any more: a batch is cut behind its last target, since a
//! model looks back alone. Which rows make up which step is `xlstm_manifests::order`; the loader keeps no state that a resumed run would need,
//! and does not know whether rows are of one dataset or of several (`xlstm_manifests::mixed_rows`).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tch::{Device, Tensor};
use xlstm_manifests::Manifest;
use xlstm_manifests::manifest::{Layout, Targets};
use xlstm_manifests::order::{Order, StepRow};
use xlstm_manifests::recipe::ModelConfig;
use xlstm_manifests::rows::{self, Numbers, Readable, Sequences};

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
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Of a split of numbers, in place of inputs and targets: `(sequences, context, width)` and `(sequences, context)`; NaN
    /// where nothing is scored.
    pub numbers: Numbers,
    /// Positions that count, of each row.
    pub lengths: Vec<u16>,
    /// Targets that count.
    pub tokens: u64,
}

/// What a model takes and what a split has, where one is tokens and the other numbers, or not as many a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherKind {
    /// The split that the model takes.
    pub expected: String,
    /// The split that is there.
    pub found: String,
    /// What to do.
    pub hint: String,
}

impl OtherKind {
    /// Compares a model's inputs with a split's.
    #[must_use]
    pub fn between(model: &ModelConfig, manifest: &Manifest) -> Option<Self> {
        let (takes, has) = (model.input_width(), u64::from(manifest.packing.input_width.unwrap_or(0)));
        if takes == has {
            return None;
        }
        let expected = match takes {
            0 => format!("rows of tokens (layout `{}`, `{}`)", Layout::Packed, Layout::Examples),
            width => format!("rows of {width} numbers a position (layout `{}`)", Layout::Vectors),
        };
        let numbers = if has > 0 { format!(" with {has} numbers a position") } else { String::new() };
        let hint = match has {
            0 => "give the model a split of numbers, which `xlstm-data prepare task nearest-neighbor-search` makes, or choose \
                  a recipe without model.input_width"
                .into(),
            width => format!(
                "choose a recipe with model.input_width = {width} and model.vocabulary_size = 1, such as figure2-nearest"
            ),
        };
        Some(Self { expected, found: format!("layout `{}`{numbers}", manifest.layout), hint })
    }
}

impl MicroBatch {
    /// The rows' positions.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn read<R: Readable + ?Sized>(dataset: &R, rows: &[StepRow], shape: BatchShape) -> Result<Self> {
        let mut read = Sequences::default();
        for row in rows {
            dataset.read(row.row, shape.resets, &mut read)?;
        }
        let tokens = read.scored();
        let packing = dataset.packing();
        let whole_rows = shape.context == packing.row_length as usize;
        let context = match packing.targets {
            Targets::Stored if whole_rows => cut(&mut read, shape.context),
            Targets::Stored | Targets::NextToken => shape.context,
        };
        let Sequences { inputs, targets, numbers, starts: resets, lengths } = read;
        Ok(Self { rows: rows.to_vec(), context, inputs, targets, resets, numbers, lengths, tokens })
    }

    /// Sequences: rows, or equal pieces of rows.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.positions() / self.context.max(1)
    }

    /// Positions of all sequences.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.targets.len() + self.numbers.targets.len()
    }

    /// Whether inputs and targets are numbers.
    #[must_use]
    pub fn is_of_numbers(&self) -> bool {
        !self.numbers.targets.is_empty()
    }

    /// The row of each scored target, counted in the batch, and its position there.
    pub fn row_of_targets(&self) -> impl Iterator<Item = (usize, usize)> {
        let scored = |at: usize| match self.targets.get(at) {
            Some(&target) => target != IGNORE_TARGET,
            None => self.numbers.targets.get(at).is_some_and(|target| !target.is_nan()),
        };
        let context = self.context.max(1);
        (0..self.positions()).filter(move |&at| scored(at)).map(move |at| (at / context, at % context))
    }

    /// The targets that count, for the loss; a batch without any has a loss of zero.
    #[must_use]
    pub fn target_count(&self) -> TargetCount<'static> {
        TargetCount::Known(i64::try_from(self.tokens).unwrap_or(i64::MAX).max(1))
    }

    /// Inputs and targets, `(sequences, context)`, Int64, and the reset mask where there is one; of numbers float32, and
    /// inputs `(sequences, context, width)`.
    ///
    /// # Errors
    /// When libtorch cannot make them.
    pub fn tensors(&self, device: Device) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let context = i64::try_from(self.context).unwrap_or(i64::MAX);
        let on_device = |tensor: Tensor, shape: &[i64]| -> Result<Tensor> {
            let tensor = tensor.f_view(shape)?;
            if !matches!(device, Device::Cuda(_)) {
                return Ok(tensor.f_to_device(device)?);
            }
            // From memory that the GPU reads itself, so that nothing waits for the copy.
            let kind = tensor.kind();
            Ok(xlstm_bridge::memory::pinned(&tensor)?.f_to_device_(device, kind, true, false)?)
        };
        let flat = [-1, context];
        let (inputs, targets) = if self.is_of_numbers() {
            let width = self.numbers.inputs.len() / self.numbers.targets.len();
            let shape = [-1, context, i64::try_from(width).unwrap_or(i64::MAX)];
            let Numbers { inputs, targets } = &self.numbers;
            (
                on_device(Tensor::f_from_slice(inputs)?, &shape)?,
                on_device(Tensor::f_from_slice(targets)?, &flat)?,
            )
        } else {
            (
                on_device(Tensor::f_from_slice(&self.inputs)?, &flat)?,
                on_device(Tensor::f_from_slice(&self.targets)?, &flat)?,
            )
        };
        let resets = if self.resets.is_empty() {
            None
        } else {
            Some(on_device(Tensor::f_from_slice(&self.resets)?, &flat)?)
        };
        Ok((inputs, targets, resets))
    }
}

/// Drops the positions behind the last target of all rows, and returns how many are left of each.
fn cut(read: &mut Sequences, context: usize) -> usize {
    fn keep<T: Copy>(values: &mut Vec<T>, context: usize, kept: usize) {
        *values = values.chunks(context).flat_map(|row| &row[..kept.min(row.len())]).copied().collect();
    }
    let tokens = read.targets.chunks(context.max(1));
    let tokens = tokens.filter_map(|row| row.iter().rposition(|&target| target != IGNORE_TARGET));
    let numbers = read.numbers.targets.chunks(context.max(1));
    let numbers = numbers.filter_map(|row| row.iter().rposition(|target| !target.is_nan()));
    let last = tokens.chain(numbers).max();
    let kept = last.map_or(1, |last| last + 1).next_multiple_of(WHOLE).min(context);
    if kept < context {
        keep(&mut read.inputs, context, kept);
        keep(&mut read.targets, context, kept);
        keep(&mut read.starts, context, kept);
        let width = read.numbers.inputs.len() / read.numbers.targets.len().max(1);
        keep(&mut read.numbers.inputs, context * width.max(1), kept * width.max(1));
        keep(&mut read.numbers.targets, context, kept);
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
    pub fn start<R: Readable + ?Sized + 'static>(dataset: Arc<R>, plan: LoaderOptions) -> Self {
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

fn read_all<R: Readable + ?Sized>(dataset: &R, plan: &LoaderOptions, sender: &Sender<Result<MicroBatch>>) {
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
