//! Paths that come from outside (a manifest, a Hub listing) and must stay inside their folder.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// A relative path with `/` between plain components: never absolute, never `.` or `..`, no control character.
///
/// `a\b` and `c:notes` are ordinary names of files on Unix, and paths of other kinds on Windows, where they are refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SafePath(String);

impl SafePath {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`Error::UnsafePath`] naming the rule that `path` breaks.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        match broken_rule(&path) {
            None => Ok(Self(path)),
            Some(reason) => Err(Error::UnsafePath { path, reason }),
        }
    }

    /// Checks `path`, which names a file of another machine, where `\\` may separate folders: it is refused on this one too.
    ///
    /// # Errors
    /// [`Error::UnsafePath`] naming the rule that `path` breaks.
    pub fn portable(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        if path.contains('\\') {
            return Err(Error::UnsafePath { path, reason: BACKSLASH });
        }
        Self::new(path)
    }

    /// The path as text, `/`-separated.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path under `folder`. The file may not exist yet; no symbolic link is followed here.
    #[must_use]
    pub fn under(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    /// The path under `folder`, refusing a symbolic link that leads out of it.
    ///
    /// # Errors
    /// When the file does not exist or resolves to a place outside `folder`.
    pub fn resolve(&self, folder: &Path) -> Result<PathBuf> {
        let folder = fs_err::canonicalize(folder)?;
        let path = fs_err::canonicalize(folder.join(&self.0))?;
        if path.starts_with(&folder) {
            Ok(path)
        } else {
            Err(Error::UnsafePath { path: self.0.clone(), reason: "a symbolic link leads out of the folder" })
        }
    }
}

const BACKSLASH: &str = "it holds a backslash";

fn broken_rule(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("it is empty");
    }
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    if cfg!(windows) && path.contains('\\') {
        return Some(BACKSLASH);
    }
    if path.chars().any(char::is_control) {
        return Some("it contains a control character");
    }
    if cfg!(windows) && path.as_bytes().get(1) == Some(&b':') {
        return Some("it starts with a drive letter");
    }
    path.split('/').find_map(|component| match component {
        "" => Some("it has an empty component"),
        "." | ".." => Some("it has a `.` or `..` component"),
        _ => None,
    })
}

impl fmt::Display for SafePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SafePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_pass() {
        for good in ["a", "a/b.arrow", "train/chunk1/example_train_0.jsonl.zst", "...", "a b", "1:intro.md"] {
            assert!(SafePath::new(good).is_ok(), "{good}");
        }
        for name in ["a\\b", "C:/a"] {
            assert_eq!(SafePath::new(name).is_ok(), !cfg!(windows), "{name}");
        }
        assert!(SafePath::portable("a/b.arrow").is_ok() && SafePath::portable("a\\b").is_err());
        for bad in ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0b", "a\nb", "a\u{9b}b"] {
            assert!(SafePath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_folder_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs_err::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
        let path = SafePath::new("link").unwrap();
        assert!(matches!(path.resolve(inside.path()), Err(Error::UnsafePath { .. })));
    }
}
