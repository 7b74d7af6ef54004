//! The model and its tokenizer behind the protocol: requests in, answers out, no HTTP.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use xlstm_manifests::END_OF_TEXT;

use super::protocol::{
    CompletionRequest, MAX_GENERATED, MAX_PROMPTS, MAX_TOKENS, MAX_TOKENS_TOGETHER, Prompts, failure,
};
use super::queue::{Answered, Asked, Wanted, stopping};
use super::score::{Score, score};
use super::stream::{EventBody, Events, events};
use super::texts::{END_OF_TEXT_NAME, Spelling, Texts};
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

/// A prompt with what was generated after it.
struct Completion {
    ids: Vec<i64>,
    prompt: usize,
    /// The generated text, cut at the first stop.
    spelling: Spelling,
    reason: &'static str,
}

impl Completion {
    fn new(ids: Vec<i64>) -> Self {
        Self { prompt: ids.len(), ids, spelling: Spelling::default(), reason: "length" }
    }

    fn text(&self) -> &str {
        self.spelling.text()
    }

    fn ended(&self) -> bool {
        self.reason == "stop"
    }
}

/// A request that is scored, and who asked.
type Scoring<'a> = (&'a Asked, CompletionRequest);

/// The commonest request of the harness: the prompt scored, and one token that one forward pass gives too.
fn is_scoring(request: &CompletionRequest) -> bool {
    request.logprobs.is_some() && request.temperature == 0.0 && request.max_tokens <= 1
}

