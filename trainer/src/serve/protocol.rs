//! The requests of OpenAI's completions protocol and of vLLM's tokenizer endpoints, as far as they have a meaning here.
//!
//! Every key of a request is either obeyed, or has the value that changes nothing ([`UNSUPPORTED`]), or is refused:
//! an option that is ignored gives an answer to another question. `null` stands for a key that was left out, as in
//! the protocol. A key that occurs twice is refused, because JSON does not say which of the two counts.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::{Value, json};

/// Most tokens of a prompt with what is to follow it.
pub(super) const MAX_TOKENS: usize = 1 << 17;
/// Most tokens of all prompts of a request, padding counted.
pub(super) const MAX_TOKENS_TOGETHER: usize = 1 << 20;
/// Most prompts of a request that scores them.
pub(super) const MAX_PROMPTS: usize = 4096;
/// Most prompts of a request that goes on from them: each has a state of its own.
pub(super) const MAX_GENERATED: usize = 64;
/// Most likely tokens that can be asked for at each place.
pub(super) const MAX_LIKELY: usize = 100;
/// Most texts that end a completion.
pub(super) const MAX_STOPS: usize = 64;

/// One or several prompts, as text or as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompts {
    /// Texts; one of them for a single string.
    Texts(Vec<String>),
    /// Lists of ids; one of them for a single list.
    Ids(Vec<Vec<i64>>),
}

/// A request for completions.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// What to go on from, or what to score.
    pub prompt: Prompts,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens that together reach this probability.
    pub top_p: f64,
    /// Only this many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Return log-probabilities, and so many of the most likely tokens at each place.
    pub logprobs: Option<usize>,
    /// Return the prompt too.
    pub echo: bool,
    /// Texts that end a completion; they are not part of it. None is empty.
    pub stop: Vec<String>,
    /// Seed of the draws; `None`: other draws for each request.
    pub seed: Option<u64>,
    /// Send the text while it is generated, as server-sent events.
    pub stream: bool,
    /// With `stream`: the numbers of tokens in an event of their own at the end.
    pub usage: bool,
}

/// Text to ids.
#[derive(Debug)]
pub(super) struct TokenizeRequest {
    pub(super) prompt: String,
}

/// Ids to text.
#[derive(Debug)]
pub(super) struct DetokenizeRequest {
    pub(super) tokens: Vec<i64>,
}

/// Keys that this server does not obey, with the values at which they change nothing, and what to do instead.
const UNSUPPORTED: &[(&str, &[Neutral], &str)] = &[
    ("suffix", &[Neutral::Empty], LEAVE_OUT),
    ("logit_bias", &[Neutral::Empty], LEAVE_OUT),
    ("frequency_penalty", &[Neutral::Number(0.0)], LEAVE_OUT),
    ("presence_penalty", &[Neutral::Number(0.0)], LEAVE_OUT),
    ("repetition_penalty", &[Neutral::Number(1.0)], LEAVE_OUT),
    ("length_penalty", &[Neutral::Number(1.0)], LEAVE_OUT),
    ("min_p", &[Neutral::Number(0.0)], LEAVE_OUT),
    ("min_tokens", &[Neutral::Number(0.0)], LEAVE_OUT),
    ("max_completion_tokens", &[], "use `max_tokens`"),
    ("ignore_eos", &[Neutral::False], LEAVE_OUT),
    ("include_stop_str_in_output", &[Neutral::False], LEAVE_OUT),
    ("stop_token_ids", &[Neutral::Empty], "use `stop` with their text"),
    ("truncate_prompt_tokens", &[], "send the tokens that count"),
    ("prompt_logprobs", &[], "use `echo` with `logprobs`"),
    ("use_beam_search", &[Neutral::False], LEAVE_OUT),
    ("n", &[Neutral::Number(1.0)], "it is 1 here: send the prompt several times, with other seeds"),
    ("best_of", &[Neutral::Number(1.0)], "it is 1 here: send the prompt several times, with other seeds"),
    // GPT-2's tokenizer puts no special token before a text, whatever this says.
    ("add_special_tokens", &[Neutral::False, Neutral::True], LEAVE_OUT),
];
const LEAVE_OUT: &str = "leave it out";

