//! Document shards and their evaluation windows, for data that is scored document by document (PALOMA).
//!
//! ```text
//! documents-NAME.arrow                              windows-NAME.arrow
//! input_ids List<UInt16 not null> not null          document UInt32   row in documents-NAME
//! source Utf8 · domain Utf8 · id Utf8?              start    UInt64   first token that is scored
//! bytes · chars · words UInt64                      predicted UInt16  tokens that are scored
//! truncated Boolean                                 context  UInt16   tokens before `start` that are input
//! input UInt32 · record UInt64
//! digest FixedSizeBinary(32)
//! license · record_source UInt16?
//! ```
//! `license` and `record_source` are indexes into the manifest's `record_licenses` and `record_sources`: what the record
//! says of itself, beside `source`, which is the dataset's own division. Older files lack both columns.
//!
//! `words` counts the pieces that Python's `re.split(r"\s+", text)` yields, `chars` Unicode scalar values.
//!
//! A window's input is `ids[start - context .. start + predicted - 1]`, where index -1 stands for
//! `<|endoftext|>`, and its targets are `ids[start .. start + predicted]`. Every token of a document is
//! predicted exactly once; all full windows have one token of context, and the last one is filled up with
//! preceding tokens (xLSTM paper, section 4.3 and PALOMA's official evaluator).

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeBinaryBuilder, ListBuilder, StringBuilder, UInt16Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, BooleanArray, RecordBatch, StringArray, UInt16Array, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::arrow_file::{self, ArrowFile, ArrowWriter, MappedRows};
use crate::atomic::Written;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};

/// A document with what its source says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Tokens, no separator.
    pub ids: Vec<u16>,
    /// PALOMA's source (its folder's name).
    pub source: String,
    /// Subdomain, or the source where it has none.
    pub domain: String,
    /// The source's own name for it.
    pub id: Option<String>,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Unicode scalar values of its text.
    pub chars: u64,
    /// Pieces between runs of white space.
    pub words: u64,
    /// Whether its source cut it to a token target.
    pub truncated: bool,
    /// Index into the manifest's inputs.
    pub input: u32,
    /// Record number in that input.
    pub record: u64,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
    /// Index into the manifest's `record_licenses`.
    pub license: Option<u16>,
    /// Index into the manifest's `record_sources`.
    pub record_source: Option<u16>,
}

/// A stretch of a document that is scored in one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Row of the document in its shard.
    pub document: u32,
    /// First token that is scored.
    pub start: u64,
    /// Tokens that are scored.
    pub predicted: u16,
    /// Tokens before `start` that are input, `<|endoftext|>` counted.
    pub context: u16,
}

/// The windows of a document of `tokens` tokens, for a model of context length `length`.
pub fn windows(document: u32, tokens: u64, length: u16) -> impl Iterator<Item = Window> {
    let step = u64::from(length);
    (0..tokens.div_ceil(step.max(1))).map(move |index| {
        let start = index * step;
        // At most `length`, so it fits.
        let predicted = u16::try_from((tokens - start).min(step)).unwrap_or(length);
        let context = if start == 0 { 1 } else { length - predicted + 1 };
        Window { document, start, predicted, context }
    })
}

/// Pieces that Python's `re.split(r"\s+", text)` yields: runs of white space, plus one.
#[must_use]
pub fn count_words(text: &str) -> u64 {
    // Python counts the four information separators as white space; Unicode's White_Space does not.
    let white = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let mut inside = false;
    let mut runs = 0;
    for c in text.chars() {
        let is_white = white(c);
        runs += u64::from(is_white && !inside);
        inside = is_white;
    }
    runs + 1
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt16, false))
}

/// The schema of a document shard.
#[must_use]
pub fn schema() -> SchemaRef {
    let mut fields = older_fields();
    fields.extend(["license", "record_source"].map(|name| Field::new(name, DataType::UInt16, true)));
    arrow_file::schema("documents", fields)
}

/// The schema of a document shard from before records' licenses and sources were kept.
fn older_schema() -> SchemaRef {
    arrow_file::schema("documents", older_fields())
}

fn older_fields() -> Vec<Field> {
    let field = |name: &str, kind: DataType| Field::new(name, kind, false);
    vec![
        field("input_ids", DataType::List(item())),
        field("source", DataType::Utf8),
        field("domain", DataType::Utf8),
        Field::new("id", DataType::Utf8, true),
        field("bytes", DataType::UInt64),
        field("chars", DataType::UInt64),
        field("words", DataType::UInt64),
        field("truncated", DataType::Boolean),
        field("input", DataType::UInt32),
        field("record", DataType::UInt64),
        field("digest", DataType::FixedSizeBinary(32)),
    ]
}

