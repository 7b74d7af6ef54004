//! Completions that are sent while they are generated.

use std::sync::Arc;

use serde_json::{Value, json};

use super::completion::{Completion, settled, usage};
use super::engine::{Engine, Refusal, settle};
use super::protocol::CompletionRequest;
use super::queue::{Answered, Asked};
use super::stream::{EventBody, Events, events};

/// Who asked, and for what.
#[derive(Clone, Copy)]
pub(super) struct Receiver<'a> {
    pub(super) asked: &'a Asked,
    pub(super) request: &'a CompletionRequest,
}

/// Completions on their way to a client.
pub(super) struct Sending {
    events: Arc<Events>,
    /// Until the first event.
    body: Option<EventBody>,
    head: Value,
    /// Bytes of each text that were sent.
    sent: Vec<usize>,
    /// Whether the reason why a text ended was sent.
    told: Vec<bool>,
}

impl Sending {
    /// Nothing is sent yet: the body is handed over with the first text.
    pub(super) fn new(engine: &Engine) -> Self {
        let (events, body) = events();
        Self {
            events: Arc::new(events),
            body: Some(body),
            head: engine.head(),
            sent: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Where events go, to ask whether somebody still reads.
    pub(super) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// Sends that it could not be finished.
    pub(super) fn fail(&self, refusal: Refusal) {
        self.events.send(&settle(Err(refusal)).1.to_string());
    }

    pub(super) fn has_begun(&self) -> bool {
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
    pub(super) fn send(&mut self, engine: &Engine, to: Receiver<'_>, completions: &[Completion]) {
        if let Some(body) = self.body.take() {
            to.asked.answer(Answered::Events(body));
            self.sent = vec![0; completions.len()];
            self.told = vec![false; completions.len()];
            for (index, one) in completions.iter().enumerate().filter(|_| to.request.echo) {
                self.choice(index, &engine.texts().decode(&one.ids[..one.prompt]), None);
            }
        }
        for (index, one) in completions.iter().enumerate() {
            let end = if one.ended() { one.text().len() } else { settled(one.text(), &to.request.stop) };
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
    pub(super) fn finish(&mut self, engine: &Engine, to: Receiver<'_>, completions: &[Completion]) {
        self.send(engine, to, completions);
        for (index, one) in completions.iter().enumerate().filter(|(index, _)| !self.told[*index]) {
            self.choice(index, one.text().get(self.sent[index]..).unwrap_or_default(), Some(one.reason));
        }
        if to.request.usage {
            let mut event = self.head.clone();
            event["choices"] = json!([]);
            event["usage"] = usage(completions);
            self.events.send(&event.to_string());
        }
        self.events.send("[DONE]");
    }
}
