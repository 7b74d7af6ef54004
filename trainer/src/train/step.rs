//! One step: `micro-batches → sum of gradients over ranks → check → clip → update`.
//!
//! Each micro-batch's loss counts by its share of the step's targets, which every rank knows before it computes. Ranks may
//! have different numbers of micro-batches; they are aligned at the end of the step, so that all ranks meet in the same
//! collective calls. On a GPU the update follows without waiting, and changes nothing where a value is not finite
//! (`optimizer/on_gpu.rs`); the run then ends before the step counts for anything.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use xlstm_manifests::Manifest;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::rows::Readable as _;

use super::report::StepNumbers;
use super::trainer::{Trainer, list};
use crate::communicator::flags;
use crate::error::{Result, TrainError};
use crate::loader::{Loader, MicroBatch};
use crate::model::{Dropout, TrainingCall};
use crate::optimizer::UpdateNumbers;

/// How a step ended.
pub(super) enum StepEnd {
    Done,
    Stop,
}

/// A step that was launched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launched {
    pub(super) step: u64,
    /// Which update of the optimizer this is: as the step, but for moments that a run began with.
    pub(super) update: u64,
    pub(super) learning_rate: f64,
    /// Tokens of all steps up to it.
    pub(super) tokens: u64,
}

/// What a step came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
}

impl Trainer {
    /// The next step. A recorded one is only launched: [`settle`](Self::settle) waits for it.
    pub(super) fn one_step(&mut self, loader: &mut Loader) -> Result<StepEnd> {
        if !self.recording.is_due() {
            return self.eager_step(loader, None);
        }
        if self.any_flags()? & flags::STOP != 0 {
            return Ok(StepEnd::Stop);
        }
        let batch = loader.next_batch()?;
        // A recorded step is one micro-batch of one process.
        self.require_targets(self.step + 1, batch.tokens)?;
        if let Some(said) = self.recording.prepare(&self.model, &self.optimizer, &batch, &self.recipe)? {
            self.report.progress.say(&said);
        }
        if !self.recording.fits(&batch) {
            self.settle()?;
            if let Some(said) = self.recording.make_room_for_step(&self.optimizer)? {
                self.report.progress.say(&said);
            }
            return self.eager_step(loader, Some(batch));
        }
        let launched = self.launched();
        self.log_rows(launched.step, &batch)?;
        self.recording.launch(&batch, launched)?;
        self.optimizer.count_update();
        self.advance(launched, (batch.positions(), batch.rows.len()), loader);
        if self.recording.is_full() || self.is_logged(launched.step) {
            self.settle()?;
        }
        Ok(StepEnd::Done)
    }

    /// Waits for all launched steps, checks and logs them.
    pub(super) fn settle(&mut self) -> Result<()> {
        for (launched, numbers) in self.recording.take()? {
            self.check_finite(launched.step, numbers)?;
            self.log(launched, numbers)?;
        }
        Ok(())
    }

