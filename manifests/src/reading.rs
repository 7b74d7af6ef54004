//! Which file a thread opened last, so that a fault of the program can name what was being read.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

thread_local! {
    static LAST: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Notes that this thread opens `path`, to read it.
pub fn note(path: &Path) {
    LAST.set(Some(path.into()));
}

/// The file that this thread opened last.
#[must_use]
pub fn last() -> Option<PathBuf> {
    LAST.with_borrow(Clone::clone)
}
