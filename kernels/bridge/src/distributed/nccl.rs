//! NCCL, in the library of [`crate::cuda_half`].

use super::ffi::BackendFunction;
use crate::{BridgeError, cuda_half};

/// Whether this build carries NCCL's half.
#[must_use]
pub fn has_nccl() -> bool {
    cuda_half::is_built()
}

/// The function that makes the backend; opens the library at its first call.
///
/// # Errors
/// When the build has none, there is no GPU, or it does not fit the libtorch in use.
pub(super) fn backend_function() -> Result<BackendFunction, BridgeError> {
    let symbol = cuda_half::symbol(c"xlstm_nccl_backend", "NCCL, which ranks on GPUs need")?;
    // SAFETY: the library was compiled from cpp/cuda_half/backend_nccl.cpp, where the function has this type.
    Ok(unsafe { std::mem::transmute::<*mut std::ffi::c_void, BackendFunction>(symbol) })
}
