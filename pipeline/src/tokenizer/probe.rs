//! Strings whose ids are a fingerprint of the tokenizer's behavior.
//!
//! A vocabulary's digest does not show a change of Unicode tables, of the splitting pattern's engine or of
//! a cache; the ids of awkward strings do. `probe.jsonl` holds one JSON string a line and is append-only:
//! a line that was ever hashed stays as it is. The digest is SHA-256 over each string's ids as
//! little-endian u16 followed by 0xffff, which is no id.

use sha2::{Digest, Sha256};
use xlstm_manifests::Sha256Digest;

use super::{EncodeScratch, Gpt2Tokenizer, TokenizerError};

/// The probe strings, one JSON string a line.
const PROBE: &str = include_str!("../../assets/gpt2/probe.jsonl");

/// SHA-256 over the ids of the probe strings.
pub(super) fn digest(tokenizer: &Gpt2Tokenizer) -> Result<Sha256Digest, TokenizerError> {
    let mut hash = Sha256::new();
    let mut scratch = EncodeScratch::default();
    let mut ids = Vec::new();
    for (number, line) in PROBE.lines().enumerate() {
        let text: String = serde_json::from_str(line)
            .map_err(|error| TokenizerError::Vocabulary(format!("probe string {number}: {error}")))?;
        ids.clear();
        tokenizer.encode_into(&mut scratch, &text, &mut ids)?;
        for id in ids.iter().copied().chain([u16::MAX]) {
            hash.update(id.to_le_bytes());
        }
    }
    Ok(Sha256Digest(hash.finalize().into()))
}
