//! Kernels: loaded, and launched.

use std::ffi::{CString, c_int, c_void};

use super::Driver;
use super::functions::{Handle, LaunchAttribute, LaunchConfig};
use crate::CudaError;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED`.
const LARGE_CLUSTERS: c_int = 14;

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const OVERLAPPING: c_int = 6;

/// One kernel of a loaded module. Modules stay loaded until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    function: Handle,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current, and are never freed.
unsafe impl Send for Kernel {}
// SAFETY: as above; a launch does not change the function.
unsafe impl Sync for Kernel {}

/// How many blocks, how many threads in each, and the dynamic shared memory of a block in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

impl Driver {
    /// Loads an ELF image or PTX and finds one kernel in it; a launch may then ask for `shared_bytes` of dynamic shared
    /// memory and for clusters of any size.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if the code is not for this GPU or holds no such kernel.
    pub fn load(&self, image: &[u8], name: &str, shared_bytes: u32) -> Result<Kernel, CudaError> {
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let c_name = CString::new(name).unwrap_or_default();
        self.make_current()?;
        // SAFETY: the image is a whole ELF file or PTX ending in a NUL, copied by the driver; the name is NUL-terminated.
        unsafe {
            self.check(
                "cuModuleLoadData",
                (self.functions.module_load)(&raw mut module, image.as_ptr().cast()),
            )?;
            self.check(
                "cuModuleGetFunction",
                (self.functions.module_function)(&raw mut function, module, c_name.as_ptr()),
            )?;
            let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
            self.check(
                "cuFuncSetAttribute",
                (self.functions.set_attribute)(function, MAX_DYNAMIC_SHARED, bytes),
            )?;
            if self.architecture.has_clusters() {
                self.check(
                    "cuFuncSetAttribute",
                    (self.functions.set_attribute)(function, LARGE_CLUSTERS, 1),
                )?;
            }
        }
        Ok(Kernel { function })
    }

    /// Launches a kernel that takes one structure by value, on `stream` (null: the default stream).
    ///
    /// # Errors
    /// [`CudaError::Driver`] if the launch is refused; what the kernel does wrong comes back later.
    ///
    /// # Safety
    /// `parameters` must be the structure that the kernel declares, its pointers must be device memory of the sizes that
    /// the kernel's documentation states, alive until the stream has passed this launch; `stream` must be a `CUstream`
    /// of this context or null.
    pub unsafe fn launch<P: Copy>(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        parameters: &P,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let [x, y, z] = shape.grid;
        self.make_current()?;
        // SAFETY: one argument, copied by the driver before the call returns; the rest is the caller's word.
        let code = unsafe {
            (self.functions.launch)(
                kernel.function,
                x,
                y,
                z,
                shape.threads,
                1,
                1,
                shape.shared_bytes,
                stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.check("cuLaunchKernel", code)
    }

    /// As [`launch`](Self::launch), for a kernel that may begin before the one in front of it has ended, and waits for that
    /// itself (`wait_for_previous` of `common.cuh`). An architecture without that launches it as any other.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Safety
    /// As [`launch`](Self::launch); before it waits, the kernel reads nothing that the one in front of it writes, and writes
    /// nothing.
    pub unsafe fn launch_overlapping<P: Copy>(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        parameters: &P,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        if !self.architecture.has_overlapping_launches() {
            // SAFETY: the caller's word.
            return unsafe { self.launch(kernel, shape, parameters, stream) };
        }
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let attribute = LaunchAttribute { id: OVERLAPPING, padding: 0, value: 1, rest: [0; 15] };
        let config = LaunchConfig {
            grid: shape.grid,
            block: [shape.threads, 1, 1],
            shared_bytes: shape.shared_bytes,
            stream,
            attributes: &raw const attribute,
            attribute_count: 1,
        };
        self.make_current()?;
        // SAFETY: one argument, copied by the driver before the call returns, as are configuration and attribute; the rest
        // is the caller's word.
        let code = unsafe {
            (self.functions.launch_extended)(
                &raw const config,
                kernel.function,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.check("cuLaunchKernelEx", code)
    }

    /// As [`launch`](Self::launch), for a kernel whose blocks wait for each other: all of them run at once.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also when the GPU cannot run so many blocks at once.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub unsafe fn launch_cooperative<P: Copy>(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        parameters: &P,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let ([x, y, z], threads, bytes) = (shape.grid, shape.threads, shape.shared_bytes);
        self.make_current()?;
        let arguments = arguments.as_mut_ptr();
        // SAFETY: one argument, copied by the driver before the call returns; the rest is the caller's word.
        let code = unsafe {
            (self.functions.launch_cooperative)(
                kernel.function,
                x,
                y,
                z,
                threads,
                1,
                1,
                bytes,
                stream,
                arguments,
            )
        };
        self.check("cuLaunchCooperativeKernel", code)
    }
}
