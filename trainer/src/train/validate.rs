//! Validation: token-weighted negative log-likelihood over a split, or a stated prefix of it; where targets are stored
//! also how many of them come out first; where they are numbers the mean squared error.

use tch::{Kind, Tensor};
use xlstm_manifests::manifest::Targets;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::rows::Rows;

use crate::communicator::{Communicator, flags};
use crate::error::{Result, TrainError};
use crate::loader::{BatchShape, MicroBatch};
use crate::metrics::score_targets;
use crate::model::{IGNORE_TARGET, Model};
use crate::signals::Signals;

/// A measured split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Mean negative log-likelihood in nats a token; of numbers the mean squared error.
    pub loss: f64,
    /// Targets measured.
    pub tokens: u64,
    /// How many of them came out first; counted where targets are stored.
    pub correct: Option<u64>,
    /// Rows measured.
    pub rows: u64,
    /// What a model that ignores its inputs cannot do better than, in the loss's unit.
    pub floor: Floor,
}

/// The loss of the best constant answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Floor {
    /// Entropy of the measured tokens' own frequencies, in nats a token.
    UnigramEntropy(f64),
    /// Variance of the measured numbers: the squared error of their mean.
    TargetVariance(f64),
}

impl Measurement {
    /// Share of the targets that came out first, where that was counted.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.tokens as f64)
    }
}

/// Measures the first `rows` rows (0: all), shared out over the ranks; `None` when a signal came in between.
///
/// # Errors
/// When there is nothing to measure, a shard cannot be read, a rank is gone, or libtorch fails.
pub fn measure(
    model: &Model,
    dataset: &dyn Rows,
    rows: u64,
    shape: BatchShape,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Option<Measurement>> {
    let rows = if rows == 0 { dataset.rows() } else { rows.min(dataset.rows()) };
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let bound = |rank: u64| rank * rows / world;
    let own: Vec<StepRow> = (bound(rank)..bound(rank + 1)).map(|row| StepRow { epoch: 0, row }).collect();
    let mut batches = own.chunks(shape.rows.max(1));
    let rounds = rows.div_ceil(world).div_ceil(shape.rows.max(1) as u64);
    // Loss, targets, right ones, sum and sum of squares of targets that are numbers, then how often each id is a target.
    const COUNTS: usize = 5;
    let of_numbers = dataset.manifest().packing.input_width.is_some();
    let targets = dataset.manifest().packing.targets;
    let vocabulary = usize::try_from(model.config().vocabulary_size()).unwrap_or_default();
    let mut sums = vec![0.0; COUNTS + vocabulary];
    // Added up on the device, and waited for once.
    let total = Tensor::f_zeros([], (Kind::Double, model.placement().device))?;
    for _ in 0..rounds {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(None);
        }
        let Some(rows) = batches.next() else { continue };
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, expected, resets) = batch.tensors(model.placement().device)?;
        match targets {
            Targets::NextToken => {
                let count = batch.target_count();
                let output =
                    tch::no_grad(|| model.loss_with_count(&inputs, &expected, resets.as_ref(), count))?;
                let _ = total.shallow_clone().f_add_(&output.token_losses_N.f_sum(Kind::Double)?)?;
            }
            Targets::Stored if of_numbers => {
                let errors = model.sequence_losses(&inputs, &expected, resets.as_ref())?;
                sums[0] += errors.iter().sum::<f64>();
                let targets = batch.numbers.targets.iter().filter(|target| !target.is_nan());
                for target in targets.copied().map(f64::from) {
                    sums[3] += target;
                    sums[4] += target * target;
                }
            }
            Targets::Stored => {
                let scores = score_targets(model, &inputs, &expected, resets.as_ref())?;
                sums[0] += scores.losses.iter().sum::<f64>();
                sums[2] += scores.correct_count() as f64;
            }
        }
        sums[1] += batch.tokens as f64;
        for id in batch.targets.iter().filter(|&&target| target != IGNORE_TARGET) {
            // Ids outside the vocabulary were refused with the dataset.
            if let Some(count) = usize::try_from(*id).ok().and_then(|id| sums.get_mut(COUNTS + id)) {
                *count += 1.0;
            }
        }
    }
    sums[0] += f64::try_from(total)?;
    communicator.sum(&mut sums)?;
    if sums[1] == 0.0 {
        // No figure stands on nothing.
        let hint = "measure a split with text or examples, or leave --validation out";
        return Err(TrainError::file(dataset.folder(), "at least one target to measure", "none", hint));
    }
    Ok(Some(Measurement {
        loss: sums[0] / sums[1],
        tokens: sums[1] as u64,
        correct: match targets {
            Targets::Stored if !of_numbers => Some(sums[2] as u64),
            Targets::NextToken | Targets::Stored => None,
        },
        rows,
        floor: if of_numbers {
            // Below zero only by rounding.
            Floor::TargetVariance((sums[4] / sums[1] - (sums[3] / sums[1]).powi(2)).max(0.0))
        } else {
            Floor::UnigramEntropy(entropy(&sums[COUNTS..]))
        },
    }))
}

/// Entropy in nats of the distribution that these counts describe.
fn entropy(counts: &[f64]) -> f64 {
    let total: f64 = counts.iter().sum();
    let share = |count: f64| if count > 0.0 { -(count / total) * (count / total).ln() } else { 0.0 };
    counts.iter().map(|&count| share(count)).sum()
}

#[cfg(test)]
mod tests {
    use super::entropy;

    #[test]
    fn entropy_of_known_distributions() {
        assert!((entropy(&[5.0, 0.0, 5.0]) - 2.0_f64.ln()).abs() < 1e-12);
        assert!(entropy(&[7.0]).abs() < 1e-12);
        assert!(entropy(&[0.0, 0.0]).abs() < 1e-12);
    }
}
