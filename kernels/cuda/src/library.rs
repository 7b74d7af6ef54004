//! A shared library opened at run time.
//!
//! Libraries are never closed: NVRTC registers handlers that outlive any use of it.

use std::ffi::{CStr, CString, c_void};
use std::path::Path;

use crate::CudaError;

/// An open shared library and its name for messages.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    handle: *mut c_void,
    name: String,
}

// SAFETY: a handle of dlopen may be used from any thread, and is never closed.
unsafe impl Send for Library {}
// SAFETY: as above; `dlsym` is safe to call concurrently.
unsafe impl Sync for Library {}

impl Library {
    /// Opens `path` with its symbols visible to libraries opened later; the loader's message if that fails.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let name = path.to_string_lossy().into_owned();
        let c_path = CString::new(name.clone()).map_err(|_| format!("{name} contains a NUL byte"))?;
        // SAFETY: `c_path` is a NUL-terminated string that lives through the call.
        let handle = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives a NUL-terminated string or null, valid until the next call on this thread.
            let message = unsafe { libc::dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
            return Err(message.map_or_else(|| name.clone(), |text| text.to_string_lossy().into_owned()));
        }
        Ok(Self { handle, name })
    }

    /// The address of a function.
    ///
    /// # Errors
    /// [`CudaError::NoSymbol`] if the library has none of that name.
    ///
    /// # Safety
    /// `F` must be the `extern "C"` function pointer type of the symbol's declaration.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &'static CStr) -> Result<F, CudaError> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "F must be a function pointer") };
        // SAFETY: the handle is open and the name NUL-terminated.
        let address = unsafe { libc::dlsym(self.handle, symbol.as_ptr()) };
        if address.is_null() {
            let symbol = symbol.to_str().unwrap_or("?");
            return Err(CudaError::NoSymbol { library: self.name.clone(), symbol });
        }
        // SAFETY: the caller vouches for the type, and the sizes are equal.
        Ok(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
    }
}
