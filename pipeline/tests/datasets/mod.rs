//! Small datasets in the real formats, built with the contract's own writers: a folder of JSON-lines
//! inputs, and a split prepared from them, either packed or by document.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xlstm_manifests::checksums::{self, CHECKSUMS_NAME};
use xlstm_manifests::documents::{self, Document, DocumentsWriter, count_words};
use xlstm_manifests::manifest::*;
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedWriter, tokens_leaf};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span, document_leaf};
use xlstm_manifests::{END_OF_TEXT, Manifest, Sha256Digest, identity};
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

/// A document to be: its set and text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) set: &'static str,
    pub(crate) text: String,
}

pub(crate) fn source(set: &'static str, text: impl Into<String>) -> Source {
    Source { set, text: text.into() }
}

/// How a dataset is to be built.
pub(crate) struct Recipe {
    pub(crate) layout: Layout,
    pub(crate) row_length: usize,
    pub(crate) rows_per_shard: usize,
    pub(crate) profile: &'static str,
    /// Documents of each input file.
    pub(crate) inputs: Vec<Vec<Source>>,
}

impl Recipe {
    /// Three inputs, two sets, some 40 documents of 1 to 300 words: several shards, documents across them.
    pub(crate) fn packed() -> Self {
        let text = |input: usize, record: usize| {
            let words = 1 + (input * 97 + record * 53) % 300;
            (0..words)
                .map(|i| WORDS[(i * 7 + record * 3 + input) % WORDS.len()])
                .collect::<Vec<_>>()
                .join(" ")
        };
        let inputs = (0..3)
            .map(|input| {
                let set = |record: usize| if (record + input).is_multiple_of(3) { "prose" } else { "notes" };
                (0..14).map(|record| source(set(record), text(input, record))).collect()
            })
            .collect();
        Self { layout: Layout::Packed, row_length: 64, rows_per_shard: 20, profile: "local", inputs }
    }

    pub(crate) fn documents() -> Self {
        Self { layout: Layout::Documents, ..Self::packed() }
    }
}

const WORDS: [&str; 23] = [
    "the",
    "gate",
    "of",
    "a",
    "memory",
    "cell",
    "stores",
    "what",
    "was",
    "read",
    "and",
    "forgets,",
    "slowly;",
    "naïve",
    "Zürich",
    "log-sum-exp",
    "2048",
    "rows",
    "—",
    "tokens",
    "per\nline",
    "in",
    "order.",
];

/// A dataset on disk, removed when dropped.
pub(crate) struct Built {
    pub(crate) folder: tempfile::TempDir,
}

impl Built {
    pub(crate) fn split(&self) -> PathBuf {
        self.folder.path().join("out/train")
    }

    pub(crate) fn inputs(&self) -> PathBuf {
        self.folder.path().join("in")
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest::load(&self.split()).unwrap()
    }

    /// Every file of the split.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs_err::read_dir(self.split()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Writes `manifest` with digests of the files as they now are, and roots over what it says: what
    /// somebody would do who wants to hide a change.
    pub(crate) fn seal(&self, mut manifest: Manifest) {
        let folder = self.split();
        for shard in &mut manifest.shards {
            for file in [&mut shard.file, &mut shard.companion] {
                let bytes = fs_err::read(file.path.under(&folder)).unwrap();
                (file.size, file.sha256) = (bytes.len() as u64, Sha256Digest::of(&bytes));
            }
        }
        manifest.root = identity::root(&manifest).unwrap();
        write_manifest(&folder, &manifest);
    }
}

fn write_manifest(folder: &Path, manifest: &Manifest) {
    let bytes = manifest.to_bytes().unwrap();
    fs_err::write(folder.join(MANIFEST_NAME), &bytes).unwrap();
    let mut files: BTreeMap<_, _> =
        manifest.data_files().map(|file| (file.path.clone(), file.sha256)).collect();
    files.insert(SafePath::new(MANIFEST_NAME).unwrap(), Sha256Digest::of(&bytes));
    fs_err::write(folder.join(CHECKSUMS_NAME), checksums::render(&files)).unwrap();
}

/// One for all tests: building it takes longer than a small dataset does.
fn tokenizer() -> &'static Gpt2Tokenizer {
    static TOKENIZER: OnceLock<Gpt2Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Gpt2Tokenizer::new().unwrap())
}

