//! The CUDA driver, opened at run time: what it takes to load machine code and launch it.
//!
//! `libcuda.so.1` comes with the GPU's driver, never with a package. Everything here works on a GPU's primary
//! context, the one that libtorch uses too, so that its allocations and streams can be passed as they are. Launches are
//! asynchronous; errors of a kernel come back with a later call.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

use crate::library::Library;
use crate::{Architecture, CudaError};

type Handle = *mut c_void;
type Call0 = unsafe extern "C" fn() -> c_int;
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type Retain = unsafe extern "C" fn(*mut Handle, c_int) -> c_int;
type OneHandle = unsafe extern "C" fn(Handle) -> c_int;
type ModuleLoad = unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int;
type ModuleFunction = unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, c_int) -> c_int;
type Allocate = unsafe extern "C" fn(*mut u64, usize) -> c_int;
type Free = unsafe extern "C" fn(u64) -> c_int;
type ToDevice = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;
type FromDevice = unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int;
type EventCreate = unsafe extern "C" fn(*mut Handle, c_uint) -> c_int;
type EventRecord = unsafe extern "C" fn(Handle, Handle) -> c_int;
type EventElapsed = unsafe extern "C" fn(*mut f32, Handle, Handle) -> c_int;
#[rustfmt::skip]
type EncodeTiled = unsafe extern "C" fn(
    *mut TensorMap, c_uint, c_uint, *mut c_void, *const u64, *const u64, *const u32, *const u32, c_uint, c_uint, c_uint, c_uint,
) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
#[rustfmt::skip]
type Launch = unsafe extern "C" fn(
    Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void,
) -> c_int;

#[rustfmt::skip]
type LaunchCooperative = unsafe extern "C" fn(
    Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void,
) -> c_int;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED`.
const LARGE_CLUSTERS: c_int = 14;
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
    set_current: OneHandle,
    module_load: ModuleLoad,
    module_function: ModuleFunction,
    set_attribute: SetAttribute,
    launch: Launch,
    launch_cooperative: LaunchCooperative,
    synchronize: Call0,
    allocate: Allocate,
    free: Free,
    to_device: ToDevice,
    from_device: FromDevice,
    event_create: EventCreate,
    event_record: EventRecord,
    event_elapsed: EventElapsed,
    event_destroy: OneHandle,
    encode_tiled: EncodeTiled,
    error_text: ErrorText,
}

/// `CUtensorMap`: what the copy engine must know of a tensor. All zeros: none.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorMap([u64; 16]);

/// A bf16 tensor of four axes, the first contiguous, for copies of boxes of 64 columns and 64 rows (`bulk.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxedTensor {
    /// Device address.
    pub address: u64,
    /// Elements along each axis.
    pub sizes: [u64; 4],
    /// Elements from one to the next along the second to the fourth axis.
    pub strides: [u64; 3],
}

/// A moment on a stream. Must be given back with [`Driver::forget`].
#[derive(Debug)]
pub struct Event(Handle);

