//! Rows whose targets are stored beside their inputs, of tokens (module `examples`) or of numbers (module `vectors`), for
//! whoever need not tell them apart: writers, checks, digests.

use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::examples::{self, Example, ExampleBatch, ExampleRow, ExampleShard};
use crate::manifest::{Layout, Manifest, Packing};
use crate::merkle;
use crate::rows_writer::{RowBatch, RowLeaves, RowsWriter};
use crate::vectors::{self, VectorBatch, VectorExample, VectorRow, VectorShape, VectorShard};

/// One of two kinds of rows, or what belongs to them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OfKind<T, N> {
    /// Of tokens.
    Tokens(T),
    /// Of numbers.
    Numbers(N),
}

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

/// An example with stored targets: one that is written, or one of a mapped shard.
pub trait StoredExample {
    /// What a row must look like.
    type Shape;

    /// Positions that count.
    fn length(&self) -> u16;

    /// Number of targets.
    fn scored(&self) -> usize;

    /// What is wrong with it as a row of this shape: what was expected, and what was found.
    fn complaint(&self, shape: Self::Shape) -> Option<(String, String)>;

    /// Appends the bytes that its leaf and its digest are over.
    fn encode(&self, out: &mut Vec<u8>);
}

/// The shape of an example of tokens: `row_length`, `vocabulary_size`.
type TokensShape = (u16, u32);

impl StoredExample for Example<'_> {
    type Shape = TokensShape;

    fn length(&self) -> u16 {
        self.length
    }

    fn scored(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    fn complaint(&self, (row_length, vocabulary_size): TokensShape) -> Option<(String, String)> {
        Example::complaint(self, row_length, vocabulary_size)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        examples::encode(self.input_ids, self.targets.iter().copied(), self.length, out);
    }
}

impl StoredExample for ExampleRow<'_> {
    type Shape = TokensShape;

    fn length(&self) -> u16 {
        self.length
    }

    fn scored(&self) -> usize {
        ExampleRow::scored(self)
    }

    fn complaint(&self, (row_length, vocabulary_size): TokensShape) -> Option<(String, String)> {
        ExampleRow::complaint(self, row_length, vocabulary_size)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        ExampleRow::encode(self, out);
    }
}

impl StoredExample for VectorExample<'_> {
    type Shape = VectorShape;

    fn length(&self) -> u16 {
        self.length
    }

    fn scored(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    fn complaint(&self, shape: VectorShape) -> Option<(String, String)> {
        VectorExample::complaint(self, shape)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        VectorExample::encode(self, out);
    }
}

impl StoredExample for VectorRow<'_> {
    type Shape = VectorShape;

    fn length(&self) -> u16 {
        self.length
    }

    fn scored(&self) -> usize {
        self.targets().flatten().count()
    }

    fn complaint(&self, shape: VectorShape) -> Option<(String, String)> {
        VectorRow::complaint(self, shape)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        VectorRow::encode(self, out);
    }
}

/// One example, as it is written.
pub type Stored<'a> = OfKind<Example<'a>, VectorExample<'a>>;

/// An example of a mapped shard.
pub type StoredRow<'a> = OfKind<ExampleRow<'a>, VectorRow<'a>>;

impl<T, N> OfKind<T, N>
where
    T: StoredExample<Shape = TokensShape>,
    N: StoredExample<Shape = VectorShape>,
{
    /// Positions that count.
    #[must_use]
    pub fn length(&self) -> u16 {
        match self {
            Self::Tokens(example) => example.length(),
            Self::Numbers(example) => example.length(),
        }
    }

    /// Number of targets.
    #[must_use]
    pub fn scored(&self) -> usize {
        match self {
            Self::Tokens(example) => example.scored(),
            Self::Numbers(example) => example.scored(),
        }
    }

    /// What is wrong with it as a row of this shape: what was expected, and what was found.
    #[must_use]
    pub fn complaint(&self, shape: StoredShape) -> Option<(String, String)> {
        match (self, shape) {
            (Self::Tokens(example), StoredShape::Tokens { row_length, vocabulary_size }) => {
                example.complaint((row_length, vocabulary_size))
            }
            (Self::Numbers(example), StoredShape::Numbers(shape)) => example.complaint(shape),
            (Self::Tokens(_), StoredShape::Numbers(_)) => Some(("numbers".into(), "tokens".into())),
            (Self::Numbers(_), StoredShape::Tokens { .. }) => Some(("tokens".into(), "numbers".into())),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Tokens(example) => example.encode(&mut bytes),
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

impl Stored<'_> {
    /// Positions of its row.
    #[must_use]
    pub fn positions(&self) -> usize {
        match self {
            Self::Tokens(example) => example.targets.len(),
            Self::Numbers(example) => example.targets.len(),
        }
    }
}

/// Examples that are written together.
pub type StoredBatch = OfKind<ExampleBatch, VectorBatch>;

impl RowBatch for StoredBatch {
    type Shape = StoredShape;
    type Row<'a> = Stored<'a>;

    fn schema(shape: StoredShape) -> SchemaRef {
        match shape {
            StoredShape::Tokens { row_length, .. } => examples::schema(row_length),
            StoredShape::Numbers(shape) => vectors::schema(shape),
        }
    }

    fn new(shape: StoredShape) -> Self {
        match shape {
            StoredShape::Tokens { row_length, .. } => Self::Tokens(ExampleBatch::new(row_length)),
            StoredShape::Numbers(shape) => Self::Numbers(VectorBatch::new(shape)),
        }
    }

    fn push(&mut self, example: &Stored<'_>) -> Result<()> {
        match (self, example) {
            (Self::Tokens(batch), Stored::Tokens(example)) => batch.push(example),
            (Self::Numbers(batch), Stored::Numbers(example)) => batch.push(example),
            _ => Err(Error::Internal("examples of another kind than their shard".into())),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Tokens(batch) => batch.len(),
            Self::Numbers(batch) => batch.len(),
        }
    }

    fn into_record_batch(self) -> Result<(RecordBatch, RowLeaves)> {
        match self {
            Self::Tokens(batch) => batch.into_record_batch(),
            Self::Numbers(batch) => batch.into_record_batch(),
        }
    }
}

impl StoredBatch {
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
pub type StoredWriter = RowsWriter<StoredBatch>;

/// A mapped shard.
pub type StoredShard = OfKind<ExampleShard, VectorShard>;

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
            Self::Tokens(shard) => shard.row(index).map(OfKind::Tokens),
            Self::Numbers(shard) => shard.row(index).map(OfKind::Numbers),
        }
    }
}
