//! What can go wrong between the Hub and a verified file; every message says what to do next.
//!
//! No message carries an address with a query: the signed addresses of the storage host are credentials.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of the Hub or of the files that come from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A setting (an environment variable, mostly) cannot be used.
    #[error("{setting} is `{found}`: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it holds; never a secret.
        found: String,
        /// What is wrong with it and what is expected.
        reason: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the network would be needed.
    #[error(
        "{what} needs the network, which --offline or HF_HUB_OFFLINE forbids; allow it, or give the downloaded files with \
         --from DIR --offline"
    )]
    Offline {
        /// What was to be done.
        what: String,
    },
    /// No such repository, or one that is hidden from whoever asks.
    #[error(
        "dataset `{repository}` was not found at {endpoint}{}; repositories do come and go: check the name at \
         {endpoint}/datasets/{repository}, choose another --profile, or give files you have with --from DIR",
        if *authenticated { " with your token" } else {
            " (no token was sent; the Hub gives the same answer for a private one: if it is, set HF_TOKEN)"
        }
    )]
    RepositoryNotFound {
        /// `owner/name`.
        repository: String,
        /// The Hub asked.
        endpoint: String,
        /// Whether a token was sent.
        authenticated: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "dataset `{repository}` has no revision `{revision}`; see {endpoint}/datasets/{repository}/commits/main \
         for those there are, and pass one with --revision"
    )]
    RevisionNotFound {
        /// `owner/name`.
        repository: String,
        /// What was asked for.
        revision: String,
        /// The Hub asked.
        endpoint: String,
    },
    /// The commit has no such file.
    #[error(
        "`{path}` is not in dataset `{repository}` at {revision}; expected a file of its listing: \
         if the listing was kept from another Hub, remove it and run again"
    )]
    EntryNotFound {
        /// `owner/name`.
        repository: String,
        /// The commit.
        revision: String,
        /// The file.
        path: String,
    },
    /// The files are given only to those who accepted the license.
    #[error(
        "dataset `{repository}` is gated: {}; accept its license at {endpoint}/datasets/{repository} with your \
         account{}",
        if *authenticated { "the account of your token has not been given access" } else { "no token was sent" },
        if *authenticated { ", and let the token read gated repositories" } else {
            ", then set HF_TOKEN to a token of that account"
        }
    )]
    Gated {
        /// `owner/name`.
        repository: String,
        /// The Hub asked.
        endpoint: String,
        /// Whether a token was sent.
        authenticated: bool,
    },
    /// The Hub has switched the repository off.
    #[error(
        "access to dataset `{repository}` has been disabled by the Hub; choose another --profile, or give files \
         you have with --from DIR"
    )]
    Disabled {
        /// `owner/name`.
        repository: String,
    },
    /// The token is not one the Hub knows.
    #[error(
        "{endpoint} does not accept the token sent; make a new one at {endpoint}/settings/tokens and set HF_TOKEN, \
         or unset HF_TOKEN to go without"
    )]
    InvalidToken {
        /// The Hub asked.
        endpoint: String,
    },
    /// Refused for a reason only the server knows.
    #[error(
        "{what}: refused with status {status}: {message}; check what the token may read, and the endpoint"
    )]
    Forbidden {
        /// What was to be done.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// A status that no rule covers.
    #[error("{what}: unexpected status {status}: {message}; check that HF_ENDPOINT is a Hugging Face Hub")]
    Status {
        /// What was to be done.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The server still asks to wait after the longest time that a run waits.
    #[error(
        "{what}: the Hub's rate limit asks for {} s more after {} s of waiting; run again later, use fewer machines \
         at once, or set HF_TOKEN (an account has a higher limit)", asked.as_secs(), waited.as_secs()
    )]
    RateLimited {
        /// What was to be done.
        what: String,
        /// How long this request had waited.
        waited: Duration,
        /// How much longer it should.
        asked: Duration,
    },
    /// The retries are used up.
    #[error(
        "{what}: gave up after {attempts} attempts in a row, the last one: {reason}; run again to go on from here"
    )]
    Unreachable {
        /// What was to be done.
        what: String,
        /// Attempts without any progress.
        attempts: u32,
        /// How the last one ended.
        reason: String,
    },
    /// An answer that is not what the protocol promises.
    #[error("{what}: expected {expected}, found {found}; check that HF_ENDPOINT is a Hugging Face Hub")]
    Protocol {
        /// What was to be done.
        what: String,
        /// What the protocol promises.
        expected: String,
        /// What came.
        found: String,
    },
    /// A listing names a path that would leave its folder.
    #[error(
        "dataset `{repository}` lists the path `{path}`, which is refused: {reason}; do not use this repository"
    )]
    UnsafePath {
        /// `owner/name`.
        repository: String,
        /// The path as listed, made printable.
        path: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A file has another length than its listing declares.
    #[error("{path}: expected {expected} bytes, found {found}; {hint}", path = path.display())]
    WrongSize {
        /// The file on disk, or its path on the Hub.
        path: PathBuf,
        /// Bytes declared.
        expected: u64,
        /// Bytes there are.
        found: u64,
        /// What to do next.
        hint: String,
    },
    /// A file has another content than its listing declares.
    #[error("{path}: expected {expected}, found {found}; {hint}", path = path.display())]
    WrongDigest {
        /// The file on disk, or its path on the Hub.
        path: PathBuf,
        /// The digest declared.
        expected: String,
        /// The digest of what is there.
        found: String,
        /// What to do next.
        hint: String,
    },
    /// Another process is downloading the same file.
    #[error("{path} is being downloaded by another run; wait for it, stop it, or use another folder", path = path.display())]
    Busy {
        /// The partial file.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("cannot {action} {path}: {source}{hint}", path = path.display(), hint = disk_hint(source))]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped as asked; what has arrived is kept, run again to go on")]
    Cancelled,
}

impl HubError {
    /// Wraps an error of the operating system, naming what was done to which file.
    pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { action, path: path.into(), source }
    }

    /// Whether the user asked for the stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

fn disk_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and run again: the bytes that have arrived are kept"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: choose another folder",
        io::ErrorKind::PermissionDenied => "; make it writable for this user, or choose another folder",
        io::ErrorKind::NotADirectory => {
            "; a part of this path is a file: remove it, or choose another folder"
        }
        _ => "",
    }
}
