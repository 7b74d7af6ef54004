//! GPT-2's tokenizer: text to ids that fit in 16 bits, at the speed of memory, and proved as it goes.
//!
//! GPT-2 splits text into words with a regular expression and merges each word's bytes into tokens
//! (byte-level byte-pair encoding; Radford et al. 2019). The work is done by the library `tokenizers`,
//! built from OpenAI's merge list, which is part of this crate.
//!
//! * Text never becomes a document boundary: `<|endoftext|>` inside a document is encoded as the plain text
//!   that it is, so id 50256 only ever stands where the packer puts it.
//! * The ids that the library gives for a word are decoded again and compared with its bytes. The library looks
//!   words up by digests of 32 and 64 bits; two words may share one. It is rare, and a wrong token in a trillion
//!   would never be noticed later. Where the comparison fails, module `exact` encodes the word again.
//! * Words that passed are kept whole, with their ids, in module `words`: nine of ten words are found there, by
//!   their own bytes, and need neither the library nor the comparison.
//! * Documents of any length in constant memory: text is split through a window. What a match is depends on
//!   its own characters and at most two more, so of the matches in a window all are certain but those at its
//!   end; the next window starts after the last certain one. A word longer than a window goes to module `exact`.

mod exact;
mod probe;
mod vocabulary;
mod words;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use thiserror::Error;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BpeConfig, BpeScratch, PipelineBPE};
use tokenizers::pipeline::{Model, PipelineToken, PreTokenizer, PreTokenizerScratch, Span};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use xlstm_manifests::{Sha256Digest, manifest};

use exact::Exact;
use vocabulary::{VOCAB_BPE, Vocabulary};
use words::{EMITTED, Word, WordTable};

/// `<|endoftext|>`: the id that ends every document, and that no text encodes to.
pub const EOS: u16 = xlstm_manifests::END_OF_TEXT;

/// Number of ids: 256 bytes, 50,000 merges and [`EOS`].
pub const VOCABULARY_SIZE: usize = 50_257;

/// GPT-2's splitting pattern, as its authors wrote it.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The exact version of the library that Cargo.toml pins; a test compares it with the lock file.
const ENGINE_VERSION: &str = "1.0.0-rc.3";

/// Bytes that are split at once. Small enough for the working buffers (about 20 bytes for each byte of a
/// window) to stay in the processor's cache.
const WINDOW_BYTES: usize = 64 << 10;

/// Words whose places in the table of words are asked for before the first of them is needed.
const PREFETCH: usize = 16;

/// A window is made this many times larger for a long word, before the word is given to module `exact`.
const LARGER_WINDOW: usize = 16;

/// Bytes after a match that may decide what it is. A run of one class is ended by the next character,
/// `\s+(?!\S)` looks one further, and an apostrophe is taken alone only after the two characters that may
/// make it a contraction: two characters of at most four bytes. Twice that, to be safe.
const LOOK_AHEAD: usize = 16;

/// Slots of the library's own table of words, which serves those that [`words`] does not store: 1 MiB a thread.
const LIBRARY_CACHE_SLOTS: usize = 1 << 15;

/// Why text could not be tokenized.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The embedded merge list is not GPT-2's.
    #[error("the embedded GPT-2 vocabulary is damaged: {0}; rebuild from a clean checkout")]
    Vocabulary(String),
    /// The library refused.
    #[error("the tokenizer library failed: {0}")]
    Library(String),
}

impl From<tokenizers::Error> for TokenizerError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// GPT-2's tokenizer. Cloning shares the tables; one serves any number of threads.
#[derive(Clone)]
pub struct Gpt2Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    split: Split,
    model: PipelineBPE,
    vocabulary: Vocabulary,
    /// The slow path's tables, made when first needed.
    exact: OnceLock<Exact>,
}

/// One thread's working buffers and its table of words already met. Keep it from call to call.
#[derive(Default)]
pub struct EncodeScratch {
    split: PreTokenizerScratch,
    words: Vec<Span>,
    /// Made when first needed, so that a default is cheap.
    table: Option<WordTable>,
    /// A window's ids and what [`WordTable::emit`] writes behind them.
    ids: Vec<u16>,
    new_word: NewWord,
}

/// What [`Inner::encode_word`] works with.
#[derive(Default)]
struct NewWord {
    model: Option<BpeScratch>,
    tokens: Vec<PipelineToken>,
    ids: Vec<u16>,
    /// Words for which the library's ids did not decode to the text, and that module `exact` encoded.
    corrections: u64,
}

