//! Whether a document is one that the manifest's selection asks for.
//!
//! The hold-out rule: a document is held out when the first 8 bytes of its SHA-256, read as a big-endian
//! number, are below `fraction` × 2^64. The fraction is a decimal string, so the limit is computed in
//! integers: no rounding of a float may move a document from one split to the other.

use std::collections::BTreeSet;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::Selection;

use super::spans::digest_prefix;

/// A selection, ready to be asked about each document.
#[derive(Debug, Default)]
pub(super) struct Selected {
    excluded: BTreeSet<String>,
    /// Documents below the limit are held out; whether this split is their side.
    holdout: Option<(u128, bool)>,
}

impl Selected {
    /// Prepares `selection`; a fraction that is no decimal between 0 and 1 is returned as the complaint.
    pub(super) fn new(selection: &Selection) -> (Self, Option<String>) {
        let excluded = selection.exclude_sets.iter().cloned().collect();
        let Some(holdout) = &selection.holdout else { return (Self { excluded, holdout: None }, None) };
        match limit(&holdout.fraction) {
            Some(limit) => (Self { excluded, holdout: Some((limit, holdout.held_out)) }, None),
            None => {
                let complaint =
                    format!("expected a decimal fraction between 0 and 1, found `{}`", holdout.fraction);
                (Self { excluded, holdout: None }, Some(complaint))
            }
        }
    }

    /// Why a document should not be in this split.
    pub(super) fn complaint(&self, set: Option<&str>, digest: &Sha256Digest) -> Option<String> {
        if let Some(set) = set.filter(|&set| self.excluded.contains(set)) {
            return Some(format!("its set `{set}` is excluded by the selection"));
        }
        let (limit, held_out) = self.holdout?;
        let below = u128::from(digest_prefix(digest)) < limit;
        (below != held_out).then(|| {
            let side = if below { "held out" } else { "not held out" };
            format!("by its digest {digest} it is {side}, so it belongs to the other split")
        })
    }
}

/// `fraction` × 2^64, rounded down: digits after the point are read exactly, at most 18 of them.
fn limit(fraction: &str) -> Option<u128> {
    let (whole, digits) = fraction.split_once('.').unwrap_or((fraction, ""));
    let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && digits.is_empty()
        || !digits_only(whole)
        || !digits_only(digits)
        || digits.len() > 18
    {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let numerator: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let denominator = 10u128.pow(u32::try_from(digits.len()).ok()?);
    let limit = whole.checked_mul(1 << 64)?.checked_add((numerator << 64) / denominator)?;
    (limit <= 1 << 64).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::limit;

    #[test]
    fn limits_are_exact() {
        assert_eq!(limit("0"), Some(0));
        assert_eq!(limit("1"), Some(1 << 64));
        assert_eq!(limit("0.5"), Some(1 << 63));
        assert_eq!(limit(".25"), Some(1 << 62));
        assert_eq!(limit("0.01"), Some((1u128 << 64) / 100));
        for bad in ["", ".", "1.1", "-0.1", "half", "1e-2", "0.1234567890123456789"] {
            assert_eq!(limit(bad), None, "{bad}");
        }
    }
}
