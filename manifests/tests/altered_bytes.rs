//! Manifests and shards with altered bytes: 10,000 of each kind are refused, or give as many records as they should;
//! none makes a reader panic. What was altered inside the tokens is for digests to find, not for these readers.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;

use xlstm_manifests::documents::{self, Document, DocumentShard, DocumentsWriter, Window};
use xlstm_manifests::packed::{PackedShard, PackedWriter};
use xlstm_manifests::spans::{self, Span, SpansFile};
use xlstm_manifests::{Manifest, Sha256Digest};

const INPUTS: u64 = 10_000;

/// Marsaglia's xorshift: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// `sound` with some bytes replaced, cut out, doubled or cut off.
fn altered(sound: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len().max(1));
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..bytes.len().min(at + 1 + random.below(9)))),
            2 => {
                let again = bytes[at..bytes.len().min(at + 8)].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Reads 10,000 altered copies of the file at `path`; `read` gives the number of records of one that was taken.
fn try_altered(path: &Path, seed: u64, records: usize, read: impl Fn(&Path) -> Option<usize>) {
    let sound = fs_err::read(path).unwrap();
    assert_eq!(read(path), Some(records), "the sound file is read");
    let mut random = Random(seed);
    let target = path.with_extension("altered");
    let mut taken = 0;
    for number in 0..INPUTS {
        // A new file each time: one that is mapped must not be cut short.
        let _ = fs_err::remove_file(&target);
        fs_err::write(&target, altered(&sound, &mut random)).unwrap();
        if let Some(found) = read(&target) {
            taken += 1;
            assert_eq!(found, records, "input {number} of {}", path.display());
        }
    }
    assert!(taken < INPUTS, "some are refused");
}

#[test]
fn packed_shards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.arrow");
    let mut writer = PackedWriter::create(&path, 16, 50256).unwrap();
    writer.extend(&(0..16 * 7 + 3).collect::<Vec<u16>>()).unwrap();
    writer.finish().unwrap();
    try_altered(&path, 1, 8, |path| {
        let shard = PackedShard::open(path, 16, 8).ok()?;
        Some(
            (0..shard.rows())
                .filter(|&row| shard.row(row).is_some_and(|row| row.tokens().len() <= 16))
                .count(),
        )
    });
}

#[test]
fn spans_with_and_without_provenance() {
    let folder = tempfile::tempdir().unwrap();
    for provenance in [None, Some(1)] {
        let path = folder.path().join("spans.arrow");
        let list: Vec<Span> = (0..9)
            .map(|record| Span {
                input: 1,
                record,
                row: record,
                offset: 3,
                length: 5,
                bytes: 7,
                set: (record % 2 == 0).then_some(0),
                digest: Sha256Digest::of(b"text"),
                id: (record % 3 == 0).then(|| format!("id {record}")),
                license: provenance,
                source: provenance.filter(|_| record > 4),
            })
            .collect();
        spans::write(&path, &list).unwrap();
        assert_eq!(SpansFile::open(&path, 9).unwrap().iter().collect::<Vec<_>>(), list);
        try_altered(&path, 2, 9, |path| Some(SpansFile::open(path, 9).ok()?.iter().count()));
    }
}

#[test]
fn documents_and_windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents.arrow");
    let mut writer = DocumentsWriter::create(&path).unwrap();
    for record in 0..5 {
        let document = Document {
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
            license: Some(1),
            record_source: None,
        };
        writer.push(document).unwrap();
    }
    writer.finish().unwrap();
    try_altered(&path, 3, 5, |path| Some(DocumentShard::open(path, 5).ok()?.iter().count()));
    let path = folder.path().join("windows.arrow");
    let windows: Vec<Window> = (0..3).flat_map(|document| documents::windows(document, 5000, 2048)).collect();
    documents::write_windows(&path, &windows).unwrap();
    let count = windows.len();
    try_altered(&path, 4, count, |path| Some(documents::read_windows(path, count as u64).ok()?.len()));
}

#[test]
fn manifests() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifest.json");
    let digest = Sha256Digest::of(b"");
    let json = serde_json::json!({
        "format": "xlstm-dataset", "version": 1, "root": digest, "split": "train", "layout": "packed",
        "source": {"profile": "local", "repository": null, "requested_revision": null, "resolved_revision": null,
            "licences": []},
        "selection": {"text_field": "text", "set_field": null, "exclude_sets": [], "max_tokens": null,
            "holdout": null, "on_bad_record": "fail"},
        "tokenizer": {"name": "gpt2", "engine": "x", "engine_version": "1", "files": {}, "vocabulary_size": 50257,
            "end_of_text": 50256, "special_tokens": "text", "probe_sha256": digest},
        "packing": {"row_length": 2048, "rows_per_shard": 1, "append_end_of_text": true, "targets": "every valid token of a row is a target; the inputs are the row shifted right by one, end_of_text first"},
        "inputs": [], "shards": [], "files": [], "sets": [],
        "totals": {"documents": 0, "text_bytes": 0, "tokens": 0, "rows": 0, "left_out": {}},
        "tokens_root": digest, "documents_root": digest, "tool": {"name": "xlstm-data", "version": "0"},
    });
    let mut manifest: Manifest = serde_json::from_value(json).unwrap();
    manifest.root = xlstm_manifests::identity::root(&manifest).unwrap();
    fs_err::write(&path, manifest.to_bytes().unwrap()).unwrap();
    try_altered(&path, 5, 0, |path| Some(Manifest::load(path).ok()?.inputs.len()));
}
