//! Words already met, and their ids: what most of a corpus is encoded by.
//!
//! ```text
//! slot, 32 bytes:  word, 15 bytes, zero-padded │ its length │ up to 7 ids │ how many
//! ```
//! A slot holds the word itself and not a digest of it, so what a hit gives was proved once, when it was
//! stored. Two slots make a line of the processor's cache; a word's digest picks the line, and no word is
//! anywhere else. Looking a word up is one load of 16 bytes, one multiplication, and two comparisons
//! without a branch between them. Longer words, and the few of more ids, are never stored.

/// Bytes of the longest word that is stored.
const MAX_WORD_BYTES: usize = 15;

/// Ids of a stored word at most.
const MAX_IDS: usize = 7;

/// Ids that [`WordTable::emit`] writes, the valid ones first.
pub(super) const EMITTED: usize = MAX_IDS + 1;

/// Lines of a table: 4 MiB, which a processor's cache of the last level holds beside the library's tables.
const LINES: usize = 1 << 16;

/// Odd numbers of 64 random bits (the digits of π and of the golden ratio).
const MIX: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15];

/// Ones over the first `length` bytes of a little-endian number.
const HEADS: [u128; MAX_WORD_BYTES + 1] = {
    let mut heads = [0; MAX_WORD_BYTES + 1];
    let mut length = 1;
    while length <= MAX_WORD_BYTES {
        heads[length] = u128::MAX >> (128 - 8 * length);
        length += 1;
    }
    heads
};

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The word's bytes and, in the last byte, its length. No word is empty, so 0 is none.
    word: Word,
    /// The ids, and last their number.
    ids: [u16; EMITTED],
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([Slot; 2]);

/// A word of at most 15 bytes as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Word(u128);

impl Word {
    /// The word `text[start..end]`; `None` where it is too long to be stored.
    #[inline]
    pub(super) fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        let head = HEADS.get(length)?;
        let bytes = match text.get(start..).and_then(<[u8]>::first_chunk::<16>) {
            Some(bytes) => *bytes,
            // The last bytes of the text.
            None => std::array::from_fn(|at| text.get(start + at).copied().unwrap_or_default()),
        };
        Some(Self(u128::from_le_bytes(bytes) & head | (length as u128) << 120))
    }

    #[inline]
    fn line(self) -> usize {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        let product = u128::from(low ^ MIX[0]) * u128::from(high ^ MIX[1]);
        ((product >> 64) as u64 ^ product as u64) as usize % LINES
    }
}

/// One thread's table.
pub(super) struct WordTable(Box<[Line]>);

impl Default for WordTable {
    fn default() -> Self {
        Self(vec![Line::default(); LINES].into_boxed_slice())
    }
}

impl WordTable {
    /// Asks for the line of `word`, which is seldom in the nearest cache, so that [`Self::emit`] need not wait.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(super) fn prefetch(&self, word: Word) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = &raw const self.0[word.line()];
            // SAFETY: every address may be prefetched, and this one is inside the table.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
    }

    /// Writes the ids of `word` to the head of `room`; how many there are, 0 for a word not met.
    /// What is written behind them means nothing.
    #[inline]
    pub(super) fn emit(&self, word: Word, room: &mut [u16; EMITTED]) -> usize {
        let [first, second] = &self.0[word.line()].0;
        let slot = if first.word == word { first } else { second };
        *room = slot.ids;
        if slot.word == word { usize::from(slot.ids[MAX_IDS]) } else { 0 }
    }

    /// Stores the ids of a word, which must be its ids for certain. Of the two words in its line, the one
    /// that was stored first makes room.
    pub(super) fn store(&mut self, word: Word, ids: &[u16]) {
        if ids.len() > MAX_IDS {
            return;
        }
        let mut slot = Slot { word, ids: [0; EMITTED] };
        slot.ids[..ids.len()].copy_from_slice(ids);
        slot.ids[MAX_IDS] = ids.len() as u16;
        let [first, second] = &mut self.0[word.line()].0;
        *second = std::mem::replace(first, slot);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn word(text: &[u8]) -> Option<Word> {
        Word::new(text, 0, text.len())
    }

    #[test]
    fn a_word_is_its_bytes_and_length_wherever_it_stands() {
        for length in 1..=MAX_WORD_BYTES {
            let text = [vec![b'x'; 20], vec![7; length], vec![b'y'; 20]].concat();
            let inside = Word::new(&text, 20, 20 + length).unwrap();
            assert_eq!(word(&vec![7; length]), Some(inside), "{length}");
            assert_eq!(Word::new(&text[..20 + length], 20, 20 + length), Some(inside), "{length}");
            let longer = [vec![7; length], vec![0]].concat();
            assert_ne!(word(&longer), Some(inside), "{length}");
        }
        assert_eq!(word(&[7; MAX_WORD_BYTES + 1]), None);
    }

    proptest! {
        /// A table may forget a word (its line is full), but never gives ids that are not the word's.
        #[test]
        fn what_is_met_is_what_was_stored(
            stored in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..=MAX_WORD_BYTES), prop::collection::vec(any::<u16>(), 1..10)), 0..40),
            others in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=MAX_WORD_BYTES), 0..40),
        ) {
            let stored: HashMap<_, _> = stored.into_iter().collect();
            let mut table = WordTable::default();
            for (text, ids) in &stored {
                table.store(word(text).unwrap(), ids);
            }
            for text in stored.keys().chain(&others) {
                let mut room = [0; EMITTED];
                let count = table.emit(word(text).unwrap(), &mut room);
                let ids = stored.get(text).map_or(&[][..], Vec::as_slice);
                prop_assert!(count == 0 || room[..count] == *ids, "{text:?}");
            }
        }
    }

    #[test]
    fn the_last_two_words_of_a_line_are_met() {
        let mut table = WordTable::default();
        let mut words = (0u32..).map(|number| word(&number.to_le_bytes()).unwrap());
        let first = words.next().unwrap();
        let same_line: Vec<_> =
            std::iter::once(first).chain(words.filter(|w| w.line() == first.line()).take(2)).collect();
        for (&word, id) in same_line.iter().zip(1..) {
            table.store(word, &[id, 9]);
        }
        let mut room = [0; EMITTED];
        let counts: Vec<_> = same_line.iter().map(|&word| table.emit(word, &mut room)).collect();
        assert_eq!(counts, [0, 2, 2]);
        assert_eq!(room[..2], [3, 9]);
    }
}
