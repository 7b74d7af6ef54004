//! Plain text and Markdown: the whole file is the document, record 0, in the set of its ending.

use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::{Gate, LARGE_RECORD, Record, RecordReader, Step};
use crate::record::BadRecord;

pub(super) struct WholeFile {
    /// `None` once it was read.
    path: Option<PathBuf>,
    gate: Option<Gate>,
}

impl WholeFile {
    pub(super) fn new(path: &Path, from_record: u64) -> Self {
        Self { path: (from_record == 0).then(|| path.to_owned()), gate: None }
    }
}

impl RecordReader for WholeFile {
    fn next_step(&mut self) -> Option<Result<Step, SourceError>> {
        let path = self.path.take()?;
        let large = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LARGE_RECORD);
        if let Some(gate) = self.gate.as_ref().filter(|_| large) {
            gate();
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(SourceError::io(&path, error))),
        };
        let set = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        Some(Ok(match String::from_utf8(bytes) {
            Ok(text) => Step::Record(Record { number: 0, text, id: None, set, truncated: false }),
            Err(error) => Step::Bad {
                number: 0,
                reason: BadRecord::InvalidUtf8,
                found: format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()),
            },
        }))
    }

    fn set_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }
}
