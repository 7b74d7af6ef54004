//! Several datasets that a run reads as one.
//!
//! A mixture has `k` datasets with whole weights `w` in lowest terms (70 to 30 is 7 to 3). Its *epoch* is the shortest
//! stretch of samples in which all shares are exact: `W = w0 + w1 + …` samples, `wi` of them of dataset `i`. Its rows are
//! numbered through, dataset after dataset. With `N_i` rows in dataset `i`, sample `g` of a run stands for
//!
//! ```text
//! epoch = g / W     slot = permutation(root of the mixture, seed, epoch, W)(g mod W)
//! i: the dataset with w0 + … + w(i-1) <= slot < w0 + … + wi
//! n = epoch·wi + slot - (w0 + … + w(i-1))          this is the n-th sample of dataset i
//! row N0 + … + N(i-1) + permutation(root_i, seed, n / N_i, N_i)(n mod N_i), in pass n / N_i over dataset i
//! ```
//! so a dataset is gone through as a run over it alone would, each row once a pass, and no dataset's order depends on
//! another's size. One dataset has weight 1: then `W = 1`, `n = g`, and the mixture is the dataset.
//!
//! The root of a mixture, from which its identity and its order follow:
//!
//! ```text
//! SHA-256("xlstm-mixture 1\0" ‖ for each dataset: root (32 bytes) ‖ weight (u64 LE))      of one dataset: its own root
//! ```

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Manifest;
use crate::digest::Sha256Digest;
use crate::order::{Order, Permutation, StepRow};

/// The longest epoch of a mixture, in rows: in a longer one, shares would be exact in no stretch that matters.
pub const MAX_EPOCH: u64 = 100_000;

/// A dataset of a mixture, as the order of its rows needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedDataset {
    /// Its root.
    pub root: Sha256Digest,
    /// Its rows in an epoch of the mixture.
    pub weight: u64,
    /// Its rows.
    pub rows: u64,
    /// Its valid tokens.
    pub tokens: u64,
}

impl MixedDataset {
    /// The dataset that a manifest describes.
    #[must_use]
    pub fn new(manifest: &Manifest, weight: u64) -> Self {
        Self { root: manifest.root, weight, rows: manifest.totals.rows, tokens: manifest.totals.tokens }
    }
}

/// The root of a mixture; of one dataset its own.
#[must_use]
pub fn root(datasets: &[MixedDataset]) -> Sha256Digest {
    if let [only] = datasets {
        return only.root;
    }
    let mut hasher = Sha256::new();
    hasher.update(b"xlstm-mixture 1\0");
    for dataset in datasets {
        hasher.update(dataset.root.0);
        hasher.update(dataset.weight.to_le_bytes());
    }
    Sha256Digest(hasher.finalize().into())
}

/// A weight as a person writes it: a decimal number above zero, kept exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// The number's digits, without its point.
    digits: u128,
    /// How many of them stand behind the point.
    decimals: u32,
}

/// Digits before and behind the point that a weight may have.
const MAX_DIGITS: usize = 12;

impl Weight {
    /// Of a dataset for which none is named.
    pub const ONE: Self = Self { digits: 1, decimals: 0 };
}

impl FromStr for Weight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected a number above zero such as 70 or 0.7, found `{text}`");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let decimals = decimals.trim_end_matches('0');
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if text.starts_with('.') || !is_number(whole) || !is_number(decimals) {
            return Err(refused());
        }
        if whole.len() > MAX_DIGITS || decimals.len() > MAX_DIGITS {
            return Err(format!(
                "expected at most {MAX_DIGITS} digits before and behind the point, found `{text}`"
            ));
        }
        let digits = format!("{whole}{decimals}").parse::<u128>().map_err(|_| refused())?;
        let decimals = u32::try_from(decimals.len()).map_err(|_| refused())?;
        if digits == 0 { Err(refused()) } else { Ok(Self { digits, decimals }) }
    }
}

/// Weights as whole numbers in lowest terms: the rows of each dataset in an epoch of the mixture.
///
/// # Errors
/// When an epoch would have more than [`MAX_EPOCH`] rows.
pub fn lowest_terms(weights: &[Weight]) -> Result<Vec<u64>, String> {
    let decimals = weights.iter().map(|weight| weight.decimals).max().unwrap_or(0);
    let scaled = weights.iter().map(|weight| weight.digits * 10u128.pow(decimals - weight.decimals));
    let scaled: Vec<u128> = scaled.collect();
    let divisor = scaled.iter().copied().fold(0, greatest_common_divisor).max(1);
    let terms: Vec<u128> = scaled.iter().map(|weight| weight / divisor).collect();
    let sum: u128 = terms.iter().sum();
    if sum > u128::from(MAX_EPOCH) {
        return Err(format!(
            "expected weights that are exact in an epoch of at most {MAX_EPOCH} rows, found an epoch of {sum} rows; round \
             the weights, for example to three decimals of their sum"
        ));
    }
    // Each is at most the sum.
    Ok(terms.into_iter().map(|weight| u64::try_from(weight).unwrap_or(u64::MAX)).collect())
}

