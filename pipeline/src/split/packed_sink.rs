//! Documents end to end into rows, rows into shards.

use std::path::{Path, PathBuf};

use xlstm_manifests::END_OF_TEXT;
use xlstm_manifests::manifest::{FileRecord, Shard};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedWriter, tokens_leaves};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span};

use super::journal::{Snapshot, Trees, document_leaf};
use super::{SplitError, SplitSpec, TokenizedDocument};

/// Rows whose digests are taken together.
const ROWS_AT_ONCE: usize = 16;

pub(super) struct PackedSink {
    folder: PathBuf,
    row_length: usize,
    rows_per_shard: u64,
    /// Rows in finished shards and in the one being written.
    rows: u64,
    row: Vec<u16>,
    /// Rows that were written and whose digests are still to be taken.
    undigested: Vec<u16>,
    writer: Option<PackedWriter>,
    shard_rows: u64,
    shard_tree: MerkleTree,
    spans: Vec<Span>,
    trees: Trees,
}

impl PackedSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Self {
        let row_length = spec.packing.row_length as usize;
        let trees = last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default();
        Self {
            folder: folder.into(),
            row_length,
            rows_per_shard: spec.packing.rows_per_shard.unwrap_or(u64::MAX).max(1),
            rows: trees.tokens.leaves(),
            row: Vec::with_capacity(row_length),
            undigested: Vec::with_capacity(ROWS_AT_ONCE * row_length),
            writer: None,
            shard_rows: 0,
            shard_tree: MerkleTree::new(),
            spans: Vec::new(),
            trees,
        }
    }

    pub(super) fn trees(&self) -> Trees {
        self.trees.clone()
    }

    /// Notes where `document` begins.
    pub(super) fn begin(
        &mut self,
        input: u32,
        document: &TokenizedDocument<'_>,
        length: u64,
        set: Option<u16>,
    ) {
        self.trees.documents.push(document_leaf(input, document, length));
        self.spans.push(Span {
            input,
            record: document.record,
            row: self.rows,
            // A row is flushed when it is full, so this is below row_length, which fits in 16 bits.
            offset: u16::try_from(self.row.len()).unwrap_or(u16::MAX),
            length,
            bytes: document.bytes,
            set,
            digest: document.digest,
            id: document.id.map(str::to_owned),
        });
    }

    /// Stores `ids` and the separator after them, from token `from` on. Returns the number of the
    /// document's tokens stored so far when a shard became full, to be called again after [`Self::close`].
    pub(super) fn store(&mut self, ids: &[u16], from: usize) -> Result<Option<usize>, SplitError> {
        let mut next = from;
        while next <= ids.len() {
            let room = self.row_length - self.row.len();
            if next == ids.len() {
                self.row.push(END_OF_TEXT);
                next += 1;
            } else {
                let end = ids.len().min(next + room);
                self.row.extend_from_slice(&ids[next..end]);
                next = end;
            }
            if self.row.len() == self.row_length {
                self.flush_row()?;
                if self.shard_rows == self.rows_per_shard {
                    return Ok(Some(next));
                }
            }
        }
        Ok(None)
    }

    fn flush_row(&mut self) -> Result<(), SplitError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let path = self.folder.join(shard_name(self.finished_shards()));
                self.writer.insert(PackedWriter::create(&path, self.row_length)?)
            }
        };
        writer.push(&self.row)?;
        self.undigested.append(&mut self.row);
        if self.undigested.len() >= ROWS_AT_ONCE * self.row_length {
            self.digest_rows();
        }
        self.rows += 1;
        self.shard_rows += 1;
        Ok(())
    }

    /// Puts the rows written since the last call into the trees.
    fn digest_rows(&mut self) {
        for leaf in tokens_leaves(self.undigested.chunks(self.row_length)) {
            self.shard_tree.push(leaf);
            self.trees.tokens.push(leaf);
        }
        self.undigested.clear();
    }

    /// Number of finished shards: all of them are full.
    fn finished_shards(&self) -> usize {
        usize::try_from((self.rows - self.shard_rows) / self.rows_per_shard).unwrap_or(usize::MAX)
    }

    /// Finishes the current shard, the split's number `index`.
    pub(super) fn close(&mut self, index: usize) -> Result<Shard, SplitError> {
        self.digest_rows();
        let name = shard_name(index);
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => PackedWriter::create(&self.folder.join(&name), self.row_length)?,
        };
        let written = writer.finish()?;
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

    /// Finishes the split's last shard, whose last row may be short; `None` when nothing is left for one.
    pub(super) fn close_last(&mut self, index: usize) -> Result<Option<Shard>, SplitError> {
        let missing = match self.row.len() {
            0 => 0,
            length => self.row_length - length,
        };
        if !self.row.is_empty() {
            self.flush_row()?;
        }
        if self.shard_rows == 0 && self.spans.is_empty() {
            return Ok(None);
        }
        let mut shard = self.close(index)?;
        shard.tokens -= missing as u64;
        Ok(Some(shard))
    }
}

fn shard_name(index: usize) -> String {
    format!("shard-{index:05}.arrow")
}
