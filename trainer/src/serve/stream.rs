//! An answer that is sent while it is computed, as server-sent events.
//!
//! The thread that owns the model puts text in, and never waits for a client; the connection takes out whatever is there. What
//! lies in between is at most the answer itself.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::connections::ConnectionSlot;

#[derive(Debug, Default)]
struct Between {
    bytes: Vec<u8>,
    /// Whether nothing more comes.
    complete: bool,
    /// Whether nobody takes anything out any longer.
    abandoned: bool,
    waker: Option<Waker>,
}

type Shared = Arc<Mutex<Between>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Between> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where events are put in. Dropped, it ends the answer.
#[derive(Debug)]
pub(super) struct Events {
    shared: Shared,
}

/// Where they are taken out: the body of a response.
#[derive(Debug)]
pub(super) struct EventBody {
    shared: Shared,
    /// The client's place, which it keeps while it reads.
    place: Option<Arc<ConnectionSlot>>,
}

/// Both ends of an answer.
pub(super) fn events() -> (Events, EventBody) {
    let shared = Shared::default();
    (Events { shared: Arc::clone(&shared) }, EventBody { shared, place: None })
}

impl Events {
    /// Sends one event.
    pub(super) fn send(&self, data: &str) {
        let mut between = lock(&self.shared);
        if between.abandoned {
            return;
        }
        between.bytes.extend_from_slice(format!("data: {data}\n\n").as_bytes());
        if let Some(waker) = between.waker.take() {
            waker.wake();
        }
    }

    /// Whether somebody still reads.
    pub(super) fn is_read(&self) -> bool {
        !lock(&self.shared).abandoned
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut between = lock(&self.shared);
        between.complete = true;
        if let Some(waker) = between.waker.take() {
            waker.wake();
        }
    }
}

impl EventBody {
    /// For the client in this place.
    pub(super) fn read_by(mut self, place: Arc<ConnectionSlot>) -> Self {
        self.place = Some(place);
        self
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        let mut between = lock(&self.shared);
        between.abandoned = true;
        between.bytes = Vec::new();
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut between = lock(&self.shared);
        if !between.bytes.is_empty() {
            let bytes = std::mem::take(&mut between.bytes);
            drop(between);
            if let Some(place) = &self.place {
                // It reads: its minute of patience begins anew.
                place.works(false);
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        if between.complete {
            return Poll::Ready(None);
        }
        between.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn events_come_out_as_they_went_in_and_end() {
        let (events, body) = events();
        let sender = std::thread::spawn(move || {
            for number in 0..1000 {
                events.send(&number.to_string());
            }
        });
        let all = runtime().block_on(body.collect()).unwrap().to_bytes();
        sender.join().unwrap();
        let expected: String = (0..1000).map(|number| format!("data: {number}\n\n")).collect();
        assert_eq!(all, expected.as_bytes());
    }

    #[test]
    fn what_nobody_reads_is_not_kept() {
        let (events, body) = events();
        events.send("a");
        assert!(events.is_read());
        drop(body);
        events.send("b");
        assert!(!events.is_read() && lock(&events.shared).bytes.is_empty());
    }
}