/// Writes the inputs of `recipe` and prepares them.
pub(crate) fn build(recipe: &Recipe) -> Built {
    let built = Built { folder: tempfile::tempdir().unwrap() };
    fs_err::create_dir_all(built.inputs()).unwrap();
    fs_err::create_dir_all(built.split()).unwrap();
    let tokenizer = tokenizer();
    let mut sets: Vec<SetTotals> = Vec::new();
    let mut inputs = Vec::new();
    let mut prepared = Vec::new();
    for (index, sources) in recipe.inputs.iter().enumerate() {
        let name = format!("part-{index}.jsonl");
        let lines: String = sources
            .iter()
            .map(|s| format!("{}\n", serde_json::json!({"text": s.text, "meta": {"set": s.set}})))
            .collect();
        fs_err::write(built.inputs().join(&name), &lines).unwrap();
        let mut counts = InputCounts::default();
        for (record, source) in sources.iter().enumerate() {
            let mut ids = tokenizer.encode(&source.text).unwrap();
            if recipe.layout == Layout::Packed {
                ids.push(END_OF_TEXT);
            }
            let (tokens, bytes) = (ids.len() as u64, source.text.len() as u64);
            counts.documents += 1;
            counts.text_bytes += bytes;
            counts.tokens += tokens;
            let set = set_index(&mut sets, recipe.layout, source.set);
            let totals = &mut sets[usize::from(set)];
            totals.documents += 1;
            totals.text_bytes += bytes;
            totals.tokens += tokens;
            prepared.push(Prepared {
                input: index as u32,
                record: record as u64,
                set,
                ids,
                source: source.clone(),
            });
        }
        inputs.push(Input {
            path: SafePath::new(name).unwrap(),
            format: "jsonl".into(),
            size: lines.len() as u64,
            sha256: Sha256Digest::of(lines.as_bytes()),
            declared: None,
            licence: None,
            counts,
        });
    }
    let (shards, tokens_root) = match recipe.layout {
        Layout::Packed => write_packed(&built.split(), recipe, &prepared),
        Layout::Documents => write_documents(&built.split(), recipe, &prepared),
        Layout::Examples | Layout::Vectors => panic!("these sources are text"),
    };
    let mut documents = MerkleTree::new();
    for p in &prepared {
        let digest = Sha256Digest::of(p.source.text.as_bytes());
        documents.push(document_leaf(p.input, p.record, p.ids.len() as u64, &digest));
    }
    let mut manifest = manifest(recipe, inputs, sets, shards);
    manifest.tokens_root = tokens_root;
    manifest.documents_root = documents.root();
    built.seal(manifest);
    built
}

struct Prepared {
    input: u32,
    record: u64,
    set: u16,
    ids: Vec<u16>,
    source: Source,
}

fn set_index(sets: &mut Vec<SetTotals>, layout: Layout, set: &str) -> u16 {
    let name = if layout == Layout::Packed { set.to_owned() } else { format!("fixture/{set}") };
    let index = sets.iter().position(|known| known.name == name).unwrap_or_else(|| {
        sets.push(SetTotals { name, documents: 0, text_bytes: 0, tokens: 0 });
        sets.len() - 1
    });
    index as u16
}

fn record(name: &str, records: u64) -> FileRecord {
    FileRecord { path: SafePath::new(name).unwrap(), size: 0, sha256: Sha256Digest::of(b""), records }
}

fn write_packed(folder: &Path, recipe: &Recipe, prepared: &[Prepared]) -> (Vec<Shard>, Sha256Digest) {
    let stream: Vec<u16> = prepared.iter().flat_map(|p| p.ids.iter().copied()).collect();
    let shard_tokens = recipe.row_length * recipe.rows_per_shard;
    let mut whole = MerkleTree::new();
    let mut start = 0u64;
    let mut spans = Vec::new();
    for p in prepared {
        let row_length = recipe.row_length as u64;
        spans.push(Span {
            input: p.input,
            record: p.record,
            row: start / row_length,
            offset: (start % row_length) as u16,
            length: p.ids.len() as u64,
            bytes: p.source.text.len() as u64,
            set: Some(p.set),
            digest: Sha256Digest::of(p.source.text.as_bytes()),
            id: (p.record % 2 == 0).then(|| format!("document {}", p.record)),
            license: None,
            source: None,
        });
        start += p.ids.len() as u64;
    }
    let mut shards = Vec::new();
    for (number, tokens) in stream.chunks(shard_tokens).enumerate() {
        let name = format!("shard-{number:05}.arrow");
        let mut writer = PackedWriter::create(&folder.join(&name), recipe.row_length, END_OF_TEXT).unwrap();
        let mut tree = MerkleTree::new();
        for row in tokens.chunks(recipe.row_length) {
            writer.push(row).unwrap();
            tree.push(tokens_leaf(row));
            whole.push(tokens_leaf(row));
        }
        writer.finish().unwrap();
        let rows = number * recipe.rows_per_shard..(number + 1) * recipe.rows_per_shard;
        let here: Vec<_> = spans.iter().filter(|span| rows.contains(&(span.row as usize))).cloned().collect();
        let companion = format!("spans-{number:05}.arrow");
        spans::write(&folder.join(&companion), &here).unwrap();
        shards.push(Shard {
            file: record(&name, tokens.len().div_ceil(recipe.row_length) as u64),
            tokens: tokens.len() as u64,
            tokens_root: tree.root(),
            companion: record(&companion, here.len() as u64),
        });
    }
    (shards, whole.root())
}

