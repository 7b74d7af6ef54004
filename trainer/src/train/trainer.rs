//! The loop: steps, checkpoints, validation, and how a run ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use xlstm_manifests::mixed_rows::Mixture;
use xlstm_manifests::order::{Order, StepRow};
use xlstm_manifests::printable;
use xlstm_manifests::recipe::Recipe;
use xlstm_manifests::rows::Rows;
use xlstm_manifests::run_manifest::CHECKPOINTS_NAME;

use super::early::EarlyStop;
use super::recorded::Recording;
use super::report::RunLog;
use super::step::StepEnd;
use super::validate::measure;
use crate::checkpoint::{self, Snapshot, Writer};
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::error::Result;
use crate::loader::{BatchShape, Loader, LoaderOptions};
use crate::metrics::RowLog;
use crate::model::{Model, metadata};
use crate::optimizer::AdamW;
use crate::signals::Signals;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All steps are done.
    Finished {
        /// The last validation loss.
        validation: Option<f64>,
    },
    /// A signal asked to stop; everything is saved.
    Stopped {
        /// The signal's number.
        signal: u8,
        /// The last step that was done.
        step: u64,
    },
}

/// A run that is ready to go on.
pub struct Trainer {
    pub(super) recipe: Recipe,
    pub(super) run: PathBuf,
    pub(super) train: Arc<Mixture>,
    pub(super) validation: Option<Box<dyn Rows>>,
    pub(super) order: Order,
    pub(super) shape: BatchShape,
    pub(super) model: Model,
    pub(super) optimizer: AdamW,
    pub(super) communicator: Box<dyn Communicator>,
    pub(super) signals: Signals,
    pub(super) writer: Option<Writer>,
    pub(super) report: RunLog,
    /// Steps done.
    pub(super) step: u64,
    /// Tokens that went into them.
    pub(super) tokens: u64,
    /// The step of the newest checkpoint.
    pub(super) saved: Option<u64>,
    /// The parameters that a new run began with, for people; `None` where they were drawn.
    pub(super) began_with: Option<String>,
    /// When it was begun, or else when the program started.
    pub(super) saved_at: Instant,
    pub(super) last_validation: Option<f64>,
    pub(super) early: EarlyStop,
    /// Whether steps are recorded and replayed.
    pub(super) recording: Recording,
    /// Where this rank notes its rows, when it is asked to.
    pub(super) rows: Option<RowLog>,
    /// Holds the run's folder for this process.
    pub(super) _lock: Option<xlstm_manifests::atomic::FolderLock>,
}

