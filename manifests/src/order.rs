//! Which rows make up which step: arithmetic, with no state, no shuffle buffer and no look at the data.
//!
//! A run reads an endless sequence of *samples* `0, 1, 2, …`. With `N` rows, sample `g` belongs to epoch
//! `e = g / N` and stands for row `permutation(root, seed, e)(g mod N)`. Step `s` (the first is 1) takes the
//! samples `(s-1)·R .. s·R`, where `R` is the number of rows in a step; a step may straddle two epochs.
//! Rank `r` of `W` takes the `r·R/W .. (r+1)·R/W` part of a step's list (rounded down), so the list itself depends
//! on nothing but the dataset's root, the seed and the step: not on ranks, workers, micro-batches or restarts.
//! Of a mixture of datasets, module [`mixture`] says which row a sample is.
//!
//! The permutation, version `feistel-1`, is a balanced Feistel network of 8 rounds with cycle walking:
//!
//! ```text
//! key    = SHA-256("xlstm-order feistel-1\0" ‖ root (32 bytes) ‖ seed (u64 LE) ‖ epoch (u64 LE)) = k0 k1 k2 k3 (u64 LE)
//! h      = max(1, ceil(ceil(log2 N) / 2)) bits; x = left·2^h + right
//! round i (0..8): (left, right) = (right, left XOR (mix(right + k[i mod 4] + i·0x9E3779B97F4A7C15) >> (64 - h)))
//! mix    = the finalizer of SplitMix64; sums are modulo 2^64
//! repeat the whole network on the result until it is below N (fewer than 4 times on average)
//! ```

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;
use crate::mixture::{self, MixedDataset, Samples};

/// The name of the permutation, as run manifests carry it.
pub const ALGORITHM: &str = "feistel-1";

const ROUNDS: u64 = 8;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A keyed permutation of `0..rows`.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    rows: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The permutation of `rows` rows for one epoch.
    #[must_use]
    pub fn new(root: &Sha256Digest, seed: u64, epoch: u64, rows: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"xlstm-order feistel-1\0");
        hasher.update(root.0);
        hasher.update(seed.to_le_bytes());
        hasher.update(epoch.to_le_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let mut keys = [0; 4];
        for (key, bytes) in keys.iter_mut().zip(digest.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            *key = u64::from_le_bytes(word);
        }
        let bits = u64::BITS - rows.saturating_sub(1).leading_zeros();
        Self { rows, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `index` goes. `index` must be below the number of rows.
    #[must_use]
    pub fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.rows);
        let mut value = index;
        loop {
            value = self.network(value);
            if value < self.rows {
                return value;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let key = self.keys[(round % 4) as usize].wrapping_add(round.wrapping_mul(GOLDEN));
            let mixed = mix(right.wrapping_add(key)) >> (64 - self.half_bits);
            (left, right) = (right, left ^ mixed);
        }
        (left << self.half_bits) | right
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Everything that decides a run's batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`ALGORITHM`].
    pub algorithm: String,
    /// The dataset's root, or the mixture's.
    pub root: Sha256Digest,
    /// Seed of the permutation.
    pub seed: u64,
    /// Rows of the dataset, or of all datasets.
    pub rows: u64,
    /// Rows in a step, over all ranks.
    pub rows_per_step: u64,
    /// Tokens in a row.
    pub row_length: u64,
    /// Valid tokens of the dataset: with `rows` and `row_length`, the length of its last row. Of a mixture their sum.
    pub tokens: u64,
    /// The datasets of a mixture; none of one dataset.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub datasets: Vec<MixedDataset>,
}

/// One row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepRow {
    /// Which pass over the row's dataset this is, from 0.
    pub epoch: u64,
    /// The row of the dataset; of a mixture, whose rows are numbered through, see [`Order::place`].
    pub row: u64,
}

impl Order {
    /// The order of a run over a dataset.
    #[must_use]
    pub fn new(manifest: &crate::Manifest, seed: u64, rows_per_step: u64) -> Self {
        let row_length = u64::from(manifest.packing.row_length);
        Self::of(&[MixedDataset::new(manifest, 1)], row_length, seed, rows_per_step)
    }

    /// The order of a run over a mixture of these datasets, whose weights are in lowest terms.
    #[must_use]
    pub fn of(datasets: &[MixedDataset], row_length: u64, seed: u64, rows_per_step: u64) -> Self {
        Self {
            algorithm: ALGORITHM.into(),
            root: mixture::root(datasets),
            seed,
            rows: datasets.iter().map(|dataset| dataset.rows).sum(),
            rows_per_step,
            row_length,
            tokens: datasets.iter().map(|dataset| dataset.tokens).sum(),
            datasets: if datasets.len() > 1 { datasets.to_vec() } else { Vec::new() },
        }
    }

    /// The datasets: those of a mixture, or the one with weight 1.
    #[must_use]
    pub fn datasets(&self) -> Vec<MixedDataset> {
        if !self.datasets.is_empty() {
            return self.datasets.clone();
        }
        vec![MixedDataset { root: self.root, weight: 1, rows: self.rows, tokens: self.tokens }]
    }

