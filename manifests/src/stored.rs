//! Rows whose targets are stored beside their inputs, of tokens (module `examples`) or of numbers (module `vectors`), for
//! whoever need not tell them apart: writers, checks, digests.

use std::path::Path;

use crate::atomic::Written;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::examples::{Example, ExampleBatch, ExampleRow, ExampleShard, ExamplesWriter};
use crate::manifest::{Layout, Manifest, Packing};
use crate::merkle;
use crate::vectors::{VectorBatch, VectorExample, VectorRow, VectorShape, VectorShard, VectorsWriter};

/// What a row of such a split must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredShape {
    /// Tokens.
    Tokens {
        /// Positions of a row.
        row_length: u16,
        /// Ids are below this number.
        vocabulary_size: u32,
    },
    /// Numbers.
    Numbers(VectorShape),
}

impl StoredShape {
    /// Of a split of this layout and packing; `None` where targets are the next tokens.
    ///
    /// # Errors
    /// When the packing has not what the layout needs. A manifest that was loaded has it.
    pub fn new(layout: Layout, packing: &Packing, vocabulary_size: u32) -> Result<Option<Self>> {
        let row_length = packing.stored_row_length()?;
        Ok(match layout {
            Layout::Packed | Layout::Documents => None,
            Layout::Examples => Some(Self::Tokens { row_length, vocabulary_size }),
            Layout::Vectors => {
                let missing = || Error::Internal("rows of numbers without `packing.input_width`".into());
                let width = packing.input_width.ok_or_else(missing)?;
                Some(Self::Numbers(VectorShape { row_length, width }))
            }
        })
    }

    /// Of the rows of `manifest`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(manifest: &Manifest) -> Result<Option<Self>> {
        Self::new(manifest.layout, &manifest.packing, manifest.tokenizer.vocabulary_size)
    }

    /// Positions of a row.
    #[must_use]
    pub fn row_length(self) -> u16 {
        match self {
            Self::Tokens { row_length, .. } | Self::Numbers(VectorShape { row_length, .. }) => row_length,
        }
    }
}

/// One example, as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stored<'a> {
    /// Of tokens.
    Tokens(Example<'a>),
    /// Of numbers.
    Numbers(VectorExample<'a>),
}

impl Stored<'_> {
    /// Positions of its row.
    #[must_use]
    pub fn positions(&self) -> usize {
        match self {
            Self::Tokens(example) => example.targets.len(),
            Self::Numbers(example) => example.targets.len(),
        }
    }

    /// What is wrong with it as a row of this shape: what was expected, and what was found.
    #[must_use]
    pub fn complaint(&self, shape: StoredShape) -> Option<(String, String)> {
        match (self, shape) {
            (Self::Tokens(example), StoredShape::Tokens { row_length, vocabulary_size }) => {
                example.complaint(row_length, vocabulary_size)
            }
            (Self::Numbers(example), StoredShape::Numbers(shape)) => example.complaint(shape),
            (Self::Tokens(_), StoredShape::Numbers(_)) => Some(("numbers".into(), "tokens".into())),
            (Self::Numbers(_), StoredShape::Tokens { .. }) => Some(("tokens".into(), "numbers".into())),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Tokens(example) => crate::examples::encode(
                example.input_ids,
                example.targets.iter().copied(),
                example.length,
                &mut bytes,
            ),
            Self::Numbers(example) => example.encode(&mut bytes),
        }
        bytes
    }

    /// The SHA-256 of the bytes that stand for it.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.bytes())
    }

    /// Its Merkle leaf.
    #[must_use]
    pub fn leaf(&self) -> Sha256Digest {
        merkle::leaf(&[&self.bytes()])
    }
}

/// Examples that are written together.
#[derive(Debug)]
pub enum StoredBatch {
    /// Of tokens.
    Tokens(ExampleBatch),
    /// Of numbers.
    Numbers(VectorBatch),
}

fn other_kind<T>() -> Result<T> {
    Err(Error::Internal("examples of another kind than their shard".into()))
}

impl StoredBatch {
    /// Room for [`BATCH_ROWS`](crate::examples::BATCH_ROWS) examples of this shape.
    #[must_use]
    pub fn new(shape: StoredShape) -> Self {
        match shape {
            StoredShape::Tokens { row_length, .. } => Self::Tokens(ExampleBatch::new(row_length)),
            StoredShape::Numbers(shape) => Self::Numbers(VectorBatch::new(shape)),
        }
    }

    /// Appends an example without a [`complaint`](Stored::complaint).
    ///
    /// # Errors
    /// When it is of another kind or size.
    pub fn push(&mut self, example: &Stored<'_>) -> Result<()> {
        match (self, example) {
            (Self::Tokens(batch), Stored::Tokens(example)) => batch.push(example),
            (Self::Numbers(batch), Stored::Numbers(example)) => batch.push(example),
            _ => other_kind(),
        }
    }

    /// Their [digests](Stored::digest), in their order.
    #[must_use]
    pub fn digests(&self) -> Vec<Sha256Digest> {
        match self {
            Self::Tokens(batch) => batch.digests(),
            Self::Numbers(batch) => batch.digests(),
        }
    }

    /// Their Merkle leaves, in their order.
    #[must_use]
    pub fn leaves(&self) -> Vec<Sha256Digest> {
        match self {
            Self::Tokens(batch) => batch.leaves(),
            Self::Numbers(batch) => batch.leaves(),
        }
    }
}

/// Writes the examples of one shard.
pub enum StoredWriter {
    /// Of tokens.
    Tokens(ExamplesWriter),
    /// Of numbers.
    Numbers(VectorsWriter),
}

