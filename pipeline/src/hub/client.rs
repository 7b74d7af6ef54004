//! The Hub itself, and what a revision of a repository is.

use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use super::access::Subject;
use super::config::HubConfig;
use super::error::HubError;
use super::observer::{DownloadObserver, SilentObserver, observed};
use super::remote::{Gated, Revision};
use super::retry::Effort;
use super::transport::Transport;

/// A Hugging Face Hub or a mirror of it. Shared by all threads of a process, so that they share what the Hub says
/// of its rate limit.
pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) transport: Transport,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default)]
    disabled: bool,
    #[serde(rename = "lastModified")]
    last_modified: Option<String>,
    #[serde(rename = "cardData")]
    card: Option<Card>,
}

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    license: serde_json::Value,
}

impl Hub {
    /// A Hub as `config` says. No request is made.
    ///
    /// # Errors
    /// [`HubError::Setting`] for an endpoint that is no address, or a machine without CA certificates.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        let transport = Transport::new(&config)?;
        Ok(Self { config, transport })
    }

    /// The same Hub, given up after a second failure in a row: for a question that can be done without.
    ///
    /// # Errors
    /// As [`Hub::new`].
    pub fn impatient(&self) -> Result<Self, HubError> {
        let mut config = self.config.clone();
        config.retry.attempts = config.retry.attempts.min(2);
        Self::new(config)
    }

    /// The address of the Hub.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.config.endpoint
    }

    /// Whether requests carry a token.
    #[must_use]
    pub fn authenticated(&self) -> bool {
        self.transport.authenticated()
    }

    /// The commit that `revision` (a branch, a tag, a commit or the start of one) of dataset `repository` is now.
    ///
    /// # Errors
    /// [`HubError::RepositoryNotFound`], [`HubError::RevisionNotFound`], [`HubError::Disabled`] and what else the
    /// Hub refuses; [`HubError::Protocol`] for an answer that names no commit.
    pub fn resolve(&self, repository: &str, revision: &str) -> Result<Revision, HubError> {
        self.resolve_observed(repository, revision, &SilentObserver, &AtomicBool::new(false))
    }

    /// As [`Hub::resolve`], telling `observer` of each wait, and returning [`HubError::Cancelled`] soon after
    /// `cancel` becomes true.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn resolve_observed(
        &self,
        repository: &str,
        revision: &str,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<Revision, HubError> {
        Self::check_repository(repository)?;
        if revision.is_empty() || revision.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(HubError::Setting {
                setting: "the revision",
                found: revision.escape_debug().to_string(),
                reason: "expected a branch, a tag or a commit".into(),
            });
        }
        let what = format!("resolving revision {revision} of {repository}");
        let (stop, waiting) = observed(observer, cancel);
        let mut effort = Effort::new(what, self.transport.policy(), &stop, &waiting);
        let subject = Subject { repository, revision, path: None };
        let segments =
            ["api", "datasets"].into_iter().chain(repository.split('/')).chain(["revision", revision]);
        let address = self.transport.address(segments);
        let (_, body) = self.transport.get_document(&address, &subject, &mut effort)?;
        let protocol = |expected: &str, found: String| HubError::Protocol {
            what: effort.what.clone(),
            expected: expected.into(),
            found,
        };
        let answer: RevisionAnswer = serde_json::from_slice(&body)
            .map_err(|error| protocol("JSON with a commit", format!("other data ({error})")))?;
        if answer.disabled {
            return Err(HubError::Disabled { repository: repository.to_owned() });
        }
        if !is_commit(&answer.sha) {
            return Err(protocol("a commit of 40 hex digits", format!("`{}`", answer.sha.escape_debug())));
        }
        if is_commit(revision) && revision != answer.sha {
            return Err(protocol(&format!("commit {revision}"), format!("commit {}", answer.sha)));
        }
        Ok(Revision {
            repository: repository.to_owned(),
            requested: revision.to_owned(),
            gated: gated(&answer.gated),
            licences: answer.card.map(|card| strings(card.license)).unwrap_or_default(),
            last_modified: answer.last_modified,
            sha: answer.sha,
        })
    }

    /// Refuses what is no repository name, before it becomes an address or a folder.
    pub(super) fn check_repository(repository: &str) -> Result<(), HubError> {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        if repository.len() <= 193 && repository.split('/').count() <= 2 && repository.split('/').all(plain) {
            return Ok(());
        }
        Err(HubError::Setting {
            setting: "the repository",
            found: repository.chars().take(200).collect::<String>().escape_debug().to_string(),
            reason: "expected owner/name, of letters, digits, `-`, `_` and `.`".into(),
        })
    }

    /// Refuses what is no full commit.
    pub(super) fn check_commit(sha: &str) -> Result<(), HubError> {
        if is_commit(sha) {
            return Ok(());
        }
        Err(HubError::Setting {
            setting: "the commit",
            found: sha.chars().take(80).collect::<String>().escape_debug().to_string(),
            reason: "expected 40 lower-case hex digits, as resolving a revision gives".into(),
        })
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// `false`, `"auto"` or `"manual"`.
fn gated(value: &serde_json::Value) -> Gated {
    match value {
        serde_json::Value::String(kind) if kind == "auto" => Gated::Auto,
        serde_json::Value::String(_) | serde_json::Value::Bool(true) => Gated::Manual,
        _ => Gated::No,
    }
}

/// One string or several.
fn strings(value: serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::String(one) => vec![one],
        serde_json::Value::Array(several) => several.into_iter().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}
