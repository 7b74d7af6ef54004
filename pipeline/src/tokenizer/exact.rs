//! Byte-pair encoding of one word by proof instead of by table: the path for words that the library gets
//! wrong and for words too long for it.
//!
//! The definition starts from the word's bytes and, as long as two neighbors form a merge, joins the pair
//! whose merge comes first in the list, of equal ones the leftmost. Done literally on a word of 200 MB that
//! takes gigabytes. Two facts give the same result with a few kilobytes:
//!
//! * Two tokens stand next to each other in some encoding exactly if the definition, run on the two alone,
//!   leaves them as they are ([`Exact::stay_apart`]): what happens beyond a boundary that no merge crosses
//!   does not matter.
//! * So an encoding's head is the encoding of the head's text, and the last token of every prefix follows
//!   from the last tokens of shorter ones: the one token that ends there and stays apart from the last token
//!   of what is before it. The encoding is read off backwards from the end.
//!
//! Every later prefix continues one of the last 128 (no token is longer). Where the encodings of those
//! agree, the tokens are settled whatever follows, and are written out and forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::vocabulary::Vocabulary;

/// The longest token in bytes.
const MAX_WORD_BYTES: usize = 128;

/// Prefixes after which settled tokens are written out.
const WINDOW: usize = 1 << 14;

/// In [`Exact::ends`]: no token ends at this node.
const NO_TOKEN: u16 = u16::MAX;

/// Merges and a tree of all tokens, read backwards.
pub(super) struct Exact {
    /// Left id · 2^16 + right id, to the id of their merge.
    joined: Table<u16>,
    /// Node · 2^8 + byte, to the node of the suffix that is longer by this byte. Node 0 is the empty suffix.
    longer: Table<u32>,
    /// The token that each node's suffix is, or [`NO_TOKEN`].
    ends: Vec<u16>,
}

type Table<V> = HashMap<u32, V, BuildHasherDefault<Mix>>;

impl Exact {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        let key = |&(left, right): &(u16, u16)| u32::from(left) << 16 | u32::from(right);
        let joined = vocabulary.merges.iter().map(key).zip(256u16..).collect();
        let mut exact = Self { joined, longer: Table::default(), ends: vec![NO_TOKEN] };
        let mut reachable = vec![true; 256];
        for id in 0..256 + vocabulary.merges.len() as u16 {
            // A token that its own text does not encode to occurs in no encoding.
            if let Some((left, right)) = parts(vocabulary, id) {
                let both = reachable[usize::from(left)] && reachable[usize::from(right)];
                reachable.push(both && exact.meet(vocabulary, left, right));
            }
            if reachable[usize::from(id)] {
                exact.insert(vocabulary.token(id).unwrap_or_default(), id);
            }
        }
        exact
    }

    fn insert(&mut self, token: &[u8], id: u16) {
        let mut node = 0;
        for &byte in token.iter().rev() {
            let new = self.ends.len() as u32;
            node = *self.longer.entry(node << 8 | u32::from(byte)).or_insert(new);
            if node == new {
                self.ends.push(NO_TOKEN);
            }
        }
        self.ends[node as usize] = id;
    }

    fn join(&self, left: u16, right: u16) -> Option<u16> {
        self.joined.get(&(u32::from(left) << 16 | u32::from(right))).copied()
    }

    /// Whether the text of the two tokens encodes to the two tokens.
    fn stay_apart(&self, vocabulary: &Vocabulary, left: u16, right: u16) -> bool {
        self.join(left, right).is_none() && self.meet(vocabulary, left, right)
    }

    /// Whether the two tokens come to be when the definition runs on their text: going back in time from
    /// the end, no merge that was due crosses the boundary between them.
    fn meet(&self, vocabulary: &Vocabulary, mut left: u16, mut right: u16) -> bool {
        loop {
            // Ids are in the order of the merges: the larger one was made later, so it is undone first. Of
            // two equal ones the left was made first.
            let (undone, due_before) = if left > right {
                // A pair across the boundary that needs the same merge is further right, and comes later.
                (left, u32::from(left))
            } else {
                // One that needs the same merge is further left, and comes first.
                (right, u32::from(right) + 1)
            };
            match parts(vocabulary, undone) {
                None => return true,
                Some((_, inner)) if left > right => left = inner,
                Some((inner, _)) => right = inner,
            }
            if self.join(left, right).is_some_and(|joined| u32::from(joined) < due_before) {
                return false;
            }
        }
    }

    /// Appends the ids of `word`, which is one match of GPT-2's splitting pattern, of any length.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u16>) {
        self.encode_in_windows(vocabulary, word, WINDOW, out);
    }

    pub(super) fn encode_in_windows(
        &self,
        vocabulary: &Vocabulary,
        word: &[u8],
        window: usize,
        out: &mut Vec<u16>,
    ) {
        let mut prefixes =
            Prefixes { start: 0, before: None, last: Vec::with_capacity(word.len().min(window)) };
        let mut settle_at = window;
        for end in 1..=word.len() {
            let token = self.last_token(vocabulary, &word[..end], &prefixes);
            prefixes.last.push(token);
            if prefixes.last.len() >= settle_at {
                let agreed = prefixes.agreement(vocabulary);
                prefixes.write_out(vocabulary, agreed, out);
                settle_at = window.max(2 * prefixes.last.len());
            }
        }
        prefixes.write_out(vocabulary, word.len(), out);
    }

    /// The last token of the encoding of `prefix`, given those of all shorter prefixes.
    fn last_token(&self, vocabulary: &Vocabulary, prefix: &[u8], known: &Prefixes) -> u16 {
        let mut candidates = [0u16; MAX_WORD_BYTES];
        let mut count = 0;
        let mut node = 0;
        // No token reaches over a boundary that is settled.
        for &byte in prefix[known.start..].iter().rev() {
            match self.longer.get(&(node << 8 | u32::from(byte))) {
                Some(&next) => node = next,
                None => break,
            }
            let token = self.ends[node as usize];
            if token != NO_TOKEN {
                candidates[count] = token;
                count += 1;
            }
        }
        let fits = |&token: &u16| {
            let before = known.last_token(prefix.len() - vocabulary.length(token));
            before.is_none_or(|before| self.stay_apart(vocabulary, before, token))
        };
        // Exactly one fits, and it is mostly a long one. Some token always ends here: the last byte.
        candidates[..count].iter().rev().copied().find(fits).unwrap_or(candidates[0])
    }
}

