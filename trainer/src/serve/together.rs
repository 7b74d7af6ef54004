//! Texts of several requests, generated together: a request begins while others go on, and ends by itself.
//!
//! ```text
//! waiting ─ room for its prompts? ─► member: its sequences in the batch ─ all ended ─► answer
//!                                       one token for all members at a time
//! ```
//! What goes wrong with one request is its own: prompts that cannot be read are refused before they are in the batch, and where a
//! token for all cannot be computed, mostly for want of memory, the request that came last gives way.

use std::collections::VecDeque;

use super::completion::Completion;
use super::engine::{Answer, Engine, Refusal, sampling, settle};
use super::protocol::{CompletionRequest, MAX_GENERATED};
use super::queue::Asked;
use super::score::score;
use super::sending::{Receiver, Sending};
use crate::error::{Result, TrainError};
use crate::guard::guarded;
use crate::model::Sequences;

/// Requests that wait for room in the batch.
const MAX_WAITING: usize = 64;

/// All requests that are generated at the moment.
pub(super) struct Together<'a> {
    engine: &'a Engine,
    sequences: Sequences<'a>,
    members: Vec<Member>,
    waiting: VecDeque<(Asked, CompletionRequest)>,
}

/// A request in the batch.
struct Member {
    asked: Asked,
    request: CompletionRequest,
    completions: Vec<Completion>,
    /// The number of each completion's sequence.
    numbers: Vec<u64>,
    /// Tokens that it may still have.
    left: usize,
    /// Of a request that streams.
    sending: Option<Sending>,
}

impl Member {
    fn receiver(&self) -> Receiver<'_> {
        Receiver { asked: &self.asked, request: &self.request }
    }

    fn is_wanted(&self) -> bool {
        self.asked.is_wanted() && self.sending.as_ref().is_none_or(|sending| sending.events().is_read())
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.completions.iter().all(Completion::ended)
    }

    /// Takes in its sequences' tokens; the numbers of those that have ended with them.
    fn take(&mut self, engine: &Engine, tokens: &[(u64, i64)]) -> Vec<u64> {
        let mut ended = Vec::new();
        for (completion, &number) in self.completions.iter_mut().zip(&self.numbers) {
            let Ok(at) = tokens.binary_search_by_key(&number, |&(number, _)| number) else { continue };
            completion.push(engine.texts(), tokens[at].1, &self.request.stop);
            if completion.ended() {
                ended.push(number);
            }
        }
        self.left -= 1;
        if let Some(sending) = &mut self.sending {
            let to = Receiver { asked: &self.asked, request: &self.request };
            sending.send(engine, to, &self.completions);
        }
        ended
    }

    /// The whole answer, of one that does not stream.
    fn answer(&self, engine: &Engine) -> Answer {
        let likely = self.request.logprobs;
        let sequences: Vec<Vec<i64>> = self.completions.iter().map(|one| one.ids.clone()).collect();
        let wanted = || self.is_wanted();
        let scores = likely.map(|likely| guarded(|| score(engine.model(), &sequences, likely, &wanted)));
        Ok(engine.response(&self.request, &self.completions, scores.transpose()?.as_deref()))
    }

    fn finish(mut self, engine: &Engine) {
        match self.sending.take() {
            Some(mut sending) => sending.finish(engine, self.receiver(), &self.completions),
            None => self.asked.settle(settle(self.answer(engine))),
        }
    }

    fn refuse(self, refusal: Refusal) {
        match &self.sending {
            Some(sending) if sending.has_begun() => sending.fail(refusal),
            _ => self.asked.settle(settle(Err(refusal))),
        }
    }
}

impl<'a> Together<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        let sequences = Sequences::new(engine.model());
        Self { engine, sequences, members: Vec::new(), waiting: VecDeque::new() }
    }

    /// Whether nothing is being generated.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.waiting.is_empty()
    }

    /// How many more requests may come.
    pub(super) fn room(&self) -> usize {
        MAX_WAITING - self.waiting.len().min(MAX_WAITING)
    }

    /// Adds a request, which begins as soon as there is room for it.
    pub(super) fn add(&mut self, asked: Asked, request: CompletionRequest) {
        self.waiting.push_back((asked, request));
    }

    /// Computes one token of each sequence, and answers what is done.
    pub(super) fn step(&mut self) {
        self.drop_unwanted();
        self.begin_waiting();
        if self.members.is_empty() {
            return;
        }
        let tokens = match guarded(|| self.sequences.next_tokens()) {
            Ok(tokens) => tokens,
            Err(error) => {
                if let Some(last) = self.members.pop() {
                    self.end(&last.numbers);
                    last.refuse(error.into());
                }
                return;
            }
        };
        let mut ended = Vec::new();
        for member in &mut self.members {
            ended.extend(member.take(self.engine, &tokens));
        }
        let done: Vec<Member> = self.members.extract_if(.., |member| member.is_done()).collect();
        ended.extend(done.iter().flat_map(|member| member.numbers.iter().copied()));
        self.end(&ended);
        done.into_iter().for_each(|member| member.finish(self.engine));
    }

    fn begin_waiting(&mut self) {
        while let Some((asked, request)) = self.waiting.pop_front() {
            let prompts = match self.engine.prompts(&request) {
                Ok(prompts) => prompts,
                Err(refusal) => {
                    asked.settle(settle(Err(refusal)));
                    continue;
                }
            };
            if !self.members.is_empty() && self.sequences.len() + prompts.len() > MAX_GENERATED {
                // Those behind it wait too: nobody is overtaken for ever.
                self.waiting.push_front((asked, request));
                return;
            }
            let wanted = || asked.is_wanted();
            let begun = guarded(|| self.sequences.begin(&prompts, sampling(&request), &wanted));
            match begun {
                Ok(numbers) => self.members.push(Member {
                    completions: prompts.into_iter().map(Completion::new).collect(),
                    left: request.max_tokens,
                    sending: request.stream.then(|| Sending::new(self.engine)),
                    asked,
                    request,
                    numbers,
                }),
                Err(error) => asked.settle(settle(Err(error.into()))),
            }
        }
    }

    /// Whoever has gone away, or all when the server ends.
    fn drop_unwanted(&mut self) {
        let gone: Vec<Member> = self.members.extract_if(.., |member| !member.is_wanted()).collect();
        let numbers: Vec<u64> = gone.iter().flat_map(|member| member.numbers.iter().copied()).collect();
        self.end(&numbers);
        gone.into_iter().for_each(|member| member.refuse(Refusal::Given));
        self.waiting.retain(|(asked, _)| {
            let wanted = asked.is_wanted();
            if !wanted {
                asked.settle(settle(Err(Refusal::Given)));
            }
            wanted
        });
    }

    /// Takes sequences out of the batch. Where that fails nothing is known of it any longer, and all are told.
    fn end(&mut self, numbers: &[u64]) {
        let ended: Result<()> = guarded(|| self.sequences.end(numbers));
        if let Err(error) = ended {
            let text = error.message();
            self.sequences = Sequences::new(self.engine.model());
            for member in self.members.drain(..) {
                member.refuse(TrainError::Internal(text.clone()).into());
            }
        }
    }
}
