//! JSON lines: one object a line, the record's number is the line's.
//!
//! A line ends with `\n`, or `\r\n`, or the file. A line of white space alone has a number but is no record.
//! A byte order mark before the first line is skipped. A line that is in the stream's buffer as a whole, as most
//! do, is read there. Memory is one line and its text: the buffer of a very long line is given back after it.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use super::decompress::Decompressed;
use super::error::SourceError;
use super::fields::{Fields, JsonFields};
use super::format::{CONVERT, Compression, other_encoding};
use super::{Entry, Gate, LARGE_RECORD, MAX_TEXT, RecordReader};

/// A line buffer above this size is not kept for the next line.
const KEPT_BUFFER: usize = 8 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) struct JsonLines {
    path: PathBuf,
    stream: Decompressed,
    fields: JsonFields,
    /// The number of the line that comes next.
    next: u64,
    line: Vec<u8>,
    finished: bool,
    gate: Option<Gate>,
    /// Bytes of lines that were read or passed over, decompressed.
    consumed: u64,
}

impl JsonLines {
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        fields: &Fields,
        from_record: u64,
    ) -> Result<Self, SourceError> {
        let mut reader = Self {
            path: path.to_owned(),
            stream: Decompressed::open(path, compression)?,
            fields: JsonFields::new(fields),
            next: 0,
            line: Vec::new(),
            finished: false,
            gate: None,
            consumed: 0,
        };
        while reader.next < from_record {
            match reader.stream.bytes.skip_until(b'\n') {
                Ok(0) => {
                    reader.finished = true;
                    break;
                }
                Ok(_) => reader.next += 1,
                Err(error) => return Err(reader.stream.error(path, reader.next, error)),
            }
        }
        Ok(reader)
    }

    /// Opens a plain file at the first line that begins at byte `start` or after it. Lines are numbered from there.
    pub(super) fn open_within(path: &Path, fields: &Fields, start: u64) -> Result<Self, SourceError> {
        let mut reader = Self::open(path, Compression::None, fields, 0)?;
        if let Some(before) = start.checked_sub(1) {
            reader.stream = Decompressed::plain_from(path, before)?;
            // A line of which nothing but its end comes behind `before` begins before it.
            let passed = (&mut reader.stream.bytes).take(MAX_TEXT).skip_until(b'\n');
            reader.consumed = passed.map_err(|error| reader.stream.error(path, 0, error))? as u64;
            reader.next = 1;
        }
        Ok(reader)
    }

    /// Bytes of lines that were read or passed over, decompressed.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Bytes of a compressed file that these lines came from, about.
    pub(super) fn compressed(&self) -> f64 {
        self.stream.compressed(self.consumed)
    }

    /// The entry that the next line makes, if the whole line is in the stream's buffer: of a line without a
    /// record `Some(None)`.
    fn buffered_entry(&mut self) -> Result<Option<Option<Entry>>, SourceError> {
        let buffer = match self.stream.bytes.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(self.stream.error(&self.path, self.next, error)),
        };
        let Some(end) = memchr::memchr(b'\n', buffer) else { return Ok(None) };
        let mut line = &buffer[..=end];
        if self.next == 0 {
            check_encoding(&self.path, line)?;
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        let step = (!line.trim_ascii().is_empty()).then(|| self.fields.read(line, self.next));
        self.consumed += end as u64 + 1;
        self.stream.bytes.consume(end + 1);
        self.next += 1;
        Ok(Some(step))
    }

    /// Reads the next line into `line`, without its end; `false` at the end of the file.
    fn read_line(&mut self) -> Result<bool, SourceError> {
        self.line.clear();
        let mut length = self.read_part(LARGE_RECORD)?;
        if length as u64 == LARGE_RECORD && self.line.last() != Some(&b'\n') {
            if let Some(gate) = &self.gate {
                gate();
            }
            length += self.read_part(MAX_TEXT - LARGE_RECORD)?;
        }
        self.consumed += length as u64;
        if length as u64 == MAX_TEXT && self.line.last() != Some(&b'\n') {
            let path = self.path.clone();
            return Err(SourceError::LineTooLong { path, record: self.next, limit: MAX_TEXT });
        }
        if self.next == 0 {
            check_encoding(&self.path, &self.line)?;
            if self.line.starts_with(BYTE_ORDER_MARK) {
                self.line.drain(..BYTE_ORDER_MARK.len());
            }
        }
        Ok(length > 0)
    }

    /// Appends to `line` up to its end, but at most `limit` bytes.
    fn read_part(&mut self, limit: u64) -> Result<usize, SourceError> {
        let read = (&mut self.stream.bytes).take(limit).read_until(b'\n', &mut self.line);
        read.map_err(|error: io::Error| self.stream.error(&self.path, self.next, error))
    }
}

/// Refuses a file whose first line is not in UTF-8 but in another encoding of Unicode.
fn check_encoding(path: &Path, line: &[u8]) -> Result<(), SourceError> {
    let Some(encoding) = other_encoding(line) else { return Ok(()) };
    let (expected, found) = ("JSON lines in UTF-8", format!("text in {encoding}"));
    Err(SourceError::WrongFormat { path: path.to_owned(), expected, found, hint: CONVERT })
}

impl RecordReader for JsonLines {
    fn next_entry(&mut self) -> Option<Result<Entry, SourceError>> {
        while !self.finished {
            match self.buffered_entry() {
                Ok(Some(Some(step))) => return Some(Ok(step)),
                Ok(Some(None)) => continue,
                Ok(None) => {}
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
            let number = self.next;
            self.next += 1;
            if !self.line.trim_ascii().is_empty() {
                let step = self.fields.read(&self.line, number);
                if self.line.capacity() > KEPT_BUFFER {
                    self.line = Vec::new();
                }
                return Some(Ok(step));
            }
        }
        self.finished = true;
        None
    }

    fn set_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }
}