    /// Whether it is over several datasets.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        !self.datasets.is_empty()
    }

    /// Samples in an epoch of the mixture, in which all shares are exact; 1 of one dataset.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.datasets().iter().map(|dataset| dataset.weight).sum()
    }

    /// The dataset that a row is of, and the row's number there.
    #[must_use]
    pub fn place(&self, row: u64) -> (usize, u64) {
        let mut row = row;
        let before_last = self.datasets.len().saturating_sub(1);
        for (number, dataset) in self.datasets[..before_last].iter().enumerate() {
            if row < dataset.rows {
                return (number, row);
            }
            row -= dataset.rows;
        }
        (before_last, row)
    }

    /// How many rows of each dataset went into the first `steps` steps.
    #[must_use]
    pub fn rows_by_dataset(&self, steps: u64) -> Vec<u64> {
        let samples = steps.saturating_mul(self.rows_per_step);
        Samples::new(self).map_or_else(Vec::new, |mut all| all.count(samples))
    }

    /// The rows of `step` (from 1), over all ranks, in order. Empty for step 0 and for an empty dataset.
    #[must_use]
    pub fn rows_of_step(&self, step: u64) -> Vec<StepRow> {
        let Some(before) = step.checked_sub(1) else { return Vec::new() };
        // Past the last sample that can be numbered there is no step.
        let Some(first) = before.checked_mul(self.rows_per_step) else { return Vec::new() };
        let Some(end) = first.checked_add(self.rows_per_step) else { return Vec::new() };
        let Some(mut samples) = Samples::new(self) else { return Vec::new() };
        (first..end).map(|sample| samples.row(sample)).collect()
    }

    /// The part of a step's list that `rank` of `world` computes.
    #[must_use]
    pub fn rank_range(&self, rank: u64, world: u64) -> std::ops::Range<usize> {
        let world = world.max(1);
        let bound = |rank: u64| (rank.min(world) * self.rows_per_step / world) as usize;
        bound(rank)..bound(rank + 1)
    }

    /// The valid tokens of a row.
    #[must_use]
    pub fn tokens_in_row(&self, row: u64) -> u64 {
        let (dataset, row) = self.place(row);
        let tokens = self.datasets.get(dataset).map_or(self.tokens, |dataset| dataset.tokens);
        tokens.saturating_sub(row * self.row_length).min(self.row_length)
    }

    /// The targets of a step over all ranks: the divisor of its mean loss.
    #[must_use]
    pub fn tokens_of_step(&self, step: u64) -> u64 {
        self.rows_of_step(step).iter().map(|row| self.tokens_in_row(row.row)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(rows: u64, rows_per_step: u64) -> Order {
        let (row_length, tokens) = (8, rows * 8 - 3);
        let root = Sha256Digest::of(b"a dataset");
        Order::of(&[MixedDataset { root, weight: 1, rows, tokens }], row_length, 7, rows_per_step)
    }

    #[test]
    fn every_size_is_permuted() {
        let root = Sha256Digest::of(b"x");
        for rows in (1..200).chain([1023, 1024, 1025, 4097]) {
            let permutation = Permutation::new(&root, 1, 0, rows);
            let mut seen = vec![false; rows as usize];
            for index in 0..rows {
                let target = permutation.apply(index) as usize;
                assert!(!std::mem::replace(&mut seen[target], true), "{rows} rows: {target} twice");
            }
        }
    }

    #[test]
    fn the_permutation_is_pinned() {
        // Runs that were made stay traceable: these numbers must never change.
        let permutation = Permutation::new(&Sha256Digest([7; 32]), 42, 3, 1000);
        let found: Vec<u64> = (0..6).map(|index| permutation.apply(index)).collect();
        assert_eq!(found, PINNED);
    }
    // Computed by an independent implementation of the description above.
    const PINNED: [u64; 6] = [579, 343, 229, 398, 599, 919];

    #[test]
    fn each_epoch_takes_each_row_once_and_in_another_order() {
        let order = order(10, 4);
        let samples: Vec<StepRow> = (1..=5).flat_map(|step| order.rows_of_step(step)).collect();
        let epoch = |number: u64| -> Vec<u64> {
            samples.iter().filter(|row| row.epoch == number).map(|row| row.row).collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for rows in [first, second] {
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            assert_ne!(sorted, rows, "shuffled");
        }
    }

    #[test]
    fn ranks_share_a_step_without_gap_or_overlap() {
        for (rows_per_step, world) in [(8, 1), (8, 2), (8, 3), (7, 4), (3, 3)] {
            let order = order(100, rows_per_step);
            let parts: Vec<usize> = (0..world).flat_map(|rank| order.rank_range(rank, world)).collect();
            assert_eq!(parts, (0..rows_per_step as usize).collect::<Vec<_>>(), "{world} ranks");
        }
    }

    #[test]
    fn only_the_last_row_is_short() {
        let order = order(10, 10);
        assert_eq!((order.tokens_in_row(0), order.tokens_in_row(8), order.tokens_in_row(9)), (8, 8, 5));
        assert_eq!(order.tokens_of_step(1), order.tokens);
        assert!(order.rows_of_step(0).is_empty());
    }
}
