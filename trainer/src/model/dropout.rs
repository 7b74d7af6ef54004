//! What a training step drops: a key for each sequence, and the places of the network.
//!
//! ```text
//! key(sequence)  = mix of seed, step, epoch, row, and which piece of the row the sequence is
//! ```
//! Masks are arithmetic on keys, places and the numbers' own places ([`xlstm_kernels::dropout`]). No generator has a state, so a
//! run that goes on, another number of ranks, other micro-batches and a block that is computed again in the backward pass drop
//! the same numbers.

use tch::{Device, Tensor};
use xlstm_kernels::dropout::{DropoutKeys, dropout, mix};
use xlstm_manifests::order::StepRow;
use xlstm_manifests::recipe::Training;

use crate::error::Result;

/// The site of the embedded tokens.
const EMBEDDING: u64 = 0;
/// Sites of a block: each has at most so many branches.
const BRANCHES: u64 = 8;

/// What a training step drops.
#[derive(Debug, Clone)]
pub struct Dropout {
    embedding: f64,
    residual: f64,
    /// One for each sequence of the batch.
    keys: DropoutKeys,
}

/// What a block drops.
#[derive(Debug, Clone)]
pub(super) struct BlockDropout {
    probability: f64,
    keys: DropoutKeys,
    /// The block's first site.
    site: u64,
}

impl Dropout {
    /// The keys of a batch of step `step` whose `sequences` are these rows, cut into equal pieces.
    #[must_use]
    pub fn keys_of_step(training: &Training, step: u64, rows: &[StepRow], sequences: usize) -> Vec<u64> {
        let (seed, pieces) = (training.dropout_seed(), (sequences / rows.len().max(1)) as u64);
        let key = |row: &StepRow, piece: u64| {
            [seed, step, row.epoch, row.row, piece].into_iter().fold(0, |key, part| mix(key ^ part))
        };
        rows.iter().flat_map(|row| (0..pieces).map(move |piece| key(row, piece))).collect()
    }

    /// The dropout of a batch with these keys; `None` where the recipe has none.
    #[must_use]
    pub fn with_keys(training: &Training, keys: DropoutKeys) -> Option<Self> {
        let (embedding, residual) = (training.embedding_dropout, training.dropout);
        training.has_dropout().then_some(Self { embedding, residual, keys })
    }

    /// Both of the above, on the device of the batch.
    ///
    /// # Errors
    /// When the device has no memory.
    pub fn of_step(
        training: &Training,
        step: u64,
        rows: &[StepRow],
        sequences: usize,
        device: Device,
    ) -> Result<Option<Self>> {
        if !training.has_dropout() {
            return Ok(None);
        }
        let keys = Self::keys_of_step(training, step, rows, sequences);
        Ok(Self::with_keys(training, DropoutKeys::new(&keys, device)?))
    }

    /// The embedded tokens, `(B, T, C)`, with some numbers dropped.
    pub(super) fn of_embedding(&self, x_BTC: &Tensor) -> Result<Tensor> {
        Ok(dropout(x_BTC, &self.keys, EMBEDDING, self.embedding)?)
    }

    /// What block `index` drops.
    pub(super) fn of_block(&self, index: usize) -> Option<BlockDropout> {
        let site = 1 + index as u64 * BRANCHES;
        let keys = self.keys.clone();
        (self.residual > 0.0).then_some(BlockDropout { probability: self.residual, keys, site })
    }
}

impl BlockDropout {
    /// A branch's output, `(B, T, C)`, with some numbers dropped; branches are counted from 0, eight at most.
    pub(super) fn of_branch(&self, delta_BTC: &Tensor, branch: u64) -> Result<Tensor> {
        Ok(dropout(delta_BTC, &self.keys, self.site + branch, self.probability)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn training(residual: f64) -> Training {
        Training { dropout: residual, dropout_seed: 3, ..Training::default() }
    }

    fn rows(rows: &[u64]) -> Vec<StepRow> {
        rows.iter().map(|&row| StepRow { epoch: 0, row }).collect()
    }

    fn mask(keys: &Dropout, branch: u64) -> Vec<f32> {
        let DropoutKeys::Host(own) = &keys.keys else { panic!("keys of a CPU") };
        let ones = Tensor::ones([own.len() as i64, 50, 40], (Kind::Float, Device::Cpu));
        let dropped = keys.of_block(2).unwrap().of_branch(&ones, branch).unwrap();
        Vec::try_from(dropped.view(-1)).unwrap()
    }

    #[test]
    fn the_share_is_the_recipe_s_and_the_mean_stays() {
        let rows = rows(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let keys = Dropout::of_step(&training(0.3), 5, &rows, 8, Device::Cpu).unwrap().unwrap();
        let values = mask(&keys, 0);
        let dropped = values.iter().filter(|value| **value == 0.0).count() as f64 / values.len() as f64;
        // 16000 numbers: four standard deviations.
        assert!((dropped - 0.3).abs() < 4.0 * (0.21_f64 / 16_000.0).sqrt(), "{dropped}");
        assert!(values.iter().all(|value| *value == 0.0 || (*value - 1.0 / 0.7).abs() < 1e-6));
    }

    #[test]
    fn masks_follow_seed_step_row_piece_and_place_and_nothing_else() {
        let of = |training: &Training, step, own: &[u64], sequences| {
            Dropout::of_step(training, step, &rows(own), sequences, Device::Cpu).unwrap().unwrap()
        };
        let alone = mask(&of(&training(0.5), 5, &[9], 1), 0);
        let together = mask(&of(&training(0.5), 5, &[4, 9], 2), 0);
        assert_eq!(alone, together[alone.len()..], "whatever else is in the batch");
        let other_seed = Training { dropout_seed: 4, ..training(0.5) };
        for other in [
            mask(&of(&training(0.5), 6, &[9], 1), 0),
            mask(&of(&training(0.5), 5, &[8], 1), 0),
            mask(&of(&training(0.5), 5, &[9], 1), 1),
            mask(&of(&other_seed, 5, &[9], 1), 0),
            mask(&of(&training(0.5), 5, &[9], 2), 0)[alone.len()..].to_vec(),
        ] {
            let same = other.iter().zip(&alone).filter(|(other, own)| other == own).count();
            assert!((800..1200).contains(&same), "half of 2000 by chance: {same}");
        }
        let off = Dropout::of_step(&Training::default(), 5, &rows(&[9]), 1, Device::Cpu).unwrap();
        assert!(off.is_none(), "off by default");
    }
}