/// A value at which a key changes nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    False,
    True,
    Number(f64),
    /// `""`, `[]` or `{}`.
    Empty,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Self::False, Value::Bool(value)) => !value,
            (Self::True, Value::Bool(value)) => *value,
            (Self::Number(neutral), Value::Number(number)) => number.as_f64() == Some(neutral),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Empty, Value::Array(items)) => items.is_empty(),
            (Self::Empty, Value::Object(entries)) => entries.is_empty(),
            _ => false,
        }
    }
}

/// The members of a JSON object in their order, keys that occur twice included.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// What is left of a request while its keys are taken out one by one.
struct Body(Vec<(String, Value)>);

impl Body {
    /// The members of the body, less those that are `null`.
    fn parse(body: &[u8]) -> Result<Self, String> {
        let Members(members) = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not the JSON that was expected: {error}"))?;
        let mut seen = HashSet::new();
        if let Some((key, _)) = members.iter().find(|(key, _)| !seen.insert(key.as_str())) {
            return Err(format!("`{}`: expected once, found twice", shown(key)));
        }
        Ok(Self(members.into_iter().filter(|(_, value)| !value.is_null()).collect()))
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        let index = self.0.iter().position(|(other, _)| other == key)?;
        Some(self.0.swap_remove(index).1)
    }

    fn required(&mut self, key: &str, expected: &str) -> Result<Value, String> {
        self.take(key).ok_or_else(|| format!("`{key}`: expected {expected}, found none"))
    }

    /// A value that `read` understands; `None` where the key was left out.
    fn optional<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| format!("`{key}`: expected {expected}, found {}", short(&value)))
    }

    /// Takes keys that name things for the client alone.
    fn names(&mut self, keys: &[&str]) -> Result<(), String> {
        for key in keys {
            self.optional(key, "a text", |value| value.as_str().map(|_| ()))?;
        }
        Ok(())
    }

    /// Refuses whatever was not taken and changes something, or is not known.
    fn finish(self) -> Result<(), String> {
        for (key, value) in &self.0 {
            let Some((_, neutral, advice)) = UNSUPPORTED.iter().find(|(known, ..)| known == key) else {
                return Err(format!("`{}` is not known here: leave it out", shown(key)));
            };
            if !neutral.iter().any(|neutral| neutral.is(value)) {
                return Err(format!("`{key}` is not supported ({}): {advice}", short(value)));
            }
        }
        Ok(())
    }
}

impl CompletionRequest {
    /// Reads a body of `POST /v1/completions`.
    ///
    /// # Errors
    /// The first key that is missing, has a value without a meaning, or is not done here; in words.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let mut body = Body::parse(body)?;
        let prompt = prompts(&body.required("prompt", "text, ids, or a list of either")?)?;
        let at_most = |largest: usize| {
            move |value: &Value| {
                let number = usize::try_from(value.as_u64()?).ok()?;
                (number <= largest).then_some(number)
            }
        };
        let whole = format!("a whole number from 0 to {MAX_TOKENS}");
        let request = Self {
            prompt,
            max_tokens: body.optional("max_tokens", &whole, at_most(MAX_TOKENS))?.unwrap_or(16),
            temperature: body
                .optional("temperature", "a number of 0 or more", |value| {
                    value.as_f64().filter(|&number| number >= 0.0 && number.is_finite())
                })?
                .unwrap_or(1.0),
            top_p: body
                .optional("top_p", "a number above 0 and at most 1", |value| {
                    value.as_f64().filter(|&number| number > 0.0 && number <= 1.0)
                })?
                .unwrap_or(1.0),
            top_k: body
                .optional("top_k", "a whole number above 0; 0 or -1 for all tokens", top_k)?
                .unwrap_or(0),
            logprobs: body.optional(
                "logprobs",
                &format!("a whole number from 0 to {MAX_LIKELY}"),
                at_most(MAX_LIKELY),
            )?,
            echo: body.optional("echo", "true or false", Value::as_bool)?.unwrap_or(false),
            stop: body
                .optional("stop", &format!("a text or a list of at most {MAX_STOPS} texts"), stops)?
                .unwrap_or_default(),
            seed: body.optional("seed", "a whole number of 64 bits", seed)?,
            stream: body.optional("stream", "true or false", Value::as_bool)?.unwrap_or(false),
            usage: body
                .optional("stream_options", "an object with `include_usage`, true or false", include_usage)?
                .unwrap_or(false),
        };
        if request.stream && request.logprobs.is_some() {
            return Err("`stream`: log-probabilities are not sent while a text is generated: leave `stream` or `logprobs` out".into());
        }
        if request.usage && !request.stream {
            return Err("`stream_options`: has a meaning with `stream` alone: leave it out".into());
        }
        body.names(&["model", "user"])?;
        body.finish()?;
        Ok(request)
    }
}

