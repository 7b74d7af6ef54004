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

    /// A token as the protocol writes it: its text, or `bytes:` and its bytes where it is a part of a character.
    pub(super) fn token(&self, id: i64) -> String {
        let bytes = u16::try_from(id).ok().and_then(|id| self.tokenizer.token_bytes(id)).unwrap_or_default();
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
        let bytes: Vec<&[u8]> = ids
            .iter()
            .map(|&id| {
                u16::try_from(id).ok().and_then(|id| self.tokenizer.token_bytes(id)).unwrap_or_default()
            })
            .collect();
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
