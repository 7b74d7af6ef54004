//! What can go wrong between a source and its machine code.

use std::path::PathBuf;

/// Errors of compilation and of the cache; each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No NVRTC of the expected version was found.
    #[error(
        "no NVRTC 13 found (looked at {tried}): run `python3 tools/fetch_nvrtc.py` (it is part of `make setup`), or point \
         XLSTM_NVRTC at a folder with libnvrtc.so.13 and libnvrtc-builtins.so.13.0"
    )]
    NoNvrtc {
        /// Every place that was tried, with the loader's answer.
        tried: String,
    },
    /// A library lacks a function that it should export.
    #[error(
        "{library} exports no `{symbol}`: expected NVRTC 13.0 or a later 13; fetch it with `python3 tools/fetch_nvrtc.py`"
    )]
    NoSymbol {
        /// The library's file name.
        library: String,
        /// The missing function.
        symbol: &'static str,
    },
    /// The compiler refused a source.
    #[error("NVRTC could not compile {source_name} with {options} (code {code}); its log:\n{log}")]
    Compile {
        /// File name of the source.
        source_name: &'static str,
        /// The options it was given.
        options: String,
        /// NVRTC's result code (`nvrtcResult`).
        code: i32,
        /// NVRTC's log.
        log: String,
    },
    /// A call of NVRTC other than the compilation failed.
    #[error(
        "NVRTC's {call} failed with code {code}: the library is damaged or of another version; fetch it again with `python3 tools/fetch_nvrtc.py --force`"
    )]
    Nvrtc {
        /// The function.
        call: &'static str,
        /// NVRTC's result code (`nvrtcResult`).
        code: i32,
    },
    /// There is no driver.
    #[error(
        "no CUDA driver ({message}): this machine has no NVIDIA GPU, or its driver is not installed; run on the CPU instead"
    )]
    NoDriver {
        /// What the loader said.
        message: String,
    },
    /// The GPU is none of those that the kernels are written for.
    #[error(
        "the GPU has compute capability {major}.{minor}; the kernels are written for 8.0 to 8.9, 9.0, 10.x and 12.x"
    )]
    Gpu {
        /// Major number.
        major: i32,
        /// Minor number.
        minor: i32,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {message} (code {code})")]
    Driver {
        /// The function.
        call: &'static str,
        /// The driver's result code (`CUresult`).
        code: i32,
        /// The driver's words.
        message: String,
    },
    /// A file of the cache could not be read or written.
    #[error(
        "kernel cache {path}: {cause}; free space or permissions may be missing, or choose another folder with XLSTM_KERNEL_CACHE"
    )]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
}
