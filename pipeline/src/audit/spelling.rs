//! `--text`: the stored tokens, decoded, are the text whose digest and length are stored.
//!
//! GPT-2's byte-level tokens spell their text exactly, so this needs no source: it proves that tokens and
//! digests belong together, at the price of decoding and hashing all text.

use std::path::Path;

use rayon::prelude::*;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::documents::count_words;
use xlstm_manifests::manifest::Layout;

use super::corpus::{Corpus, Meta};
use super::finding::{Check, Findings};
use super::progress::ByteProgress;
use crate::report::CommandError;
use crate::tokenizer::Gpt2Tokenizer;

/// Documents that one task looks at.
const CHUNK: usize = 256;

/// Decodes every document of the split in `folder`; returns how many there were.
///
/// # Errors
/// When the split cannot be opened.
pub(super) fn check(folder: &Path, findings: &mut Findings) -> Result<u64, CommandError> {
    let corpus = Corpus::open(folder)?;
    let tokenizer = Gpt2Tokenizer::new()?;
    let layout = corpus.manifest().layout;
    let progress = ByteProgress::over_bytes("audit --text", corpus.manifest().totals.text_bytes);
    for number in 0..corpus.shards() {
        let shard = &corpus.manifest().shards[number];
        let file = match layout {
            Layout::Packed => &shard.companion,
            Layout::Documents => &shard.file,
            Layout::Examples | Layout::Vectors => return Err(no_text()),
        };
        let file = file.path.as_str();
        let documents = corpus.shard(number)?;
        let problems: Vec<(usize, String)> = (0..documents.len().div_ceil(CHUNK))
            .into_par_iter()
            .flat_map_iter(|chunk| {
                let mut ids = Vec::new();
                let range = chunk * CHUNK..documents.len().min((chunk + 1) * CHUNK);
                range
                    .filter_map(|index| match documents.read(index, &mut ids) {
                        Ok(Some(meta)) => {
                            progress.advance(meta.bytes);
                            problem(&meta, &tokenizer.decode(&ids)).map(|p| (index, p))
                        }
                        Ok(None) => Some((index, "is missing".into())),
                        Err(error) => Some((index, error.to_string())),
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        for (index, problem) in problems {
            findings.add(file, Check::Text, format!("document {index}: {problem}"));
        }
    }
    Ok(corpus.documents())
}

fn no_text() -> CommandError {
    CommandError::Usage(
        "a split of examples has no text: leave --text out (--deep reads its source again)".into(),
    )
}

fn problem(meta: &Meta, text: &[u8]) -> Option<String> {
    if text.len() as u64 != meta.bytes {
        return Some(format!("expected {} bytes of text, found {} in its tokens", meta.bytes, text.len()));
    }
    let digest = Sha256Digest::of(text);
    if digest != meta.digest {
        return Some(format!("expected text of sha256 {}, found {digest} in its tokens", meta.digest));
    }
    let (chars, words) = meta.chars_and_words?;
    let text = std::str::from_utf8(text).ok()?;
    let found = (text.chars().count() as u64, count_words(text));
    (found != (chars, words))
        .then(|| format!("expected {chars} characters and {words} words, found {} and {}", found.0, found.1))
}
