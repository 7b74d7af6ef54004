//! The model and its tokenizer behind the protocol: requests in, answers out, no HTTP.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use xlstm_manifests::END_OF_TEXT;

use super::completion::{Completion, usage};
use super::protocol::{
    CompletionRequest, MAX_GENERATED, MAX_PROMPTS, MAX_TOKENS, MAX_TOKENS_TOGETHER, Prompts, failure,
};
use super::queue::{Asked, Wanted, stopping};
use super::score::{Score, score};
use super::sending::{Receiver, Sending};
use super::texts::{END_OF_TEXT_NAME, Texts};
use super::together::Together;
use crate::error::{Result, TrainError};
use crate::guard::guarded;
use crate::model::{Generation, Model, Sampling};

/// Answers requests about one model.
pub struct Engine {
    name: String,
    model: Model,
    texts: Texts,
    /// Requests so far: a part of each answer's id.
    answered: AtomicU64,
}

/// Who answers a request.
pub(super) enum Route {
    /// Anybody, at once: status and answer.
    AtOnce(u16, Value),
    /// The thread that owns the model.
    Model,
    /// The thread that has a tokenizer.
    Texts,
}

/// Who answers a request: by its method and the path after the host. `name` is the model's.
pub(super) fn route(name: &str, method: &str, path: &str) -> Route {
    match (method, path) {
        ("GET", "/health") => Route::AtOnce(200, json!({"status": "ok"})),
        ("GET", "/v1/models") => Route::AtOnce(
            200,
            json!({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "local"}]}),
        ),
        ("GET", "/tokenizer_info") => Route::AtOnce(
            200,
            json!({
                "tokenizer_class": "GPT2Tokenizer",
                "bos_token": END_OF_TEXT_NAME, "eos_token": END_OF_TEXT_NAME, "pad_token": END_OF_TEXT_NAME,
                "chat_template": null,
            }),
        ),
        ("POST", "/tokenize" | "/detokenize") => Route::Texts,
        ("POST", "/v1/completions") => Route::Model,
        _ => {
            let path: String = path.chars().take(200).collect();
            Route::AtOnce(404, failure("not_found", &format!("nothing answers {method} {path}")))
        }
    }
}

/// Why a request has no answer.
pub(super) enum Refusal {
    /// The client's fault (400).
    Client(String),
    /// More than fits into memory (413).
    TooLarge(String),
    /// Ours (500).
    Server(String),
    /// Nobody waits for it any longer, or the server ends (503).
    Given,
}

impl From<TrainError> for Refusal {
    fn from(error: TrainError) -> Self {
        match &error {
            TrainError::Usage(text) => Self::Client(text.clone()),
            TrainError::GivenUp => Self::Given,
            _ if error.is_out_of_memory() => {
                Self::TooLarge(format!("{}; send fewer or shorter prompts", error.message()))
            }
            _ => Self::Server(error.message()),
        }
    }
}

pub(super) type Answer<T = Value> = std::result::Result<T, Refusal>;

/// Status and JSON of an answer.
pub(super) fn settle(answer: Answer) -> (u16, Value) {
    match answer {
        Ok(value) => (200, value),
        Err(Refusal::Client(text)) => (400, failure("invalid_request_error", &text)),
        Err(Refusal::TooLarge(text)) => (413, failure("invalid_request_error", &text)),
        Err(Refusal::Server(text)) => (500, failure("server_error", &text)),
        Err(Refusal::Given) => (503, stopping()),
    }
}

pub(super) fn client<T>(text: impl Into<String>) -> Answer<T> {
    Err(Refusal::Client(text.into()))
}

/// A request that is scored, and who asked.
type Scoring = (Asked, CompletionRequest);

/// The commonest request of the harness: the prompt scored, and one token that one forward pass gives too.
fn is_scoring(request: &CompletionRequest) -> bool {
    request.logprobs.is_some() && request.temperature == 0.0 && request.max_tokens <= 1
}

