//! Whether a document is one that the manifest's selection asks for.
//!
//! The hold-out rule is the engine's own: a document is held out when the first 8 bytes of its SHA-256, read
//! as a big-endian number, are below `fraction` × 2^64. Digests are stored, so it can be asked of every
//! document without its text.

use std::collections::BTreeSet;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::Selection;

use super::spans::digest_prefix;
use crate::engine::holdout_threshold;

/// A selection, ready to be asked about each document.
#[derive(Debug, Default)]
pub(super) struct Selected {
    excluded: BTreeSet<String>,
    /// Documents below the threshold are held out; whether this split is their side.
    holdout: Option<(u64, bool)>,
}

impl Selected {
    /// Prepares `selection`; a fraction that is no number between 0 and 1 is returned as the complaint.
    pub(super) fn new(selection: &Selection) -> (Self, Option<String>) {
        let excluded = selection.exclude_sets.iter().cloned().collect();
        let Some(holdout) = &selection.holdout else { return (Self { excluded, holdout: None }, None) };
        let fraction = holdout.fraction.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
        match fraction {
            Some(fraction) => {
                let holdout = Some((holdout_threshold(fraction), holdout.held_out));
                (Self { excluded, holdout }, None)
            }
            None => {
                let complaint =
                    format!("expected a holdout fraction between 0 and 1, found `{}`", holdout.fraction);
                (Self { excluded, holdout: None }, Some(complaint))
            }
        }
    }

    /// Why a document should not be in this split.
    pub(super) fn complaint(&self, set: Option<&str>, digest: &Sha256Digest) -> Option<String> {
        if let Some(set) = set.filter(|&set| self.excluded.contains(set)) {
            return Some(format!("its set `{set}` is excluded by the selection"));
        }
        let (threshold, held_out) = self.holdout?;
        let below = digest_prefix(digest) < threshold;
        (below != held_out).then(|| {
            let side = if below { "held out" } else { "not held out" };
            format!("by its digest {digest} it is {side}, so it belongs to the other split")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xlstm_manifests::manifest::Holdout;

    #[test]
    fn each_side_of_a_holdout_refuses_the_others_documents() {
        let selection = |fraction: &str, held_out| Selection {
            text_field: None,
            set_field: None,
            id_field: None,
            license_field: None,
            source_field: None,
            exclude_sets: vec!["books".into()],
            max_tokens: None,
            holdout: Some(Holdout { fraction: fraction.into(), held_out }),
            drop_duplicates: None,
            on_bad_record: "fail".into(),
        };
        let side = |held_out| Selected::new(&selection("0.5", held_out)).0;
        let (train, validation) = (side(false), side(true));
        for text in ["a", "b", "c", "d", "e", "f"] {
            let digest = Sha256Digest::of(text.as_bytes());
            let low = digest.0[0] < 0x80;
            assert_eq!(train.complaint(None, &digest).is_some(), low, "{text}");
            assert_eq!(validation.complaint(None, &digest).is_some(), !low, "{text}");
            assert!(train.complaint(Some("books"), &digest).is_some());
        }
        for bad in ["half", "1.5", "-0.1", "nan"] {
            assert!(Selected::new(&selection(bad, true)).1.is_some(), "{bad}");
        }
    }
}
