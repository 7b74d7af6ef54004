//! How the sLSTM kernels are called: parameters, memory and the cluster that is fastest for a head and a batch.
//!
//! One launch for a whole sequence and each direction. The kernels read and write contiguous tensors: `x_BTGHE` and its
//! gradient (gates in the order input, forget, z, output), R as `(H, G, E out, E in)`, `y_BTHE`, all bf16; between the
//! passes they keep five bf16 and two fp32 a unit and step. The gradient of R is a matrix product of the gradient of
//! `x_BTGHE` with y of the step before, which libtorch does best.

use crate::driver::Shape;
use crate::{Architecture, SlstmSizes, Source, Specialisation};

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
}

/// `SlstmParameters` of `slstm.cu`, field by field.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SlstmParameters {
    batch: i32,
    tokens: i32,
    heads: i32,
    input: u64,
    recurrent: u64,
    output: u64,
    gates: u64,
    states: u64,
    output_gradient: u64,
    input_gradient: u64,
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
    /// The fastest of those measured on an H100 (docs/benchmarks/cuda-slstm-bench.jsonl), each at a batch of 16, 64 and
    /// 256. Few sequences want many blocks a head (latency), many sequences few (they wait for free multiprocessors).
    /// `None` for a head that the kernels have no split for.
    #[must_use]
    pub fn fastest(units: u32, batch: u32, direction: Direction) -> Option<Self> {
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
            (512, Direction::Forward) => [(16, 2, 1), (16, 2, 1), (16, 2, 2)],
            (512, Direction::Backward) => [(16, 2, 1); 3],
            _ => return None,
        };
        let (cluster, split, batch_tiles) = choices[size];
        Some(Self { units, cluster, split, batch_tiles })
    }
}

/// One pass over a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlstmPlan {
    /// Head size and how it is spread; forward and backward may differ.
    pub sizes: SlstmSizes,
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
    pub fn specialisation(&self) -> Specialisation {
        Specialisation::slstm(self.sizes)
    }

    /// The architecture that has clusters.
    pub const ARCHITECTURE: Architecture = Architecture::Sm90a;

    /// The source of both kernels.
    pub const SOURCE: Source = Source::Slstm;

    /// Name and launch of a direction's kernel. The cluster's size is part of the compiled kernel.
    #[must_use]
    pub fn launch(&self, direction: Direction) -> (&'static str, Shape) {
        let SlstmSizes { units, cluster, split, batch_tiles } = self.sizes;
        let (own, rows) = (units / cluster, ROWS * batch_tiles);
        // Two receive buffers of a block from each of the cluster, two blocks to send from, two barriers.
        let exchange = |row_bytes: u32| (2 * cluster + 2) * rows * row_bytes + 16;
        let grid = [cluster, self.heads, self.batch.div_ceil(rows)];
        match direction {
            Direction::Forward => {
                let shape = Shape { grid, threads: own / 8 * split * 32, shared_bytes: exchange(2 * own) };
                ("slstm_forward", shape)
            }
            Direction::Backward => {
                let parts = 4 * split;
                let partial_sums = parts * rows * (own + 8) * 4;
                let threads = own / 32 * parts * 32;
                ("slstm_backward", Shape { grid, threads, shared_bytes: exchange(8 * own) + partial_sums })
            }
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

    /// The kernels' parameters.
    #[must_use]
    pub fn parameters(&self, tensors: &SlstmTensors) -> SlstmParameters {
        let count = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        SlstmParameters {
            batch: count(self.batch),
            tokens: count(self.tokens),
            heads: count(self.heads),
            input: tensors.input,
            recurrent: tensors.recurrent,
            output: tensors.output,
            gates: tensors.gates,
            states: tensors.states,
            output_gradient: tensors.output_gradient,
            input_gradient: tensors.input_gradient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_fits_a_multiprocessor_and_is_compiled_by_the_test_of_all() {
        let compiled = crate::paper_specialisations(false);
        for units in [192, 256, 384, 512] {
            for batch in [1, 16, 64, 256] {
                for direction in [Direction::Forward, Direction::Backward] {
                    let sizes = SlstmSizes::fastest(units, batch, direction).expect("a size of the paper");
                    let plan = SlstmPlan { sizes, batch, tokens: 10, heads: 4 };
                    let (name, shape) = plan.launch(direction);
                    assert!(SlstmPlan::SOURCE.kernels().contains(&name));
                    assert!(shape.shared_bytes <= 227 * 1024 && shape.threads <= 1024, "{sizes:?} {shape:?}");
                    assert!([32, 64].contains(&(units / sizes.cluster)), "{sizes:?}");
                    assert!(compiled.contains(&plan.specialisation()), "{sizes:?}");
                }
            }
        }
        assert_eq!(SlstmSizes::fastest(100, 16, Direction::Forward), None);
    }

    #[test]
    fn parameters_lie_as_the_source_lays_them() {
        assert_eq!(std::mem::offset_of!(SlstmParameters, input), 16);
        assert_eq!(size_of::<SlstmParameters>(), 16 + 7 * 8);
    }
}
