//! HTTP/1.1 around the engine, by hyper: threads that compute, and a small loop that reads requests and bounds them.
//!
//! | bound | |
//! |---|---|
//! | connections | `connections.rs`: the slowest makes room; a minute without a whole request or without reading an answer |
//! | a head | 64 KiB, 30 s |
//! | a body | 8 MiB, 30 s; all bodies above 64 KiB together 128 MiB |
//! | requests that wait | 256 for each thread |
//! | answers not yet read | 256 MiB |
//!
//! What needs no computing (`/health`, `/v1/models`, `/tokenizer_info`) is answered by the loop itself, at once.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use xlstm_bridge::runtime;

use super::Engine;
use super::connections::{Budget, ConnectionSlot, Connections, Share};
use super::engine::{self, Route};
use super::protocol::failure;
use super::queue::{Answered, Entrance, Job, Queue, stopping};
use super::stream::EventBody;
use super::texts::Texts;
use crate::error::{Result, TrainError};
use crate::signals::Signals;

/// Largest body of a request, bytes: more than any prompt that is answered takes.
const MAX_BODY: usize = 8 << 20;
/// Bodies up to this size always have room: connections are bounded.
const SMALL_BODY: usize = 64 << 10;
/// All larger ones together.
const ALL_BODIES: usize = 128 << 20;
/// All answers that their clients have not read yet.
const ALL_ANSWERS: usize = 256 << 20;
/// The longest that a head, or a body, may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Bytes of a head.
const MAX_HEAD: usize = 64 << 10;
/// Requests that are answered together, where they wait and can be: a harness may send each by itself.
const AT_ONCE: usize = 64;
/// What is being computed when a signal comes may end by itself for so long, and has as long again to be given up.
const GRACE: Duration = Duration::from_millis(1500);

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

/// What every connection shares.
#[derive(Clone)]
struct Shared {
    name: Arc<str>,
    model: Entrance,
    texts: Entrance,
    connections: Connections,
    bodies: Budget,
    answers: Budget,
    /// Whether only this machine is served.
    local: bool,
}

/// Serves until a signal comes. Prints the address of the completions endpoint on stdout once it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(engine: Engine, server: Server, signals: &Signals) -> Result<()> {
    let name: Arc<str> = engine.name().into();
    let own = Texts::new()?;
    let stop = Arc::new(AtomicBool::new(false));
    let model = Queue::start(&stop, AT_ONCE, move |asked, more| engine.answer(asked, more));
    let texts = Queue::start(&stop, 1, move |asked, _| {
        for one in asked {
            one.settle(own.answer(&one.path, &one.body));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let entrances = (model.entrance(), texts.entrance());
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(server.address).await.map_err(|error| {
            TrainError::Usage(format!("cannot listen on {}: {error}; name another --port", server.address))
        })?;
        let address = listener.local_addr()?;
        let shared = Shared {
            name,
            model: entrances.0,
            texts: entrances.1,
            connections: Connections::default(),
            bodies: Budget::new(ALL_BODIES),
            answers: Budget::new(ALL_ANSWERS),
            local: address.ip().is_loopback(),
        };
        let mut out = std::io::stdout();
        writeln!(out, "http://{address}/v1/completions")?;
        out.flush()?;
        listen(&listener, &shared, signals).await;
        // Answers that are nearly there go out; then whatever is computed is given up.
        let begin = Instant::now();
        while shared.connections.any_working() && begin.elapsed() < GRACE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    });
    stop.store(true, Ordering::Relaxed);
    runtime.shutdown_background();
    let deadline = Instant::now() + GRACE;
    if model.ends_by(deadline) & texts.ends_by(deadline) {
        return served;
    }
    // A step of the model that takes longer than anybody waits: nothing is lost by not waiting for it either.
    served?;
    runtime::exit_at_once(0)
}

