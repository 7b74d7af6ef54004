//! The model and its tokenizer behind the protocol: requests in, answers out, no HTTP.

use serde_json::{Value, json};
use xlstm_manifests::END_OF_TEXT;
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

use super::protocol::{
    CompletionRequest, DetokenizeRequest, MOST_TOKENS, MOST_TOKENS_TOGETHER, Prompts, TokenizeRequest,
};
use super::score::{Score, score};
use crate::error::{Result, TrainError};
use crate::model::{Generation, Model, Sampling};

/// The separator's name. As a whole text it stands for the separator, as the harness asks for it; inside a text it is
/// text like any other.
const END_OF_TEXT_NAME: &str = "<|endoftext|>";

/// Answers requests about one model.
pub struct Engine {
    name: String,
    model: Model,
    tokenizer: Gpt2Tokenizer,
}

/// Why a request has no answer: the client's fault (400) or ours (500).
pub(super) enum Refusal {
    Client(String),
    Server(String),
}

impl From<TrainError> for Refusal {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Usage(text) => Self::Client(text),
            other => Self::Server(other.to_string()),
        }
    }
}

type Answer<T = Value> = std::result::Result<T, Refusal>;

fn client<T>(text: impl Into<String>) -> Answer<T> {
    Err(Refusal::Client(text.into()))
}

/// A prompt with what was generated after it.
struct Completion {
    ids: Vec<i64>,
    prompt: usize,
    /// The generated text, cut at the first stop.
    text: String,
    reason: &'static str,
}

impl Engine {
    /// An engine for a model of GPT-2's tokens, known to clients by this name.
    ///
    /// # Errors
    /// When the model has fewer tokens than GPT-2.
    pub fn new(name: String, model: Model) -> Result<Self> {
        let (needed, found) = (u64::from(END_OF_TEXT) + 1, model.config().vocabulary_size);
        if found < needed {
            return Err(TrainError::Usage(format!(
                "expected a model of GPT-2's {needed} tokens or more, found {found}: text cannot be scored with it"
            )));
        }
        let tokenizer = Gpt2Tokenizer::new().map_err(|error| TrainError::Usage(error.to_string()))?;
        Ok(Self { name, model, tokenizer })
    }

