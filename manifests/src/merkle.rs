//! RFC 6962 Merkle trees, built as a stream.
//!
//! ```text
//! leaf  = SHA-256(0x00 ‖ data)          node = SHA-256(0x01 ‖ left ‖ right)
//! ```
//! The tree over n leaves splits at the largest power of two below n, so it can be built from left to
//! right with a stack of at most 64 perfect subtrees. The prefix bytes keep a leaf from passing for a
//! node. The tree over no leaves is SHA-256 of the empty string.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;

/// What stands before the data of a leaf.
pub(crate) const LEAF_PREFIX: [u8; 1] = [0];

/// The digest of a leaf.
#[must_use]
pub fn leaf(parts: &[&[u8]]) -> Sha256Digest {
    let mut hasher = Sha256::new_with_prefix(LEAF_PREFIX);
    for part in parts {
        hasher.update(part);
    }
    Sha256Digest(hasher.finalize().into())
}

/// The digests of several leaves, in their order: faster than [`leaf`] for each.
#[must_use]
pub fn leaves<'a>(data: impl IntoIterator<Item = &'a [u8]>) -> Vec<Sha256Digest> {
    let messages: Vec<_> = data.into_iter().map(|data| [&LEAF_PREFIX, data].concat()).collect();
    Sha256Digest::of_each(messages.iter().map(Vec::as_slice))
}

fn node(left: Sha256Digest, right: Sha256Digest) -> Sha256Digest {
    let mut hasher = Sha256::new_with_prefix([1]);
    hasher.update(left.0);
    hasher.update(right.0);
    Sha256Digest(hasher.finalize().into())
}

/// A tree under construction. It can be stored in a journal and taken up again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MerkleTree {
    leaves: u64,
    /// One perfect subtree for each set bit of `leaves`, largest first.
    stack: Vec<Sha256Digest>,
}

impl MerkleTree {
    /// A tree with no leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a leaf digest (see [`leaf`]).
    pub fn push(&mut self, leaf: Sha256Digest) {
        let mut subtree = leaf;
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.stack.pop() {
                subtree = node(left, subtree);
            }
        }
        self.stack.push(subtree);
        self.leaves += 1;
    }

    /// Leaves so far.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The root over all leaves so far.
    #[must_use]
    pub fn root(&self) -> Sha256Digest {
        self.stack
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| node(left, right))
            .unwrap_or_else(|| Sha256Digest::of(b""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recursive definition of RFC 6962 §2.1, to check the stream against.
    fn by_definition(leaves: &[Sha256Digest]) -> Sha256Digest {
        match leaves {
            [] => Sha256Digest::of(b""),
            [one] => *one,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                node(by_definition(&leaves[..split]), by_definition(&leaves[split..]))
            }
        }
    }

    #[test]
    fn the_stream_equals_the_definition() {
        let data: Vec<_> = (0u32..70).map(u32::to_le_bytes).collect();
        let leaves: Vec<_> = data.iter().map(|data| leaf(&[data])).collect();
        assert_eq!(leaves, super::leaves(data.iter().map(|data| &data[..])));
        let mut tree = MerkleTree::new();
        for n in 0..leaves.len() {
            assert_eq!(tree.root(), by_definition(&leaves[..n]), "{n} leaves");
            tree.push(leaves[n]);
        }
    }

    #[test]
    fn known_answer_of_rfc_6962_reference_vectors() {
        let mut tree = MerkleTree::new();
        tree.push(leaf(&[b""]));
        assert_eq!(
            tree.root().to_string(),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }

    #[test]
    fn a_journal_takes_the_tree_up_again() {
        let mut tree = MerkleTree::new();
        (0u8..5).for_each(|i| tree.push(leaf(&[&[i]])));
        let mut restored: MerkleTree = serde_json::from_str(&serde_json::to_string(&tree).unwrap()).unwrap();
        (5u8..9).for_each(|i| {
            tree.push(leaf(&[&[i]]));
            restored.push(leaf(&[&[i]]));
        });
        assert_eq!(tree, restored);
        assert_eq!(tree.root(), restored.root());
    }
}
