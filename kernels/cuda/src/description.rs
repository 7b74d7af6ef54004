//! What the driver says of a GPU, without opening a context on it: its name and memory.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use crate::CudaError;
use crate::library::Library;

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type DeviceName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type TotalMemory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// Longest name that is read, with its final NUL.
const NAME: usize = 256;

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes of memory that programs can have in all.
    pub memory: u64,
}

/// Describes the GPU of this number, as `CUDA_VISIBLE_DEVICES` leaves them: the number that libtorch uses.
///
/// # Errors
/// [`CudaError::NoDriver`] where there is no driver, [`CudaError::Driver`] where it knows no such GPU or fails.
pub fn describe(ordinal: u32) -> Result<Description, CudaError> {
    let library =
        Library::open(Path::new("libcuda.so.1")).map_err(|message| CudaError::NoDriver { message })?;
    // The driver refuses numbers without a GPU; none comes near the largest.
    let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: the types are those of the declarations in cuda.h, version 13; pointers lead to values of those types that
    // live through the calls, and the name has the length that is passed.
    unsafe {
        let init: Init = library.function(c"cuInit")?;
        let device_get: DeviceGet = library.function(c"cuDeviceGet")?;
        let device_name: DeviceName = library.function(c"cuDeviceGetName")?;
        let total_memory: TotalMemory = library.function(c"cuDeviceTotalMem_v2")?;
        let error_text: ErrorText = library.function(c"cuGetErrorString")?;
        let check = |call: &'static str, code: c_int| {
            if code == 0 {
                return Ok(());
            }
            let mut text = std::ptr::null();
            let known = error_text(code, &raw mut text) == 0 && !text.is_null();
            let message = match known {
                true => CStr::from_ptr(text).to_string_lossy().into_owned(),
                false => format!("error {code}"),
            };
            Err(CudaError::Driver { call, code, message })
        };
        check("cuInit", init(0))?;
        let mut device = 0;
        check("cuDeviceGet", device_get(&raw mut device, number))?;
        let mut name: [c_char; NAME] = [0; NAME];
        check("cuDeviceGetName", device_name(name.as_mut_ptr(), NAME as c_int, device))?;
        let mut memory = 0_usize;
        check("cuDeviceTotalMem", total_memory(&raw mut memory, device))?;
        let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        Ok(Description { name, memory: memory as u64 })
    }
}
