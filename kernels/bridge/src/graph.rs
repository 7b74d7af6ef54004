//! Launches on a GPU, recorded once and replayed with one call.
//!
//! A step of a small model is hundreds of launches of a few microseconds each, and starting one takes the host as long.
//! A recorded step is one launch. What a recording reads and writes keeps its address: new values are copied into its
//! inputs, and results are read where the first ones were.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

use crate::{BridgeError, cuda, cuda_half, ffi};

type Begin = unsafe extern "C" fn(c_int, *mut *mut c_void) -> *mut c_char;
type End = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_char;
type Replay = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type Free = unsafe extern "C" fn(*mut c_void);

#[derive(Debug, Clone, Copy)]
struct Functions {
    begin: Begin,
    end: End,
    replay: Replay,
    free: Free,
}

impl Functions {
    fn load() -> Result<Self, BridgeError> {
        let symbol = |name: &CStr| cuda_half::symbol(name, "recorded steps");
        // SAFETY: the types are those of cpp/cuda_half/graph.cpp, which the library was compiled from.
        unsafe {
            Ok(Self {
                begin: std::mem::transmute::<*mut c_void, Begin>(symbol(c"xlstm_graph_begin")?),
                end: std::mem::transmute::<*mut c_void, End>(symbol(c"xlstm_graph_end")?),
                replay: std::mem::transmute::<*mut c_void, Replay>(symbol(c"xlstm_graph_replay")?),
                free: std::mem::transmute::<*mut c_void, Free>(symbol(c"xlstm_graph_free")?),
            })
        }
    }
}

/// A recording.
#[derive(Debug)]
pub struct Graph {
    handle: NonNull<c_void>,
    functions: Functions,
}

// SAFETY: the recording may be replayed and freed from any thread, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `body` and the backward passes in it launch on this GPU; nothing is computed yet. `body` must have run
    /// before, so that kernels are compiled and loaded, and must not wait for the GPU.
    ///
    /// # Errors
    /// What `body` gives, or when something in it cannot be recorded. Nothing stays recorded then.
    pub fn record<T, E: From<BridgeError>>(
        device: usize,
        body: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let functions = Functions::load()?;
        let number = cuda::number(device)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the handle, which is ours.
        unsafe { ffi::check((functions.begin)(number, &raw mut handle))? };
        let handle = NonNull::new(handle).ok_or_else(|| BridgeError::Contract {
            name: "record",
            expected: "a recording".into(),
            found: "none".into(),
        })?;
        let graph = Self { handle, functions };
        let result = body();
        // SAFETY: a recording that was begun on this thread and is ended once.
        let ended = unsafe { ffi::check((functions.end)(handle.as_ptr(), c_int::from(result.is_ok()))) };
        let result = result?;
        ended?;
        Ok((graph, result))
    }

    /// Launches everything recorded, on this thread's current stream. Whoever wrote the inputs did so on the same stream.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn replay(&self) -> Result<(), BridgeError> {
        // SAFETY: a finished recording.
        unsafe { ffi::check((self.functions.replay)(self.handle.as_ptr())) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { (self.functions.free)(self.handle.as_ptr()) };
    }
}
