//! One shard of examples, with its spans and its part of the split's Merkle trees.
//!
//! Nothing in it depends on the shards before but their number of rows, so several are made at a time
//! ([`crate::tasks::written`]), and [`SplitBuilder::shard`](super::SplitBuilder::shard) takes them in order.

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{FileRecord, Packing, Shard};
use xlstm_manifests::merkle::{MerkleTree, Section};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::{self, Span};
use xlstm_manifests::stored::{Stored, StoredBatch, StoredShape, StoredWriter};
use xlstm_manifests::{Error as ContractError, Sha256Digest};

use super::SplitError;
use super::packed_sink::shard_name;

/// A shard of examples that is being made.
pub struct ExamplesShard {
    folder: PathBuf,
    index: usize,
    /// Number of its first row.
    first: u64,
    row_length: u32,
    /// Whether its files are written, or only digested.
    kept: bool,
    writer: StoredWriter,
    spans: Vec<Span>,
    /// Over its rows, numbered from 0 on.
    own: Section,
    /// Over its rows as they are in the split, where those are not the same subtrees.
    rows: Option<Section>,
}

/// A shard that is made, and durable if it is kept.
pub struct MadeShard {
    pub(super) index: usize,
    pub(super) shard: Shard,
    /// Rows and documents in the split's trees.
    pub(super) rows: Section,
    pub(super) documents: Section,
    /// Its last document.
    pub(super) last: Option<LastDocument>,
}

/// The document that a shard ends with.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastDocument {
    pub(super) input: u32,
    pub(super) record: u64,
    pub(super) length: u64,
}

impl ExamplesShard {
    /// Begins shard `index` of the split in `folder`.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(
        folder: &Path,
        (packing, shape): (&Packing, StoredShape),
        index: usize,
        kept: bool,
    ) -> Result<Self, SplitError> {
        let path = folder.join(shard_name(index));
        let writer =
            if kept { StoredWriter::create(&path, shape)? } else { StoredWriter::digest_only(&path, shape)? };
        let most = packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        let first = most.saturating_mul(index as u64);
        let aligned = most.checked_next_power_of_two().is_some_and(|size| first.is_multiple_of(size));
        Ok(Self {
            folder: folder.into(),
            index,
            first,
            row_length: packing.row_length,
            kept,
            writer,
            spans: Vec::new(),
            own: Section::new(0),
            rows: (!aligned && first > 0).then(|| Section::new(first)),
        })
    }

    /// Number of examples so far.
    pub(super) fn len(&self) -> u64 {
        self.spans.len() as u64
    }

    /// Number of its next row in the split.
    pub(super) fn next_row(&self) -> u64 {
        self.first + self.len()
    }

    /// The span of its next example, which has no set, license or source.
    fn span(&self, input: u32, record: u64, digest: Sha256Digest) -> Span {
        Span {
            input,
            record,
            row: self.next_row(),
            offset: 0,
            length: u64::from(self.row_length),
            bytes: 0,
            set: None,
            digest,
            id: None,
            license: None,
            source: None,
        }
    }

    /// Appends an example, of which `span` says where it is.
    pub(super) fn push(&mut self, example: &Stored<'_>, span: Span) -> Result<(), SplitError> {
        self.writer.push(example)?;
        self.spans.push(span);
        self.take_leaves();
        Ok(())
    }

    fn take_leaves(&mut self) {
        let leaves = self.writer.take_leaves();
        self.own.extend(&leaves);
        if let Some(rows) = &mut self.rows {
            rows.extend(&leaves);
        }
    }

    /// Appends a batch (see [`StoredWriter::write`]). `digests` are those of its examples, and `place` says input and
    /// record of a row of the split.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &mut self,
        batch: StoredBatch,
        digests: &[Sha256Digest],
        leaves: Option<Vec<Sha256Digest>>,
        place: impl Fn(u64) -> (u32, u64),
    ) -> Result<(), SplitError> {
        self.writer.write(batch, leaves)?;
        for digest in digests {
            let (input, record) = place(self.next_row());
            self.spans.push(self.span(input, record, *digest));
        }
        self.take_leaves();
        Ok(())
    }

    /// Makes the shard durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<MadeShard, SplitError> {
        self.writer.end()?;
        self.take_leaves();
        let mut documents = Section::new(self.first);
        documents.extend(&spans::document_leaves(&self.spans));
        let mut tree = MerkleTree::new();
        tree.append(&self.own)?;
        let rows = self.rows.or_else(|| self.own.moved(self.first));
        let rows =
            rows.ok_or_else(|| ContractError::internal("rows of a shard have no place in the split"))?;
        let written = self.writer.finish()?;
        let spans_path = self.folder.join(format!("spans-{:05}.arrow", self.index));
        let spans_written = if self.kept {
            spans::write(&spans_path, &self.spans)?
        } else {
            spans::digest(&spans_path, &self.spans)?
        };
        let records = self.spans.len() as u64;
        let shard = Shard {
            file: FileRecord {
                path: SafePath::new(shard_name(self.index))?,
                size: written.size,
                sha256: written.sha256,
                records,
            },
            tokens: records * u64::from(self.row_length),
            tokens_root: tree.root(),
            companion: FileRecord {
                path: SafePath::new(format!("spans-{:05}.arrow", self.index))?,
                size: spans_written.size,
                sha256: spans_written.sha256,
                records,
            },
        };
        let last = self.spans.last().map(|span| LastDocument {
            input: span.input,
            record: span.record,
            length: span.length,
        });
        Ok(MadeShard { index: self.index, shard, rows, documents, last })
    }
}
