//! Packed shards: rows of tokens, 2048 of them unless the manifest says otherwise.
//!
//! ```text
//! input_ids: FixedSizeList<UInt16 not null, 2048> not null     length: UInt16 not null
//! ```
//! `length` is 2048 in every row but a dataset's last; there the rest is filled with the separator and belongs to
//! no document. The valid tokens of all rows, one after the other in file and row order, are the token
//! stream. The Merkle leaf of a row is over its valid tokens as little-endian bytes.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt16Type;
use arrow_array::{Array, FixedSizeListArray, RecordBatch, UInt16Array};
use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::arrow_file::{self, ArrowFile, ArrowWriter, RowStarts, Unpacked};
use crate::atomic::Written;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::file_digest::{FileDigest, Undigested};
use crate::merkle::{self, Leaves};

/// Rows in a record batch: 1 MiB at 2048 tokens, the unit of a compressed read.
const BATCH_ROWS: usize = 256;

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt16, false))
}

/// The schema of a packed shard.
#[must_use]
pub fn schema(row_length: u16) -> SchemaRef {
    let list = DataType::FixedSizeList(item(), i32::from(row_length));
    let fields = vec![Field::new("input_ids", list, false), Field::new("length", DataType::UInt16, false)];
    arrow_file::schema("packed-tokens", fields)
}

/// The length of a row as a shard stores it.
fn stored_length(path: &Path, row_length: usize) -> Result<u16> {
    u16::try_from(row_length).map_err(|_| {
        let expected = format!("rows of at most {} tokens", u16::MAX);
        Error::damaged(path, expected, row_length.to_string())
    })
}

/// The Merkle leaf of a row or document: its tokens as little-endian bytes.
#[must_use]
pub fn tokens_leaf(tokens: &[u16]) -> Sha256Digest {
    merkle::leaf(&[&little_endian(tokens)])
}

/// Ids of the host as the little-endian bytes that leaves cover.
fn little_endian_buffer(ids: &Buffer) -> Buffer {
    if cfg!(target_endian = "little") {
        ids.clone()
    } else {
        Buffer::from(little_endian(ids.typed_data()).into_owned())
    }
}

/// The Merkle leaves of several rows, in their order: faster than [`tokens_leaf`] for each.
#[must_use]
pub fn tokens_leaves<'a>(rows: impl IntoIterator<Item = &'a [u16]>) -> Vec<Sha256Digest> {
    let rows: Vec<_> = rows.into_iter().map(little_endian).collect();
    merkle::leaves(rows.iter().map(|bytes| &bytes[..]))
}

fn little_endian(tokens: &[u16]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        // SAFETY: u16 has no padding and every byte of it is initialized; the length is in bytes.
        let bytes = unsafe { std::slice::from_raw_parts(tokens.as_ptr().cast::<u8>(), size_of_val(tokens)) };
        Cow::Borrowed(bytes)
    } else {
        Cow::Owned(tokens.iter().flat_map(|token| token.to_le_bytes()).collect())
    }
}

/// Writes the rows of one shard.
pub struct PackedWriter {
    writer: ArrowWriter,
    row_length: usize,
    /// The length of a full row, as it is stored.
    full: u16,
    /// Fills up the last row.
    separator: u16,
    /// The batch being filled, row after row without a gap.
    ids: Vec<u16>,
    /// Valid tokens of each of its rows that is complete.
    lengths: Vec<u16>,
    /// Leaves of the rows that were written.
    leaves: Vec<Sha256Digest>,
}

impl PackedWriter {
    /// Tokens of a batch of rows of `row_length`: what [`Self::take`] takes without a copy.
    #[must_use]
    pub fn batch_tokens(row_length: usize) -> usize {
        BATCH_ROWS * row_length
    }

