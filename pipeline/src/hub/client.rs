//! The Hub itself: what a revision is, and where a file may lie already.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::access::Subject;
use super::config::HubConfig;
use super::download::{DownloadObserver, SilentObserver, observed};
use super::error::HubError;
use super::listing::RemoteFile;
use super::retry::Effort;
use super::transport::Transport;
use super::verify::{FetchedFile, verify_file};

/// A Hugging Face Hub or a mirror of it. Shared by all threads of a process, so that they share what the Hub says
/// of its rate limit.
pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) transport: Transport,
}

/// Who may have the files of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gated {
    /// Everybody.
    No,
    /// Whoever accepts the licence.
    Auto,
    /// Whom its owners let in, one by one.
    Manual,
}

/// A revision, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `owner/name`.
    pub repository: String,
    /// The branch, tag or (short) commit asked for.
    pub requested: String,
    /// The commit, 40 hex digits.
    pub sha: String,
    /// Who may have its files.
    pub gated: Gated,
    /// Licences its card names, as written there; mostly one, often none.
    pub licences: Vec<String>,
    /// When it was last changed, as the Hub writes it.
    pub last_modified: Option<String>,
}

/// Where the bytes of a [`StoredFile`] were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// They came from the Hub, the last of them now.
    Hub,
    /// They were at the destination.
    Destination,
    /// They are a blob of a Hugging Face cache, which is used where it lies.
    HuggingFaceCache,
}

/// A verified file on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Where it is: the destination, or a blob in a Hugging Face cache (never to be changed or removed).
    pub path: PathBuf,
    /// Its digest and size, and how it came.
    pub fetched: FetchedFile,
    /// Where its bytes were found.
    pub origin: Origin,
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

    /// The blob of `file` in the Hugging Face cache, if there is one of the right length. Its content is still to be
    /// verified ([`verify_file`]).
    #[must_use]
    pub fn locate_in_hf_cache(&self, repository: &str, sha: &str, file: &RemoteFile) -> Option<PathBuf> {
        let cache = hf_hub::Cache::new(self.config.hf_cache.clone()?);
        let repository = cache.repo(hf_hub::Repo::dataset(repository.to_owned()));
        // <cache>/datasets--owner--name/snapshots/<commit>: the blobs lie beside the snapshots.
        let blobs = repository.pointer_path(sha).parent()?.parent()?.join("blobs");
        let blob = blobs.join(file.digest.hex());
        let metadata = fs_err::metadata(&blob).ok()?;
        (metadata.is_file() && metadata.len() == file.size).then_some(blob)
    }

    /// `file`, verified, from wherever it can be had at the least cost: the destination, the Hugging Face cache,
    /// the Hub (to the destination). A blob of the cache that turns out damaged is passed over.
    ///
    /// # Errors
    /// As [`Hub::download`].
    pub fn obtain(
        &self,
        repository: &str,
        sha: &str,
        file: &RemoteFile,
        destination: &Path,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<StoredFile, HubError> {
        let stop = || cancel.load(Ordering::Relaxed);
        self.obtain_until(repository, sha, file, destination, observer, &stop)
    }

    pub(super) fn obtain_until(
        &self,
        repository: &str,
        sha: &str,
        file: &RemoteFile,
        destination: &Path,
        observer: &dyn DownloadObserver,
        stop: &dyn Fn() -> bool,
    ) -> Result<StoredFile, HubError> {
        if stop() {
            return Err(HubError::Cancelled);
        }
        if !destination.exists()
            && let Some(path) = self.locate_in_hf_cache(repository, sha, file)
            && let Ok(fetched) = verify_file(&path, file)
        {
            observer.reused(fetched.size);
            return Ok(StoredFile { path, fetched, origin: Origin::HuggingFaceCache });
        }
        let was_there = destination.exists();
        let fetched = self.download_until(repository, sha, file, destination, observer, stop)?;
        let kept = was_there && fetched.requests == 0;
        let origin = if kept { Origin::Destination } else { Origin::Hub };
        Ok(StoredFile { path: destination.to_owned(), fetched, origin })
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
