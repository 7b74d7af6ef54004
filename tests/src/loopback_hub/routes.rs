//! From a request to its answer, right or as a fault has it.

use std::net::TcpStream;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::dataset::{Dataset, StoredFile};
use super::fault::{Effect, Target, due};
use super::http::{Answer, Connection, Delivery, Request, encode};
use super::record::{Host, RecordedRequest};
use super::{SIGNATURE, Shared};

/// The right answer, and what it is about.
struct Routed {
    answer: Answer,
    target: Option<Target>,
    /// The whole file, where the answer carries bytes of one.
    content: Option<Vec<u8>>,
}

impl Routed {
    fn refusal(answer: Answer) -> Self {
        Self { answer, target: None, content: None }
    }
}

impl Shared {
    pub(super) fn serve(&self, stream: TcpStream, host: Host) {
        let stopping = || self.stopping();
        // A client that is gone before it asked.
        let Ok(mut connection) = Connection::new(stream, &stopping) else { return };
        while let Some(request) = connection.next_request() {
            let routed = match host {
                Host::Hub => self.route(&request),
                Host::Storage => self.route_storage(&request),
            };
            let number = self.next_number.fetch_add(1, Ordering::SeqCst);
            let mut record = recorded(number, host, &request, &routed);
            let answer = self.with_fault(routed, &request);
            record.status =
                if matches!(answer.delivery, Delivery::Nothing { .. }) { 0 } else { answer.status };
            self.requests.lock().expect("no thread panicked").push(record);
            let mut sent = |bytes| self.count(number, bytes);
            if !connection.send(&answer, request.method == "HEAD", &mut sent) {
                return;
            }
        }
    }

    fn count(&self, number: u64, bytes: u64) {
        let mut requests = self.requests.lock().expect("no thread panicked");
        if let Some(record) = requests.iter_mut().rev().find(|record| record.number == number) {
            record.body_bytes += bytes;
        }
    }