impl EncodeScratch {
    /// How often the library's ids did not decode to the text so far (and were put right).
    #[must_use]
    pub fn corrections(&self) -> u64 {
        self.new_word.corrections
    }
}

impl Gpt2Tokenizer {
    /// Builds the tokenizer from the embedded merge list.
    ///
    /// # Errors
    /// A damaged vocabulary, or one that the library refuses.
    pub fn new() -> Result<Self, TokenizerError> {
        // Both take about as long, and need nothing of each other.
        let (vocabulary, model) = rayon::join(Vocabulary::read, Self::model);
        let pattern = SplitPattern::Regex(PATTERN.to_owned());
        let split = Split::native(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let inner = Inner { split, vocabulary: vocabulary?, model: model?, exact: OnceLock::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn model() -> Result<PipelineBPE, TokenizerError> {
        let merges = vocabulary::merge_lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(left, right)| (left.to_owned(), right.to_owned()))
            .collect();
        Ok(PipelineBPE::from_config(BpeConfig {
            vocab: Vocabulary::spellings().zip(0u32..).collect(),
            merges,
            byte_level: true,
            cache_capacity: LIBRARY_CACHE_SLOTS,
            ..BpeConfig::default()
        })?)
    }

    /// Appends the ids of `text` to `out`; never appends [`EOS`]. After an error `out` is as before.
    ///
    /// # Errors
    /// A failure of the library.
    pub fn encode_into(
        &self,
        scratch: &mut EncodeScratch,
        text: &str,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        self.encode_in_windows(scratch, text, WINDOW_BYTES, out)
    }

    /// The ids of `text`, for callers that encode now and then.
    ///
    /// # Errors
    /// As [`Self::encode_into`].
    pub fn encode(&self, text: &str) -> Result<Vec<u16>, TokenizerError> {
        let mut out = Vec::new();
        self.encode_into(&mut EncodeScratch::default(), text, &mut out)?;
        Ok(out)
    }

    fn encode_in_windows(
        &self,
        scratch: &mut EncodeScratch,
        text: &str,
        window_bytes: usize,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        let before = out.len();
        let mut rest = text;
        while !rest.is_empty() {
            match self.encode_window(scratch, rest, window_bytes, out) {
                Ok(length) => rest = &rest[length..],
                Err(error) => {
                    out.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Encodes at least one word at the head of `rest`, and what else is certain in the window; how long
    /// the encoded text is.
    fn encode_window(
        &self,
        scratch: &mut EncodeScratch,
        rest: &str,
        window_bytes: usize,
        out: &mut Vec<u16>,
    ) -> Result<usize, TokenizerError> {
        let inner = &*self.inner;
        let largest = (LARGER_WINDOW * window_bytes).max(LARGER_WINDOW * LOOK_AHEAD);
        for window_bytes in [window_bytes, largest] {
            let window = head(rest, window_bytes);
            let words = inner.certain_words(scratch, window, window.len() == rest.len())?;
            if let Some(end) = scratch.words[..words].last().map(|word| word.range().end) {
                inner.encode_words(scratch, window, words, out)?;
                return Ok(end);
            }
        }
        let end = inner.end_of_word(scratch, rest, largest)?;
        inner.exact().encode(&inner.vocabulary, &rest.as_bytes()[..end], out);
        Ok(end)
    }

    /// The bytes that `ids` stand for ([`EOS`] as `<|endoftext|>`). Ids outside the vocabulary have none.
    #[must_use]
    pub fn decode(&self, ids: &[u16]) -> Vec<u8> {
        ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect()
    }

    /// As [`Self::decode`], with U+FFFD for bytes that are no UTF-8 (a token may end inside a character).
    #[must_use]
    pub fn decode_lossy(&self, ids: &[u16]) -> String {
        String::from_utf8_lossy(&self.decode(ids)).into_owned()
    }

    /// The bytes of one token; `None` for an id outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u16) -> Option<&[u8]> {
        self.inner.vocabulary.token(id)
    }

    /// What a manifest records of this tokenizer. Encodes the probe strings, a few milliseconds.
    ///
    /// # Errors
    /// As [`Self::encode_into`], or a damaged list of probe strings.
    pub fn identity(&self) -> Result<manifest::Tokenizer, TokenizerError> {
        Ok(manifest::Tokenizer {
            name: "gpt2".to_owned(),
            engine: "tokenizers".to_owned(),
            engine_version: ENGINE_VERSION.to_owned(),
            files: BTreeMap::from([("vocab.bpe".to_owned(), Sha256Digest::of(VOCAB_BPE.as_bytes()))]),
            vocabulary_size: VOCABULARY_SIZE as u32,
            end_of_text: EOS,
            special_tokens: "encode-as-text".to_owned(),
            probe_sha256: probe::digest(self)?,
        })
    }
}

impl Inner {
    fn exact(&self) -> &Exact {
        self.exact.get_or_init(|| Exact::new(&self.vocabulary))
    }

    /// Splits `window` into `scratch.words`; how many of them are certain whatever follows the window.
    fn certain_words(
        &self,
        scratch: &mut EncodeScratch,
        window: &str,
        is_all: bool,
    ) -> Result<usize, TokenizerError> {
        scratch.words.clear();
        self.split.pre_tokenize(window, &mut scratch.split, &mut scratch.words)?;
        let decided = if is_all { window.len() } else { window.len().saturating_sub(LOOK_AHEAD) };
        Ok(scratch.words.partition_point(|word| word.range().end <= decided))
    }

    /// Where the word ends that starts `rest` and reaches to within [`LOOK_AHEAD`] of the first `window_bytes`.
    ///
    /// A word of that length is a run of one class of characters (after one space, perhaps), and text that
    /// starts inside such a run, not at its last two characters, starts with the rest of the run.
    fn end_of_word(
        &self,
        scratch: &mut EncodeScratch,
        rest: &str,
        window_bytes: usize,
    ) -> Result<usize, TokenizerError> {
        let mut reached = head(rest, window_bytes).len().saturating_sub(LOOK_AHEAD);
        loop {
            let inside = rest.floor_char_boundary(reached.saturating_sub(LOOK_AHEAD));
            let window = head(&rest[inside..], window_bytes);
            let is_all = inside + window.len() == rest.len();
            let certain = self.certain_words(scratch, window, is_all)?;
            if let Some(run) = scratch.words[..certain].first() {
                return Ok(inside + run.range().end);
            }
            reached = inside + window.len() - LOOK_AHEAD;
        }
    }

    /// Appends the ids of the first `words` of `scratch.words`, which are in `text`.
    fn encode_words(
        &self,
        scratch: &mut EncodeScratch,
        text: &str,
        words: usize,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        let table = scratch.table.get_or_insert_default();
        let ids = &mut scratch.ids;
        if ids.len() < text.len() + EMITTED {
            // No token is empty, so there are at most as many as bytes.
            ids.resize(text.len() + EMITTED, 0);
        }
        let mut count = 0;
        for spans in scratch.words[..words].chunks(PREFETCH) {
            let mut keys = [None; PREFETCH];
            for (key, span) in keys.iter_mut().zip(spans) {
                let range = span.range();
                *key = Word::new(text.as_bytes(), range.start, range.end);
                key.iter().for_each(|&word| table.prefetch(word));
            }
            for (word, span) in keys.into_iter().zip(spans) {
                let met = match (word, ids[count..].first_chunk_mut()) {
                    (Some(word), Some(room)) => table.emit(word, room),
                    _ => 0,
                };
                count += met;
                if met == 0 {
                    let new = self.encode_word(&mut scratch.new_word, &text[span.range()])?;
                    ids[count..count + new.len()].copy_from_slice(new);
                    count += new.len();
                    if let Some(word) = word {
                        table.store(word, new);
                    }
                }
            }
        }
        out.extend_from_slice(&ids[..count]);
        Ok(())
    }

    /// The ids of a word that the table does not have.
    fn encode_word<'a>(&self, scratch: &'a mut NewWord, word: &str) -> Result<&'a [u16], TokenizerError> {
        scratch.tokens.clear();
        scratch.ids.clear();
        let model = scratch.model.get_or_insert_with(|| self.model.init_scratch());
        self.model.tokenize_pipeline(word, model, &mut scratch.tokens)?;
        let ids = PipelineToken::cast_slice(&scratch.tokens);
        if self.vocabulary.spells(ids, word.as_bytes()) {
            scratch.ids.extend(ids.iter().map(|&id| id as u16));
        } else {
            scratch.corrections += 1;
            self.exact().encode(&self.vocabulary, word.as_bytes(), &mut scratch.ids);
        }
        Ok(&scratch.ids)
    }
}

/// The first `bytes` bytes of `text`, less the character that they cut.
fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests;
