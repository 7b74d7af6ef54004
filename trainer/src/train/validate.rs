//! Validation: token-weighted negative log-likelihood over a split, or a stated prefix of it.

use tch::Kind;
use xlstm_manifests::Dataset;
use xlstm_manifests::order::StepRow;

use crate::communicator::{Communicator, flags};
use crate::error::Result;
use crate::loader::{MicroBatch, Shape};
use crate::model::Model;
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
}

/// Measures the first `rows` rows (0: all), shared out over the ranks; `None` when a signal came in between.
///
/// # Errors
/// When a shard cannot be read, a rank is gone, or libtorch fails.
pub fn measure(
    model: &Model,
    dataset: &Dataset,
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
    let mut sums = [0.0, 0.0];
    for _ in 0..rounds {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(None);
        }
        let Some(rows) = batches.next() else { continue };
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, targets, resets) = batch.tensors(model.placement().device)?;
        let output = tch::no_grad(|| model.loss(&inputs, &targets, resets.as_ref()))?;
        sums[0] += f64::try_from(output.token_losses_N.f_sum(Kind::Double)?)?;
        sums[1] += batch.tokens as f64;
    }
    communicator.sum(&mut sums)?;
    let tokens = sums[1] as u64;
    Ok(Some(Measurement { loss: sums[0] / sums[1].max(1.0), tokens, rows }))
}
