//! The driver's functions, as `cuda.h` declares them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::TensorMap;
use crate::CudaError;
use crate::library::Library;

pub(super) type Handle = *mut c_void;
pub(super) type Call0 = unsafe extern "C" fn() -> c_int;
pub(super) type Init = unsafe extern "C" fn(c_uint) -> c_int;
pub(super) type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
pub(super) type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
pub(super) type Retain = unsafe extern "C" fn(*mut Handle, c_int) -> c_int;
pub(super) type OneHandle = unsafe extern "C" fn(Handle) -> c_int;
pub(super) type ModuleLoad = unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int;
pub(super) type ModuleFunction = unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int;
pub(super) type SetAttribute = unsafe extern "C" fn(Handle, c_int, c_int) -> c_int;
pub(super) type Allocate = unsafe extern "C" fn(*mut u64, usize) -> c_int;
pub(super) type Free = unsafe extern "C" fn(u64) -> c_int;
pub(super) type ToDevice = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;
pub(super) type FromDevice = unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int;
pub(super) type EventCreate = unsafe extern "C" fn(*mut Handle, c_uint) -> c_int;
pub(super) type EventRecord = unsafe extern "C" fn(Handle, Handle) -> c_int;
pub(super) type EventElapsed = unsafe extern "C" fn(*mut f32, Handle, Handle) -> c_int;
#[rustfmt::skip]
pub(super) type EncodeTiled = unsafe extern "C" fn(
    *mut TensorMap, c_uint, c_uint, *mut c_void, *const u64, *const u64, *const u32, *const u32, c_uint, c_uint, c_uint, c_uint,
) -> c_int;
pub(super) type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
#[rustfmt::skip]
pub(super) type Launch = unsafe extern "C" fn(
    Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void,
) -> c_int;
#[rustfmt::skip]
pub(super) type LaunchCooperative = unsafe extern "C" fn(
    Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void,
) -> c_int;

pub(super) type LaunchExtended =
    unsafe extern "C" fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> c_int;

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared_bytes: c_uint,
    pub(super) stream: Handle,
    pub(super) attributes: *const LaunchAttribute,
    pub(super) attribute_count: c_uint,
}

/// `CUlaunchAttribute` whose value is one number: the union is 64 bytes long and begins with it.
#[repr(C)]
pub(super) struct LaunchAttribute {
    pub(super) id: c_int,
    pub(super) padding: c_int,
    pub(super) value: c_int,
    pub(super) rest: [c_int; 15],
}

/// The functions that are called more than once.
#[derive(Debug)]
pub(super) struct Functions {
    pub(super) set_current: OneHandle,
    pub(super) module_load: ModuleLoad,
    pub(super) module_function: ModuleFunction,
    pub(super) set_attribute: SetAttribute,
    pub(super) launch: Launch,
    pub(super) launch_cooperative: LaunchCooperative,
    pub(super) launch_extended: LaunchExtended,
    pub(super) synchronize: Call0,
    pub(super) allocate: Allocate,
    pub(super) free: Free,
    pub(super) to_device: ToDevice,
    pub(super) from_device: FromDevice,
    pub(super) event_create: EventCreate,
    pub(super) event_record: EventRecord,
    pub(super) event_elapsed: EventElapsed,
    pub(super) event_destroy: OneHandle,
    pub(super) encode_tiled: EncodeTiled,
    pub(super) error_text: ErrorText,
}

impl Functions {
    /// Finds them in the driver's library.
    pub(super) fn of(library: &Library) -> Result<Self, CudaError> {
        // SAFETY: the types are those of the declarations in cuda.h, version 13; `_v2` names are what its macros expand to.
        unsafe {
            Ok(Self {
                set_current: library.function(c"cuCtxSetCurrent")?,
                module_load: library.function(c"cuModuleLoadData")?,
                module_function: library.function(c"cuModuleGetFunction")?,
                set_attribute: library.function(c"cuFuncSetAttribute")?,
                launch: library.function(c"cuLaunchKernel")?,
                launch_cooperative: library.function(c"cuLaunchCooperativeKernel")?,
                launch_extended: library.function(c"cuLaunchKernelEx")?,
                synchronize: library.function(c"cuCtxSynchronize")?,
                allocate: library.function(c"cuMemAlloc_v2")?,
                free: library.function(c"cuMemFree_v2")?,
                to_device: library.function(c"cuMemcpyHtoD_v2")?,
                from_device: library.function(c"cuMemcpyDtoH_v2")?,
                event_create: library.function(c"cuEventCreate")?,
                event_record: library.function(c"cuEventRecord")?,
                event_elapsed: library
                    .function(c"cuEventElapsedTime_v2")
                    .or_else(|_| library.function(c"cuEventElapsedTime"))?,
                event_destroy: library.function(c"cuEventDestroy_v2")?,
                encode_tiled: library.function(c"cuTensorMapEncodeTiled")?,
                error_text: library.function(c"cuGetErrorString")?,
            })
        }
    }

    /// The error of a call, by the name and the text that the driver has for it.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: the driver gives a static NUL-terminated string, or leaves null for a code it does not know.
        let message = unsafe {
            (self.error_text)(code, &raw mut text);
            if text.is_null() {
                "unknown code".to_owned()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(CudaError::Driver { call, code, message })
    }
}
