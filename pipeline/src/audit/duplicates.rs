//! How many documents are exact copies of another one, in bounded memory.
//!
//! Copies share their digest, so a sample taken *by digest* keeps or drops all copies of a text together.
//! The counter keeps every digest until there are too many, then only those whose first bits are zero,
//! halving the share as often as it must: small corpora are counted exactly, large ones from a sample
//! whose share is stated.

use std::collections::HashMap;

use serde::Serialize;

/// Digests kept in memory, about 200 MB.
const CAPACITY: usize = 1 << 22;

/// A counter of exact copies.
#[derive(Debug, Default)]
pub(super) struct DuplicateCounter {
    /// Copies seen of each text, by the first eight bytes of its digest.
    seen: HashMap<u64, u32>,
    /// Only digests with this many leading zero bits are kept.
    zero_bits: u32,
}

/// Documents that repeat an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Documents that are copies of an earlier one (estimated where `sampled_one_in` is above 1).
    pub documents: u64,
    /// Texts that occur more than once (also an estimate where one is made).
    pub texts: u64,
    /// Copies of the most frequent text among those looked at.
    pub most_frequent: u64,
    /// One in this many texts was looked at; 1 when all were.
    pub sampled_one_in: u64,
}

impl DuplicateCounter {
    /// Counts a document by the first eight bytes of its digest.
    pub(super) fn see(&mut self, prefix: u64) {
        self.see_within(prefix, CAPACITY);
    }

    fn see_within(&mut self, prefix: u64, capacity: usize) {
        if prefix.leading_zeros() < self.zero_bits {
            return;
        }
        *self.seen.entry(prefix).or_default() += 1;
        while self.seen.len() > capacity && self.zero_bits < 63 {
            self.zero_bits += 1;
            let zero_bits = self.zero_bits;
            self.seen.retain(|prefix, _| prefix.leading_zeros() >= zero_bits);
        }
    }

    pub(super) fn finish(&self) -> Duplicates {
        let scale = 1u64 << self.zero_bits;
        let repeated = || self.seen.values().filter(|&&copies| copies > 1).map(|&copies| u64::from(copies));
        Duplicates {
            documents: scale * repeated().map(|copies| copies - 1).sum::<u64>(),
            texts: scale * repeated().count() as u64,
            most_frequent: self.seen.values().copied().max().unwrap_or(0).into(),
            sampled_one_in: scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn small_corpora_are_counted_exactly() {
        let mut counter = DuplicateCounter::default();
        [1, 2, 1, 3, 1, 2].map(hash).into_iter().for_each(|prefix| counter.see(prefix));
        let expected = Duplicates { documents: 3, texts: 2, most_frequent: 3, sampled_one_in: 1 };
        assert_eq!(counter.finish(), expected);
    }

    #[test]
    fn large_corpora_are_estimated_from_a_stated_share() {
        let mut counter = DuplicateCounter::default();
        // 100,000 texts, every fifth of them twice: 20,000 copies.
        for n in 0..100_000 {
            counter.see_within(hash(n), 10_000);
            if n % 5 == 0 {
                counter.see_within(hash(n), 10_000);
            }
        }
        let found = counter.finish();
        assert!(counter.seen.len() <= 10_000 && found.sampled_one_in >= 10, "{found:?}");
        assert!((16_000..24_000).contains(&found.documents), "{found:?}");
    }
}
