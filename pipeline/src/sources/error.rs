//! What can be wrong with a source file: each error names the file, what was expected, what was found and
//! what to do next. Records that cannot be used are not errors but [`crate::record::Entry::Bad`].

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a source file cannot be read, or not further.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused.
    #[error("{}: {source}; check that the file exists, may be read, and that its disk is sound", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, a device, a socket or a folder.
    #[error(
        "{}: expected a file, found what is not a regular file; write its content to a file first: sources are read \
         more than once",
        path.display()
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The name ends in none of the known endings.
    #[error(
        "{}: unknown kind of file; known are .jsonl, .ndjson, .txt, .md, these and .json with .zst or .gz behind, .parquet, .crate",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The first bytes are not those of the format.
    #[error("{}: expected {expected}, found {found}; {hint}", path.display())]
    WrongFormat {
        /// The file.
        path: PathBuf,
        /// The format that was expected.
        expected: &'static str,
        /// What the first bytes are.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// The format is broken somewhere inside: cut short, or bytes changed.
    #[error(
        "{}: damaged {what} {place}: {detail}; download the file again (its digest will differ), or leave it out",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// `zstd stream`, `gzip stream`, `Parquet file`, `crate archive`.
        what: &'static str,
        /// How far it could be read.
        place: String,
        /// What the decoder said.
        detail: String,
    },
    /// One line is longer than any document.
    #[error(
        "{}: line {record} (from 0) is longer than {limit} bytes; expected JSON lines, one object a line",
        path.display()
    )]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// The line's number from 0.
        record: u64,
        /// The longest line that is read.
        limit: u64,
    },
    /// A file that is one document is longer than any document.
    #[error(
        "{}: expected a text of at most {limit} bytes, since a file is one document, found a longer one; cut it into \
         several files, or store its documents as JSON lines",
        path.display()
    )]
    TextTooLong {
        /// The file.
        path: PathBuf,
        /// The longest text that is read.
        limit: u64,
    },
    /// A Parquet column is absent or of another type.
    #[error("{}: column `{column}`: expected {expected}, found {found}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column's path with dots.
        column: String,
        /// The types that can be read.
        expected: &'static str,
        /// The column's type, or the columns that there are.
        found: String,
    },
    /// A record that a manifest or a person asked for is not there.
    #[error(
        "{}: expected a usable record {number}, found {found}; the file is not the one that was prepared (compare its SHA-256 with the manifest)",
        path.display()
    )]
    NoSuchRecord {
        /// The file.
        path: PathBuf,
        /// The record's number from 0.
        number: u64,
        /// What was there instead.
        found: String,
    },
    /// A lock file that cargo did not write.
    #[error("{}: expected a Cargo.lock, found {detail}; run `cargo generate-lockfile`", path.display())]
    LockFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Cargo's cache has no archive of a locked crate.
    #[error("{name} {version}: expected {name}-{version}.crate in cargo's cache, found none below {}; run `cargo fetch`", searched.display())]
    NoArchive {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
        /// The folder that was searched.
        searched: PathBuf,
    },
    /// An archive is not the one that was locked.
    #[error("{}: expected SHA-256 {expected} (from the lock file), found {found}; delete the archive and run `cargo fetch`", path.display())]
    WrongArchive {
        /// The archive.
        path: PathBuf,
        /// The lock file's digest.
        expected: String,
        /// The archive's digest.
        found: String,
    },
}

impl SourceError {
    /// An error of the operating system at `path`.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A decoder's error: the operating system's if it carries a code, else damage at `place`.
    pub(super) fn decoding(path: &Path, what: &'static str, place: String, error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::io(path, error);
        }
        Self::Corrupt { path: path.to_owned(), what, place, detail: error.to_string() }
    }
}