fn write_documents(folder: &Path, recipe: &Recipe, prepared: &[Prepared]) -> (Vec<Shard>, Sha256Digest) {
    let mut whole = MerkleTree::new();
    let mut shards = Vec::new();
    for (number, some) in prepared.chunks(prepared.len().div_ceil(2).max(1)).enumerate() {
        let (name, companion) =
            (format!("documents-{number:05}.arrow"), format!("windows-{number:05}.arrow"));
        let mut writer = DocumentsWriter::create(&folder.join(&name)).unwrap();
        let mut tree = MerkleTree::new();
        let mut windows = Vec::new();
        for (index, p) in some.iter().enumerate() {
            let text = &p.source.text;
            tree.push(tokens_leaf(&p.ids));
            whole.push(tokens_leaf(&p.ids));
            windows.extend(documents::windows(index as u32, p.ids.len() as u64, recipe.row_length as u16));
            writer
                .push(Document {
                    ids: p.ids.clone(),
                    source: "fixture".into(),
                    domain: p.source.set.into(),
                    id: Some(format!("document {}", p.record)),
                    bytes: text.len() as u64,
                    chars: text.chars().count() as u64,
                    words: count_words(text),
                    truncated: false,
                    input: p.input,
                    record: p.record,
                    digest: Sha256Digest::of(text.as_bytes()),
                    license: None,
                    record_source: None,
                })
                .unwrap();
        }
        writer.finish().unwrap();
        documents::write_windows(&folder.join(&companion), &windows).unwrap();
        shards.push(Shard {
            file: record(&name, some.len() as u64),
            tokens: some.iter().map(|p| p.ids.len() as u64).sum(),
            tokens_root: tree.root(),
            companion: record(&companion, windows.len() as u64),
        });
    }
    (shards, whole.root())
}

fn manifest(recipe: &Recipe, inputs: Vec<Input>, sets: Vec<SetTotals>, shards: Vec<Shard>) -> Manifest {
    let packed = recipe.layout == Layout::Packed;
    let sum = |get: fn(&InputCounts) -> u64| inputs.iter().map(|input| get(&input.counts)).sum();
    Manifest {
        format: FORMAT.into(),
        version: recipe.layout.version(),
        root: Sha256Digest::of(b""),
        split: "train".into(),
        layout: recipe.layout,
        source: xlstm_manifests::manifest::Source {
            profile: recipe.profile.into(),
            repository: None,
            requested_revision: None,
            resolved_revision: None,
            licences: vec![Licence {
                claimed_by: "the fixture".into(),
                statement: "made up for tests".into(),
                spdx: Some("CC0-1.0".into()),
            }],
            generator: None,
            claimed: None,
        },
        selection: Selection {
            text_field: Some("text".into()),
            set_field: Some("meta.set".into()),
            id_field: None,
            license_field: None,
            source_field: None,
            exclude_sets: vec![],
            max_tokens: None,
            holdout: None,
            drop_duplicates: None,
            on_bad_record: "fail".into(),
        },
        tokenizer: tokenizer().identity().unwrap(),
        packing: Packing {
            row_length: recipe.row_length as u32,
            rows_per_shard: packed.then_some(recipe.rows_per_shard as u64),
            append_end_of_text: packed,
            input_width: None,
            targets: Targets::NextToken,
        },
        totals: Totals {
            documents: sum(|counts| counts.documents),
            text_bytes: sum(|counts| counts.text_bytes),
            tokens: sum(|counts| counts.tokens),
            rows: shards.iter().map(|shard| shard.file.records).sum(),
            left_out: BTreeMap::new(),
        },
        inputs,
        shards,
        files: vec![],
        sets,
        record_licenses: vec![],
        record_sources: vec![],
        tokens_root: Sha256Digest::of(b""),
        documents_root: Sha256Digest::of(b""),
        part: None,
        tool: Tool { name: "fixture".into(), version: "0".into() },
    }
}
