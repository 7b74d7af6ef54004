//! The crates of a `Cargo.lock`, found in cargo's own download cache and checked against the lock file.
//!
//! Cargo keeps every archive that it downloads as `$CARGO_HOME/registry/cache/<index>/<name>-<version>.crate`
//! and the lock file holds each one's SHA-256. Together they are a corpus that any machine which built this
//! project already has, and whose every byte is pinned: no network, no account.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::digest::digest_file;

use super::error::SourceError;
use super::format::open_regular;

/// A crate that a lock file pins to an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedCrate {
    /// The crate's name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// SHA-256 of its archive.
    pub checksum: Sha256Digest,
}

impl LockedCrate {
    /// The archive's file name.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}.crate", self.name, self.version)
    }
}

#[derive(Deserialize)]
struct LockFile {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<Sha256Digest>,
}

/// What a lock file pins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockedPackages {
    /// Crates that come from a registry, in the file's order.
    pub crates: Vec<LockedCrate>,
    /// Names of those from git repositories, which have no archive.
    pub git: Vec<String>,
    /// How many are of the workspace or of paths.
    pub local: u64,
}

/// The packages of the lock file at `path`.
///
/// # Errors
/// When the file cannot be read or is no lock file.
pub fn packages(path: &Path) -> Result<LockedPackages, SourceError> {
    open_regular(path)?;
    let text = std::fs::read_to_string(path).map_err(|error| SourceError::io(path, error))?;
    let lock: LockFile = toml::from_str(&text).map_err(|error| SourceError::LockFile {
        path: path.to_owned(),
        detail: error.message().to_owned(),
    })?;
    let mut locked = LockedPackages::default();
    for Package { name, version, source, checksum } in lock.package {
        // A name is also part of a path: cargo allows these characters and no others.
        let plain = |text: &str| !text.is_empty() && text.bytes().all(is_name_byte) && !text.starts_with('.');
        if !plain(&name) || !plain(&version) {
            let detail = format!("a package of the name {name:?} and version {version:?}");
            return Err(SourceError::LockFile { path: path.to_owned(), detail });
        }
        match (checksum, source) {
            (Some(checksum), _) => locked.crates.push(LockedCrate { name, version, checksum }),
            (None, Some(source)) if source.starts_with("git+") => {
                locked.git.push(format!("{name} {version}"))
            }
            (None, Some(source)) => {
                let detail = format!("{name} {version} of `{source}` without a checksum");
                return Err(SourceError::LockFile { path: path.to_owned(), detail });
            }
            (None, None) => locked.local += 1,
        }
    }
    Ok(locked)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+')
}

/// Cargo's download cache: `$CARGO_HOME/registry/cache`, with `~/.cargo` where `CARGO_HOME` is not set.
#[must_use]
pub fn cache_folder() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_default()
        .join("registry/cache")
}

/// The archive of `locked` below `cache` (see [`cache_folder`]), whichever registry it came from, after its
/// SHA-256 was compared with the lock file's.
///
/// # Errors
/// [`SourceError::NoArchive`] if no registry's folder has it, [`SourceError::WrongArchive`] if those that
/// do have other bytes.
pub fn locate(cache: &Path, locked: &LockedCrate) -> Result<PathBuf, SourceError> {
    let mut folders: Vec<PathBuf> = match std::fs::read_dir(cache) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(SourceError::io(cache, error)),
    };
    folders.sort();
    let mut wrong = None;
    for path in
        folders.into_iter().map(|folder| folder.join(locked.file_name())).filter(|path| path.is_file())
    {
        let (_, found) =
            digest_file(&path).map_err(|error| SourceError::io(&path, std::io::Error::other(error)))?;
        if found == locked.checksum {
            return Ok(path);
        }
        wrong = Some(SourceError::WrongArchive {
            path,
            expected: locked.checksum.to_string(),
            found: found.to_string(),
        });
    }
    Err(wrong.unwrap_or_else(|| SourceError::NoArchive {
        name: locked.name.clone(),
        version: locked.version.clone(),
        searched: cache.to_owned(),
    }))
}
