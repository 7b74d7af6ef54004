//! Shards of examples made of numbers: real-valued inputs and targets (the paper's nearest-neighbor search).
//!
//! ```text
//! inputs:  FixedSizeList<Float32 not null, N·W> not null    W numbers of the first position, W of the second, …
//! targets: FixedSizeList<Float32, N> not null               the number that is to come out there; null: not scored
//! length:  UInt16 not null                                  positions that count, 1 to N: padding follows them
//! ```
//! One row is one example. N is the dataset's row length, W its `packing.input_width`. As in `examples`, targets stand
//! where they are predicted, nothing is scored in the padding, and every example has at least one target. All numbers are
//! finite.
//!
//! The Merkle leaf of a row is over [`encode`]: inputs, targets (0 where there is none), one byte a position that says
//! whether it is scored, and the length, all little-endian. The SHA-256 of the same bytes is the example's digest in its
//! span. Numbers are compared by their bits: two that differ in the last one are two datasets.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt16Type};
use arrow_array::{Array, FixedSizeListArray, Float32Array, RecordBatch, UInt16Array};
use arrow_buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, SchemaRef};

use crate::arrow_file::{self, ArrowFile, RowStarts, Unpacked};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::merkle::{self, Leaves};
use crate::rows_writer::{BATCH_ROWS, RowBatch, RowLeaves, RowsWriter};

/// The most numbers of a position.
pub const MAX_WIDTH: u32 = 1 << 12;

fn item(nullable: bool) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, nullable))
}

/// How many positions a row has, and how many numbers a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorShape {
    /// Positions of a row.
    pub row_length: u16,
    /// Numbers of a position that go in, at most [`MAX_WIDTH`].
    pub width: u32,
}

impl VectorShape {
    /// Numbers of a row that go in.
    #[must_use]
    pub fn inputs(self) -> usize {
        usize::from(self.row_length) * self.width as usize
    }

    fn lists(self) -> [i32; 2] {
        // At most 2^16 · 2^12.
        [i32::from(self.row_length) * self.width.min(MAX_WIDTH) as i32, i32::from(self.row_length)]
    }
}

/// The schema of a shard of such examples.
#[must_use]
pub fn schema(shape: VectorShape) -> SchemaRef {
    let [inputs, targets] = shape.lists();
    let fields = vec![
        Field::new("inputs", DataType::FixedSizeList(item(false), inputs), false),
        Field::new("targets", DataType::FixedSizeList(item(true), targets), false),
        Field::new("length", DataType::UInt16, false),
    ];
    arrow_file::schema("vectors", fields)
}

/// One example, as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorExample<'a> {
    /// Numbers that go in, position by position.
    pub inputs: &'a [f32],
    /// One entry a position; `None` is not scored.
    pub targets: &'a [Option<f32>],
    /// Positions that count.
    pub length: u16,
}

impl VectorExample<'_> {
    /// What is wrong with this example as a row of `shape`: what was expected, and what was found.
    #[must_use]
    pub fn complaint(&self, shape: VectorShape) -> Option<(String, String)> {
        let VectorShape { row_length, width } = shape;
        if self.inputs.len() != shape.inputs() || self.targets.len() != usize::from(row_length) {
            let found = format!("{} and {}", self.inputs.len(), self.targets.len());
            return Some((format!("{row_length} × {width} inputs and {row_length} targets"), found));
        }
        if self.length == 0 || self.length > row_length {
            return Some((format!("a length from 1 to {row_length}"), self.length.to_string()));
        }
        let numbers = self.inputs.iter().chain(self.targets.iter().flatten());
        if let Some(number) = numbers.copied().find(|number| !number.is_finite()) {
            return Some(("finite numbers".into(), number.to_string()));
        }
        match self.targets.iter().rposition(Option::is_some) {
            None => Some(("at least one target".into(), "none".into())),
            Some(last) if last >= usize::from(self.length) => Some((
                format!("no target from position {} on, where the padding begins", self.length),
                format!("one at position {last}"),
            )),
            Some(_) => None,
        }
    }

    /// Appends the bytes that its leaf and its digest are over.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self.inputs, self.targets.iter().copied(), self.length, out);
    }
}

/// Appends the bytes that stand for an example: see the module.
pub fn encode(
    inputs: &[f32],
    targets: impl Iterator<Item = Option<f32>> + Clone,
    length: u16,
    out: &mut Vec<u8>,
) {
    out.extend(inputs.iter().flat_map(|number| number.to_le_bytes()));
    out.extend(targets.clone().flat_map(|target| target.unwrap_or(0.0).to_le_bytes()));
    out.extend(targets.map(|target| u8::from(target.is_some())));
    out.extend(length.to_le_bytes());
}

/// Examples that are written together.
#[derive(Debug)]
pub struct VectorBatch {
    shape: VectorShape,
    inputs: Vec<f32>,
    targets: Vec<Option<f32>>,
    lengths: Vec<u16>,
    /// [`encode`] of all examples, one after the other.
    bytes: Vec<u8>,
}