    /// A step whose launches are made one by one; `first` is its first micro-batch, where that was read already.
    fn eager_step(&mut self, loader: &mut Loader, mut first: Option<MicroBatch>) -> Result<StepEnd> {
        let launched = self.launched();
        let (rank, world) = (self.communicator.rank(), self.communicator.world_size());
        let rows = self.order.rows_of_step(launched.step);
        let targets_of_step: u64 =
            rows.iter().map(|row| self.train.targets_in(row.row)).sum::<std::result::Result<_, _>>()?;
        self.require_targets(launched.step, targets_of_step)?;
        let batches = |rank| self.order.rank_range(rank, world).len().div_ceil(self.shape.rows.max(1));
        let own = batches(rank);
        let rounds = (0..world).map(batches).max().unwrap_or(own);
        self.optimizer.begin_step(world > 1)?;
        let device = self.model.placement().device;
        let total = Tensor::f_zeros([], (Kind::Double, device))?;
        let (mut positions, mut rows_done) = (0, 0);
        for round in 0..rounds {
            if first.is_none() && self.any_flags()? & flags::STOP != 0 {
                return Ok(StepEnd::Stop);
            }
            if round + own < rounds {
                continue;
            }
            let batch = match first.take() {
                Some(batch) => batch,
                None => loader.next_batch()?,
            };
            self.log_rows(launched.step, &batch)?;
            positions += batch.positions();
            rows_done += batch.rows.len();
            let (inputs, targets, resets) = batch.tensors(device)?;
            let count = batch.target_count();
            let training = &self.recipe.training;
            let call = TrainingCall {
                resets_BT: resets.as_ref(),
                count,
                dropout: Dropout::of_step(training, launched.step, &batch.rows, batch.sequences(), device)?,
                z_loss: training.z_loss,
            };
            let output = self.model.training_loss(&inputs, &targets, &call)?;
            let share = batch.tokens as f64 / targets_of_step as f64;
            // A step of one micro-batch needs no scaling, which spares a pass over the largest gradients.
            let of_step = |loss: &Tensor| {
                if share == 1.0 { Ok(loss.shallow_clone()) } else { loss.f_mul_scalar(share) }
            };
            let scaled = of_step(&output.minimized)?;
            self.communicator.before_backward(round + 1 == rounds)?;
            xlstm_bridge::autograd::backward(&[&scaled], &[None], false)?;
            let _ =
                total.shallow_clone().f_add_(&of_step(&output.cross_entropy)?.f_to_kind(Kind::Double)?)?;
        }
        self.communicator.finish_gradients(&self.optimizer.tensors())?;
        let numbers = if self.optimizer.on_gpu() {
            self.update_on_gpu(launched, &total)?
        } else {
            self.update_on_cpu(launched, &total)?
        };
        self.advance(launched, (positions, rows_done), loader);
        self.recording.count_eager();
        self.log(launched, numbers)?;
        Ok(StepEnd::Done)
    }