    fn route(&self, request: &Request) -> Routed {
        let authorization = request.header("authorization");
        if authorization.is_some_and(|value| !value.starts_with("Bearer hf_")) {
            let message = "Invalid credentials in Authorization header";
            return Routed::refusal(refusal(401, None, message));
        }
        let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["api", "datasets", owner, name, "revision", revision] => {
                self.with_commit(owner, name, revision, authorization, |dataset| Routed {
                    answer: revision_answer(dataset),
                    target: Some(Target::Revision),
                    content: None,
                })
            }
            ["api", "datasets", owner, name, "tree", revision] => {
                self.with_commit(owner, name, revision, authorization, |dataset| Routed {
                    answer: self.tree_page(dataset, request),
                    target: Some(Target::Tree),
                    content: None,
                })
            }
            ["datasets", owner, name, "resolve", revision, path @ ..] => {
                self.with_commit(owner, name, revision, authorization, |dataset| {
                    self.resolve(dataset, &path.join("/"), authorization)
                })
            }
            ["api", "resolve-cache", "datasets", owner, name, revision, path @ ..] => {
                self.with_commit(owner, name, revision, authorization, |dataset| {
                    match dataset.file(&path.join("/")) {
                        Some(file) if may_read(dataset, authorization) => body(file, request),
                        _ => Routed::refusal(refusal(404, Some("EntryNotFound"), "Entry not found")),
                    }
                })
            }
            _ => Routed::refusal(refusal(404, None, "Sorry, we can't find the page you are looking for.")),
        }
    }

    fn with_commit(
        &self,
        owner: &str,
        name: &str,
        revision: &str,
        authorization: Option<&str>,
        answer: impl FnOnce(&Dataset) -> Routed,
    ) -> Routed {
        let Some(dataset) = self.dataset(&format!("{owner}/{name}")) else {
            // Nobody is told which private names are taken.
            return Routed::refusal(match authorization {
                None => refusal(401, Some("RepoNotFound"), "Invalid username or password."),
                Some(_) => refusal(404, Some("RepoNotFound"), "Repository not found"),
            });
        };
        if dataset.disabled {
            return Routed::refusal(refusal(403, None, "Access to this resource is disabled."));
        }
        if !dataset.has_revision(revision) {
            let message = format!("Invalid rev id: {revision}");
            return Routed::refusal(refusal(404, Some("RevisionNotFound"), &message));
        }
        answer(dataset)
    }

    fn tree_page(&self, dataset: &Dataset, request: &Request) -> Answer {
        let entries = dataset.tree();
        let start = request.parameter("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let end = entries.len().min(start + self.page_size);
        let answer = Answer::new(200, json!(entries[start.min(end)..end]).to_string())
            .header("Content-Type", "application/json");
        if end == entries.len() {
            return answer;
        }
        let host = request.header("host").unwrap_or_default();
        let path: Vec<_> = request.segments.iter().map(|segment| encode(segment)).collect();
        let path = path.join("/");
        answer.header("Link", format!("<http://{host}/{path}?recursive=true&cursor={end}>; rel=\"next\""))
    }

    fn resolve(&self, dataset: &Dataset, path: &str, authorization: Option<&str>) -> Routed {
        let Some(file) = dataset.file(path) else {
            return Routed::refusal(refusal(404, Some("EntryNotFound"), "Entry not found"));
        };
        if !may_read(dataset, authorization) {
            let status = if authorization.is_some() { 403 } else { 401 };
            let message = format!("Access to dataset {} is restricted.", dataset.repository);
            let answer = refusal(status, Some("GatedRepo"), &message);
            return Routed { answer, target: Some(Target::Resolve(path.to_owned())), content: None };
        }
        let encoded: Vec<_> = path.split('/').map(encode).collect();
        let encoded = encoded.join("/");
        let repository = &dataset.repository;
        let answer = if file.lfs {
            let (storage, sha256) = (self.storage, &file.sha256);
            let signed =
                format!("http://{storage}/repos/{repository}/{sha256}/{encoded}?X-Signature={SIGNATURE}");
            Answer::new(302, format!("Found. Redirecting to {signed}")).header("Location", signed)
        } else {
            let local = format!("/api/resolve-cache/datasets/{repository}/{}/{encoded}", dataset.sha);
            Answer::new(307, "Temporary Redirect").header("Location", local)
        };
        let answer = answer
            .header("X-Repo-Commit", &dataset.sha)
            .header("X-Linked-Etag", format!("\"{}\"", file.etag()))
            .header("X-Linked-Size", file.content.len());
        Routed { answer, target: Some(Target::Resolve(path.to_owned())), content: None }
    }

    fn route_storage(&self, request: &Request) -> Routed {
        let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        let ["repos", owner, name, sha256, path @ ..] = segments.as_slice() else {
            return Routed::refusal(Answer::new(404, "<Error>NoSuchKey</Error>"));
        };
        let dataset = self.dataset(&format!("{owner}/{name}"));
        let file = dataset.and_then(|dataset| dataset.file(&path.join("/")));
        match file.filter(|file| file.sha256 == *sha256) {
            // As object stores do: two ways to prove oneself are one too many.
            Some(_) if request.header("authorization").is_some() => {
                Routed::refusal(Answer::new(400, "<Error>Only one auth mechanism allowed</Error>"))
            }
            Some(_) if request.parameter("X-Signature") != Some(SIGNATURE) => {
                Routed::refusal(Answer::new(403, "<Error>AccessDenied</Error>"))
            }
            Some(file) => body(file, request),
            None => Routed::refusal(Answer::new(404, "<Error>NoSuchKey</Error>")),
        }
    }

    fn with_fault(&self, routed: Routed, request: &Request) -> Answer {
        let Routed { answer, target: Some(target), content } = routed else { return routed.answer };
        let effect = due(&mut self.faults.lock().expect("no thread panicked"), &target);
        match effect {
            None => answer,
            Some(effect) => misbehave(effect, answer, content, request),
        }
    }
}

