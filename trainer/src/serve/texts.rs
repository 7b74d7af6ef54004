//! Text and tokens: the tokenizer behind the protocol, without the model.

use serde_json::{Value, json};
use xlstm_manifests::END_OF_TEXT;
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

use super::engine::{Answer, Refusal, client, settle};
use super::protocol::{DetokenizeRequest, MAX_TOKENS, TokenizeRequest};
use crate::error::{Result, TrainError};

/// The separator's name. As a whole text it stands for the separator, as the harness asks for it; inside a text it is
/// text like any other.
pub(super) const END_OF_TEXT_NAME: &str = "<|endoftext|>";

/// The text of tokens that come one after the other: what each adds is spelled, and what a later one may change, the bytes of
/// half a character, is spelled anew. The text is that of all bytes together.
#[derive(Debug, Clone, Default)]
pub(super) struct Spelling {
    /// The text so far; half a character at its end is U+FFFD.
    text: String,
    /// Bytes of the text that no later token changes.
    settled: usize,
    /// The bytes of half a character, after those.
    open: Vec<u8>,
}

impl Spelling {
    /// The text so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Adds bytes; from which byte of the text on it is new.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let before = self.settled;
        self.text.truncate(before);
        self.open.extend_from_slice(bytes);
        let mut spelled = 0;
        for chunk in self.open.utf8_chunks() {
            self.text.push_str(chunk.valid());
            spelled += chunk.valid().len();
            // What is cut short at the very end may be completed; whatever else is no UTF-8 stays so.
            let invalid = chunk.invalid();
            let last = spelled + invalid.len() == self.open.len();
            let half = last && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if !half {
                spelled += invalid.len();
                if !invalid.is_empty() {
                    self.text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        self.settled = self.text.len();
        self.open.drain(..spelled);
        if !self.open.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        before
    }

    /// Ends it here, at a boundary of characters.
    pub(super) fn truncate(&mut self, end: usize) {
        self.text.truncate(end);
        self.settled = self.settled.min(end);
        self.open.clear();
    }
}

/// A tokenizer that answers requests.
pub(super) struct Texts {
    tokenizer: Gpt2Tokenizer,
}

impl Texts {
    /// GPT-2's tokenizer.
    ///
    /// # Errors
    /// When its own files are damaged.
    pub(super) fn new() -> Result<Self> {
        let tokenizer = Gpt2Tokenizer::new().map_err(|error| TrainError::Internal(error.to_string()))?;
        Ok(Self { tokenizer })
    }

    /// Answers a request of the tokenizer's endpoints.
    pub(super) fn answer(&self, path: &str, body: &[u8]) -> (u16, Value) {
        settle(match path {
            "/tokenize" => {
                TokenizeRequest::parse(body).or_else(client).and_then(|request| self.tokenize(&request))
            }
            _ => DetokenizeRequest::parse(body).or_else(client).and_then(|request| self.detokenize(&request)),
        })
    }

    pub(super) fn encode(&self, text: &str) -> Answer<Vec<i64>> {
        if text == END_OF_TEXT_NAME {
            return Ok(vec![i64::from(END_OF_TEXT)]);
        }
        match self.tokenizer.encode(text) {
            Ok(ids) => Ok(ids.into_iter().map(i64::from).collect()),
            Err(error) => Err(Refusal::Server(error.to_string())),
        }
    }

    pub(super) fn decode(&self, ids: &[i64]) -> String {
        // Ids past the vocabulary are padding rows that training never meets: they spell nothing.
        let ids: Vec<u16> = ids.iter().filter_map(|&id| u16::try_from(id).ok()).collect();
        self.tokenizer.decode_lossy(&ids)
    }

    /// The bytes of a token; none of an id past the vocabulary.
    pub(super) fn bytes(&self, id: i64) -> &[u8] {
        u16::try_from(id).ok().and_then(|id| self.tokenizer.token_bytes(id)).unwrap_or_default()
    }

    /// A token as the protocol writes it: its text, or `bytes:` and its bytes where it is a part of a character.
    pub(super) fn token(&self, id: i64) -> String {
        let bytes = self.bytes(id);
        match std::str::from_utf8(bytes) {
            Ok("") => format!("<|{id}|>"),
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }

    fn tokenize(&self, request: &TokenizeRequest) -> Answer {
        let tokens = self.encode(&request.prompt)?;
        Ok(json!({"count": tokens.len(), "max_model_len": MAX_TOKENS, "tokens": tokens}))
    }

    fn detokenize(&self, request: &DetokenizeRequest) -> Answer {
        let known = 0..=i64::from(END_OF_TEXT);
        if let Some(id) = request.tokens.iter().find(|id| !known.contains(id)) {
            return client(format!("`tokens`: expected ids from 0 to {END_OF_TEXT}, found {id}"));
        }
        Ok(json!({"prompt": self.decode(&request.tokens)}))
    }

    /// For each token the character of their text, counted from 0, that its first byte belongs to. Tokens that share a
    /// character have the same; bytes that are no UTF-8 are one U+FFFD, as in the text.
    pub(super) fn offsets(&self, ids: &[i64]) -> Vec<usize> {
        let bytes: Vec<&[u8]> = ids.iter().map(|&id| self.bytes(id)).collect();
        let text = bytes.concat();
        let (mut starts, mut position) = (Vec::new(), 0);
        for chunk in text.utf8_chunks() {
            starts.extend(chunk.valid().char_indices().map(|(index, _)| position + index));
            position += chunk.valid().len();
            if !chunk.invalid().is_empty() {
                starts.push(position);
                position += chunk.invalid().len();
            }
        }
        let mut begin = 0;
        let offset = |token: &&[u8]| {
            let at = begin;
            begin += token.len();
            // The last character that begins here or before; past the end, the number of characters.
            if at == text.len() { starts.len() } else { starts.partition_point(|&start| start <= at) - 1 }
        };
        bytes.iter().map(offset).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_grows_is_that_of_all_its_bytes() {
        let texts = ["naïve 日本語 🙂 end", "plain", "", "\u{fffd}x"];
        let mut cases: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        // No UTF-8: a lone continuation, a start without its end, one that is cut by another start, bytes that never occur.
        cases.extend([
            b"a\x80b".to_vec(),
            b"\xe6\x97a".to_vec(),
            b"\xf0\x9f\xe6\x97\xa5".to_vec(),
            b"\xff\xc3".to_vec(),
        ]);
        for bytes in cases {
            for size in 1..=4 {
                let (mut spelling, mut whole) = (Spelling::default(), Vec::new());
                for piece in bytes.chunks(size) {
                    let before = spelling.text().to_owned();
                    whole.extend_from_slice(piece);
                    let from = spelling.push(piece);
                    assert_eq!(spelling.text(), String::from_utf8_lossy(&whole), "{bytes:?} by {size}");
                    assert_eq!(spelling.text().get(..from), before.get(..from), "what is old stays");
                }
            }
        }
    }
}
