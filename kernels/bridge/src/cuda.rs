//! Opening libtorch's CUDA half at run time.
//!
//! A program links `libtorch_cpu.so` and `libc10.so` only, so it starts on a machine with no GPU and no driver.
//! Where a driver (`libcuda.so.1`) is found, `libtorch_cuda.so` is opened with its symbols global; as it loads, it
//! registers its kernels with the CPU half, and from then on `Device::Cuda` works as if it had been linked. It is
//! looked for, in this order:
//!
//! 1. beside the `libtorch_cpu.so` in use (an installed PyTorch, or `LIBTORCH`), also through symbolic links;
//! 2. in `../cuda/torch/lib` from there (what `tools/fetch_libtorch.py --cuda` fills);
//! 3. wherever the loader looks: `LD_LIBRARY_PATH`, the system's folders.

use crate::{BridgeError, ffi};
use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const LIBRARY: &str = "libtorch_cuda.so";

/// Whether libtorch's CUDA half is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaStatus {
    /// It was linked, or somebody opened it before.
    Present,
    /// It was opened from this file.
    Opened(PathBuf),
    /// There is no driver, so it was not looked for.
    NoDriver(String),
    /// There is a driver, but the library could not be opened: each place and why.
    NotFound(Vec<String>),
}

impl CudaStatus {
    /// True when CUDA devices can be used.
    pub fn is_available(&self) -> bool {
        matches!(self, Self::Present | Self::Opened(_))
    }
}

impl fmt::Display for CudaStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => write!(formatter, "linked"),
            Self::Opened(path) => write!(formatter, "opened {}", path.display()),
            Self::NoDriver(reason) => write!(formatter, "no NVIDIA driver ({reason})"),
            Self::NotFound(tried) => write!(
                formatter,
                "there is a driver, but {LIBRARY} was not found; run tools/fetch_libtorch.py --cuda, or put its \
                 folder on LD_LIBRARY_PATH; tried: {}",
                tried.join("; ")
            ),
        }
    }
}

/// Open libtorch's CUDA half if there is a driver. The first call decides; later ones return the same answer.
pub fn open() -> CudaStatus {
    static STATUS: OnceLock<CudaStatus> = OnceLock::new();
    STATUS.get_or_init(open_once).clone()
}

fn open_once() -> CudaStatus {
    // SAFETY: plain call.
    if is_loaded(LIBRARY) && unsafe { ffi::xlstm_runtime_has_cuda() } != 0 {
        return CudaStatus::Present;
    }
    if let Err(reason) = load(Path::new("libcuda.so.1"), libc::RTLD_LAZY | libc::RTLD_LOCAL) {
        return CudaStatus::NoDriver(reason);
    }
    let mut tried = Vec::new();
    for candidate in candidates() {
        match load(&candidate, libc::RTLD_NOW | libc::RTLD_GLOBAL) {
            Ok(()) => return CudaStatus::Opened(candidate),
            Err(reason) => tried.push(reason),
        }
    }
    CudaStatus::NotFound(tried)
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = libtorch_folder() {
        if let Ok(real) = folder.join("libtorch_cpu.so").canonicalize()
            && let Some(parent) = real.parent()
        {
            folders.push(parent.to_path_buf());
        }
        folders.push(folder);
    }
    let mut files = Vec::new();
    for folder in folders {
        for file in [folder.join(LIBRARY), folder.join("../cuda/torch/lib").join(LIBRARY)] {
            if file.is_file() && !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files.push(PathBuf::from(LIBRARY));
    files
}

/// The folder of the `libtorch_cpu.so` that this process runs with.
pub fn libtorch_folder() -> Option<PathBuf> {
    let address = ffi::xlstm_runtime_threads as *const c_void;
    let symbol = CString::new("cpuinfo_isa").ok()?;
    // SAFETY: looks a data or function symbol of libtorch_cpu.so up in the global scope; null when it has none.
    let inside = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
    let address = if inside.is_null() { address } else { inside.cast_const() };
    // SAFETY: Dl_info is plain data, and dladdr fills it when it returns non-zero.
    let path = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes()))
    };
    path.parent().map(Path::to_path_buf)
}

fn is_loaded(name: &str) -> bool {
    load(Path::new(name), libc::RTLD_LAZY | libc::RTLD_NOLOAD).is_ok()
}

fn load(path: &Path, flags: i32) -> Result<(), String> {
    handle_of(path, flags).map(|_| ())
}

fn handle_of(path: &Path, flags: i32) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{path:?} holds a NUL byte"))?;
    // SAFETY: a NUL-terminated name; libraries opened here run their own initializers, as linked ones do.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if handle.is_null() { Err(last_reason()) } else { Ok(handle) }
}

/// Why the last call of the loader failed on this thread.
fn last_reason() -> String {
    // SAFETY: dlerror returns null or a string that stays valid until the next dl call of this thread.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown reason".to_owned()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}

/// A library that stays open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenLibrary(*mut c_void);

// SAFETY: the loader's handles may be used from any thread, and this one is never closed.
unsafe impl Send for OpenLibrary {}
// SAFETY: as above; looking a symbol up does not change the handle.
unsafe impl Sync for OpenLibrary {}

impl OpenLibrary {
    /// Opens a shared library that this program carries as bytes, from a file in memory called `name`.
    pub(crate) fn from_bytes(bytes: &[u8], name: &CStr) -> Result<Self, String> {
        use std::io::Write as _;
        use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
        // SAFETY: a NUL-terminated name; the descriptor is ours.
        let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(format!("no file in memory: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: just made and owned by nobody else.
        let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        file.write_all(bytes).map_err(|error| format!("cannot write a file in memory: {error}"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        handle_of(Path::new(&path), libc::RTLD_NOW | libc::RTLD_LOCAL).map(Self)
    }

    /// The address of a symbol.
    pub(crate) fn symbol(self, symbol: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: an open library and a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        if found.is_null() { Err(last_reason()) } else { Ok(found) }
    }
}

/// The stream that this thread launches on, on this GPU: a `cudaStream_t`, null for the default stream.
///
/// # Errors
/// When libtorch has no such GPU.
pub fn current_stream(device: usize) -> Result<*mut c_void, BridgeError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: a place for the stream, which stays libtorch's.
    unsafe { ffi::check(ffi::xlstm_stream_current(number(device)?, &raw mut stream))? };
    Ok(stream)
}

/// From now on this thread launches on a stream of its own on this GPU, so that work of several threads runs side by side.
///
/// # Errors
/// When libtorch has no such GPU.
pub fn use_own_stream(device: usize) -> Result<(), BridgeError> {
    // SAFETY: a plain call.
    unsafe { ffi::check(ffi::xlstm_stream_begin(number(device)?)) }
}

pub(crate) fn number(device: usize) -> Result<c_int, BridgeError> {
    c_int::try_from(device).map_err(|_| BridgeError::Contract {
        name: "device",
        expected: "the number of a GPU".into(),
        found: device.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_in_use_is_found() {
        let folder = libtorch_folder().unwrap();
        assert!(folder.join("libtorch_cpu.so").is_file(), "{}", folder.display());
    }

    #[test]
    fn opening_twice_gives_the_same_answer() {
        assert_eq!(open(), open());
    }
}