fn misbehave(effect: Effect, mut answer: Answer, content: Option<Vec<u8>>, request: &Request) -> Answer {
    let whole = || Answer::new(200, content.clone().unwrap_or_default());
    let delivery = match effect {
        Effect::Status(status, headers, text) => {
            return headers
                .iter()
                .fold(Answer::new(status, text), |answer, (name, value)| answer.header(name, value));
        }
        Effect::RateLimited(seconds) => {
            return Answer::new(429, "")
                .header("RateLimit", format!("\"resolvers\";r=0;t={seconds}"))
                .header("RateLimit-Policy", "\"fixed window\";\"resolvers\";q=3000;w=300");
        }
        Effect::RetryAfter(value) => return Answer::new(429, "").header("Retry-After", value),
        Effect::BareTooMany => return Answer::new(429, "Too Many Requests"),
        Effect::LastOfWindow(seconds) => {
            return answer.header("RateLimit", format!("\"resolvers\";r=0;t={seconds}"));
        }
        Effect::Redirect(address) => return Answer::new(302, "").header("Location", address),
        Effect::IgnoreRange => return whole(),
        Effect::OtherBody(body) => return Answer::new(200, body),
        Effect::Unsatisfiable => {
            let size = content.map_or(0, |content| content.len());
            return Answer::new(416, "").header("Content-Range", format!("bytes */{size}"));
        }
        Effect::OtherRange => {
            let mut other = whole();
            other.status = 206;
            let size = other.body.len();
            return other.header("Content-Range", format!("bytes 0-{}/{size}", size.saturating_sub(1)));
        }
        Effect::WrongByte(offset) => {
            let first = if answer.status == 206 { request.first_byte().unwrap_or(0) } else { 0 };
            let index = (offset as usize).checked_sub(first);
            if let Some(byte) = index.and_then(|index| answer.body.get_mut(index)) {
                *byte ^= 1;
            }
            return answer;
        }
        Effect::IgnoreRangeAndResetAfter(bytes) => {
            answer = whole();
            Delivery::ResetAfter(bytes as usize)
        }
        Effect::Close => Delivery::Nothing { stall: false },
        Effect::StallBeforeHeader => Delivery::Nothing { stall: true },
        Effect::ResetAfter(bytes) => Delivery::ResetAfter(bytes as usize),
        Effect::CutAfter(bytes) => Delivery::CutAfter(bytes as usize),
        Effect::EndAfter(bytes) => Delivery::EndAfter(bytes as usize),
        Effect::StallAfter(bytes) => Delivery::StallAfter(bytes as usize),
    };
    answer.delivery = delivery;
    answer
}

/// The bytes of `file` that `request` asks for.
fn body(file: &StoredFile, request: &Request) -> Routed {
    let size = file.content.len();
    let answer = match request.first_byte() {
        None => Answer::new(200, file.content.clone()),
        Some(first) if first < size => Answer::new(206, &file.content[first..])
            .header("Content-Range", format!("bytes {first}-{}/{size}", size - 1)),
        Some(_) => Answer::new(416, "").header("Content-Range", format!("bytes */{size}")),
    };
    let answer = answer.header("ETag", format!("\"{}\"", file.etag())).header("Accept-Ranges", "bytes");
    Routed { answer, target: Some(Target::Body(file.path.clone())), content: Some(file.content.clone()) }
}

fn may_read(dataset: &Dataset, authorization: Option<&str>) -> bool {
    match &dataset.token {
        None => true,
        Some(token) => authorization == Some(&format!("Bearer {token}")),
    }
}

fn revision_answer(dataset: &Dataset) -> Answer {
    let gated = if dataset.token.is_some() { json!("auto") } else { json!(false) };
    let siblings: Vec<_> = dataset.files.iter().map(|file| json!({"rfilename": file.path})).collect();
    let answer = json!({
        "_id": "6581d1a1b2c3d4e5f6a7b8c9",
        "id": dataset.repository,
        "sha": dataset.sha,
        "lastModified": "2024-06-06T20:14:54.000Z",
        "private": false,
        "gated": gated,
        "disabled": false,
        "cardData": {"license": dataset.licence},
        "siblings": siblings,
    });
    Answer::new(200, answer.to_string()).header("Content-Type", "application/json")
}

fn refusal(status: u16, code: Option<&str>, message: &str) -> Answer {
    let answer = Answer::new(status, json!({"error": message}).to_string())
        .header("Content-Type", "application/json")
        .header("X-Error-Message", message);
    match code {
        Some(code) => answer.header("X-Error-Code", code),
        None => answer,
    }
}

fn recorded(number: u64, host: Host, request: &Request, routed: &Routed) -> RecordedRequest {
    let header = |name| request.header(name).map(str::to_owned);
    let file = match &routed.target {
        Some(Target::Resolve(path) | Target::Body(path)) => Some(path.clone()),
        _ => None,
    };
    RecordedRequest {
        number,
        host,
        method: request.method.clone(),
        path: format!("/{}", request.segments.join("/")),
        query: request.query.clone(),
        file,
        is_body: matches!(routed.target, Some(Target::Body(_))),
        range: header("range"),
        authorization: header("authorization"),
        accept_encoding: header("accept-encoding"),
        status: 0,
        body_bytes: 0,
    }
}
