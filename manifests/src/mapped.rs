//! Files mapped into memory, and what happens when one of them is cut short meanwhile.
//!
//! Touching a page past the end of a mapped file is `SIGBUS`, which ends a program without a word. The handler here
//! looks up which map the address lies in, names the file on stderr and exits with code 1; every other `SIGBUS` goes to
//! whoever had the signal before.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::error::Result;
use crate::{printable, reading};

/// A file mapped for reading.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    place: &'static MappedRange,
}

/// Where a map lies, and what to say when it breaks. Places are used again, and never freed: the signal's handler may
/// look at any of them at any time.
struct MappedRange {
    start: AtomicUsize,
    /// The first address behind it; 0: no map.
    end: AtomicUsize,
    /// Written while `end` is 0 only.
    message: UnsafeCell<Vec<u8>>,
    next: *const MappedRange,
}

// SAFETY: `message` is written by one thread, before `end` says that there is a map, and read by a thread that touches
// that map, which therefore exists. `next` never changes.
unsafe impl Sync for MappedRange {}
// SAFETY: as above; there is nothing in it that belongs to a thread.
unsafe impl Send for MappedRange {}

impl std::fmt::Debug for MappedRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("MappedRange")
    }
}

/// All places, the newest first.
static PLACES: AtomicPtr<MappedRange> = AtomicPtr::new(ptr::null_mut());
/// Those without a map.
static FREE: Mutex<Vec<&'static MappedRange>> = Mutex::new(Vec::new());

impl Mapped {
    /// Maps `path`; an empty file is an empty slice.
    ///
    /// # Errors
    /// When it is no regular file, or cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        listen();
        reading::note(path);
        let file = fs_err::File::open(path)?;
        if !file.metadata()?.is_file() {
            let text = format!("`{}` is no regular file", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text).into());
        }
        // SAFETY: the map is read-only. A file that another process cuts short ends this one with its name (module
        // text); one that it overwrites gives other numbers, which digests find.
        let map = unsafe { memmap2::Mmap::map(file.file()) }?;
        let start = map.as_ptr().addr();
        let place = MappedRange::take(start, start + map.len(), path);
        Ok(Self { map, place })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.place.end.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.place);
    }
}

impl MappedRange {
    fn take(start: usize, end: usize, path: &Path) -> &'static Self {
        let path = path.display().to_string();
        let message = format!(
            "error: `{}`: expected a file that stays as it is, found one that was cut short, or could not be read from \
             its disk, while it was in use: restore it and run the command again\n",
            printable::text(&path)
        )
        .into_bytes();
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match free.pop() {
            Some(place) => {
                // SAFETY: `end` is 0, so nobody reads it; the lock keeps other writers out.
                unsafe { *place.message.get() = message };
                place
            }
            None => {
                let place: &'static mut Self = Box::leak(Box::new(Self {
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                    message: UnsafeCell::new(message),
                    next: PLACES.load(Ordering::Acquire),
                }));
                // The lock is held: nobody else adds one in between.
                PLACES.store(place, Ordering::Release);
                place
            }
        };
        place.start.store(start, Ordering::Release);
        place.end.store(end, Ordering::Release);
        place
    }
}

/// What had the signal before.
struct Before(UnsafeCell<libc::sigaction>);
// SAFETY: written once, before the handler is there.
unsafe impl Sync for Before {}
// SAFETY: all bits zero is the default action.
static BEFORE: Before = Before(UnsafeCell::new(unsafe { std::mem::zeroed() }));

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler does what a handler may: loads, write, _exit, sigaction.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, ptr::null(), BEFORE.0.get());
            action.sa_sigaction = handle as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    });
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info` with SA_SIGINFO; places live for ever, and the message of the one that
    // holds the address belongs to a map that is in use.
    unsafe {
        let address = (*info).si_addr().addr();
        let mut place = PLACES.load(Ordering::Acquire).cast_const();
        while !place.is_null() {
            let inside = (*place).start.load(Ordering::Acquire)..(*place).end.load(Ordering::Acquire);
            if inside.contains(&address) {
                let message = &*(*place).message.get();
                libc::write(2, message.as_ptr().cast(), message.len());
                libc::_exit(1);
            }
            place = (*place).next;
        }
        // Not ours: the access is made again, and meets the handler of before.
        libc::sigaction(signal, BEFORE.0.get(), ptr::null_mut());
    }
}
