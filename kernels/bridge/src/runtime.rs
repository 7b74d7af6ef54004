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
    flush_denormals()?;
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let threads = c_int::try_from(threads.max(1)).unwrap_or(c_int::MAX);
    // SAFETY: plain call; the returned message is ours.
    unsafe { ffi::check(ffi::xlstm_runtime_set_threads(threads)) }?;
    // Once more: the pool may have grown.
    let flushes_denormals = flush_denormals()?;
    Ok(Runtime { threads: self::threads(), flushes_denormals, cuda })
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
