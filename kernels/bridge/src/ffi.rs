//! Declarations of the C++ half (`cpp/*.cpp`) and the few conversions that everyone needs.

use crate::BridgeError;
use std::ffi::{CStr, c_char, c_int, c_void};
use tch::Tensor;

/// `at::Tensor`, only ever behind a pointer.
pub(crate) type Handle = c_void;

/// Backward pass of a node, as C++ calls it; see `BackwardFunction` in `cpp/autograd.cpp`.
pub(crate) type BackwardFunction = unsafe extern "C" fn(
    context: *mut c_void,
    gradients: *const *const Handle,
    gradient_count: usize,
    saved: *const *const Handle,
    saved_count: usize,
    needs_gradient: *const u8,
    out_gradients: *mut *mut Handle,
    input_count: usize,
) -> *mut c_char;

unsafe extern "C" {
    pub(crate) fn xlstm_bridge_free(message: *mut c_char);
    pub(crate) fn xlstm_autograd_is_recorded(inputs: *const *const Handle, count: usize) -> c_int;
    pub(crate) fn xlstm_autograd_attach(
        name: *const c_char,
        inputs: *const *const Handle,
        input_count: usize,
        outputs: *const *const Handle,
        output_count: usize,
        saved: *const *const Handle,
        saved_count: usize,
        context: *mut c_void,
        backward: BackwardFunction,
        release: unsafe extern "C" fn(*mut c_void),
        release_message: unsafe extern "C" fn(*mut c_char),
        out_outputs: *mut *mut Handle,
    ) -> *mut c_char;
    pub(crate) fn xlstm_autograd_backward(
        outputs: *const *const Handle,
        gradients: *const *const Handle,
        count: usize,
        retain_graph: c_int,
    ) -> *mut c_char;
    pub(crate) fn xlstm_autograd_gradients(
        outputs: *const *const Handle,
        gradients: *const *const Handle,
        output_count: usize,
        inputs: *const *const Handle,
        input_count: usize,
        retain_graph: c_int,
        out_gradients: *mut *mut Handle,
    ) -> *mut c_char;
    pub(crate) fn xlstm_optimizer_adamw(
        parameters: *const *const Handle,
        gradients: *const *const Handle,
        first: *const *const Handle,
        second: *const *const Handle,
        count: usize,
        step: *const Handle,
        scale: *const Handle,
        learning_rate: *const Handle,
        skip: *const Handle,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
    ) -> *mut c_char;
    pub(crate) fn xlstm_optimizer_norm(
        tensors: *const *const Handle,
        count: usize,
        out: *mut *mut Handle,
    ) -> *mut c_char;
    pub(crate) fn xlstm_optimizer_drop_gradients(tensors: *const *const Handle, count: usize) -> *mut c_char;
    pub(crate) fn xlstm_pin_memory(tensor: *const Handle, out: *mut *mut Handle) -> *mut c_char;
    pub(crate) fn xlstm_upload(to: *const Handle, from: *const Handle) -> *mut c_char;
    pub(crate) fn xlstm_device_memory(
        gpu: c_int,
        reset: c_int,
        out_allocated: *mut u64,
        out_reserved: *mut u64,
    ) -> *mut c_char;
    pub(crate) fn xlstm_gpu_release_cached() -> *mut c_char;
    pub(crate) fn xlstm_stream_current(gpu: c_int, out_stream: *mut *mut c_void) -> *mut c_char;
    pub(crate) fn xlstm_stream_begin(gpu: c_int) -> *mut c_char;
    pub(crate) fn xlstm_runtime_allow_tf32(allowed: c_int) -> *mut c_char;
    pub(crate) fn xlstm_runtime_allow_tf32_in_cudnn(allowed: c_int) -> *mut c_char;
    pub(crate) fn xlstm_runtime_flush_denormals(out_supported: *mut c_int) -> *mut c_char;
    pub(crate) fn xlstm_runtime_full_sums() -> *mut c_char;
    pub(crate) fn xlstm_runtime_set_threads(threads: c_int) -> *mut c_char;
    pub(crate) fn xlstm_runtime_threads() -> c_int;
    pub(crate) fn xlstm_runtime_build_text() -> *mut c_char;
    pub(crate) fn xlstm_runtime_cpu_capability() -> *mut c_char;
    pub(crate) fn xlstm_runtime_has_cuda() -> c_int;
    pub(crate) fn xlstm_runtime_pool_memory() -> *mut c_char;
    pub(crate) fn xlstm_runtime_release_memory();
    pub(crate) fn xlstm_runtime_waiting_memory() -> usize;
}

/// Borrowed pointers to tensors, null for `None`; valid while the tensors live.
pub(crate) fn handles<'a>(tensors: impl IntoIterator<Item = Option<&'a Tensor>>) -> Vec<*const Handle> {
    tensors
        .into_iter()
        .map(|tensor| tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr().cast::<Handle>()))
        .collect()
}

/// Take ownership of a tensor that C++ allocated.
///
/// # Safety
/// `handle` is null or a pointer from `new at::Tensor` that nobody else frees.
pub(crate) unsafe fn own(handle: *mut Handle) -> Option<Tensor> {
    if handle.is_null() {
        return None;
    }
    // SAFETY: the caller passes an owned `at::Tensor*`, which is what tch wraps.
    Some(unsafe { Tensor::from_ptr(handle.cast()) })
}

/// A text that C++ allocated, as a `String`; the memory is freed.
///
/// # Safety
/// `text` is null or a NUL-terminated string from `malloc` that nobody else frees.
pub(crate) unsafe fn take_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null and NUL-terminated by the contract.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: allocated with malloc by the C++ half.
    unsafe { xlstm_bridge_free(text) };
    Some(owned)
}

/// Turn the result of a bridge call into a `Result`.
///
/// # Safety
/// As [`take_text`].
pub(crate) unsafe fn check(message: *mut c_char) -> Result<(), BridgeError> {
    // SAFETY: forwarded contract.
    match unsafe { take_text(message) } {
        None => Ok(()),
        Some(text) => Err(BridgeError::Libtorch(text)),
    }
}
