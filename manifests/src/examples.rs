//! Shards of examples: rows whose targets are stored beside their inputs (synthetic tasks, labeled sequences).
//!
//! ```text
//! input_ids: FixedSizeList<UInt16 not null, N> not null     what goes in
//! targets:   FixedSizeList<UInt16, N> not null              what is to come out at that position; null: not scored
//! length:    UInt16 not null                                positions that count, 1 to N: padding follows them
//! ```
//! One row is one example, and N is the dataset's own row length. Targets already stand where they are predicted: a
//! trainer must not shift them. Nothing is scored in the padding, and every example has at least one target.
//!
//! The Merkle leaf of a row is over [`encode`]: the ids, the targets (0 where there is none), one byte a position that
//! says whether it is scored, and the length, all little-endian. The SHA-256 of the same bytes is the example's digest
//! in its span.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt16Type;
use arrow_array::{Array, FixedSizeListArray, RecordBatch, UInt16Array};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::arrow_file::{self, ArrowFile, RowStarts, Unpacked};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::merkle::{self, Leaves};
pub use crate::rows_writer::BATCH_ROWS;
use crate::rows_writer::{RowBatch, RowLeaves, RowsWriter};

fn item(nullable: bool) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt16, nullable))
}

/// The schema of a shard of examples.
#[must_use]
pub fn schema(row_length: u16) -> SchemaRef {
    let list = |nullable| DataType::FixedSizeList(item(nullable), i32::from(row_length));
    let fields = vec![
        Field::new("input_ids", list(false), false),
        Field::new("targets", list(true), false),
        Field::new("length", DataType::UInt16, false),
    ];
    arrow_file::schema("examples", fields)
}

/// Targets as they are stored: 0 where there is none.
fn values(targets: &[Option<u16>]) -> impl ExactSizeIterator<Item = u16> {
    targets.iter().map(|target| target.unwrap_or(0))
}

/// The lowest bits of eight bytes, the first byte's lowest.
fn bits(bytes: [u8; 8]) -> u8 {
    (u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// One example, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Example<'a> {
    /// As many ids as a row is long.
    pub input_ids: &'a [u16],
    /// As many targets; `None` is not scored.
    pub targets: &'a [Option<u16>],
    /// Positions that count.
    pub length: u16,
}

impl Example<'_> {
    /// What is wrong with this example as a row of `row_length` positions whose ids are below `vocabulary_size`:
    /// what was expected, and what was found.
    #[must_use]
    pub fn complaint(&self, row_length: u16, vocabulary_size: u32) -> Option<(String, String)> {
        let positions = usize::from(row_length);
        if self.input_ids.len() != positions || self.targets.len() != positions {
            let found = format!("{} and {}", self.input_ids.len(), self.targets.len());
            return Some((format!("{row_length} ids and {row_length} targets"), found));
        }
        if self.length == 0 || self.length > row_length {
            return Some((format!("a length from 1 to {row_length}"), self.length.to_string()));
        }
        // The highest first: that is quickly found, and of most examples all there is to know.
        let outside = |id: &u16| u32::from(*id) >= vocabulary_size;
        let ids = self.input_ids.iter().copied();
        let highest = ids.fold(0, u16::max).max(values(self.targets).fold(0, u16::max));
        if outside(&highest) {
            let mut ids = self.input_ids.iter().chain(self.targets.iter().flatten());
            let found = ids.find(|id| outside(id)).map_or_else(String::new, u16::to_string);
            return Some((format!("ids below {vocabulary_size}"), found));
        }
        let scored =
            |targets: &[Option<u16>]| targets.iter().fold(false, |any, target| any | target.is_some());
        let (counted, padding) = self.targets.split_at(usize::from(self.length));
        if scored(padding) {
            let last = self.targets.iter().rposition(Option::is_some).unwrap_or_default();
            return Some((
                format!("no target from position {} on, where the padding begins", self.length),
                format!("one at position {last}"),
            ));
        }
        (!scored(counted)).then(|| ("at least one target".into(), "none".into()))
    }

    /// The SHA-256 of [`encode`].
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        let mut bytes = Vec::new();
        encode(self.input_ids, self.targets.iter().copied(), self.length, &mut bytes);
        Sha256Digest::of(&bytes)
    }
}

