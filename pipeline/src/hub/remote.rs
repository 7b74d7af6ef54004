//! What the Hub has, as it says so, and what of it is on this disk.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::Sha256Digest;

use super::digest::DeclaredDigest;

/// A file as its listing declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Path inside the repository, `/`-separated; from [`super::Hub::list`] it is known to stay inside a folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The digest of its content.
    pub digest: DeclaredDigest,
    /// Its name in the Hub's chunk store, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xet_hash: Option<String>,
}

/// A file of a commit of a dataset, and where it is to be.
#[derive(Debug, Clone, Copy)]
pub struct FileRequest<'a> {
    /// `owner/name`.
    pub repository: &'a str,
    /// The commit, 40 hex digits.
    pub sha: &'a str,
    /// The file, as the commit's listing declares it.
    pub file: &'a RemoteFile,
    /// Where it goes; its folder is created.
    pub destination: &'a Path,
}

/// Who may have the files of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gated {
    /// Everybody.
    No,
    /// Whoever accepts the license.
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
    /// Licenses its card names, as written there; mostly one, often none.
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
    /// They are a blob of a Hugging Face cache, which is used in place.
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

/// A file whose content is the declared one, and how it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchedFile {
    /// SHA-256 of the content, computed here whichever digest the Hub declares.
    pub sha256: Sha256Digest,
    /// Bytes.
    pub size: u64,
    /// Bytes that were on disk already and not downloaded again.
    pub reused_bytes: u64,
    /// Requests made to the Hub.
    pub requests: u64,
}
