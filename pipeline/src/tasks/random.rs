//! Counter-based randomness: one stream of draws for each sample.
//!
//! The key is SHA-256 over the task's canonical spec (name, version, parameters, seed), a zero byte and the split's
//! name; the sample's number is the nonce of ChaCha8 (RFC 8439's layout of the original cipher: 64-bit counter,
//! 64-bit nonce). Integers come from 32- or 64-bit words by Lemire's multiplication with rejection, never from
//! floats, so that each is exactly uniform and the same on every machine.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use serde_json::Value;
use xlstm_manifests::{Sha256Digest, canonical};

use super::{Split, TaskError};

/// The keys of a task's three splits.
#[derive(Debug, Clone)]
pub(super) struct Keys([[u8; 32]; 3]);

impl Keys {
    /// Keys of the task that `spec` describes.
    ///
    /// # Errors
    /// When a number in the spec has no canonical form (a seed above 2^53).
    pub(super) fn of(spec: &Value) -> Result<Self, TaskError> {
        let bytes = canonical::to_canonical_bytes(spec)
            .map_err(|error| TaskError::Parameter(format!("a parameter of the task: {error}")))?;
        Ok(Self(
            Split::ALL
                .map(|split| Sha256Digest::of(&[bytes.as_slice(), &[0], split.name().as_bytes()].concat()).0),
        ))
    }

    /// The draws of sample `number`.
    pub(super) fn draws(&self, split: Split, number: u64) -> Draws {
        let mut words = ChaCha8Rng::from_seed(self.0[split as usize]);
        words.set_stream(number);
        Draws(words)
    }
}

/// One sample's stream of uniform integers.
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    /// A uniform integer below `bound`, which is at least 1.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let mut product = u64::from(self.0.next_u32()) * u64::from(bound);
        // The low word is below `bound` only rarely; only then the exact threshold is worth a division.
        if (product as u32) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (product as u32) < threshold {
                product = u64::from(self.0.next_u32()) * u64::from(bound);
            }
        }
        (product >> 32) as u32
    }

    /// A uniform integer below `bound`, which is at least 1.
    pub(super) fn below_u64(&mut self, bound: u64) -> u64 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A uniform id from `first` on, one of `count`.
    pub(super) fn id(&mut self, first: u16, count: u16) -> u16 {
        first + self.below(u32::from(count)) as u16
    }
}

/// First byte of SHA-256 over `ids` as little-endian u16: what decides a prompt's split.
pub(super) fn first_digest_byte(ids: &[u16]) -> u8 {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256Digest::of(&bytes).0[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_spec_split_and_number_and_are_pinned() {
        let keys = Keys::of(&serde_json::json!({"task": "parity", "seed": 0})).unwrap();
        let first = |keys: &Keys, split, number| keys.draws(split, number).below_u64(u64::MAX);
        let all: std::collections::BTreeSet<_> = Split::ALL
            .into_iter()
            .flat_map(|split| (0..50).map(move |number| (split, number)))
            .map(|(split, number)| first(&keys, split, number))
            .collect();
        assert_eq!(all.len(), 150);
        let other = Keys::of(&serde_json::json!({"task": "parity", "seed": 1})).unwrap();
        assert!(!all.contains(&first(&other, Split::Train, 0)));
        assert!(Keys::of(&serde_json::json!({ "seed": (1u64 << 53) + 1 })).is_err());
    }

    #[test]
    fn integers_are_uniform_below_any_bound() {
        let keys = Keys::of(&serde_json::json!({"uniform": 1})).unwrap();
        let mut draws = keys.draws(Split::Test, 7);
        for bound in [1u32, 2, 3, 5, 63] {
            let mut counts = vec![0u32; bound as usize];
            let expected = 4000;
            for _ in 0..expected * bound {
                counts[draws.below(bound) as usize] += 1;
                assert!(draws.below_u64(u64::from(bound)) < u64::from(bound));
            }
            // Six standard deviations of a binomial count.
            let allowed = 6.0 * f64::from(expected).sqrt();
            for count in counts {
                assert!((f64::from(count) - f64::from(expected)).abs() < allowed, "{bound}: {count}");
            }
        }
    }
}
