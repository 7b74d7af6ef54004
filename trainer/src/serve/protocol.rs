//! The requests and answers of OpenAI's completions endpoint, as far as they have a meaning here. What would change an
//! answer and is not done is refused, never ignored.

use serde::Deserialize;
use serde_json::Value;

/// Most tokens of a prompt with what is to follow it.
pub(super) const MOST_TOKENS: usize = 1 << 17;
/// Most tokens of all prompts of a request, padding counted.
pub(super) const MOST_TOKENS_TOGETHER: usize = 1 << 20;
/// Most likely tokens that can be asked for at each place.
pub(super) const MOST_LIKELY: usize = 100;

/// One or several prompts, as text or as ids.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Prompts {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of ids.
    Ids(Vec<i64>),
    /// Several lists of ids.
    IdLists(Vec<Vec<i64>>),
}

/// One or several texts that end a completion.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// A request for completions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CompletionRequest {
    /// What to go on from, or what to score.
    pub prompt: Prompts,
    /// Tokens to generate at most.
    #[serde(default = "sixteen")]
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Only the most likely tokens that together reach this probability.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Return log-probabilities, and so many of the most likely tokens at each place.
    #[serde(default)]
    pub logprobs: Option<usize>,
    /// Return the prompt too.
    #[serde(default)]
    pub echo: bool,
    /// Texts that end a completion; they are not part of it.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Everything else that was sent.
    #[serde(flatten)]
    pub others: serde_json::Map<String, Value>,
}

fn sixteen() -> usize {
    16
}

fn one() -> f64 {
    1.0
}

impl CompletionRequest {
    /// The texts that end a completion.
    pub(super) fn stops(&self) -> Vec<&str> {
        let stops: Vec<&str> = match &self.stop {
            None => vec![],
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Several(texts)) => texts.iter().map(String::as_str).collect(),
        };
        stops.into_iter().filter(|text| !text.is_empty()).collect()
    }

    /// Refuses what would change the answer and is not done here.
    ///
    /// # Errors
    /// What cannot be done, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Bool(true) => false,
        };
        for key in
            ["stream", "suffix", "logit_bias", "frequency_penalty", "presence_penalty", "prompt_logprobs"]
        {
            if self.others.get(key).is_some_and(|value| !off(value)) {
                return Err(format!("`{key}` is not supported: leave it out"));
            }
        }
        for key in ["n", "best_of"] {
            if self.others.get(key).is_some_and(|value| value.as_f64().is_some_and(|number| number != 1.0)) {
                return Err(format!("`{key}` is 1 here: send the prompt several times, with other seeds"));
            }
        }
        if self.logprobs.is_some_and(|likely| likely > MOST_LIKELY) {
            return Err(format!("`logprobs`: expected at most {MOST_LIKELY}"));
        }
        if self.temperature.is_nan() || self.temperature < 0.0 {
            return Err(format!("`temperature`: expected 0 or more, found {}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(format!("`top_p`: expected above 0 and at most 1, found {}", self.top_p));
        }
        Ok(())
    }
}

/// Text to ids.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizeRequest {
    pub(super) prompt: String,
}

/// Ids to text.
#[derive(Debug, Deserialize)]
pub(super) struct DetokenizeRequest {
    pub(super) tokens: Vec<i64>,
}
