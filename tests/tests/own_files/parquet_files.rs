//! Parquet: what its types, its pages and its directory say.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, DictionaryArray, ListArray, RecordBatch,
    TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

#[test]
fn parquet_values_are_what_their_types_say_and_pages_what_their_checksums_say() {
    let columns: Vec<(&str, ArrayRef, [&str; 2])> = vec![
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX, 1])), ["18446744073709551615", "1"]),
        ("u32", Arc::new(UInt32Array::from(vec![4_294_967_295, 2])), ["4294967295", "2"]),
        (
            "price",
            Arc::new(Decimal128Array::from(vec![-1230, 5]).with_precision_and_scale(9, 2).unwrap()),
            ["-12.30", "0.05"],
        ),
        ("day", Arc::new(Date32Array::from(vec![19_782, -1])), ["2024-02-29", "1969-12-31"]),
        (
            "time",
            Arc::new(TimestampMicrosecondArray::from(vec![1_709_210_096_000_001, 0]).with_timezone("UTC")),
            ["2024-02-29T12:34:56.000001Z", "1970-01-01T00:00:00.000000Z"],
        ),
    ];
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["one", "two"]));
    let mut fields = vec![Field::new("text", DataType::Utf8, false)];
    fields.extend(columns.iter().map(|(name, array, _)| Field::new(*name, array.data_type().clone(), true)));
    let arrays =
        std::iter::once(texts.clone()).chain(columns.iter().map(|(_, array, _)| array.clone())).collect();
    let schema = Arc::new(Schema::new(fields));
    let file = parquet_file(&RecordBatch::try_new(schema, arrays).unwrap());
    for (name, _, expected) in &columns {
        let folders = Folders::new(&[("a.parquet", &file)]);
        folders.prepare(&["--id-field", name]).success();
        assert_eq!(folders.ids(), expected.map(|id| Some(id.to_owned())), "{name}");
    }
    let twice = Schema::new(vec![Field::new("text", DataType::Utf8, false); 2]);
    let file =
        parquet_file(&RecordBatch::try_new(Arc::new(twice), vec![texts.clone(), texts.clone()]).unwrap());
    let error = Folders::new(&[("a.parquet", &file)]).prepare(&[]).failure(1);
    assert_says(&error, &["column `text`", "two or more columns of that name"]);
    let interval = Field::new("wait", DataType::Interval(arrow_schema::IntervalUnit::DayTime), true);
    let schema = Schema::new(vec![Field::new("text", DataType::Utf8, false), interval]);
    let waits: ArrayRef = arrow_array::new_null_array(schema.field(1).data_type(), 2);
    let file = parquet_file(&RecordBatch::try_new(Arc::new(schema), vec![texts, waits]).unwrap());
    let error = Folders::new(&[("a.parquet", &file)]).prepare(&["--id-field", "wait"]).failure(1);
    assert_says(&error, &["column `wait`", "INTERVAL"]);

    let sound = include_bytes!("../../files/page_checksums.parquet");
    Folders::new(&[("a.parquet", sound)]).prepare(&[]).success();
    let mut damaged = sound.to_vec();
    let at = damaged.windows(8).position(|bytes| bytes == b"checksum").unwrap();
    damaged[at] = b'C';
    let error = Folders::new(&[("a.parquet", &damaged)]).prepare(&[]).failure(1);
    assert_says(&error, &["a.parquet", "CRC checksum mismatch"]);
}

fn parquet_file(batch: &RecordBatch) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    file
}

/// A file of these columns, all nullable.
fn columns(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    parquet_file(&RecordBatch::try_new(Arc::new(schema), arrays).unwrap())
}

#[test]
fn texts_of_dictionaries_are_read_and_nulls_and_lists_are_named() {
    let dictionary: DictionaryArray<Int32Type> = ["twice", "once", "twice"].into_iter().collect();
    let folders = Folders::new(&[("a.parquet", &columns(vec![("text", Arc::new(dictionary))]))]);
    folders.prepare(&[]).success();
    assert_eq!(folders.texts(), ["twice", "once", "twice"]);

    let nullable: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("")]));
    let folders = Folders::new(&[("a.parquet", &columns(vec![("text", nullable)]))]);
    assert_says(&folders.prepare(&[]).failure(1), &["a.parquet", "record 1", "missing-text", "null"]);
    folders.prepare(&["--on-bad-record", "skip"]).success();
    let left_out = folders.manifest().totals.left_out;
    assert_eq!((left_out["missing-text"], left_out["empty"]), (1, 1));

    let nothing: ArrayRef = Arc::new(arrow_array::NullArray::new(2));
    let folders =
        Folders::new(&[("a.parquet", &columns(vec![("text", nothing)])), ("b.jsonl", b"{\"text\":\"b\"}\n")]);
    assert_says(&folders.prepare(&[]).failure(1), &["a.parquet", "record 0", "missing-text", "null"]);
    folders.prepare(&["--on-bad-record", "skip"]).success();
    assert_eq!(
        (folders.texts(), folders.manifest().totals.left_out["missing-text"]),
        (vec!["b".to_owned()], 2)
    );

    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), Some(2)])]);
    let text_column: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let file = columns(vec![("text", text_column), ("ids", Arc::new(list))]);
    let folders = Folders::new(&[("a.parquet", &file)]);
    assert_says(&folders.prepare(&["--id-field", "ids"]).failure(1), &["column `ids`", "found a list"]);
    assert_says(&folders.prepare(&["--text-field", "ids"]).failure(1), &["column `ids`", "found a list"]);
    assert_says(&folders.prepare(&["--text-field", "words"]).failure(1), &["the columns text, ids.list"]);
}

#[test]
fn files_without_rows_or_columns_are_what_they_are() {
    // Row groups without rows, before and between the others.
    let schema = Arc::new(parse_message_type("message m { REQUIRED BYTE_ARRAY text (STRING); }").unwrap());
    let file = |groups: &[&[&str]]| {
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, Arc::clone(&schema), Arc::default()).unwrap();
        for texts in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<parquet::data_type::ByteArray> = texts.iter().map(|&text| text.into()).collect();
            column.typed::<parquet::data_type::ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    };
    let folders = Folders::new(&[
        ("a.parquet", &file(&[&[], &["one"], &[], &[], &["two", "three"], &[]])),
        ("b.parquet", &file(&[])),
        ("c.parquet", &file(&[&[]])),
    ]);
    folders.prepare(&[]).success();
    assert_eq!(folders.texts(), ["one", "two", "three"]);
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();

    let empty = Arc::new(parse_message_type("message m { }").unwrap());
    let mut bytes = Vec::new();
    SerializedFileWriter::new(&mut bytes, empty, Arc::default()).unwrap().close().unwrap();
    let error = Folders::new(&[("a.parquet", &bytes)]).prepare(&[]).failure(1);
    assert_says(&error, &["column `text`", "no column at all", "--text-field"]);
}