/// The two tokens that `id` was merged from; `None` for a byte.
fn parts(vocabulary: &Vocabulary, id: u16) -> Option<(u16, u16)> {
    vocabulary.merges.get(usize::from(id).checked_sub(256)?).copied()
}

/// The last tokens of the encodings of a word's prefixes, from the longest one that is settled on.
struct Prefixes {
    /// Length of the settled prefix; its tokens were written out.
    start: usize,
    /// The last token of the settled prefix.
    before: Option<u16>,
    /// The last token of the prefix of length `start + 1`, of the next, and so on.
    last: Vec<u16>,
}

impl Prefixes {
    /// The last token of the encoding of the prefix of this length; `None` for the empty one.
    fn last_token(&self, length: usize) -> Option<u16> {
        match length - self.start {
            0 => self.before,
            place => Some(self.last[place - 1]),
        }
    }

    /// The longest prefix at whose end all encodings that may still be continued have a boundary.
    fn agreement(&self, vocabulary: &Vocabulary) -> usize {
        let end = self.last.len();
        let first = end.saturating_sub(MAX_WORD_BYTES - 1);
        // Each place that is in use, relative to `start`; the highest one steps back by its last token
        // until a single one is left.
        let mut used = vec![false; end + 1];
        used[first..].fill(true);
        let mut count = end + 1 - first;
        let mut place = end;
        while count > 1 {
            if used[place] {
                let earlier = place - vocabulary.length(self.last[place - 1]);
                count -= usize::from(used[earlier]);
                used[earlier] = true;
                used[place] = false;
            }
            place -= 1;
        }
        self.start + used[..=place].iter().rposition(|&used| used).unwrap_or(0)
    }

    /// Appends the tokens from the settled prefix to the prefix of length `end`, which is settled now.
    fn write_out(&mut self, vocabulary: &Vocabulary, end: usize, out: &mut Vec<u16>) {
        let first = out.len();
        let mut place = end - self.start;
        while place > 0 {
            let token = self.last[place - 1];
            out.push(token);
            place -= vocabulary.length(token);
        }
        out[first..].reverse();
        self.before = out.get(first..).and_then(<[u16]>::last).copied().or(self.before);
        self.last.drain(..end - self.start);
        self.start = end;
    }
}

/// Hashes one small number by a multiplication; the tables hold no data of strangers as keys.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}