    /// Checks before it updates: the norm is at hand.
    fn update_on_cpu(&mut self, launched: Launched, total: &Tensor) -> Result<Numbers> {
        let mut loss = [f64::try_from(total)?];
        self.communicator.sum(&mut loss)?;
        let numbers = Numbers { loss: loss[0], gradient_norm: self.optimizer.gradient_norm()? };
        self.check_finite(launched.step, numbers)?;
        let clip = self.recipe.optimizer.clip_norm;
        let factor = if clip > 0.0 { (clip / (numbers.gradient_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.optimizer.update(launched.learning_rate, factor)?;
        Ok(numbers)
    }

    /// Updates first: the GPU itself leaves out an update that is not finite.
    fn update_on_gpu(&mut self, launched: Launched, total: &Tensor) -> Result<Numbers> {
        let number = |value: f64| Tensor::f_full([], value, (Kind::Float, total.device()));
        let count = self.optimizer.count_update();
        let (step, learning_rate) = (number(count as f64)?, number(launched.learning_rate)?);
        let numbers = UpdateNumbers { step: &step, learning_rate: &learning_rate };
        let norm = self.optimizer.update_on_gpu(numbers, total, self.recipe.optimizer.clip_norm)?;
        let pair = Vec::<f64>::try_from(Tensor::f_stack(&[total, &norm], 0)?.f_to_device(Device::Cpu)?)?;
        let mut loss = [pair[0]];
        self.communicator.sum(&mut loss)?;
        let numbers = Numbers { loss: loss[0], gradient_norm: pair[1] };
        self.check_finite(launched.step, numbers)?;
        Ok(numbers)
    }

    /// The step after the present one.
    fn launched(&self) -> Launched {
        let step = self.step + 1;
        let tokens = self.tokens + self.order.tokens_of_step(step);
        let update = self.optimizer.step_count() + 1;
        Launched { step, update, learning_rate: self.recipe.learning_rate(step), tokens }
    }

    /// Counts a step whose `positions` of this rank's `rows` were computed: batches of examples end behind their last
    /// target, and a speed counts no position that was cut.
    fn advance(&mut self, launched: Launched, (positions, rows): (usize, usize), loader: &mut Loader) {
        let whole = rows as f64 * self.order.row_length as f64;
        let computed = if whole > 0.0 { positions as f64 / whole } else { 1.0 };
        let tokens = (launched.tokens - self.tokens) as f64 * computed.min(1.0);
        self.report.count(tokens.round() as u64, loader.take_waited().as_secs_f64());
        (self.step, self.tokens) = (launched.step, launched.tokens);
    }

    fn log_rows(&mut self, step: u64, batch: &MicroBatch) -> Result<()> {
        match &mut self.rows {
            Some(log) => log.write(step, &batch.rows),
            None => Ok(()),
        }
    }

    fn is_logged(&self, step: u64) -> bool {
        step.is_multiple_of(self.recipe.logging.every_steps) || step == self.recipe.training.steps
    }

    fn log(&mut self, launched: Launched, numbers: Numbers) -> Result<()> {
        if !self.is_logged(launched.step) {
            return Ok(());
        }
        let Launched { step, learning_rate, tokens, .. } = launched;
        let Numbers { loss, gradient_norm } = numbers;
        let rows_by_dataset = self.order.is_mixed().then(|| self.order.rows_by_dataset(step));
        self.report.step(&StepNumbers { step, loss, gradient_norm, learning_rate, tokens, rows_by_dataset })
    }

    /// Every rank counts the targets of the same rows, so all of them end here or none.
    fn require_targets(&self, step: u64, targets: u64) -> Result<()> {
        let rows = self.order.rows_of_step(step);
        let (part, _) = self.train.place(rows.first().map_or(0, |row| row.row));
        require_targets(part.data.folder(), step, &rows, targets)
    }

    fn any_flags(&self) -> Result<u64> {
        let own = if self.signals.received().is_some() { flags::STOP } else { 0 };
        self.communicator.any_flags(own)
    }

    /// Stops all ranks when a value is not finite.
    fn check_finite(&self, step: u64, numbers: Numbers) -> Result<()> {
        let Numbers { loss, gradient_norm: norm } = numbers;
        let bad = !loss.is_finite() || !norm.is_finite();
        let flag = if bad { flags::NOT_FINITE } else { 0 };
        if self.communicator.any_flags(flag)? & flags::NOT_FINITE == 0 {
            return Ok(());
        }
        let (what, value) = if loss.is_finite() { ("gradient norm", norm) } else { ("loss", loss) };
        let rows = self.order.rows_of_step(step);
        Err(TrainError::NotFinite {
            run: self.run.clone(),
            step,
            what,
            value,
            rows: list(rows.iter().map(|row| row.row.to_string())),
            documents: self.documents(&rows),
        })
    }
}

/// Refuses a step that would learn from nothing, whose loss would be 0 / 0. Shards refuse rows without a target when they
/// are opened; this is for whatever else gives rows.
fn require_targets(folder: &Path, step: u64, rows: &[StepRow], targets: u64) -> Result<()> {
    if targets > 0 {
        return Ok(());
    }
    let rows = list(rows.iter().map(|row| row.row.to_string()));
    Err(TrainError::file(
        &Manifest::locate(folder),
        format!("at least one target that is scored in step {step}"),
        format!("none in its rows {rows}"),
        "each row needs a target: find those without one with `xlstm-data audit`, and prepare the split again; the last \
         checkpoint is untouched",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_a_target_is_refused_with_its_rows() {
        let rows = [3, 7].map(|row| StepRow { epoch: 0, row });
        let refused = |targets| require_targets(Path::new("data/toy"), 5, &rows, targets);
        assert!(refused(1).is_ok());
        let error = refused(0).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        for part in ["data/toy", "scored in step 5", "none in its rows 3, 7", "xlstm-data audit"] {
            assert!(error.to_string().contains(part), "`{part}` is not in {error}");
        }
    }
}
