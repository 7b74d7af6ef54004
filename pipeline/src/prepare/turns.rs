//! One file at a time for records that are large by themselves, while many files are sampled at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::sources::Gate;

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

/// One file's turn: taken before its first large record, and given back when the file is done.
pub(super) struct Turn {
    turns: Arc<Turns>,
    held: AtomicBool,
}

impl Turn {
    pub(super) fn new(turns: &Arc<Turns>) -> Arc<Self> {
        Arc::new(Self { turns: Arc::clone(turns), held: AtomicBool::new(false) })
    }

    /// What a reader of the file calls before a large record.
    pub(super) fn gate(self: &Arc<Self>) -> Gate {
        let turn = Arc::clone(self);
        Box::new(move || turn.wait())
    }

    fn wait(&self) {
        if self.held.load(Ordering::Relaxed) {
            return;
        }
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = self.turns.free.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        self.held.store(true, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held.load(Ordering::Relaxed) {
            *self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
            self.turns.free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_records_are_read_of_one_file_at_a_time() {
        let turns = Arc::default();
        let first = Turn::new(&turns);
        first.gate()();
        // More of the same file does not wait for itself.
        first.gate()();
        let (said, heard) = std::sync::mpsc::channel();
        let second = Turn::new(&turns);
        let other = std::thread::spawn(move || {
            second.gate()();
            said.send(()).is_ok()
        });
        let moment = std::time::Duration::from_millis(200);
        assert!(heard.recv_timeout(moment).is_err(), "the first file is not done");
        drop(first);
        assert!(heard.recv_timeout(moment * 100).is_ok(), "its turn comes");
        assert!(other.join().is_ok_and(|said| said));
    }
}
