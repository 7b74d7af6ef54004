//! How this process computes: arithmetic mode, threads, versions, memory.
//!
//! [`initialize`] is to be called once, before the first tensor: the flush of denormal numbers belongs to each
//! thread and is inherited by threads made later, so it has to be there before any pool starts (decayed gates are
//! full of denormals; one matrix product was seen 60 times slower with them), and libtorch's CUDA half has to be
//! opened before libtorch first asks whether it is there.

use crate::cuda::{self, CudaStatus};
use crate::{BridgeError, ffi};
use std::ffi::c_int;

/// The version of libtorch that the bridge is built against.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// What [`initialize`] found.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Threads of libtorch's pool for work inside one operation.
    pub threads: usize,
    /// Whether denormal numbers are flushed to zero (false on processors that cannot).
    pub flushes_denormals: bool,
    /// Whether libtorch's CUDA half was opened, and why not.
    pub cuda: CudaStatus,
}

/// Set the arithmetic mode, the number of threads (`None`: one per core that this process may use) and open
/// libtorch's CUDA half where there is a driver.
///
/// # Errors
/// When libtorch refuses the number of threads.
pub fn initialize(threads: Option<usize>) -> Result<Runtime, BridgeError> {
    let cuda = cuda::open();
    pool_memory()?;
    // SAFETY: plain call; the returned message is ours.
    unsafe { ffi::check(ffi::xlstm_runtime_full_sums()) }?;
    allow_tf32(false)?;
    flush_denormals()?;
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let threads = c_int::try_from(threads.max(1)).unwrap_or(c_int::MAX);
    // SAFETY: plain call; the returned message is ours.
    unsafe { ffi::check(ffi::xlstm_runtime_set_threads(threads)) }?;
    // Once more: the pool may have grown.
    let flushes_denormals = flush_denormals()?;
    Ok(Runtime { threads: self::threads(), flushes_denormals, cuda })
}

/// Whether matrix products of float32 tensors on a GPU may be TF32 from now on: operands rounded to ten bits of mantissa,
/// sums in float32. For this process, cuDNN included; not unless asked for.
///
/// # Errors
/// libtorch's complaint.
pub fn allow_tf32(allowed: bool) -> Result<(), BridgeError> {
    // SAFETY: sets a flag of libtorch's global context.
    unsafe { ffi::check(ffi::xlstm_runtime_allow_tf32(allowed.into())) }
}

/// Whether products of float32 tensors inside cuDNN (its LSTM) may be TF32 from now on; they may where [`allow_tf32`] allows it for all.
/// For this process.
///
/// # Errors
/// libtorch's complaint.
pub fn allow_tf32_in_cudnn(allowed: bool) -> Result<(), BridgeError> {
    // SAFETY: sets a flag of libtorch's global context.
    unsafe { ffi::check(ffi::xlstm_runtime_allow_tf32_in_cudnn(allowed.into())) }
}

/// Flush denormal numbers to zero on this thread, on threads that it makes later, and on libtorch's pool as it is.
/// Returns whether the processor can.
///
/// # Errors
/// When libtorch's pool cannot start.
pub fn flush_denormals() -> Result<bool, BridgeError> {
    let mut supported: c_int = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { ffi::check(ffi::xlstm_runtime_flush_denormals(&mut supported)) }?;
    Ok(supported != 0)
}

/// Let CPU tensors made from now on use freed memory again instead of giving it back (`cpp/allocator.cpp`): pages
/// that the system hands out anew are cleared at their first touch, which costs a training step a good part of its
/// time. Part of [`initialize`].
///
/// # Errors
/// When libtorch refuses the allocator.
pub fn pool_memory() -> Result<(), BridgeError> {
    // SAFETY: plain call; the returned message is ours.
    unsafe { ffi::check(ffi::xlstm_runtime_pool_memory()) }
}

/// Give memory that waits to be used again back to the system, for a phase that needs it otherwise. Returns how many
/// bytes those were.
pub fn release_memory() -> u64 {
    // SAFETY: plain calls.
    unsafe {
        let waiting = ffi::xlstm_runtime_waiting_memory();
        ffi::xlstm_runtime_release_memory();
        waiting as u64
    }
}

/// Threads of libtorch's pool for work inside one operation, as seen by this thread.
pub fn threads() -> usize {
    // SAFETY: plain call.
    usize::try_from(unsafe { ffi::xlstm_runtime_threads() }).unwrap_or(1)
}

/// libtorch's own text about how it was built (compiler, MKL, oneDNN, CUDA).
pub fn build_text() -> String {
    // SAFETY: the text is allocated for us.
    unsafe { ffi::take_text(ffi::xlstm_runtime_build_text()) }.unwrap_or_default()
}

/// The instruction set that libtorch chose for this processor: `AVX512`, `AVX2`, `DEFAULT`, …
pub fn cpu_capability() -> String {
    // SAFETY: the text is allocated for us.
    unsafe { ffi::take_text(ffi::xlstm_runtime_cpu_capability()) }.unwrap_or_default()
}

/// Ends this process now: no destructor runs, of Rust or C++, so threads that wait for a rank that never answers
/// cannot keep it.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: ends the process; nothing follows.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to a process; one that has ended gets none.
pub fn send_signal(process: u32, signal: i32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: plain call.
        let _ = unsafe { libc::kill(process, signal) };
    }
}

/// Memory of this process in bytes, from `/proc/self/status`; zeros where that file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// The most that was ever resident.
    pub peak_resident: u64,
}

/// Memory that this process uses and has used at most.
pub fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
    };
    Memory { resident: field("VmRSS:").unwrap_or(0), peak_resident: field("VmHWM:").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initialize_sets_threads_and_flushes_denormals_on_new_threads() {
        let runtime = initialize(Some(2)).unwrap();
        assert_eq!(runtime.threads, 2);
        assert!(runtime.flushes_denormals);
        let denormal = std::hint::black_box(1e-39_f32);
        assert_eq!(denormal * std::hint::black_box(0.5), 0.0);
        std::thread::spawn(move || assert_eq!(denormal * std::hint::black_box(0.5), 0.0)).join().unwrap();
    }

    #[test]
    fn freed_tensors_are_used_again_and_can_be_released() {
        use tch::{Device, Kind, Tensor};
        pool_memory().unwrap();
        let make = || Tensor::ones([1000, 777], (Kind::Float, Device::Cpu));
        let first = make();
        let address = first.data_ptr();
        drop(first);
        let second = make();
        assert_eq!(second.data_ptr(), address);
        assert_eq!(second.sum(Kind::Float).double_value(&[]), 777_000.0);
        assert_eq!(address as usize % 64, 0);
        drop(second);
        assert!(release_memory() >= 1000 * 777 * 4);
        assert_eq!(Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)).numel(), 0);
        // A size that no machine has: an error, not the end of the process.
        assert!(Tensor::f_empty([1 << 50], (Kind::Float, Device::Cpu)).is_err());
        assert_eq!(make().numel(), 777_000);
    }

    #[test]
    fn memory_is_known_on_linux() {
        let memory = memory();
        assert!(memory.resident > 0 && memory.peak_resident >= memory.resident);
    }

    #[test]
    fn build_text_names_the_version_in_use() {
        assert!(build_text().contains("PyTorch"), "{}", build_text());
        assert!(!cpu_capability().is_empty());
    }
}
