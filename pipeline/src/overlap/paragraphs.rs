//! Which pieces of a text are compared: its paragraphs of at least 13 words.
//!
//! As in PALOMA's decontamination (its guideline G1, done with dolma's tools): text is split at newlines, and a
//! paragraph counts when it has at least 13 words by Unicode's segmentation (UAX 29). A word there has a
//! letter or a digit, so paragraphs of punctuation, white space and emoji alone have none and never count.
//! White space at a paragraph's ends is not part of it. Two paragraphs are the same when their bytes are.

use unicode_segmentation::UnicodeSegmentation as _;
use xlstm_manifests::Sha256Digest;

/// Words that a paragraph needs.
pub(super) const WORDS: usize = 13;

/// No text of fewer bytes has 13 words: words of one byte need a separator between them, and those that do
/// not are ideographs of three bytes.
const BYTES: usize = 25;

/// The paragraphs of `text` that are long enough in bytes. Counting words costs far more than a digest, so
/// it is left to whoever has to know ([`has_words`]).
pub(super) fn candidates(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').map(str::trim).filter(|paragraph| paragraph.len() >= BYTES)
}

/// Whether a paragraph has at least [`WORDS`] words.
pub(super) fn has_words(paragraph: &str) -> bool {
    paragraph.unicode_words().nth(WORDS - 1).is_some()
}

/// What a paragraph is known by: the first 128 bits of its SHA-256.
pub(super) fn paragraph_key(paragraph: &str) -> u128 {
    head(&Sha256Digest::of(paragraph.as_bytes()))
}

/// What a whole document is known by. A document is another thing than a paragraph of the same text.
pub(super) fn document_key(digest: &Sha256Digest) -> u128 {
    !head(digest)
}

fn head(digest: &Sha256Digest) -> u128 {
    digest.0[..16].iter().fold(0, |key, &byte| (key << 8) | u128::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Vec<&str> {
        candidates(text).filter(|paragraph| has_words(paragraph)).collect()
    }

    #[test]
    fn thirteen_words_count_and_twelve_do_not() {
        let words = |n: usize| vec!["word"; n].join(" ");
        assert_eq!(counted(&words(12)), Vec::<&str>::new());
        let text = format!("  {} \r\n{}\n\n", words(13), words(5));
        assert_eq!(counted(&text), [words(13)]);
        let shortest = vec!["a"; 13].join(" ");
        assert_eq!((shortest.len(), counted(&shortest).len()), (BYTES, 1));
        assert_eq!(counted("一二三四五六七八九十百千万").len(), 1);
    }

    #[test]
    fn punctuation_and_emoji_have_no_words() {
        let text = format!("{}\n{}\n{}", "— ! ".repeat(40), "🙂 ".repeat(40), "*".repeat(200));
        assert_eq!(counted(&text), Vec::<&str>::new());
    }

    #[test]
    fn a_document_is_not_its_only_paragraph() {
        let text = "the same text";
        assert_ne!(paragraph_key(text), document_key(&Sha256Digest::of(text.as_bytes())));
    }
}
