//! Small packed datasets with the contract's own writers, and small recipes to train on them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod prepared;
pub(crate) mod runs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xlstm_manifests::checksums::{self, CHECKSUMS_NAME};
use xlstm_manifests::manifest::*;
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedWriter, tokens_leaf};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span, document_leaf};
use xlstm_manifests::{Manifest, Sha256Digest, identity};

/// Ids are below this number; 0 separates documents.
pub(crate) const VOCABULARY: u32 = 64;
/// Tokens in a row.
pub(crate) const ROW: usize = 32;

/// Documents that a model can learn: each counts upwards by its own step.
pub(crate) fn documents(seed: u16) -> Vec<Vec<u16>> {
    let document = |index: u16| {
        let length = 5 + (index * 37 + seed) % 70;
        (0..length).map(|i| 1 + (index + i * (1 + index % 3)) % 62).chain([0]).collect()
    };
    (0..60).map(document).collect()
}

/// Writes a split of these documents (each ending in its separator) into `folder`.
pub(crate) fn write_split(folder: &Path, split: &str, documents: &[Vec<u16>]) -> PathBuf {
    fs_err::create_dir_all(folder).unwrap();
    let stream: Vec<u16> = documents.concat();
    let mut start = 0;
    let mut spans = Vec::new();
    let mut document_tree = MerkleTree::new();
    for (record, ids) in documents.iter().enumerate() {
        let (record, length) = (record as u64, ids.len() as u64);
        let digest = Sha256Digest::of(&record.to_le_bytes());
        document_tree.push(document_leaf(0, record, length, &digest));
        let (row, offset) = (start / ROW, u16::try_from(start % ROW).unwrap());
        let bytes = length - 1;
        spans.push(Span {
            input: 0,
            record,
            row: row as u64,
            offset,
            length,
            bytes,
            set: None,
            digest,
            id: None,
            license: None,
            source: None,
        });
        start += ids.len();
    }
    let mut writer = PackedWriter::create(&folder.join("shard-00000.arrow"), ROW, 0).unwrap();
    let mut tree = MerkleTree::new();
    for row in stream.chunks(ROW) {
        writer.push(row).unwrap();
        tree.push(tokens_leaf(row));
    }
    writer.finish().unwrap();
    spans::write(&folder.join("spans-00000.arrow"), &spans).unwrap();
    let tokens = stream.len() as u64;
    let rows = tokens.div_ceil(ROW as u64);
    let file = |name: &str, records: u64| {
        let (size, sha256) = xlstm_manifests::digest::digest_file(&folder.join(name)).unwrap();
        FileRecord { path: SafePath::new(name).unwrap(), size, sha256, records }
    };
    let shard = Shard {
        file: file("shard-00000.arrow", rows),
        tokens,
        tokens_root: tree.root(),
        companion: file("spans-00000.arrow", spans.len() as u64),
    };
    let text_bytes = spans.iter().map(|span| span.bytes).sum();
    let count = spans.len() as u64;
    let mut manifest = manifest(split, shard, (count, text_bytes, tokens, rows));
    manifest.tokens_root = tree.root();
    manifest.documents_root = document_tree.root();
    manifest.root = identity::root(&manifest).unwrap();
    let bytes = manifest.to_bytes().unwrap();
    fs_err::write(folder.join(MANIFEST_NAME), &bytes).unwrap();
    let mut files: BTreeMap<SafePath, Sha256Digest> =
        manifest.data_files().map(|file| (file.path.clone(), file.sha256)).collect();
    files.insert(SafePath::new(MANIFEST_NAME).unwrap(), Sha256Digest::of(&bytes));
    fs_err::write(folder.join(CHECKSUMS_NAME), checksums::render(&files)).unwrap();
    folder.to_path_buf()
}

fn manifest(
    split: &str,
    shard: Shard,
    (documents, text_bytes, tokens, rows): (u64, u64, u64, u64),
) -> Manifest {
    let counts = InputCounts { documents, left_out: BTreeMap::new(), text_bytes, tokens };
    let nothing = Sha256Digest::of(b"");
    Manifest {
        format: FORMAT.into(),
        version: Layout::Packed.version(),
        root: nothing,
        split: split.into(),
        layout: Layout::Packed,
        source: Source {
            profile: "counting".into(),
            repository: None,
            requested_revision: None,
            resolved_revision: None,
            licences: vec![],
            generator: None,
            claimed: None,
        },
        selection: Selection {
            text_field: None,
            set_field: None,
            id_field: None,
            license_field: None,
            source_field: None,
            exclude_sets: vec![],
            max_tokens: None,
            holdout: None,
            drop_duplicates: None,
            on_bad_record: "fail".into(),
        },
        tokenizer: Tokenizer {
            name: "counting".into(),
            engine: "none".into(),
            engine_version: "0".into(),
            files: BTreeMap::new(),
            vocabulary_size: VOCABULARY,
            end_of_text: 0,
            special_tokens: "none".into(),
            probe_sha256: nothing,
        },
        packing: Packing {
            row_length: ROW as u32,
            rows_per_shard: Some(1 << 20),
            append_end_of_text: true,
            input_width: None,
            targets: Targets::NextToken,
        },
        inputs: vec![Input {
            path: SafePath::new("documents.txt").unwrap(),
            format: "text".into(),
            size: text_bytes,
            sha256: nothing,
            declared: None,
            licence: None,
            counts,
        }],
        shards: vec![shard],
        files: vec![],
        sets: vec![],
        record_licenses: vec![],
        record_sources: vec![],
        totals: Totals { documents, text_bytes, tokens, rows, left_out: BTreeMap::new() },
        tokens_root: nothing,
        documents_root: nothing,
        part: None,
        tool: Tool { name: "fixture".into(), version: "0".into() },
    }
}

/// A recipe file for a tiny model of both kinds of block: 12 steps of 6 rows.
pub(crate) fn write_recipe(folder: &Path) -> PathBuf {
    let path = folder.join("tiny.toml");
    let text = "
        description = 'a tiny model of both kinds of block'
        [model]
        vocabulary_size = 64
        embedding_dim = 16
        blocks = 2
        slstm_at = [1]
        [training]
        context_length = 32
        tokens_per_step = 192
        micro_batch_rows = 4
        steps = 12
        precision = 'float32'
        [optimizer]
        learning_rate = 1e-2
        [schedule]
        warmup_steps = 2
        [validation]
        every_steps = 5
        [checkpoint]
        every_steps = 4
        keep_last = 100
    ";
    fs_err::write(&path, text).unwrap();
    path
}

/// A training split, a validation split and a recipe in one folder.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) train: PathBuf,
    pub(crate) validation: PathBuf,
    pub(crate) recipe: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let train = write_split(&folder.path().join("train"), "train", &documents(0));
        let validation = write_split(&folder.path().join("validation"), "validation", &documents(11)[..20]);
        let recipe = write_recipe(folder.path());
        Self { folder, train, validation, recipe }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
