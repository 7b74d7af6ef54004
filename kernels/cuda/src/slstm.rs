//! How the bf16 sLSTM kernels are called: parameters, memory and the group of blocks that is fastest for a head and a batch.
//!
//! One launch for a whole sequence and each direction where the blocks of a head are a cluster; elsewhere as many heads and
//! batch tiles at a time as the GPU can run at once. The kernels read and write contiguous tensors: `x_BTGHE` and its
//! gradient (gates in the order input, forget, z, output), R as `(H, G, E out, E in)`, `y_BTHE`, all bf16; between the
//! passes they keep five bf16 and two fp32 a unit and step. The gradient of R is a matrix product of the gradient of
//! `x_BTGHE` with y of the step before, which libtorch does best.

use crate::driver::LaunchShape;
use crate::{Architecture, SlstmSizes, Source, Specialization};

/// Rows of the batch that one fragment holds.
const ROWS: u32 = 16;

/// Device addresses of an sLSTM call; 0 where a pass does not use one.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlstmTensors {
    /// `x_BTGHE`, the input with its bias, bf16.
    pub input: u64,
    /// R, `(H, G, E out, E in)`, bf16.
    pub recurrent: u64,
    /// `y_BTHE`, bf16.
    pub output: u64,
    /// i', f', tanh z, σ(o), σ(−f): `(B, T, H, 5, E)`, bf16. 0 in a forward pass that no backward pass follows.
    pub gates: u64,
    /// c and n: `(B, T, H, 2, E)`, fp32. 0 as above.
    pub states: u64,
    /// Gradient of y.
    pub output_gradient: u64,
    /// Gradient of x.
    pub input_gradient: u64,
    /// Steps before which everything is forgotten: `(B, T)`, bytes. 0 for none.
    pub resets: u64,
    /// h, c, n, m before the first step: `(4, B, H, E)`, fp32. 0 for zeros.
    pub state: u64,
    /// The same after the last step. 0 where it is not wanted.
    pub last: u64,
    /// Where groups are not clusters, [`SlstmPlan::exchange_bytes`] of memory.
    pub messages: u64,
    /// Where groups are not clusters, [`SlstmPlan::groups`] 32-bit zeros.
    pub sent: u64,
}

/// `SlstmParameters` of `slstm.cu`, field by field.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SlstmParameters {
    batch: i32,
    tokens: i32,
    heads: i32,
    first_group: i32,
    input: u64,
    recurrent: u64,
    output: u64,
    gates: u64,
    states: u64,
    output_gradient: u64,
    input_gradient: u64,
    resets: u64,
    state: u64,
    last: u64,
    messages: u64,
    sent: u64,
}

/// Which way through the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// First step to last.
    Forward,
    /// Last step to first.
    Backward,
}

impl SlstmSizes {
    /// The fastest of those measured on an H100 (docs/benchmarks/gpu/kernels/slstm-bench.jsonl), each at a batch of 16, 64 and
    /// 256. Few sequences want many blocks a head (latency), many sequences few (they wait for free multiprocessors).
    /// `None` for a head that the kernels have no split for.
    #[must_use]
    pub fn fastest(architecture: Architecture, units: u32, batch: u32, direction: Direction) -> Option<Self> {
        // Of clusters of 12 and 16 blocks few run at once; above what they take, the way of GPUs without them is faster.
        let crowded = (units == 384 && (17..=32).contains(&batch)) || (units == 512 && batch > 16);
        if !architecture.has_large_clusters() || units > 512 || crowded {
            return Self::fastest_spread(architecture, units, batch, direction);
        }
        let size = match batch {
            0..=32 => 0,
            33..=128 => 1,
            _ => 2,
        };
        let choices: [(u32, u32, u32); 3] = match (units, direction) {
            (192, Direction::Forward) => [(6, 1, 1), (6, 1, 1), (3, 1, 2)],
            (192, Direction::Backward) => [(6, 2, 1), (6, 2, 1), (3, 1, 2)],
            (256, Direction::Forward) => [(8, 1, 1), (8, 2, 1), (8, 1, 1)],
            (256, Direction::Backward) => [(8, 2, 1), (8, 1, 1), (4, 1, 1)],
            (384, Direction::Forward) => [(12, 1, 1); 3],
            (384, Direction::Backward) => [(12, 2, 1), (6, 2, 1), (6, 2, 1)],
            (512, _) => [(16, 2, 1); 3],
            _ => return None,
        };
        let (group, split, batch_tiles) = choices[size];
        Some(Self { units, group, split, batch_tiles, clustered: true })
    }

