//! GPT-2's vocabulary, read out of OpenAI's merge list `vocab.bpe`.
//!
//! The file is a header line and 50,000 lines `left right`, spelled in the *byte-level alphabet*: each of
//! the 256 bytes has a printable character, so that any byte string can be written as text. Bytes that are
//! printable in Latin-1 stand for themselves, the other 68 are U+0100 and on, in byte order. The ids follow
//! from the file alone: 0–255 are the bytes in the order (printable ones, then the rest), 256 + i is the
//! concatenation of merge i's two tokens, and 50256 is `<|endoftext|>`, which no text encodes to.

use std::collections::HashMap;

use super::TokenizerError;

/// OpenAI's file, byte for byte.
pub(super) const VOCAB_BPE: &str = include_str!("../../assets/gpt2/vocab.bpe");

/// Ids of ordinary tokens: 256 bytes and 50,000 merges.
pub(super) const ORDINARY_TOKENS: usize = 50_256;

/// What `<|endoftext|>` decodes to.
const END_OF_TEXT: &[u8] = b"<|endoftext|>";

/// Each id's bytes, the merges, and the spelling that the library wants.
pub(super) struct Vocabulary {
    /// All tokens' bytes, one after the other in id order.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[offsets[id]..offsets[id + 1]]`.
    offsets: Vec<u32>,
    /// Each token's length in bytes (the longest has 128).
    lengths: Vec<u8>,
    /// The two ids that merge i joins into id 256 + i.
    pub(super) merges: Vec<(u16, u16)>,
}

impl Vocabulary {
    /// Reads the embedded merge list.
    ///
    /// # Errors
    /// A merge list that does not have the form above; the embedded one does (a test proves its digest).
    pub(super) fn read() -> Result<Self, TokenizerError> {
        let alphabet = byte_order();
        let mut tokens: Vec<Vec<u8>> = Vec::with_capacity(ORDINARY_TOKENS);
        let mut ids: HashMap<&str, u16> = HashMap::with_capacity(ORDINARY_TOKENS);
        let spelled: Vec<String> = alphabet.iter().map(|&(_, character)| character.to_string()).collect();
        for (id, &(byte, _)) in (0u16..).zip(&alphabet) {
            tokens.push(vec![byte]);
            ids.insert(&spelled[usize::from(id)], id);
        }
        let joined: Vec<String> = merge_lines().map(|line| line.replacen(' ', "", 1)).collect();
        let mut merges = Vec::with_capacity(joined.len());
        for ((line, whole), id) in merge_lines().zip(&joined).zip(256u16..) {
            let pair =
                line.split_once(' ').and_then(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
            let Some((left, right)) = pair else {
                return Err(TokenizerError::Vocabulary(format!("merge {line:?} joins an unknown token")));
            };
            let token = [tokens[usize::from(left)].as_slice(), &tokens[usize::from(right)]].concat();
            tokens.push(token);
            ids.insert(whole, id);
            merges.push((left, right));
        }
        if tokens.len() != ORDINARY_TOKENS {
            return Err(TokenizerError::Vocabulary(format!(
                "expected {ORDINARY_TOKENS} tokens, found {}",
                tokens.len()
            )));
        }
        Ok(Self::from_tokens(&tokens, merges))
    }

    fn from_tokens(tokens: &[Vec<u8>], merges: Vec<(u16, u16)>) -> Self {
        let bytes = tokens.concat();
        let mut offsets = vec![0u32];
        let mut end = 0u32;
        let mut lengths = Vec::with_capacity(tokens.len());
        for token in tokens {
            // No token is longer than 128 bytes, nor are all of them together longer than 1 MiB.
            end += token.len() as u32;
            offsets.push(end);
            lengths.push(token.len() as u8);
        }
        Self { bytes, offsets, lengths, merges }
    }

    /// The bytes that `id` stands for; `None` for an id outside the vocabulary.
    pub(super) fn token(&self, id: u16) -> Option<&[u8]> {
        if usize::from(id) == ORDINARY_TOKENS {
            return Some(END_OF_TEXT);
        }
        let start = *self.offsets.get(usize::from(id))? as usize;
        let end = *self.offsets.get(usize::from(id) + 1)? as usize;
        self.bytes.get(start..end)
    }

    /// The length in bytes of the token `id`; 0 outside the vocabulary.
    #[inline]
    pub(super) fn length(&self, id: u16) -> usize {
        self.lengths.get(usize::from(id)).copied().map_or(0, usize::from)
    }

    /// Whether `ids` are ordinary tokens whose bytes, joined, are `text`.
    pub(super) fn spells(&self, ids: &[u32], mut text: &[u8]) -> bool {
        for &id in ids {
            let token = u16::try_from(id).ok().filter(|&id| usize::from(id) < ORDINARY_TOKENS);
            let rest = token.and_then(|id| text.strip_prefix(self.token(id)?));
            let Some(rest) = rest else { return false };
            text = rest;
        }
        text.is_empty()
    }

    /// Each ordinary token's spelling in the byte-level alphabet, in id order.
    pub(super) fn spellings() -> impl Iterator<Item = String> {
        byte_order()
            .map(|(_, character)| character.to_string())
            .into_iter()
            .chain(merge_lines().map(|line| line.replacen(' ', "", 1)))
    }
}

/// The merge list's lines without its header.
pub(super) fn merge_lines() -> impl Iterator<Item = &'static str> {
    VOCAB_BPE.lines().filter(|line| !line.starts_with("#version") && !line.is_empty())
}

