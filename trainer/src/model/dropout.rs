//! Dropout whose masks are arithmetic: which numbers are dropped follows from the seed, the step, the row, the place in the
//! network and the number's own place. No generator has a state, so a run that goes on, another number of ranks, other
//! micro-batches and a block that is computed again in the backward pass drop the same numbers.
//!
//! ```text
//! key(sequence)  = mix of seed, step, dataset, epoch, row, and which piece of the row the sequence is
//! bits(t, c)     = mix(mix(key ^ site · G) + (t · C + c) · G)          mix: the finaliser of SplitMix64, G the golden ratio
//! kept           where the upper 32 of the bits are at least ⌈p · 2³²⌉; kept numbers are divided by 1 - p
//! ```
//! A CPU computes this in one pass; elsewhere libtorch's integer operations do, to the same bits.

use std::sync::Arc;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use xlstm_manifests::order::StepRow;
use xlstm_manifests::recipe::Training;

use crate::error::Result;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const FIRST: u64 = 0xBF58_476D_1CE4_E5B9;
const SECOND: u64 = 0x94D0_49BB_1331_11EB;

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
    keys: Arc<[u64]>,
}

/// What a block drops.
#[derive(Debug, Clone)]
pub(super) struct BlockDropout {
    probability: f64,
    keys: Arc<[u64]>,
    /// The block's first site.
    site: u64,
}

impl Dropout {
    /// The dropout of a batch of step `step` whose `sequences` are these rows, cut into equal pieces; `None` where the
    /// recipe has none.
    #[must_use]
    pub fn of_step(training: &Training, step: u64, rows: &[StepRow], sequences: usize) -> Option<Self> {
        if !training.has_dropout() {
            return None;
        }
        let (seed, pieces) = (training.dropout_seed(), (sequences / rows.len().max(1)) as u64);
        let key = |row: &StepRow, piece: u64| {
            [seed, step, row.epoch, row.row, piece].into_iter().fold(0, |key, part| mix(key ^ part))
        };
        let keys = rows.iter().flat_map(|row| (0..pieces).map(move |piece| key(row, piece))).collect();
        Some(Self { embedding: training.embedding_dropout, residual: training.dropout, keys })
    }

    /// The embedded tokens, `(B, T, C)`, with some numbers dropped.
    pub(super) fn of_embedding(&self, x_BTC: Tensor) -> Result<Tensor> {
        drop_numbers(x_BTC, &self.keys, EMBEDDING, self.embedding)
    }

    /// What block `index` drops.
    pub(super) fn of_block(&self, index: usize) -> Option<BlockDropout> {
        let site = 1 + index as u64 * BRANCHES;
        let keys = Arc::clone(&self.keys);
        (self.residual > 0.0).then_some(BlockDropout { probability: self.residual, keys, site })
    }
}

impl BlockDropout {
    /// The block that goes on behind this one's first branch, for architectures whose blocks are made of layers.
    pub(super) fn of_branch(&self, delta_BTC: Tensor, branch: u64) -> Result<Tensor> {
        drop_numbers(delta_BTC, &self.keys, self.site + branch, self.probability)
    }
}

fn drop_numbers(x_BTC: Tensor, keys: &[u64], site: u64, probability: f64) -> Result<Tensor> {
    if probability <= 0.0 {
        return Ok(x_BTC);
    }
    let size = x_BTC.size();
    let numbers = size.iter().skip(1).product::<i64>();
    let mask = if x_BTC.device() == Device::Cpu {
        mask_on_cpu(keys, site, numbers, probability)?
    } else {
        mask_by_operations(keys, site, numbers, probability, x_BTC.device())?
    };
    Ok(x_BTC.f_mul(&mask.f_to_kind(x_BTC.kind())?.f_view(size.as_slice())?)?)
}

/// Bits below this are dropped.
fn threshold(probability: f64) -> u64 {
    (probability * f64::from(2.0_f32.powi(32))).ceil() as u64
}

/// `(B, numbers)`, float32: zero, or what kept numbers are multiplied by.
fn mask_on_cpu(keys: &[u64], site: u64, numbers: i64, probability: f64) -> Result<Tensor> {
    const PIECE: usize = 1 << 14;
    let (threshold, scale) = (threshold(probability), (1.0 / (1.0 - probability)) as f32);
    let count = usize::try_from(numbers).unwrap_or(0);
    let mut mask = vec![0.0_f32; keys.len() * count];
    for (key, own) in keys.iter().zip(mask.chunks_mut(count.max(1))) {
        let start = mix(key ^ site.wrapping_mul(GOLDEN));
        own.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
            for (index, value) in (piece * PIECE..).zip(values) {
                let bits = mix(start.wrapping_add((index as u64).wrapping_mul(GOLDEN)));
                *value = if bits >> 32 >= threshold { scale } else { 0.0 };
            }
        });
    }
    Ok(Tensor::f_from_slice(&mask)?)
}