/// Where an answer goes that is sent while it is computed.
type Begin<'a> = &'a mut dyn FnMut(EventBody);

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

    /// The name that clients know it by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Answers requests for completions, while they are wanted. Those that score prompts are computed together.
    pub(super) fn answer(&self, asked: &[Asked]) {
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
        for (one, request) in scoring.into_iter().chain(others) {
            self.answer_one(one, &request);
        }
    }

    fn answer_one(&self, one: &Asked, request: &CompletionRequest) {
        let wanted = || one.is_wanted();
        if !wanted() {
            return;
        }
        // One request that fails does not end the thread that owns the model.
        let answer = if request.stream {
            match self.stream(request, &wanted, &mut |events| one.answer(Answered::Events(events))) {
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
    fn score_together<'a>(&self, requests: Vec<Scoring<'a>>) -> Vec<Scoring<'a>> {
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
    fn stream(&self, request: &CompletionRequest, wanted: Wanted<'_>, begin: Begin<'_>) -> Answer<()> {
        let (events, body) = events();
        let mut sending = Sending::new(self, request, &events, body, begin);
        let prompts = self.prompts(request)?;
        let reading = || wanted() && events.is_read();
        let generated = guarded(|| {
            Ok(self.generate(prompts, request, &reading, &mut |completions| sending.send(completions)))
        });
        let generated = generated.unwrap_or_else(|error| Err(error.into()));
        match generated {
            Ok(completions) => sending.finish(&completions),
            Err(refusal) if sending.has_begun() => {
                events.send(&settle(Err(refusal)).1.to_string());
            }
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

    fn prompts(&self, request: &CompletionRequest) -> Answer<Vec<Vec<i64>>> {
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
            self.push(&mut completion, *best, &request.stop);
        }
        completion
    }

    /// Takes a token into a completion, which ends with the separator or with a text that stops it.
    fn push(&self, completion: &mut Completion, token: i64, stops: &[String]) {
        completion.ids.push(token);
        if token == i64::from(END_OF_TEXT) {
            completion.reason = "stop";
            return;
        }
        let new = completion.spelling.push(self.texts.bytes(token));
        let text = completion.spelling.text();
        // What is old was looked through, but for what a stop may begin with.
        let ends = stops.iter().filter_map(|stop| {
            let from = text.floor_char_boundary((new + 1).saturating_sub(stop.len()));
            text.get(from..)?.find(stop.as_str()).map(|found| from + found)
        });
        if let Some(end) = ends.min() {
            completion.spelling.truncate(end);
            completion.reason = "stop";
        }
    }

    fn generate(
        &self,
        prompts: Vec<Vec<i64>>,
        request: &CompletionRequest,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(&[Completion]),
    ) -> Answer<Vec<Completion>> {
        let sampling = Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p,
            // Without a seed each request draws for itself.
            seed: request.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
        };
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
                    self.push(one, token, &request.stop);
                }
            }
            each(&completions);
            if completions.iter().all(Completion::ended) {
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
    fn head(&self) -> Value {
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

fn usage(completions: &[Completion]) -> Value {
    let prompt: usize = completions.iter().map(|one| one.prompt).sum();
    let all: usize = completions.iter().map(|one| one.ids.len()).sum();
    json!({"prompt_tokens": prompt, "completion_tokens": all - prompt, "total_tokens": all})
}

/// Completions on their way to a client.
struct Sending<'a> {
    engine: &'a Engine,
    request: &'a CompletionRequest,
    events: &'a Events,
    /// Until the first event.
    body: Option<EventBody>,
    begin: Begin<'a>,
    head: Value,
    /// Bytes of each text that were sent.
    sent: Vec<usize>,
    /// Whether the reason why a text ended was sent.
    told: Vec<bool>,
}

impl<'a> Sending<'a> {
    fn new(
        engine: &'a Engine,
        request: &'a CompletionRequest,
        events: &'a Events,
        body: EventBody,
        begin: Begin<'a>,
    ) -> Self {
        let head = engine.head();
        Self { engine, request, events, body: Some(body), begin, head, sent: Vec::new(), told: Vec::new() }
    }

    fn has_begun(&self) -> bool {
        self.body.is_none()
    }

    fn event(&self, choices: &[Value]) {
        let mut event = self.head.clone();
        event["choices"] = choices.into();
        self.events.send(&event.to_string());
    }

    fn choice(&self, index: usize, text: &str, reason: Option<&str>) {
        self.event(&[json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason})]);
    }

    /// What may be sent by now.
    fn send(&mut self, completions: &[Completion]) {
        if let Some(body) = self.body.take() {
            (self.begin)(body);
            self.sent = vec![0; completions.len()];
            self.told = vec![false; completions.len()];
            for (index, one) in completions.iter().enumerate().filter(|_| self.request.echo) {
                self.choice(index, &self.engine.texts.decode(&one.ids[..one.prompt]), None);
            }
        }
        for (index, one) in completions.iter().enumerate() {
            let end = if one.ended() { one.text().len() } else { settled(one.text(), &self.request.stop) };
            let reason = (one.ended() && !self.told[index]).then_some(one.reason);
            if end > self.sent[index] || reason.is_some() {
                let text = one.text().get(self.sent[index]..end).unwrap_or_default();
                self.choice(index, text, reason);
                self.sent[index] = self.sent[index].max(end);
                self.told[index] |= reason.is_some();
            }
        }
    }

    /// What is left, and that it was all.
    fn finish(&mut self, completions: &[Completion]) {
        self.send(completions);
        for (index, one) in completions.iter().enumerate().filter(|(index, _)| !self.told[*index]) {
            self.choice(index, one.text().get(self.sent[index]..).unwrap_or_default(), Some(one.reason));
        }
        if self.request.usage {
            let mut event = self.head.clone();
            event["choices"] = json!([]);
            event["usage"] = usage(completions);
            self.events.send(&event.to_string());
        }
        self.events.send("[DONE]");
    }
}

/// How much of a text that goes on no later token changes: not its last character where that may be half of one, and not
/// what a text that stops it may begin with.
fn settled(text: &str, stops: &[String]) -> usize {
    let whole = text.trim_end_matches('\u{fffd}');
    let held = |stop: &String| {
        let starts = stop.char_indices().map(|(index, _)| index).skip(1).chain([stop.len()]);
        starts.filter(|&end| end < stop.len() && whole.ends_with(&stop[..end])).max().unwrap_or(0)
    };
    whole.len() - stops.iter().map(held).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_token_may_change_is_held_back() {
        let stops = ["\n\n".to_owned(), "END".to_owned(), "é!".to_owned()];
        for (text, expected) in
            [("a", 1), ("a\n", 1), ("aE", 1), ("aEN", 1), ("aENx", 4), ("aé", 1), ("ab\u{fffd}", 2), ("", 0)]
        {
            assert_eq!(settled(text, &stops), expected, "{text:?}");
        }
        assert_eq!(settled("aEN", &[]), 3);
    }
}