    /// Through device memory. Sixteen rows a block are the fastest as long as all groups of four heads run at once on about 130
    /// multiprocessors, then 32 where a block has the memory (docs/benchmarks/gpu/kernels/slstm-spread.jsonl).
    fn fastest_spread(
        architecture: Architecture,
        units: u32,
        batch: u32,
        direction: Direction,
    ) -> Option<Self> {
        let at_once = match units {
            192 | 256 => 64,
            384 | 512 => 32,
            640 => 16,
            _ => return None,
        };
        let one = Self { units, group: units / 32, split: 2, batch_tiles: 1, clustered: false };
        let two = Self { batch_tiles: 2, ..one };
        let most = (architecture.shared_kibibytes() - 1) * 1024;
        Some(if batch > at_once && two.shared_bytes(direction) <= most { two } else { one })
    }

    /// Bytes of one message of a group: `row` of each row from every block.
    fn message_bytes(self, row: u32) -> u32 {
        self.group * ROWS * self.batch_tiles * row
    }

    /// Dynamic shared memory of a block, and in the forward pass the static one beside it.
    fn shared_bytes(self, direction: Direction) -> u32 {
        let Self { units, group, split, batch_tiles, .. } = self;
        let swap = if split > 1 { units / group / 8 * split * batch_tiles * 1024 } else { 0 };
        self.dynamic_bytes(direction) + if direction == Direction::Forward { swap } else { 0 }
    }

    fn dynamic_bytes(self, direction: Direction) -> u32 {
        let Self { units, group, split, batch_tiles, clustered } = self;
        let (own, rows) = (units / group, ROWS * batch_tiles);
        // A receive buffer of a block from each of the group; clusters have two, two blocks to send from, two barriers.
        let exchange = |row: u32| {
            if clustered {
                2 * self.message_bytes(row) + 2 * rows * row + 16
            } else {
                self.message_bytes(row)
            }
        };
        match direction {
            Direction::Forward => exchange(2 * own),
            Direction::Backward => {
                let padding = if units > 512 { 4 } else { 8 };
                exchange(8 * own) + 4 * split * rows * (own + padding) * 4
            }
        }
    }
}

/// One pass over a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlstmPlan {
    /// Head size and how it is spread; forward and backward may differ.
    pub sizes: SlstmSizes,
    /// What is compiled for.
    pub architecture: Architecture,
    /// Sequences.
    pub batch: u32,
    /// Steps, at least 1.
    pub tokens: u32,
    /// Heads.
    pub heads: u32,
}

impl SlstmPlan {
    /// What to compile.
    #[must_use]
    pub fn specialization(&self) -> Specialization {
        Specialization::slstm(self.architecture, self.sizes)
    }

    /// The source of both kernels.
    pub const SOURCE: Source = Source::Slstm;