/// As [`mask_on_cpu`], by operations on 64-bit integers, which wrap.
fn mask_by_operations(
    keys: &[u64],
    site: u64,
    numbers: i64,
    probability: f64,
    device: Device,
) -> Result<Tensor> {
    let starts: Vec<i64> =
        keys.iter().map(|key| mix(key ^ site.wrapping_mul(GOLDEN)).cast_signed()).collect();
    let start_B1 = Tensor::f_from_slice(&starts)?.f_to_device(device)?.f_unsqueeze(1)?;
    let index_N = Tensor::f_arange(numbers, (Kind::Int64, device))?;
    let bits_BN = start_B1.f_add(&index_N.f_mul_scalar(GOLDEN.cast_signed())?)?;
    // An arithmetic shift, and the bits that it fills in cleared, is a logical one.
    let shifted = |bits: &Tensor, places: i64| -> Result<Tensor> {
        let kept = (u64::MAX >> places).cast_signed();
        Ok(bits.f_bitwise_right_shift_tensor_scalar(places)?.f_bitwise_and(kept)?)
    };
    let mixed = |bits: &Tensor, places: i64, factor: u64| -> Result<Tensor> {
        Ok(bits.f_bitwise_xor_tensor(&shifted(bits, places)?)?.f_mul_scalar(factor.cast_signed())?)
    };
    let bits_BN = mixed(&mixed(&bits_BN, 30, FIRST)?, 27, SECOND)?;
    let bits_BN = bits_BN.f_bitwise_xor_tensor(&shifted(&bits_BN, 31)?)?;
    let kept_BN = shifted(&bits_BN, 32)?.f_ge(threshold(probability).cast_signed())?;
    Ok(kept_BN.f_to_kind(Kind::Float)?.f_mul_scalar(1.0 / (1.0 - probability))?)
}

/// The finaliser of SplitMix64, behind its increment.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(FIRST);
    let value = (value ^ (value >> 27)).wrapping_mul(SECOND);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(residual: f64) -> Training {
        Training { dropout: residual, dropout_seed: 3, ..Training::default() }
    }

    fn rows(rows: &[u64]) -> Vec<StepRow> {
        rows.iter().map(|&row| StepRow { epoch: 0, row }).collect()
    }

    fn mask(keys: &Dropout, branch: u64) -> Vec<f32> {
        let sequences = i64::try_from(keys.keys.len()).unwrap();
        let ones = Tensor::ones([sequences, 50, 40], (Kind::Float, Device::Cpu));
        let dropped = keys.of_block(2).unwrap().of_branch(ones, branch).unwrap();
        Vec::try_from(dropped.view(-1)).unwrap()
    }

    #[test]
    fn both_ways_to_compute_a_mask_agree() {
        for (probability, site) in [(0.1, 0), (0.5, 9), (0.999, 1 << 40)] {
            let keys = [0, 1, u64::MAX, 0x8000_0000_0000_0000];
            let once = mask_on_cpu(&keys, site, 70_000, probability).unwrap();
            let other = mask_by_operations(&keys, site, 70_000, probability, Device::Cpu).unwrap();
            assert!(once.view([4, -1]).equal(&other), "{probability}");
        }
    }

    #[test]
    fn the_share_is_the_recipe_s_and_the_mean_stays() {
        let keys = Dropout::of_step(&training(0.3), 5, &rows(&[1, 2, 3, 4, 5, 6, 7, 8]), 8).unwrap();
        let values = mask(&keys, 0);
        let dropped = values.iter().filter(|value| **value == 0.0).count() as f64 / values.len() as f64;
        // 16000 numbers: four standard deviations.
        assert!((dropped - 0.3).abs() < 4.0 * (0.21_f64 / 16_000.0).sqrt(), "{dropped}");
        assert!(values.iter().all(|value| *value == 0.0 || (*value - 1.0 / 0.7).abs() < 1e-6));
    }

    #[test]
    fn masks_follow_seed_step_row_piece_and_place_and_nothing_else() {
        let of = |training: &Training, step, own: &[u64], sequences| {
            Dropout::of_step(training, step, &rows(own), sequences).unwrap()
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
        assert!(Dropout::of_step(&Training::default(), 5, &rows(&[9]), 1).is_none(), "off by default");
    }
}
