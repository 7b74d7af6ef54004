//! Declarations of `cpp/store.cpp`, `cpp/process_group.cpp` and `cpp/reducer.cpp`.

use std::ffi::{c_char, c_int, c_void};

use crate::ffi::Handle;

/// Makes the backend for GPUs: `NcclBackendFunction` in `cpp/distributed.h`.
pub(super) type BackendFunction = unsafe extern "C" fn(
    store: *const c_void,
    rank: c_int,
    world: c_int,
    gpu: c_int,
    timeout_ms: i64,
    out_backend: *mut c_void,
) -> *mut c_char;

unsafe extern "C" {
    pub(super) fn xlstm_store_open(
        host: *const c_char,
        port: u16,
        server: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        out_store: *mut *mut c_void,
        out_port: *mut u16,
    ) -> *mut c_char;
    pub(super) fn xlstm_store_free(store: *mut c_void);
    pub(super) fn xlstm_store_set(
        store: *const c_void,
        key: *const c_char,
        bytes: *const u8,
        count: usize,
    ) -> *mut c_char;
    pub(super) fn xlstm_store_get(
        store: *const c_void,
        key: *const c_char,
        timeout_ms: i64,
        out_bytes: *mut *mut c_char,
        out_count: *mut usize,
    ) -> *mut c_char;
    pub(super) fn xlstm_store_has(
        store: *const c_void,
        key: *const c_char,
        out_has: *mut c_int,
    ) -> *mut c_char;
    pub(super) fn xlstm_store_add(
        store: *const c_void,
        key: *const c_char,
        amount: i64,
        out_sum: *mut i64,
    ) -> *mut c_char;
    pub(super) fn xlstm_group_create(
        store: *const c_void,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        loopback: c_int,
        nccl: Option<BackendFunction>,
        gpu: c_int,
        out_group: *mut *mut c_void,
    ) -> *mut c_char;
    pub(super) fn xlstm_group_free(group: *mut c_void);
    pub(super) fn xlstm_group_sum(group: *const c_void, tensor: *const Handle) -> *mut c_char;
    pub(super) fn xlstm_group_broadcast(
        group: *const c_void,
        tensors: *const *const Handle,
        count: usize,
    ) -> *mut c_char;
    pub(super) fn xlstm_group_buckets(group: *const c_void) -> u64;
    pub(super) fn xlstm_reducer_create(
        group: *mut c_void,
        parameters: *const *const Handle,
        count: usize,
        bucket_bytes: i64,
        out_reducer: *mut *mut c_void,
    ) -> *mut c_char;
    pub(super) fn xlstm_reducer_free(reducer: *mut c_void);
    pub(super) fn xlstm_reducer_prepare(reducer: *const c_void) -> *mut c_char;
    pub(super) fn xlstm_reducer_check(reducer: *const c_void) -> *mut c_char;
}
