//! How rotary positions and SwiGLU are called: `transformer.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;

/// Threads of a block: `THREADS` of the source. Each has four numbers (rotary: of both halves).
const THREADS: u64 = 256;

fn launch(kernel: &'static str, threads: u64) -> LayerLaunch {
    let blocks = u32::try_from(threads.div_ceil(THREADS)).unwrap_or(u32::MAX);
    let shape = LaunchShape { grid: [blocks, 1, 1], threads: THREADS as u32, shared_bytes: 0 };
    LayerLaunch { kernel, shape, parts: 0 }
}

/// `RotaryParameters` of the source, field by field; addresses are device addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "transformer.cu says it")]
pub struct RotaryParameters {
    pub tokens: i64,
    pub heads: i32,
    pub width: i32,
    pub angles: i64,
    pub direction: f32,
    pub unused: i32,
    pub input: u64,
    pub cosine: u64,
    pub sine: u64,
    pub output: u64,
}

impl RotaryParameters {
    /// Either way, over `tokens` tokens of `heads` heads of `width` numbers, a multiple of 8.
    #[must_use]
    pub fn launch(tokens: u64, heads: u64, width: u64) -> LayerLaunch {
        launch("rotary", tokens * heads * (width / 8))
    }
}

/// `SwigluParameters` of the source, field by field; addresses are device addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "transformer.cu says it")]
pub struct SwigluParameters {
    pub tokens: i64,
    pub width: i32,
    pub unused: i32,
    pub gate_stride: i64,
    pub up_stride: i64,
    pub gate: u64,
    pub up: u64,
    pub output: u64,
    pub output_gradient: u64,
    pub gate_gradient: u64,
    pub up_gradient: u64,
}

impl SwigluParameters {
    /// Forward or backward, over `tokens` rows of `width` numbers, a multiple of 4.
    #[must_use]
    pub fn launch(tokens: u64, width: u64, backward: bool) -> LayerLaunch {
        launch(if backward { "swiglu_backward" } else { "swiglu" }, tokens * (width / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, Specialization};

    #[test]
    fn launches_cover_all_numbers() {
        assert_eq!((size_of::<RotaryParameters>(), size_of::<SwigluParameters>()), (64, 80));
        let kernels = Specialization::transformer(Architecture::Sm80, false).source.kernels();
        for all in [
            RotaryParameters::launch(33, 5, 64),
            SwigluParameters::launch(33, 1000, false),
            SwigluParameters::launch(33, 1000, true),
        ] {
            assert!(kernels.contains(&all.kernel));
        }
        assert_eq!(RotaryParameters::launch(33, 5, 64).shape.grid[0], (33 * 5 * 8_u32).div_ceil(256));
        assert_eq!(SwigluParameters::launch(33, 1000, true).shape.grid[0], (33 * 250_u32).div_ceil(256));
    }
}
