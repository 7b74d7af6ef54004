//! One HTTP request and its answer, under our own rules.
//!
//! Redirects are followed here rather than by the HTTP library, for two rules of the Hub's protocol: the
//! `Authorization` header goes to the endpoint's own scheme, host and port and nowhere else, and the signed address
//! a redirect leads to appears in no message. An `https` address never leads on to an `http` one.
//!
//! The HTTP library is asynchronous, its callers are plain threads: each wait is cut into slices, so that a thread
//! stops soon after it is asked to and a connection that brings nothing is given up after `stall_timeout`.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::access::{self, Subject};
use super::config::HubConfig;
use super::driver::Driver;
use super::error::HubError;
use super::rate::{Gate, exhausted_wait, requested_wait};
use super::retry::{Effort, Pace, RetryPolicy, SLICE};

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 10;
/// The largest answer that is read as a whole (a page of a listing has some 300 kB).
const MAX_DOCUMENT_BYTES: usize = 32 << 20;
/// A document that takes longer than this many times the longest silence is asked for again.
const DOCUMENT_TIMES: u32 = 10;

/// The Hub's two rate-limit buckets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bucket {
    /// Revisions and listings.
    Api = 0,
    /// Files.
    Resolver = 1,
}

/// An answer that is not a redirect, and whether it comes from a host other than the endpoint.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) from_storage: bool,
}

/// Why an attempt brought no answer.
pub(super) enum Broken {
    /// It may pass: try again.
    Interrupted(String),
    /// It will not.
    Fatal(HubError),
}

pub(super) struct Transport {
    client: Client,
    driver: Driver,
    endpoint: Url,
    authorization: Option<HeaderValue>,
    gates: [Gate; 2],
    stall_timeout: Duration,
    policy: RetryPolicy,
    offline: bool,
}

impl Transport {
    pub(super) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let endpoint = parse_endpoint(&config.endpoint)?;
        let authorization = match &config.token {
            None => None,
            Some(token) => {
                let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
                let mut value = value.map_err(|_| HubError::Setting {
                    setting: "HF_TOKEN",
                    found: "(not shown)".into(),
                    reason: "it cannot be sent in a header".into(),
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            client: build_client(&endpoint, config)?,
            driver: Driver::start()?,
            endpoint,
            authorization,
            gates: Default::default(),
            stall_timeout: config.stall_timeout,
            policy: config.retry.clone(),
            offline: config.offline,
        })
    }

    pub(super) fn authenticated(&self) -> bool {
        self.authorization.is_some()
    }

    pub(super) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// The address of `segments` under the endpoint, each percent-encoded (a slash in one as well).
    pub(super) fn address<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// `link` as found in an answer to `base`, on the endpoint whatever host and path it names: a mirror passes on the
    /// links of the Hub it mirrors, which do not have the mirror's own path prefix, and the token must not
    /// follow them.
    pub(super) fn address_of_link(&self, base: &Url, link: &str) -> Option<Url> {
        let mut url = base.join(link).ok()?;
        if url.origin() != self.endpoint.origin() {
            url.set_scheme(self.endpoint.scheme()).ok()?;
            url.set_host(self.endpoint.host_str()).ok()?;
            url.set_port(self.endpoint.port()).ok()?;
        }
        if !self.is_below_endpoint(&url) {
            let path = format!("{}{}", self.endpoint.path().trim_end_matches('/'), url.path());
            url.set_path(&path);
        }
        Some(url)
    }

    /// Whether `url` is on the endpoint's host and below its path: where the token may go.
    fn is_below_endpoint(&self, url: &Url) -> bool {
        let prefix = self.endpoint.path().trim_end_matches('/');
        let rest = url.path().strip_prefix(prefix);
        url.origin() == self.endpoint.origin()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Asks until there is an answer with status 200, 206 or 416 (to a range), or an error that no retry heals.
    /// `range` is the first byte wanted.
    pub(super) fn get(
        &self,
        url: &Url,
        range: Option<u64>,
        bucket: Bucket,
        subject: &Subject<'_>,
        effort: &mut Effort<'_>,
    ) -> Result<Answer, HubError> {
        loop {
            effort.pass(&self.gates[bucket as usize])?;
            let answer = match self.send_once(url, range, bucket, effort) {
                Ok(answer) => answer,
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Interrupted(reason)) => {
                    effort.failed(&reason)?;
                    continue;
                }
            };
            let status = answer.response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
                StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => return Ok(answer),
                StatusCode::TOO_MANY_REQUESTS => {
                    let asked = requested_wait(answer.response.headers(), SystemTime::now());
                    let wait = asked.unwrap_or(self.policy.rate_limit_default);
                    // A server that says "at once" again and again is still not to be hammered.
                    self.gates[bucket as usize].close_for(wait.max(self.policy.first_delay));
                }
                StatusCode::REQUEST_TIMEOUT => effort.failed("the server timed out (408)")?,
                _ if status.is_server_error() => effort.failed(&format!("the server answered {status}"))?,
                // A signed address that has expired, mostly: the Hub gives a new one.
                _ if answer.from_storage => {
                    effort.failed(&format!("the storage host answered {status}"))?;
                }
                _ => return Err(self.refusal(answer, subject, effort)),
            }
        }
    }

