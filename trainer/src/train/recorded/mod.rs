//! A step on a GPU, recorded once and replayed.
//!
//! A step of a small model is hundreds of launches of a few microseconds each. Recorded as a CUDA graph, a step is one copy
//! to the GPU and one launch: inputs, targets and the numbers of the update travel as one tensor, forward and backward pass,
//! clipping and AdamW follow, and loss and norm go into a ring on the GPU that is read when something is logged.
//!
//! ```text
//! packed (Int64)  the update's numbers, keys of dropout, inputs, targets: one copy to the GPU (`packed`)
//! ring (float64)  [loss, gradient norm] of the last steps
//! ```
//! The first steps of a program are launched one by one, which compiles and loads all kernels. The same kernels run in the
//! same order either way, so losses agree to the last bit, but for attention's: libtorch adds its gradients in no fixed order.
//!
//! A recording keeps the memory of its step for as long as it lives. Where the GPU has no room for that memory twice, a
//! recording is alone on it: libtorch gives back what launched steps left in its cache before a step is recorded, and the
//! recording is freed before anything else is computed, a validation or a step of another size, and made again after it.

mod packed;

use std::fmt;

use tch::{Device, Kind, Tensor};
use xlstm_bridge::graph::Graph;
use xlstm_bridge::memory::release_cached;
use xlstm_kernels::dropout::DropoutKeys;
use xlstm_manifests::recipe::{Recipe, Training};

use packed::{Packed, Size};

use super::step::{Launched, Numbers};
use crate::error::{Result, TrainError};
use crate::loader::MicroBatch;
use crate::model::{Dropout, Model, TargetCount, TrainingCall};
use crate::optimizer::{AdamW, UpdateNumbers};

/// Steps that are launched one by one first.
const EAGER_STEPS: u64 = 3;

/// Steps whose numbers wait on the GPU at most.
const RING: usize = 64;

/// A recording that is alone on its GPU pays from so many replays on: making it takes as long as three launched steps, and a replay
/// saves some 5 % of one (docs/benchmarks/gpu/training.md).
const FEWEST_REPLAYS: u64 = 60;

/// Whether steps are recorded.
#[derive(Debug)]
pub(super) enum Recording {
    /// They are launched one by one, and why.
    Never(String),
    /// Recorded after so many more.
    After { steps: u64, terms: Terms },
    /// Recorded.
    Ready(Box<Recorded>),
}

/// What holds for a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// A step that cannot be recorded ends the run.
    pub(super) required: bool,
    /// The GPU has no room for its memory beside that of launched steps.
    pub(super) alone: bool,
}

/// A recorded step.
#[derive(Debug)]
pub(super) struct Recorded {
    graph: Graph,
    terms: Terms,
    replays: u64,
    packed: Packed,
    /// Targets that count, where the kernels of the loss take them by value.
    fixed_count: Option<u64>,
    /// With dropout: what a step's keys follow from.
    dropout: Option<Training>,
    ring: Tensor,
    pending: Vec<Launched>,
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never(reason) => write!(f, "launched one by one ({reason})"),
            Self::After { terms: Terms { alone, .. }, .. } => {
                write!(f, "recorded as one CUDA graph after {EAGER_STEPS} that are launched one by one")?;
                f.write_str(if *alone { "; freed before each validation and recorded again" } else { "" })
            }
            Self::Ready(_) => write!(f, "recorded as one CUDA graph"),
        }
    }
}

impl Recording {
    /// Recorded after the first steps.
    pub(super) fn planned(terms: Terms) -> Self {
        Self::After { steps: EAGER_STEPS, terms }
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
        let Self::After { terms, .. } = *self else { return Ok(None) };
        match Recorded::new(terms, model, optimizer, batch, recipe) {
            Ok(recorded) => {
                *self = Self::Ready(Box::new(recorded));
                Ok(None)
            }
            Err(error) if terms.required => Err(error),
            Err(error) => {
                let said = format!("steps are launched one by one: a step could not be recorded: {error}");
                *self = Self::Never("a step could not be recorded".into());
                Ok(Some(said))
            }
        }
    }