    /// Starts a shard of rows of `row_length` tokens at `path`; a short last row is filled up with `separator`.
    ///
    /// # Errors
    /// When the temporary file cannot be created, or rows are longer than 65,535 tokens.
    pub fn create(path: &Path, row_length: usize, separator: u16) -> Result<Self> {
        let full = stored_length(path, row_length)?;
        Ok(Self {
            writer: ArrowWriter::create(path, &schema(full))?,
            row_length,
            full,
            separator,
            ids: Vec::with_capacity(BATCH_ROWS * row_length),
            lengths: Vec::with_capacity(BATCH_ROWS),
            leaves: Vec::new(),
        })
    }

    /// Appends a row of at most `row_length` valid tokens.
    ///
    /// # Errors
    /// When writing fails.
    pub fn push(&mut self, tokens: &[u16]) -> Result<()> {
        debug_assert!(!tokens.is_empty() && tokens.len() <= self.row_length);
        debug_assert!(self.ids.len() == self.lengths.len() * self.row_length, "the row before is complete");
        self.ids.extend_from_slice(tokens);
        self.end_row();
        self.flush_full()
    }

    /// Appends tokens to the row that is not yet complete, and to as many rows after it as they fill.
    ///
    /// # Errors
    /// When writing fails.
    pub fn extend(&mut self, mut tokens: &[u16]) -> Result<()> {
        while !tokens.is_empty() {
            let room = BATCH_ROWS * self.row_length - self.ids.len();
            // The memory of the batch before may still be needed for its digests.
            self.ids.reserve(room);
            let (now, later) = tokens.split_at(tokens.len().min(room));
            self.ids.extend_from_slice(now);
            self.lengths.resize(self.ids.len() / self.row_length, self.full);
            self.flush_full()?;
            tokens = later;
        }
        Ok(())
    }

    /// As [`Self::extend`]. At the beginning of a batch, at most a batch's tokens are taken as they lie; what is returned is
    /// memory of that size, empty, or none where digests come later.
    ///
    /// # Errors
    /// When writing fails.
    pub fn take(&mut self, mut tokens: Vec<u16>) -> Result<Vec<u16>> {
        if self.ids.is_empty() && tokens.len() <= BATCH_ROWS * self.row_length {
            std::mem::swap(&mut self.ids, &mut tokens);
            self.lengths.resize(self.ids.len() / self.row_length, self.full);
            self.flush_full()?;
        } else {
            self.extend(&tokens)?;
            tokens.clear();
        }
        Ok(tokens)
    }

    /// Leaves digests to whoever [`Self::take_undigested`]: what is returned has those of all bytes so far. Until
    /// [`Self::digest_now`] no leaves are made here, and the memory of a batch is not used again.
    ///
    /// # Errors
    /// When the file is finished already.
    pub fn digest_later(&mut self) -> Result<FileDigest> {
        Ok(self.writer.digests()?.digest_later())
    }

    /// What was written since the last call and is not digested.
    ///
    /// # Errors
    /// As [`Self::digest_later`].
    pub fn take_undigested(&mut self) -> Result<Undigested> {
        Ok(self.writer.digests()?.take())
    }

    /// Goes on from the digest of all that was written.
    ///
    /// # Errors
    /// When `file` lacks some of it, which is a fault of the program.
    pub fn digest_now(&mut self, file: FileDigest) -> Result<()> {
        self.writer.digests()?.digest_now(file)
    }

    /// The Merkle leaves of rows that were written since the last call.
    pub fn take_leaves(&mut self) -> Vec<Sha256Digest> {
        std::mem::take(&mut self.leaves)
    }

    /// Fills up the last row.
    fn end_row(&mut self) {
        let length = self.ids.len() - self.lengths.len() * self.row_length;
        // No more than a full row, whose length fits.
        self.lengths.push(u16::try_from(length).unwrap_or(self.full));
        self.ids.resize(self.lengths.len() * self.row_length, self.separator);
    }