impl VectorBatch {
    /// Bytes of [`encode`].
    fn stride(shape: VectorShape) -> usize {
        4 * shape.inputs() + 5 * usize::from(shape.row_length) + size_of::<u16>()
    }

    fn encoded(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(Self::stride(self.shape))
    }

    /// The SHA-256 of what stands for each, in their order: faster than one by one.
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

impl RowBatch for VectorBatch {
    type Shape = VectorShape;
    type Row<'a> = VectorExample<'a>;

    fn schema(shape: Self::Shape) -> SchemaRef {
        schema(shape)
    }

    fn new(shape: Self::Shape) -> Self {
        Self {
            shape,
            inputs: Vec::with_capacity(BATCH_ROWS * shape.inputs()),
            targets: Vec::with_capacity(BATCH_ROWS * usize::from(shape.row_length)),
            lengths: Vec::with_capacity(BATCH_ROWS),
            bytes: Vec::with_capacity(BATCH_ROWS * Self::stride(shape)),
        }
    }

    fn push(&mut self, example: &VectorExample<'_>) -> Result<()> {
        let [inputs, targets] = [example.inputs.len(), example.targets.len()];
        if inputs != self.shape.inputs() || targets != usize::from(self.shape.row_length) {
            let found = format!("an example of {inputs} numbers and {targets} targets for {:?}", self.shape);
            return Err(Error::Internal(found));
        }
        self.inputs.extend_from_slice(example.inputs);
        self.targets.extend_from_slice(example.targets);
        self.lengths.push(example.length);
        example.encode(&mut self.bytes);
        Ok(())
    }

    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn into_record_batch(self) -> Result<(RecordBatch, RowLeaves)> {
        let stride = Self::stride(self.shape);
        let leaves = Leaves::new(Buffer::from_vec(self.bytes), stride, vec![stride; self.lengths.len()]);
        let list = |values: Float32Array, nullable, length| {
            let list = FixedSizeListArray::try_new(item(nullable), length, Arc::new(values), None);
            list.map_err(Error::internal)
        };
        let [inputs, targets] = self.shape.lists();
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(list(Float32Array::from(self.inputs), false, inputs)?),
            Arc::new(list(self.targets.into_iter().collect(), true, targets)?),
            Arc::new(UInt16Array::from(self.lengths)),
        ];
        let batch = RecordBatch::try_new(schema(self.shape), columns).map_err(Error::internal)?;
        Ok((batch, RowLeaves(leaves)))
    }
}

/// Writes the examples of one shard.
pub type VectorsWriter = RowsWriter<VectorBatch>;

/// A batch of a mapped shard.
#[derive(Debug)]
struct Batch {
    inputs: ScalarBuffer<f32>,
    targets: ScalarBuffer<f32>,
    /// Which targets there are; none: all.
    scored: Option<NullBuffer>,
    lengths: ScalarBuffer<u16>,
}

/// A mapped shard of such examples.
#[derive(Debug)]
pub struct VectorShard {
    shape: VectorShape,
    starts: RowStarts,
    batches: Vec<Batch>,
    _unpacked: Unpacked,
}

/// An example of a mapped shard.
#[derive(Debug, Clone, Copy)]
pub struct VectorRow<'a> {
    /// Numbers that go in, position by position.
    pub inputs: &'a [f32],
    targets: &'a [f32],
    scored: Option<&'a NullBuffer>,
    /// Its first position in its batch.
    start: usize,
    /// Positions that count.
    pub length: u16,
}

impl<'a> VectorRow<'a> {
    /// The numbers that are to come out, position by position; `None` where nothing is scored.
    pub fn targets(&self) -> impl Iterator<Item = Option<f32>> + Clone + use<'a> {
        let Self { targets, scored, start, .. } = *self;
        let is_scored = move |at: usize| scored.is_none_or(|scored| scored.is_valid(start + at));
        targets.iter().enumerate().map(move |(at, &target)| is_scored(at).then_some(target))
    }

    /// Appends the bytes that its leaf and its digest are over.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self.inputs, self.targets(), self.length, out);
    }

    /// As [`VectorExample::complaint`].
    #[must_use]
    pub fn complaint(&self, shape: VectorShape) -> Option<(String, String)> {
        let targets: Vec<_> = self.targets().collect();
        VectorExample { inputs: self.inputs, targets: &targets, length: self.length }.complaint(shape)
    }
}

