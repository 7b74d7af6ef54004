//! Panics become errors.
//!
//! `tch` has two forms of each operation: `f_add` returns libtorch's exception as an error, `add` and `+` panic with it.
//! Kernels are written as formulas, in the second form, so an exception of libtorch (no memory, most of all) arrives
//! as a panic that carries [`tch::TchError`]'s debug text. [`guarded`] turns it into [`TrainError::Torch`], and any
//! other panic into [`TrainError::Internal`] with the place where it happened. Each thread that computes runs inside
//! it: commands, ranks, the server's model, the writer of checkpoints. (The bridge does the same for backward passes.)

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::error::{Result, TrainError};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does `work`; a panic in it is its error, and nothing about it is printed.
///
/// # Errors
/// Of `work`, or for its panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    guarded_any(work)
}

/// As [`guarded`], for errors of any kind.
///
/// # Errors
/// As [`guarded`].
pub fn guarded_any<T, E: From<TrainError>>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    hook();
    let outer = GUARDED.replace(true);
    // What a panic leaves half-changed is not used again: the error ends the command or the request.
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| Err(error_of(text_of(panic.as_ref())).into()))
}

/// Keeps the standard message for panics that nobody turns into an error.
fn hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let standard = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let caught = GUARDED.get();
            PLACE.set(info.location().map_or_else(String::new, ToString::to_string));
            // An exception of libtorch in a thread of its own is caught by the bridge.
            if !caught && libtorch(text_of(info.payload())).is_none() {
                standard(info);
            }
        }));
    });
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn error_of(text: &str) -> TrainError {
    match libtorch(text) {
        Some(text) => TrainError::Torch(tch::TchError::Torch(text)),
        None => TrainError::Internal(format!("{text} ({})", PLACE.take())),
    }
}

/// libtorch's message in the debug text of an error of `tch`: `… value: Torch("…")`.
fn libtorch(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Torch(\"")?;
    let quoted = rest.rsplit_once("\")").map_or(rest, |(quoted, _)| quoted);
    let mut out = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        out.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(other) => other,
                None => break,
            },
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn an_exception_of_libtorch_and_a_panic_are_errors() {
        let shapes = guarded(|| {
            let matrix = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
            Ok(&matrix + Tensor::ones([4], (Kind::Float, Device::Cpu)))
        });
        let error = shapes.unwrap_err();
        assert!(matches!(error, TrainError::Torch(_)) && error.exit_code() == 2, "{error}");
        assert!(
            error.message().contains("size of tensor") && !error.message().contains("frame #"),
            "{error}"
        );

        let memory = guarded(|| Ok(Tensor::zeros([1 << 46], (Kind::Float, Device::Cpu))));
        let error = memory.unwrap_err();
        assert!(error.is_out_of_memory() && error.exit_code() == 1, "{error}");
        assert!(error.message().contains("asked for 262144.00 GiB"), "{}", error.message());

        let fault = guarded::<()>(|| panic!("never")).unwrap_err();
        assert!(
            fault.to_string().starts_with("never (trainer/src/guard.rs") && fault.exit_code() == 2,
            "{fault}"
        );
    }
}