/// The schema of a windows file.
#[must_use]
pub fn windows_schema() -> SchemaRef {
    let field = |name: &str, kind: DataType| Field::new(name, kind, false);
    arrow_file::schema(
        "windows",
        vec![
            field("document", DataType::UInt32),
            field("start", DataType::UInt64),
            field("predicted", DataType::UInt16),
            field("context", DataType::UInt16),
        ],
    )
}

/// Tokens in a record batch, about.
const BATCH_TOKENS: usize = 1 << 20;

/// Writes one document shard.
pub struct DocumentsWriter {
    writer: ArrowWriter,
    pending: Vec<Document>,
    pending_tokens: usize,
}

impl DocumentsWriter {
    /// Starts a shard at `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { writer: ArrowWriter::create(path, &schema())?, pending: Vec::new(), pending_tokens: 0 })
    }

    /// Appends a document.
    ///
    /// # Errors
    /// When writing fails.
    pub fn push(&mut self, document: Document) -> Result<()> {
        self.pending_tokens += document.ids.len();
        self.pending.push(document);
        if self.pending_tokens >= BATCH_TOKENS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.pending_tokens = 0;
        let batch = to_batch(&std::mem::take(&mut self.pending)).map_err(Error::internal)?;
        self.writer.write(&batch)
    }

    /// Makes the shard durable.
    ///
    /// # Errors
    /// When writing, fsync or the rename fails.
    pub fn finish(mut self) -> Result<Written> {
        self.flush()?;
        self.writer.finish()
    }
}

fn to_batch(documents: &[Document]) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
    let mut ids = ListBuilder::new(UInt16Builder::new()).with_field(item());
    let mut names = StringBuilder::new();
    let mut digests = FixedSizeBinaryBuilder::with_capacity(documents.len(), 32);
    for document in documents {
        ids.values().append_slice(&document.ids);
        ids.append(true);
        names.append_option(document.id.as_deref());
        digests.append_value(document.digest.0)?;
    }
    let strings = |get: fn(&Document) -> &str| -> Arc<dyn Array> {
        Arc::new(StringArray::from_iter_values(documents.iter().map(get)))
    };
    let u64s = |get: fn(&Document) -> u64| -> Arc<dyn Array> {
        Arc::new(UInt64Array::from_iter_values(documents.iter().map(get)))
    };
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(ids.finish()),
        strings(|d| &d.source),
        strings(|d| &d.domain),
        Arc::new(names.finish()),
        u64s(|d| d.bytes),
        u64s(|d| d.chars),
        u64s(|d| d.words),
        Arc::new(BooleanArray::from_iter(documents.iter().map(|d| Some(d.truncated)))),
        Arc::new(UInt32Array::from_iter_values(documents.iter().map(|d| d.input))),
        u64s(|d| d.record),
        Arc::new(digests.finish()),
        Arc::new(documents.iter().map(|d| d.license).collect::<UInt16Array>()),
        Arc::new(documents.iter().map(|d| d.record_source).collect::<UInt16Array>()),
    ];
    RecordBatch::try_new(schema(), columns)
}

/// Writes the windows of a shard.
///
/// # Errors
/// When writing fails.
pub fn write_windows(path: &Path, windows: &[Window]) -> Result<Written> {
    let mut writer = ArrowWriter::create(path, &windows_schema())?;
    for chunk in windows.chunks(1 << 16) {
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(UInt32Array::from_iter_values(chunk.iter().map(|w| w.document))),
            Arc::new(UInt64Array::from_iter_values(chunk.iter().map(|w| w.start))),
            Arc::new(UInt16Array::from_iter_values(chunk.iter().map(|w| w.predicted))),
            Arc::new(UInt16Array::from_iter_values(chunk.iter().map(|w| w.context))),
        ];
        writer.write(&RecordBatch::try_new(windows_schema(), columns).map_err(Error::internal)?)?;
    }
    writer.finish()
}

/// A mapped document shard.
#[derive(Debug)]
pub struct DocumentShard {
    rows: MappedRows,
}

