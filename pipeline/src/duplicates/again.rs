//! Documents that are there once more, rather than copied: the same record of the same file.
//!
//! They come of one file in two splits, or of a split that was named twice. Leaving such a document out by its place would
//! leave out the original with it, since both have the same place.

use std::collections::{HashMap, HashSet};

use super::steps::{Copy, Seen};
use crate::overlap::scan::Side;

/// Numbers of inputs, the same one for the same name and bytes in any split: by split, then by the manifest's index.
pub(super) fn input_numbers(side: &Side) -> Vec<Vec<u32>> {
    let mut numbers = HashMap::new();
    let mut split_numbers = Vec::new();
    for split in &side.splits {
        let of = |input: &xlstm_manifests::manifest::Input| {
            // There are fewer inputs than the 32 bits that documents name them in, in each split.
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *numbers.entry((input.path.to_string(), input.sha256)).or_insert(next)
        };
        split_numbers.push(split.manifest().inputs.iter().map(of).collect());
    }
    split_numbers
}

/// Whether each copy, in stream order, is an earlier document once more: a listed copy of the same text, or its original.
pub(super) fn are_again(documents: &[Seen], copies: &[Copy]) -> Vec<bool> {
    let mut known = HashSet::new();
    let again = |copy: &Copy| {
        let (document, original) = (&documents[copy.document], &documents[copy.of]);
        known.insert((original.record, original.digest));
        // Another text of the same record comes of another text field.
        !known.insert((document.record, document.digest)) || document.record == original.record
    };
    copies.iter().map(again).collect()
}
