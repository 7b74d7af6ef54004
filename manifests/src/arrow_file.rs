//! Arrow IPC files: what all shards share.
//!
//! ```text
//! "ARROW1\0\0" │ schema │ record batches, each buffer 64-byte aligned │ footer │ length │ "ARROW1"
//! ```
//! The schema's metadata carries `xlstm.kind` and `xlstm.version`; readers check both. Files are written
//! uncompressed, so that a reader maps them and hands out slices without a copy; zstd-compressed copies
//! are read too.

use std::collections::HashMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_ipc::{Block, root_as_footer, root_as_message};
use arrow_schema::{ArrowError, Field, Schema, SchemaRef};

use crate::atomic::{AtomicFile, Written};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::merkle::Leaves;

const KIND_KEY: &str = "xlstm.kind";
const VERSION_KEY: &str = "xlstm.version";
/// Version of every Arrow file written here.
pub const ARROW_VERSION: u32 = 1;

/// A schema of `fields` that says what kind of file this is.
#[must_use]
pub fn schema(kind: &str, fields: Vec<Field>) -> SchemaRef {
    let metadata = HashMap::from([
        (KIND_KEY.to_owned(), kind.to_owned()),
        (VERSION_KEY.to_owned(), ARROW_VERSION.to_string()),
    ]);
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

fn arrow_error(path: &Path, error: &ArrowError) -> Error {
    Error::damaged(path, "a readable Arrow IPC file", error.to_string())
}

/// Writes one Arrow file, whole or not at all.
pub struct ArrowWriter {
    writer: FileWriter<AtomicFile>,
    path: PathBuf,
}

impl ArrowWriter {
    /// Starts `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created.
    pub fn create(path: &Path, schema: &Schema) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let writer = FileWriter::try_new_with_options(file, schema, IpcWriteOptions::default())
            .map_err(|error| write_error(path, error))?;
        Ok(Self { writer, path: path.into() })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// When writing fails (a full disk, say); the error names the file.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|error| write_error(&self.path, error))
    }

    /// As [`Self::write`], and the digests of `leaves`, which cost little beside the batch.
    pub(crate) fn write_with_leaves(
        &mut self,
        batch: &RecordBatch,
        leaves: Leaves,
    ) -> Result<Vec<Sha256Digest>> {
        self.writer.get_mut().begin_leaves(leaves);
        self.write(batch)?;
        Ok(self.writer.get_mut().end_leaves())
    }

    /// Writes the footer and makes the file durable.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn finish(self) -> Result<Written> {
        let path = self.path;
        let mut file = self.writer.into_inner().map_err(|error| write_error(&path, error))?;
        file.flush()?;
        file.commit()
    }
}

fn write_error(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => {
            let text = format!("cannot write `{}`: {error}", path.display());
            Error::Io(std::io::Error::new(error.kind(), text))
        }
        other => Error::Internal(format!("`{}`: {other}", path.display())),
    }
}

/// A mapped Arrow file with its batches.
#[derive(Debug)]
pub struct ArrowFile {
    /// The file.
    pub path: PathBuf,
    /// Its batches, views into the map (owned copies where compressed).
    pub batches: Vec<RecordBatch>,
}

