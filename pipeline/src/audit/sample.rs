//! Which documents a deep audit reads again: the first N of a keyed permutation of all document numbers.
//!
//! The permutation is a four-round Feistel network on the smallest even number of bits that holds all
//! numbers, walked until it falls inside (so every number comes exactly once); a round's function is
//! SHA-256 over seed, round and half. The same seed picks the same documents anywhere, and a larger N
//! picks a superset.

use std::ops::Range;

use xlstm_manifests::Sha256Digest;

use super::spans::digest_prefix;

/// How many documents to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Every one.
    All,
    /// At most this many.
    Documents(u64),
}

impl std::str::FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = text.parse().ok().filter(|&number| number > 0);
        number
            .map(Self::Documents)
            .ok_or_else(|| format!("expected `all` or a number above 0, found `{text}`"))
    }
}

/// Chosen document numbers.
#[derive(Debug)]
pub(super) enum Chosen {
    All(u64),
    /// Ascending.
    Some(Vec<u64>),
}

impl Chosen {
    /// Chooses `amount` of `total` documents.
    pub(super) fn new(amount: Amount, total: u64, seed: u64) -> Self {
        match amount {
            Amount::Documents(number) if number < total => {
                let mut chosen: Vec<u64> = (0..number).map(|index| permute(index, total, seed)).collect();
                chosen.sort_unstable();
                Self::Some(chosen)
            }
            _ => Self::All(total),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::All(total) => *total,
            Self::Some(chosen) => chosen.len() as u64,
        }
    }

    /// Those of `range`, ascending.
    pub(super) fn within(&self, range: Range<u64>) -> Vec<u64> {
        match self {
            Self::All(total) => (range.start..range.end.min(*total)).collect(),
            Self::Some(chosen) => {
                let place = |number: u64| chosen.partition_point(|&chosen| chosen < number);
                chosen[place(range.start)..place(range.end)].to_vec()
            }
        }
    }
}

/// Where the permutation of `0..total` takes `index`.
fn permute(index: u64, total: u64, seed: u64) -> u64 {
    let bits = 64 - total.saturating_sub(1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut number = index;
    loop {
        let (mut left, mut right) = (number >> half, number & mask);
        for round in 0..4u64 {
            let key = [seed.to_le_bytes(), round.to_le_bytes(), right.to_le_bytes()].concat();
            (left, right) = (right, left ^ (digest_prefix(&Sha256Digest::of(&key)) & mask));
        }
        number = (left << half) | right;
        if number < total {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_exactly_once() {
        for total in [1u64, 2, 3, 7, 64, 1000] {
            let mut seen: Vec<u64> = (0..total).map(|index| permute(index, total, 5)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..total).collect::<Vec<_>>(), "{total}");
        }
    }

    #[test]
    fn seeds_pick_differently_and_more_is_a_superset() {
        let pick = |number, seed| Chosen::new(Amount::Documents(number), 10_000, seed).within(0..10_000);
        assert_ne!(pick(50, 1), pick(50, 2));
        assert_eq!(pick(50, 1), pick(50, 1));
        let more = pick(80, 1);
        assert!(pick(50, 1).iter().all(|number| more.contains(number)));
        assert_eq!(Chosen::new(Amount::Documents(9), 5, 0).within(0..9).len(), 5);
    }

    #[test]
    fn amounts_are_all_or_a_number() {
        assert_eq!("all".parse(), Ok(Amount::All));
        assert_eq!("12".parse(), Ok(Amount::Documents(12)));
        assert!("0".parse::<Amount>().is_err() && "some".parse::<Amount>().is_err());
    }
}
