//! RFC 6962 Merkle trees, built as a stream.
//!
//! ```text
//! leaf  = SHA-256(0x00 ‖ data)          node = SHA-256(0x01 ‖ left ‖ right)
//! ```
//! The tree over n leaves splits at the largest power of two below n, so it can be built from left to
//! right with a stack of at most 64 perfect subtrees. The prefix bytes keep a leaf from passing for a
//! node. The tree over no leaves is SHA-256 of the empty string.

use arrow_buffer::Buffer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::sha256_lanes::{BLOCK, INITIAL, ShaState, compress, compress_two, finish};

/// What stands before the data of a leaf.
const LEAF_PREFIX: [u8; 1] = [0];

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

/// The rows of a buffer whose Merkle leaves are wanted.
#[derive(Debug)]
struct Rows {
    bytes: Buffer,
    /// Bytes from one row to the next.
    stride: usize,
    /// Bytes of each row that its leaf covers.
    lengths: Vec<usize>,
}

impl Rows {
    fn row(&self, index: usize) -> Option<&[u8]> {
        let start = index * self.stride;
        self.lengths.get(index).map(|length| &self.bytes[start..start + length])
    }
}

/// Merkle leaves (as [`leaf`]) that are digested in the lane beside a [`LongMessage`].
#[derive(Debug)]
pub(crate) struct Leaves {
    rows: Rows,
    /// Leaves that are done: their number is that of the row whose turn it is.
    done: Vec<Sha256Digest>,
    /// The state after the first `taken` bytes of that row (and the byte before them).
    state: ShaState,
    taken: usize,
}

impl Leaves {
    /// Leaves over the first `lengths[i]` bytes of the row that starts at byte `i * stride`.
    pub(crate) fn new(bytes: Buffer, stride: usize, lengths: Vec<usize>) -> Self {
        let done = Vec::with_capacity(lengths.len());
        Self { rows: Rows { bytes, stride, lengths }, done, state: INITIAL, taken: 0 }
    }

    /// Takes `blocks` into `stream`, and as many blocks of rows into their leaves.
    pub(crate) fn accompany(&mut self, stream: &mut ShaState, mut blocks: &[[u8; BLOCK]]) {
        while !blocks.is_empty() {
            self.begin_row();
            let Some(row) = self.rows.row(self.done.len()) else { break };
            let own = row[self.taken..].as_chunks().0;
            let count = own.len().min(blocks.len());
            compress_two(stream, &blocks[..count], &mut self.state, &own[..count]);
            blocks = &blocks[count..];
            self.taken += count * BLOCK;
            if count == own.len() {
                self.end_row();
            }
        }
        compress(stream, blocks);
    }

    /// Takes the block that the byte 0 before every leaf shifts by one, if the row has as much.
    fn begin_row(&mut self) {
        const HEAD: usize = BLOCK - LEAF_PREFIX.len();
        if self.taken > 0 {
            return;
        }
        if let Some(head) = self.rows.row(self.done.len()).and_then(<[u8]>::first_chunk::<HEAD>) {
            let mut block = [0; BLOCK];
            block[..LEAF_PREFIX.len()].copy_from_slice(&LEAF_PREFIX);
            block[LEAF_PREFIX.len()..].copy_from_slice(head);
            self.state = INITIAL;
            compress(&mut self.state, &[block]);
            self.taken = HEAD;
        }
    }

    /// Digests what is left of the row whose turn it is.
    fn end_row(&mut self) {
        let Some(row) = self.rows.row(self.done.len()) else { return };
        self.done.push(if self.taken == 0 {
            leaf(&[row])
        } else {
            let (blocks, tail) = row[self.taken..].as_chunks();
            compress(&mut self.state, blocks);
            Sha256Digest(finish(self.state, tail, (LEAF_PREFIX.len() + row.len()) as u64))
        });
        self.taken = 0;
    }

    /// What the rows lie in.
    pub(crate) fn buffer(&self) -> &Buffer {
        &self.rows.bytes
    }

    /// All leaves, in the order of the rows, and what the rows lie in.
    pub(crate) fn finish(mut self) -> (Vec<Sha256Digest>, Buffer) {
        if self.taken > 0 {
            self.end_row();
        }
        let left = (self.done.len()..self.rows.lengths.len()).filter_map(|index| self.rows.row(index));
        let left = leaves(left);
        self.done.extend(left);
        (self.done, self.rows.bytes)
    }
}

fn node(left: Sha256Digest, right: Sha256Digest) -> Sha256Digest {
    let mut hasher = Sha256::new_with_prefix([1]);
    hasher.update(left.0);
    hasher.update(right.0);
    Sha256Digest(hasher.finalize().into())
}

/// The root over as many leaves as a power of two.
fn perfect(leaves: &[Sha256Digest]) -> Sha256Digest {
    const NODE: usize = 1 + 2 * size_of::<Sha256Digest>();
    let mut level = leaves.to_vec();
    let mut nodes = Vec::with_capacity(NODE * leaves.len() / 2);
    while level.len() > 1 {
        nodes.clear();
        for pair in level.as_chunks::<2>().0 {
            nodes.push(1);
            pair.iter().for_each(|digest| nodes.extend_from_slice(&digest.0));
        }
        level = Sha256Digest::of_each(nodes.chunks_exact(NODE));
    }
    level.pop().unwrap_or_else(|| Sha256Digest::of(b""))
}

/// A subtree over `2^level` leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subtree {
    level: u32,
    digest: Sha256Digest,
}

