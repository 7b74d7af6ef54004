//! Tables of documents or rows, one file a shard, every record with where it is from.
//!
//! ```text
//! documents: document UInt64 · input_ids List<UInt16> · text Utf8? · bytes UInt64 · set Utf8? · id Utf8?
//!            input Utf8 · input_sha256 Utf8 · record UInt64 · digest Utf8
//!            license Utf8? (the document's own, else its file's) · source Utf8? (only where documents name one)
//! rows:      row UInt64 · input_ids FixedSizeList<UInt16> · length UInt16
//!            documents List<Struct<document UInt64, first UInt16, tokens UInt64, set Utf8?, input Utf8, record UInt64, digest Utf8>>
//! ```
//! A split of numbers has its own (module `vectors`). Of a split of examples both have `targets` beside `input_ids`, null where nothing is scored, and `length`.
//! Digests are hex text, which every reader shows. A row's documents say at which token of the row their
//! part begins and how many tokens it has there, separator included.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt16Builder};
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, ListArray, RecordBatch, StringArray, StructArray, UInt16Array,
    UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use xlstm_manifests::manifest::{Input, Layout, MANIFEST_NAME, Shard, Targets};
use xlstm_manifests::origin::Origin;
use xlstm_manifests::{Manifest, printable};

use super::write::TableWriter;
use super::{ExportArgs, ExportedFile, Format, Records, check_file, vectors};
use crate::audit::corpus::{Corpus, Meta};
use crate::audit::progress::ByteProgress;
use crate::report::CommandError;
use crate::split::WORK_FOLDER;
use crate::tokenizer::Gpt2Tokenizer;

/// Tokens in a batch of documents, about.
const BATCH_TOKENS: usize = 1 << 20;
/// Rows in a batch.
const BATCH_ROWS: u64 = 256;

/// Writes the tables that `args` ask for.
pub(super) fn export(corpus: &Corpus, args: &ExportArgs) -> Result<Vec<ExportedFile>, CommandError> {
    let manifest = corpus.manifest();
    check_out(manifest, args)?;
    fs_err::create_dir_all(&args.out)?;
    let tokenizer = if args.with_text { Some(Gpt2Tokenizer::new()?) } else { None };
    let mut exporter = Exporter {
        corpus,
        tokenizer,
        documents_schema: documents_schema(manifest, args.with_text),
        rows_schema: rows_schema(manifest)?,
        open: VecDeque::new(),
        next_document: 0,
    };
    let of_numbers = manifest.layout == Layout::Vectors;
    let progress =
        ByteProgress::over_bytes("export", manifest.shards.iter().map(|shard| shard.file.size).sum());
    let (mut files, mut first) = (Vec::new(), 0);
    for (number, shard) in manifest.shards.iter().enumerate() {
        check_file(corpus.folder(), &shard.file)?;
        check_file(corpus.folder(), &shard.companion)?;
        let schema = match args.records {
            _ if of_numbers => vectors::schema(manifest, args.records)?,
            Records::Documents => exporter.documents_schema.clone(),
            Records::Rows => exporter.rows_schema.clone(),
        };
        let path = args.out.join(table_name(shard, args));
        let mut writer = match args.to {
            Format::Parquet => TableWriter::parquet(path, schema.clone())?,
            _ => TableWriter::stream(path, &schema)?,
        };
        match args.records {
            _ if of_numbers => vectors::write(corpus, (number, first), &schema, &mut writer)?,
            Records::Documents => exporter.documents(number, &mut writer)?,
            Records::Rows => exporter.rows(number, &mut writer)?,
        }
        first += shard.file.records;
        files.push(writer.finish()?);
        progress.advance(shard.file.size);
    }
    Ok(files)
}

/// The name of a shard's table.
fn table_name(shard: &Shard, args: &ExportArgs) -> String {
    let stem = shard.file.path.as_str().trim_end_matches(".arrow").replace('/', "-");
    let ending = if args.to == Format::Parquet { "parquet" } else { "arrow" };
    format!("{stem}.{ending}")
}