impl StoredWriter {
    /// Starts a shard of rows of this shape at `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created.
    pub fn create(path: &Path, shape: StoredShape) -> Result<Self> {
        Ok(match shape {
            StoredShape::Tokens { row_length, .. } => Self::Tokens(ExamplesWriter::create(path, row_length)?),
            StoredShape::Numbers(shape) => Self::Numbers(VectorsWriter::create(path, shape)?),
        })
    }

    /// As [`Self::create`], but nothing is written: the shard is only digested.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn digest_only(path: &Path, shape: StoredShape) -> Result<Self> {
        Ok(match shape {
            StoredShape::Tokens { row_length, .. } => {
                Self::Tokens(ExamplesWriter::digest_only(path, row_length)?)
            }
            StoredShape::Numbers(shape) => Self::Numbers(VectorsWriter::digest_only(path, shape)?),
        })
    }

    /// Appends an example without a [`complaint`](Stored::complaint).
    ///
    /// # Errors
    /// When it is of another kind or size, or writing fails.
    pub fn push(&mut self, example: &Stored<'_>) -> Result<()> {
        match (self, example) {
            (Self::Tokens(writer), Stored::Tokens(example)) => writer.push(example),
            (Self::Numbers(writer), Stored::Numbers(example)) => writer.push(example),
            _ => other_kind(),
        }
    }

    /// Appends a batch that was put together apart: see [`ExamplesWriter::write`].
    ///
    /// # Errors
    /// When it is of another kind, or writing fails.
    pub fn write(&mut self, batch: StoredBatch, leaves: Option<Vec<Sha256Digest>>) -> Result<()> {
        match (self, batch) {
            (Self::Tokens(writer), StoredBatch::Tokens(batch)) => writer.write(batch, leaves),
            (Self::Numbers(writer), StoredBatch::Numbers(batch)) => writer.write(batch, leaves),
            _ => other_kind(),
        }
    }

    /// Writes all examples: [`Self::finish`] then only makes them durable. No example may come afterwards.
    ///
    /// # Errors
    /// When writing fails.
    pub fn end(&mut self) -> Result<()> {
        match self {
            Self::Tokens(writer) => writer.end(),
            Self::Numbers(writer) => writer.end(),
        }
    }

    /// The Merkle leaves of examples that were written since the last call.
    pub fn take_leaves(&mut self) -> Vec<Sha256Digest> {
        match self {
            Self::Tokens(writer) => writer.take_leaves(),
            Self::Numbers(writer) => writer.take_leaves(),
        }
    }

    /// Makes the shard durable.
    ///
    /// # Errors
    /// When writing, fsync or the rename fails.
    pub fn finish(self) -> Result<Written> {
        match self {
            Self::Tokens(writer) => writer.finish(),
            Self::Numbers(writer) => writer.finish(),
        }
    }
}

/// A mapped shard.
#[derive(Debug)]
pub enum StoredShard {
    /// Of tokens.
    Tokens(ExampleShard),
    /// Of numbers.
    Numbers(VectorShard),
}

impl StoredShard {
    /// Maps the shard at `path` and checks that it holds `rows` examples of this shape.
    ///
    /// # Errors
    /// When the file is not such a shard.
    pub fn open(path: &Path, shape: StoredShape, rows: u64) -> Result<Self> {
        Ok(match shape {
            StoredShape::Tokens { row_length, .. } => {
                Self::Tokens(ExampleShard::open(path, row_length, rows)?)
            }
            StoredShape::Numbers(shape) => Self::Numbers(VectorShard::open(path, shape, rows)?),
        })
    }

    /// Number of examples.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Tokens(shard) => shard.rows(),
            Self::Numbers(shard) => shard.rows(),
        }
    }

    /// Example `index`, counted from the start of this shard; `None` past the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<StoredRow<'_>> {
        match self {
            Self::Tokens(shard) => shard.row(index).map(StoredRow::Tokens),
            Self::Numbers(shard) => shard.row(index).map(StoredRow::Numbers),
        }
    }
}

/// An example of a mapped shard.
#[derive(Debug, Clone, Copy)]
pub enum StoredRow<'a> {
    /// Of tokens.
    Tokens(ExampleRow<'a>),
    /// Of numbers.
    Numbers(VectorRow<'a>),
}

impl StoredRow<'_> {
    /// Positions that count.
    #[must_use]
    pub fn length(&self) -> u16 {
        match self {
            Self::Tokens(row) => row.length,
            Self::Numbers(row) => row.length,
        }
    }

    /// Number of targets.
    #[must_use]
    pub fn scored(&self) -> usize {
        match self {
            Self::Tokens(row) => row.scored(),
            Self::Numbers(row) => row.targets().flatten().count(),
        }
    }

    /// As [`Stored::complaint`].
    #[must_use]
    pub fn complaint(&self, shape: StoredShape) -> Option<(String, String)> {
        match (self, shape) {
            (Self::Tokens(row), StoredShape::Tokens { row_length, vocabulary_size }) => {
                row.complaint(row_length, vocabulary_size)
            }
            (Self::Numbers(row), StoredShape::Numbers(shape)) => row.complaint(shape),
            (Self::Tokens(_), StoredShape::Numbers(_)) => Some(("numbers".into(), "tokens".into())),
            (Self::Numbers(_), StoredShape::Tokens { .. }) => Some(("tokens".into(), "numbers".into())),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Tokens(row) => row.encode(&mut bytes),
            Self::Numbers(row) => row.encode(&mut bytes),
        }
        bytes
    }

    /// As [`Stored::digest`].
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.bytes())
    }

    /// As [`Stored::leaf`].
    #[must_use]
    pub fn leaf(&self) -> Sha256Digest {
        merkle::leaf(&[&self.bytes()])
    }
}
