//! Corpora for tests: text that looks like text, the same for the same seed, in every input format.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Schema};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const WORDS: &[&str] = &[
    "the",
    "of",
    "and",
    "memory",
    "gate",
    "exponential",
    "I'm",
    "they'll",
    "state",
    "42",
    "3.14159",
    "naïve",
    "Größe",
    "東京",
    "данные",
    "🙂",
    "👩‍👩‍👧",
    "covariance",
    "update",
    "don't",
    "x_i",
    "=>",
    "<|endoftext|>",
    "(see",
    "below)",
    "https://example.org/a?b=c",
    "tokenizer",
    "residual",
    "1,000,000",
    "\u{301}e",
    "—",
    "“quoted”",
    "fn",
    "let",
    "{",
    "}",
];

/// SlimPajama's set names, for documents that carry one.
pub const SETS: &[&str] =
    &["RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaGithub", "RedPajamaBook", "RedPajamaArXiv"];

/// A document: its text and its set.
#[derive(Debug, Clone)]
pub struct Document {
    /// The text.
    pub text: String,
    /// The set.
    pub set: &'static str,
}

/// Documents with about `bytes` bytes of text: mostly of a few kilobytes, some tiny, some large.
#[must_use]
pub fn documents(seed: u64, bytes: usize) -> Vec<Document> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut documents = Vec::new();
    let mut total = 0;
    while total < bytes {
        let length = match random.random_range(0..100) {
            0..5 => random.random_range(1..30),
            5..97 => random.random_range(200..8_000),
            _ => random.random_range(20_000..200_000),
        };
        let text = text(&mut random, length);
        total += text.len();
        documents.push(Document { text, set: SETS.choose(&mut random).unwrap_or(&SETS[0]) });
    }
    documents
}

fn text(random: &mut StdRng, length: usize) -> String {
    let mut text = String::with_capacity(length + 32);
    while text.len() < length {
        if random.random_range(0..4) == 0 {
            let letters = random.random_range(2..12);
            text.extend((0..letters).map(|_| char::from(random.random_range(b'a'..=b'z'))));
        } else {
            text.push_str(WORDS.choose(random).unwrap_or(&"the"));
        }
        text.push_str(match random.random_range(0..40) {
            0 => "\n\n",
            1 => "\n    ",
            2 => ". ",
            3 => ",  ",
            4 => "\t",
            _ => " ",
        });
    }
    text
}

/// JSON lines as SlimPajama has them.
#[must_use]
pub fn json_lines(documents: &[Document]) -> Vec<u8> {
    let mut lines = Vec::new();
    for document in documents {
        let line = serde_json::json!({"text": document.text, "meta": {"redpajama_set_name": document.set}});
        serde_json::to_writer(&mut lines, &line).expect("JSON into memory");
        lines.push(b'\n');
    }
    lines
}

/// `bytes` as `frames` zstd frames, cut anywhere.
#[must_use]
pub fn zstd_frames(bytes: &[u8], frames: usize) -> Vec<u8> {
    bytes
        .chunks(bytes.len().div_ceil(frames).max(1))
        .flat_map(|chunk| zstd::encode_all(chunk, 1).expect("zstd into memory"))
        .collect()
}

/// `bytes` as `members` gzip members, cut anywhere.
#[must_use]
pub fn gzip_members(bytes: &[u8], members: usize) -> Vec<u8> {
    bytes
        .chunks(bytes.len().div_ceil(members).max(1))
        .flat_map(|chunk| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(chunk).expect("gzip into memory");
            encoder.finish().expect("gzip into memory")
        })
        .collect()
}

/// A gzipped tar archive of text files, as a crate is one.
#[must_use]
pub fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).expect("tar into memory");
    }
    builder.into_inner().and_then(flate2::write::GzEncoder::finish).expect("gzip into memory")
}

/// A Parquet file with columns `text` and `meta.redpajama_set_name`, `rows` rows in a row group.
#[must_use]
pub fn parquet(documents: &[Document], rows: usize) -> Vec<u8> {
    let name = Arc::new(Field::new("redpajama_set_name", DataType::Utf8, true));
    let schema = Arc::new(Schema::new(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("meta", DataType::Struct(vec![name.clone()].into()), true),
    ]));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(documents.iter().map(|d| &d.text)));
    let sets: ArrayRef = Arc::new(StringArray::from_iter_values(documents.iter().map(|d| d.set)));
    let meta: ArrayRef = Arc::new(StructArray::from(vec![(name, sets)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![texts, meta]).expect("columns fit");
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(rows))
        .set_compression(parquet::basic::Compression::SNAPPY)
        .build();
    let mut file = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut file, schema, Some(properties)).expect("a writer");
    writer.write(&batch).expect("Parquet into memory");
    writer.close().expect("Parquet into memory");
    file
}

/// A folder with about `bytes` bytes of text in every local input format.
pub fn write_all_formats(folder: &Path, seed: u64, bytes: usize) {
    let share = bytes / 6;
    let of = |index: u64, bytes| documents(seed * 100 + index, bytes);
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs_err::write(path, content).expect("a file");
    };
    write("a/plain.jsonl", &json_lines(&of(0, share)));
    write("a/frames.jsonl.zst", &zstd_frames(&json_lines(&of(1, share)), 5));
    write("a/second.jsonl.zst", &zstd_frames(&json_lines(&of(2, share / 2)), 1));
    write("b/members.jsonl.gz", &gzip_members(&json_lines(&of(3, share)), 4));
    write("b/rows.parquet", &parquet(&of(4, share), 97));
    for (number, document) in of(5, share).iter().enumerate() {
        let ending = if number % 2 == 0 { "txt" } else { "md" };
        write(&format!("c/{:02}/{number:05}.{ending}", number % 7), document.text.as_bytes());
    }
    write("c/empty.txt", b"");
}
