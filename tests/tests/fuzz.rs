//! The bodies of the fuzz targets (`tests/fuzz`) over altered sound files, the same ones every time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use xlstm_manifests::documents::{self, Document, DocumentsWriter, Window};
use xlstm_manifests::examples::{Example, ExamplesWriter};
use xlstm_manifests::packed::PackedWriter;
use xlstm_manifests::spans::{self, Span};
use xlstm_manifests::vectors::{VectorExample, VectorShape, VectorsWriter};
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_tests::corpus;
use xlstm_tests::hostile::alter_and_run;

#[path = "../fuzz/bodies/copies.rs"]
mod copies;
#[path = "../fuzz/bodies/hub_answers.rs"]
mod hub_answers;
#[path = "../fuzz/bodies/json_lines.rs"]
mod json_lines;
#[path = "../fuzz/bodies/manifest.rs"]
mod manifest;
#[path = "../fuzz/bodies/merge_parts.rs"]
mod merge_parts;
#[path = "../fuzz/bodies/parquet.rs"]
mod parquet;
#[path = "../fuzz/bodies/shards.rs"]
mod shards;

const ROW: usize = shards::ROW as usize;

fn span(record: u64) -> Span {
    Span {
        input: 1,
        record,
        row: record,
        offset: 3,
        length: 5,
        bytes: 7,
        set: record.is_multiple_of(2).then_some(0),
        digest: Sha256Digest::of(b"text"),
        id: record.is_multiple_of(3).then(|| format!("id {record}")),
        license: (record > 4).then_some(0),
        source: None,
    }
}

/// An Arrow file of each kind.
fn arrow_files() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut packed = PackedWriter::create(&path("packed"), ROW, 50256).unwrap();
    packed.extend(&(0..16 * 7 + 3).collect::<Vec<u16>>()).unwrap();
    packed.finish().unwrap();
    let mut examples = ExamplesWriter::create(&path("examples"), shards::ROW).unwrap();
    for start in 0..5 {
        let ids: Vec<u16> = (start..start + shards::ROW).collect();
        let targets: Vec<Option<u16>> = ids.iter().map(|&id| (id % 3 == 0).then_some(id)).collect();
        examples.push(&Example { input_ids: &ids, targets: &targets, length: 16 }).unwrap();
    }
    examples.finish().unwrap();
    let shape = VectorShape { row_length: shards::ROW, width: 3 };
    let mut vectors = VectorsWriter::create(&path("vectors"), shape).unwrap();
    for start in 0..5_u16 {
        let inputs: Vec<f32> = (start..start + 3 * shards::ROW).map(f32::from).collect();
        let targets: Vec<Option<f32>> = inputs[..16].iter().map(|&x| (x > 3.0).then_some(x)).collect();
        vectors.push(&VectorExample { inputs: &inputs, targets: &targets, length: 16 }).unwrap();
    }
    vectors.finish().unwrap();
    spans::write(&path("spans"), &(0..4).map(span).collect::<Vec<_>>()).unwrap();
    spans::write(&path("spans-with-provenance"), &(0..9).map(span).collect::<Vec<_>>()).unwrap();
    let mut writer = DocumentsWriter::create(&path("documents")).unwrap();
    for record in 0..5 {
        writer
            .push(Document {
                ids: vec![1, 2, 3],
                source: "ptb".into(),
                domain: "ptb".into(),
                id: Some("x".into()),
                bytes: 5,
                chars: 5,
                words: 2,
                truncated: false,
                input: 0,
                record,
                digest: Sha256Digest::of(b"text"),
                license: None,
                record_source: None,
            })
            .unwrap();
    }
    writer.finish().unwrap();
    let windows: Vec<Window> = documents::windows(0, 5000, 2048).collect();
    documents::write_windows(&path("windows"), &windows).unwrap();
    let names = ["packed", "examples", "vectors", "spans", "spans-with-provenance", "documents", "windows"];
    names.iter().map(|name| fs_err::read(path(name)).unwrap()).collect()
}

#[test]
fn shards_and_spans() {
    alter_and_run(&arrow_files(), 5000, shards::run);
}

