//! Files that are there whole or not at all: temporary name, fsync, rename, fsync of the folder.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::file_digest::Digests;
use crate::hashing_writer::HashingWriter;

/// The ending of files under construction; a later run removes them.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// A file under construction beside its final name. Dropped without [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    writer: Option<HashingWriter<BufWriter<fs_err::File>>>,
    partial: PathBuf,
    destination: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
}

impl AtomicFile {
    /// Starts `destination`, in a folder that exists.
    ///
    /// # Errors
    /// When the temporary file cannot be created; the error names it.
    pub fn create(destination: &Path) -> Result<Self> {
        let mut partial = destination.as_os_str().to_owned();
        partial.push(PARTIAL_SUFFIX);
        let partial = PathBuf::from(partial);
        let file = fs_err::File::create(&partial)?;
        let writer = HashingWriter::new(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { writer: Some(writer), partial, destination: destination.into() })
    }

    /// The digests of what was written so far.
    ///
    /// # Errors
    /// When the file was already committed.
    pub(crate) fn digests(&mut self) -> Result<&mut Digests> {
        self.writer.as_mut().map(HashingWriter::digests).ok_or_else(committed)
    }

    /// Makes the file durable and visible under its name.
    ///
    /// # Errors
    /// When flushing, fsync or the rename fails; the destination is then as it was before.
    pub fn commit(mut self) -> Result<Written> {
        let (buffer, digests) = self.writer.take().ok_or_else(committed)?.finish();
        let (size, sha256) = digests.finish()?;
        let file = buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs_err::rename(&self.partial, &self.destination)?;
        self.partial.clear();
        sync_folder(&self.destination)?;
        Ok(Written { size, sha256 })
    }
}

fn committed() -> Error {
    Error::internal("the file was already committed")
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(io::Error::other(committed())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.partial.as_os_str().is_empty() {
            self.writer = None;
            // Nothing better can be done here; a later run removes what is left.
            let _ = fs_err::remove_file(&self.partial);
        }
    }
}

/// Writes `bytes` to `destination` as a whole.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomic(destination: &Path, bytes: &[u8]) -> Result<Written> {
    let mut file = AtomicFile::create(destination)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Makes a rename or a removal in the folder of `path` durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Ok(fs_err::File::open(folder)?.sync_all()?),
        _ => Ok(()),
    }
}

/// An exclusive hold on a folder, released when dropped or when the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: fs_err::File,
}

impl FolderLock {
    /// Takes the lock file `path`, creating it where needed.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process holds it, naming the folder.
    pub fn acquire(path: &Path) -> Result<Self> {
        let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.file().try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::Locked { path: path.parent().unwrap_or(path).into() })
            }
            Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs_err::write(&path, "before").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"after").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"before");
        drop(file);
        assert_eq!(fs_err::read(&path).unwrap(), b"before");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "the partial file is gone");
        let written = write_atomic(&path, b"after").unwrap();
        assert_eq!((written.size, written.sha256), (5, Sha256Digest::of(b"after")));
        assert_eq!(fs_err::read(&path).unwrap(), b"after");
    }

    #[test]
    fn a_folder_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FolderLock::acquire(&path).unwrap();
        assert!(matches!(FolderLock::acquire(&path), Err(Error::Locked { .. })));
        drop(lock);
        FolderLock::acquire(&path).unwrap();
    }
}
