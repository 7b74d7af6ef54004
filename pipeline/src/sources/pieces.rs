//! A file, or as much of it as an estimate needs, in pieces spread over it.
//!
//! ```text
//! JSON lines, plain       pieces of equal length, each from the first line that begins in it
//! JSON lines, compressed  the beginning: a stream has no other place to start from; at most so much of its text
//! Parquet                 stretches of rows
//! text, crates            the whole file
//! ```

use std::path::Path;

use super::error::SourceError;
use super::fields::Fields;
use super::format::{Compression, Format};
use super::json_lines::JsonLines;
use super::parquet_rows::ParquetRows;
use super::{Entry, Gate, RecordReader, open};

/// Pieces of a large file.
const PIECES: u64 = 16;

/// Bytes that are decompressed for each byte of the limit, at most: above what text comes to.
const DECOMPRESSED: u64 = 8;

/// Reads about `limit` bytes of the file `path`, all of it where it has no more, and gives every record to `visit`; of a
/// compressed stream of lines at most eight times `limit` bytes of text. `gate` makes what a reader asks before a large
/// record. Returns the share of the file that was read. [`numbers_hold`] says whether records have their own numbers.
///
/// # Errors
/// As [`open`], and where the file cannot be read further.
pub fn read_share(
    path: &Path,
    format: Format,
    fields: &Fields,
    limit: u64,
    gate: &dyn Fn() -> Gate,
    visit: &mut dyn FnMut(Entry),
) -> Result<f64, SourceError> {
    let size = std::fs::metadata(path).map_err(|error| SourceError::io(path, error))?.len();
    match format {
        Format::JsonLines { compression: Compression::None } if size > limit => {
            format.check(path)?;
            lines(path, fields, (size, limit), gate, visit)
        }
        Format::JsonLines { compression: compression @ (Compression::Zstd | Compression::Gzip) } => {
            format.check(path)?;
            let mut reader = JsonLines::open(path, compression, fields, 0)?;
            reader.set_gate(gate());
            let most = limit.saturating_mul(DECOMPRESSED);
            while reader.compressed() < limit as f64 && reader.consumed() < most {
                match reader.next_entry().transpose()? {
                    Some(entry) => visit(entry),
                    None => return Ok(1.0),
                }
            }
            Ok(reader.compressed() / size as f64)
        }
        Format::Parquet if size > limit => {
            format.check(path)?;
            rows(path, fields, limit as f64 / size as f64, visit)
        }
        Format::JsonLines { .. } | Format::Parquet | Format::Text { .. } | Format::Crate => {
            let mut reader = open(path, format, fields, 0)?;
            reader.set_gate(gate());
            while let Some(entry) = reader.next_entry().transpose()? {
                visit(entry);
            }
            Ok(1.0)
        }
    }
}

/// Whether the records that [`read_share`] gives of a file of `size` bytes have their own numbers.
#[must_use]
pub fn numbers_hold(format: Format, size: u64, limit: u64) -> bool {
    size <= limit || !matches!(format, Format::JsonLines { compression: Compression::None })
}

fn lines(
    path: &Path,
    fields: &Fields,
    (size, limit): (u64, u64),
    gate: &dyn Fn() -> Gate,
    visit: &mut dyn FnMut(Entry),
) -> Result<f64, SourceError> {
    let piece = (limit / PIECES).max(1);
    let mut read = 0;
    for index in 0..PIECES {
        // The last piece ends with the file.
        let start = u128::from(size - piece) * u128::from(index) / u128::from(PIECES - 1);
        let mut reader = JsonLines::open_within(path, fields, start as u64)?;
        reader.set_gate(gate());
        let skipped = reader.consumed();
        while reader.consumed() < piece {
            match reader.next_entry().transpose()? {
                Some(entry) => visit(entry),
                None => break,
            }
        }
        read += reader.consumed() - skipped;
    }
    Ok(read as f64 / size as f64)
}

fn rows(path: &Path, fields: &Fields, share: f64, visit: &mut dyn FnMut(Entry)) -> Result<f64, SourceError> {
    let all = ParquetRows::open(path, fields, 0)?.rows();
    // Ends of stretches, so that rounding leaves out no row of a file of few.
    let at = |index: u64| (u128::from(all) * u128::from(index) / u128::from(PIECES)) as u64;
    let mut read = 0;
    for index in 0..PIECES {
        let (start, end) = (at(index), at(index + 1));
        let wanted = ((end - start) as f64 * share).ceil() as u64;
        if wanted == 0 {
            continue;
        }
        let mut reader = ParquetRows::open(path, fields, start)?;
        for _ in 0..wanted {
            let Some(entry) = reader.next_entry().transpose()? else { break };
            visit(entry);
            read += 1;
        }
    }
    Ok(if all == 0 { 1.0 } else { read as f64 / all as f64 })
}
