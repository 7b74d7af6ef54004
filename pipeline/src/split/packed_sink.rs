//! Documents end to end into rows, rows into shards.
//!
//! The sink decides what goes where; [`super::row_writer`] writes it.

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{FileRecord, Shard};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span};

use super::journal::{Snapshot, Trees, document_leaf};
use super::ledger::Closing;
use super::row_writer::{RowWriter, Rows, Sealed};
use super::tally::Counted;
use super::{Sink, SplitError, SplitSpec, TokenizedDocument, narrow};

pub(super) struct PackedSink {
    folder: PathBuf,
    row_length: usize,
    /// Ends every document.
    separator: u16,
    rows_per_shard: u64,
    /// Full rows in finished shards and in the one being written.
    rows: u64,
    /// Tokens in the row after them.
    row: usize,
    writer: RowWriter,
    /// Full rows in the shard being written.
    shard_rows: u64,
    spans: Vec<Span>,
    /// Merkle tree over the documents so far; the one over the rows is the writer's.
    documents: MerkleTree,
}

impl PackedSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Self, SplitError> {
        // The offset of a token in its row has 16 bits.
        let row_length = usize::from(narrow::<_, u16>(spec.packing.row_length, "tokens in a row")?);
        let Trees { tokens, documents } = last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default();
        let rows_per_shard = spec.packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        let rows = tokens.leaves();
        let separator = spec.tokenizer.end_of_text;
        Ok(Self {
            folder: folder.into(),
            row_length,
            separator,
            rows_per_shard,
            rows,
            row: 0,
            writer: RowWriter::start(Rows {
                folder: folder.into(),
                row_length,
                separator,
                // Finished shards of a run that resumes are full.
                shard: narrow(rows / rows_per_shard, "shards")?,
                tree: tokens,
            })?,
            shard_rows: 0,
            spans: Vec::new(),
            documents,
        })
    }

    /// Tokens that the shard being written still takes, or as many as a slice can have.
    fn room(&self) -> usize {
        let rows = self.rows_per_shard - self.shard_rows;
        let tokens = rows.saturating_mul(self.row_length as u64) - self.row as u64;
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }

    /// Ends the current shard, the split's number `index`, whose last row lacks `missing` tokens. What is left to do, to
    /// make it durable, is the closing.
    fn finish_shard(&mut self, index: usize, missing: usize) -> Result<Closing, SplitError> {
        let sealed = self.writer.seal()?;
        let (fault, documents) = (self.writer.fault(), self.documents.clone());
        let rows = std::mem::take(&mut self.shard_rows);
        let spans = std::mem::take(&mut self.spans);
        let (folder, tokens) = (self.folder.clone(), rows * self.row_length as u64 - missing as u64);
        Ok(Box::new(move || {
            let Sealed { writer, tokens_root, tree } = sealed.recv().map_err(|_| fault.error())?;
            let (written, _) = writer.finish()?;
            let spans_name = format!("spans-{index:05}.arrow");
            let spans_written = spans::write(&folder.join(&spans_name), &spans)?;
            let shard = Shard {
                file: FileRecord {
                    path: SafePath::new(shard_name(index))?,
                    size: written.size,
                    sha256: written.sha256,
                    records: rows,
                },
                tokens,
                tokens_root,
                companion: FileRecord {
                    path: SafePath::new(spans_name)?,
                    size: spans_written.size,
                    sha256: spans_written.sha256,
                    records: spans.len() as u64,
                },
            };
            Ok((shard, Trees { tokens: tree, documents }))
        }))
    }
}

impl Sink for PackedSink {
    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError> {
        let Counted { input, set, license, source } = counted;
        let meta = document.meta;
        self.documents.push(document_leaf(input, document, length));
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
            let stored = if next == ids.len() {
                self.writer.extend(&[self.separator])?;
                1
            } else {
                let until = next + (ids.len() - next).min(self.room());
                match document.kept {
                    Some((all, start)) => self.writer.share(all, start + next..start + until)?,
                    None => self.writer.extend(&ids[next..until])?,
                }
                until - next
            };
            next += stored;
            let rows = (self.row + stored) / self.row_length;
            self.row = (self.row + stored) % self.row_length;
            self.rows += rows as u64;
            self.shard_rows += rows as u64;
            if self.shard_rows == self.rows_per_shard {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    fn close(&mut self, index: usize) -> Result<Option<Closing>, SplitError> {
        self.finish_shard(index, 0).map(Some)
    }

    /// The last row may be short.
    fn close_last(&mut self, index: usize) -> Result<Option<Closing>, SplitError> {
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
        self.finish_shard(index, missing).map(Some)
    }
}

pub(super) fn shard_name(index: usize) -> String {
    format!("shard-{index:05}.arrow")
}
