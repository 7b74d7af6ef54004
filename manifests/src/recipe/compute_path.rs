//! Who computes a model.

use serde::{Deserialize, Serialize};

/// Who computes the blocks and the loss of a model. Which one it is, is decided in one place,
/// `trainer/src/model/path.rs`; memory, plans, training, validation and evaluation follow that decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputePath {
    /// Whole blocks by this project's CUDA kernels.
    FusedGpu,
    /// On a GPU libtorch's products in bf16, and this project's kernels for what stands between them: the other methods.
    GpuKernels,
    /// This project's kernels for CPUs, and libtorch's operations for what has none.
    CpuKernels,
    /// libtorch's operations alone, on any device.
    Operations,
}
