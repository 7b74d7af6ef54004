//! Where the GPU's time goes: events around every kernel of ours, and between them what libtorch ran.
//!
//! Off by default. While it is on, each launch costs two events; the time between one kernel's end and the next one's
//! begin is that of libtorch's operations between them (or of an idle GPU).

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use xlstm_bridge::BoxError;
use xlstm_cuda::CudaError;
use xlstm_cuda::driver::{Driver, Event};

use super::Gpu;

static ON: AtomicBool = AtomicBool::new(false);
static MARKS: Mutex<Vec<(&'static str, Event, Event)>> = Mutex::new(Vec::new());

/// One line of a profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// A kernel, or `A → B` for what libtorch ran after A and before B.
    pub name: String,
    /// How often.
    pub count: u64,
    /// Milliseconds, all together.
    pub milliseconds: f64,
}

/// Begins to take times.
pub fn start() {
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends it; the largest shares first.
///
/// # Errors
/// When the GPU fails.
pub fn stop(gpu: &Gpu) -> Result<Vec<Share>, BoxError> {
    ON.store(false, Ordering::Relaxed);
    gpu.driver.synchronize()?;
    let marks = std::mem::take(&mut *MARKS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut sums: BTreeMap<String, (u64, f64)> = BTreeMap::new();
    let mut add = |name: String, time: f64| {
        let sum = sums.entry(name).or_default();
        *sum = (sum.0 + 1, sum.1 + time);
    };
    for (name, begin, end) in &marks {
        add((*name).to_owned(), gpu.driver.milliseconds(begin, end)?);
    }
    for pair in marks.windows(2) {
        if let [(before, _, end), (after, begin, _)] = pair {
            add(format!("{before} → {after}"), gpu.driver.milliseconds(end, begin)?);
        }
    }
    for (_, begin, end) in marks {
        gpu.driver.forget(begin);
        gpu.driver.forget(end);
    }
    let mut shares: Vec<Share> =
        sums.into_iter().map(|(name, (count, milliseconds))| Share { name, count, milliseconds }).collect();
    shares.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    Ok(shares)
}

/// An event before a launch on a stream, while times are taken.
///
/// # Safety
/// As [`Driver::event`].
pub(super) unsafe fn begin(driver: &Driver, stream: *mut c_void) -> Result<Option<Event>, CudaError> {
    // SAFETY: the caller's word.
    if ON.load(Ordering::Relaxed) { unsafe { driver.event(stream) }.map(Some) } else { Ok(None) }
}

/// An event after it.
///
/// # Safety
/// As [`Driver::event`].
pub(super) unsafe fn end(
    driver: &Driver,
    name: &'static str,
    begin: Option<Event>,
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let Some(begin) = begin else { return Ok(()) };
    // SAFETY: the caller's word.
    let end = unsafe { driver.event(stream)? };
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).push((name, begin, end));
    Ok(())
}
