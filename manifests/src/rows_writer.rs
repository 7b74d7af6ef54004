//! One writer of rows, whatever a row is: batches are filled, digested and written, and the shard is made durable at the end.

use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use crate::arrow_file::ArrowWriter;
use crate::atomic::Written;
use crate::digest::Sha256Digest;
use crate::error::Result;
use crate::merkle::Leaves;

/// Rows in a record batch.
pub const BATCH_ROWS: usize = 256;

/// Rows that are written together: what a shard's format says of them.
pub trait RowBatch: Sized {
    /// What all rows of a shard have in common.
    type Shape: Copy;
    /// A row, as it is written.
    type Row<'a>;

    /// The schema of a shard.
    fn schema(shape: Self::Shape) -> SchemaRef;

    /// Room for [`BATCH_ROWS`] rows of this shape.
    fn new(shape: Self::Shape) -> Self;

    /// Appends a row that is sound in itself.
    ///
    /// # Errors
    /// When it is not one of this shape.
    fn push(&mut self, row: &Self::Row<'_>) -> Result<()>;

    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record batch, and what the leaves of its rows are over.
    ///
    /// # Errors
    /// When the columns do not fit the schema, which is a fault of the program.
    fn into_record_batch(self) -> Result<(RecordBatch, RowLeaves)>;
}

/// What the Merkle leaves of a batch's rows are over.
pub struct RowLeaves(pub(crate) Leaves);

/// Writes the rows of one shard.
pub struct RowsWriter<B: RowBatch> {
    writer: ArrowWriter,
    shape: B::Shape,
    open: B,
    /// Leaves of the rows that were written.
    leaves: Vec<Sha256Digest>,
}

impl<B: RowBatch> RowsWriter<B> {
    /// Starts a shard of rows of this shape at `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created.
    pub fn create(path: &Path, shape: B::Shape) -> Result<Self> {
        Ok(Self::over(ArrowWriter::create(path, &B::schema(shape))?, shape))
    }

    /// As [`Self::create`], but nothing is written: the shard is only digested.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn digest_only(path: &Path, shape: B::Shape) -> Result<Self> {
        Ok(Self::over(ArrowWriter::digest_only(path, &B::schema(shape))?, shape))
    }

    fn over(writer: ArrowWriter, shape: B::Shape) -> Self {
        Self { writer, shape, open: B::new(shape), leaves: Vec::new() }
    }

    /// Appends a row that is sound in itself.
    ///
    /// # Errors
    /// When it is not one of this shape, or writing fails.
    pub fn push(&mut self, row: &B::Row<'_>) -> Result<()> {
        self.open.push(row)?;
        if self.open.len() == BATCH_ROWS { self.end() } else { Ok(()) }
    }

    /// Appends a batch that was put together apart: of [`BATCH_ROWS`] rows, unless it is the shard's last. `leaves` are those
    /// of its rows, where they are known.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&mut self, batch: B, leaves: Option<Vec<Sha256Digest>>) -> Result<()> {
        let (batch, RowLeaves(beside)) = batch.into_record_batch()?;
        let leaves = match leaves {
            Some(leaves) => self.writer.write(&batch).map(|()| leaves)?,
            None => self.writer.write_with_leaves(&batch, beside)?,
        };
        self.leaves.extend(leaves);
        Ok(())
    }

    /// Writes all rows: [`Self::finish`] then only makes them durable. No row may come afterwards.
    ///
    /// # Errors
    /// When writing fails.
    pub fn end(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.open, B::new(self.shape));
        self.write(batch, None)
    }

    /// The Merkle leaves of rows that were written since the last call.
    pub fn take_leaves(&mut self) -> Vec<Sha256Digest> {
        std::mem::take(&mut self.leaves)
    }

    /// Makes the shard durable.
    ///
    /// # Errors
    /// When writing, fsync or the rename fails.
    pub fn finish(mut self) -> Result<Written> {
        self.end()?;
        self.writer.finish()
    }
}
