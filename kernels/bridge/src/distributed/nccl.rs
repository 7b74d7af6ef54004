//! NCCL, which needs libtorch's CUDA half.

use super::ffi::BackendFunction;
use crate::BridgeError;

pub(super) fn backend_function() -> Result<BackendFunction, BridgeError> {
    Err(BridgeError::Libtorch("this build has no NCCL: several ranks compute on CPUs (--device cpu)".into()))
}