impl VectorShard {
    /// Maps the shard at `path` and checks that it holds `rows` examples of this shape.
    ///
    /// # Errors
    /// When the file is not such a shard.
    pub fn open(path: &Path, shape: VectorShape, rows: u64) -> Result<Self> {
        let file = ArrowFile::open_counted(path, &[schema(shape)], rows, "examples")?;
        let mut batches = Vec::with_capacity(file.batches.len());
        for batch in &file.batches {
            let list = |column: usize| batch.column(column).as_fixed_size_list().values().clone();
            let (inputs, targets) = (list(0), list(1));
            let (inputs, targets) =
                (inputs.as_primitive::<Float32Type>(), targets.as_primitive::<Float32Type>());
            let lengths = batch.column(2).as_primitive::<UInt16Type>().values().clone();
            let expected = [shape.inputs(), usize::from(shape.row_length)].map(|long| lengths.len() * long);
            if [inputs.len(), targets.len()] != expected {
                let expected = "row_length · input_width inputs and row_length targets in each row";
                return Err(Error::damaged(path, expected, "another number"));
            }
            batches.push(Batch {
                inputs: inputs.values().clone(),
                targets: targets.values().clone(),
                scored: targets.nulls().cloned(),
                lengths,
            });
        }
        let starts = RowStarts::new(batches.iter().map(|batch| batch.lengths.len()));
        Ok(Self { shape, starts, batches, _unpacked: file.unpacked })
    }

    /// Number of examples.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.total()
    }

    /// Example `index`, counted from the start of this shard; `None` past the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<VectorRow<'_>> {
        let (batch, within) = self.starts.locate(index)?;
        let batch = &self.batches[batch];
        let (inputs, positions) = (self.shape.inputs(), usize::from(self.shape.row_length));
        let start = within * positions;
        Some(VectorRow {
            start,
            inputs: &batch.inputs[within * inputs..(within + 1) * inputs],
            targets: &batch.targets[start..start + positions],
            scored: batch.scored.as_ref(),
            length: batch.lengths[within],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: VectorShape = VectorShape { row_length: 5, width: 3 };

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![-2.0f32..2.0, Just(-0.0), Just(f32::MIN_POSITIVE / 2.0), Just(f32::MAX)]
    }

    fn example() -> impl Strategy<Value = (Vec<f32>, Vec<Option<f32>>, u16)> {
        (
            prop::collection::vec(number(), SHAPE.inputs()),
            prop::collection::vec(prop::option::of(number()), usize::from(SHAPE.row_length)),
            1..=SHAPE.row_length,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// What was written is read, to the last bit, over several batches.
        #[test]
        fn numbers_come_back(examples in prop::collection::vec(example(), 0..(BATCH_ROWS + 9))) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("shard.arrow");
            let mut writer = VectorsWriter::create(&path, SHAPE).unwrap();
            let bytes = |(inputs, targets, length): &(Vec<f32>, Vec<Option<f32>>, u16)| {
                let mut bytes = Vec::new();
                VectorExample { inputs, targets, length: *length }.encode(&mut bytes);
                bytes
            };
            for (inputs, targets, length) in &examples {
                writer.push(&VectorExample { inputs, targets, length: *length }).unwrap();
            }
            writer.end().unwrap();
            let expected: Vec<_> = examples.iter().map(|one| merkle::leaf(&[&bytes(one)])).collect();
            prop_assert_eq!(writer.take_leaves(), expected);
            writer.finish().unwrap();
            let shard = VectorShard::open(&path, SHAPE, examples.len() as u64).unwrap();
            for (index, example) in examples.iter().enumerate() {
                let mut found = Vec::new();
                shard.row(index).unwrap().encode(&mut found);
                prop_assert_eq!(found, bytes(example));
            }
            prop_assert!(shard.row(examples.len()).is_none());
            let other = VectorShape { width: 2, ..SHAPE };
            prop_assert!(VectorShard::open(&path, other, examples.len() as u64).is_err());
        }
    }

    #[test]
    fn what_is_wrong_with_an_example_is_said() {
        let shape = VectorShape { row_length: 2, width: 2 };
        let found = |inputs: &[f32], targets: &[Option<f32>], length| {
            VectorExample { inputs, targets, length }
                .complaint(shape)
                .map(|(expected, found)| format!("{expected}: {found}"))
        };
        let numbers = [0.5, 1.0, -0.5, 0.0];
        assert_eq!(found(&numbers, &[None, Some(0.5)], 2), None);
        let nan = [0.5, f32::NAN, -0.5, 0.0];
        for (inputs, targets, length, said) in [
            (&numbers[..3], [None, Some(0.5)], 2, "2 × 2 inputs and 2 targets: 3 and 2"),
            (&numbers, [None, Some(0.5)], 3, "a length from 1 to 2: 3"),
            (&numbers, [None, Some(0.5)], 0, "a length from 1 to 2: 0"),
            (&nan, [None, Some(0.5)], 2, "finite numbers: NaN"),
            (&numbers, [None, Some(f32::INFINITY)], 2, "finite numbers: inf"),
            (&numbers, [None, None], 2, "at least one target: none"),
            (
                &numbers,
                [None, Some(0.5)],
                1,
                "no target from position 1 on, where the padding begins: one at position 1",
            ),
        ] {
            assert_eq!(found(inputs, &targets, length).as_deref(), Some(said));
        }
    }
}