impl Engine {
    /// An engine for a model of GPT-2's tokens, known to clients by this name.
    ///
    /// # Errors
    /// When the model has fewer tokens than GPT-2, or a parameter is not a finite number.
    pub fn new(name: String, model: Model) -> Result<Self> {
        let (needed, found) = (u64::from(END_OF_TEXT) + 1, model.config().vocabulary_size());
        if found < needed {
            return Err(TrainError::Usage(format!(
                "expected a model of GPT-2's {needed} tokens or more, found {found}: text cannot be scored with it"
            )));
        }
        Ok(Self { name, model, texts: Texts::new()?, answered: AtomicU64::new(0) })
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn texts(&self) -> &Texts {
        &self.texts
    }

    /// The name that clients know it by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Answers requests for completions, while they are wanted. Those that score prompts are computed together. Where texts of
    /// several requests can be generated together, `more` is asked between two tokens for requests that came meanwhile, at most so
    /// many.
    pub(super) fn answer(&self, asked: Vec<Asked>, more: &dyn Fn(usize) -> Vec<Asked>) {
        let mut together = Together::new(self);
        self.sort(asked, &mut together);
        while !together.is_empty() {
            together.step();
            self.sort(more(together.room()), &mut together);
        }
    }

    /// Answers what is scored, and begins what is generated.
    fn sort<'a>(&'a self, asked: Vec<Asked>, together: &mut Together<'a>) {
        let mut scoring = Vec::new();
        let mut others = Vec::new();
        for one in asked {
            match CompletionRequest::parse(&one.body) {
                Ok(request) if is_scoring(&request) => scoring.push((one, request)),
                Ok(request) => others.push((one, request)),
                Err(text) => one.settle(settle(client(text))),
            }
        }
        if scoring.len() > 1 {
            scoring = self.score_together(scoring);
        }
        for (one, request) in scoring {
            self.answer_one(&one, &request);
        }
        for (one, request) in others {
            if self.model.placement().device == tch::Device::Cpu && request.max_tokens > 0 {
                together.add(one, request);
            } else {
                self.answer_one(&one, &request);
            }
        }
    }