/// Refuses a folder in which tables would replace shards of a dataset, or stand beside tables of another one.
fn check_out(manifest: &Manifest, args: &ExportArgs) -> Result<(), CommandError> {
    let refuse = |found: String| {
        let out = printable::path(&args.out);
        Err(CommandError::Usage(format!(
            "`{out}`: expected a folder without other tables, found {found}; use another --out"
        )))
    };
    if !args.out.exists() {
        return Ok(());
    }
    if args.out.join(MANIFEST_NAME).exists() || args.out.join(WORK_FOLDER).exists() {
        return refuse("a split, whose files would be replaced".into());
    }
    let ours: HashSet<String> = manifest.shards.iter().map(|shard| table_name(shard, args)).collect();
    for entry in fs_err::read_dir(&args.out)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if (name.ends_with(".parquet") || name.ends_with(".arrow")) && !ours.contains(&name) {
            return refuse(format!("`{}`, which is not of this split", printable::text(&name)));
        }
    }
    Ok(())
}

struct Exporter<'a> {
    corpus: &'a Corpus,
    tokenizer: Option<Gpt2Tokenizer>,
    documents_schema: SchemaRef,
    rows_schema: SchemaRef,
    /// Documents that reach into rows still to come: number, what is known, stream positions.
    open: VecDeque<(u64, Meta, u64, u64)>,
    next_document: u64,
}

pub(super) fn metadata(manifest: &Manifest) -> HashMap<String, String> {
    let source = &manifest.source;
    let mut metadata = HashMap::from([
        ("xlstm.root".to_owned(), manifest.root.to_string()),
        ("xlstm.split".to_owned(), manifest.split.clone()),
        ("xlstm.profile".to_owned(), source.profile.clone()),
    ]);
    let origin = Origin::of(manifest);
    if let (Some(repository), Some(revision)) = (&origin.repository, &origin.revision) {
        metadata.insert("xlstm.source".to_owned(), format!("{repository}@{revision}"));
    }
    if let Some(claim) = &origin.claimed {
        metadata.insert("xlstm.claimed".to_owned(), claim.sentence());
    }
    metadata
}

pub(super) fn field(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, false)
}

fn item() -> Arc<Field> {
    Arc::new(field("item", DataType::UInt16))
}

/// A target that may be missing.
fn target_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt16, true))
}

fn has_targets(manifest: &Manifest) -> bool {
    match manifest.packing.targets {
        Targets::NextToken => false,
        Targets::Stored => true,
    }
}

fn documents_schema(manifest: &Manifest, with_text: bool) -> SchemaRef {
    let mut fields = vec![field("document", DataType::UInt64), field("input_ids", DataType::List(item()))];
    if has_targets(manifest) {
        fields.push(field("targets", DataType::List(target_item())));
        fields.push(field("length", DataType::UInt16));
    }
    if with_text {
        fields.push(field("text", DataType::Utf8));
    }
    fields.extend([
        field("bytes", DataType::UInt64),
        Field::new("set", DataType::Utf8, true),
        Field::new("id", DataType::Utf8, true),
        field("input", DataType::Utf8),
        field("input_sha256", DataType::Utf8),
        field("record", DataType::UInt64),
        field("digest", DataType::Utf8),
        Field::new("licence", DataType::Utf8, true),
    ]);
    if !manifest.record_sources.is_empty() {
        fields.push(Field::new("source", DataType::Utf8, true));
    }
    Arc::new(Schema::new(fields).with_metadata(metadata(manifest)))
}

fn part_fields() -> Fields {
    Fields::from(vec![
        field("document", DataType::UInt64),
        field("first", DataType::UInt16),
        field("tokens", DataType::UInt64),
        Field::new("set", DataType::Utf8, true),
        field("input", DataType::Utf8),
        field("record", DataType::UInt64),
        field("digest", DataType::Utf8),
    ])
}

fn parts_item() -> Arc<Field> {
    Arc::new(field("item", DataType::Struct(part_fields())))
}

fn rows_schema(manifest: &Manifest) -> Result<SchemaRef, CommandError> {
    let row_length = i32::from(manifest.packing.stored_row_length()?);
    let mut fields =
        vec![field("row", DataType::UInt64), field("input_ids", DataType::FixedSizeList(item(), row_length))];
    if has_targets(manifest) {
        fields.push(field("targets", DataType::FixedSizeList(target_item(), row_length)));
    }
    fields.push(field("length", DataType::UInt16));
    fields.push(field("documents", DataType::List(parts_item())));
    Ok(Arc::new(Schema::new(fields).with_metadata(metadata(manifest))))
}

