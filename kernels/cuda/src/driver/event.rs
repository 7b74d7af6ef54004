//! Moments on a stream, and the time between them.

use std::ffi::c_void;

use super::Driver;
use super::functions::Handle;
use crate::CudaError;

/// A moment on a stream. Must be given back with [`Driver::forget`].
#[derive(Debug)]
pub struct Event(Handle);

// SAFETY: as for `Kernel`; an event is recorded once and read after a synchronization.
unsafe impl Send for Event {}

impl Driver {
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
            self.check("cuEventCreate", (self.functions.event_create)(&raw mut event, 0))?;
            self.check("cuEventRecord", (self.functions.event_record)(event, stream))?;
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
        self.check("cuEventElapsedTime", unsafe {
            (self.functions.event_elapsed)(&raw mut time, from.0, to.0)
        })?;
        Ok(f64::from(time))
    }

    /// Gives an event back.
    pub fn forget(&self, event: Event) {
        // SAFETY: made by `event` and given back once.
        unsafe { (self.functions.event_destroy)(event.0) };
    }
}