    fn flush_full(&mut self) -> Result<()> {
        if self.lengths.len() == BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.lengths.is_empty() {
            return Ok(());
        }
        let lengths = std::mem::take(&mut self.lengths);
        let valid = lengths.iter().map(|&length| usize::from(length) * size_of::<u16>()).collect();
        let ids = Buffer::from_vec(std::mem::take(&mut self.ids));
        let stride = self.row_length * size_of::<u16>();
        let leaves = Leaves::new(little_endian_buffer(&ids), stride, valid);
        let count = ids.len() / size_of::<u16>();
        let values = UInt16Array::new(ScalarBuffer::new(ids.clone(), 0, count), None);
        let list = FixedSizeListArray::new(item(), i32::from(self.full), Arc::new(values), None);
        let columns: Vec<Arc<dyn Array>> = vec![Arc::new(list), Arc::new(UInt16Array::from(lengths))];
        let batch = RecordBatch::try_new(schema(self.full), columns).map_err(Error::internal)?;
        self.leaves.extend(self.writer.write_with_leaves(&batch, leaves)?);
        drop(batch);
        // Where nobody else holds the batch any longer, its memory serves for the next one.
        self.ids = ids.into_vec().unwrap_or_default();
        self.ids.clear();
        Ok(())
    }

    /// Makes the shard durable; the leaves are those of rows not yet taken by [`Self::take_leaves`].
    ///
    /// # Errors
    /// When writing, fsync or the rename fails.
    pub fn finish(mut self) -> Result<(Written, Vec<Sha256Digest>)> {
        self.end()?;
        Ok((self.writer.finish()?, self.leaves))
    }

    /// Fills up a last row that was begun and writes all rows: [`Self::finish`] then only makes them durable. No row may
    /// come afterwards.
    ///
    /// # Errors
    /// When writing fails.
    pub fn end(&mut self) -> Result<()> {
        if self.ids.len() > self.lengths.len() * self.row_length {
            self.end_row();
        }
        self.flush()
    }
}

/// A mapped packed shard.
#[derive(Debug)]
pub struct PackedShard {
    row_length: usize,
    starts: RowStarts,
    batches: Vec<(ScalarBuffer<u16>, ScalarBuffer<u16>)>,
    _unpacked: Unpacked,
}

/// A row: its tokens, and how many of them are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// All `row_length` ids; those after `length` are filling.
    pub ids: &'a [u16],
    /// Valid tokens at the front.
    pub length: usize,
}

impl<'a> Row<'a> {
    /// The valid tokens.
    #[must_use]
    pub fn tokens(&self) -> &'a [u16] {
        &self.ids[..self.length]
    }
}

impl PackedShard {
    /// Maps the shard at `path` and checks that it holds `rows` rows of `row_length` tokens.
    ///
    /// # Errors
    /// When the file is not such a shard.
    pub fn open(path: &Path, row_length: usize, rows: u64) -> Result<Self> {
        let file = ArrowFile::open(path, &[schema(stored_length(path, row_length)?)])?;
        if file.rows() != rows {
            return Err(Error::damaged(path, format!("{rows} rows"), format!("{}", file.rows())));
        }
        let mut batches = Vec::with_capacity(file.batches.len());
        for batch in &file.batches {
            let ids = batch.column(0).as_fixed_size_list();
            let ids = ids.values().as_primitive::<UInt16Type>().values().clone();
            let lengths = batch.column(1).as_primitive::<UInt16Type>().values().clone();
            if ids.len() != lengths.len() * row_length {
                return Err(Error::damaged(path, "row_length ids in each row", "another number"));
            }
            if let Some(&length) = lengths.iter().find(|&&n| n == 0 || usize::from(n) > row_length) {
                return Err(Error::damaged(
                    path,
                    format!("lengths of 1 to {row_length}"),
                    format!("{length}"),
                ));
            }
            batches.push((ids, lengths));
        }
        let starts = RowStarts::new(batches.iter().map(|(_, lengths)| lengths.len()));
        Ok(Self { row_length, starts, batches, _unpacked: file.unpacked })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.total()
    }

