//! How the scans of HGRN and RWKV-4 are called: `scan.cu`; Mamba's: [`selective_scan`](crate::selective_scan).

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block: `THREADS` of the source.
const THREADS: u32 = 128;

/// Steps between two states that a forward pass saves: `CHUNK` of `scan.cu` and of `selective_scan.cu`.
pub const SAVED_EVERY: i64 = 16;

/// Which scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// `h_t = a_t h_{t-1} + x_t`.
    Linear,
    /// RWKV-4's weighted mean.
    Wkv,
}

impl Scan {
    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::scan(architecture)
    }

    /// The forward or the backward pass over `batch` sequences of `width` channels.
    #[must_use]
    pub fn launch(self, batch: u32, width: u32, backward: bool) -> LayerLaunch {
        let kernel = match (self, backward) {
            (Self::Linear, false) => "linear_scan_forward",
            (Self::Linear, true) => "linear_scan_backward",
            (Self::Wkv, false) => "wkv_forward",
            (Self::Wkv, true) => "wkv_backward",
        };
        let grid = [width.div_ceil(THREADS), batch, 1];
        LayerLaunch { kernel, shape: LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, parts: 0 }
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
    pub inputs: [u64; 4],
    pub initial: [u64; 3],
    pub output: u64,
    pub last: [u64; 3],
    pub saved: [u64; 3],
    pub output_gradient: u64,
    pub last_gradient: [u64; 2],
    pub gradients: [u64; 4],
    pub initial_gradient: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_all_channels_and_name_kernels_of_the_source() {
        assert_eq!(size_of::<ScanParameters>(), 16 + 24 * 8);
        for scan in [Scan::Linear, Scan::Wkv] {
            for backward in [false, true] {
                let launch = scan.launch(3, 130, backward);
                assert!(scan.specialization(Architecture::Sm80).source.kernels().contains(&launch.kernel));
                assert!(launch.shape.grid[0] * launch.shape.threads >= 130 && launch.shape.threads <= 1024);
                assert_eq!(launch.shape.grid[1], 3);
            }
        }
    }
}
