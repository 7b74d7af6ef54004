//! A file on its way: `name.part`, and `name.part.json`, which says what it will be.
//!
//! ```text
//! name.part        the first bytes, in order
//! name.part.json   {"digest": {"sha256": "…"}, "size": 15100000}
//! ```
//! A later run resumes from the bytes that are there if the JSON names the digest it wants; else it starts over.
//! They are hashed again first: what is on disk may be less, or other, than what was once written. Only a file
//! whose digest is the declared one is made durable and given its name. An advisory lock on `name.part` keeps a
//! second process (or thread) off; it disappears with the process that holds it.

use std::fs::TryLockError;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::Sha256Digest;

use super::digest::{ContentHasher, DeclaredDigest};
use super::error::HubError;
use super::remote::RemoteFile;
use super::verify::hash_all;

/// What `name.part.json` holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sidecar {
    digest: DeclaredDigest,
    size: u64,
}

pub(super) struct Partial {
    file: fs_err::File,
    path: PathBuf,
    sidecar: PathBuf,
    declared: Sidecar,
    hasher: ContentHasher,
    reached: u64,
}

impl Partial {
    /// Opens or creates the partial file of `destination`, and hashes what it holds. `None` when another process
    /// has just finished it: look at the destination again.
    ///
    /// # Errors
    /// [`HubError::Busy`], [`HubError::Disk`], or what `check_stop` says.
    pub(super) fn open(
        destination: &Path,
        file: &RemoteFile,
        check_stop: &dyn Fn() -> Result<(), HubError>,
    ) -> Result<Option<Self>, HubError> {
        let path = with_suffix(destination, ".part");
        let sidecar = with_suffix(destination, ".part.json");
        let mut options = fs_err::OpenOptions::new();
        let handle = options.read(true).write(true).create(true).truncate(false).open(&path);
        let handle = handle.map_err(HubError::disk("create", &path))?;
        match handle.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { path }),
            // A file system without locks (some network ones) goes without.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(HubError::disk("lock", &path)(error)),
        }
        if !is_still_at(&handle, &path) {
            return Ok(None);
        }
        let declared = Sidecar { digest: file.digest, size: file.size };
        let hasher = ContentHasher::new(file.digest, file.size);
        let mut partial = Self { file: handle, path, sidecar, declared, hasher, reached: 0 };
        partial.take_up(check_stop)?;
        Ok(Some(partial))
    }

    /// Goes on from what is there, if it is the start of the same file.
    fn take_up(&mut self, check_stop: &dyn Fn() -> Result<(), HubError>) -> Result<(), HubError> {
        let there = self.file.metadata().map_err(HubError::disk("read the size of", &self.path))?.len();
        let known = fs_err::read(&self.sidecar).ok();
        let known = known.and_then(|json| serde_json::from_slice::<Sidecar>(&json).ok());
        if known.as_ref() == Some(&self.declared) && there <= self.declared.size {
            self.reached =
                hash_all(&mut self.file, &mut self.hasher, check_stop).map_err(|stop| stop.at(&self.path))?;
            return Ok(());
        }
        if there > 0 {
            self.restart()?;
        }
        self.write_sidecar()
    }

    fn write_sidecar(&self) -> Result<(), HubError> {
        let failed = HubError::disk("write", &self.sidecar);
        let json = serde_json::to_vec(&self.declared).map_err(std::io::Error::from);
        json.and_then(|json| {
            let temporary = with_suffix(&self.sidecar, ".new");
            fs_err::write(&temporary, json)?;
            fs_err::rename(&temporary, &self.sidecar)
        })
        .map_err(failed)
    }

    /// Bytes there are.
    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    /// Adds what follows.
    ///
    /// # Errors
    /// [`HubError::Disk`]; the bytes before are kept for a later run.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::disk("write", &self.path))?;
        self.hasher.update(bytes);
        self.reached += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::disk("empty", &self.path))?;
        self.hasher = ContentHasher::new(self.declared.digest, self.declared.size);
        self.reached = 0;
        Ok(())
    }

    /// The SHA-256 of the bytes, and the digest to compare with the declared one.
    pub(super) fn digests(&self) -> (Sha256Digest, DeclaredDigest) {
        self.hasher.finish()
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn finish(self, destination: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::disk("make durable", &self.path))?;
        fs_err::rename(&self.path, destination).map_err(HubError::disk("rename to", destination))?;
        // A sidecar without its partial file is harmless, so its removal may fail or be lost.
        let _ = fs_err::remove_file(&self.sidecar);
        let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        fs_err::File::open(folder)
            .and_then(|handle| handle.sync_all())
            .map_err(HubError::disk("make durable", folder))
    }

    /// Removes the partial file: its bytes are no good.
    pub(super) fn discard(self) {
        // What cannot be removed is emptied or overwritten by the next run.
        let _ = fs_err::remove_file(&self.sidecar);
        let _ = fs_err::remove_file(&self.path);
    }
}

/// Whether `path` still names the file that was opened: another process may have renamed it in between.
fn is_still_at(handle: &fs_err::File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (handle.metadata(), fs_err::metadata(path)) {
            (Ok(open), Ok(named)) => open.dev() == named.dev() && open.ino() == named.ino(),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = handle;
        path.exists()
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> RemoteFile {
        RemoteFile {
            path: "f".into(),
            size: content.len() as u64,
            digest: DeclaredDigest::Sha256(Sha256Digest::of(content)),
            xet_hash: None,
        }
    }

    fn open(destination: &Path, content: &[u8]) -> Result<Partial, HubError> {
        Partial::open(destination, &file(content), &|| Ok(())).map(|partial| partial.expect("nobody else"))
    }

    #[test]
    fn what_is_there_is_taken_up_and_finished() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("f");
        let mut partial = open(&destination, b"hello world").unwrap();
        partial.append(b"hello ").unwrap();
        assert!(matches!(open(&destination, b"hello world"), Err(HubError::Busy { .. })));
        drop(partial);
        let mut partial = open(&destination, b"hello world").unwrap();
        assert_eq!(partial.reached(), 6);
        partial.append(b"world").unwrap();
        assert_eq!(partial.digests().0, Sha256Digest::of(b"hello world"));
        partial.finish(&destination).unwrap();
        assert_eq!(fs_err::read(&destination).unwrap(), b"hello world");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn bytes_of_another_file_or_of_unknown_origin_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("f");
        open(&destination, b"hello world").unwrap().append(b"hello ").unwrap();
        assert_eq!(open(&destination, b"jello world").unwrap().reached(), 0);
        open(&destination, b"jello world").unwrap().append(b"jello ").unwrap();
        fs_err::remove_file(with_suffix(&destination, ".part.json")).unwrap();
        assert_eq!(open(&destination, b"jello world").unwrap().reached(), 0);
        open(&destination, b"jello world").unwrap().append(b"longer than it should be").unwrap();
        assert_eq!(open(&destination, b"jello world").unwrap().reached(), 0);
    }
}
