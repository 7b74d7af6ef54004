//! Arrow IPC files: what all shards share.
//!
//! ```text
//! "ARROW1\0\0" │ schema │ record batches, each buffer 64-byte aligned │ footer │ length │ "ARROW1"
//! ```
//! The schema's metadata carries `xlstm.kind` and `xlstm.version`; readers check both. Files are written
//! uncompressed, so that a reader maps them and hands out slices without a copy; zstd-compressed copies
//! are read too, up to 512 MiB of memory. What a batch says of itself is compared with the bytes that are there first
//! (module `arrow_layout`).

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::read_footer_length;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_ipc::{Block, Endianness, root_as_footer};
use arrow_schema::{ArrowError, Field, Schema, SchemaRef};

use crate::arrow_layout;
use crate::atomic::{AtomicFile, Written};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::file_digest::Digests;
use crate::hashing_writer::HashingWriter;
use crate::mapped::Mapped;
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

/// Where an Arrow file's bytes go.
enum Output {
    File(AtomicFile),
    /// Nowhere: they are only counted and digested.
    Nowhere(HashingWriter<io::Sink>),
}

impl Output {
    fn digests(&mut self) -> Result<&mut Digests> {
        match self {
            Self::File(file) => file.digests(),
            Self::Nowhere(bytes) => Ok(bytes.digests()),
        }
    }

    fn finish(mut self) -> Result<Written> {
        self.flush()?;
        match self {
            Self::File(file) => file.commit(),
            Self::Nowhere(bytes) => {
                let (size, sha256) = bytes.finish().1.finish()?;
                Ok(Written { size, sha256 })
            }
        }
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Nowhere(nowhere) => nowhere.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Nowhere(nowhere) => nowhere.flush(),
        }
    }
}

/// Writes one Arrow file, whole or not at all.
pub struct ArrowWriter {
    writer: FileWriter<Output>,
    path: PathBuf,
}

impl ArrowWriter {
    /// Starts `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created.
    pub fn create(path: &Path, schema: &Schema) -> Result<Self> {
        Self::over(Output::File(AtomicFile::create(path)?), path, schema)
    }

    /// Counts and digests what would be written to `path`, and writes nothing.
    pub(crate) fn digest_only(path: &Path, schema: &Schema) -> Result<Self> {
        Self::over(Output::Nowhere(HashingWriter::new(io::sink())), path, schema)
    }

    fn over(output: Output, path: &Path, schema: &Schema) -> Result<Self> {
        let writer = FileWriter::try_new_with_options(output, schema, IpcWriteOptions::default())
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

    /// As [`Self::write`], and the digests of `leaves`, which cost little beside the batch; none yet if digests come later.
    pub(crate) fn write_with_leaves(
        &mut self,
        batch: &RecordBatch,
        leaves: Leaves,
    ) -> Result<Vec<Sha256Digest>> {
        self.digests()?.begin_leaves(leaves);
        self.write(batch)?;
        Ok(self.digests()?.end_leaves())
    }

    /// The digests of what was written so far.
    pub(crate) fn digests(&mut self) -> Result<&mut Digests> {
        self.writer.get_mut().digests()
    }

    /// Writes the footer and makes the file durable.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn finish(self) -> Result<Written> {
        let path = self.path;
        self.writer.into_inner().map_err(|error| write_error(&path, error))?.finish()
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
    /// Kept as long as the batches are.
    pub(crate) unpacked: Unpacked,
}

impl ArrowFile {
    /// Maps `path` and checks magic, kind, version and schema.
    ///
    /// # Errors
    /// When it is no Arrow file, is cut short, or holds something else than one of `expected`, the first of which is
    /// named in the error.
    pub fn open(path: &Path, expected: &[SchemaRef]) -> Result<Self> {
        let map = Mapped::open(path)?;
        if map.len() < 18 {
            return Err(Error::damaged(path, "an Arrow IPC file", "fewer than 18 bytes"));
        }
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
        if footer.custom_metadata().is_some() {
            return Err(Error::damaged(path, "a footer without metadata of its own", "one with"));
        }
        if schema.endianness() != Endianness::Little {
            return Err(Error::damaged(path, "little-endian numbers", "big-endian ones"));
        }
        let schema = try_fb_to_schema(schema).map_err(fail)?;
        let fits = |expected: &&SchemaRef| expected.fields() == schema.fields();
        if let Some(expected) = expected.iter().find(fits).or(expected.first()) {
            check_schema(path, expected, &schema)?;
        }
        let blocks: Vec<Block> = footer.recordBatches().into_iter().flatten().copied().collect();
        let mut file = Self { path: path.into(), batches: Vec::new(), unpacked: Unpacked::default() };
        file.decode_blocks(&buffer.slice_with_length(0, start), &blocks, &Arc::new(schema))?;
        Ok(file)
    }

    fn decode_blocks(&mut self, buffer: &Buffer, blocks: &[Block], schema: &SchemaRef) -> Result<()> {
        let path = self.path.clone();
        let damaged = |found| Error::damaged(&path, "record batches that hold what they say", found);
        arrow_layout::check_blocks(blocks).map_err(damaged)?;
        // All are gone through before the first is decoded: what they take together is known then.
        let mut located = Vec::with_capacity(blocks.len());
        let mut unpacked = 0_u64;
        for block in blocks {
            let batch = arrow_layout::locate(buffer, block).map_err(damaged)?;
            unpacked = unpacked.saturating_add(batch.unpacked(buffer, schema).map_err(damaged)?);
            located.push(batch);
        }
        self.unpacked = Unpacked::reserve(&path, unpacked)?;
        for batch in located {
            self.batches.push(batch.decode(buffer, schema).map_err(damaged)?);
        }
        Ok(())
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
    _unpacked: Unpacked,
}

impl MappedRows {
    /// As [`ArrowFile::open_counted`].
    pub(crate) fn open(path: &Path, expected: &[SchemaRef], rows: u64, what: &str) -> Result<Self> {
        let ArrowFile { batches, unpacked, .. } = ArrowFile::open_counted(path, expected, rows, what)?;
        let starts = RowStarts::new(batches.iter().map(RecordBatch::num_rows));
        Ok(Self { starts, batches, _unpacked: unpacked })
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

/// Bytes that compressed files of this process take in memory together.
static UNPACKED: AtomicU64 = AtomicU64::new(0);

/// Most of them: a file of 82 kB can say that it holds gigabytes.
const MAX_UNPACKED: u64 = 512 << 20;

/// A file's part of [`UNPACKED`], given back with it.
#[derive(Debug, Default)]
pub(crate) struct Unpacked(u64);

impl Unpacked {
    fn reserve(path: &Path, bytes: u64) -> Result<Self> {
        let sum = |taken: u64| taken.checked_add(bytes).filter(|&sum| sum <= MAX_UNPACKED);
        match UNPACKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) => Err(Error::mismatch(
                path,
                format!("compressed files that take at most {MAX_UNPACKED} bytes of memory together"),
                format!("one that takes {bytes}"),
                "store it without compression: then it is read in place",
            )),
        }
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        UNPACKED.fetch_sub(self.0, Ordering::Relaxed);
    }
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