/// The 256 bytes in id order, each with its character of the byte-level alphabet.
fn byte_order() -> [(u8, char); 256] {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let shown = (0..=255u8).filter(|&byte| printable(byte)).map(|byte| (byte, char::from(byte)));
    let hidden = (0..=255u8).filter(|&byte| !printable(byte)).zip('\u{100}'..);
    let mut order = [(0, '\0'); 256];
    for (slot, entry) in order.iter_mut().zip(shown.chain(hidden)) {
        *slot = entry;
    }
    order
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use xlstm_manifests::Sha256Digest;

    use super::*;

    #[test]
    fn the_merge_list_writes_openais_other_file() {
        let vocabulary = Vocabulary::read().unwrap();
        let mut file = String::new();
        for id in 0..50_256u16 {
            let bytes = vocabulary.token(id).unwrap();
            file += &format!("{} {id}\n", base64::engine::general_purpose::STANDARD.encode(bytes));
        }
        assert_eq!(
            Sha256Digest::of(file.as_bytes()).to_string(),
            "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
            "r50k_base.tiktoken"
        );
    }

    #[test]
    fn every_token_spells_its_bytes_and_no_others() {
        let vocabulary = Vocabulary::read().unwrap();
        for id in 0..50_256u32 {
            let token = vocabulary.token(id as u16).unwrap();
            for rest in [&b""[..], b"restandmoreofit"] {
                let ids: Vec<u32> =
                    [id].into_iter().chain(rest.iter().map(|&byte| u32::from(byte - b'!'))).collect();
                let spelled: Vec<u8> =
                    ids.iter().flat_map(|&id| vocabulary.token(id as u16).unwrap()).copied().collect();
                assert!(vocabulary.spells(&ids, &spelled), "{id}");
                for at in 0..token.len() {
                    let mut wrong = spelled.clone();
                    wrong[at] ^= 1;
                    assert!(!vocabulary.spells(&ids, &wrong), "{id}");
                }
                assert!(!vocabulary.spells(&ids, &spelled[..spelled.len() - 1]), "{id}");
                assert!(!vocabulary.spells(&ids, &[&spelled[..], b"x"].concat()), "{id}");
            }
        }
        assert!(!vocabulary.spells(&[50_256], b"<|endoftext|>"));
        assert!(!vocabulary.spells(&[50_257], b"anything"));
    }
}
