//! Memory that a GPU reads by itself, and how much of a GPU's own memory was in use.

use std::ffi::c_int;

use tch::Tensor;

use crate::{BridgeError, cuda, ffi};

/// A copy in pinned memory, which a GPU reads by itself: a transfer from it need not be waited for.
///
/// # Errors
/// When there is no GPU, or no memory.
pub fn pinned(tensor: &Tensor) -> Result<Tensor, BridgeError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a live tensor, and a place for the result, which is ours.
    let result = unsafe {
        ffi::check(ffi::xlstm_pin_memory(tensor.as_ptr().cast(), &raw mut out))?;
        ffi::own(out)
    };
    result.ok_or_else(|| BridgeError::Contract {
        name: "pinned",
        expected: "a result".into(),
        found: "none".into(),
    })
}

/// Copies numbers on the CPU over those of `to`, a tensor on a GPU of the same shape, through pinned memory: nothing waits,
/// and later work of this thread's stream sees the copy.
///
/// # Errors
/// When shapes differ, or there is no memory.
pub fn upload(to: &Tensor, from: &Tensor) -> Result<(), BridgeError> {
    // SAFETY: two live tensors.
    unsafe { ffi::check(ffi::xlstm_upload(to.as_ptr().cast(), from.as_ptr().cast())) }
}

/// The most memory of a GPU that was in use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DevicePeak {
    /// Bytes of live tensors.
    pub allocated: u64,
    /// Bytes that libtorch held for them.
    pub reserved: u64,
}

/// The peak since the last call that reset it.
///
/// # Errors
/// When libtorch has no such GPU.
pub fn device_peak(index: usize, reset: bool) -> Result<DevicePeak, BridgeError> {
    let mut peak = DevicePeak::default();
    let device = cuda::number(index)?;
    // SAFETY: two places for numbers, valid for the call.
    unsafe {
        ffi::check(ffi::xlstm_device_memory(
            device,
            c_int::from(reset),
            &raw mut peak.allocated,
            &raw mut peak.reserved,
        ))?;
    }
    Ok(peak)
}

/// Frees the GPU memory that libtorch caches and no tensor uses, once the work that reads it is done.
///
/// # Errors
/// When libtorch has no GPU.
pub fn release_cached() -> Result<(), BridgeError> {
    // SAFETY: takes nothing; memory of live tensors is not in the cache.
    unsafe { ffi::check(ffi::xlstm_gpu_release_cached()) }
}