    /// Row `index`, counted from the start of this shard; `None` past the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Row<'_>> {
        let (batch, within) = self.starts.locate(index)?;
        let (ids, lengths) = &self.batches[batch];
        let start = within * self.row_length;
        Some(Row { ids: &ids[start..start + self.row_length], length: usize::from(lengths[within]) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: usize = 32;

    fn written(
        write: impl FnOnce(&mut PackedWriter, &mut Vec<Sha256Digest>),
    ) -> (Vec<u8>, Written, Vec<Sha256Digest>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.arrow");
        let mut writer = PackedWriter::create(&path, ROW, crate::END_OF_TEXT).unwrap();
        let mut leaves = Vec::new();
        write(&mut writer, &mut leaves);
        let (written, rest) = writer.finish().unwrap();
        leaves.extend(rest);
        (fs_err::read(&path).unwrap(), written, leaves)
    }

    #[test]
    fn the_memory_of_a_whole_batch_comes_back_once_it_is_digested() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.arrow");
        let mut writer = PackedWriter::create(&path, ROW, crate::END_OF_TEXT).unwrap();
        let mut file = writer.digest_later().unwrap();
        let tokens = vec![7_u16; BATCH_ROWS * ROW];
        let place = tokens.as_ptr();
        writer.take(tokens).unwrap();
        let digested = writer.take_undigested().unwrap().digest(&mut file);
        assert_eq!(digested.leaves.len(), BATCH_ROWS);
        let rows: Vec<u16> = digested.rows.into_iter().next().unwrap().into_vec().unwrap();
        assert_eq!(rows.as_ptr(), place);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// A stream in any pieces makes the file that its rows make, and each row's leaf.
        #[test]
        fn pieces_and_rows_make_the_same_shard(
            tokens in 0usize..(3 * BATCH_ROWS * ROW),
            pieces in prop::collection::vec(1usize..(2 * BATCH_ROWS * ROW), 0..20),
        ) {
            let tokens: Vec<u16> = (0..tokens).map(|at| (at * 7919 % 50_000) as u16).collect();
            let rows = written(|writer, _| tokens.chunks(ROW).for_each(|row| writer.push(row).unwrap()));
            let streamed = |taken: bool| written(|writer, leaves| {
                let mut rest = &tokens[..];
                for piece in pieces.iter().copied().chain([usize::MAX]) {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    if taken {
                        assert!(writer.take(now.to_vec()).unwrap().is_empty());
                    } else {
                        writer.extend(now).unwrap();
                    }
                    leaves.extend(writer.take_leaves());
                    rest = later;
                }
            });
            prop_assert!(rows == streamed(false));
            prop_assert!(rows == streamed(true));
            let batches = written(|writer, _| {
                let mut spare = Vec::new();
                for batch in tokens.chunks(PackedWriter::batch_tokens(ROW)) {
                    spare.extend_from_slice(batch);
                    spare = writer.take(spare).unwrap();
                }
            });
            prop_assert!(rows == batches);
            let later = written(|writer, leaves| {
                let mut file = writer.digest_later().unwrap();
                for (at, piece) in tokens.chunks(5 * ROW + 3).enumerate() {
                    writer.extend(piece).unwrap();
                    if at % 3 == 0 {
                        leaves.extend(writer.take_undigested().unwrap().digest(&mut file).leaves);
                    }
                }
                writer.end().unwrap();
                leaves.extend(writer.take_undigested().unwrap().digest(&mut file).leaves);
                writer.digest_now(file).unwrap();
            });
            prop_assert!(rows == later);
            prop_assert_eq!(rows.2, tokens.chunks(ROW).map(tokens_leaf).collect::<Vec<_>>());
            prop_assert_eq!(rows.1.size, rows.0.len() as u64);
            prop_assert_eq!(rows.1.sha256, Sha256Digest::of(&rows.0));
        }
    }
}