pub(super) fn no_rows() -> CommandError {
    CommandError::Internal("rows of a split without rows".into())
}

pub(super) fn internal(error: impl std::fmt::Display) -> CommandError {
    CommandError::Internal(error.to_string())
}

pub(super) fn u64s(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

pub(super) fn texts<T: AsRef<str>>(values: impl Iterator<Item = Option<T>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

impl Exporter<'_> {
    fn input(&self, meta: &Meta) -> Result<&Input, CommandError> {
        Ok(self.corpus.input_of(meta.input)?)
    }

    /// The documents of shard `number`.
    fn documents(&mut self, number: usize, writer: &mut TableWriter) -> Result<(), CommandError> {
        let documents = self.corpus.shard(number)?;
        let mut pending: Vec<(u64, Meta, Vec<u16>)> = Vec::new();
        let mut tokens = 0;
        for index in 0..documents.len() {
            let mut ids = Vec::new();
            let Some(meta) = documents.read(index, &mut ids)? else { continue };
            tokens += ids.len();
            pending.push((self.next_document, meta, ids));
            self.next_document += 1;
            if tokens >= BATCH_TOKENS {
                writer.write(&self.documents_batch(&std::mem::take(&mut pending))?)?;
                tokens = 0;
            }
        }
        if pending.is_empty() { Ok(()) } else { writer.write(&self.documents_batch(&pending)?) }
    }

    fn documents_batch(&self, documents: &[(u64, Meta, Vec<u16>)]) -> Result<RecordBatch, CommandError> {
        let mut ids = ListBuilder::new(UInt16Builder::new()).with_field(item());
        for (_, _, tokens) in documents {
            ids.values().append_slice(tokens);
            ids.append(true);
        }
        let metas = || documents.iter().map(|(_, meta, _)| meta);
        let inputs = metas().map(|meta| self.input(meta)).collect::<Result<Vec<_>, _>>()?;
        let mut columns: Vec<ArrayRef> = vec![u64s(documents.iter().map(|d| d.0)), Arc::new(ids.finish())];
        if has_targets(self.corpus.manifest()) {
            let mut targets = ListBuilder::new(UInt16Builder::new()).with_field(target_item());
            let mut lengths = Vec::with_capacity(documents.len());
            for (_, meta, _) in documents {
                let (row, _) = meta.place.ok_or_else(no_rows)?;
                lengths.push(self.example(row, targets.values())?);
                targets.append(true);
            }
            columns.push(Arc::new(targets.finish()));
            columns.push(Arc::new(UInt16Array::from(lengths)));
        }
        if let Some(tokenizer) = &self.tokenizer {
            columns.push(texts(documents.iter().map(|(_, _, ids)| Some(tokenizer.decode_lossy(ids)))));
        }
        columns.extend([
            u64s(metas().map(|meta| meta.bytes)),
            texts(metas().map(|meta| meta.set.as_deref())),
            texts(metas().map(|meta| meta.id.as_deref())),
            texts(inputs.iter().map(|input| Some(input.path.as_str()))),
            texts(inputs.iter().map(|input| Some(input.sha256.to_string()))),
            u64s(metas().map(|meta| meta.record)),
            texts(metas().map(|meta| Some(meta.digest.to_string()))),
            texts(
                metas()
                    .zip(&inputs)
                    .map(|(meta, input)| meta.license.as_deref().or(input.licence.as_deref())),
            ),
        ]);
        if !self.corpus.manifest().record_sources.is_empty() {
            columns.push(texts(metas().map(|meta| meta.source.as_deref())));
        }
        RecordBatch::try_new(self.documents_schema.clone(), columns).map_err(internal)
    }

    /// Appends the targets of the example in row `row`; returns its length.
    fn example(&self, row: u64, targets: &mut UInt16Builder) -> Result<u16, CommandError> {
        let rows = self.corpus.rows().ok_or_else(no_rows)?;
        let example = rows.example(row)?.ok_or_else(no_rows)?;
        example.targets().for_each(|target| targets.append_option(target));
        Ok(example.length)
    }

    /// The rows of shard `number`, each with the documents in it.
    fn rows(&mut self, number: usize, writer: &mut TableWriter) -> Result<(), CommandError> {
        let manifest = self.corpus.manifest();
        let row_length = u64::from(manifest.packing.row_length);
        let separator = u64::from(manifest.packing.append_end_of_text);
        let documents = self.corpus.shard(number)?;
        for meta in (0..documents.len()).filter_map(|index| documents.meta(index)) {
            let (row, offset) = meta.place.ok_or_else(no_rows)?;
            let from = row * row_length + u64::from(offset);
            let to = from + meta.tokens + separator;
            self.open.push_back((self.next_document, meta, from, to));
            self.next_document += 1;
        }
        let before: u64 = manifest.shards[..number].iter().map(|shard| shard.file.records).sum();
        let end = before + manifest.shards[number].file.records;
        let mut start = before;
        while start < end {
            let stop = end.min(start + BATCH_ROWS);
            writer.write(&self.rows_batch(start, stop, row_length)?)?;
            start = stop;
        }
        Ok(())
    }

    fn rows_batch(&mut self, start: u64, stop: u64, row_length: u64) -> Result<RecordBatch, CommandError> {
        let dataset = self.corpus.rows().ok_or_else(no_rows)?;
        let with_targets = has_targets(self.corpus.manifest());
        let mut targets = UInt16Builder::new();
        let (mut ids, mut lengths, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let mut parts: Vec<(u64, u16, u64, Meta)> = Vec::new();
        for number in start..stop {
            let row = dataset.row(number)?;
            ids.extend_from_slice(row.ids);
            lengths.push(if with_targets {
                self.example(number, &mut targets)?
            } else {
                u16::try_from(row.length).map_err(internal)?
            });
            let (from, to) = (number * row_length, number * row_length + row.length as u64);
            while self.open.front().is_some_and(|(_, _, _, end)| *end <= from) {
                self.open.pop_front();
            }
            let here = self.open.iter().take_while(|(_, _, first, _)| *first < to);
            let before = parts.len();
            for (document, meta, first, end) in here {
                let first = (*first).max(from);
                let offset = u16::try_from(first - from).map_err(internal)?;
                parts.push((*document, offset, (*end).min(to) - first, meta.clone()));
            }
            counts.push(parts.len() - before);
        }
        let list_length = i32::try_from(row_length).map_err(internal)?;
        let inputs = parts.iter().map(|part| self.input(&part.3)).collect::<Result<Vec<_>, _>>()?;
        let ids = FixedSizeListArray::try_new(item(), list_length, Arc::new(UInt16Array::from(ids)), None);
        let children: Vec<ArrayRef> = vec![
            u64s(parts.iter().map(|part| part.0)),
            Arc::new(UInt16Array::from_iter_values(parts.iter().map(|part| part.1))),
            u64s(parts.iter().map(|part| part.2)),
            texts(parts.iter().map(|part| part.3.set.as_deref())),
            texts(inputs.iter().map(|input| Some(input.path.as_str()))),
            u64s(parts.iter().map(|part| part.3.record)),
            texts(parts.iter().map(|part| Some(part.3.digest.to_string()))),
        ];
        let structs = StructArray::try_new(part_fields(), children, None).map_err(internal)?;
        let lists =
            ListArray::try_new(parts_item(), OffsetBuffer::from_lengths(counts), Arc::new(structs), None);
        let mut columns: Vec<Arc<dyn Array>> = vec![u64s(start..stop), Arc::new(ids.map_err(internal)?)];
        if with_targets {
            let targets = Arc::new(targets.finish());
            let list = FixedSizeListArray::try_new(target_item(), list_length, targets, None);
            columns.push(Arc::new(list.map_err(internal)?));
        }
        columns.push(Arc::new(UInt16Array::from(lengths)));
        columns.push(Arc::new(lists.map_err(internal)?));
        RecordBatch::try_new(self.rows_schema.clone(), columns).map_err(internal)
    }
}