fn greatest_common_divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The samples of a run, one after the other or in any order.
pub(crate) struct Samples<'a> {
    order: &'a Order,
    datasets: Vec<Dataset>,
    /// Samples of an epoch of the mixture.
    slots: u64,
    epoch: Known,
}

struct Dataset {
    mixed: MixedDataset,
    first_slot: u64,
    first_row: u64,
    pass: Known,
}

/// The permutation that was asked for last.
#[derive(Default)]
struct Known(Option<(u64, Permutation)>);

impl Known {
    fn get(&mut self, root: &Sha256Digest, seed: u64, epoch: u64, rows: u64) -> Permutation {
        match self.0 {
            Some((known, permutation)) if known == epoch => permutation,
            _ => {
                let permutation = Permutation::new(root, seed, epoch, rows);
                self.0 = Some((epoch, permutation));
                permutation
            }
        }
    }
}

impl<'a> Samples<'a> {
    /// `None` where a dataset has no row to give.
    pub(crate) fn new(order: &'a Order) -> Option<Self> {
        let (mut slots, mut rows) = (0, 0);
        let mut datasets = Vec::new();
        for mixed in order.datasets() {
            if mixed.rows == 0 || mixed.weight == 0 {
                return None;
            }
            datasets.push(Dataset { mixed, first_slot: slots, first_row: rows, pass: Known::default() });
            slots += mixed.weight;
            rows += mixed.rows;
        }
        Some(Self { order, datasets, slots, epoch: Known::default() })
    }

    /// The dataset of a sample, and which of the dataset's samples it is.
    fn place(&mut self, sample: u64) -> (usize, u64) {
        let (epoch, place) = (sample / self.slots, sample % self.slots);
        let slot = match self.slots {
            // A permutation of one; it costs a digest.
            1 => 0,
            slots => self.epoch.get(&self.order.root, self.order.seed, epoch, slots).apply(place),
        };
        let dataset = self.datasets.partition_point(|dataset| dataset.first_slot <= slot) - 1;
        let Dataset { mixed, first_slot, .. } = &self.datasets[dataset];
        (dataset, epoch * mixed.weight + slot - first_slot)
    }

    /// The row that a sample stands for.
    pub(crate) fn row(&mut self, sample: u64) -> StepRow {
        let (dataset, number) = self.place(sample);
        let seed = self.order.seed;
        let Dataset { mixed, first_row, pass, .. } = &mut self.datasets[dataset];
        let epoch = number / mixed.rows;
        let permutation = pass.get(&mixed.root, seed, epoch, mixed.rows);
        StepRow { epoch, row: *first_row + permutation.apply(number % mixed.rows) }
    }