/// Appends the bytes that stand for an example: see the module.
pub fn encode(
    input_ids: &[u16],
    targets: impl ExactSizeIterator<Item = Option<u16>> + Clone,
    length: u16,
    out: &mut Vec<u8>,
) {
    let (start, ids, positions) = (out.len(), 2 * input_ids.len(), targets.len());
    out.resize(start + ids + 3 * positions + size_of::<u16>(), 0);
    let (stored, rest) = out[start..].split_at_mut(ids);
    for (bytes, id) in stored.as_chunks_mut::<2>().0.iter_mut().zip(input_ids) {
        *bytes = id.to_le_bytes();
    }
    let (stored, rest) = rest.split_at_mut(2 * positions);
    for (bytes, target) in stored.as_chunks_mut::<2>().0.iter_mut().zip(targets.clone()) {
        *bytes = target.unwrap_or(0).to_le_bytes();
    }
    let (stored, last) = rest.split_at_mut(positions);
    for (byte, target) in stored.iter_mut().zip(targets) {
        *byte = u8::from(target.is_some());
    }
    last.copy_from_slice(&length.to_le_bytes());
}

/// Examples that are written together.
#[derive(Debug)]
pub struct ExampleBatch {
    row_length: u16,
    ids: Vec<u16>,
    /// 0 where there is none.
    targets: Vec<u16>,
    scored: BooleanBufferBuilder,
    /// The bits of one example.
    packed: Vec<u8>,
    lengths: Vec<u16>,
    /// [`encode`] of all examples, one after the other.
    bytes: Vec<u8>,
}

impl ExampleBatch {
    /// Bytes of [`encode`].
    fn stride(row_length: u16) -> usize {
        5 * usize::from(row_length) + size_of::<u16>()
    }

    fn encoded(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(Self::stride(self.row_length))
    }

    /// Their [digests](Example::digest), in their order: faster than one by one.
    #[must_use]
    pub fn digests(&self) -> Vec<Sha256Digest> {
        Sha256Digest::of_each(self.encoded())
    }

    /// Their Merkle leaves, in their order.
    #[must_use]
    pub fn leaves(&self) -> Vec<Sha256Digest> {
        merkle::leaves(self.encoded())
    }
}

impl RowBatch for ExampleBatch {
    type Shape = u16;
    type Row<'a> = Example<'a>;

    fn schema(shape: Self::Shape) -> SchemaRef {
        schema(shape)
    }

    fn new(row_length: u16) -> Self {
        let positions = BATCH_ROWS * usize::from(row_length);
        Self {
            row_length,
            ids: Vec::with_capacity(positions),
            targets: Vec::with_capacity(positions),
            scored: BooleanBufferBuilder::new(positions),
            packed: Vec::new(),
            lengths: Vec::with_capacity(BATCH_ROWS),
            bytes: Vec::with_capacity(BATCH_ROWS * Self::stride(row_length)),
        }
    }

    fn push(&mut self, example: &Example<'_>) -> Result<()> {
        let positions = usize::from(self.row_length);
        if example.input_ids.len() != positions || example.targets.len() != positions {
            let found =
                format!("an example of {} positions for rows of {positions}", example.input_ids.len());
            return Err(Error::Internal(found));
        }
        self.ids.extend_from_slice(example.input_ids);
        self.targets.extend(values(example.targets));
        self.lengths.push(example.length);
        let start = self.bytes.len();
        encode(example.input_ids, example.targets.iter().copied(), example.length, &mut self.bytes);
        // What says in these bytes whether a position is scored is a byte each; here it is a bit.
        let (eights, rest) = self.bytes[start + 4 * positions..][..positions].as_chunks::<8>();
        self.scored.reserve(positions);
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.packed.clear();
        self.packed.extend(eights.iter().chain([&last]).map(|eight| bits(*eight)));
        self.scored.append_packed_range(0..positions, &self.packed);
        Ok(())
    }

    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn into_record_batch(mut self) -> Result<(RecordBatch, RowLeaves)> {
        let stride = Self::stride(self.row_length);
        let leaves = Leaves::new(Buffer::from_vec(self.bytes), stride, vec![stride; self.lengths.len()]);
        let list = |values: UInt16Array, nullable| {
            FixedSizeListArray::try_new(item(nullable), i32::from(self.row_length), Arc::new(values), None)
        };
        let scored = NullBuffer::new(self.scored.finish());
        let targets = UInt16Array::try_new(self.targets.into(), Some(scored)).map_err(Error::internal)?;
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(list(UInt16Array::from(self.ids), false).map_err(Error::internal)?),
            Arc::new(list(targets, true).map_err(Error::internal)?),
            Arc::new(UInt16Array::from(self.lengths)),
        ];
        let batch = RecordBatch::try_new(schema(self.row_length), columns).map_err(Error::internal)?;
        Ok((batch, RowLeaves(leaves)))
    }
}

