//! Plain text and Markdown, perhaps compressed: the whole file is the document, record 0, in the set of its ending.
//!
//! The text is at most 256 MiB long. A byte order mark at the head says how the file is encoded and is no part of its text, as in JSON lines.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::decompress::Decompressed;
use super::error::SourceError;
use super::format::{CONVERT, Compression, other_encoding};
use super::{Entry, Gate, LARGE_RECORD, MAX_TEXT, Record, RecordReader};
use crate::record::BadRecord;

pub(super) struct WholeFile {
    /// `None` once it was read.
    path: Option<PathBuf>,
    compression: Compression,
    gate: Option<Gate>,
}

impl WholeFile {
    pub(super) fn new(path: &Path, compression: Compression, from_record: u64) -> Self {
        Self { path: (from_record == 0).then(|| path.to_owned()), compression, gate: None }
    }

    fn read(&self, path: &Path) -> Result<Entry, SourceError> {
        let mut stream = Decompressed::open(path, self.compression)?;
        check_size(path, self.compression)?;
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let large = size > LARGE_RECORD;
        // What a compressed file holds is not known before: the gate is asked when it proves to be much.
        let first = if large { 0 } else { LARGE_RECORD };
        let mut bytes = Vec::new();
        let mut take = |limit: u64, bytes: &mut Vec<u8>| {
            let read = (&mut stream.bytes).take(limit).read_to_end(bytes);
            read.map_err(|error| stream.error(path, 0, error))
        };
        if take(first, &mut bytes)? as u64 == first {
            if let Some(gate) = &self.gate {
                gate();
            }
            take(MAX_TEXT + 1 - first, &mut bytes)?;
        }
        if bytes.len() as u64 > MAX_TEXT {
            return Err(SourceError::TextTooLong { path: path.to_owned(), limit: MAX_TEXT });
        }
        if let Some(encoding) = other_encoding(&bytes) {
            let (expected, found) = ("text in UTF-8", format!("text in {encoding}"));
            return Err(SourceError::WrongFormat { path: path.to_owned(), expected, found, hint: CONVERT });
        }
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => {
                Entry::Record(Record { text, set: set_of(path, self.compression), ..Record::default() })
            }
            Err(error) => Entry::Bad {
                number: 0,
                reason: BadRecord::InvalidUtf8,
                found: format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()),
            },
        })
    }
}

/// Refuses what cannot be used before it is read.
pub(super) fn check_size(path: &Path, compression: Compression) -> Result<(), SourceError> {
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if compression == Compression::None && size > MAX_TEXT {
        return Err(SourceError::TextTooLong { path: path.to_owned(), limit: MAX_TEXT });
    }
    Ok(())
}

/// The ending, without that of the compression.
fn set_of(path: &Path, compression: Compression) -> Option<String> {
    let stem = match compression {
        Compression::None => path,
        Compression::Zstd | Compression::Gzip => Path::new(path.file_stem()?),
    };
    stem.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase())
}

impl RecordReader for WholeFile {
    fn next_entry(&mut self) -> Option<Result<Entry, SourceError>> {
        let path = self.path.take()?;
        Some(self.read(&path))
    }

    fn set_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }
}
