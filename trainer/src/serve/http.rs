//! HTTP/1.1 around the engine, by hyper: a thread that owns the model, and a small loop that reads requests.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::Engine;
use super::protocol::failure;
use crate::error::{Result, TrainError};
use crate::signals::Signals;

/// Largest body of a request, bytes.
const LARGEST_BODY: usize = 32 << 20;

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

/// A request on its way to the thread that owns the model.
struct Job {
    method: String,
    path: String,
    body: Bytes,
    answer: oneshot::Sender<(u16, Value)>,
}

/// Serves until a signal comes. Prints the address of the completions endpoint on stdout once it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(engine: Engine, server: Server, signals: &Signals) -> Result<()> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let worker = std::thread::spawn(move || {
        for job in queue {
            // A client that has gone away needs no answer.
            let _ = job.answer.send(engine.answer(&job.method, &job.path, &job.body));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let served = runtime.block_on(listen(server, jobs, signals));
    runtime.shutdown_background();
    // With the runtime gone the queue has no sender left; a request that is being computed is finished first.
    worker.join().map_err(|_| TrainError::Internal("the thread that owns the model ended".into()))?;
    served
}

async fn listen(server: Server, jobs: mpsc::Sender<Job>, signals: &Signals) -> Result<()> {
    let listener = TcpListener::bind(server.address).await.map_err(|error| {
        TrainError::Usage(format!("cannot listen on {}: {error}; name another --port", server.address))
    })?;
    let address = listener.local_addr()?;
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}/v1/completions")?;
    out.flush()?;
    while signals.received().is_none() {
        // Looks up often enough that a signal ends it at once for a person.
        let Ok(accepted) = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await else {
            continue;
        };
        // One connection that failed before it began is no reason to stop.
        let Ok((stream, _)) = accepted else { continue };
        let jobs = jobs.clone();
        let local = address.ip().is_loopback();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, jobs.clone(), local));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            // A connection that breaks off concerns the client only.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    jobs: mpsc::Sender<Job>,
    local: bool,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    if local && !names_this_machine(request.headers()) {
        return Ok(respond(
            403,
            &failure("forbidden", "the Host header names another machine than this one"),
        ));
    }
    if request.method() == Method::POST && !is_json(request.headers()) {
        return Ok(respond(
            415,
            &failure("invalid_request_error", "expected Content-Type: application/json"),
        ));
    }
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let body = match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => body,
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let text = format!("expected a body of at most {LARGEST_BODY} bytes, found a larger one");
            return Ok(respond(413, &failure("invalid_request_error", &text)));
        }
        Err(error) => {
            let text = format!("the body ended early: {error}");
            return Ok(respond(400, &failure("invalid_request_error", &text)));
        }
    };
    let (sender, receiver) = oneshot::channel();
    let gone = || respond(503, &failure("server_error", "the server is stopping"));
    if jobs.send(Job { method, path, body: body.to_bytes(), answer: sender }).is_err() {
        return Ok(gone());
    }
    Ok(receiver.await.map_or_else(|_| gone(), |(status, value)| respond(status, &value)))
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

fn respond(status: u16, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
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
