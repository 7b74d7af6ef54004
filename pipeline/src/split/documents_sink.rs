//! One shard of documents for each source (the first component of an input's path), with its windows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use xlstm_manifests::atomic;
use xlstm_manifests::documents::{self, Document, DocumentsWriter, Window};
use xlstm_manifests::manifest::{FileRecord, SetTotals, Shard};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::tokens_leaf;
use xlstm_manifests::safe_path::SafePath;

use super::journal::{Snapshot, Trees, document_leaf};
use super::ledger::Closing;
use super::tally::{Counted, InputMeta};
use super::{Sink, SplitError, SplitSpec, TokenizedDocument, narrow};

/// The table of domains beside PALOMA's shards.
const DOMAINS_NAME: &str = "domains.csv";

struct Open {
    source: String,
    writer: DocumentsWriter,
    documents: u32,
    tokens: u64,
    tree: MerkleTree,
    windows: Vec<Window>,
}

pub(super) struct DocumentsSink {
    folder: PathBuf,
    window: u16,
    /// The source of the input that was begun last.
    source: String,
    open: Option<Open>,
    trees: Trees,
}

impl DocumentsSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Self, SplitError> {
        Ok(Self {
            folder: folder.into(),
            window: narrow(spec.packing.row_length, "tokens in a window")?,
            source: String::new(),
            open: None,
            trees: last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default(),
        })
    }
}

impl Sink for DocumentsSink {
    /// One shard a source.
    fn begins_shard(&mut self, meta: &InputMeta) -> bool {
        let source = source_of(&meta.path);
        if self.source == source {
            return false;
        }
        let first = self.source.is_empty();
        self.source = source.to_owned();
        !first
    }

    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError> {
        let Counted { input, license, source: record_source, .. } = counted;
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let path = self.folder.join(format!("documents-{}.arrow", self.source));
                self.open.insert(Open {
                    source: self.source.clone(),
                    writer: DocumentsWriter::create(&path)?,
                    documents: 0,
                    tokens: 0,
                    tree: MerkleTree::new(),
                    windows: Vec::new(),
                })
            }
        };
        let leaf = tokens_leaf(document.ids);
        open.tree.push(leaf);
        self.trees.tokens.push(leaf);
        self.trees.documents.push(document_leaf(input, document, length));
        open.windows.extend(documents::windows(open.documents, length, self.window));
        open.documents = open.documents.checked_add(1).ok_or_else(|| {
            SplitError::Limit(format!("more than 4,294,967,295 documents in source `{}`", open.source))
        })?;
        open.tokens += length;
        let meta = document.meta;
        let set = meta.set.as_deref().and_then(|set| set.split_once('/'));
        let domain = set.map_or(self.source.as_str(), |(_, domain)| domain);
        open.writer.push(Document {
            ids: document.ids.to_vec(),
            source: open.source.clone(),
            domain: domain.to_owned(),
            id: meta.id.clone(),
            bytes: meta.bytes,
            chars: meta.chars,
            words: meta.words,
            truncated: meta.truncated,
            input,
            record: meta.record,
            digest: meta.digest,
            license,
            record_source,
        })?;
        Ok(())
    }

    /// A document is written as a whole when it begins.
    fn store(
        &mut self,
        _document: &TokenizedDocument<'_>,
        _from: usize,
    ) -> Result<Option<usize>, SplitError> {
        Ok(None)
    }

    fn other_files(&self, sets: &[SetTotals]) -> Result<Vec<FileRecord>, SplitError> {
        Ok(vec![write_domains(&self.folder, sets)?])
    }

    fn close(&mut self, _index: usize) -> Result<Option<Closing>, SplitError> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let name = format!("documents-{}.arrow", open.source);
        let written = open.writer.finish()?;
        let windows_name = format!("windows-{}.arrow", open.source);
        let windows_written = documents::write_windows(&self.folder.join(&windows_name), &open.windows)?;
        let shard = Shard {
            file: FileRecord {
                path: SafePath::new(name)?,
                size: written.size,
                sha256: written.sha256,
                records: u64::from(open.documents),
            },
            tokens: open.tokens,
            tokens_root: open.tree.root(),
            companion: FileRecord {
                path: SafePath::new(windows_name)?,
                size: windows_written.size,
                sha256: windows_written.sha256,
                records: open.windows.len() as u64,
            },
        };
        let trees = self.trees.clone();
        Ok(Some(Box::new(move || Ok((shard, trees)))))
    }
}

fn source_of(path: &SafePath) -> &str {
    path.as_str().split('/').next().unwrap_or_default()
}

/// Writes the table of domains: one line each, in order of first appearance.
fn write_domains(folder: &Path, sets: &[SetTotals]) -> Result<FileRecord, SplitError> {
    let mut table = String::from("source,domain,documents,tokens,bytes\n");
    for set in sets {
        let (source, domain) = set.name.split_once('/').unwrap_or((&set.name, &set.name));
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{},{},{},{},{}",
            quote(source),
            quote(domain),
            set.documents,
            set.tokens,
            set.text_bytes
        );
    }
    let written = atomic::write_atomic(&folder.join(DOMAINS_NAME), table.as_bytes())?;
    Ok(FileRecord {
        path: SafePath::new(DOMAINS_NAME)?,
        size: written.size,
        sha256: written.sha256,
        records: sets.len() as u64,
    })
}

/// A CSV field, quoted where RFC 4180 asks for it.
fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}
