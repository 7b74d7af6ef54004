//! How the float32 sLSTM and LSTM kernels of `recurrent.cu` are called: parameters, launches, memory.
//!
//! A block computes one head for a few sequences, for heads of 8 to 640 units; up to 64 units R stays in registers, above it
//! is read from the caches at every step, the slower the larger. One launch for a whole sequence and each direction, and one
//! for the gradients of R and of the bias, which leaves partial sums to be added. Tensors are contiguous and float32, or bf16
//! where they are activations ([`RecurrentSizes::on_half`]);
//! between the passes seven numbers a unit and step are kept.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Sequences of a block: the fastest from 256 sequences of 40 tokens to 4096 on an H100 (docs/benchmarks).
const ROWS: u32 = 4;
/// Tokens that the weights' gradient takes at a time, at most: `STEP` of `recurrent.cu`.
const STEP: u64 = 16;
/// Numbers kept for the backward pass, a unit and step: `VALUES` of `recurrent.cu`.
const VALUES: i64 = 7;

/// What is computed at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cell {
    /// sLSTM (paper eq. 8 to 17).
    #[default]
    Slstm,
    /// LSTM: sigmoid gates and a cell, no normalizer.
    Lstm,
}

/// Head size and cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecurrentSizes {
    units: u32,
    cell: Cell,
    half: bool,
}

impl RecurrentSizes {
    /// The kernels for heads of this many units, so that warps are whole: multiples of 8 up to 128, of 16 up to 256, of 32 up
    /// to 640; `None` for others.
    #[must_use]
    pub fn new(units: u32, cell: Cell) -> Option<Self> {
        let sizes = Self { units, cell, half: false };
        let whole = (units * sizes.slices()).is_multiple_of(32);
        ((8..=640).contains(&units) && whole).then_some(sizes)
    }

    /// The same on bf16 activations: x, h and their gradients. What is computed and kept stays float32.
    #[must_use]
    pub fn on_half(self) -> Self {
        Self { half: true, ..self }
    }

    /// Units of a head.
    #[must_use]
    pub fn units(self) -> u32 {
        self.units
    }

    /// Parts of a sum; with `units` the threads of a block.
    fn slices(self) -> u32 {
        match self.units {
            0..=128 => 4,
            129..=256 => 2,
            _ => 1,
        }
    }

    /// What `recurrent.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        let cached = match self.units {
            0..=64 => 64,
            65..=256 => 32,
            _ => 0,
        };
        vec![
            ("UNITS", self.units),
            ("ROWS", ROWS),
            ("SLICES", self.slices()),
            ("LSTM", u32::from(self.cell == Cell::Lstm)),
            ("CACHED", cached),
            ("BF16", u32::from(self.half)),
        ]
    }

    /// Side of a tile of dR.
    fn tile(self) -> u32 {
        match self.units {
            units if units.is_multiple_of(32) => 32,
            units if units.is_multiple_of(16) => 16,
            _ => 8,
        }
    }
}

/// Device addresses of a call; 0 where a pass does not use one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecurrentTensors {
    /// x: `(B, T, 4, H, E)`, gates in the order input, forget, z, output.
    pub input: u64,
    /// R: `(H, E in, 4, E out)`.
    pub recurrent: u64,
    /// b: `(4, H, E)`.
    pub bias: u64,
    /// Steps before which everything is forgotten: `(B, T)`, bytes. 0 for none.
    pub resets: u64,
    /// h, c, n, m before the first step: `(4, B, H, E)`. 0 for zeros.
    pub state: u64,
    /// h: `(B, T, H, E)`.
    pub output: u64,
    /// For the backward pass: `(B, T, H, 7, E)`. 0 in a forward pass that none follows.
    pub saved: u64,
    /// As `state`, after the last step.
    pub last: u64,
    /// Gradient of `output`.
    pub output_gradient: u64,
    /// Gradient of `last`. 0 for zeros.
    pub last_gradient: u64,
    /// Gradient of `input`.
    pub input_gradient: u64,
    /// Gradient of `state`. 0 where it is not wanted.
    pub state_gradient: u64,
    /// Partial sums of the gradient of R: `(splits, H, E in, 4, E out)`.
    pub recurrent_gradient: u64,
    /// Partial sums of the gradient of b: `(splits, 4, H, E)`.
    pub bias_gradient: u64,
}

/// `RecurrentParameters` of `recurrent.cu`, field by field.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RecurrentParameters {
    batch: i32,
    tokens: i32,
    heads: i32,
    exponential_forget: i32,
    clip: f32,
    splits: i32,
    addresses: [u64; 14],
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentPlan {
    /// Head size and cell.
    pub sizes: RecurrentSizes,
    /// What is compiled for.
    pub architecture: Architecture,
    /// Sequences.
    pub batch: u32,
    /// Steps, at least 1.
    pub tokens: u32,
    /// Heads.
    pub heads: u32,
    /// Forget by exp(f) instead of σ(f) (paper eq. 14).
    pub exponential_forget: bool,
    /// What the gradient through R is clamped to; 0 for nothing.
    pub clip: f32,
}

