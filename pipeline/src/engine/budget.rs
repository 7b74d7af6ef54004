//! How much text may be in flight between readers and collector.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes of text that each reader's share allows in flight.
const SHARE: usize = 32 << 20;

#[derive(Debug, Default)]
struct InFlight {
    /// Bytes in flight, by input (the few that are being read).
    by_input: Vec<(u32, usize)>,
    total: usize,
    /// The input that the collector is draining.
    head: u32,
    cancelled: bool,
}

/// A shared allowance. The input whose turn it is always gets room for one batch, so the run cannot lock
/// itself up, however long a document is.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    state: Mutex<InFlight>,
    changed: Condvar,
}

impl Budget {
    pub(super) fn new(readers: usize) -> Self {
        Self { limit: SHARE * readers, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until `bytes` of input `input` may be in flight; `false` when the run was cancelled.
    pub(super) fn acquire(&self, input: u32, bytes: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.cancelled {
                return false;
            }
            let mine = state.by_input.iter().find(|(i, _)| *i == input).map_or(0, |(_, n)| *n);
            // Inputs that wait for their turn leave half of the allowance to the one whose turn it is.
            let limit = if input <= state.head { self.limit } else { self.limit / 2 };
            if state.total + bytes <= limit || (input <= state.head && mine == 0) {
                state.total += bytes;
                match state.by_input.iter_mut().find(|(i, _)| *i == input) {
                    Some((_, n)) => *n += bytes,
                    None => state.by_input.push((input, bytes)),
                }
                return true;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it is `input`'s turn and nothing of it is in flight (or the run was cancelled): what a record
    /// that is large by itself needs, so that at most one of them is in memory.
    pub(super) fn wait_alone(&self, input: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.cancelled && (input > state.head || state.by_input.iter().any(|(i, _)| *i == input)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The collector is done with `bytes` of input `input`.
    pub(super) fn release(&self, input: u32, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.total -= bytes;
        if let Some((_, n)) = state.by_input.iter_mut().find(|(i, _)| *i == input) {
            *n -= bytes;
        }
        state.by_input.retain(|(_, n)| *n > 0);
        self.changed.notify_all();
    }

    /// The collector begins to drain `input`.
    pub(super) fn set_head(&self, input: u32) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).head = input;
        self.changed.notify_all();
    }

    /// Wakes every waiting reader for good.
    pub(super) fn cancel(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cancelled = true;
        self.changed.notify_all();
    }
}
