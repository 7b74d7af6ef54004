//! The learning rate over the steps of a run.
//!
//! ```text
//! step s, warm-up W, decay from D to E, peak p, end e = p · final_fraction          (D = W but for the last)
//! s < W                      p · s / W
//! cosine                     e + (p - e) · (1 + cos(π · (s - D) / (E - D))) / 2      then e
//! linear                     p + (e - p) · (s - D) / (E - D)                         then e
//! constant                   p
//! warm-up-stable-decay       p until D, then as linear
//! ```

use serde::{Deserialize, Serialize};

use super::Recipe;

/// Linear warm-up, then what the shape says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// What follows the warm-up.
    pub shape: ScheduleShape,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The step at which warm-up-stable-decay begins to decay; 0: nine tenths of the way to the decay's end.
    pub stable_until: u64,
    /// The step at which the decay ends; 0: `training.steps`. The paper's 15B runs stop before it.
    pub decay_steps: u64,
    /// Learning rate at the end, as a fraction of the peak.
    pub final_fraction: f64,
}

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleShape {
    /// Half a cosine, down to the final fraction: the paper's.
    Cosine,
    /// A straight line, down to the final fraction.
    Linear,
    /// The peak, to the end.
    Constant,
    /// The peak, then a straight line down to the final fraction.
    WarmupStableDecay,
}

impl ScheduleShape {
    /// As recipes have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Constant => "constant",
            Self::WarmupStableDecay => "warmup-stable-decay",
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            shape: ScheduleShape::Cosine,
            warmup_steps: 750,
            stable_until: 0,
            decay_steps: 0,
            final_fraction: 0.1,
        }
    }
}

impl Recipe {
    /// The step at which the decay ends.
    #[must_use]
    pub fn decay_steps(&self) -> u64 {
        if self.schedule.decay_steps == 0 { self.training.steps } else { self.schedule.decay_steps }
    }

    /// The step at which the decay begins.
    #[must_use]
    pub fn decay_begin(&self) -> u64 {
        let (warmup, until) = (self.schedule.warmup_steps, self.schedule.stable_until);
        match self.schedule.shape {
            ScheduleShape::WarmupStableDecay if until > 0 => until,
            ScheduleShape::WarmupStableDecay => {
                let end = self.decay_steps();
                (end - end / 10).max(warmup)
            }
            ScheduleShape::Cosine | ScheduleShape::Linear | ScheduleShape::Constant => warmup,
        }
    }

    /// The learning rate of `step` (from 1): see the head of the file.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let schedule = &self.schedule;
        let (peak, warmup) = (self.optimizer.learning_rate, schedule.warmup_steps);
        let (begin, decay) = (self.decay_begin(), self.decay_steps());
        if step < warmup {
            return peak * step as f64 / warmup as f64;
        }
        let end = peak * schedule.final_fraction;
        if schedule.shape == ScheduleShape::Constant || (step < begin && step < decay) {
            return peak;
        }
        if step >= decay {
            return end;
        }
        let progress = (step - begin) as f64 / (decay - begin) as f64;
        if schedule.shape == ScheduleShape::Cosine {
            end + (peak - end) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        } else {
            peak + (end - peak) * progress
        }
    }

    /// The schedule for people: `cosine from 0.001 to 0.0001 at step 30000, warm-up 750`.
    #[must_use]
    pub fn schedule_label(&self) -> String {
        let (schedule, peak) = (&self.schedule, self.optimizer.learning_rate);
        let end = peak * schedule.final_fraction;
        let warmup = match schedule.warmup_steps {
            0 => "no warm-up".to_owned(),
            steps => format!("warm-up {steps}"),
        };
        let (name, decay) = (schedule.shape.name(), self.decay_steps());
        match schedule.shape {
            ScheduleShape::Constant => format!("{name} at {peak:.3e}, {warmup}"),
            ScheduleShape::WarmupStableDecay => {
                format!(
                    "{name}: {peak:.3e} until step {}, {end:.3e} at step {decay}, {warmup}",
                    self.decay_begin()
                )
            }
            ScheduleShape::Cosine | ScheduleShape::Linear => {
                format!("{name} from {peak:.3e} to {end:.3e} at step {decay}, {warmup}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::resolve;

    #[test]
    fn the_schedule_warms_up_decays_and_stays() {
        let mut recipe = Recipe::default();
        recipe.schedule.decay_steps = 30_000;
        let rate = |step| recipe.learning_rate(step);
        assert!((rate(1) - 1e-3 / 750.0).abs() < 1e-12);
        assert!((rate(750) - 1e-3).abs() < 1e-12);
        assert!((rate((750 + 30_000) / 2) - 0.55e-3).abs() < 1e-9);
        assert!(
            (rate(28_170) - 1.08664e-4).abs() < 1e-7,
            "not fully decayed where the paper stops: {}",
            rate(28_170)
        );
        assert!((rate(30_000) - 1e-4).abs() < 1e-12 && (rate(40_000) - 1e-4).abs() < 1e-12);
    }

    #[derive(Deserialize)]
    struct Golden {
        name: String,
        set: Vec<String>,
        rates: Vec<f64>,
    }

    /// PyTorch's schedulers, step by step: `tests/golden/schedules.py`.
    #[test]
    fn every_shape_is_the_one_of_pytorch() {
        let text = include_str!("../../../tests/golden/schedules.json");
        let cases: Vec<Golden> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let recipe = resolve(&Recipe::default(), &case.set).unwrap();
            for (step, expected) in (1..).zip(&case.rates) {
                let found = recipe.learning_rate(step);
                assert!((found - expected).abs() <= 1e-12, "{} step {step}: {found} {expected}", case.name);
            }
        }
    }

    #[test]
    fn a_schedule_says_itself() {
        let label = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|&text| text.to_owned()).collect();
            resolve(&Recipe::default(), &set).unwrap().schedule_label()
        };
        assert_eq!(
            label(&["schedule.final_fraction=0"]),
            "cosine from 1.000e-3 to 0.000e0 at step 28170, warm-up 750"
        );
        let constant = ["schedule.shape=constant", "schedule.warmup_steps=0"];
        assert_eq!(label(&constant), "constant at 1.000e-3, no warm-up");
        let stable = ["schedule.shape=warmup-stable-decay", "training.steps=1000"];
        assert!(label(&stable).contains("until step 900"), "{}", label(&stable));
    }
}