impl RecurrentPlan {
    /// What to compile.
    #[must_use]
    pub fn specialization(&self) -> Specialization {
        Specialization::recurrent(self.architecture, self.sizes)
    }

    fn launch(&self, kernel: &'static str, shared_bytes: u32) -> LayerLaunch {
        let grid = [self.batch.div_ceil(ROWS), self.heads, 1];
        let threads = self.sizes.slices() * self.sizes.units;
        LayerLaunch { kernel, shape: LaunchShape { grid, threads, shared_bytes }, parts: 0 }
    }

    /// From the first step to the last.
    #[must_use]
    pub fn forward(&self) -> LayerLaunch {
        self.launch("recurrent_forward", 0)
    }

    /// From the last step to the first.
    #[must_use]
    pub fn backward(&self) -> LayerLaunch {
        self.launch("recurrent_backward", 2 * ROWS * (4 * self.sizes.units + 4) * 4)
    }

    /// Partial sums of the gradients of R and b, after the backward pass; `parts` of each.
    #[must_use]
    pub fn weights(&self) -> LayerLaunch {
        let tile = self.sizes.tile();
        let (threads, tiles) = (tile * tile / 4, (self.sizes.units / tile).pow(2));
        // About five hundred threads on each of 132 multiprocessors, which their registers fill, of at most 32 blocks.
        let blocks = (132 * 512 / threads).min(132 * 32);
        let steps = (u64::from(self.batch) * u64::from(self.tokens)).div_ceil(STEP);
        let most = u32::try_from(steps).unwrap_or(u32::MAX);
        let parts = (blocks / (tiles * self.heads).max(1)).clamp(1, most.max(1));
        let shape = LaunchShape { grid: [tiles, self.heads, parts], threads, shared_bytes: 0 };
        LayerLaunch { kernel: "recurrent_weights", shape, parts }
    }

    /// Numbers of a unit and step that the backward pass needs.
    #[must_use]
    pub fn saved_values() -> i64 {
        VALUES
    }

    /// The kernels' parameters.
    #[must_use]
    pub fn parameters(&self, tensors: &RecurrentTensors) -> RecurrentParameters {
        let count = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let t = tensors;
        RecurrentParameters {
            batch: count(self.batch),
            tokens: count(self.tokens),
            heads: count(self.heads),
            exponential_forget: i32::from(self.exponential_forget),
            clip: self.clip,
            splits: count(self.weights().parts),
            addresses: [
                t.input,
                t.recurrent,
                t.bias,
                t.resets,
                t.state,
                t.output,
                t.saved,
                t.last,
                t.output_gradient,
                t.last_gradient,
                t.input_gradient,
                t.state_gradient,
                t.recurrent_gradient,
                t.bias_gradient,
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(units: u32, batch: u32, tokens: u32, heads: u32) -> RecurrentPlan {
        let sizes = RecurrentSizes::new(units, Cell::Slstm).expect("a size there are kernels for");
        let architecture = Architecture::Sm80;
        RecurrentPlan { sizes, architecture, batch, tokens, heads, exponential_forget: false, clip: 0.0 }
    }

    #[test]
    fn every_size_fits_the_smallest_multiprocessor() {
        assert_eq!(size_of::<RecurrentParameters>(), 24 + 14 * 8);
        for units in (1..=640).filter(|&units| RecurrentSizes::new(units, Cell::Slstm).is_some()) {
            let plan = plan(units, 5, 7, 3);
            for launch in [plan.forward(), plan.backward(), plan.weights()] {
                assert!(launch.shape.threads <= 1024, "{launch:?}");
                assert!(launch.shape.shared_bytes <= 99 * 1024, "{launch:?}");
                assert!(plan.specialization().source.kernels().contains(&launch.kernel));
            }
            assert!((1..=3).contains(&plan.weights().parts), "35 tokens are three steps");
        }
        for units in [0, 4, 12, 136, 264, 648] {
            assert_eq!(RecurrentSizes::new(units, Cell::Lstm), None);
        }
    }

    #[test]
    fn a_large_batch_is_split_over_the_whole_gpu() {
        let launch = plan(32, 256, 40, 4).weights();
        assert_eq!((launch.shape.grid, launch.shape.threads, launch.parts), ([1, 4, 66], 256, 66));
        assert_eq!(plan(128, 24, 2048, 4).forward().shape.grid, [6, 4, 1]);
    }
}
