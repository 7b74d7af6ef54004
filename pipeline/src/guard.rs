//! Panics of the program become its errors: exit code 2 with what was read, never a bare 101.
//!
//! No input is meant to get here: what a file can hold is checked where it is read. But a fault that nobody foresaw is told
//! like the others, with what its report should say. With `RUST_BACKTRACE` the usual trace is printed as well.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, Once, PoisonError};

use xlstm_manifests::reading;

use crate::report::CommandError;

/// What the first panic said, until it is told. Those after it follow from it.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Does `work`. A panic in it, or in a thread that it started, is an internal fault.
///
/// # Errors
/// Of `work`, or for the panic. An error for which `is_fault` holds gives way to a panic that has caused it: threads
/// that end early are missed by others.
pub(crate) fn guarded<T>(
    work: impl FnOnce() -> anyhow::Result<T>,
    is_fault: impl FnOnce(&anyhow::Error) -> bool,
) -> anyhow::Result<T> {
    hook();
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(error)) if is_fault(&error) => Err(first().map_or(error, fault)),
        Ok(result) => result,
        Err(_) => Err(fault(first().unwrap_or_else(|| "a panic without a message".into()))),
    }
}

fn first() -> Option<String> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn fault(text: String) -> anyhow::Error {
    CommandError::Internal(text).into()
}

fn hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let standard = take_hook();
        set_hook(Box::new(move |info| {
            FIRST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| describe(info));
            if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
                standard(info);
            }
        }));
    });
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    let mut text = message.to_owned();
    if let Some(place) = info.location() {
        // Writing to a String cannot fail.
        let _ = write!(text, " at {place}");
    }
    if let Some(path) = reading::last() {
        let _ = write!(text, " (the file that was opened last: `{}`)", path.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// One test, since panics are noted for the whole process.
    #[test]
    #[allow(clippy::panic, reason = "that is what is tested")]
    fn a_panic_is_a_fault_that_names_the_file_also_from_another_thread() {
        let fail = |path: &'static str| {
            reading::note(Path::new(path));
            panic!("index {} out of bounds", 7);
        };
        let here = guarded::<()>(|| fail("here.jsonl"), |_| true).unwrap_err().to_string();
        for part in
            ["internal fault: index 7 out of bounds at ", "guard.rs:", "`here.jsonl`", "please report it"]
        {
            assert!(here.contains(part), "{part}: {here}");
        }
        // A thread of which only the end is noticed.
        let quiet = || {
            let ended = std::thread::spawn(move || fail("there.arrow")).join();
            assert!(ended.is_err());
            anyhow::bail!("a thread ended early")
        };
        let there = guarded::<()>(quiet, |_| true).unwrap_err().to_string();
        assert!(there.contains("index 7") && there.contains("`there.arrow`"), "{there}");
        // A scope's own panic follows from its thread's.
        let scoped = || std::thread::scope(|scope| drop(scope.spawn(|| fail("scoped.txt"))));
        let scoped = || -> anyhow::Result<()> {
            scoped();
            Ok(())
        };
        let scoped = guarded(scoped, |_| true).unwrap_err().to_string();
        assert!(scoped.contains("`scoped.txt`") && !scoped.contains("a scoped thread"), "{scoped}");
        // Errors are left as they are.
        let error = guarded::<()>(|| anyhow::bail!("no such file"), |_| false).unwrap_err().to_string();
        assert_eq!(error, "no such file");
    }
}
