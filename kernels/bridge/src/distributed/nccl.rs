//! NCCL, through a small library that needs libtorch's CUDA half.
//!
//! The library is compiled with the bridge where CUDA's headers are (`build.rs`) and carried in the program as bytes, so
//! that the program stays one file. Where there is a card, it is written to a file in memory and opened from there, after
//! `libtorch_cuda.so`, whose symbols it takes.

use super::ffi::BackendFunction;
use crate::{BridgeError, cuda};

#[cfg(xlstm_nccl)]
const LIBRARY: Option<&[u8]> = Some(include_bytes!(env!("XLSTM_NCCL_LIBRARY")));
#[cfg(not(xlstm_nccl))]
const LIBRARY: Option<&[u8]> = None;

/// Whether this build carries NCCL's half.
#[must_use]
pub fn has_nccl() -> bool {
    LIBRARY.is_some()
}

fn missing(reason: String) -> BridgeError {
    BridgeError::Libtorch(format!("no NCCL, which ranks on cards need: {reason}"))
}

/// The function that makes the backend; opens the library at its first call.
///
/// # Errors
/// When the build has none, there is no card, or it does not fit the libtorch in use.
pub(super) fn backend_function() -> Result<BackendFunction, BridgeError> {
    let library = LIBRARY.ok_or_else(|| {
        missing(
            "this program was built without CUDA's headers; run tools/fetch_libtorch.py and build it again"
                .into(),
        )
    })?;
    let status = cuda::open();
    if !status.is_available() {
        return Err(missing(status.to_string()));
    }
    let symbol = cuda::symbol_of_bytes(library, c"xlstm_nccl", c"xlstm_nccl_backend").map_err(missing)?;
    // SAFETY: the library was compiled from cpp/nccl/backend_nccl.cpp, where the function has this type.
    Ok(unsafe { std::mem::transmute::<*mut std::ffi::c_void, BackendFunction>(symbol) })
}
