//! What a run tells: one place that feeds lines, events and progress the same numbers.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use xlstm_bridge::runtime;
use xlstm_manifests::run_manifest::METRICS_NAME;

use super::validate::{Floor, Measurement};
use crate::error::Result;
use crate::evaluation::results::rate;
use crate::metrics::{EventWriter, Line, Lines, TrainingProgress};

/// Writers of rank 0; the others only keep time.
pub(super) struct RunLog {
    lines: Option<Lines>,
    events: Option<EventWriter>,
    pub(super) progress: TrainingProgress,
    since: Instant,
    tokens: u64,
    waited: f64,
    /// Operations a token over the peak of all ranks; `None` where the peak is not known.
    utilization: Option<f64>,
    /// The GPU that computes, whose memory is reported then.
    gpu: Option<usize>,
    /// Whether the loss is a squared error, which has no perplexity.
    squared_error: bool,
}

/// Numbers of one step.
pub(super) struct StepNumbers {
    pub(super) step: u64,
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    /// Tokens of all steps so far.
    pub(super) tokens: u64,
    /// Rows of all steps so far by dataset, of a mixture.
    pub(super) rows_by_dataset: Option<Vec<u64>>,
}

/// A loss for people: four decimals, or as many digits as tell a small squared error from another.
pub(super) fn short(loss: f64) -> String {
    if loss != 0.0 && loss.abs() < 0.01 { format!("{loss:.3e}") } else { format!("{loss:.4}") }
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |duration| duration.as_secs_f64())
}

impl RunLog {
    pub(super) fn new(
        run: &Path,
        first_rank: bool,
        tensorboard: bool,
        progress: TrainingProgress,
        utilization: Option<f64>,
    ) -> Result<Self> {
        let lines = if first_rank { Some(Lines::append(&run.join(METRICS_NAME))?) } else { None };
        let events = if first_rank && tensorboard {
            let folder = run.join("tensorboard");
            fs_err::create_dir_all(&folder)?;
            Some(EventWriter::create(&folder, now())?)
        } else {
            None
        };
        Ok(Self {
            lines,
            events,
            progress,
            since: Instant::now(),
            tokens: 0,
            waited: 0.0,
            utilization,
            gpu: None,
            squared_error: false,
        })
    }

    /// Of a model whose targets are numbers.
    pub(super) fn of_squared_error(self, squared_error: bool) -> Self {
        Self { squared_error, ..self }
    }

    fn perplexity(&self, loss: f64) -> Option<f64> {
        (!self.squared_error).then(|| loss.exp())
    }

    /// For a run that computes on `device`.
    pub(super) fn on(self, device: tch::Device) -> Self {
        let gpu = if let tch::Device::Cuda(number) = device { Some(number) } else { None };
        Self { gpu, ..self }
    }

    /// The program starts, or starts again, after `step` steps.
    pub(super) fn session(&mut self, step: u64, world: u64) -> Result<()> {
        let line = Line { kind: "session".into(), step, time: now(), world: Some(world), ..Line::default() };
        self.write(&line)
    }

    /// Counts a step's tokens and wait.
    pub(super) fn count(&mut self, tokens: u64, waited: f64) {
        self.tokens += tokens;
        self.waited += waited;
    }

    /// Logs a step; speeds are since the last logged one.
    pub(super) fn step(&mut self, numbers: &StepNumbers) -> Result<()> {
        let elapsed = self.since.elapsed().as_secs_f64();
        // No figure over no time.
        let speed = rate(self.tokens as f64, elapsed);
        let waited = rate(self.waited, elapsed);
        let line = Line {
            kind: "train".into(),
            step: numbers.step,
            time: now(),
            loss: Some(numbers.loss),
            perplexity: self.perplexity(numbers.loss),
            gradient_norm: Some(numbers.gradient_norm),
            learning_rate: Some(numbers.learning_rate),
            tokens: Some(numbers.tokens),
            rows_by_dataset: numbers.rows_by_dataset.clone(),
            tokens_per_second: speed,
            data_wait_share: waited,
            flop_utilization: self.utilization.zip(speed).map(|(factor, speed)| factor * speed),
            memory_peak_bytes: Some(match self.gpu {
                Some(gpu) => xlstm_bridge::memory::device_peak(gpu, false)?.allocated,
                None => runtime::memory().peak_resident,
            }),
            ..Line::default()
        };
        self.write(&line)?;
        if let Some(events) = &mut self.events {
            let values = [
                ("train/loss", Some(numbers.loss)),
                ("train/gradient_norm", Some(numbers.gradient_norm)),
                ("train/learning_rate", Some(numbers.learning_rate)),
                ("speed/tokens_per_second", speed),
                ("speed/data_wait_share", waited),
            ];
            let values: Vec<_> =
                values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            events.scalars(line.time, numbers.step, &values)?;
            let rows = numbers.rows_by_dataset.as_deref().unwrap_or_default();
            let all: u64 = rows.iter().sum();
            for (number, rows) in rows.iter().enumerate() {
                let name = format!("data/share_{}", number + 1);
                events.scalars(line.time, numbers.step, &[(&name, *rows as f64 / all as f64)])?;
            }
        }
        self.progress.step(&line);
        self.restart_clock();
        Ok(())
    }

    /// Logs a measurement.
    pub(super) fn validation(&mut self, step: u64, found: &Measurement, rows_of_split: u64) -> Result<()> {
        let (unigram_entropy, target_variance) = match found.floor {
            Floor::UnigramEntropy(entropy) => (Some(entropy), None),
            Floor::TargetVariance(variance) => (None, Some(variance)),
        };
        let line = Line {
            kind: "validation".into(),
            step,
            time: now(),
            loss: Some(found.loss),
            perplexity: self.perplexity(found.loss),
            accuracy: found.accuracy(),
            tokens: Some(found.tokens),
            rows: Some(found.rows),
            rows_of_split: Some(rows_of_split),
            unigram_entropy,
            target_variance,
            ..Line::default()
        };
        self.write(&line)?;
        if let Some(events) = &mut self.events {
            let accuracy = found.accuracy().map(|accuracy| ("validation/accuracy", accuracy));
            let values: Vec<_> = [("validation/loss", found.loss)].into_iter().chain(accuracy).collect();
            events.scalars(line.time, step, &values)?;
        }
        let prefix = if found.rows < rows_of_split {
            format!(" (the first {} of {rows_of_split} rows)", found.rows)
        } else {
            String::new()
        };
        let (loss, tokens) = (found.loss, found.tokens);
        self.progress.say(&match (found.floor, found.accuracy()) {
            (Floor::TargetVariance(variance), _) => format!(
                "step {step}: validation mean squared error {} over {tokens} targets{prefix}; variance of the targets {}",
                short(loss),
                short(variance)
            ),
            (Floor::UnigramEntropy(entropy), Some(accuracy)) => format!(
                "step {step}: validation loss {loss:.4}, accuracy {accuracy:.4} over {tokens} targets{prefix}; entropy of \
                 single targets {entropy:.4}"
            ),
            (Floor::UnigramEntropy(entropy), None) => format!(
                "step {step}: validation loss {loss:.4}, perplexity {:.2}, {tokens} tokens{prefix}; entropy of single \
                 tokens {entropy:.4}",
                loss.exp()
            ),
        });
        Ok(())
    }

    /// Time that was spent on something else than steps does not count.
    pub(super) fn restart_clock(&mut self) {
        self.since = Instant::now();
        self.tokens = 0;
        self.waited = 0.0;
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        match &mut self.lines {
            Some(lines) => lines.write(line),
            None => Ok(()),
        }
    }
}
