//! Which documents are wanted, and the reasons the others are counted under.
//!
//! A record is tried in this order, and counted under the first that applies: a defect
//! ([`BadRecord`](crate::record::BadRecord)), `excluded-set`, `empty`, `held-out` or `not-held-out` (the other
//! side of the holdout), `duplicate` (of the list of copies), `beyond-max-tokens`.

use std::sync::Arc;

use xlstm_manifests::Sha256Digest;

use crate::duplicates::Copies;

/// Left out because its set is excluded.
pub(super) const EXCLUDED_SET: &str = "excluded-set";
/// Left out because its text is empty.
pub(super) const EMPTY: &str = "empty";
/// Left out because it is on the other side of the holdout.
pub(super) const HELD_OUT: &str = "held-out";
/// The same, seen from the other side.
pub(super) const NOT_HELD_OUT: &str = "not-held-out";
/// Left out because it comes after the document that reached `--max-tokens`, in an input used up to there.
pub const BEYOND_MAX_TOKENS: &str = "beyond-max-tokens";

/// The cut of a holdout: see [`xlstm_manifests::manifest::Holdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldoutCut {
    /// Documents whose digest's head is below this are held out.
    pub threshold: u64,
    /// Whether the held-out ones are wanted here.
    pub held_out: bool,
}

/// `fraction` × 2^64, for comparison with the head of a digest.
#[must_use]
pub fn holdout_threshold(fraction: f64) -> u64 {
    // `as` saturates, which is what a fraction of 1 needs.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let threshold = (fraction.clamp(0.0, 1.0) * 18_446_744_073_709_551_616.0) as u64;
    threshold
}

/// Which documents are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Sets left out.
    pub exclude_sets: Vec<String>,
    /// The side of a holdout.
    pub holdout: Option<HoldoutCut>,
    /// Copies left out.
    pub copies: Option<Arc<Copies>>,
}

impl Filter {
    /// The reason to leave a document out before its digest is known.
    pub(super) fn before_digest(&self, text: &str, set: Option<&str>) -> Option<&'static str> {
        if set.is_some_and(|set| self.exclude_sets.iter().any(|excluded| excluded == set)) {
            return Some(EXCLUDED_SET);
        }
        text.is_empty().then_some(EMPTY)
    }

    /// The reason to leave a document of this digest out.
    pub fn by_digest(&self, digest: &Sha256Digest) -> Option<&'static str> {
        let cut = self.holdout?;
        let mut head = [0; 8];
        head.copy_from_slice(&digest.0[..8]);
        let held_out = u64::from_be_bytes(head) < cut.threshold;
        match (held_out, cut.held_out) {
            (true, false) => Some(HELD_OUT),
            (false, true) => Some(NOT_HELD_OUT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_sides_of_a_holdout_share_nothing_and_miss_nothing() {
        let threshold = holdout_threshold(0.25);
        let side =
            |held_out| Filter { holdout: Some(HoldoutCut { threshold, held_out }), ..Filter::default() };
        let digests: Vec<_> = (0u32..4000).map(|i| Sha256Digest::of(&i.to_le_bytes())).collect();
        let kept = |held_out| digests.iter().filter(|d| side(held_out).by_digest(d).is_none()).count();
        assert_eq!(kept(true) + kept(false), digests.len());
        assert!((900..1100).contains(&kept(true)), "{}", kept(true));
        assert_eq!(holdout_threshold(0.0), 0);
        assert_eq!(holdout_threshold(1.0), u64::MAX);
    }
}