    /// Heads of batch tiles.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.heads * self.batch.div_ceil(ROWS * self.sizes.batch_tiles)
    }

    /// Bytes of [`SlstmTensors::messages`]: two messages of each group, the larger ones of the backward pass. 0 for clusters.
    #[must_use]
    pub fn exchange_bytes(&self) -> u64 {
        let own = self.sizes.units / self.sizes.group;
        if self.sizes.clustered {
            0
        } else {
            2 * u64::from(self.sizes.message_bytes(8 * own)) * u64::from(self.groups())
        }
    }

    /// Name and launches of a direction's kernel on a GPU of so many multiprocessors, each with its first group. A cluster's
    /// size is part of the compiled kernel. Where groups are not clusters, launches are cooperative.
    #[must_use]
    pub fn launches(
        &self,
        direction: Direction,
        multiprocessors: u32,
    ) -> (&'static str, Vec<(u32, LaunchShape)>) {
        let SlstmSizes { group, clustered, batch_tiles, .. } = self.sizes;
        let (name, threads, shared_bytes) = self.block(direction);
        if clustered {
            let grid = [group, self.heads, self.batch.div_ceil(ROWS * batch_tiles)];
            return (name, vec![(0, LaunchShape { grid, threads, shared_bytes })]);
        }
        let (groups, at_once) = (self.groups(), (multiprocessors / group).max(1));
        let starts = (0..groups).step_by(at_once as usize);
        let launches = starts.map(|first| {
            let grid = [group, at_once.min(groups - first), 1];
            (first, LaunchShape { grid, threads, shared_bytes })
        });
        (name, launches.collect())
    }

    /// Name, threads and shared memory of a block.
    fn block(&self, direction: Direction) -> (&'static str, u32, u32) {
        let SlstmSizes { units, group, split, .. } = self.sizes;
        let (own, bytes) = (units / group, self.sizes.dynamic_bytes(direction));
        match direction {
            Direction::Forward => ("slstm_forward", own / 8 * split * 32, bytes),
            Direction::Backward => ("slstm_backward", own / 32 * 4 * split * 32, bytes),
        }
    }

    /// Bytes of [`SlstmTensors::gates`] and [`SlstmTensors::states`].
    #[must_use]
    pub fn saved_bytes(&self) -> (u64, u64) {
        let steps = [self.batch, self.tokens, self.heads, self.sizes.units]
            .into_iter()
            .map(u64::from)
            .product::<u64>();
        (steps * 5 * 2, steps * 2 * 4)
    }

    /// The parameters of the launch that begins with this group.
    #[must_use]
    pub fn parameters(&self, tensors: &SlstmTensors, first_group: u32) -> SlstmParameters {
        let count = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        SlstmParameters {
            batch: count(self.batch),
            tokens: count(self.tokens),
            heads: count(self.heads),
            first_group: count(first_group),
            input: tensors.input,
            recurrent: tensors.recurrent,
            output: tensors.output,
            gates: tensors.gates,
            states: tensors.states,
            output_gradient: tensors.output_gradient,
            input_gradient: tensors.input_gradient,
            resets: tensors.resets,
            state: tensors.state,
            last: tensors.last,
            messages: tensors.messages,
            sent: tensors.sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_fits_a_multiprocessor_and_is_compiled_by_the_test_of_all() {
        let compiled = crate::paper_specializations(true);
        for (architecture, units, batch) in Architecture::NATIVE.into_iter().flat_map(|architecture| {
            [192, 256, 384, 512, 640]
                .into_iter()
                .flat_map(move |units| [1, 16, 64, 256].map(|batch| (architecture, units, batch)))
        }) {
            for direction in [Direction::Forward, Direction::Backward] {
                let sizes =
                    SlstmSizes::fastest(architecture, units, batch, direction).expect("a size of the paper");
                let plan = SlstmPlan { sizes, architecture, batch, tokens: 10, heads: 4 };
                let (name, launches) = plan.launches(direction, 84);
                assert!(SlstmPlan::SOURCE.kernels().contains(&name));
                let mut next = 0;
                for (first, shape) in launches {
                    // Of a multiprocessor's memory a block has one KiB less.
                    let (bytes, most) =
                        (sizes.shared_bytes(direction), (architecture.shared_kibibytes() - 1) * 1024);
                    assert!(
                        shape.shared_bytes <= bytes && bytes <= most,
                        "{architecture} {sizes:?} {shape:?}"
                    );
                    assert!(shape.threads <= 1024, "{architecture} {sizes:?} {shape:?}");
                    if !sizes.clustered {
                        assert_eq!((first, shape.grid[0]), (next, units / 32));
                        assert!(shape.grid[0] * shape.grid[1] <= 84, "all blocks at once");
                        next += shape.grid[1];
                    }
                }
                assert!(sizes.clustered || next == plan.groups());
                assert!([32, 64].contains(&(units / sizes.group)), "{sizes:?}");
                assert!(compiled.contains(&plan.specialization()), "{architecture} {sizes:?}");
            }
        }
        assert_eq!(SlstmSizes::fastest(Architecture::Sm90a, 100, 16, Direction::Forward), None);
        assert_eq!(SlstmSizes::fastest(Architecture::Sm80, 100, 16, Direction::Forward), None);
    }

    #[test]
    fn parameters_lie_as_the_source_lays_them() {
        assert_eq!(std::mem::offset_of!(SlstmParameters, input), 16);
        assert_eq!(size_of::<SlstmParameters>(), 16 + 12 * 8);
    }
}
