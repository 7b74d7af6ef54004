//! Requests on their way to the threads that answer them: one owns the model, one has a tokenizer.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;

use super::connections::Share;
use super::protocol::failure;
use super::stream::EventBody;

/// Requests that wait for a thread; the next one is refused.
const MAX_WAITING: usize = 256;
/// How often an idle thread looks whether it is to end.
const LOOKS: Duration = Duration::from_millis(50);

/// A whole request.
pub(super) struct Job {
    pub(super) path: String,
    pub(super) body: Bytes,
    /// What the body takes of the budget.
    pub(super) share: Share,
    pub(super) answer: oneshot::Sender<Answered>,
}

/// What a request gets.
#[derive(Debug)]
pub(super) enum Answered {
    /// Status and JSON text.
    Whole(u16, Bytes),
    /// Events, which follow.
    Events(EventBody),
}

/// Asked between pieces of work whether somebody still waits for the answer.
pub(super) type Wanted<'a> = &'a dyn Fn() -> bool;

/// One thread and the requests that wait for it.
pub(super) struct Queue {
    jobs: mpsc::SyncSender<Job>,
    thread: JoinHandle<()>,
}

/// Where requests are put.
pub(super) type Entrance = mpsc::SyncSender<Job>;

/// A request that is being answered.
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) body: Bytes,
    _share: Share,
    /// Until it is answered.
    answer: RefCell<Option<oneshot::Sender<Answered>>>,
    stop: Arc<AtomicBool>,
}

impl Asked {
    fn new(job: Job, stop: &Arc<AtomicBool>) -> Self {
        let Job { path, body, share, answer } = job;
        Self { path, body, _share: share, answer: RefCell::new(Some(answer)), stop: Arc::clone(stop) }
    }

    /// Whether somebody still waits for an answer. Whoever gets events is asked by them.
    pub(super) fn is_wanted(&self) -> bool {
        let left = self.answer.borrow().as_ref().is_some_and(oneshot::Sender::is_closed);
        !left && !self.stop.load(Ordering::Relaxed)
    }

    /// Answers, once.
    pub(super) fn answer(&self, answered: Answered) {
        if let Some(sender) = self.answer.take() {
            // Nobody waits where this fails.
            let _ = sender.send(answered);
        }
    }

    /// Answers with status and JSON.
    pub(super) fn settle(&self, (status, value): (u16, Value)) {
        self.answer(Answered::Whole(status, Bytes::from(value.to_string())));
    }
}

impl Queue {
    /// Starts a thread that answers by `answer` whatever waits, at most `at_once` requests together, until `stop` is true: what
    /// was begun is given up then. `answer` may take more of those that wait meanwhile.
    pub(super) fn start(
        stop: &Arc<AtomicBool>,
        at_once: usize,
        answer: impl Fn(Vec<Asked>, &dyn Fn(usize) -> Vec<Asked>) + Send + 'static,
    ) -> Self {
        let (jobs, queue) = mpsc::sync_channel::<Job>(MAX_WAITING);
        let stop = Arc::clone(stop);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let first = match queue.recv_timeout(LOOKS) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                // A client that has gone away needs no answer.
                let more = |most: usize| -> Vec<Asked> {
                    let waiting = queue.try_iter().take(most).map(|job| Asked::new(job, &stop));
                    waiting.filter(Asked::is_wanted).collect()
                };
                let mut asked = vec![Asked::new(first, &stop)];
                asked.retain(Asked::is_wanted);
                asked.extend(more(at_once.saturating_sub(1)));
                answer(asked, &more);
            }
        });
        Self { jobs, thread }
    }

    pub(super) fn entrance(&self) -> Entrance {
        self.jobs.clone()
    }

    /// Waits until the thread has ended, or until `deadline`; whether it has.
    pub(super) fn ends_by(&self, deadline: Instant) -> bool {
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

/// What is said when the server ends.
pub(super) fn stopping() -> Value {
    failure("server_error", "the server is stopping")
}
