//! What a recorded step reads anew each time, as one tensor.
//!
//! ```text
//! header   4             [count, step] [learning rate, 0] [place in the ring] [0]     float32 in pairs, Int64
//! keys     B, or 0       bits of the keys of dropout
//! inputs   B · T         ids; of a split of numbers B · T · width / 2: float32 in pairs
//! targets  B · T         ids; of a split of numbers B · T / 2
//! ```
//! Sizes are in Int64, and each part is filled up to an even number of them: tensors begin at 16 bytes, as those of launched steps do,
//! since libtorch chooses its kernels by that too.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::memory::upload;

use super::Launched;
use crate::error::Result;
use crate::loader::MicroBatch;

/// Numbers before the keys.
const HEADER: usize = 4;

/// The size of a batch, which a recording has only one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    sequences: usize,
    context: usize,
    /// Of a split of numbers, those of a position; else 0.
    width: usize,
    has_resets: bool,
    has_keys: bool,
}

impl Size {
    /// That of a batch, with or without keys of dropout.
    pub(super) fn of(batch: &MicroBatch, has_keys: bool) -> Self {
        let (positions, context) = (batch.positions(), batch.context);
        let width = if batch.is_of_numbers() { batch.numbers.inputs.len() / positions.max(1) } else { 0 };
        Self { sequences: batch.sequences(), context, width, has_resets: !batch.resets.is_empty(), has_keys }
    }

    fn positions(self) -> usize {
        self.sequences * self.context
    }

    /// Numbers of 64 bits that keys, inputs and targets take, with what fills them up.
    fn parts(self) -> [usize; 3] {
        let keys = if self.has_keys { self.sequences } else { 0 };
        let [inputs, targets] = match self.width {
            0 => [self.positions(), self.positions()],
            width => [(self.positions() * width).div_ceil(2), self.positions().div_ceil(2)],
        };
        [keys, inputs, targets].map(|numbers| numbers.next_multiple_of(2))
    }
}

/// The tensors, on the GPU and to be copied there.
#[derive(Debug)]
pub(super) struct Packed {
    size: Size,
    packed: Tensor,
    resets: Option<Tensor>,
    /// What is copied to `packed` next.
    staged: Vec<i64>,
}

/// Views of the packed tensor, by what they are.
#[derive(Debug)]
pub(super) struct Views {
    /// Scalars, float32: targets that count, the update's number, the learning rate.
    pub(super) counted: Tensor,
    pub(super) step: Tensor,
    pub(super) learning_rate: Tensor,
    /// `(1)`, Int64: where loss and norm go.
    pub(super) place: Tensor,
    /// `(B)`, Int64.
    pub(super) keys: Option<Tensor>,
    /// As [`MicroBatch::tensors`] has them.
    pub(super) inputs: Tensor,
    pub(super) targets: Tensor,
    pub(super) resets: Option<Tensor>,
}