    /// Answers a request: the path after the host, the method, the body.
    pub(super) fn answer(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let answer = match (method, path) {
            ("GET", "/health") => Ok(json!({"status": "ok"})),
            ("GET", "/v1/models") => Ok(
                json!({"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]}),
            ),
            ("GET", "/tokenizer_info") => Ok(json!({
                "tokenizer_class": "GPT2Tokenizer",
                "bos_token": END_OF_TEXT_NAME, "eos_token": END_OF_TEXT_NAME, "pad_token": END_OF_TEXT_NAME,
                "chat_template": null,
            })),
            ("POST", "/tokenize") => parse(body).and_then(|request| self.tokenize(&request)),
            ("POST", "/detokenize") => parse(body).and_then(|request| self.detokenize(&request)),
            ("POST", "/v1/completions") => parse(body).and_then(|request| self.complete(&request)),
            _ => return (404, failure("not_found", &format!("nothing answers {method} {path}"))),
        };
        match answer {
            Ok(value) => (200, value),
            Err(Refusal::Client(text)) => (400, failure("invalid_request_error", &text)),
            Err(Refusal::Server(text)) => (500, failure("server_error", &text)),
        }
    }

    fn encode(&self, text: &str) -> Answer<Vec<i64>> {
        if text == END_OF_TEXT_NAME {
            return Ok(vec![i64::from(END_OF_TEXT)]);
        }
        match self.tokenizer.encode(text) {
            Ok(ids) => Ok(ids.into_iter().map(i64::from).collect()),
            Err(error) => Err(Refusal::Server(error.to_string())),
        }
    }

    fn decode(&self, ids: &[i64]) -> String {
        // Ids past the vocabulary are padding rows that training never meets: they spell nothing.
        let ids: Vec<u16> = ids.iter().filter_map(|&id| u16::try_from(id).ok()).collect();
        self.tokenizer.decode_lossy(&ids)
    }

    /// A token as the protocol writes it: its text, or `bytes:` and its bytes where it is a part of a character.
    fn token(&self, id: i64) -> String {
        let bytes = u16::try_from(id).ok().and_then(|id| self.tokenizer.token_bytes(id)).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok("") => format!("<|{id}|>"),
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }

    fn tokenize(&self, request: &TokenizeRequest) -> Answer {
        let tokens = self.encode(&request.prompt)?;
        Ok(json!({"count": tokens.len(), "max_model_len": MOST_TOKENS, "tokens": tokens}))
    }

    fn detokenize(&self, request: &DetokenizeRequest) -> Answer {
        Ok(json!({"prompt": self.decode(&request.tokens)}))
    }

    fn complete(&self, request: &CompletionRequest) -> Answer {
        request.check().or_else(client)?;
        let prompts = self.prompts(request)?;
        let wanted = request.logprobs.is_some();
        // The commonest request of the harness: the prompt scored, and one token that one forward pass gives too.
        let at_once = wanted && request.temperature == 0.0 && request.max_tokens <= 1;
        let likely = request.logprobs.unwrap_or(0);
        let (completions, scores) = if at_once {
            let scores = score(&self.model, &prompts, likely)?;
            let completions =
                prompts.into_iter().zip(&scores).map(|(ids, score)| self.next(ids, score, request));
            (completions.collect(), Some(scores))
        } else {
            let completions = self.generate(prompts, request)?;
            let sequences: Vec<Vec<i64>> = completions.iter().map(|one| one.ids.clone()).collect();
            let scores = wanted.then(|| score(&self.model, &sequences, likely)).transpose()?;
            (completions, scores)
        };
        Ok(self.response(request, &completions, scores.as_deref()))
    }

    fn prompts(&self, request: &CompletionRequest) -> Answer<Vec<Vec<i64>>> {
        let prompts = match &request.prompt {
            Prompts::Text(text) => vec![self.encode(text)?],
            Prompts::Texts(texts) => texts.iter().map(|text| self.encode(text)).collect::<Answer<_>>()?,
            Prompts::Ids(ids) => vec![ids.clone()],
            Prompts::IdLists(lists) => lists.clone(),
        };
        let vocabulary = i64::try_from(self.model.config().vocabulary_size).unwrap_or(i64::MAX);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if prompts.iter().any(Vec::is_empty) || prompts.is_empty() {
            return client(
                "`prompt`: expected at least one token in each, found none; `<|endoftext|>` begins a document",
            );
        }
        if let Some(id) = prompts.iter().flatten().find(|&&id| !(0..vocabulary).contains(&id)) {
            return client(format!("`prompt`: expected ids from 0 to {}, found {id}", vocabulary - 1));
        }
        if longest.saturating_add(request.max_tokens) > MOST_TOKENS {
            return client(format!("expected at most {MOST_TOKENS} tokens of a prompt and its completion"));
        }
        if longest * prompts.len() > MOST_TOKENS_TOGETHER {
            return client(format!(
                "expected at most {MOST_TOKENS_TOGETHER} tokens in a request: send fewer prompts"
            ));
        }
        Ok(prompts)
    }

    /// At most one token after a prompt, from its score.
    fn next(&self, mut ids: Vec<i64>, score: &Score, request: &CompletionRequest) -> Completion {
        let prompt = ids.len();
        let best = score.likely.last().and_then(|likely| likely.first()).map(|&(id, _)| id);
        ids.extend(best.filter(|_| request.max_tokens == 1));
        let ended = ids.get(prompt) == Some(&i64::from(END_OF_TEXT));
        let text = if ended { String::new() } else { self.decode(&ids[prompt..]) };
        Completion { ids, prompt, text, reason: if ended { "stop" } else { "length" } }
    }

    fn generate(&self, prompts: Vec<Vec<i64>>, request: &CompletionRequest) -> Answer<Vec<Completion>> {
        let sampling = Sampling {
            temperature: request.temperature,
            top_k: 0,
            top_p: request.top_p,
            seed: request.seed.unwrap_or(0),
        };
        let stops = request.stops();
        let mut completions: Vec<Completion> = prompts
            .iter()
            .map(|ids| Completion {
                ids: ids.clone(),
                prompt: ids.len(),
                text: String::new(),
                reason: "length",
            })
            .collect();
        if request.max_tokens == 0 {
            return Ok(completions);
        }
        let mut generation = Generation::new(&self.model, &prompts, sampling)?;
        for _ in 0..request.max_tokens {
            for (one, token) in completions.iter_mut().zip(generation.next_tokens()?) {
                if one.reason == "stop" {
                    continue;
                }
                one.ids.push(token);
                if token == i64::from(END_OF_TEXT) {
                    one.reason = "stop";
                    continue;
                }
                one.text = self.decode(&one.ids[one.prompt..]);
                if let Some(end) = stops.iter().filter_map(|stop| one.text.find(stop)).min() {
                    one.text.truncate(end);
                    one.reason = "stop";
                }
            }
            if completions.iter().all(|one| one.reason == "stop") {
                break;
            }
        }
        Ok(completions)
    }

    fn response(
        &self,
        request: &CompletionRequest,
        completions: &[Completion],
        scores: Option<&[Score]>,
    ) -> Value {
        let choices: Vec<Value> = completions
            .iter()
            .enumerate()
            .map(|(index, one)| {
                let echoed = if request.echo { self.decode(&one.ids[..one.prompt]) } else { String::new() };
                let scored = scores.and_then(|scores| scores.get(index));
                json!({
                    "index": index,
                    "text": format!("{echoed}{}", one.text),
                    "finish_reason": one.reason,
                    "logprobs": scored.map(|score| self.logprobs(request, one, score)),
                })
            })
            .collect();
        let prompt: usize = completions.iter().map(|one| one.prompt).sum();
        let all: usize = completions.iter().map(|one| one.ids.len()).sum();
        json!({
            "object": "text_completion",
            "model": self.name,
            "choices": choices,
            "usage": {"prompt_tokens": prompt, "completion_tokens": all - prompt, "total_tokens": all},
        })
    }

    /// Log-probabilities of the returned tokens. The very first token has none: nothing comes before it.
    fn logprobs(&self, request: &CompletionRequest, one: &Completion, score: &Score) -> Value {
        let first = if request.echo { 0 } else { one.prompt };
        let (mut tokens, mut logs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        let mut offset = 0;
        for (place, &id) in one.ids.iter().enumerate().skip(first) {
            let likely = place.checked_sub(1).and_then(|before| score.likely.get(before));
            // A token that was taken from the score itself is the most likely one at its place.
            let log = place.checked_sub(1).and_then(|before| score.tokens.get(before).copied());
            let log = log.or_else(|| Some(likely?.first()?.1)).filter(|_| place > 0);
            let top = likely.map(|likely| {
                let some = likely.iter().take(request.logprobs.unwrap_or(0));
                some.map(|&(id, log)| (self.token(id), json!(log))).collect::<serde_json::Map<_, _>>()
            });
            let text = self.token(id);
            offsets.push(offset);
            offset += text.chars().count();
            tokens.push(text);
            logs.push(log);
            tops.push(top);
        }
        json!({"tokens": tokens, "token_logprobs": logs, "top_logprobs": tops, "text_offset": offsets})
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body)
        .or_else(|error| client(format!("the body is not the JSON that was expected: {error}")))
}

/// An error as the protocol writes it.
pub(super) fn failure(kind: &str, message: &str) -> Value {
    json!({"error": {"type": kind, "message": message}})
}
