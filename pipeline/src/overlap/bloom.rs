//! A Bloom filter: a set that never forgets a member and sometimes takes a stranger for one.
//!
//! For n members and a false-positive rate p it has `m = n · ln(1/p) / ln²2` bits and asks `k = m/n · ln 2` of
//! them for each key (Bloom 1970). The k places follow from the two halves of a 128-bit key by
//! Kirsch and Mitzenmacher's double hashing. Threads insert and ask at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

/// A filter of fixed size.
#[derive(Debug)]
pub(super) struct Bloom {
    words: Vec<AtomicU64>,
    bits: u64,
    places: u32,
}

impl Bloom {
    /// A filter for `members` keys with false-positive rate `rate` (between 0 and 1, both excluded).
    pub(super) fn new(members: u64, rate: f64) -> Self {
        let ln2 = std::f64::consts::LN_2;
        let wanted = members.max(1) as f64 * (1.0 / rate).ln() / (ln2 * ln2);
        // Saturates for absurd sizes, which the caller refuses before.
        let bits = (wanted.ceil() as u64).max(64).next_multiple_of(64);
        let places = ((bits as f64 / members.max(1) as f64 * ln2).round() as u32).clamp(1, 64);
        let words = (0..bits / 64).map(|_| AtomicU64::new(0)).collect();
        Self { words, bits, places }
    }

    /// Bytes that a filter for `members` keys takes.
    pub(super) fn bytes_for(members: u64, rate: f64) -> f64 {
        let ln2 = std::f64::consts::LN_2;
        members as f64 * (1.0 / rate).ln() / (ln2 * ln2) / 8.0
    }

    /// Bytes of the filter.
    pub(super) fn bytes(&self) -> u64 {
        self.bits / 8
    }

    /// Bits that each key sets.
    pub(super) fn places(&self) -> u32 {
        self.places
    }

    fn bits_of(&self, key: u128) -> impl Iterator<Item = (usize, u64)> + '_ {
        let (first, second) = ((key >> 64) as u64, key as u64 | 1);
        (0..u64::from(self.places)).map(move |i| {
            let hash = first.wrapping_add(second.wrapping_mul(i));
            // The high half of hash × bits is even over 0..bits, without a division.
            let bit = ((u128::from(hash) * u128::from(self.bits)) >> 64) as u64;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    /// Makes `key` a member.
    pub(super) fn insert(&self, key: u128) {
        for (word, bit) in self.bits_of(key) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether `key` may be a member.
    pub(super) fn may_contain(&self, key: u128) -> bool {
        self.bits_of(key).all(|(word, bit)| self.words[word].load(Ordering::Relaxed) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xlstm_manifests::Sha256Digest;

    fn key(n: u64) -> u128 {
        let [bytes @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            Sha256Digest::of(&n.to_le_bytes()).0;
        u128::from_be_bytes(bytes)
    }

    #[test]
    fn members_are_never_forgotten_and_strangers_rarely_taken() {
        let bloom = Bloom::new(20_000, 0.01);
        (0..20_000).for_each(|n| bloom.insert(key(n)));
        assert!((0..20_000).all(|n| bloom.may_contain(key(n))));
        let taken = (20_000..120_000).filter(|&n| bloom.may_contain(key(n))).count();
        // 1 % of 100,000 is 1,000; five standard deviations are about 160.
        assert!((800..1200).contains(&taken), "{taken}");
        assert_eq!(bloom.places(), 7);
    }

    #[test]
    fn an_empty_filter_takes_nobody() {
        let bloom = Bloom::new(0, 0.5);
        assert!((0..1000).all(|n| !bloom.may_contain(key(n))));
    }
}
