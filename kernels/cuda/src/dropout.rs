//! How dropout is called: `dropout.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;

/// Threads of a block: `THREADS` of the source. Each has four numbers.
const THREADS: u64 = 256;

/// `DropoutParameters` of the source, field by field; addresses are device addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "dropout.cu says it")]
pub struct DropoutParameters {
    pub sequences: i64,
    pub numbers: i64,
    pub site: u64,
    pub threshold: u32,
    pub scale: f32,
    pub keys: u64,
    pub input: u64,
    pub output: u64,
}

impl DropoutParameters {
    /// Either way, over `numbers` numbers in all, a multiple of 4.
    #[must_use]
    pub fn launch(numbers: u64) -> LayerLaunch {
        let blocks = u32::try_from((numbers / 4).div_ceil(THREADS)).unwrap_or(u32::MAX);
        let shape = LaunchShape { grid: [blocks, 1, 1], threads: THREADS as u32, shared_bytes: 0 };
        LayerLaunch { kernel: "dropout", shape, parts: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, Specialization};

    #[test]
    fn a_launch_covers_all_numbers() {
        assert_eq!(size_of::<DropoutParameters>(), 56);
        let launch = DropoutParameters::launch(4 * 257);
        assert_eq!(launch.shape.grid, [2, 1, 1]);
        let kernels = Specialization::dropout(Architecture::Sm80, true).source.kernels();
        assert!(kernels.contains(&launch.kernel));
    }
}
