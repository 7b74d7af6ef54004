//! A file on disk against what the Hub declares of it: length first, which costs nothing, then every byte.

use std::io::Read;
use std::path::Path;

use super::digest::ContentHasher;
use super::error::HubError;
use super::remote::{FetchedFile, RemoteFile};

/// Bytes read at a time.
pub(super) const BUFFER: usize = 1 << 20;

/// Reads `path` once and compares it with what the listing declares of `file`.
///
/// # Errors
/// [`HubError::WrongSize`], [`HubError::WrongDigest`], or [`HubError::Disk`] when it cannot be read.
pub fn verify_file(path: &Path, file: &RemoteFile) -> Result<FetchedFile, HubError> {
    let mut reader = fs_err::File::open(path).map_err(HubError::disk("open", path))?;
    let found = reader.metadata().map_err(HubError::disk("read the size of", path))?.len();
    if found != file.size {
        return Err(HubError::WrongSize {
            path: path.into(),
            expected: file.size,
            found,
            hint: "it was cut short or is another file: remove it, to have it downloaded again".into(),
        });
    }
    let mut hasher = ContentHasher::new(file.digest, file.size);
    hash_all(&mut reader, &mut hasher, &|| Ok(())).map_err(|stop| stop.at(path))?;
    let (sha256, digest) = hasher.finish();
    if digest != file.digest {
        return Err(HubError::WrongDigest {
            path: path.into(),
            expected: file.digest.to_string(),
            found: digest.to_string(),
            hint: "it was altered or is another file: remove it, to have it downloaded again".into(),
        });
    }
    Ok(FetchedFile { sha256, size: file.size, reused_bytes: file.size, requests: 0 })
}

/// Why [`hash_all`] stopped early.
pub(super) enum Stopped {
    Disk(std::io::Error),
    Asked(HubError),
}

impl Stopped {
    pub(super) fn at(self, path: &Path) -> HubError {
        match self {
            Self::Disk(error) => HubError::disk("read", path)(error),
            Self::Asked(error) => error,
        }
    }
}

/// Feeds the rest of `reader` to `hasher`; the number of bytes.
pub(super) fn hash_all(
    reader: &mut dyn Read,
    hasher: &mut ContentHasher,
    check_stop: &dyn Fn() -> Result<(), HubError>,
) -> Result<u64, Stopped> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        check_stop().map_err(Stopped::Asked)?;
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                total += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Stopped::Disk(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use xlstm_manifests::Sha256Digest;

    use super::*;
    use crate::hub::digest::DeclaredDigest;

    #[test]
    fn length_then_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = RemoteFile {
            path: "file".into(),
            size: 3,
            digest: DeclaredDigest::Sha256(Sha256Digest::of(b"abc")),
            xet_hash: None,
        };
        assert!(matches!(verify_file(&path, &file), Err(HubError::Disk { .. })));
        fs_err::write(&path, "ab").unwrap();
        assert!(matches!(verify_file(&path, &file), Err(HubError::WrongSize { expected: 3, found: 2, .. })));
        fs_err::write(&path, "abd").unwrap();
        let error = verify_file(&path, &file).unwrap_err();
        let words = error.to_string();
        assert!(matches!(error, HubError::WrongDigest { .. }));
        assert!(words.contains(&file.digest.hex()) && words.contains("file"), "{words}");
        fs_err::write(&path, "abc").unwrap();
        assert_eq!(verify_file(&path, &file).unwrap().sha256, Sha256Digest::of(b"abc"));
    }
}