    /// How many of the first `samples` samples are of each dataset.
    pub(crate) fn count(&mut self, samples: u64) -> Vec<u64> {
        let whole = samples / self.slots;
        let mut counts: Vec<u64> = self.datasets.iter().map(|dataset| whole * dataset.mixed.weight).collect();
        for sample in whole * self.slots..samples {
            counts[self.place(sample).0] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::ALGORITHM;

    fn weights(texts: &[&str]) -> Result<Vec<u64>, String> {
        lowest_terms(&texts.iter().map(|text| text.parse()).collect::<Result<Vec<Weight>, _>>()?)
    }

    fn dataset(name: &str, weight: u64, rows: u64) -> MixedDataset {
        MixedDataset { root: Sha256Digest::of(name.as_bytes()), weight, rows, tokens: rows * 8 - 3 }
    }

    fn mixed(datasets: &[MixedDataset], rows_per_step: u64) -> Order {
        Order::of(datasets, 8, 7, rows_per_step)
    }

    #[test]
    fn weights_are_kept_exactly_and_in_lowest_terms() {
        for texts in [["70", "30"], ["0.7", "0.3"], ["7", "3.000"], ["2.1", "0.90"]] {
            assert_eq!(weights(&texts).unwrap(), [7, 3], "{texts:?}");
        }
        assert_eq!(weights(&["5"]).unwrap(), [1]);
        assert_eq!(weights(&["0.333", "0.667"]).unwrap(), [333, 667]);
        assert_eq!(lowest_terms(&[Weight::ONE; 3]).unwrap(), [1, 1, 1]);
        for text in
            ["0", "0.0", "-1", "", ".", ".5", "1e3", "nan", "inf", "1.2.3", "７", "1.", "12345678901234"]
        {
            let found = text.parse::<Weight>();
            assert_eq!(found.is_ok(), text == "1.", "{text}: {found:?}");
        }
        let error = weights(&["0.1234567", "1"]).unwrap_err();
        assert!(error.contains("at most 100000 rows") && error.contains("11234567"), "{error}");
    }

    #[test]
    fn one_dataset_is_its_own_mixture() {
        let order = mixed(&[dataset("a", 1, 10)], 4);
        assert!(order.datasets.is_empty());
        assert_eq!((order.root, order.rows, order.tokens), (Sha256Digest::of(b"a"), 10, 77));
        // As it was before there were mixtures, written out.
        let expected: Vec<StepRow> = (0..40)
            .map(|sample| {
                let permutation = Permutation::new(&order.root, 7, sample / 10, 10);
                StepRow { epoch: sample / 10, row: permutation.apply(sample % 10) }
            })
            .collect();
        let found: Vec<StepRow> = (1..=10).flat_map(|step| order.rows_of_step(step)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn shares_are_exact_in_every_epoch_and_each_row_comes_once_a_pass() {
        let parts = [dataset("a", 7, 10), dataset("b", 3, 4), dataset("c", 2, 9)];
        // Steps that straddle epochs.
        let order = mixed(&parts, 5);
        let samples: Vec<StepRow> = (1..=360).flat_map(|step| order.rows_of_step(step)).collect();
        let of = |row: &StepRow| order.place(row.row).0;
        for (epoch, samples) in samples.chunks(12).enumerate() {
            for (dataset, part) in parts.iter().enumerate() {
                let count = samples.iter().filter(|row| of(row) == dataset).count() as u64;
                assert_eq!(count, part.weight, "epoch {epoch}, dataset {dataset}");
            }
        }
        for (dataset, part) in parts.iter().enumerate() {
            let own: Vec<StepRow> = samples.iter().filter(|row| of(row) == dataset).copied().collect();
            let passes = own.len() as u64 / part.rows;
            assert!(passes > 20);
            let alone = mixed(&[MixedDataset { weight: 1, ..*part }], 1);
            for pass in 0..passes {
                let mut rows: Vec<u64> =
                    own.iter().filter(|row| row.epoch == pass).map(|row| order.place(row.row).1).collect();
                rows.sort_unstable();
                assert_eq!(rows, (0..part.rows).collect::<Vec<_>>(), "pass {pass} of dataset {dataset}");
            }
            // The same rows as a run over it alone, but for the order within an epoch of the mixture.
            let weight = usize::try_from(part.weight).unwrap();
            for (epoch, samples) in own.chunks_exact(weight).enumerate() {
                let first = epoch as u64 * part.weight;
                let mut expected: Vec<_> = (first..first + part.weight)
                    .flat_map(|sample| alone.rows_of_step(sample + 1))
                    .map(|row| (row.epoch, row.row))
                    .collect();
                let mut found: Vec<_> =
                    samples.iter().map(|row| (row.epoch, order.place(row.row).1)).collect();
                expected.sort_unstable();
                found.sort_unstable();
                assert_eq!(found, expected, "epoch {epoch} of dataset {dataset}");
            }
        }
    }

    #[test]
    fn the_order_of_a_mixture_is_pinned() {
        // Runs that were made stay traceable: these numbers must never change.
        let parts = [(7, 2, 100), (8, 1, 50)].map(|(root, weight, rows)| MixedDataset {
            root: Sha256Digest([root; 32]),
            weight,
            rows,
            tokens: 8 * rows,
        });
        let order = Order { seed: 42, ..mixed(&parts, 9) };
        let found: Vec<u64> = order.rows_of_step(1).iter().map(|row| row.row).collect();
        assert_eq!((order.root.to_string().as_str(), found.as_slice()), PINNED);
    }
    // Computed by an independent implementation of the description above.
    const PINNED: (&str, &[u64]) = (
        "a527f3c8a24144171b991dbb27358a80cef2294e83fa8102bc0cca6afaa5a18c",
        &[81, 65, 111, 42, 130, 29, 108, 46, 23],
    );

    #[test]
    fn counts_are_those_of_the_rows() {
        let order = mixed(&[dataset("a", 7, 10), dataset("b", 4, 3)], 3);
        let mut counts = vec![0, 0];
        assert_eq!(order.rows_by_dataset(0), counts);
        for step in 1..=50 {
            order.rows_of_step(step).iter().for_each(|row| counts[order.place(row.row).0] += 1);
            assert_eq!(order.rows_by_dataset(step), counts, "step {step}");
        }
    }

    #[test]
    fn short_rows_and_roots_are_each_datasets_own() {
        let (a, b) = (dataset("a", 1, 10), dataset("b", 1, 4));
        let order = mixed(&[a, b], 2);
        assert_eq!(order.algorithm, ALGORITHM);
        assert_eq!((order.rows, order.tokens), (14, 77 + 29));
        let lengths: Vec<u64> = (0..14).map(|row| order.tokens_in_row(row)).collect();
        assert_eq!(lengths, [8, 8, 8, 8, 8, 8, 8, 8, 8, 5, 8, 8, 8, 5]);
        let root = |parts: &[MixedDataset]| root(parts);
        assert_ne!(root(&[a, b]), root(&[b, a]));
        assert_ne!(root(&[a, b]), root(&[MixedDataset { weight: 2, ..a }, b]));
        assert!(mixed(&[a, MixedDataset { rows: 0, ..b }], 2).rows_of_step(1).is_empty());
    }
}
