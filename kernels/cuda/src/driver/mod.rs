//! The CUDA driver, opened at run time: what it takes to load machine code and launch it.
//!
//! `libcuda.so.1` comes with the GPU's driver, never with a package. Everything here works on a GPU's primary
//! context, the one that libtorch uses too, so that its allocations and streams can be passed as they are. Launches are
//! asynchronous; errors of a kernel come back with a later call.

mod event;
mod functions;
mod launch;
mod memory;
mod tensor_map;

pub use event::Event;
pub use launch::{Kernel, LaunchShape};
pub use memory::DeviceMemory;
pub use tensor_map::{BoxedTensor, TensorMap};

use std::ffi::c_int;
use std::path::Path;

use crate::library::Library;
use crate::{Architecture, CudaError};
use functions::{Attribute, DeviceGet, Functions, Handle, Init, Retain};

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: c_int = 16;

/// The driver and the primary context of one GPU.
#[derive(Debug)]
pub struct Driver {
    architecture: Architecture,
    multiprocessors: u32,
    context: Handle,
    functions: Functions,
}

// SAFETY: the context is used through calls that may come from any thread, and lives as long as the process.
unsafe impl Send for Driver {}
// SAFETY: as above; no call changes the structure.
unsafe impl Sync for Driver {}

impl Driver {
    /// Opens the driver and the GPU of this number (as `CUDA_VISIBLE_DEVICES` leaves them), and makes its context
    /// current on this thread. `forced` is what to compile for instead of the GPU's own compute capability.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] where there is no driver or GPU, [`CudaError::Gpu`] for one that the kernels do not
    /// know, [`CudaError::Driver`] for any call that fails.
    pub fn open(ordinal: u32, forced: Option<Architecture>) -> Result<Self, CudaError> {
        let library =
            Library::open(Path::new("libcuda.so.1")).map_err(|message| CudaError::NoDriver { message })?;
        // SAFETY: the types are those of the declarations in cuda.h, version 13; `_v2` names are what its macros expand to.
        unsafe {
            let init: Init = library.function(c"cuInit")?;
            let device_get: DeviceGet = library.function(c"cuDeviceGet")?;
            let attribute: Attribute = library.function(c"cuDeviceGetAttribute")?;
            let retain: Retain = library.function(c"cuDevicePrimaryCtxRetain")?;
            let mut driver = Self {
                architecture: Architecture::Sm80,
                multiprocessors: 0,
                context: std::ptr::null_mut(),
                functions: Functions::of(&library)?,
            };
            let (mut device, mut context, mut capability) = (0, std::ptr::null_mut(), [0; 2]);
            driver.check("cuInit", init(0))?;
            let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
            driver.check("cuDeviceGet", device_get(&raw mut device, number))?;
            for (value, name) in capability.iter_mut().zip(CAPABILITY) {
                driver.check("cuDeviceGetAttribute", attribute(value, name, device))?;
            }
            let mut count = 0;
            driver.check("cuDeviceGetAttribute", attribute(&raw mut count, MULTIPROCESSORS, device))?;
            driver.multiprocessors = u32::try_from(count).unwrap_or(1);
            driver.check("cuDevicePrimaryCtxRetain", retain(&raw mut context, device))?;
            driver.context = context;
            driver.make_current()?;
            let [major, minor] = capability;
            let own = Architecture::of_capability(major, minor).ok_or(CudaError::Gpu { major, minor })?;
            driver.architecture = forced.unwrap_or(own);
            Ok(driver)
        }
    }

    /// Makes the GPU's context current on the calling thread, as every call below that is not about memory does.
    fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: a context that was retained when the driver was opened.
        self.check("cuCtxSetCurrent", unsafe { (self.functions.set_current)(self.context) })
    }

    /// What to compile for.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// How many blocks run at once, of those that take a multiprocessor each.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Waits for all work of the context.
    ///
    /// # Errors
    /// [`CudaError::Driver`] with the error of any kernel before it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.make_current()?;
        // SAFETY: no arguments; the context is current.
        self.check("cuCtxSynchronize", unsafe { (self.functions.synchronize)() })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        self.functions.check(call, code)
    }
}
