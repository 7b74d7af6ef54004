//! GPT-2's tokenizer: text to ids that fit in 16 bits, at the speed of memory, and proved as it goes.
//!
//! GPT-2 splits text into words with a regular expression and merges each word's bytes into tokens
//! (byte-level byte-pair encoding; Radford et al. 2019). The work is done by the library `tokenizers`,
//! built from OpenAI's merge list, which is part of this crate.
//!
//! * Text never becomes a document boundary: `<|endoftext|>` inside a document is encoded as the plain text
//!   that it is, so id 50256 only ever stands where the packer puts it.
//! * Every document's ids are decoded again while they are hot and compared with its bytes. The library
//!   looks words up by digests of 32 and 64 bits; two words may share one. It is rare, and a wrong token in
//!   a trillion would never be noticed later. Where the comparison fails, [`exact`] encodes the words anew.
//! * Documents of any length: text is encoded in pieces that end where the splitting pattern always ends a
//!   match ([`pieces`]), so memory does not grow with the document.

mod exact;
mod pieces;
mod probe;
mod vocabulary;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use thiserror::Error;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BpeConfig, BpeScratch, PipelineBPE};
use tokenizers::pipeline::{Model, PipelineToken, PreTokenizer, PreTokenizerScratch, Span};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use xlstm_manifests::{Sha256Digest, manifest};

use exact::Merges;
use vocabulary::{ORDINARY_TOKENS, VOCAB_BPE, Vocabulary};

/// `<|endoftext|>`: the id that ends every document, and that no text encodes to.
pub const EOS: u16 = xlstm_manifests::END_OF_TEXT;

/// Number of ids: 256 bytes, 50,000 merges and [`EOS`].
pub const VOCABULARY_SIZE: usize = 50_257;

/// GPT-2's splitting pattern, as its authors wrote it.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The exact version of the library that Cargo.toml pins; a test compares it with the lock file.
const ENGINE_VERSION: &str = "1.0.0-rc.3";

/// Bytes after which a document is cut at the next certain boundary. Small enough for the working buffers
/// (about 20 bytes for each byte of a piece) to stay in the processor's cache.
const PIECE_BYTES: usize = 64 << 10;

/// Slots of each thread's table of words already met (32 bytes each).
const WORD_CACHE_SLOTS: usize = 1 << 16;

/// Why text could not be tokenized.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The embedded merge list is not GPT-2's.
    #[error("the embedded GPT-2 vocabulary is damaged: {0}; rebuild from a clean checkout")]
    Vocabulary(String),
    /// The library refused.
    #[error("the tokenizer library failed: {0}")]
    Library(String),
    /// One piece without any boundary is longer than the library's 32-bit offsets reach.
    #[error("a run of {bytes} bytes has no place to cut; at most {} can be tokenized at once", u32::MAX)]
    PieceTooLong {
        /// Length of the run.
        bytes: usize,
    },
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
    /// The slow path's table, made when first needed.
    merges: OnceLock<Merges>,
}

/// One thread's working buffers and its table of words already met. Keep it from call to call.
#[derive(Default)]
pub struct EncodeScratch {
    split: PreTokenizerScratch,
    words: Vec<Span>,
    model: Option<BpeScratch>,
    tokens: Vec<PipelineToken>,
    /// Pieces for which the library's ids did not decode to the text, and that [`exact`] encoded.
    corrected_pieces: u64,
}

impl EncodeScratch {
    /// How many pieces the library got wrong so far (and that were put right before anyone saw them).
    #[must_use]
    pub fn corrected_pieces(&self) -> u64 {
        self.corrected_pieces
    }
}

impl Gpt2Tokenizer {
    /// Builds the tokenizer from the embedded merge list.
    ///
    /// # Errors
    /// A damaged vocabulary, or one that the library refuses.
    pub fn new() -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::read()?;
        let merges = vocabulary::merge_lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(left, right)| (left.to_owned(), right.to_owned()))
            .collect();
        let model = PipelineBPE::from_config(BpeConfig {
            vocab: Vocabulary::spellings().zip(0u32..).collect(),
            merges,
            byte_level: true,
            cache_capacity: WORD_CACHE_SLOTS,
            ..BpeConfig::default()
        })?;
        let pattern = SplitPattern::Regex(PATTERN.to_owned());
        let split = Split::native(pattern, SplitDelimiterBehavior::Isolated, false)?;
        Ok(Self { inner: Arc::new(Inner { split, model, vocabulary, merges: OnceLock::new() }) })
    }

    /// Appends the ids of `text` to `out`; never appends [`EOS`]. After an error `out` is as before.
    ///
    /// # Errors
    /// Text that has 4 GiB without a place to cut, or a failure of the library.
    pub fn encode_into(
        &self,
        scratch: &mut EncodeScratch,
        text: &str,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        self.encode_in_pieces(scratch, text, PIECE_BYTES, out)
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

    fn encode_in_pieces(
        &self,
        scratch: &mut EncodeScratch,
        text: &str,
        piece_bytes: usize,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        let before = out.len();
        for piece in pieces::pieces(text, piece_bytes) {
            if let Err(error) = self.encode_piece(scratch, piece, out) {
                out.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    fn encode_piece(
        &self,
        scratch: &mut EncodeScratch,
        piece: &str,
        out: &mut Vec<u16>,
    ) -> Result<(), TokenizerError> {
        if u32::try_from(piece.len()).is_err() {
            return Err(TokenizerError::PieceTooLong { bytes: piece.len() });
        }
        let inner = &*self.inner;
        scratch.words.clear();
        scratch.tokens.clear();
        inner.split.pre_tokenize(piece, &mut scratch.split, &mut scratch.words)?;
        let model = scratch.model.get_or_insert_with(|| inner.model.init_scratch());
        inner.model.tokenize_spans(piece, &scratch.words, model, &mut scratch.tokens)?;
        let before = out.len();
        if !inner.append_if_true(piece.as_bytes(), PipelineToken::cast_slice(&scratch.tokens), out) {
            out.truncate(before);
            scratch.corrected_pieces += 1;
            let merges = inner.merges.get_or_init(|| Merges::new(&inner.vocabulary));
            for word in &scratch.words {
                merges.encode(&inner.vocabulary, &piece.as_bytes()[word.range()], out);
            }
        }
        Ok(())
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
            end_of_text: u32::from(EOS),
            special_tokens: "encode-as-text".to_owned(),
            probe_sha256: probe::digest(self)?,
        })
    }
}

impl Inner {
    /// Appends `ids` if they decode to exactly `text`. What was appended is undefined if not.
    #[inline]
    fn append_if_true(&self, text: &[u8], ids: &[u32], out: &mut Vec<u16>) -> bool {
        let mut rest = text;
        out.reserve(ids.len());
        for &id in ids {
            if id as usize >= ORDINARY_TOKENS {
                return false;
            }
            let Some(length) = self.vocabulary.starts_with_token(rest, id) else { return false };
            rest = &rest[length..];
            out.push(id as u16);
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests;