impl ArrowFile {
    /// Maps `path` and checks magic, kind, version and schema.
    ///
    /// # Errors
    /// When it is no Arrow file, is cut short, or holds something else than one of `expected`, the first of which is
    /// named in the error.
    pub fn open(path: &Path, expected: &[SchemaRef]) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        if file.metadata()?.len() < 18 {
            return Err(Error::damaged(path, "an Arrow IPC file", "fewer than 18 bytes"));
        }
        // SAFETY: the map is read-only; a file that another process cuts short while it is mapped is
        // outside what a reader can guard against, and shards are written once and renamed into place.
        let map = unsafe { memmap2::Mmap::map(file.file()) }?;
        let buffer = Buffer::from(bytes::Bytes::from_owner(map));
        Self::decode(path, &buffer, expected)
    }

    /// As [`Self::open`], and checks that it holds `rows` rows, which are `what`.
    ///
    /// # Errors
    /// As [`Self::open`], or when it holds another number.
    pub(crate) fn open_counted(path: &Path, expected: &[SchemaRef], rows: u64, what: &str) -> Result<Self> {
        let file = Self::open(path, expected)?;
        if file.rows() == rows {
            return Ok(file);
        }
        Err(Error::damaged(path, format!("{rows} {what}"), format!("{}", file.rows())))
    }

    fn decode(path: &Path, buffer: &Buffer, expected: &[SchemaRef]) -> Result<Self> {
        let fail = |error: ArrowError| arrow_error(path, &error);
        if &buffer[..6] != b"ARROW1" {
            return Err(Error::damaged(path, "the magic `ARROW1`", format!("{:02x?}", &buffer[..6])));
        }
        let trailer = buffer.len() - 10;
        let mut tail = [0; 10];
        tail.copy_from_slice(&buffer[trailer..]);
        let length = read_footer_length(tail).map_err(fail)?;
        let start = trailer.checked_sub(length).ok_or_else(|| {
            Error::damaged(path, "a footer inside the file", "a footer longer than the file")
        })?;
        let footer = root_as_footer(&buffer[start..trailer])
            .map_err(|error| Error::damaged(path, "a readable Arrow footer", error.to_string()))?;
        let schema =
            footer.schema().ok_or_else(|| Error::damaged(path, "a schema in the Arrow footer", "none"))?;
        let schema = try_fb_to_schema(schema).map_err(fail)?;
        let fits = |expected: &&SchemaRef| expected.fields() == schema.fields();
        if let Some(expected) = expected.iter().find(fits).or(expected.first()) {
            check_schema(path, expected, &schema)?;
        }
        let decoder = FileDecoder::new(Arc::new(schema), footer.version());
        let mut batches = Vec::new();
        for block in footer.recordBatches().into_iter().flatten() {
            let (offset, metadata, body) = (block.offset(), block.metaDataLength(), block.bodyLength());
            let slice = usize::try_from(offset)
                .ok()
                .zip(usize::try_from(metadata).ok())
                .zip(usize::try_from(body).ok())
                .and_then(|((offset, metadata), body)| {
                    let length = metadata.checked_add(body)?;
                    (offset.checked_add(length)? <= start).then_some((offset, length))
                })
                .ok_or_else(|| {
                    Error::damaged(path, "record batches inside the file", "one that leaves it")
                })?;
            let data = buffer.slice_with_length(slice.0, slice.1);
            check_buffers(path, &data, block)?;
            // What the checks above do not know of, the decoder meets with a panic.
            let batch = catch_unwind(AssertUnwindSafe(|| decoder.read_record_batch(block, &data)));
            let batch = batch.unwrap_or_else(|_| Err(ArrowError::IpcError("a batch that cannot be".into())));
            batches.extend(batch.map_err(fail)?);
        }
        Ok(Self { path: path.into(), batches })
    }

    /// Rows over all batches.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }
}

/// Where rows are when a file's rows are numbered across its batches.
#[derive(Debug)]
pub(crate) struct RowStarts(Vec<usize>);

impl RowStarts {
    /// From the number of rows of each batch.
    pub(crate) fn new(rows: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut total = 0;
        starts.extend(rows.into_iter().map(|rows| {
            total += rows;
            total
        }));
        Self(starts)
    }

    /// Rows over all batches.
    pub(crate) fn total(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// The batch of row `index`, and the row's number in it; `None` past the end.
    pub(crate) fn locate(&self, index: usize) -> Option<(usize, usize)> {
        if index >= self.total() {
            return None;
        }
        let batch = self.0.partition_point(|&start| start <= index) - 1;
        Some((batch, index - self.0[batch]))
    }
}

/// A mapped file whose rows are asked for one by one.
#[derive(Debug)]
pub(crate) struct MappedRows {
    starts: RowStarts,
    batches: Vec<RecordBatch>,
}

impl MappedRows {
    /// As [`ArrowFile::open_counted`].
    pub(crate) fn open(path: &Path, expected: &[SchemaRef], rows: u64, what: &str) -> Result<Self> {
        let ArrowFile { batches, .. } = ArrowFile::open_counted(path, expected, rows, what)?;
        Ok(Self { starts: RowStarts::new(batches.iter().map(RecordBatch::num_rows)), batches })
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.starts.total()
    }