impl DocumentShard {
    /// Maps `path` and checks that it holds `documents` documents.
    ///
    /// # Errors
    /// When the file is no document shard or holds another number.
    pub fn open(path: &Path, documents: u64) -> Result<Self> {
        Ok(Self { rows: MappedRows::open(path, &[schema(), older_schema()], documents, "documents")? })
    }

    /// Number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the shard holds no document.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Document `index`; `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Document> {
        let (batch, i) = self.rows.locate(index)?;
        let text = |column: usize| batch.column(column).as_string::<i32>();
        let u64_at = |column: usize| batch.column(column).as_primitive::<UInt64Type>().value(i);
        let u16_at = |column: usize| {
            let column = batch.columns().get(column)?.as_primitive::<UInt16Type>();
            column.is_valid(i).then(|| column.value(i))
        };
        let ids = batch.column(0).as_list::<i32>().value(i);
        let mut digest = [0; 32];
        digest.copy_from_slice(batch.column(10).as_fixed_size_binary().value(i));
        Some(Document {
            ids: ids.as_primitive::<UInt16Type>().values().to_vec(),
            source: text(1).value(i).to_owned(),
            domain: text(2).value(i).to_owned(),
            id: text(3).is_valid(i).then(|| text(3).value(i).to_owned()),
            bytes: u64_at(4),
            chars: u64_at(5),
            words: u64_at(6),
            truncated: batch.column(7).as_boolean().value(i),
            input: batch.column(8).as_primitive::<UInt32Type>().value(i),
            record: u64_at(9),
            digest: Sha256Digest(digest),
            license: u16_at(11),
            record_source: u16_at(12),
        })
    }

    /// All documents in order.
    pub fn iter(&self) -> impl Iterator<Item = Document> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// Reads the windows of a shard.
///
/// # Errors
/// When the file is no windows file or holds another number than `expected`.
pub fn read_windows(path: &Path, expected: u64) -> Result<Vec<Window>> {
    let file = ArrowFile::open_counted(path, &[windows_schema()], expected, "windows")?;
    let mut windows = Vec::new();
    for batch in &file.batches {
        let u16s = |column: usize| batch.column(column).as_primitive::<UInt16Type>();
        let documents = batch.column(0).as_primitive::<UInt32Type>();
        let starts = batch.column(1).as_primitive::<UInt64Type>();
        windows.extend((0..batch.num_rows()).map(|i| Window {
            document: documents.value(i),
            start: starts.value(i),
            predicted: u16s(2).value(i),
            context: u16s(3).value(i),
        }));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_official_evaluator() {
        let of =
            |tokens| windows(7, tokens, 2048).map(|w| (w.start, w.predicted, w.context)).collect::<Vec<_>>();
        assert_eq!(of(0), vec![]);
        assert_eq!(of(1), vec![(0, 1, 1)]);
        assert_eq!(of(2048), vec![(0, 2048, 1)]);
        assert_eq!(of(2049), vec![(0, 2048, 1), (2048, 1, 2048)]);
        assert_eq!(of(3000), vec![(0, 2048, 1), (2048, 952, 1097)]);
        assert_eq!(of(4096), vec![(0, 2048, 1), (2048, 2048, 1)]);
    }

    #[test]
    fn files_without_provenance_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("documents.arrow");
        let document = Document {
            ids: vec![1, 2],
            source: "ptb".into(),
            domain: "ptb".into(),
            id: None,
            bytes: 3,
            chars: 3,
            words: 1,
            truncated: false,
            input: 0,
            record: 7,
            digest: Sha256Digest::of(b"abc"),
            license: Some(2),
            record_source: None,
        };
        let batch = to_batch(std::slice::from_ref(&document)).unwrap();
        let older = batch.project(&(0..11).collect::<Vec<_>>()).unwrap();
        let older = older.with_schema(older_schema()).unwrap();
        for (batch, schema, license) in [(batch, schema(), Some(2)), (older, older_schema(), None)] {
            let mut writer = ArrowWriter::create(&path, &schema).unwrap();
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            let found = DocumentShard::open(&path, 1).unwrap().get(0).unwrap();
            assert_eq!(found, Document { license, ..document.clone() });
        }
    }

    #[test]
    fn words_are_those_of_python_re_split() {
        for (text, words) in [("", 1), ("a", 1), ("a b", 2), (" a\t\nb ", 4), ("a\u{1c}b\u{3000}c", 3)] {
            assert_eq!(count_words(text), words, "{text:?}");
        }
    }
}
