//! A step on a GPU, recorded once and replayed.
//!
//! A step of a small model is hundreds of launches of a few microseconds each. Recorded as a CUDA graph, a step is one copy
//! to the GPU and one launch: inputs, targets and the numbers of the update travel as one tensor, forward and backward pass,
//! clipping and AdamW follow, and loss and norm go into a ring on the GPU that is read when something is logged.
//!
//! ```text
//! packed (Int64)  [count, step | learning rate, 0 | place in the ring | 0] [inputs] [targets]     pairs are float32
//! ring (float64)  [loss, gradient norm] of the last steps
//! ```
//! The first steps of a program are launched one by one, which compiles and loads all kernels. The same kernels run in the
//! same order either way, so losses agree to the last bit.

use std::fmt;

use tch::{Device, Kind, Tensor};
use xlstm_bridge::graph::Graph;
use xlstm_bridge::memory::upload;
use xlstm_manifests::recipe::Recipe;

use super::step::{Launched, Numbers};
use crate::error::{Result, TrainError};
use crate::loader::MicroBatch;
use crate::model::{Model, TargetCount, TrainingCall};
use crate::optimizer::{AdamW, UpdateNumbers};

/// Steps that are launched one by one first.
const EAGER_STEPS: u64 = 3;

/// Steps whose numbers wait on the GPU at most.
const RING: usize = 64;

/// Numbers before the inputs in the packed tensor.
const HEADER: usize = 4;

/// Whether steps are recorded.
#[derive(Debug)]
pub(super) enum Recording {
    /// They are launched one by one, and why.
    Never(String),
    /// Recorded after so many more; with `required`, a step that cannot be recorded ends the run.
    After { steps: u64, required: bool },
    /// Recorded.
    Ready(Box<Recorded>),
}

/// A recorded step.
#[derive(Debug)]
pub(super) struct Recorded {
    graph: Graph,
    /// Sequences and tokens of each.
    size: [usize; 2],
    /// Targets that count, where the kernels of the loss take them by value.
    fixed_count: Option<u64>,
    packed: Tensor,
    resets: Option<Tensor>,
    ring: Tensor,
    pending: Vec<Launched>,
    /// What is copied to `packed` next.
    staged: Vec<i64>,
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never(reason) => write!(f, "launched one by one ({reason})"),
            Self::After { .. } | Self::Ready(_) => {
                write!(f, "recorded as one CUDA graph after {EAGER_STEPS} that are launched one by one")
            }
        }
    }
}

impl Recording {
    /// Recorded after the first steps.
    pub(super) fn planned(required: bool) -> Self {
        Self::After { steps: EAGER_STEPS, required }
    }

    /// Whether the next step is to be a recorded one.
    pub(super) fn is_due(&self) -> bool {
        matches!(self, Self::After { steps: 0, .. } | Self::Ready(_))
    }

    /// Counts a step that was launched one by one.
    pub(super) fn count_eager(&mut self) {
        if let Self::After { steps, .. } = self {
            *steps = steps.saturating_sub(1);
        }
    }

    /// Records the step where that was not done yet. A step that cannot be recorded is launched one by one from now on;
    /// what is then to be said is returned.
    pub(super) fn prepare(
        &mut self,
        model: &Model,
        optimizer: &AdamW,
        batch: &MicroBatch,
        recipe: &Recipe,
    ) -> Result<Option<String>> {
        let Self::After { required, .. } = *self else { return Ok(None) };
        match Recorded::new(model, optimizer, batch, recipe) {
            Ok(recorded) => {
                *self = Self::Ready(Box::new(recorded));
                Ok(None)
            }
            Err(error) if required => Err(error),
            Err(error) => {
                let said = format!("steps are launched one by one: a step could not be recorded: {error}");
                *self = Self::Never("a step could not be recorded".into());
                Ok(Some(said))
            }
        }
    }

    /// Whether the recorded step computes this batch.
    pub(super) fn fits(&self, batch: &MicroBatch) -> bool {
        let Self::Ready(recorded) = self else { return false };
        size_of(batch) == recorded.size
            && batch.resets.is_empty() == recorded.resets.is_none()
            && recorded.fixed_count.is_none_or(|count| count == batch.tokens)
    }

    /// Launches the step that [`fits`](Self::fits).
    pub(super) fn launch(&mut self, batch: &MicroBatch, launched: Launched) -> Result<()> {
        match self {
            Self::Ready(recorded) => recorded.launch(batch, launched),
            _ => Err(TrainError::Internal("expected a recorded step, found none".into())),
        }
    }