impl Trainer {
    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The resolved recipe.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The run's folder.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.run
    }

    /// What is about to happen, for the start of a run.
    ///
    /// # Errors
    /// When the device cannot be measured.
    pub fn summary(&self, device: &DeviceInfo) -> Result<String> {
        let plan = super::describe(&self.recipe, &self.train, device)?;
        let from = match (self.step, &self.began_with) {
            (0, Some(file)) => format!("\nfrom             {}", printable::text(file)),
            (0, None) => String::new(),
            (step, _) => format!("\nfrom             step {step}"),
        };
        let world = self.communicator.world_size();
        let ranks = if world > 1 { format!("\nranks            {world}") } else { String::new() };
        let on_gpu = matches!(self.model.placement().device, tch::Device::Cuda(_));
        let steps = if on_gpu { format!("\nsteps            {}", self.recording) } else { String::new() };
        Ok(format!("{plan}{ranks}{steps}\nrun              {}{from}", printable::path(&self.run)))
    }

    /// Steps done.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Runs to the recipe's last step, or until a signal.
    ///
    /// # Errors
    /// When data cannot be read, a value is not finite, a rank is gone, or the last checkpoint cannot be written.
    pub fn run(&mut self) -> Result<Outcome> {
        let outcome = self.run_steps();
        outcome.map_err(|error| {
            if let Some(writer) = &mut self.writer {
                // Finishes the checkpoint, so that the message names the newest step. The first error is the one to report.
                let _ = writer.finish();
            }
            self.communicator.explain(error)
        })
    }

    fn run_steps(&mut self) -> Result<Outcome> {
        let steps = self.recipe.training.steps;
        self.report.session(self.step, self.communicator.world_size())?;
        if self.step == 0 && !self.validate()? {
            return self.stop();
        }
        let plan = LoaderOptions {
            order: self.order.clone(),
            rank: self.communicator.rank(),
            world: self.communicator.world_size(),
            shape: self.shape,
            first_step: self.step + 1,
            last_step: steps,
        };
        let mut loader = Loader::start(Arc::clone(&self.train), plan);
        self.report.restart_clock();
        // A run that had ended early and is resumed has nothing to do, unless its rules are others now.
        let mut ended = self.ends_early();
        while self.step < steps && !ended {
            match self.one_step(&mut loader)? {
                StepEnd::Stop => {
                    self.settle()?;
                    return self.stop();
                }
                StepEnd::Done => {}
            }
            let step = self.step;
            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            let last = self.step == steps;
            let to_save = !last && (self.is_time_to_save()? || due(self.recipe.checkpoint.every_steps));
            if last || to_save || due(self.recipe.validation.every_steps) {
                self.settle()?;
            }
            if to_save {
                self.save(false)?;
                self.report.restart_clock();
            }
            if last || due(self.recipe.validation.every_steps) {
                if !self.validate()? {
                    return self.stop();
                }
                self.report.restart_clock();
                ended = !last && self.ends_early();
            }
        }
        self.save(true)?;
        self.mark_best()?;
        self.report.progress.finish();
        Ok(Outcome::Finished { validation: self.last_validation })
    }

    /// Whether a checkpoint is due by time: the first rank's clock decides for all.
    fn is_time_to_save(&self) -> Result<bool> {
        let minutes = self.recipe.checkpoint.every_minutes;
        if minutes <= 0.0 {
            return Ok(false);
        }
        let due = self.communicator.rank() == 0 && self.saved_at.elapsed().as_secs_f64() >= 60.0 * minutes;
        let own = if due { flags::SAVE } else { 0 };
        Ok(self.communicator.any_flags(own)? & flags::SAVE != 0)
    }

    /// Marks the checkpoint of the lowest validation loss, where the recipe asks for it and the mark is elsewhere.
    fn mark_best(&mut self) -> Result<()> {
        let Some(step) = self.early.best_step().filter(|_| self.recipe.checkpoint.keep_best) else {
            return Ok(());
        };
        let checkpoints = self.run.join(CHECKPOINTS_NAME);
        let Some(writer) = self.writer.as_mut().filter(|_| checkpoint::best(&checkpoints) != Some(step))
        else {
            return Ok(());
        };
        writer.finish()?;
        // A best one from before the option was set may be gone.
        if checkpoint::list(&checkpoints)?.contains(&step) {
            writer.mark_best(step)?;
        }
        Ok(())
    }

    /// Whether the recipe's rules end the run here; says why.
    fn ends_early(&self) -> bool {
        let reason = self.early.reason();
        if let Some(reason) = &reason {
            self.report.progress.say(&format!("ending early at step {}: {reason}", self.step));
        }
        reason.is_some()
    }

    /// Saves after a signal.
    fn stop(&mut self) -> Result<Outcome> {
        let step = self.step;
        self.report.progress.say(&format!("stopping: saving step {step}; a second signal exits at once"));
        self.save(true)?;
        self.report.progress.finish();
        Ok(Outcome::Stopped { signal: self.signals.received().unwrap_or(15), step })
    }

    /// The first documents of these rows, as `file record N`.
    pub(super) fn documents(&self, rows: &[StepRow]) -> String {
        let rows = rows.iter().take(8).filter_map(|row| self.train.documents_in_row(row.row).ok());
        list(rows.flat_map(|(manifest, spans)| {
            spans.into_iter().map(|span| {
                let input = manifest.inputs.get(span.input as usize);
                let path = input.map(|input| input.path.to_string()).unwrap_or_default();
                format!("{path} record {}", span.record)
            })
        }))
    }

    /// Measures the validation split; false when a signal came in between.
    fn validate(&mut self) -> Result<bool> {
        if self.validation.is_some() {
            self.settle()?;
            self.recording.make_room(&self.optimizer)?;
        }
        let Some(dataset) = &self.validation else { return Ok(true) };
        let rows = self.recipe.validation.rows;
        let found = measure(
            &self.model,
            dataset.as_ref(),
            rows,
            self.shape,
            self.communicator.as_ref(),
            &self.signals,
        )?;
        let Some(found) = found else { return Ok(false) };
        self.last_validation = Some(found.loss);
        self.early.measured(self.step, &found);
        self.report.validation(self.step, &found, dataset.rows())?;
        if self.recipe.checkpoint.keep_best && self.early.best_step() == Some(self.step) {
            self.save(false)?;
            self.mark_best()?;
        }
        Ok(true)
    }

    /// Saves the present step, beside training or, at the `end`, before going on.
    fn save(&mut self, end: bool) -> Result<()> {
        self.saved_at = Instant::now();
        // A mark on a checkpoint says that every rank had done its step.
        self.communicator.barrier()?;
        if let Some(writer) = &mut self.writer {
            if self.saved != Some(self.step) {
                let snapshot = Snapshot {
                    step: self.step,
                    tokens: self.tokens,
                    train_root: self.order.root,
                    model: self.model.snapshot()?,
                    optimizer: self.optimizer.snapshot()?,
                    metadata: metadata(self.model.config(), self.recipe.training.context_length)?,
                };
                if let Err(error) = writer.begin(snapshot) {
                    // Training goes on: the checkpoint before stays, and the next one may find room.
                    self.report.progress.say(&format!("warning: a checkpoint was not written: {error}"));
                }
                self.saved = Some(self.step);
            }
            if end {
                writer.finish()?;
            }
        }
        if end {
            self.communicator.barrier()?;
        }
        Ok(())
    }
}

/// At most sixteen entries, then how many more.
pub(super) fn list(entries: impl Iterator<Item = String>) -> String {
    let entries: Vec<String> = entries.collect();
    let shown = entries.iter().take(16).cloned().collect::<Vec<_>>().join(", ");
    match entries.len().saturating_sub(16) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
