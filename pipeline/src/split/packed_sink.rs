//! Documents end to end into rows, rows into shards.

use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{FileRecord, Shard};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::PackedWriter;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span};

use super::journal::{Snapshot, Trees, document_leaf};
use super::tally::Counted;
use super::{Sink, SplitError, SplitSpec, TokenizedDocument, narrow};

pub(super) struct PackedSink {
    folder: PathBuf,
    row_length: usize,
    /// Ends every document and fills up the last row.
    separator: u16,
    rows_per_shard: u64,
    /// Full rows in finished shards and in the one being written.
    rows: u64,
    /// Tokens in the row after them.
    row: usize,
    writer: Option<PackedWriter>,
    /// Full rows in the shard being written.
    shard_rows: u64,
    shard_tree: MerkleTree,
    spans: Vec<Span>,
    trees: Trees,
}

impl PackedSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Self, SplitError> {
        // The offset of a token in its row has 16 bits.
        let row_length = usize::from(narrow::<_, u16>(spec.packing.row_length, "tokens in a row")?);
        let trees = last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default();
        Ok(Self {
            folder: folder.into(),
            row_length,
            separator: spec.tokenizer.end_of_text,
            rows_per_shard: spec.packing.rows_per_shard.unwrap_or(u64::MAX).max(1),
            rows: trees.tokens.leaves(),
            row: 0,
            writer: None,
            shard_rows: 0,
            shard_tree: MerkleTree::new(),
            spans: Vec::new(),
            trees,
        })
    }

    /// Tokens that the shard being written still takes, or as many as a slice can have.
    fn room(&self) -> usize {
        let rows = self.rows_per_shard - self.shard_rows;
        let tokens = rows.saturating_mul(self.row_length as u64) - self.row as u64;
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }

    /// Puts the next rows of the shard into the trees.
    fn push_leaves(&mut self, leaves: &[Sha256Digest]) {
        for &leaf in leaves {
            self.shard_tree.push(leaf);
            self.trees.tokens.push(leaf);
        }
    }

    /// Number of finished shards: all of them are full.
    fn finished_shards(&self) -> Result<usize, SplitError> {
        narrow((self.rows - self.shard_rows) / self.rows_per_shard, "shards")
    }

    /// Finishes the current shard, the split's number `index`.
    fn finish_shard(&mut self, index: usize) -> Result<Shard, SplitError> {
        let name = shard_name(index);
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => PackedWriter::create(&self.folder.join(&name), self.row_length, self.separator)?,
        };
        let (written, leaves) = writer.finish()?;
        self.push_leaves(&leaves);
        let spans_name = format!("spans-{index:05}.arrow");
        let spans_written = spans::write(&self.folder.join(&spans_name), &self.spans)?;
        let tokens_root = std::mem::take(&mut self.shard_tree).root();
        let rows = std::mem::take(&mut self.shard_rows);
        let spans = std::mem::take(&mut self.spans);
        Ok(Shard {
            file: FileRecord {
                path: SafePath::new(name)?,
                size: written.size,
                sha256: written.sha256,
                records: rows,
            },
            // All rows are full; `close_last` corrects the last one.
            tokens: rows * self.row_length as u64,
            tokens_root,
            companion: FileRecord {
                path: SafePath::new(spans_name)?,
                size: spans_written.size,
                sha256: spans_written.sha256,
                records: spans.len() as u64,
            },
        })
    }
}

impl Sink for PackedSink {
    fn trees(&self) -> Trees {
        self.trees.clone()
    }

    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError> {
        let Counted { input, set, license, source } = counted;
        let meta = document.meta;
        self.trees.documents.push(document_leaf(input, document, length));
        self.spans.push(Span {
            input,
            record: meta.record,
            row: self.rows,
            offset: narrow(self.row, "tokens in a row")?,
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

    /// The separator stands after the document's own tokens.
    fn store(&mut self, document: &TokenizedDocument<'_>, from: usize) -> Result<Option<usize>, SplitError> {
        let ids = document.ids;
        let mut next = from;
        while next <= ids.len() {
            let separator = [self.separator];
            let tokens = if next == ids.len() { &separator[..] } else { &ids[next..] };
            let tokens = &tokens[..tokens.len().min(self.room())];
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => {
                    let path = self.folder.join(shard_name(self.finished_shards()?));
                    self.writer.insert(PackedWriter::create(&path, self.row_length, self.separator)?)
                }
            };
            writer.extend(tokens)?;
            let leaves = writer.take_leaves();
            self.push_leaves(&leaves);
            next += tokens.len();
            let rows = (self.row + tokens.len()) / self.row_length;
            self.row = (self.row + tokens.len()) % self.row_length;
            self.rows += rows as u64;
            self.shard_rows += rows as u64;
            if self.shard_rows == self.rows_per_shard {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    fn close(&mut self, index: usize) -> Result<Option<Shard>, SplitError> {
        self.finish_shard(index).map(Some)
    }

    /// The last row may be short.
    fn close_last(&mut self, index: usize) -> Result<Option<Shard>, SplitError> {
        let missing = match std::mem::take(&mut self.row) {
            0 => 0,
            length => {
                // The writer fills the row up.
                self.rows += 1;
                self.shard_rows += 1;
                self.row_length - length
            }
        };
        if self.shard_rows == 0 && self.spans.is_empty() {
            return Ok(None);
        }
        let mut shard = self.finish_shard(index)?;
        shard.tokens -= missing as u64;
        Ok(Some(shard))
    }
}

pub(super) fn shard_name(index: usize) -> String {
    format!("shard-{index:05}.arrow")
}
