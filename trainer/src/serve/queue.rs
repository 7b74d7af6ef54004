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

/// Where an answer goes that is sent while it is computed.
pub(super) type Begin<'a> = &'a mut dyn FnMut(EventBody);

/// Asked between pieces of work whether somebody still waits for the answer.
pub(super) type Wanted<'a> = &'a dyn Fn() -> bool;

/// One thread and the requests that wait for it.
pub(super) struct Queue {
    jobs: mpsc::SyncSender<Job>,
    thread: JoinHandle<()>,
}

/// Where requests are put.
pub(super) type Entrance = mpsc::SyncSender<Job>;

impl Queue {
    /// Starts a thread that answers by `answer`, until `stop` is true: what was begun is given up then. `None` is the answer of
    /// a request that got events.
    pub(super) fn start(
        stop: &Arc<AtomicBool>,
        answer: impl Fn(&str, &[u8], Wanted<'_>, Begin<'_>) -> Option<(u16, Value)> + Send + 'static,
    ) -> Self {
        let (jobs, queue) = mpsc::sync_channel::<Job>(MAX_WAITING);
        let stop = Arc::clone(stop);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Job { path, body, share, answer: sender } = match queue.recv_timeout(LOOKS) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let sender = RefCell::new(Some(sender));
                // A client that has gone away needs no answer. Whoever gets events is asked by them.
                let wanted = || {
                    let left = sender.borrow().as_ref().is_some_and(oneshot::Sender::is_closed);
                    !left && !stop.load(Ordering::Relaxed)
                };
                if !wanted() {
                    continue;
                }
                let send = |answered| {
                    if let Some(sender) = sender.take() {
                        // Nobody waits where this fails.
                        let _ = sender.send(answered);
                    }
                };
                let whole = answer(&path, &body, &wanted, &mut |events| send(Answered::Events(events)));
                drop((body, share));
                if let Some((status, value)) = whole {
                    send(Answered::Whole(status, Bytes::from(value.to_string())));
                }
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