impl TokenizeRequest {
    /// Reads a body of `POST /tokenize`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let mut body = Body::parse(body)?;
        let prompt = body.required("prompt", "a text")?;
        let Value::String(prompt) = prompt else {
            return Err(format!("`prompt`: expected a text, found {}", short(&prompt)));
        };
        body.names(&["model"])?;
        body.finish()?;
        Ok(Self { prompt })
    }
}

impl DetokenizeRequest {
    /// Reads a body of `POST /detokenize`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let mut body = Body::parse(body)?;
        let tokens = body.required("tokens", "a list of ids")?;
        let tokens = ids(&tokens)
            .ok_or_else(|| format!("`tokens`: expected a list of ids, found {}", short(&tokens)))?;
        body.names(&["model"])?;
        body.finish()?;
        Ok(Self { tokens })
    }
}

fn prompts(value: &Value) -> Result<Prompts, String> {
    let refused = || format!("`prompt`: expected text, ids, or a list of either, found {}", short(value));
    let items = match value {
        Value::String(text) => return Ok(Prompts::Texts(vec![text.clone()])),
        Value::Array(items) => items,
        _ => return Err(refused()),
    };
    match items.first() {
        Some(Value::String(_)) => texts(value).map(Prompts::Texts).ok_or_else(refused),
        Some(Value::Array(_)) => {
            let lists: Option<Vec<_>> = items.iter().map(ids).collect();
            lists.map(Prompts::Ids).ok_or_else(refused)
        }
        _ => ids(value).map(|ids| Prompts::Ids(vec![ids])).ok_or_else(refused),
    }
}

fn ids(value: &Value) -> Option<Vec<i64>> {
    value.as_array()?.iter().map(Value::as_i64).collect()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// An empty text would end every completion before it began: it counts as none.
fn stops(value: &Value) -> Option<Vec<String>> {
    let stops = value.as_str().map_or_else(|| texts(value), |text| Some(vec![text.to_owned()]))?;
    (stops.len() <= MAX_STOPS).then(|| stops.into_iter().filter(|text| !text.is_empty()).collect())
}

fn top_k(value: &Value) -> Option<usize> {
    match value.as_i64()? {
        -1 => Some(0),
        number => usize::try_from(number).ok(),
    }
}

/// `{"include_usage": true}`; without the key, `false`.
fn include_usage(value: &Value) -> Option<bool> {
    let options = value.as_object()?;
    match options.get("include_usage") {
        Some(value) if options.len() == 1 => value.as_bool(),
        None if options.is_empty() => Some(false),
        _ => None,
    }
}

#[expect(clippy::cast_sign_loss, reason = "a seed is 64 bits, whatever their sign")]
fn seed(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64))
}

/// A value for a message: its head where it is long.
fn short(value: &Value) -> String {
    shown(&value.to_string())
}

fn shown(text: &str) -> String {
    const SHOWN: usize = 60;
    let head: String =
        text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().count() > SHOWN { format!("{head}…") } else { head }
}

/// An error as the protocol writes it.
pub(super) fn failure(kind: &str, message: &str) -> Value {
    json!({"error": {"type": kind, "message": message}})
}
