//! The part of the bridge that needs libtorch's CUDA half: NCCL and recorded graphs.
//!
//! It is a small library, compiled with the bridge where CUDA's headers are (`build.rs`) and carried in the program as
//! bytes, so that the program stays one file. Where there is a GPU, it is written to a file in memory and opened from
//! there, after `libtorch_cuda.so`, whose symbols it takes.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use crate::BridgeError;
use crate::cuda::{self, OpenLibrary};

#[cfg(xlstm_cuda_half)]
const LIBRARY: Option<&[u8]> = Some(include_bytes!(env!("XLSTM_CUDA_HALF")));
#[cfg(not(xlstm_cuda_half))]
const LIBRARY: Option<&[u8]> = None;

/// Whether this build carries it.
pub(crate) fn is_built() -> bool {
    LIBRARY.is_some()
}

/// A function of the library; `purpose` is what lacks it in an error.
///
/// # Errors
/// When the build has none, there is no GPU, or it does not fit the libtorch in use.
pub(crate) fn symbol(name: &CStr, purpose: &str) -> Result<*mut c_void, BridgeError> {
    let missing = |reason: String| BridgeError::Libtorch(format!("no {purpose}: {reason}"));
    let library = LIBRARY.ok_or_else(|| {
        missing(
            "this program was built without CUDA's headers; run tools/fetch_libtorch.py and build it again"
                .into(),
        )
    })?;
    static OPENED: OnceLock<Result<OpenLibrary, String>> = OnceLock::new();
    let open = || {
        let status = cuda::open();
        if !status.is_available() {
            return Err(status.to_string());
        }
        OpenLibrary::from_bytes(library, c"xlstm_cuda_half")
    };
    let opened = OPENED.get_or_init(open).clone().map_err(missing)?;
    opened.symbol(name).map_err(missing)
}
