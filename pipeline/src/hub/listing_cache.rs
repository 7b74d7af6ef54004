//! Listings kept on disk for good: the listing of a commit never changes.
//!
//! ```text
//! <folder>/<host>/<owner>--<name>/<commit>.json     line 1: `xlstm-listing 1 <SHA-256 of the rest>`
//!                                                   line 2: {"endpoint": …, "repository": …, "sha": …, "files": […]}
//! ```
//! What they hold decides which bytes are accepted, so a damaged file is not read: the listing is asked for again.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::Sha256Digest;

use super::error::HubError;
use super::remote::RemoteFile;

const HEAD: &str = "xlstm-listing 1 ";

/// Which listing.
pub(super) struct Key<'a> {
    pub(super) endpoint: &'a str,
    pub(super) repository: &'a str,
    pub(super) sha: &'a str,
}

#[derive(Serialize, Deserialize)]
struct StoredListing<'a> {
    endpoint: std::borrow::Cow<'a, str>,
    repository: std::borrow::Cow<'a, str>,
    sha: std::borrow::Cow<'a, str>,
    files: std::borrow::Cow<'a, [RemoteFile]>,
}

/// The listing kept under `folder`, if there is one and it is whole.
pub(super) fn read(folder: &Path, key: &Key<'_>) -> Option<Vec<RemoteFile>> {
    let text = fs_err::read_to_string(key.file(folder)).ok()?;
    let (head, json) = text.split_once('\n')?;
    let digest: Sha256Digest = head.strip_prefix(HEAD)?.parse().ok()?;
    if Sha256Digest::of(json.as_bytes()) != digest {
        return None;
    }
    let kept: StoredListing<'_> = serde_json::from_str(json).ok()?;
    let asked = (key.endpoint, key.repository, key.sha);
    ((&*kept.endpoint, &*kept.repository, &*kept.sha) == asked).then(|| kept.files.into_owned())
}

/// Keeps a listing under `folder`.
pub(super) fn write(folder: &Path, key: &Key<'_>, files: &[RemoteFile]) -> Result<(), HubError> {
    let path = key.file(folder);
    let parent = path.parent().unwrap_or(folder);
    fs_err::create_dir_all(parent).map_err(HubError::disk("create", parent))?;
    let kept = StoredListing {
        endpoint: key.endpoint.into(),
        repository: key.repository.into(),
        sha: key.sha.into(),
        files: files.into(),
    };
    let json = serde_json::to_string(&kept).map_err(|error| HubError::disk("write", &path)(error.into()))?;
    let digest = Sha256Digest::of(json.as_bytes());
    // A unique name: several processes may write the same listing at once.
    let written = tempfile::NamedTempFile::new_in(parent).and_then(|mut file| {
        write!(file, "{HEAD}{digest}\n{json}")?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)
    });
    written.map(drop).map_err(HubError::disk("write", &path))
}

impl Key<'_> {
    fn file(&self, folder: &Path) -> PathBuf {
        let host = self.endpoint.split_once("://").map_or(self.endpoint, |(_, rest)| rest);
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
        // Begins with a letter, so that it is never `.` or `..`.
        let host: String = "hub-".chars().chain(host.chars().map(plain)).take(120).collect();
        folder.join(host).join(self.repository.replace('/', "--")).join(format!("{}.json", self.sha))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::digest::DeclaredDigest;

    #[test]
    fn what_was_kept_comes_back_and_what_is_damaged_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let sha = "1".repeat(40);
        let key = Key { endpoint: "https://hub.example", repository: "o/n", sha: &sha };
        let digest = DeclaredDigest::Sha256(Sha256Digest::of(b"abc"));
        let files = [RemoteFile { path: "a".into(), size: 3, digest, xet_hash: None }];
        assert_eq!(read(folder.path(), &key), None);
        write(folder.path(), &key, &files).unwrap();
        assert_eq!(read(folder.path(), &key).as_deref(), Some(&files[..]));
        let elsewhere = Key { endpoint: "http://hub.example", ..key };
        assert_eq!(read(folder.path(), &elsewhere), None, "same host, other scheme");

        let path = key.file(folder.path());
        let mut bytes = fs_err::read(&path).unwrap();
        let digit = bytes.iter().rposition(|&byte| byte == b'3').unwrap();
        bytes[digit] = b'4';
        fs_err::write(&path, bytes).unwrap();
        assert_eq!(read(folder.path(), &key), None);
    }
}