#[test]
fn manifests() {
    let part = include_bytes!("../fuzz/seeds/part-1/manifest.json");
    let mut whole: Manifest = serde_json::from_slice(part).unwrap();
    whole.part = None;
    whole.root = xlstm_manifests::identity::root(&whole).unwrap();
    let run = include_bytes!("../fuzz/seeds/run.json");
    alter_and_run(&[part.to_vec(), whole.to_bytes().unwrap(), run.to_vec()], 10_000, manifest::run);
}

#[test]
fn parts_of_a_merge() {
    alter_and_run(&(0..3).map(merge_parts::sound).collect::<Vec<_>>(), 1000, merge_parts::run);
}

#[test]
fn parquet_files() {
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("one"), None, Some("three"), Some("four")]));
    let sets: ArrayRef = Arc::new(StringArray::from(vec!["a", "a", "b", "a"]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
    let batch = RecordBatch::try_from_iter([
        ("text", Arc::clone(&texts)),
        ("set", Arc::clone(&sets)),
        ("id", ids),
        ("license", sets),
    ])
    .unwrap();
    let written = |compression| {
        let properties = ::parquet::file::properties::WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(3))
            .build();
        let mut bytes = Vec::new();
        let mut writer =
            ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    use ::parquet::basic::{Compression, ZstdLevel};
    let seeds = [
        written(Compression::UNCOMPRESSED),
        written(Compression::SNAPPY),
        written(Compression::ZSTD(ZstdLevel::default())),
    ];
    alter_and_run(&seeds, 4000, parquet::run);
}

#[test]
fn lines_of_json() {
    let lines: String = (0..6)
        .map(|number| {
            format!(
                "{{\"text\": \"naïve \\ud83d\\ude00 {number}\", \"meta\": {{\"set\": \"a\\tb\"}}, \"id\": {number}, \
                 \"license\": null, \"source\": [1, 2.5e3]}}\n"
            )
        })
        .collect();
    let seeds = [
        lines.clone().into_bytes(),
        corpus::gzip_members(lines.as_bytes(), 2),
        corpus::zstd_frames(lines.as_bytes(), 2),
    ];
    alter_and_run(&seeds, 5000, json_lines::run);
}

#[test]
fn lists_of_copies() {
    let digest = Sha256Digest::of(b"text");
    let named = |input: &str, record: u64| {
        format!(
            "\"input\":\"{input}\",\"input_sha256\":\"{digest}\",\"record\":{record},\"sha256\":\"{digest}\""
        )
    };
    let line =
        |(input, record)| format!("{{{},\"copy_of\":{{{}}}}}\n", named(input, record), named("a.jsonl", 0));
    let lines: String = [("a.jsonl", 7), ("b\\u001b.jsonl", 0), ("b.jsonl", u64::MAX)].map(line).concat();
    alter_and_run(&[lines.into_bytes()], 5000, copies::run);
}

#[test]
fn answers_of_a_hub() {
    let answer = |head: &str, body: &str| {
        format!(
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    let sha = "0123456789abcdef0123456789abcdef01234567";
    let oid = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let revision = format!(
        "{{\"sha\": \"{sha}\", \"gated\": \"auto\", \"lastModified\": \"2024-01-01\", \"cardData\": {{\"license\": [\"mit\"]}}}}"
    );
    let listing = format!(
        "[{{\"type\": \"file\", \"path\": \"a/b.jsonl\", \"size\": 5, \"oid\": \"{sha}\", \"lfs\": {{\"oid\": \"{oid}\", \
         \"size\": 5, \"pointerSize\": 134}}}}, {{\"type\": \"directory\", \"path\": \"a\", \"oid\": \"{sha}\"}}]"
    );
    let seeds = [
        answer("200 OK", &revision),
        answer("200 OK\r\nLink: </api/next?cursor=x>; rel=\"next\"", &listing),
        answer("200 OK", "hello"),
        answer("206 Partial Content\r\nContent-Range: bytes 0-4/5", "hello"),
        answer("401 Unauthorized\r\nX-Error-Code: GatedRepo", "{\"error\": \"no\"}"),
        answer("302 Found\r\nLocation: http://127.0.0.1:1/x", ""),
        answer("429 Too Many Requests\r\nRetry-After: 7\r\nRateLimit: \"api\";r=0;t=9", ""),
    ];
    alter_and_run(&seeds, 200, hub_answers::run);
}
