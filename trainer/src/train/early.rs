//! Early stopping: whether what was measured so far ends a run before its last step.
//!
//! Two rules of the recipe's `[validation]`, both off unless they are set: an accuracy that is enough, and a number of
//! validations without a lower loss. What was measured is read from `metrics.jsonl`, so a run that goes on counts on.

use std::path::Path;

use xlstm_manifests::recipe::Validation;
use xlstm_manifests::run_manifest::METRICS_NAME;

use super::report::short;
use super::validate::Measurement;
use crate::error::Result;
use crate::metrics::read_lines;

/// The rules, and what they have seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct EarlyStop {
    stop_at_accuracy: f64,
    patience: u64,
    lowest_loss: Option<f64>,
    /// The step that it was measured after.
    lowest_step: u64,
    /// Validations since the lowest loss.
    without_progress: u64,
    accuracy: Option<f64>,
}

impl EarlyStop {
    /// With what the run in `run` had measured up to `step`, the step it goes on from.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub(super) fn new(rules: &Validation, run: &Path, step: u64) -> Result<Self> {
        let (stop_at_accuracy, patience) = (rules.stop_at_accuracy, rules.patience);
        let mut early = Self { stop_at_accuracy, patience, ..Self::default() };
        let file = run.join(METRICS_NAME);
        if step == 0 || !file.is_file() {
            return Ok(early);
        }
        let mut measured: Vec<(u64, f64, Option<f64>)> = Vec::new();
        for line in read_lines(&file)?.into_iter().filter(|line| line.is_validation() && line.step <= step) {
            // A step that was measured again after a resume counts once, as it came out last.
            measured.retain(|(earlier, ..)| *earlier < line.step);
            measured.extend(line.loss.map(|loss| (line.step, loss, line.accuracy)));
        }
        measured.into_iter().for_each(|(step, loss, accuracy)| early.see(step, loss, accuracy));
        Ok(early)
    }

    /// Takes a validation after `step` in.
    pub(super) fn measured(&mut self, step: u64, found: &Measurement) {
        self.see(step, found.loss, found.accuracy());
    }

    /// The step after which the loss was the lowest so far; `None` where that was the untrained model's.
    pub(super) fn best_step(&self) -> Option<u64> {
        self.lowest_loss.map(|_| self.lowest_step).filter(|&step| step > 0)
    }

    fn see(&mut self, step: u64, loss: f64, accuracy: Option<f64>) {
        self.accuracy = accuracy;
        if self.lowest_loss.is_none_or(|lowest| loss < lowest) {
            (self.lowest_loss, self.lowest_step) = (Some(loss), step);
            self.without_progress = 0;
        } else {
            self.without_progress += 1;
        }
    }

    /// Why the run ends now, if it does.
    pub(super) fn reason(&self) -> Option<String> {
        let (wanted, patience) = (self.stop_at_accuracy, self.patience);
        match (self.accuracy, self.lowest_loss) {
            (Some(accuracy), _) if wanted > 0.0 && accuracy >= wanted => Some(format!(
                "validation accuracy {accuracy:.4} reached validation.stop_at_accuracy = {wanted}"
            )),
            (_, Some(lowest)) if patience > 0 && self.without_progress >= patience => {
                let lowest = short(lowest);
                Some(format!("{patience} validations (validation.patience) without a loss below {lowest}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Line, Lines};

    fn rules(stop_at_accuracy: f64, patience: u64) -> Validation {
        Validation { stop_at_accuracy, patience, ..Validation::default() }
    }

    #[test]
    fn rules_count_what_was_measured_before_a_resume() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = Lines::append(&folder.path().join(METRICS_NAME)).unwrap();
        // Step 30 was lost with the process that measured it, and step 20 was measured twice.
        for (step, loss, accuracy) in
            [(0, 1.0, 0.5), (10, 0.5, 0.6), (20, 0.1, 0.9), (30, 0.05, 1.0), (20, 0.7, 0.7)]
        {
            let line = Line {
                kind: "validation".into(),
                step,
                loss: Some(loss),
                accuracy: Some(accuracy),
                tokens: Some(8),
                ..Line::default()
            };
            lines.write(&line).unwrap();
        }
        let early = |rules: &Validation, step| EarlyStop::new(rules, folder.path(), step).unwrap();
        assert_eq!(early(&rules(0.0, 0), 20).reason(), None, "off unless they are set");
        assert_eq!(early(&rules(0.8, 0), 20).reason(), None, "the newest accuracy of step 20 is 0.7");
        assert!(early(&rules(0.6, 0), 20).reason().unwrap().contains("0.7000 reached"));
        assert!(early(&rules(0.0, 1), 20).reason().unwrap().contains("below 0.5000"));
        let mut patient = early(&rules(0.0, 2), 20);
        assert_eq!(patient.reason(), None);
        patient.see(30, 0.6, None);
        assert!(patient.reason().is_some());
        assert_eq!(patient.best_step(), Some(10));
        patient.see(40, 0.4, None);
        assert_eq!(patient.best_step(), Some(40));
        assert_eq!(patient.reason(), None, "progress starts the count anew");
        assert_eq!(early(&rules(0.6, 1), 0).reason(), None, "a run from the start has no past");
    }
}
