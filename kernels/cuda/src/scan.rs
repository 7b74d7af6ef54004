//! How the scans of HGRN, Mamba and RWKV-4 are called: `scan.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block: `THREADS` of the source.
const THREADS: u32 = 128;
/// Channels of a block of the selective scan's backward pass: `CHANNELS` of the source.
const CHANNELS: u32 = 32;

/// Steps between two states that a forward pass saves: `CHUNK` of the source.
pub const SAVED_EVERY: i64 = 16;

/// Which scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// `h_t = a_t h_{t-1} + x_t`.
    Linear,
    /// RWKV-4's weighted mean.
    Wkv,
    /// Mamba's, with so many states a channel.
    Selective(u32),
}

impl Scan {
    /// Whether there is a kernel: a selective scan has 8 or 16 states.
    #[must_use]
    pub fn is_known(self) -> bool {
        !matches!(self, Self::Selective(states) if states != 8 && states != 16)
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        let states = if let Self::Selective(states) = self { states } else { 16 };
        Specialization::scan(architecture, states)
    }

    /// The forward or the backward pass over `batch` sequences of `width` channels.
    #[must_use]
    pub fn launch(self, batch: u32, width: u32, backward: bool) -> LayerLaunch {
        let (kernel, channels, threads) = match (self, backward) {
            (Self::Linear, false) => ("linear_scan_forward", THREADS, THREADS),
            (Self::Linear, true) => ("linear_scan_backward", THREADS, THREADS),
            (Self::Wkv, false) => ("wkv_forward", THREADS, THREADS),
            (Self::Wkv, true) => ("wkv_backward", THREADS, THREADS),
            (Self::Selective(_), false) => ("selective_scan_forward", THREADS, THREADS),
            (Self::Selective(states), true) => ("selective_scan_backward", CHANNELS, CHANNELS * states),
        };
        let shape = LaunchShape { grid: [width.div_ceil(channels), batch, 1], threads, shared_bytes: 0 };
        LayerLaunch { kernel, shape, parts: width.div_ceil(channels) }
    }
}

/// `ScanParameters` of `scan.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "scan.cu says it")]
pub struct ScanParameters {
    pub batch: i32,
    pub tokens: i32,
    pub width: i32,
    pub unused: i32,
    pub resets: u64,
    pub inputs: [u64; 5],
    pub initial: [u64; 3],
    pub output: u64,
    pub last: [u64; 3],
    pub saved: [u64; 3],
    pub output_gradient: u64,
    pub last_gradient: [u64; 2],
    pub gradients: [u64; 5],
    pub initial_gradient: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_all_channels_and_name_kernels_of_the_source() {
        assert_eq!(size_of::<ScanParameters>(), 16 + 26 * 8);
        for scan in [Scan::Linear, Scan::Wkv, Scan::Selective(8), Scan::Selective(16)] {
            assert!(scan.is_known());
            for backward in [false, true] {
                let launch = scan.launch(3, 130, backward);
                assert!(scan.specialization(Architecture::Sm80).source.kernels().contains(&launch.kernel));
                assert!(launch.shape.grid[0] * launch.shape.threads >= 130 && launch.shape.threads <= 1024);
                assert_eq!(launch.shape.grid[1], 3);
            }
        }
        assert!(!Scan::Selective(64).is_known());
        assert_eq!(Scan::Selective(16).launch(1, 65, true).parts, 3);
    }
}
