//! How Mamba's selective scan is called: `selective_scan.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block of the forward pass, each with a channel: `THREADS` of the source.
const THREADS: u32 = 128;
/// Channels of a block of the backward pass: `CHANNELS` of the source.
const CHANNELS: u32 = 32;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SelectiveScanForm {
    states: u32,
    gated: bool,
    float32: bool,
}

impl SelectiveScanForm {
    /// The scan alone, in float32, with so many states a channel: 8 or 16; `None` for others.
    #[must_use]
    pub fn plain(states: u32) -> Option<Self> {
        Self::new(states, false, true)
    }

    /// With softplus, skip and gate, on inputs of float32 or bf16.
    #[must_use]
    pub fn gated(states: u32, float32: bool) -> Option<Self> {
        Self::new(states, true, float32)
    }

    fn new(states: u32, gated: bool, float32: bool) -> Option<Self> {
        matches!(states, 8 | 16).then_some(Self { states, gated, float32 })
    }

    /// What `selective_scan.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("STATES", self.states), ("GATED", self.gated.into()), ("FLOAT32", self.float32.into())]
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::selective_scan(architecture, self)
    }

    /// The forward or the backward pass over `batch` sequences of `width` channels. The backward pass leaves `parts` sums of the
    /// gradients of B and C for each sequence.
    #[must_use]
    pub fn launch(self, batch: u32, width: u32, backward: bool) -> LayerLaunch {
        let (kernel, channels, threads) = if backward {
            ("selective_scan_backward", CHANNELS, CHANNELS * self.states)
        } else {
            ("selective_scan_forward", THREADS, THREADS)
        };
        let blocks = width.div_ceil(channels);
        let shape = LaunchShape { grid: [blocks, batch, 1], threads, shared_bytes: 0 };
        LayerLaunch { kernel, shape, parts: if backward { blocks } else { 0 } }
    }
}

/// `SelectiveScanParameters` of `selective_scan.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "selective_scan.cu says it")]
pub struct SelectiveScanParameters {
    pub batch: i32,
    pub tokens: i32,
    pub width: i32,
    pub gate_stride: i32,
    pub resets: u64,
    pub u: u64,
    pub step: u64,
    pub a: u64,
    pub write: u64,
    pub read: u64,
    pub initial: u64,
    pub output: u64,
    pub last: u64,
    pub saved: u64,
    pub output_gradient: u64,
    pub last_gradient: u64,
    pub u_gradient: u64,
    pub step_gradient: u64,
    pub a_gradient: u64,
    pub write_gradient: u64,
    pub read_gradient: u64,
    pub initial_gradient: u64,
    pub bias: u64,
    pub skip: u64,
    pub gate: u64,
    pub bias_gradient: u64,
    pub skip_gradient: u64,
    pub gate_gradient: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_all_channels_and_name_kernels_of_the_source() {
        assert_eq!(size_of::<SelectiveScanParameters>(), 16 + 24 * 8);
        for form in [SelectiveScanForm::plain(8), SelectiveScanForm::gated(16, false)] {
            let form = form.expect("there are kernels for 8 and 16 states");
            for backward in [false, true] {
                let launch = form.launch(3, 130, backward);
                let kernels = form.specialization(Architecture::Sm80).source.kernels();
                assert!(kernels.contains(&launch.kernel));
                let channels = if backward { CHANNELS } else { THREADS };
                assert!(launch.shape.grid[0] * channels >= 130 && launch.shape.threads <= 1024);
                assert_eq!(launch.shape.grid[1], 3);
            }
            assert_eq!(form.launch(1, 65, true).parts, 3);
        }
        assert_eq!(SelectiveScanForm::plain(64), None);
        assert_eq!(SelectiveScanForm::gated(4, true), None);
    }
}