/// Writes the examples of one shard.
pub type ExamplesWriter = RowsWriter<ExampleBatch>;

/// A batch of a mapped shard.
#[derive(Debug)]
struct Batch {
    ids: ScalarBuffer<u16>,
    targets: ScalarBuffer<u16>,
    /// Which targets there are; none: all.
    scored: Option<NullBuffer>,
    lengths: ScalarBuffer<u16>,
}

/// A mapped shard of examples.
#[derive(Debug)]
pub struct ExampleShard {
    row_length: usize,
    starts: RowStarts,
    batches: Vec<Batch>,
    _unpacked: Unpacked,
}

/// An example of a mapped shard.
#[derive(Debug, Clone, Copy)]
pub struct ExampleRow<'a> {
    /// What goes in.
    pub input_ids: &'a [u16],
    targets: &'a [u16],
    scored: Option<&'a NullBuffer>,
    /// Its first position in its batch.
    start: usize,
    /// Positions that count.
    pub length: u16,
}

impl<'a> ExampleRow<'a> {
    /// What is to come out, position by position; `None` where nothing is scored.
    pub fn targets(&self) -> impl ExactSizeIterator<Item = Option<u16>> + Clone + use<'a> {
        let Self { targets, scored, start, .. } = *self;
        let is_scored = move |at: usize| scored.is_none_or(|scored| scored.is_valid(start + at));
        targets.iter().enumerate().map(move |(at, &target)| is_scored(at).then_some(target))
    }

    /// Number of targets.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.targets().flatten().count()
    }

    /// Appends the bytes that its leaf and its digest are over.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self.input_ids, self.targets(), self.length, out);
    }

    /// Its Merkle leaf.
    #[must_use]
    pub fn leaf(&self) -> Sha256Digest {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        merkle::leaf(&[&bytes])
    }

    /// As [`Example::digest`].
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        Sha256Digest::of(&bytes)
    }

    /// As [`Example::complaint`].
    #[must_use]
    pub fn complaint(&self, row_length: u16, vocabulary_size: u32) -> Option<(String, String)> {
        let targets: Vec<_> = self.targets().collect();
        let example = Example { input_ids: self.input_ids, targets: &targets, length: self.length };
        example.complaint(row_length, vocabulary_size)
    }
}

impl ExampleShard {
    /// Maps the shard at `path` and checks that it holds `rows` examples of `row_length` positions.
    ///
    /// # Errors
    /// When the file is not such a shard.
    pub fn open(path: &Path, row_length: u16, rows: u64) -> Result<Self> {
        let file = ArrowFile::open_counted(path, &[schema(row_length)], rows, "examples")?;
        let row_length = usize::from(row_length);
        let mut batches = Vec::with_capacity(file.batches.len());
        for batch in &file.batches {
            let list = |column: usize| batch.column(column).as_fixed_size_list().values().clone();
            let (ids, targets) = (list(0), list(1));
            let (ids, targets) = (ids.as_primitive::<UInt16Type>(), targets.as_primitive::<UInt16Type>());
            let lengths = batch.column(2).as_primitive::<UInt16Type>().values().clone();
            let positions = lengths.len() * row_length;
            if ids.len() != positions || targets.len() != positions {
                return Err(Error::damaged(path, "row_length ids and targets in each row", "another number"));
            }
            batches.push(Batch {
                ids: ids.values().clone(),
                targets: targets.values().clone(),
                scored: targets.nulls().cloned(),
                lengths,
            });
        }
        let starts = RowStarts::new(batches.iter().map(|batch| batch.lengths.len()));
        Ok(Self { row_length, starts, batches, _unpacked: file.unpacked })
    }