    /// Before anything is computed that is not the recorded step: a recording that is alone on its GPU is freed, and the
    /// next step is recorded again.
    ///
    /// # Errors
    /// When launched steps were not settled ([`take`](Self::take)), whose numbers would be lost.
    pub(super) fn make_room(&mut self, optimizer: &AdamW) -> Result<()> {
        let Self::Ready(recorded) = self else { return Ok(()) };
        let terms = recorded.terms;
        if !terms.alone {
            return Ok(());
        }
        if !recorded.pending.is_empty() {
            let found = recorded.pending.len();
            return Err(TrainError::Internal(format!(
                "expected settled steps before a recording is freed, found {found} others"
            )));
        }
        // They lie in the recording's memory.
        optimizer.begin_step(false)?;
        *self = Self::After { steps: 0, terms };
        Ok(())
    }

    /// As [`make_room`](Self::make_room), for a batch that the recorded step does not compute. Where that comes too soon for a
    /// recording to pay, steps are launched one by one from now on; what is then to be said is returned.
    pub(super) fn make_room_for_step(&mut self, optimizer: &AdamW) -> Result<Option<String>> {
        let Self::Ready(recorded) = self else { return Ok(None) };
        let (terms, replays) = (recorded.terms, recorded.replays);
        self.make_room(optimizer)?;
        if !terms.alone || terms.required || replays >= FEWEST_REPLAYS {
            return Ok(None);
        }
        *self = Self::Never(
            "batches differ too often for a recording that leaves no memory for launched steps".into(),
        );
        Ok(Some(format!(
            "steps are launched one by one: a batch differs from the recorded one after {replays} steps, and both kinds do not fit on this GPU"
        )))
    }

    /// Whether the recorded step computes this batch.
    pub(super) fn fits(&self, batch: &MicroBatch) -> bool {
        let Self::Ready(recorded) = self else { return false };
        recorded.packed.takes(Size::of(batch, recorded.dropout.is_some()))
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

impl Recorded {
    fn new(
        terms: Terms,
        model: &Model,
        optimizer: &AdamW,
        batch: &MicroBatch,
        recipe: &Recipe,
    ) -> Result<Self> {
        let device = model.placement().device;
        let Device::Cuda(number) = device else {
            return Err(TrainError::Internal("expected a GPU to record a step on".into()));
        };
        let dropout = recipe.training.has_dropout().then(|| recipe.training.clone());
        let packed = Packed::new(Size::of(batch, dropout.is_some()), device)?;
        let ring = Tensor::f_zeros([RING as i64, 2], (Kind::Double, device))?;
        let views = packed.views()?;
        let keys = views.keys.as_ref().map(|keys| DropoutKeys::Device(keys.shallow_clone()));
        let TargetCount::Known(known) = batch.target_count() else {
            return Err(TrainError::Internal("expected a batch that knows its targets".into()));
        };
        // The recording makes gradients of its own, in memory of its own.
        optimizer.begin_step(false)?;
        if terms.alone {
            release_cached()?;
        }
        let (graph, ()) = Graph::record(number, || -> Result<()> {
            let count = TargetCount::OnDevice(&views.counted, known);
            let dropout = keys.and_then(|keys| Dropout::with_keys(&recipe.training, keys));
            let z_loss = recipe.training.z_loss;
            let call = TrainingCall { resets_BT: views.resets.as_ref(), count, dropout, z_loss };
            let output = model.training_loss(&views.inputs, &views.targets, &call)?;
            xlstm_bridge::autograd::backward(&[&output.minimized], &[None], false)?;
            let loss = output.cross_entropy.f_to_kind(Kind::Double)?;
            let numbers = UpdateNumbers { step: &views.step, learning_rate: &views.learning_rate };
            let norm = optimizer.update_on_gpu(numbers, &loss, recipe.optimizer.clip_norm)?;
            let pair = Tensor::f_stack(&[&loss, &norm], 0)?.f_view([1, 2])?;
            let _ = ring.shallow_clone().f_index_copy_(0, &views.place, &pair)?;
            Ok(())
        })?;
        // A z-loss reads its count from the GPU.
        let by_value = model.has_fused_loss() && recipe.training.z_loss == 0.0;
        let fixed_count = by_value.then_some(batch.tokens);
        let pending = Vec::with_capacity(RING);
        Ok(Self { graph, terms, replays: 0, packed, fixed_count, dropout, ring, pending })
    }

    fn launch(&mut self, batch: &MicroBatch, launched: Launched) -> Result<()> {
        let keys = self
            .dropout
            .as_ref()
            .map(|training| Dropout::keys_of_step(training, launched.step, &batch.rows, batch.sequences()));
        // Its place is below the ring's length.
        self.packed.fill(batch, &keys.unwrap_or_default(), launched, self.pending.len())?;
        self.graph.replay()?;
        self.replays += 1;
        self.pending.push(launched);
        Ok(())
    }
}