    /// The batch that holds row `index`, and its place there; `None` past the end.
    pub(crate) fn locate(&self, index: usize) -> Option<(&RecordBatch, usize)> {
        let (number, within) = self.starts.locate(index)?;
        Some((self.batches.get(number)?, within))
    }
}

/// Rows of a batch, or values of a column in it, that no file of ours comes near.
const MAX_ROWS: i64 = 1 << 40;

/// Refuses a batch whose description names bytes that it does not have: the decoder takes them for granted.
fn check_buffers(path: &Path, data: &[u8], block: &Block) -> Result<()> {
    let damaged = |found: &str| Err(Error::damaged(path, "buffers inside their record batch", found));
    let metadata = usize::try_from(block.metaDataLength()).ok();
    let Some((head, body)) = metadata.and_then(|metadata| data.split_at_checked(metadata)) else {
        return damaged("a description longer than the batch");
    };
    // A continuation marker and a length, or in old files the length alone, stand before the message.
    let head = match head {
        [0xff, 0xff, 0xff, 0xff, _, _, _, _, message @ ..] | [_, _, _, _, message @ ..] => message,
        _ => return damaged("no description"),
    };
    let message = match root_as_message(head) {
        Ok(message) => message,
        Err(error) => return damaged(&error.to_string()),
    };
    let Some(batch) = message.header_as_record_batch() else {
        return damaged("a message of another kind");
    };
    // Values are read in place, so they must be aligned.
    let aligned = body.as_ptr().addr().is_multiple_of(8);
    let inside = |offset: i64, length: i64| {
        let end = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        end.and_then(|(offset, length)| offset.checked_add(length)).is_some_and(|end| end <= body.len())
    };
    if batch.buffers().into_iter().flatten().any(|buffer| !inside(buffer.offset(), buffer.length())) {
        return damaged("one that leaves it");
    }
    if !aligned || batch.buffers().into_iter().flatten().any(|buffer| buffer.offset() % 8 != 0) {
        return damaged("one that is not aligned");
    }
    let possible = |length: i64| (0..=MAX_ROWS).contains(&length);
    let nodes = batch.nodes().into_iter().flatten();
    let impossible = |length: i64, nulls: i64| !possible(length) || !(0..=length).contains(&nulls);
    if !possible(batch.length()) || nodes.into_iter().any(|node| impossible(node.length(), node.null_count()))
    {
        return damaged("a number of rows or nulls that cannot be");
    }
    Ok(())
}

fn check_schema(path: &Path, expected: &Schema, found: &Schema) -> Result<()> {
    let kind = |schema: &Schema| schema.metadata().get(KIND_KEY).cloned().unwrap_or_else(|| "none".into());
    if kind(expected) != kind(found) {
        return Err(Error::damaged(
            path,
            format!("{KIND_KEY} `{}`", kind(expected)),
            format!("`{}`", kind(found)),
        ));
    }
    let version = found.metadata().get(VERSION_KEY).and_then(|text| text.parse::<u32>().ok());
    match version {
        Some(version) if version > ARROW_VERSION => {
            return Err(Error::NewerVersion { path: path.into(), found: version, supported: ARROW_VERSION });
        }
        Some(_) => {}
        None => return Err(Error::damaged(path, format!("a number in {VERSION_KEY}"), "none")),
    }
    if expected.fields() != found.fields() {
        return Err(Error::damaged(
            path,
            format!(
                "columns {}",
                expected.fields().iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", ")
            ),
            found.fields().iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", "),
        ));
    }
    Ok(())
}