    /// Number of examples.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.total()
    }

    /// Example `index`, counted from the start of this shard; `None` past the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<ExampleRow<'_>> {
        let (batch, within) = self.starts.locate(index)?;
        let batch = &self.batches[batch];
        let positions = within * self.row_length..(within + 1) * self.row_length;
        Some(ExampleRow {
            start: positions.start,
            input_ids: &batch.ids[positions.clone()],
            targets: &batch.targets[positions],
            scored: batch.scored.as_ref(),
            length: batch.lengths[within],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: usize = 5;

    fn example() -> impl Strategy<Value = (Vec<u16>, Vec<Option<u16>>, u16)> {
        (
            prop::collection::vec(0u16..9, ROW),
            prop::collection::vec(prop::option::of(0u16..9), ROW),
            1..=ROW as u16,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// What was written is read, leaf and digest too, over several batches.
        #[test]
        fn examples_come_back(examples in prop::collection::vec(example(), 0..(BATCH_ROWS + 9))) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("shard.arrow");
            let mut writer = ExamplesWriter::create(&path, ROW as u16).unwrap();
            let mut digested = ExamplesWriter::digest_only(&path, ROW as u16).unwrap();
            for (input_ids, targets, length) in &examples {
                writer.push(&Example { input_ids, targets, length: *length }).unwrap();
            }
            for examples in examples.chunks(BATCH_ROWS) {
                let mut batch = ExampleBatch::new(ROW as u16);
                for (input_ids, targets, length) in examples {
                    batch.push(&Example { input_ids, targets, length: *length }).unwrap();
                }
                let leaves = Some(batch.leaves());
                digested.write(batch, leaves).unwrap();
            }
            writer.end().unwrap();
            let leaves = writer.take_leaves();
            prop_assert_eq!(&leaves, &digested.take_leaves());
            let written = writer.finish().unwrap();
            prop_assert_eq!(written.sha256, Sha256Digest::of(&std::fs::read(&path).unwrap()));
            prop_assert_eq!(digested.finish().unwrap(), written);
            let shard = ExampleShard::open(&path, ROW as u16, examples.len() as u64).unwrap();
            for (index, (input_ids, targets, length)) in examples.iter().enumerate() {
                let row = shard.row(index).unwrap();
                prop_assert_eq!(row.input_ids, &input_ids[..]);
                prop_assert_eq!(&row.targets().collect::<Vec<_>>(), targets);
                prop_assert_eq!(row.length, *length);
                prop_assert_eq!(row.leaf(), leaves[index]);
                prop_assert_eq!(row.digest(), Example { input_ids, targets, length: *length }.digest());
                prop_assert_eq!(row.scored(), targets.iter().flatten().count());
            }
            prop_assert!(shard.row(examples.len()).is_none());
        }
    }

    #[test]
    fn a_target_of_0_and_no_target_are_different_leaves() {
        let digest = |targets: &[Option<u16>]| Example { input_ids: &[1, 2], targets, length: 2 }.digest();
        assert_ne!(digest(&[None, Some(0)]), digest(&[Some(0), Some(0)]));
    }

    #[test]
    fn what_is_wrong_with_an_example_is_said() {
        let found = |input_ids: &[u16], targets: &[Option<u16>], length| {
            Example { input_ids, targets, length }
                .complaint(3, 10)
                .map(|(expected, found)| format!("{expected}: {found}"))
        };
        assert_eq!(found(&[1, 2, 0], &[None, Some(3), None], 2), None);
        for (ids, targets, length, said) in [
            (&[1, 2][..], &[None, Some(3), None][..], 2, "3 ids and 3 targets: 2 and 3"),
            (&[1, 2, 0], &[None, Some(3), None], 4, "a length from 1 to 3: 4"),
            (&[1, 2, 0], &[None, Some(3), None], 0, "a length from 1 to 3: 0"),
            (&[1, 10, 0], &[None, Some(3), None], 2, "ids below 10: 10"),
            (&[1, 2, 0], &[None, Some(11), None], 2, "ids below 10: 11"),
            (&[1, 2, 0], &[None, None, None], 2, "at least one target: none"),
            (
                &[1, 2, 0],
                &[None, None, Some(3)],
                2,
                "no target from position 2 on, where the padding begins: one at position 2",
            ),
        ] {
            assert_eq!(found(ids, targets, length).as_deref(), Some(said));
        }
    }
}
