//! Validation: token-weighted negative log-likelihood over a split, or a stated prefix of it.

use tch::{Kind, Tensor};
use xlstm_manifests::order::StepRow;
use xlstm_manifests::rows::Rows;

use crate::communicator::{Communicator, flags};
use crate::error::Result;
use crate::loader::{MicroBatch, Shape};
use crate::model::{IGNORE_TARGET, Model};
use crate::signals::Signals;

/// A measured split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Mean negative log-likelihood in nats a token.
    pub loss: f64,
    /// Tokens measured.
    pub tokens: u64,
    /// Rows measured.
    pub rows: u64,
    /// Entropy of the measured tokens' own frequencies in nats a token: no model that ignores the text before a token
    /// does better, not even one that knew these frequencies.
    pub unigram_entropy: f64,
}

/// Measures the first `rows` rows (0: all), shared out over the ranks; `None` when a signal came in between.
///
/// # Errors
/// When a shard cannot be read, a rank is gone, or libtorch fails.
pub fn measure(
    model: &Model,
    dataset: &dyn Rows,
    rows: u64,
    shape: Shape,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Option<Measurement>> {
    let rows = if rows == 0 { dataset.rows() } else { rows.min(dataset.rows()) };
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let bound = |rank: u64| rank * rows / world;
    let own: Vec<StepRow> = (bound(rank)..bound(rank + 1)).map(|row| StepRow { epoch: 0, row }).collect();
    let mut batches = own.chunks(shape.rows.max(1));
    let rounds = rows.div_ceil(world).div_ceil(shape.rows.max(1) as u64);
    // Negative log-likelihood, tokens, then how often each id is a target.
    let vocabulary = usize::try_from(model.config().vocabulary_size()).unwrap_or_default();
    let mut sums = vec![0.0; 2 + vocabulary];
    // Added up on the device, and waited for once.
    let total = Tensor::f_zeros([], (Kind::Double, model.placement().device))?;
    for _ in 0..rounds {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(None);
        }
        let Some(rows) = batches.next() else { continue };
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, targets, resets) = batch.tensors(model.placement().device)?;
        let count = i64::try_from(batch.tokens).ok();
        let output = tch::no_grad(|| model.loss_with_count(&inputs, &targets, resets.as_ref(), count))?;
        let _ = total.shallow_clone().f_add_(&output.token_losses_N.f_sum(Kind::Double)?)?;
        sums[1] += batch.tokens as f64;
        for id in batch.targets.iter().filter(|&&target| target != IGNORE_TARGET) {
            // Ids outside the vocabulary were refused with the dataset.
            if let Some(count) = usize::try_from(*id).ok().and_then(|id| sums.get_mut(2 + id)) {
                *count += 1.0;
            }
        }
    }
    sums[0] = f64::try_from(total)?;
    communicator.sum(&mut sums)?;
    let unigram_entropy = entropy(&sums[2..]);
    Ok(Some(Measurement { loss: sums[0] / sums[1].max(1.0), tokens: sums[1] as u64, rows, unigram_entropy }))
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