    fn answer_one(&self, one: &Asked, request: &CompletionRequest) {
        let wanted = || one.is_wanted();
        if !wanted() {
            return;
        }
        // One request that fails does not end the thread that owns the model.
        let answer = if request.stream {
            match self.stream(Receiver { asked: one, request }, &wanted) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            }
        } else {
            guarded(|| Ok(self.complete(request, &wanted))).unwrap_or_else(|error| Err(error.into()))
        };
        one.settle(settle(answer));
    }

    /// Scores the prompts of several requests as if they were one's. Gives back those that are to be answered alone: where they
    /// are too much together, or something failed, which is then the fault of one of them.
    fn score_together(&self, requests: Vec<Scoring>) -> Vec<Scoring> {
        let mut together = Vec::new();
        let (mut prompts, mut longest, mut likely) = (Vec::new(), 0, 0);
        let mut alone = Vec::new();
        for (one, request) in requests {
            let own = match self.prompts(&request) {
                Ok(own) => own,
                Err(refusal) => {
                    one.settle(settle(Err(refusal)));
                    continue;
                }
            };
            let length = own.iter().map(Vec::len).max().unwrap_or(0).max(longest);
            let most = likely.max(request.logprobs.unwrap_or(0));
            let entries = length * (prompts.len() + own.len());
            if entries > MAX_TOKENS_TOGETHER || entries.saturating_mul(most) > MAX_TOKENS_TOGETHER {
                alone.push((one, request));
                continue;
            }
            (longest, likely) = (length, most);
            together.push((one, request, own.len()));
            prompts.extend(own);
        }
        let wanted = || together.iter().any(|(one, ..)| one.is_wanted());
        let Ok(scores) = guarded(|| score(&self.model, &prompts, likely, &wanted)) else {
            alone.extend(together.into_iter().map(|(one, request, _)| (one, request)));
            return alone;
        };
        let (mut prompts, mut scores) = (prompts.into_iter(), scores.into_iter());
        for (one, request, count) in together {
            let own: Vec<Score> = scores.by_ref().take(count).collect();
            let completions: Vec<Completion> = prompts
                .by_ref()
                .take(count)
                .zip(&own)
                .map(|(ids, score)| self.next(ids, score, &request))
                .collect();
            one.settle(settle(Ok(self.response(&request, &completions, Some(&own)))));
        }
        alone
    }

    /// Sends completions while they are generated. An error before the first token is the answer; a later one is an event.
    fn stream(&self, to: Receiver<'_>, wanted: Wanted<'_>) -> Answer<()> {
        let mut sending = Sending::new(self);
        let prompts = self.prompts(to.request)?;
        let events = sending.events();
        let reading = || wanted() && events.is_read();
        let generated = guarded(|| {
            let each = &mut |completions: &[Completion]| sending.send(self, to, completions);
            Ok(self.generate(prompts, to.request, &reading, each))
        });
        let generated = generated.unwrap_or_else(|error| Err(error.into()));
        match generated {
            Ok(completions) => sending.finish(self, to, &completions),
            Err(refusal) if sending.has_begun() => sending.fail(refusal),
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn complete(&self, request: &CompletionRequest, wanted: Wanted<'_>) -> Answer {
        let prompts = self.prompts(request)?;
        let scored = request.logprobs.is_some();
        let at_once = is_scoring(request);
        let likely = request.logprobs.unwrap_or(0);
        let (completions, scores) = if at_once {
            let scores = score(&self.model, &prompts, likely, wanted)?;
            let completions =
                prompts.into_iter().zip(&scores).map(|(ids, score)| self.next(ids, score, request));
            (completions.collect(), Some(scores))
        } else {
            let completions = self.generate(prompts, request, wanted, &mut |_| {})?;
            let sequences: Vec<Vec<i64>> = completions.iter().map(|one| one.ids.clone()).collect();
            let scores = scored.then(|| score(&self.model, &sequences, likely, wanted)).transpose()?;
            (completions, scores)
        };
        Ok(self.response(request, &completions, scores.as_deref()))
    }

    pub(super) fn prompts(&self, request: &CompletionRequest) -> Answer<Vec<Vec<i64>>> {
        let prompts = match &request.prompt {
            Prompts::Texts(texts) => {
                texts.iter().map(|text| self.texts.encode(text)).collect::<Answer<_>>()?
            }
            Prompts::Ids(lists) => lists.clone(),
        };
        let vocabulary = i64::try_from(self.model.config().vocabulary_size()).unwrap_or(i64::MAX);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if prompts.iter().any(Vec::is_empty) || prompts.is_empty() {
            return client(
                "`prompt`: expected at least one token in each, found none; `<|endoftext|>` begins a document",
            );
        }
        if let Some(id) = prompts.iter().flatten().find(|&&id| !(0..vocabulary).contains(&id)) {
            return client(format!("`prompt`: expected ids from 0 to {}, found {id}", vocabulary - 1));
        }
        if longest.saturating_add(request.max_tokens) > MAX_TOKENS {
            return client(format!("expected at most {MAX_TOKENS} tokens of a prompt and its completion"));
        }
        let (count, generates) = (prompts.len(), request.max_tokens > 1);
        let most = if generates { MAX_GENERATED } else { MAX_PROMPTS };
        if count > most {
            return client(format!("`prompt`: expected at most {most} prompts in a request, found {count}"));
        }
        let entries = (longest + request.max_tokens).saturating_mul(count);
        if entries.saturating_mul(request.logprobs.unwrap_or(0)) > MAX_TOKENS_TOGETHER {
            return client(format!(
                "expected at most {MAX_TOKENS_TOGETHER} log-probabilities in an answer: lower `logprobs`, or send fewer \
                 prompts"
            ));
        }
        if longest * prompts.len() > MAX_TOKENS_TOGETHER {
            return client(format!(
                "expected at most {MAX_TOKENS_TOGETHER} tokens in a request: send fewer prompts"
            ));
        }
        Ok(prompts)
    }

    /// At most one token after a prompt, from its score.
    fn next(&self, ids: Vec<i64>, score: &Score, request: &CompletionRequest) -> Completion {
        let mut completion = Completion::new(ids);
        if let Some(best) = score.best.last().filter(|_| request.max_tokens == 1) {
            completion.push(&self.texts, *best, &request.stop);
        }
        completion
    }

    fn generate(
        &self,
        prompts: Vec<Vec<i64>>,
        request: &CompletionRequest,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(&[Completion]),
    ) -> Answer<Vec<Completion>> {
        let sampling = sampling(request);
        if request.max_tokens == 0 {
            return Ok(prompts.into_iter().map(Completion::new).collect());
        }
        let mut generation = Generation::new_while(&self.model, &prompts, sampling, wanted)?;
        let mut completions: Vec<Completion> = prompts.into_iter().map(Completion::new).collect();
        for _ in 0..request.max_tokens {
            if !wanted() {
                return Err(TrainError::GivenUp.into());
            }
            for (one, token) in completions.iter_mut().zip(generation.next_tokens()?) {
                if !one.ended() {
                    one.push(&self.texts, token, &request.stop);
                }
            }
            each(&completions);
            if completions.iter().all(Completion::ended) {
                break;
            }
        }
        Ok(completions)
    }

    pub(super) fn response(
        &self,
        request: &CompletionRequest,
        completions: &[Completion],
        scores: Option<&[Score]>,
    ) -> Value {
        let choices: Vec<Value> = completions
            .iter()
            .enumerate()
            .map(|(index, one)| {
                let echoed =
                    if request.echo { self.texts.decode(&one.ids[..one.prompt]) } else { String::new() };
                let scored = scores.and_then(|scores| scores.get(index));
                json!({
                    "index": index,
                    "text": format!("{echoed}{}", one.text()),
                    "finish_reason": one.reason,
                    "logprobs": scored.map(|score| self.logprobs(request, one, score)),
                })
            })
            .collect();
        let mut response = self.head();
        response["choices"] = choices.into();
        response["usage"] = usage(completions);
        response
    }

    /// What every answer begins with.
    pub(super) fn head(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = self.answered.fetch_add(1, Ordering::Relaxed);
        json!({
            "id": format!("cmpl-{:x}-{number}", now.as_nanos()),
            "object": "text_completion",
            "created": now.as_secs(),
            "model": self.name,
        })
    }

    /// Log-probabilities of the returned tokens. The very first token has none: nothing comes before it. Tokens after
    /// a text that stopped the completion are not returned.
    fn logprobs(&self, request: &CompletionRequest, one: &Completion, score: &Score) -> Value {
        let first = if request.echo { 0 } else { one.prompt };
        let echoed = self.texts.decode(&one.ids[first..one.prompt]).chars().count();
        // The two texts are decoded apart, and put one after the other.
        let mut offsets = self.texts.offsets(&one.ids[first..one.prompt]);
        offsets.extend(self.texts.offsets(&one.ids[one.prompt..]).iter().map(|offset| echoed + offset));
        let end = echoed + one.text().chars().count();
        let stopped = one.ended() && one.ids.last() != Some(&i64::from(END_OF_TEXT));
        let (mut tokens, mut logs, mut tops, mut starts) = (vec![], vec![], vec![], vec![]);
        for (place, (&id, offset)) in one.ids[first..].iter().zip(offsets).enumerate() {
            let place = first + place;
            if stopped && place >= one.prompt && offset >= end {
                break;
            }
            let before = place.checked_sub(1);
            let log = before.and_then(|before| score.tokens.get(before).copied());
            // A token that was taken from the score itself is the most likely one at its place.
            let log = log.or_else(|| before.and_then(|before| score.best_log.get(before).copied()));
            let top = before.and_then(|before| score.likely.get(before)).map(|likely| {
                let some = likely.iter().take(request.logprobs.unwrap_or(0));
                some.map(|&(id, log)| (self.texts.token(id), json!(log))).collect::<serde_json::Map<_, _>>()
            });
            tokens.push(self.texts.token(id));
            logs.push(log);
            tops.push(top);
            starts.push(offset);
        }
        json!({"tokens": tokens, "token_logprobs": logs, "top_logprobs": tops, "text_offset": starts})
    }
}

/// How tokens are drawn for a request.
pub(super) fn sampling(request: &CompletionRequest) -> Sampling {
    Sampling {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        // Without a seed each request draws for itself.
        seed: request.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
    }
}