async fn listen(listener: &TcpListener, shared: &Shared, signals: &Signals) {
    let mut swept = Instant::now();
    while signals.received().is_none() {
        if swept.elapsed() > Duration::from_secs(1) {
            swept = Instant::now();
            shared.connections.end_stale();
        }
        // Looks up often enough that a signal ends it at once for a person.
        let Ok(accepted) = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await else {
            continue;
        };
        match accepted {
            Ok((stream, _)) => attend(stream, shared),
            // No descriptor left, mostly: somebody must go. One connection that failed is no reason to stop.
            Err(_) => {
                shared.connections.end_slowest();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Serves one connection in a task of its own.
fn attend(stream: TcpStream, shared: &Shared) {
    let place = Arc::new(shared.connections.place());
    let (own, shared) = (Arc::clone(&place), shared.clone());
    let task = tokio::spawn(async move {
        let service = service_fn(|request| answer(request, &shared, &own));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(ARRIVAL).max_buf_size(MAX_HEAD);
        // A connection that breaks off concerns the client only.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    });
    place.served_by(task.abort_handle());
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    place: &Arc<ConnectionSlot>,
) -> std::result::Result<Response<Answer>, Infallible> {
    place.works(false);
    let answered = accept(request, shared, place).await;
    place.works(false);
    let (status, text) = match answered {
        Ok(Answered::Whole(status, text)) => (status, text),
        Ok(Answered::Events(events)) => return Ok(stream(events.read_by(Arc::clone(place)))),
        Err(refusal) => refusal.answered(),
    };
    let mut share = shared.answers.share();
    if !share.grow(text.len()) {
        shared.connections.end_slowest();
        if !share.grow(text.len()) {
            let refusal = Refusal(503, "too many answers wait to be read: try again later".into());
            let (status, text) = refusal.answered();
            return Ok(respond(status, text));
        }
    }
    Ok(respond(status, Bytes::from_owner(Held { text, _share: share })))
}

/// What a response carries.
type Answer = Either<Full<Bytes>, EventBody>;

fn stream(events: EventBody) -> Response<Answer> {
    let mut response = Response::new(Either::Right(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// An answer's text with what it takes of the budget.
struct Held {
    text: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// A request that is not passed on: status and reason.
struct Refusal(u16, String);

impl Refusal {
    fn answered(self) -> (u16, Bytes) {
        let kind = if self.0 == 403 { "forbidden" } else { "invalid_request_error" };
        let kind = if self.0 >= 500 { "server_error" } else { kind };
        (self.0, text_of(&failure(kind, &self.1)))
    }
}

async fn accept(
    request: Request<Incoming>,
    shared: &Shared,
    place: &ConnectionSlot,
) -> std::result::Result<Answered, Refusal> {
    if shared.local && !names_this_machine(request.headers()) {
        return Err(Refusal(403, "the Host header names another machine than this one".into()));
    }
    if request.method() == Method::POST && !is_json(request.headers()) {
        return Err(Refusal(415, "expected Content-Type: application/json".into()));
    }
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let entrance = match engine::route(&shared.name, &method, &path) {
        Route::AtOnce(status, value) => return Ok(Answered::Whole(status, text_of(&value))),
        Route::Model => &shared.model,
        Route::Texts => &shared.texts,
    };
    let mut share = shared.bodies.share();
    let body = match tokio::time::timeout(ARRIVAL, whole(request.into_body(), &mut share)).await {
        Ok(body) => body?,
        Err(_) => {
            let seconds = ARRIVAL.as_secs();
            return Err(Refusal(408, format!("expected a whole body within {seconds} s, found less")));
        }
    };
    place.works(true);
    let (sender, receiver) = oneshot::channel();
    let job = Job { path, body, share, answer: sender };
    if let Err(refused) = entrance.try_send(job) {
        return Err(match refused {
            std::sync::mpsc::TrySendError::Full(_) => {
                Refusal(503, "too many requests wait already: try again later".into())
            }
            std::sync::mpsc::TrySendError::Disconnected(_) => Refusal(503, "the server is stopping".into()),
        });
    }
    Ok(receiver.await.unwrap_or_else(|_| Answered::Whole(503, text_of(&stopping()))))
}

/// A body as a whole, within the bounds.
async fn whole(mut body: Incoming, share: &mut Share) -> std::result::Result<Bytes, Refusal> {
    let too_large =
        || Refusal(413, format!("expected a body of at most {MAX_BODY} bytes, found a larger one"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal(400, format!("the body ended early: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        let length = bytes.len() + data.len();
        if length > MAX_BODY {
            return Err(too_large());
        }
        if length > SMALL_BODY && !share.grow(data.len()) {
            return Err(Refusal(503, "too many large requests wait already: try again later".into()));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Whether the request was meant for this machine, and not for a name that somebody pointed at it.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn text_of(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

fn respond(status: u16, text: Bytes) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::new(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == 408 || status == 413 {
        // The rest of the body is not waited for.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_served_on_the_loopback() {
        let named = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            names_this_machine(&headers)
        };
        assert!(["localhost:80", "127.0.0.1:8", "[::1]:8", "LocalHost"].into_iter().all(named));
        assert!(!["example.org", "127.0.0.1.example.org:80", "10.0.0.1:80", ""].into_iter().any(named));
    }
}
