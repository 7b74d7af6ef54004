//! SIGTERM and SIGINT: the first asks the run to save and stop, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::Result;

/// Whether a signal came.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    number: Arc<AtomicUsize>,
    count: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let came = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // Handlers run in this order: a second signal finds `came` set and ends the program.
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&came))?;
            signal_hook::flag::register(number, Arc::clone(&came))?;
            let value = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_usize(number, Arc::clone(&signals.number), value)?;
        }
        Ok(signals)
    }

    /// Counts signals, and never ends this process: for one that passes them on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn forward() -> Result<Self> {
        let signals = Self::default();
        for number in [SIGTERM, SIGINT] {
            let value = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_usize(number, Arc::clone(&signals.number), value)?;
            let count = Arc::clone(&signals.count);
            // SAFETY: the action only adds to an atomic number.
            unsafe {
                signal_hook::low_level::register(number, move || {
                    let _ = count.fetch_add(1, Ordering::Relaxed);
                })
            }?;
        }
        Ok(signals)
    }

    /// How many came, where they are passed on.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The signal that came, if one did.
    #[must_use]
    pub fn received(&self) -> Option<u8> {
        u8::try_from(self.number.load(Ordering::Relaxed)).ok().filter(|&number| number != 0)
    }
}
