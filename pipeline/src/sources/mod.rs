//! Reading documents out of files: JSON lines, Parquet, plain text, crate archives.
//!
//! [`open`] gives a [`RecordReader`] over one file. A reader yields every record in the file's order,
//! numbered as the file numbers it (see [`crate::record`]), also those that cannot be used; it continues
//! after a bad record, and ends after an error of the file itself. What each format counts as a record:
//!
//! | format | record number | notes |
//! |---|---|---|
//! | JSON lines, plain or .zst or .gz | line, from 0 | a blank line has a number but is no record |
//! | Parquet | row, across row groups | only the wanted columns are read |
//! | text, Markdown, plain or .zst or .gz | 0 | the whole file is the document, without a byte order mark |
//! | crate archive | entry, counting all entries | text files only, see [`crate_archive`] |
//! | examples, JSON lines | line, from 0 | inputs and targets instead of text, see [`examples`] |
//!
//! Every reader holds one record and its buffers in memory, whatever the size of the file.

pub mod cargo_cache;
pub mod crate_archive;
mod decompress;
mod error;
mod example_line;
pub mod examples;
mod fields;
mod format;
mod guard;
mod gzip;
mod json;
mod json_lines;
mod parquet_columns;
mod parquet_footer;
mod parquet_rows;
mod parquet_value;
mod pieces;
mod whole_file;

use std::path::Path;

pub use error::SourceError;
pub use fields::{Fields, PALOMA_LICENSE, PALOMA_SOURCE, SLIMPAJAMA_LICENSE, SLIMPAJAMA_SOURCE};
pub use format::{Compression, Format};
pub use pieces::{numbers_hold, read_share};

use crate::record::{Entry, Record};

/// The records of one file, one after the other.
pub trait RecordReader: Send {
    /// The next record, usable or not; `None` at the end of the file and after an error.
    ///
    /// # Errors
    /// When the file itself cannot be read further: an input or output error, a damaged archive.
    fn next_entry(&mut self) -> Option<Result<Entry, SourceError>>;

    /// Sets what is called before a record of more than [`LARGE_RECORD`] bytes is taken into memory; it may block
    /// until there is room. Formats whose records come in bounded pieces ignore it.
    fn set_gate(&mut self, gate: Gate) {
        drop(gate);
    }
}

/// Called before a large record is taken into memory.
pub type Gate = Box<dyn Fn() + Send>;

/// The longest text or line that is read, bytes: far above any document, and with its tokens still below a small
/// machine's memory. A short file can decompress to anything.
pub const MAX_TEXT: u64 = 256 << 20;

/// Bytes above which a record asks its [`Gate`].
pub const LARGE_RECORD: u64 = 16 << 20;

/// Opens `path` as `format`, from the record numbered `from_record` on (0 for all).
///
/// Skipping is cheap where the format allows: Parquet skips whole row groups; the others are read through
/// without being parsed. Skipping past the end gives a reader without records.
///
/// # Errors
/// When the file cannot be opened, is not of that format, or lacks a column that `fields` names.
pub fn open(
    path: &Path,
    format: Format,
    fields: &Fields,
    from_record: u64,
) -> Result<Box<dyn RecordReader>, SourceError> {
    xlstm_manifests::reading::note(path);
    format.check(path)?;
    Ok(match format {
        Format::JsonLines { compression } => {
            Box::new(json_lines::JsonLines::open(path, compression, fields, from_record)?)
        }
        Format::Parquet => Box::new(parquet_rows::ParquetRows::open(path, fields, from_record)?),
        Format::Text { compression } => Box::new(whole_file::WholeFile::new(path, compression, from_record)),
        Format::Crate => Box::new(crate_archive::CrateArchive::new(path, from_record)),
    })
}

/// Refuses a file whose size alone says that it cannot be used as `format`: before it is read for its digest.
///
/// # Errors
/// [`SourceError::TextTooLong`].
pub fn check_size(path: &Path, format: Format) -> Result<(), SourceError> {
    match format {
        Format::Text { compression } => whole_file::check_size(path, compression),
        Format::JsonLines { .. } | Format::Parquet | Format::Crate => Ok(()),
    }
}

/// Reads the one record numbered `number`, for tracing a token back and for audits.
///
/// # Errors
/// As [`open`], and when the file has no usable record of that number.
pub fn read_one(path: &Path, format: Format, fields: &Fields, number: u64) -> Result<Record, SourceError> {
    let mut reader = open(path, format, fields, number)?;
    match reader.next_entry() {
        Some(Ok(Entry::Record(record))) if record.number == number => Ok(record),
        Some(Ok(Entry::Bad { number: found_at, reason, found })) if found_at == number => {
            Err(SourceError::NoSuchRecord {
                path: path.to_owned(),
                number,
                found: format!("a record that cannot be used ({}: {found})", reason.reason()),
            })
        }
        Some(Err(error)) => Err(error),
        Some(Ok(Entry::Record(Record { number: next, .. }) | Entry::Bad { number: next, .. })) => {
            Err(SourceError::NoSuchRecord {
                path: path.to_owned(),
                number,
                found: format!("record {next} as the next one"),
            })
        }
        None => Err(SourceError::NoSuchRecord {
            path: path.to_owned(),
            number,
            found: "the end of the file".to_owned(),
        }),
    }
}