/// Consecutive leaves of a tree, put together apart from those before them: on another thread, say.
///
/// They are kept as the perfect subtrees of the whole tree that lie in them, some 30 for a million leaves, so
/// [`MerkleTree::append`] costs next to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Number of the first leaf.
    start: u64,
    leaves: u64,
    /// In the order of their leaves.
    subtrees: Vec<Subtree>,
}

impl Section {
    /// No leaves yet; the first will be leaf `start` of the whole tree.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self { start, leaves: 0, subtrees: Vec::new() }
    }

    /// Appends leaf digests (see [`leaf`]).
    pub fn extend(&mut self, mut leaves: &[Sha256Digest]) {
        while !leaves.is_empty() {
            // The largest subtree that can begin here and whose leaves are all there.
            let next = self.start + self.leaves;
            let level = next.trailing_zeros().min(leaves.len().ilog2());
            let (block, rest) = leaves.split_at(1 << level);
            self.push(Subtree { level, digest: perfect(block) });
            self.leaves += 1 << level;
            leaves = rest;
        }
    }

    /// Appends a subtree, joined with those before it that are left halves of larger ones.
    fn push(&mut self, mut subtree: Subtree) {
        let next = self.start + self.leaves;
        while (next >> subtree.level) & 1 == 1 {
            let Some(left) = self.subtrees.pop_if(|left| left.level == subtree.level) else { break };
            subtree = Subtree { level: subtree.level + 1, digest: node(left.digest, subtree.digest) };
        }
        self.subtrees.push(subtree);
    }

    /// The same leaves as those from number `start` on, where their subtrees are also subtrees there.
    #[must_use]
    pub fn moved(&self, start: u64) -> Option<Self> {
        let size = self.leaves.next_power_of_two();
        let fits = |start: u64| start.is_multiple_of(size);
        (fits(self.start) && fits(start)).then(|| Self { start, ..self.clone() })
    }
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
        self.push_subtree(&Subtree { level: 0, digest: leaf });
    }

    /// Appends a perfect subtree, which must begin where one of its size can.
    fn push_subtree(&mut self, subtree: &Subtree) {
        let mut digest = subtree.digest;
        for _ in 0..(self.leaves >> subtree.level).trailing_ones() {
            if let Some(left) = self.stack.pop() {
                digest = node(left, digest);
            }
        }
        self.stack.push(digest);
        self.leaves += 1 << subtree.level;
    }

    /// Appends leaves that were put together apart from this tree.
    ///
    /// # Errors
    /// When the section does not begin behind the leaves so far.
    pub fn append(&mut self, section: &Section) -> Result<()> {
        if section.start != self.leaves {
            let (start, leaves) = (section.start, self.leaves);
            return Err(Error::Internal(format!("leaves from {start} on for a tree of {leaves}")));
        }
        section.subtrees.iter().for_each(|subtree| self.push_subtree(subtree));
        Ok(())
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
    use proptest::prelude::*;

    use super::*;
    use crate::sha256_lanes::LongMessage;

    fn message(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    proptest! {
        /// Pieces and rows of any length: the stream may end before the rows, and the rows before the stream.
        #[test]
        fn a_stream_and_the_leaves_beside_it_are_those_of_either_alone(
            before in 0usize..200,
            pieces in prop::collection::vec(0usize..700, 0..6),
            lengths in prop::collection::vec(0usize..400, 0..9),
        ) {
            const STRIDE: usize = 400;
            let bytes = message(STRIDE * lengths.len(), 3);
            let rows = lengths.iter().enumerate().map(|(row, length)| &bytes[row * STRIDE..][..*length]);
            let expected: Vec<_> = rows.map(|row| leaf(&[row])).collect();
            let mut leaves = Leaves::new(Buffer::from(&bytes[..]), STRIDE, lengths.clone());
            let (mut stream, mut whole) = (LongMessage::default(), message(before, 4));
            stream.update(&whole, compress);
            for (&length, seed) in pieces.iter().zip(5..) {
                let piece = message(length, seed);
                stream.update(&piece, |state, blocks| leaves.accompany(state, blocks));
                whole.extend(piece);
            }
            prop_assert_eq!(stream.length(), whole.len() as u64);
            prop_assert_eq!(Sha256Digest(stream.finish()), Sha256Digest::of(&whole));
            prop_assert_eq!(leaves.finish().0, expected);
        }
    }

    proptest! {
        /// However a tree's leaves are cut into sections, and each section into pieces.
        #[test]
        fn sections_appended_are_the_tree_of_all_their_leaves(
            sections in prop::collection::vec(prop::collection::vec(0usize..70, 0..4), 0..6),
        ) {
            let count: usize = sections.iter().flatten().sum();
            let all: Vec<_> = (0..count as u32).map(|at| leaf(&[&at.to_le_bytes()])).collect();
            let (mut tree, mut left) = (MerkleTree::new(), &all[..]);
            for pieces in &sections {
                let mut section = Section::new(tree.leaves());
                let mut alone = Section::new(0);
                let before = left;
                for &piece in pieces {
                    section.extend(&left[..piece]);
                    alone.extend(&left[..piece]);
                    left = &left[piece..];
                }
                let mut own = MerkleTree::new();
                own.append(&alone).unwrap();
                prop_assert_eq!(own.root(), by_definition(&before[..before.len() - left.len()]));
                if let Some(moved) = alone.moved(tree.leaves()) {
                    prop_assert_eq!(&moved, &section);
                }
                tree.append(&section).unwrap();
            }
            let mut one_by_one = MerkleTree::new();
            all.iter().for_each(|leaf| one_by_one.push(*leaf));
            prop_assert_eq!(&tree, &one_by_one);
            prop_assert!(tree.append(&Section::new(tree.leaves() + 1)).is_err());
        }
    }

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
