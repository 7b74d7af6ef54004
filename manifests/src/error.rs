//! Errors of the contract: each names the file, what was expected, what was found, and what to do.

use std::path::{Path, PathBuf};

use crate::printable;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a dataset on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused; the text names the path.
    #[error("{0}")]
    Io(#[from] std::io::Error),

    /// A file is not what its name or its manifest says.
    #[error("`{path}`: expected {expected}, found {found}; {hint}", path = printable::path(path))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do next.
        hint: String,
    },

    /// A manifest or shard was written by a newer version of the format.
    #[error(
        "`{path}`: format version {found} is newer than this program reads ({supported}); update xlstm-data",
        path = printable::path(path)
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version it carries.
        found: u32,
        /// The newest version understood here.
        supported: u32,
    },

    /// A path in a manifest or listing would leave its folder.
    #[error(
        "path `{}` is refused: {reason}; the manifest was not written by xlstm-data or was altered",
        printable::text(path)
    )]
    UnsafePath {
        /// The path as given.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },

    /// A fault of this program: nothing of the user's can cause it.
    #[error("internal fault: {0}; please report it")]
    Internal(String),

    /// Another process holds the folder.
    #[error("`{path}` is in use by another run; wait for it, stop it, or choose another --out", path = printable::path(path))]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// A [`Error::Mismatch`], with the usual advice to prepare again where there is no better one.
    pub fn mismatch(
        path: &Path,
        expected: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Mismatch {
            path: path.into(),
            expected: expected.into(),
            found: found.into(),
            hint: hint.into(),
        }
    }

    /// A fault of this program, which `error` describes.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }

    /// Whether this is a fault of the program, not of its input, its data or the machine.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Internal(_))
    }

    /// A file whose content was damaged after it was written.
    pub fn damaged(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::mismatch(
            path,
            expected,
            found,
            "the file was changed or cut short after it was written: restore it or prepare the split again",
        )
    }
}
