//! Recurrences whose state decays element by element, so that no product of matrices computes them.
//!
//! | function | method | state |
//! |---|---|---|
//! | [`linear_scan`] | HGRN | a number for each channel |
//! | [`selective_scan`] | Mamba | N numbers for each channel |
//! | [`wkv`] | RWKV-4 | a weighted mean: numerator, denominator and their common scale |
//!
//! The ladder of each: `Reference`, a loop of libtorch calls; `Composed`, all steps at once by doubling (step t takes in
//! step t − s, for s = 1, 2, 4 …), for GPUs; `Fused`, one call on the CPU (`cpu/scan.h`). The last two have a backward
//! pass by hand, and compute in fp32 what is bf16.

mod linear;
mod selective;
mod wkv;

pub use linear::{LinearScanInput, LinearScanOutput, linear_scan};
pub use selective::{SelectiveScanInput, SelectiveScanOutput, selective_scan};
pub use wkv::{WkvInput, WkvOutput, WkvState, wkv};

use crate::KernelError;
use tch::Device;

/// Steps between two states that the forward pass saves; mirrors `kScanChunk` in `cpu/scan.h`.
const SAVED_EVERY: i64 = 64;

/// Which version computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScanKernel {
    /// The fastest that knows the device.
    #[default]
    Auto,
    /// A loop of libtorch calls, differentiated by libtorch; any device.
    Reference,
    /// Doubling, with libtorch's operations; any device.
    Composed,
    /// The whole loop in one call; CPU.
    Fused,
}

impl ScanKernel {
    /// The version for a device.
    fn on(self, device: Device, function: &'static str, argument: &'static str) -> Result<Self, KernelError> {
        match self {
            Self::Auto if device == Device::Cpu => Ok(Self::Fused),
            Self::Auto => Ok(Self::Composed),
            Self::Fused if device != Device::Cpu => {
                let expected = "the CPU (the fused kernel knows no other)".to_owned();
                Err(KernelError::Device { function, argument, expected, found: device })
            }
            chosen => Ok(chosen),
        }
    }
}