// SAFETY: as for `Kernel`; an event is recorded once and read after a synchronization.
unsafe impl Send for Event {}

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
                set_current: library.function(c"cuCtxSetCurrent")?,
                module_load: library.function(c"cuModuleLoadData")?,
                module_function: library.function(c"cuModuleGetFunction")?,
                set_attribute: library.function(c"cuFuncSetAttribute")?,
                launch: library.function(c"cuLaunchKernel")?,
                launch_cooperative: library.function(c"cuLaunchCooperativeKernel")?,
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
        self.check("cuCtxSetCurrent", unsafe { (self.set_current)(self.context) })
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
            self.check("cuModuleLoadData", (self.module_load)(&raw mut module, image.as_ptr().cast()))?;
            self.check(
                "cuModuleGetFunction",
                (self.module_function)(&raw mut function, module, c_name.as_ptr()),
            )?;
            let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
            self.check("cuFuncSetAttribute", (self.set_attribute)(function, MAX_DYNAMIC_SHARED, bytes))?;
            if self.architecture.has_clusters() {
                self.check("cuFuncSetAttribute", (self.set_attribute)(function, LARGE_CLUSTERS, 1))?;
            }
        }
        Ok(Kernel { function })
    }

    /// What the copy engine must know of a tensor; what lies outside it is read as zero, and rows of a box are swizzled
    /// over 128 bytes. Nothing is read now.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for an address or a stride that is no multiple of 16 bytes.
    pub fn tensor_map(&self, tensor: &BoxedTensor) -> Result<TensorMap, CudaError> {
        const BF16: c_uint = 9;
        const NOT_INTERLEAVED: c_uint = 0;
        const SWIZZLE_128_BYTES: c_uint = 3;
        const PROMOTE_256_BYTES: c_uint = 3;
        const ZEROS_OUTSIDE: c_uint = 0;
        let mut map = TensorMap::default();
        // An axis of one element may have any stride; the driver wants one of at least 16 bytes all the same.
        let strides = tensor.strides.map(|stride| (2 * stride).max(16));
        let (boxes, steps) = ([64_u32, 64, 1, 1], [1_u32; 4]);
        // SAFETY: a place for the map, and arrays of as many numbers as the tensor has axes (strides one less); the
        // address is stored, not read.
        let code = unsafe {
            (self.encode_tiled)(
                &raw mut map,
                BF16,
                4,
                tensor.address as *mut c_void,
                tensor.sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                NOT_INTERLEAVED,
                SWIZZLE_128_BYTES,
                PROMOTE_256_BYTES,
                ZEROS_OUTSIDE,
            )
        };
        self.check("cuTensorMapEncodeTiled", code)?;
        Ok(map)
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
            (self.launch)(
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
            (self.launch_cooperative)(kernel.function, x, y, z, threads, 1, 1, bytes, stream, arguments)
        };
        self.check("cuLaunchCooperativeKernel", code)
    }

    /// Waits for all work of the context.
    ///
    /// # Errors
    /// [`CudaError::Driver`] with the error of any kernel before it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.make_current()?;
        // SAFETY: no arguments; the context is current.
        self.check("cuCtxSynchronize", unsafe { (self.synchronize)() })
    }

    /// An event on `stream` (null: the default stream), after all its work so far.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// `stream` must be a `CUstream` of this context or null.
    pub unsafe fn event(&self, stream: *mut c_void) -> Result<Event, CudaError> {
        let mut event = std::ptr::null_mut();
        self.make_current()?;
        // SAFETY: a place for the event, then the event itself on a stream of this context, by the caller's word.
        unsafe {
            self.check("cuEventCreate", (self.event_create)(&raw mut event, 0))?;
            self.check("cuEventRecord", (self.event_record)(event, stream))?;
        }
        Ok(Event(event))
    }

    /// Milliseconds between two events that have happened.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also when one has not happened yet.
    pub fn milliseconds(&self, from: &Event, to: &Event) -> Result<f64, CudaError> {
        let mut time = 0.0_f32;
        // SAFETY: two recorded events of this context.
        self.check("cuEventElapsedTime", unsafe { (self.event_elapsed)(&raw mut time, from.0, to.0) })?;
        Ok(f64::from(time))
    }

    /// Gives an event back.
    pub fn forget(&self, event: Event) {
        // SAFETY: made by `event` and given back once.
        unsafe { (self.event_destroy)(event.0) };
    }

    /// Device memory with these bytes in it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], above all when memory is short.
    pub fn upload(&self, bytes: &[u8]) -> Result<DeviceMemory<'_>, CudaError> {
        let mut memory = DeviceMemory { driver: self, address: 0, length: bytes.len() };
        // SAFETY: the allocation is at least as long as the copy.
        unsafe {
            self.check("cuMemAlloc", (self.allocate)(&raw mut memory.address, bytes.len().max(1)))?;
            self.check("cuMemcpyHtoD", (self.to_device)(memory.address, bytes.as_ptr().cast(), bytes.len()))?;
        }
        Ok(memory)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
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
                std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(CudaError::Driver { call, code, message })
    }
}

/// Device memory, freed when dropped.
#[derive(Debug)]
pub struct DeviceMemory<'a> {
    driver: &'a Driver,
    address: u64,
    length: usize,
}

impl DeviceMemory<'_> {
    /// The device address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Copies everything back, after all work before it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for a kernel that failed before.
    pub fn download(&self) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0_u8; self.length];
        // SAFETY: both ends hold `length` bytes.
        let code = unsafe { (self.driver.from_device)(bytes.as_mut_ptr().cast(), self.address, self.length) };
        self.driver.check("cuMemcpyDtoH", code)?;
        Ok(bytes)
    }
}

impl Drop for DeviceMemory<'_> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: allocated by this driver and freed once. An error here belongs to an earlier kernel.
            unsafe { (self.driver.free)(self.address) };
        }
    }
}
