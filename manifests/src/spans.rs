//! Spans: where each document is in the token stream. Stored, never inferred from separators.
//!
//! ```text
//! input UInt32 · record UInt64      the source file (index into the manifest's inputs) and record in it
//! row UInt64 · offset UInt16        where its first token is: row of the whole split, token in the row
//! length UInt64                     its tokens, separator included
//! bytes UInt64                      UTF-8 bytes of its text
//! set UInt16?                       index into the manifest's sets
//! digest FixedSizeBinary(32)        SHA-256 of its text
//! id Utf8?                          the source's own name for it
//! license UInt16? · source UInt16?  indexes into the manifest's record_licenses and record_sources; the two columns
//!                                   are there only where a document of the shard carries one of them
//! ```
//! `spans-NNNNN.arrow` lists the documents that *start* in `shard-NNNNN.arrow`, in stream order. Together
//! the spans tile the stream: each starts where the one before ends.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch, UInt16Array, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::arrow_file::{self, ArrowWriter, MappedRows};
use crate::atomic::Written;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::merkle;

/// Where one document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Index into the manifest's inputs.
    pub input: u32,
    /// Record number in that input.
    pub record: u64,
    /// Row of the split that holds its first token.
    pub row: u64,
    /// Position of its first token in that row.
    pub offset: u16,
    /// Tokens, separator included.
    pub length: u64,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Index into the manifest's sets.
    pub set: Option<u16>,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
    /// The source's own name for it.
    pub id: Option<String>,
    /// Index into the manifest's `record_licenses`.
    pub license: Option<u16>,
    /// Index into the manifest's `record_sources`.
    pub source: Option<u16>,
}

/// The Merkle leaf of a document: input, record, tokens (little-endian), digest of its text.
#[must_use]
pub fn document_leaf(input: u32, record: u64, length: u64, digest: &Sha256Digest) -> Sha256Digest {
    merkle::leaf(&[&input.to_le_bytes(), &record.to_le_bytes(), &length.to_le_bytes(), &digest.0])
}

/// The Merkle leaves of several documents, in their order: faster than [`document_leaf`] for each.
#[must_use]
pub fn document_leaves(spans: &[Span]) -> Vec<Sha256Digest> {
    let mut bytes = Vec::with_capacity(spans.len() * DOCUMENT_BYTES);
    for span in spans {
        bytes.extend_from_slice(&span.input.to_le_bytes());
        bytes.extend_from_slice(&span.record.to_le_bytes());
        bytes.extend_from_slice(&span.length.to_le_bytes());
        bytes.extend_from_slice(&span.digest.0);
    }
    merkle::leaves(bytes.chunks_exact(DOCUMENT_BYTES))
}

/// The schema of a spans file whose documents carry no license and no source of their own.
#[must_use]
pub fn schema() -> SchemaRef {
    arrow_file::schema("spans", fields())
}

/// The schema of a spans file with a document that carries one.
#[must_use]
pub fn schema_with_provenance() -> SchemaRef {
    let mut fields = fields();
    fields.extend(["license", "source"].map(|name| Field::new(name, DataType::UInt16, true)));
    arrow_file::schema("spans", fields)
}

fn fields() -> Vec<Field> {
    let field = |name: &str, kind: DataType| Field::new(name, kind, false);
    vec![
        field("input", DataType::UInt32),
        field("record", DataType::UInt64),
        field("row", DataType::UInt64),
        field("offset", DataType::UInt16),
        field("length", DataType::UInt64),
        field("bytes", DataType::UInt64),
        Field::new("set", DataType::UInt16, true),
        field("digest", DataType::FixedSizeBinary(32)),
        Field::new("id", DataType::Utf8, true),
    ]
}

/// Bytes that a document's leaf is over.
const DOCUMENT_BYTES: usize = 4 + 8 + 8 + 32;

/// Spans in a record batch.
const BATCH_SPANS: usize = 1 << 16;

