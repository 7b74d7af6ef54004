//! Byte-pair encoding of one word by the definition: the slow and certain path.
//!
//! Start from the word's bytes; as long as two neighbours form a merge, join the pair whose merge comes
//! first in the list (of equal ones the leftmost). A merge can only make pairs that come later in the list
//! than itself, so a heap of candidate pairs gives the same result in O(n log n), and a word of any
//! length is encoded in time. The fast library answers from hash tables that keep digests in place of
//! words; whenever its answer does not decode to the text, this module decides.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocabulary::Vocabulary;

/// No neighbour on this side.
const NONE: u32 = u32::MAX;

/// Merges that may be done, the first of the list on top, of equal ones the leftmost: the merged id (256 +
/// its place in the list), the left token's place, and the pair as it was when this was written down.
type Candidates = BinaryHeap<Reverse<(u16, u32, (u16, u16))>>;

/// The merges as a table: two neighbouring ids to the id that joins them.
pub(super) struct Merges(HashMap<(u16, u16), u16>);

impl Merges {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        Self(vocabulary.merges.iter().copied().zip(256u16..).collect())
    }

    /// Appends the ids of `word`, which must be one match of GPT-2's splitting pattern shorter than 4 GiB.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u16>) {
        let mut ids: Vec<u16> = word.iter().map(|&byte| vocabulary.byte_ids[usize::from(byte)]).collect();
        let mut alive = vec![true; ids.len()];
        let end = ids.len() as u32;
        let mut following: Vec<u32> = (1..=end).map(|next| if next == end { NONE } else { next }).collect();
        let mut preceding: Vec<u32> = (0..end).map(|at| at.checked_sub(1).unwrap_or(NONE)).collect();
        let mut candidates = Candidates::new();
        for at in 1..ids.len() {
            self.push(&mut candidates, at as u32 - 1, ids[at - 1], ids[at]);
        }
        while let Some(Reverse((merged, left, pair))) = candidates.pop() {
            let right = following[left as usize];
            // Either side may have been merged away since the candidate was written down.
            if !alive[left as usize] || right == NONE || (ids[left as usize], ids[right as usize]) != pair {
                continue;
            }
            ids[left as usize] = merged;
            alive[right as usize] = false;
            let after = following[right as usize];
            following[left as usize] = after;
            if after != NONE {
                preceding[after as usize] = left;
                self.push(&mut candidates, left, merged, ids[after as usize]);
            }
            let before = preceding[left as usize];
            if before != NONE {
                self.push(&mut candidates, before, ids[before as usize], merged);
            }
        }
        out.extend(ids.iter().zip(&alive).filter(|&(_, &alive)| alive).map(|(&id, _)| id));
    }

    fn push(&self, heap: &mut Candidates, at: u32, left: u16, right: u16) {
        if let Some(&merged) = self.0.get(&(left, right)) {
            heap.push(Reverse((merged, at, (left, right))));
        }
    }
}
