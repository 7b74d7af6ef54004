//! From a refusal of the Hub to what it means.
//!
//! The status alone misleads: to an anonymous caller the Hub answers 401 ("Invalid username or password.") for a
//! repository that does not exist, so as not to tell which private names are taken. What counts is `X-Error-Code`
//! (`RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`), then two known messages, then the status.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use xlstm_manifests::printable;

use super::error::HubError;

/// What was asked for.
pub(super) struct Subject<'a> {
    pub(super) repository: &'a str,
    pub(super) revision: &'a str,
    /// The file, where it was one.
    pub(super) path: Option<&'a str>,
}

/// Who asked whom for what.
pub(super) struct Asker<'a> {
    pub(super) endpoint: &'a str,
    pub(super) authenticated: bool,
    pub(super) what: &'a str,
}

/// The error that an answer of the Hub with a status of neither success nor rate limit stands for.
pub(super) fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    subject: &Subject<'_>,
    asker: &Asker<'_>,
) -> HubError {
    let repository = subject.repository.to_owned();
    let endpoint = asker.endpoint.to_owned();
    let authenticated = asker.authenticated;
    let message = message_of(headers, body);
    let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    match (code, subject.path) {
        ("RepoNotFound", _) => return HubError::RepositoryNotFound { repository, endpoint, authenticated },
        ("GatedRepo", _) => return HubError::Gated { repository, endpoint, authenticated },
        ("RevisionNotFound", _) => {
            let revision = subject.revision.to_owned();
            return HubError::RevisionNotFound { repository, revision, endpoint };
        }
        ("EntryNotFound", Some(path)) => return entry_not_found(subject, path),
        _ => {}
    }
    if message.contains("Access to this resource is disabled") {
        return HubError::Disabled { repository };
    }
    match (status.as_u16(), subject.path) {
        (401, _) if authenticated && message.contains("Invalid credentials in Authorization header") => {
            HubError::InvalidToken { endpoint }
        }
        (401, _) | (404, None) => HubError::RepositoryNotFound { repository, endpoint, authenticated },
        (404, Some(path)) => entry_not_found(subject, path),
        (403 | 451, _) => {
            HubError::Forbidden { what: asker.what.to_owned(), status: status.as_u16(), message }
        }
        _ => HubError::Status { what: asker.what.to_owned(), status: status.as_u16(), message },
    }
}

fn entry_not_found(subject: &Subject<'_>, path: &str) -> HubError {
    HubError::EntryNotFound {
        repository: subject.repository.to_owned(),
        revision: subject.revision.to_owned(),
        path: path.to_owned(),
    }
}

/// The server's words: `X-Error-Message`, the `error` of a JSON body, or the start of the body; printable, short.
fn message_of(headers: &HeaderMap, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        error: String,
    }
    let header = headers.get("x-error-message").and_then(|message| message.to_str().ok());
    let message = match (header, serde_json::from_slice::<Body>(body)) {
        (Some(message), _) => message.to_owned(),
        (None, Ok(body)) => body.error,
        (None, Err(_)) => String::from_utf8_lossy(body).into_owned(),
    };
    // A refusal may repeat the request with its token: that goes before the text is cut, which could leave half of it.
    let message: String = message.chars().filter(|c| !c.is_control()).collect();
    let message: String = printable::redacted(&message).chars().take(300).collect();
    if message.is_empty() { "(no message)".to_owned() } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, code: &str, message: &str, path: Option<&str>, authenticated: bool) -> HubError {
        let mut headers = HeaderMap::new();
        if !code.is_empty() {
            headers.insert("x-error-code", code.parse().unwrap());
        }
        let body = serde_json::json!({ "error": message }).to_string();
        let subject = Subject { repository: "o/n", revision: "main", path };
        let asker = Asker { endpoint: "https://hub.example", authenticated, what: "testing" };
        refusal(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), &subject, &asker)
    }

    #[test]
    fn the_code_counts_more_than_the_status() {
        type Case = (u16, &'static str, &'static str, Option<&'static str>, bool, fn(&HubError) -> bool);
        let cases: [Case; 13] = [
            (404, "RepoNotFound", "", None, true, |e| matches!(e, HubError::RepositoryNotFound { .. })),
            (401, "RepoNotFound", "", None, false, |e| matches!(e, HubError::RepositoryNotFound { .. })),
            (401, "GatedRepo", "", Some("f"), false, |e| matches!(e, HubError::Gated { .. })),
            (403, "GatedRepo", "", Some("f"), true, |e| matches!(e, HubError::Gated { .. })),
            (404, "RevisionNotFound", "", None, false, |e| matches!(e, HubError::RevisionNotFound { .. })),
            (404, "EntryNotFound", "", Some("f"), false, |e| matches!(e, HubError::EntryNotFound { .. })),
            (401, "", "Invalid username or password.", None, false, |e| {
                matches!(e, HubError::RepositoryNotFound { authenticated: false, .. })
            }),
            (401, "", "Invalid credentials in Authorization header", None, true, |e| {
                matches!(e, HubError::InvalidToken { .. })
            }),
            (403, "", "Access to this resource is disabled.", None, true, |e| {
                matches!(e, HubError::Disabled { .. })
            }),
            (403, "", "no", None, true, |e| matches!(e, HubError::Forbidden { .. })),
            (404, "", "", Some("f"), true, |e| matches!(e, HubError::EntryNotFound { .. })),
            (404, "", "", None, true, |e| matches!(e, HubError::RepositoryNotFound { .. })),
            (418, "", "teapot", None, true, |e| matches!(e, HubError::Status { status: 418, .. })),
        ];
        for (status, code, message, path, authenticated, check) in cases {
            let error = judge(status, code, message, path, authenticated);
            assert!(check(&error), "{status} {code} {message}: {error:?}");
        }
    }

    #[test]
    fn messages_say_what_to_do() {
        let gated = judge(401, "GatedRepo", "", Some("f"), false).to_string();
        assert!(gated.contains("https://hub.example/datasets/o/n") && gated.contains("HF_TOKEN"), "{gated}");
        let missing = judge(401, "", "Invalid username or password.", None, false).to_string();
        assert!(missing.contains("--profile") && missing.contains("HF_TOKEN"), "{missing}");
    }
}
