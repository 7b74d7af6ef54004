//! Sources read real files of every format, whole and broken.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod archives;
mod json_lines;
mod parquet_rows;
mod parquet_types;
mod pieces;

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xlstm_pipeline::record::{BadRecord, Entry, Record};
use xlstm_pipeline::sources::{self, Fields, Format, SourceError};

/// A folder that is gone after the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Everything a reader yields, to its end or its error.
fn read_from(path: &Path, fields: &Fields, from: u64) -> (Vec<Entry>, Option<SourceError>) {
    let mut reader = match sources::open(path, Format::of(path).unwrap(), fields, from) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut steps = Vec::new();
    while let Some(step) = reader.next_entry() {
        match step {
            Ok(step) => steps.push(step),
            Err(error) => {
                assert!(reader.next_entry().is_none(), "a reader ends after an error");
                return (steps, Some(error));
            }
        }
    }
    (steps, None)
}

/// Everything a sound file yields.
fn read(path: &Path, fields: &Fields) -> Vec<Entry> {
    let (steps, error) = read_from(path, fields, 0);
    assert!(error.is_none(), "{}", error.unwrap());
    steps
}

/// The error that opening or reading a file gives.
fn error(path: &Path, fields: &Fields) -> String {
    let error = read_from(path, fields, 0).1.expect("an error").to_string();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.contains(&name), "the error names the file: {error}");
    error
}

fn number(step: &Entry) -> u64 {
    match step {
        Entry::Record(record) => record.number,
        Entry::Bad { number, .. } => *number,
    }
}

fn texts(steps: &[Entry]) -> Vec<&str> {
    let text = |step| match step {
        &Entry::Record(Record { ref text, .. }) => text.as_str(),
        Entry::Bad { .. } => "BAD",
    };
    steps.iter().map(text).collect()
}

/// Starting at any record gives what reading from the start gives from there on.
fn assert_any_start_agrees(path: &Path, fields: &Fields) {
    let all = read(path, fields);
    let end = all.last().map_or(0, number) + 3;
    for from in 0..end {
        let (steps, error) = read_from(path, fields, from);
        assert!(error.is_none(), "from {from}: {}", error.unwrap());
        let expected: Vec<Entry> = all.iter().filter(|step| number(step) >= from).cloned().collect();
        assert_eq!(steps, expected, "{} from record {from}", path.display());
    }
    for step in &all {
        let one = sources::read_one(path, Format::of(path).unwrap(), fields, number(step));
        match step {
            Entry::Record(record) => assert_eq!(&one.unwrap(), record),
            Entry::Bad { .. } => assert!(matches!(one.unwrap_err(), SourceError::NoSuchRecord { .. })),
        }
    }
    let past = sources::read_one(path, Format::of(path).unwrap(), fields, end).unwrap_err().to_string();
    assert!(past.contains("the end of the file"), "{past}");
}

#[test]
fn a_text_file_is_one_document() {
    let folder = Folder::new();
    let path = folder.file("Notes.MD", "# Títle\r\n".as_bytes());
    let record =
        Record { number: 0, text: "# Títle\r\n".into(), set: Some("md".into()), ..Record::default() };
    assert_eq!(read(&path, &Fields::default()), [Entry::Record(record)]);
    assert_any_start_agrees(&path, &Fields::default());

    let path = folder.file("latin.txt", b"caf\xe9");
    let steps = read(&path, &Fields::default());
    assert!(matches!(&steps[..], [Entry::Bad { number: 0, reason: BadRecord::InvalidUtf8, found }]
        if found.contains("byte 3")));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = Folder::new();
    let missing = folder.0.path().join("nothing.jsonl");
    assert!(error(&missing, &Fields::default()).contains("No such file"));
    let unknown = Format::of(Path::new("data.bin")).unwrap_err().to_string();
    assert!(unknown.contains("data.bin") && unknown.contains(".parquet"), "{unknown}");
}
