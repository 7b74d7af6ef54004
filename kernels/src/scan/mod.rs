//! Recurrences whose state decays element by element, so that no product of matrices computes them.
//!
//! | function | method | state |
//! |---|---|---|
//! | [`linear_scan`] | HGRN | a number for each channel |
//! | [`selective_scan`] | Mamba | N numbers for each channel |
//! | [`gated_selective_scan`] | Mamba, with what stands between its products | the same |
//! | [`wkv`] | RWKV-4 | a weighted mean: numerator, denominator and their common scale |
//!
//! The ladder of each: `Reference`, a loop of libtorch calls; `Composed`, all steps at once by doubling (step t takes in
//! step t − s, for s = 1, 2, 4 …); `Fused`, one call on the CPU (`cpu/scan.h`) or, in float32, on a GPU (`cuda/scan.cu`,
//! `cuda/selective_scan.cu`). The last two have a backward pass by hand, and compute in fp32 what is bf16.

mod gated;
mod linear;
mod selective;
mod wkv;

pub use gated::{GatedScanInput, gated_selective_scan};
pub use linear::{LinearScanInput, LinearScanOutput, linear_scan};
pub use selective::{SelectiveScanInput, SelectiveScanOutput, selective_scan};
pub use wkv::{WkvInput, WkvOutput, WkvState, wkv};

use crate::KernelError;
use tch::{Device, Tensor};
use xlstm_cuda::scan::SAVED_EVERY as SAVED_EVERY_ON_GPU;

/// The same on the CPU; mirrors `kScanChunk` in `cpu/scan.h`.
const SAVED_EVERY: i64 = 64;

/// Steps between two states that the forward pass of a fused scan saves.
fn saved_every(device: Device) -> i64 {
    if device == Device::Cpu { SAVED_EVERY } else { SAVED_EVERY_ON_GPU }
}

/// An uninitialized tensor beside `like`, of its type.
fn beside(like: &Tensor, size: &[i64]) -> Tensor {
    Tensor::empty(size, (like.kind(), like.device()))
}

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
    /// The whole loop in one call; the CPU, and a GPU in float32 (a selective scan of 8 or 16 states).
    Fused,
}

impl ScanKernel {
    /// The version for a scan of `x_BTD`, which the function `function` calls `argument`; `on_gpu`: whether there is a kernel.
    fn of(
        self,
        on_gpu: bool,
        x_BTD: &Tensor,
        function: &'static str,
        argument: &'static str,
    ) -> Result<Self, KernelError> {
        let device = x_BTD.device();
        let fused = device == Device::Cpu || on_gpu;
        match self {
            Self::Auto if fused => Ok(Self::Fused),
            Self::Auto => Ok(Self::Composed),
            Self::Fused if !fused => {
                let expected = "the CPU, or float32 (with 8 or 16 states) on a GPU".to_owned();
                Err(KernelError::Device { function, argument, expected, found: device })
            }
            chosen => Ok(chosen),
        }
    }
}
