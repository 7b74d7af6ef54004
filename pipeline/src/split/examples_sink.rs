//! Examples into rows, one each, and rows into shards. Each has a span as a document of one row has.

use std::path::{Path, PathBuf};

use xlstm_manifests::examples::ExamplesWriter;
use xlstm_manifests::manifest::{FileRecord, Shard};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span};

use super::journal::{Snapshot, Trees, document_leaf};
use super::ledger::Closing;
use super::packed_sink::shard_name;
use super::tally::Counted;
use super::{Sink, SplitError, SplitSpec, TokenizedDocument, narrow};

/// The shard being written.
struct Open {
    writer: ExamplesWriter,
    tree: MerkleTree,
    spans: Vec<Span>,
}

pub(super) struct ExamplesSink {
    folder: PathBuf,
    row_length: u16,
    vocabulary_size: u32,
    rows_per_shard: u64,
    /// Number of the shard being written.
    shard: usize,
    open: Option<Open>,
    trees: Trees,
}

impl ExamplesSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Self, SplitError> {
        let trees = last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default();
        let rows_per_shard = spec.packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        // When a run resumes, all its finished shards are full.
        let shard = narrow(trees.tokens.leaves() / rows_per_shard, "shards")?;
        Ok(Self {
            folder: folder.into(),
            row_length: narrow(spec.packing.row_length, "positions in a row")?,
            vocabulary_size: spec.tokenizer.vocabulary_size,
            rows_per_shard,
            shard,
            open: None,
            trees,
        })
    }
}

impl Sink for ExamplesSink {
    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError> {
        let Counted { input, set, license, source } = counted;
        let meta = document.meta;
        let record = meta.record;
        let refused =
            |(expected, found): (String, String)| SplitError::Example { input, record, expected, found };
        let example = document.example.ok_or_else(|| refused(("an example".into(), "a text".into())))?;
        if let Some(complaint) = example.complaint(self.row_length, self.vocabulary_size) {
            return Err(refused(complaint));
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let path = self.folder.join(shard_name(self.shard));
                let writer = ExamplesWriter::create(&path, self.row_length)?;
                self.open.insert(Open { writer, tree: MerkleTree::new(), spans: Vec::new() })
            }
        };
        let row = self.trees.tokens.leaves();
        let leaf = open.writer.push(&example)?;
        open.tree.push(leaf);
        self.trees.tokens.push(leaf);
        self.trees.documents.push(document_leaf(input, document, length));
        open.spans.push(Span {
            input,
            record,
            row,
            offset: 0,
            length,
            bytes: meta.bytes,
            set,
            digest: meta.digest,
            id: meta.id.clone(),
            license,
            source,
        });
        Ok(())
    }

    /// `begin` writes an example whole; all that is left to report, once, is the end of a shard.
    fn store(&mut self, document: &TokenizedDocument<'_>, from: usize) -> Result<Option<usize>, SplitError> {
        let full = self.open.as_ref().is_some_and(|open| open.spans.len() as u64 == self.rows_per_shard);
        Ok((full && from < document.ids.len()).then_some(document.ids.len()))
    }

    fn close(&mut self, index: usize) -> Result<Option<Closing>, SplitError> {
        let Some(Open { writer, tree, spans }) = self.open.take() else { return Ok(None) };
        let written = writer.finish()?;
        let companion = format!("spans-{index:05}.arrow");
        let companion_written = spans::write(&self.folder.join(&companion), &spans)?;
        self.shard = index + 1;
        let rows = spans.len() as u64;
        let shard = Shard {
            file: FileRecord {
                path: SafePath::new(shard_name(index))?,
                size: written.size,
                sha256: written.sha256,
                records: rows,
            },
            tokens: rows * u64::from(self.row_length),
            tokens_root: tree.root(),
            companion: FileRecord {
                path: SafePath::new(companion)?,
                size: companion_written.size,
                sha256: companion_written.sha256,
                records: rows,
            },
        };
        let trees = self.trees.clone();
        Ok(Some(Box::new(move || Ok((shard, trees)))))
    }
}