fn long(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Two numbers of 32 bits as one of 64.
fn pair(low: f32, high: f32) -> i64 {
    i64::from_ne_bytes((u64::from(low.to_bits()) | (u64::from(high.to_bits()) << 32)).to_ne_bytes())
}

/// Numbers in pairs, the last one with a zero where it is alone.
fn pairs(numbers: &[f32]) -> impl Iterator<Item = i64> {
    numbers.chunks(2).map(|two| pair(two[0], two.get(1).copied().unwrap_or(0.0)))
}

impl Packed {
    /// Room for batches of this size.
    pub(super) fn new(size: Size, device: Device) -> Result<Self> {
        let all = HEADER + size.parts().iter().sum::<usize>();
        let packed = Tensor::f_zeros([long(all)], (Kind::Int64, device))?;
        let shape = [long(size.sequences), long(size.context)];
        let resets = if size.has_resets { Some(Tensor::f_zeros(shape, (Kind::Bool, device))?) } else { None };
        Ok(Self { size, packed, resets, staged: Vec::new() })
    }

    /// Whether it has room for batches of this size.
    pub(super) fn takes(&self, size: Size) -> bool {
        self.size == size
    }

    /// What the recording reads.
    pub(super) fn views(&self) -> Result<Views> {
        let scalars = self.packed.f_narrow(0, 0, 2)?.f_view_dtype(Kind::Float)?;
        let [keys, inputs, targets] = self.size.parts();
        let part = |from: usize, count: usize| self.packed.f_narrow(0, long(from), long(count));
        let (sequences, context) = (long(self.size.sequences), long(self.size.context));
        let first = |part: &Tensor, shape: &[i64]| {
            let count = shape.iter().product();
            part.f_narrow(0, 0, count)?.f_view(shape)
        };
        let numbers = |part: &Tensor, shape: &[i64]| first(&part.f_view_dtype(Kind::Float)?, shape);
        let (inputs, targets) = (part(HEADER + keys, inputs)?, part(HEADER + keys + inputs, targets)?);
        let (inputs, targets) = match self.size.width {
            0 => (first(&inputs, &[sequences, context])?, first(&targets, &[sequences, context])?),
            width => (
                numbers(&inputs, &[sequences, context, long(width)])?,
                numbers(&targets, &[sequences, context])?,
            ),
        };
        Ok(Views {
            counted: scalars.f_select(0, 0)?,
            step: scalars.f_select(0, 1)?,
            learning_rate: scalars.f_select(0, 2)?,
            place: part(2, 1)?,
            keys: if self.size.has_keys { Some(part(HEADER, self.size.sequences)?) } else { None },
            inputs,
            targets,
            resets: self.resets.as_ref().map(Tensor::shallow_clone),
        })
    }

    /// Copies a batch of its size, its keys, and the update's numbers to the GPU; nothing waits.
    pub(super) fn fill(
        &mut self,
        batch: &MicroBatch,
        keys: &[u64],
        launched: Launched,
        place: usize,
    ) -> Result<()> {
        self.stage(batch, keys, launched, place);
        upload(&self.packed, &Tensor::f_from_slice(&self.staged)?)?;
        if let Some(resets) = &self.resets {
            upload(resets, &Tensor::f_from_slice(&batch.resets)?.f_view_as(resets)?)?;
        }
        Ok(())
    }

    fn stage(&mut self, batch: &MicroBatch, keys: &[u64], launched: Launched, place: usize) {
        self.staged.clear();
        self.staged.extend([
            pair(batch.tokens.max(1) as f32, launched.update as f32),
            pair(launched.learning_rate as f32, 0.0),
            long(place),
            0,
        ]);
        let [keys_end, inputs_end, targets_end] = {
            let [keys, inputs, targets] = self.size.parts();
            [HEADER + keys, HEADER + keys + inputs, HEADER + keys + inputs + targets]
        };
        self.staged.extend(keys.iter().map(|key| key.cast_signed()));
        self.staged.resize(keys_end, 0);
        if self.size.width > 0 {
            self.staged.extend(pairs(&batch.numbers.inputs));
            self.staged.resize(inputs_end, 0);
            self.staged.extend(pairs(&batch.numbers.targets));
        } else {
            self.staged.extend(&batch.inputs);
            self.staged.resize(inputs_end, 0);
            self.staged.extend(&batch.targets);
        }
        self.staged.resize(targets_end, 0);
    }
}

#[cfg(test)]
mod tests {
    use xlstm_manifests::order::StepRow;
    use xlstm_manifests::rows::Numbers;

    use super::*;

    fn launched() -> Launched {
        Launched { step: 7, update: 9, learning_rate: 0.25, tokens: 0 }
    }

    fn rows(count: u64) -> Vec<StepRow> {
        (0..count).map(|row| StepRow { epoch: 0, row }).collect()
    }

    #[test]
    fn what_is_packed_is_what_is_read() {
        let ids = MicroBatch {
            rows: rows(2),
            context: 3,
            inputs: (0..6).collect(),
            targets: (10..16).collect(),
            resets: vec![true, false, false, true, true, false],
            tokens: 5,
            ..MicroBatch::default()
        };
        // An odd number of numbers.
        let numbers =
            Numbers { inputs: (0..9).map(|n| n as f32).collect(), targets: vec![1.5, f32::NAN, 2.5] };
        let numbers = MicroBatch { rows: rows(1), context: 3, numbers, tokens: 2, ..MicroBatch::default() };
        for (batch, keys) in
            [(&ids, vec![]), (&ids, vec![1, u64::MAX]), (&numbers, vec![4]), (&numbers, vec![])]
        {
            let size = Size::of(batch, !keys.is_empty());
            let mut packed = Packed::new(size, Device::Cpu).unwrap();
            let views = packed.views().unwrap();
            packed.stage(batch, &keys, launched(), 6);
            packed.packed.copy_(&Tensor::from_slice(&packed.staged));
            let (inputs, targets, _) = batch.tensors(Device::Cpu).unwrap();
            let same = |found: &Tensor, expected: &Tensor| {
                assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
                assert!(found.nan_to_num(-1.0, None, None).equal(&expected.nan_to_num(-1.0, None, None)));
            };
            same(&views.inputs, &inputs);
            same(&views.targets, &targets);
            assert_eq!(views.resets.is_some(), !batch.resets.is_empty());
            let found = views.keys.map(|keys| Vec::<i64>::try_from(keys).unwrap());
            let expected: Vec<i64> = keys.iter().map(|key| key.cast_signed()).collect();
            assert_eq!(found.unwrap_or_default(), expected);
            let scalars = [&views.counted, &views.step, &views.learning_rate].map(|x| x.double_value(&[]));
            assert_eq!(scalars, [batch.tokens as f64, 9.0, 0.25]);
            assert_eq!(views.place.int64_value(&[0]), 6);
        }
        assert_ne!(Size::of(&ids, false), Size::of(&ids, true));
    }
}
