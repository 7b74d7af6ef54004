//! A document as a split takes it.

use std::sync::Arc;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::stored::Stored;

/// What is known of a document beside its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentMeta {
    /// Record number in its input.
    pub record: u64,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Unicode scalar values of its text, in a split stored by document.
    pub chars: u64,
    /// Pieces between runs of white space, likewise.
    pub words: u64,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
    /// The set it counts towards.
    pub set: Option<String>,
    /// The source's own name for it.
    pub id: Option<String>,
    /// The license that it carries itself.
    pub license: Option<String>,
    /// Where it says that it is from.
    pub source: Option<String>,
    /// Whether its source cut it.
    pub truncated: bool,
}

impl DocumentMeta {
    /// Of an example of this digest: it has no text.
    #[must_use]
    pub fn of_example(record: u64, digest: Sha256Digest) -> Self {
        Self {
            record,
            bytes: 0,
            chars: 0,
            words: 0,
            digest,
            set: None,
            id: None,
            license: None,
            source: None,
            truncated: false,
        }
    }
}

/// A document of the current input, as the builder takes it.
#[derive(Debug, Clone, Copy)]
pub struct TokenizedDocument<'a> {
    /// What is known of it.
    pub meta: &'a DocumentMeta,
    /// Tokens, no separator.
    pub ids: &'a [u16],
    /// The tokens among which `ids` lie, and from where on, if they may be kept: they then need not be copied by whoever
    /// puts documents in order.
    pub kept: Option<(&'a Arc<Vec<u16>>, usize)>,
    /// The row itself, in a split whose targets are stored.
    pub example: Option<Stored<'a>>,
}

impl<'a> TokenizedDocument<'a> {
    /// An example as a document: all its positions are tokens.
    #[must_use]
    pub fn of_example(meta: &'a DocumentMeta, example: Stored<'a>) -> Self {
        let ids = match &example {
            Stored::Tokens(example) => example.input_ids,
            Stored::Numbers(_) => &[],
        };
        Self { meta, ids, kept: None, example: Some(example) }
    }

    /// How many tokens it counts as, separator left out.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.example.as_ref().map_or(self.ids.len(), Stored::positions)
    }
}