/// Writes `spans` to `path`, whole or not at all.
///
/// # Errors
/// When writing fails; the error names the file.
pub fn write(path: &Path, spans: &[Span]) -> Result<Written> {
    let schema = schema_of(spans);
    write_to(ArrowWriter::create(path, &schema)?, spans, &schema)
}

/// As [`write()`], but nothing is written: what `path` would be.
///
/// # Errors
/// When the spans are more than a file can hold.
pub fn digest(path: &Path, spans: &[Span]) -> Result<Written> {
    let schema = schema_of(spans);
    write_to(ArrowWriter::digest_only(path, &schema)?, spans, &schema)
}

fn schema_of(spans: &[Span]) -> SchemaRef {
    let provenance = spans.iter().any(|span| span.license.is_some() || span.source.is_some());
    if provenance { schema_with_provenance() } else { schema() }
}

fn write_to(mut writer: ArrowWriter, spans: &[Span], schema: &SchemaRef) -> Result<Written> {
    for chunk in spans.chunks(BATCH_SPANS) {
        let batch = to_batch(chunk, schema).map_err(Error::internal)?;
        writer.write(&batch)?;
    }
    writer.finish()
}

fn to_batch(
    spans: &[Span],
    schema: &SchemaRef,
) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
    let mut digests = FixedSizeBinaryBuilder::with_capacity(spans.len(), 32);
    let mut ids = StringBuilder::new();
    for span in spans {
        digests.append_value(span.digest.0)?;
        ids.append_option(span.id.as_deref());
    }
    let u64s = |get: fn(&Span) -> u64| Arc::new(UInt64Array::from_iter_values(spans.iter().map(get)));
    let mut columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(UInt32Array::from_iter_values(spans.iter().map(|span| span.input))),
        u64s(|span| span.record),
        u64s(|span| span.row),
        Arc::new(UInt16Array::from_iter_values(spans.iter().map(|span| span.offset))),
        u64s(|span| span.length),
        u64s(|span| span.bytes),
        Arc::new(spans.iter().map(|span| span.set).collect::<UInt16Array>()),
        Arc::new(digests.finish()),
        Arc::new(ids.finish()),
    ];
    if schema.fields().len() > columns.len() {
        columns.push(Arc::new(spans.iter().map(|span| span.license).collect::<UInt16Array>()));
        columns.push(Arc::new(spans.iter().map(|span| span.source).collect::<UInt16Array>()));
    }
    RecordBatch::try_new(schema.clone(), columns)
}

/// A mapped spans file.
#[derive(Debug)]
pub struct SpansFile {
    rows: MappedRows,
}

impl SpansFile {
    /// Maps `path` and checks that it holds `spans` spans.
    ///
    /// # Errors
    /// When the file is no spans file or holds another number.
    pub fn open(path: &Path, spans: u64) -> Result<Self> {
        Ok(Self { rows: MappedRows::open(path, &[schema(), schema_with_provenance()], spans, "spans")? })
    }

    /// Number of spans.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no document starts in the shard.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Span `index`; `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Span> {
        let (batch, i) = self.rows.locate(index)?;
        let u64_at = |column: usize| batch.column(column).as_primitive::<UInt64Type>().value(i);
        let u16_at = |column: &Arc<dyn Array>| {
            let column = column.as_primitive::<UInt16Type>();
            column.is_valid(i).then(|| column.value(i))
        };
        let ids = batch.column(8).as_string::<i32>();
        let mut digest = [0; 32];
        digest.copy_from_slice(batch.column(7).as_fixed_size_binary().value(i));
        Some(Span {
            input: batch.column(0).as_primitive::<UInt32Type>().value(i),
            record: u64_at(1),
            row: u64_at(2),
            offset: batch.column(3).as_primitive::<UInt16Type>().value(i),
            length: u64_at(4),
            bytes: u64_at(5),
            set: u16_at(batch.column(6)),
            digest: Sha256Digest(digest),
            id: ids.is_valid(i).then(|| ids.value(i).to_owned()),
            license: batch.columns().get(9).and_then(u16_at),
            source: batch.columns().get(10).and_then(u16_at),
        })
    }

    /// All spans in stream order.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}