    /// Whether no more steps may be launched before [`take`](Self::take).
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Ready(recorded) if recorded.pending.len() >= RING)
    }

    /// Waits for the launched steps: each with its numbers, in order.
    pub(super) fn take(&mut self) -> Result<Vec<(Launched, Numbers)>> {
        let Self::Ready(recorded) = self else { return Ok(Vec::new()) };
        if recorded.pending.is_empty() {
            return Ok(Vec::new());
        }
        let ring = Vec::<f64>::try_from(recorded.ring.f_to_device(Device::Cpu)?.f_view([-1])?)?;
        let numbers = ring.chunks_exact(2).map(|pair| Numbers { loss: pair[0], gradient_norm: pair[1] });
        Ok(recorded.pending.drain(..).zip(numbers).collect())
    }
}

fn size_of(batch: &MicroBatch) -> [usize; 2] {
    [batch.inputs.len() / batch.context.max(1), batch.context]
}

impl Recorded {
    fn new(model: &Model, optimizer: &AdamW, batch: &MicroBatch, recipe: &Recipe) -> Result<Self> {
        let device = model.placement().device;
        let Device::Cuda(number) = device else {
            return Err(TrainError::Internal("expected a GPU to record a step on".into()));
        };
        let long = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let (header, count) = (long(HEADER), long(batch.inputs.len()));
        let packed = Tensor::f_zeros([header + 2 * count], (Kind::Int64, device))?;
        let ring = Tensor::f_zeros([long(RING), 2], (Kind::Double, device))?;
        let shape = [-1, long(batch.context)];
        let resets = if batch.resets.is_empty() {
            None
        } else {
            Some(Tensor::f_zeros([count], (Kind::Bool, device))?.f_view(shape)?)
        };
        let scalars = packed.f_narrow(0, 0, 2)?.f_view_dtype(Kind::Float)?;
        let [targets_counted, step, learning_rate] =
            [scalars.f_select(0, 0)?, scalars.f_select(0, 1)?, scalars.f_select(0, 2)?];
        let place = packed.f_narrow(0, 2, 1)?;
        let inputs = packed.f_narrow(0, header, count)?.f_view(shape)?;
        let targets = packed.f_narrow(0, header + count, count)?.f_view(shape)?;
        let TargetCount::Known(known) = batch.target_count() else {
            return Err(TrainError::Internal("expected a batch that knows its targets".into()));
        };
        let (graph, ()) = Graph::record(number, || -> Result<()> {
            optimizer.begin_step(false)?;
            let counted = TargetCount::OnDevice(&targets_counted, known);
            let z_loss = recipe.training.z_loss;
            // Steps with dropout are not recorded: its keys would be those of the recorded step.
            let call = TrainingCall { resets_BT: resets.as_ref(), count: counted, dropout: None, z_loss };
            let output = model.training_loss(&inputs, &targets, &call)?;
            xlstm_bridge::autograd::backward(&[&output.minimized], &[None], false)?;
            let loss = output.cross_entropy.f_to_kind(Kind::Double)?;
            let numbers = UpdateNumbers { step: &step, learning_rate: &learning_rate };
            let norm = optimizer.update_on_gpu(numbers, &loss, recipe.optimizer.clip_norm)?;
            let pair = Tensor::f_stack(&[&loss, &norm], 0)?.f_view([1, 2])?;
            let _ = ring.shallow_clone().f_index_copy_(0, &place, &pair)?;
            Ok(())
        })?;
        let fixed_count = model.has_fused_loss().then_some(batch.tokens);
        let (pending, staged) = (Vec::with_capacity(RING), Vec::new());
        Ok(Self { graph, size: size_of(batch), fixed_count, packed, resets, ring, pending, staged })
    }

    fn launch(&mut self, batch: &MicroBatch, launched: Launched) -> Result<()> {
        // Below the ring's length.
        let place = self.pending.len() as i64;
        let pair = |low: f32, high: f32| {
            i64::from_ne_bytes((u64::from(low.to_bits()) | (u64::from(high.to_bits()) << 32)).to_ne_bytes())
        };
        self.staged.clear();
        self.staged.extend([
            pair(batch.tokens.max(1) as f32, launched.update as f32),
            pair(launched.learning_rate as f32, 0.0),
            place,
            0,
        ]);
        self.staged.extend(&batch.inputs);
        self.staged.extend(&batch.targets);
        upload(&self.packed, &Tensor::f_from_slice(&self.staged)?)?;
        if let Some(resets) = &self.resets {
            upload(resets, &Tensor::f_from_slice(&batch.resets)?.f_view_as(resets)?)?;
        }
        self.graph.replay()?;
        self.pending.push(launched);
        Ok(())
    }
}