    /// As [`Transport::get`], with the whole body.
    pub(super) fn get_document(
        &self,
        url: &Url,
        subject: &Subject<'_>,
        effort: &mut Effort<'_>,
    ) -> Result<(HeaderMap, Vec<u8>), HubError> {
        loop {
            let mut answer = self.get(url, None, Bucket::Api, subject, effort)?;
            match self.read_whole(&mut answer.response, effort.stop(), MAX_DOCUMENT_BYTES) {
                Ok(body) => return Ok((answer.response.headers().clone(), body)),
                Err(Broken::Interrupted(reason)) => effort.failed(&reason)?,
                Err(Broken::Fatal(error)) => return Err(error),
            }
        }
    }

    /// Watches the speed of a body.
    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.stall_timeout)
    }

    /// The next piece of a body; `None` at its end.
    pub(super) fn next_chunk(
        &self,
        response: &mut Response,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Bytes>, Broken> {
        self.wait_for(response.chunk(), stop)
    }

    fn send_once(
        &self,
        url: &Url,
        range: Option<u64>,
        bucket: Bucket,
        effort: &mut Effort<'_>,
    ) -> Result<Answer, Broken> {
        if self.offline {
            return Err(Broken::Fatal(HubError::Offline { what: effort.what.clone() }));
        }
        effort.requests += 1;
        let mut url = url.clone();
        let mut from_storage = false;
        for _ in 0..=MAX_REDIRECTS {
            // Once away from the endpoint, the token is not sent again, not even on the way back.
            from_storage |= !self.is_below_endpoint(&url);
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let (false, Some(authorization)) = (from_storage, &self.authorization) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(first) = range {
                request = request.header(RANGE, format!("bytes={first}-"));
            }
            let response = self.wait_for(request.send(), effort.stop())?;
            if let (false, Some(wait)) = (from_storage, exhausted_wait(response.headers())) {
                self.gates[bucket as usize].close_for(wait);
            }
            if !response.status().is_redirection() {
                return Ok(Answer { response, from_storage });
            }
            let target = redirect_target(&url, &response, &effort.what).map_err(Broken::Fatal)?;
            url = self.on_mirror(&response, target);
        }
        Err(Broken::Fatal(HubError::Protocol {
            what: effort.what.clone(),
            expected: format!("at most {MAX_REDIRECTS} redirects"),
            found: "more".into(),
        }))
    }

    /// A redirect inside the Hub (`/api/resolve-cache/…`, without a host) as a mirror below a path passes it on: it is
    /// meant below that path. Any other address is taken as it is, and gets no token.
    fn on_mirror(&self, response: &Response, target: Url) -> Url {
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let inside = location
            .is_some_and(|location| location.starts_with("/api/") || location.starts_with("/datasets/"));
        if !inside || self.is_below_endpoint(&target) || target.origin() != self.endpoint.origin() {
            return target;
        }
        self.address_of_link(&target, target.as_str()).unwrap_or(target)
    }

    fn refusal(&self, mut answer: Answer, subject: &Subject<'_>, effort: &Effort<'_>) -> HubError {
        // The words of the refusal help; that they could not be read does not matter.
        let body = self.read_whole(&mut answer.response, effort.stop(), 64 << 10).unwrap_or_default();
        access::refusal(
            answer.response.status(),
            answer.response.headers(),
            &body,
            subject,
            &access::Asker {
                endpoint: self.endpoint.as_str().trim_end_matches('/'),
                authenticated: self.authenticated(),
                what: &effort.what,
            },
        )
    }

    fn read_whole(
        &self,
        response: &mut Response,
        stop: &dyn Fn() -> bool,
        limit: usize,
    ) -> Result<Vec<u8>, Broken> {
        let mut body = Vec::new();
        let deadline = Instant::now() + self.stall_timeout * DOCUMENT_TIMES;
        while let Some(chunk) = self.next_chunk(response, stop)? {
            if Instant::now() > deadline {
                let seconds = (self.stall_timeout * DOCUMENT_TIMES).as_secs_f64();
                return Err(Broken::Interrupted(format!("the answer was not whole after {seconds} s")));
            }
            if body.len() + chunk.len() > limit {
                return Err(Broken::Interrupted(format!("the answer is longer than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Drives `future` until it is done, the wait grows longer than `stall_timeout`, or `stop` says so.
    fn wait_for<T>(
        &self,
        future: impl Future<Output = reqwest::Result<T>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<T, Broken> {
        let mut future = pin!(future);
        let deadline = Instant::now() + self.stall_timeout;
        loop {
            if stop() {
                return Err(Broken::Fatal(HubError::Cancelled));
            }
            let slice = SLICE.min(deadline.saturating_duration_since(Instant::now()));
            let attempt = async { tokio::time::timeout(slice, future.as_mut()).await };
            match self.driver.wait(attempt) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => return Err(Broken::Interrupted(reason_of(error))),
                Err(_) if Instant::now() >= deadline => {
                    let seconds = self.stall_timeout.as_secs_f64();
                    return Err(Broken::Interrupted(format!("no byte for {seconds} s")));
                }
                Err(_) => {}
            }
        }
    }
}

fn redirect_target(url: &Url, response: &Response, what: &str) -> Result<Url, HubError> {
    let protocol = |found: &str| HubError::Protocol {
        what: what.to_owned(),
        expected: "a redirect to an address that is as safe as the one before".into(),
        found: found.to_owned(),
    };
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| protocol("a redirect to nowhere"))?;
    let target = url.join(location).map_err(|_| protocol("an address that cannot be parsed"))?;
    match (url.scheme(), target.scheme()) {
        ("https" | "http", "https") | ("http", "http") => Ok(target),
        (from, to) => Err(protocol(&format!("one that leads from {from} to {to}"))),
    }
}

/// What went wrong, innermost words included, without the address.
fn reason_of(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    reason
}

fn parse_endpoint(endpoint: &str) -> Result<Url, HubError> {
    let bad = |reason: &str| HubError::Setting {
        setting: "HF_ENDPOINT",
        found: endpoint.chars().filter(|c| !c.is_control()).take(200).collect(),
        reason: format!("{reason}; expected an address such as https://huggingface.co"),
    };
    let url = Url::parse(endpoint).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("it is not an http or https address"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(HubError::Setting {
            setting: "HF_ENDPOINT",
            found: "(not shown)".into(),
            reason: "it holds a user name or password; give the token with HF_TOKEN".into(),
        });
    }
    Ok(url)
}

fn build_client(endpoint: &Url, config: &HubConfig) -> Result<Client, HubError> {
    // Fails only when the process has a provider already, and any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("xlstm-data/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(config.stall_timeout.min(Duration::from_secs(30)));
    if endpoint.scheme() == "http" && is_loopback(endpoint) {
        // A Hub on this machine is reached without the proxy, and on a machine that has no CA certificates.
        builder = builder.no_proxy().tls_certs_only([]);
    }
    builder.build().map_err(|error| HubError::Setting {
        setting: "the TLS set-up of this machine",
        found: reason_of(error),
        reason: "install the CA certificates (package ca-certificates) or set SSL_CERT_FILE".into(),
    })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(endpoint: &str) -> Result<Transport, HubError> {
        Transport::new(&HubConfig::new(endpoint, "/nowhere"))
    }

    #[test]
    fn addresses_are_encoded_and_stay_on_the_endpoint() {
        let transport = transport("http://127.0.0.1:9/prefix").unwrap();
        let url = transport.address(["api", "refs/convert/parquet", "a b?#%.gz"]);
        assert_eq!(url.as_str(), "http://127.0.0.1:9/prefix/api/refs%2Fconvert%2Fparquet/a%20b%3F%23%25.gz");
        let next = transport.address_of_link(&url, "https://huggingface.co/api/x?cursor=y").unwrap();
        assert_eq!(next.as_str(), "http://127.0.0.1:9/prefix/api/x?cursor=y");
        for (link, expected) in [
            ("/api/x?cursor=y", "http://127.0.0.1:9/prefix/api/x?cursor=y"),
            ("/prefix/api/x?cursor=y", "http://127.0.0.1:9/prefix/api/x?cursor=y"),
            ("http://127.0.0.1:9/prefix/api/x", "http://127.0.0.1:9/prefix/api/x"),
            ("/prefixed/x", "http://127.0.0.1:9/prefix/prefixed/x"),
            ("https://huggingface.co/prefix/../../etc?a", "http://127.0.0.1:9/prefix/etc?a"),
        ] {
            assert_eq!(transport.address_of_link(&url, link).unwrap().as_str(), expected, "{link}");
        }
        for (url, below) in [
            ("http://127.0.0.1:9/prefix/x", true),
            ("http://127.0.0.1:9/prefixed/x", false),
            ("http://127.0.0.1:9/x", false),
            ("http://127.0.0.1:8/prefix/x", false),
            ("http://127.0.0.1:9/prefix/../x", false),
        ] {
            assert_eq!(transport.is_below_endpoint(&Url::parse(url).unwrap()), below, "{url}");
        }
    }

    #[test]
    fn endpoints_that_make_no_sense_are_refused_without_showing_a_password() {
        for bad in ["huggingface.co", "ftp://h", "https://h?a", ""] {
            assert!(matches!(transport(bad), Err(HubError::Setting { .. })), "{bad}");
        }
        let Err(error) = transport("https://me:hunter2@h") else { panic!("accepted") };
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
