//! Parquet files of many writers, whole and broken.

use std::sync::Arc;

use arrow_array::types::Int32Type as ArrowInt32Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, Int64Array, LargeStringArray, ListArray, RecordBatch,
    StringArray, StringViewArray, StructArray,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::*;

const TEXTS: [Option<&str>; 7] =
    [Some("first"), None, Some(""), Some("fünf"), Some("first"), Some("six\nlines"), Some("last")];

/// A file with these columns, three rows to a group.
fn written(
    folder: &Folder,
    name: &str,
    columns: Vec<(&str, ArrayRef)>,
    properties: WriterProperties,
) -> PathBuf {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch =
        RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    folder.file(name, &bytes)
}

fn small_groups() -> WriterProperties {
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(3))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build()
}

fn meta() -> ArrayRef {
    let names =
        StringArray::from(vec![Some("C4"), Some("Book"), None, Some("C4"), Some("Github"), None, Some("C4")]);
    let field = Arc::new(Field::new("redpajama_set_name", DataType::Utf8, true));
    let valid = vec![true, true, true, true, false, true, true];
    Arc::new(StructArray::new(vec![field].into(), vec![Arc::new(names)], Some(valid.into())))
}

#[test]
fn strings_are_read_however_the_writer_called_them() {
    let folder = Folder::new();
    let bytes: Vec<Option<&[u8]>> = TEXTS.iter().map(|text| text.map(str::as_bytes)).collect();
    let arrays: Vec<(&str, ArrayRef)> = vec![
        ("utf8", Arc::new(StringArray::from(TEXTS.to_vec()))),
        ("large", Arc::new(LargeStringArray::from(TEXTS.to_vec()))),
        ("view", Arc::new(StringViewArray::from(TEXTS.to_vec()))),
        ("dictionary", Arc::new(TEXTS.into_iter().collect::<DictionaryArray<ArrowInt32Type>>())),
        ("binary", Arc::new(BinaryArray::from(bytes))),
    ];
    let versions = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0];
    for ((name, array), version) in
        arrays.into_iter().flat_map(|array| versions.map(|version| (array.clone(), version)))
    {
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_max_row_group_row_count(Some(3))
            .set_data_page_row_count_limit(2)
            .set_write_batch_size(1)
            .build();
        let path =
            written(&folder, &format!("{name}.parquet"), vec![("text", array), ("meta", meta())], properties);
        let steps = read(&path, &Fields::slimpajama());
        assert_eq!(texts(&steps), ["first", "BAD", "", "fünf", "first", "six\nlines", "last"], "{name}");
        let sets: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Entry::Record(record) => record.set.as_deref(),
                Entry::Bad { reason, .. } => Some(reason.reason()),
            })
            .collect();
        assert_eq!(
            sets,
            [Some("C4"), Some("missing-text"), None, Some("C4"), None, None, Some("C4")],
            "a null, also of the struct, is no set"
        );
        assert_any_start_agrees(&path, &Fields::slimpajama());
    }
}

#[test]
fn every_encoding_and_compression_is_read() {
    let folder = Folder::new();
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
        Compression::ZSTD(Default::default()),
    ];
    let encodings = [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY];
    let documents: Vec<String> =
        (0..500).map(|number| format!("document {number} ").repeat(number % 40)).collect();
    for (compression, encoding) in compressions.into_iter().flat_map(|c| encodings.map(|e| (c, e))) {
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_dictionary_enabled(false)
            .set_encoding(encoding)
            .set_max_row_group_row_count(Some(200))
            .build();
        let array = Arc::new(StringArray::from(documents.clone()));
        let path = written(&folder, "documents.parquet", vec![("text", array)], properties);
        assert_eq!(texts(&read(&path, &Fields::default())), documents, "{compression} {encoding}");
    }
}

#[test]
fn integers_serve_as_ids() {
    let folder = Folder::new();
    let ids = Arc::new(Int64Array::from(vec![Some(7), None, Some(-1)]));
    let text = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let path = written(&folder, "ids.parquet", vec![("id", ids), ("text", text)], small_groups());
    let fields = Fields { id: Some("id".into()), ..Fields::default() };
    let ids: Vec<_> = read(&path, &fields)
        .into_iter()
        .map(|step| match step {
            Entry::Record(record) => record.id,
            Entry::Bad { .. } => panic!(),
        })
        .collect();
    assert_eq!(ids, [Some("7".to_owned()), None, Some("-1".to_owned())]);
}

#[test]
fn a_row_that_is_no_utf8_is_a_bad_record() {
    let folder = Folder::new();
    let text = Arc::new(BinaryArray::from(vec![&b"good"[..], b"ba\xffd", b"good again"]));
    let path = written(&folder, "binary.parquet", vec![("text", text)], small_groups());
    let steps = read(&path, &Fields::default());
    assert_eq!(texts(&steps), ["good", "BAD", "good again"]);
    assert!(matches!(&steps[1], Entry::Bad { number: 1, reason: BadRecord::InvalidUtf8, .. }));
}

#[test]
fn wrong_columns_are_named_with_what_there_is() {
    let folder = Folder::new();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let list: ArrayRef =
        Arc::new(ListArray::from_iter_primitive::<ArrowInt32Type, _, _>(vec![Some(vec![Some(1)])]));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let path = written(
        &folder,
        "wrong.parquet",
        vec![("number", numbers), ("list", list), ("content", text), ("inner", meta().slice(0, 1))],
        small_groups(),
    );
    let with_text = |text: &str| Fields { text: text.into(), ..Fields::default() };
    for (fields, words) in [
        (with_text("text"), ["`text`", "number, list.list.item, content"]),
        (with_text("number"), ["`number`", "INT64"]),
        (with_text("list"), ["`list`", "found a list"]),
        (with_text("list.list.item"), ["`list.list.item`", "a list of INT32"]),
        (with_text("inner"), ["`inner`", "a struct; name one of its fields: `inner.redpajama_set_name`"]),
        (Fields { set: Some("meta.set".into()), ..with_text("content") }, ["`meta.set`", "content"]),
    ] {
        let error = error(&path, &fields);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_broken_file_is_an_error_and_never_a_crash() {
    let folder = Folder::new();
    let documents: Vec<String> =
        (0..60).map(|number| format!("document {number} ").repeat(number % 7)).collect();
    let text = Arc::new(StringArray::from(documents));
    let path = written(&folder, "sound.parquet", vec![("text", text)], small_groups());
    let sound = std::fs::read(&path).unwrap();
    for length in (4..sound.len()).step_by(7) {
        let path = folder.file("cut.parquet", &sound[..length]);
        assert!(error(&path, &Fields::default()).contains("damaged Parquet file"));
    }
    let mut noticed = 0;
    for at in (4..sound.len()).step_by(5) {
        let mut bytes = sound.clone();
        bytes[at] ^= if at % 2 == 0 { 0x01 } else { 0x80 };
        let path = folder.file("flipped.parquet", &bytes);
        noticed += u32::from(read_from(&path, &Fields::default(), 0).1.is_some());
    }
    assert!(noticed > 0);
}
