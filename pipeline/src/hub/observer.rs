//! Observers of requests, and the flag that stops them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::HubError;

/// Hears of the progress of requests, from several threads at once. Every method does nothing unless overridden.
pub trait DownloadObserver: Sync {
    /// `files` files of a listing are known so far.
    fn listed(&self, files: usize) {
        let _ = files;
    }
    /// `bytes` of a file were on disk already.
    fn reused(&self, bytes: u64) {
        let _ = bytes;
    }
    /// `bytes` more have arrived.
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }
    /// `bytes` reported before (reused or advanced) no longer count: the file starts over.
    fn rewound(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Nothing happens for `duration`, because of `reason`.
    fn waiting(&self, reason: &str, duration: Duration) {
        let _ = (reason, duration);
    }
    /// A finished file at `path` is not what is declared (`problem` says how) and will be replaced.
    fn replacing(&self, path: &Path, problem: &HubError) {
        let _ = (path, problem);
    }
}

/// An observer that does not look.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentObserver;

impl DownloadObserver for SilentObserver {}

/// What an [`Effort`] asks and tells, from what callers give.
pub(super) fn observed<'a>(
    observer: &'a dyn DownloadObserver,
    cancel: &'a AtomicBool,
) -> (impl Fn() -> bool + 'a, impl Fn(&str, Duration) + 'a) {
    (|| cancel.load(Ordering::Relaxed), |reason: &str, duration| observer.waiting(reason, duration))
}
