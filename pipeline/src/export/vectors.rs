//! Tables of a split of numbers: one record an example, whichever records are asked for.
//!
//! ```text
//! document | row UInt64 · inputs FixedSizeList<Float32, N·W> · targets FixedSizeList<Float32, N>, null: not scored
//! length UInt16 · set Utf8? · id Utf8? · input Utf8 · input_sha256 Utf8 · record UInt64 · digest Utf8
//! ```

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt16Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use xlstm_manifests::Manifest;
use xlstm_manifests::stored::StoredShape;
use xlstm_manifests::vectors::VectorShape;

use super::Records;
use super::tables::{field, internal, metadata, no_rows, texts, u64s};
use super::write::TableWriter;
use crate::audit::corpus::Corpus;
use crate::report::CommandError;

/// Rows in a batch.
const BATCH_ROWS: usize = 256;

fn item(nullable: bool) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, nullable))
}

/// Positions, and numbers of a row that go in.
fn lengths(manifest: &Manifest) -> Result<[i32; 2], CommandError> {
    match StoredShape::of(manifest)? {
        Some(StoredShape::Numbers(shape @ VectorShape { row_length, .. })) => {
            Ok([i32::from(row_length), i32::try_from(shape.inputs()).map_err(internal)?])
        }
        _ => Err(CommandError::Internal("a table of numbers of a split without any".into())),
    }
}

/// The table's schema.
pub(super) fn schema(manifest: &Manifest, records: Records) -> Result<SchemaRef, CommandError> {
    let [positions, inputs] = lengths(manifest)?;
    let first = match records {
        Records::Documents => "document",
        Records::Rows => "row",
    };
    let fields = vec![
        field(first, DataType::UInt64),
        field("inputs", DataType::FixedSizeList(item(false), inputs)),
        field("targets", DataType::FixedSizeList(item(true), positions)),
        field("length", DataType::UInt16),
        Field::new("set", DataType::Utf8, true),
        Field::new("id", DataType::Utf8, true),
        field("input", DataType::Utf8),
        field("input_sha256", DataType::Utf8),
        field("record", DataType::UInt64),
        field("digest", DataType::Utf8),
    ];
    Ok(Arc::new(Schema::new(fields).with_metadata(metadata(manifest))))
}

/// The examples of shard `number`, whose first is row `first` of the split.
pub(super) fn write(
    corpus: &Corpus,
    (number, first): (usize, u64),
    schema: &SchemaRef,
    writer: &mut TableWriter,
) -> Result<(), CommandError> {
    let count = corpus.shard(number)?.len();
    let mut start = 0;
    while start < count {
        let stop = count.min(start + BATCH_ROWS);
        writer.write(&batch(corpus, (number, first), start..stop, schema)?)?;
        start = stop;
    }
    Ok(())
}

fn batch(
    corpus: &Corpus,
    (number, first): (usize, u64),
    range: std::ops::Range<usize>,
    schema: &SchemaRef,
) -> Result<RecordBatch, CommandError> {
    let (dataset, documents) = (corpus.rows().ok_or_else(no_rows)?, corpus.shard(number)?);
    let manifest = corpus.manifest();
    let [positions, inputs_long] = lengths(manifest)?;
    let (mut inputs, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    let mut metas = Vec::with_capacity(range.len());
    let rows: Vec<u64> = range.clone().map(|index| first + index as u64).collect();
    for (&row, index) in rows.iter().zip(range) {
        let example = dataset.vectors(row)?.ok_or_else(no_rows)?;
        inputs.extend_from_slice(example.inputs);
        targets.extend(example.targets());
        counts.push(example.length);
        let meta = documents.meta(index).ok_or_else(no_rows)?;
        let input = corpus.input_of(meta.input)?;
        metas.push((meta, input));
    }
    let list = |values: Float32Array, nullable, length| {
        FixedSizeListArray::try_new(item(nullable), length, Arc::new(values), None).map_err(internal)
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(rows)),
        Arc::new(list(Float32Array::from(inputs), false, inputs_long)?) as Arc<dyn Array>,
        Arc::new(list(targets.into_iter().collect::<Float32Array>(), true, positions)?),
        Arc::new(UInt16Array::from(counts)),
        texts(metas.iter().map(|(meta, _)| meta.set.as_deref())),
        texts(metas.iter().map(|(meta, _)| meta.id.as_deref())),
        texts(metas.iter().map(|(_, input)| Some(input.path.as_str()))),
        texts(metas.iter().map(|(_, input)| Some(input.sha256.to_string()))),
        u64s(metas.iter().map(|(meta, _)| meta.record)),
        texts(metas.iter().map(|(meta, _)| Some(meta.digest.to_string()))),
    ];
    RecordBatch::try_new(SchemaRef::clone(schema), columns).map_err(internal)
}
