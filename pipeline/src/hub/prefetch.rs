//! Files in order, downloaded ahead.
//!
//! ```text
//!              files in input order ──►
//!   taken │ next │ arrived │ arriving │ arriving │ not begun …
//!         └──────┴── ahead: at most so many files and bytes ──┘
//! ```
//! Several threads download the next files while the caller works on one. They begin in input order and results
//! are handed out in input order, whichever arrives first. What has been begun and not yet been taken is limited in
//! files and bytes, so that a slow caller does not fill the disk; one file larger than the limit goes alone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::client::Hub;
use super::error::HubError;
use super::observer::DownloadObserver;
use super::remote::{FileRequest, RemoteFile, StoredFile};

/// Limits of a [`Prefetch`].
#[derive(Debug, Clone, Copy)]
pub struct PrefetchOptions {
    /// Downloads at the same time.
    pub threads: usize,
    /// Bytes begun and not yet taken.
    pub bytes_ahead: u64,
    /// Files begun and not yet taken.
    pub files_ahead: usize,
}

impl Default for PrefetchOptions {
    fn default() -> Self {
        Self { threads: 8, bytes_ahead: 2 << 30, files_ahead: 256 }
    }
}

/// What a [`Prefetch`] downloads.
pub struct PrefetchJobs {
    /// `owner/name` of the dataset.
    pub repository: String,
    /// The commit, 40 hex digits.
    pub sha: String,
    /// Its files in order, and where each goes.
    pub files: Vec<(RemoteFile, PathBuf)>,
}

/// A file handed out by a [`Prefetch`].
#[derive(Debug)]
pub struct Prefetched {
    /// What was asked for.
    pub file: RemoteFile,
    /// Where it is, or why it is not.
    pub result: Result<StoredFile, HubError>,
}

/// An iterator over files in the order they were given. Dropped, it stops its downloads and waits for its threads;
/// what has arrived stays for the next time.
pub struct Prefetch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    hub: Arc<Hub>,
    jobs: PrefetchJobs,
    options: PrefetchOptions,
    observer: Arc<dyn DownloadObserver + Send + Sync>,
    cancel: Arc<AtomicBool>,
    dropped: AtomicBool,
    state: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Default)]
struct Arrived {
    begun: usize,
    taken: usize,
    bytes_ahead: u64,
    results: BTreeMap<usize, std::thread::Result<Result<StoredFile, HubError>>>,
}

impl Prefetch {
    /// Begins to download `jobs`. When `cancel` becomes true, all that is still to come becomes [`HubError::Cancelled`].
    ///
    /// # Errors
    /// [`HubError::Disk`] when the system gives no threads.
    pub fn start(
        hub: Arc<Hub>,
        jobs: PrefetchJobs,
        options: PrefetchOptions,
        observer: Arc<dyn DownloadObserver + Send + Sync>,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, HubError> {
        let count = options.threads.clamp(1, jobs.files.len().max(1));
        let shared = Arc::new(Shared {
            hub,
            jobs,
            options,
            observer,
            cancel,
            dropped: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut prefetch = Self { shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&prefetch.shared);
            let builder = std::thread::Builder::new().name(format!("download-{number}"));
            let thread = builder.spawn(move || shared.work());
            prefetch.threads.push(thread.map_err(HubError::disk("start", "a download thread".as_ref()))?);
        }
        Ok(prefetch)
    }
}

impl Iterator for Prefetch {
    type Item = Prefetched;

    /// Waits for the next file in order.
    fn next(&mut self) -> Option<Prefetched> {
        let mut state = self.shared.lock();
        let (file, _) = self.shared.jobs.files.get(state.taken)?;
        let index = state.taken;
        let result = loop {
            match state.results.remove(&index) {
                Some(result) => break result,
                None => state = self.shared.wait(state),
            }
        };
        state.taken += 1;
        state.bytes_ahead = state.bytes_ahead.saturating_sub(file.size);
        drop(state);
        self.shared.changed.notify_all();
        match result {
            Ok(result) => Some(Prefetched { file: file.clone(), result }),
            // A fault of ours in a download thread is one here as well.
            Err(panic) => resume_unwind(panic),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.shared.jobs.files.len() - self.shared.lock().taken;
        (left, Some(left))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Relaxed);
        // With the lock, so that no thread is between its look at the flag and its wait.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Its panics were caught.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, Arrived>) -> MutexGuard<'a, Arrived> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) || self.cancel.load(Ordering::Relaxed)
    }

    fn work(&self) {
        while let Some(index) = self.begin() {
            let (file, destination) = &self.jobs.files[index];
            let result = catch_unwind(AssertUnwindSafe(|| {
                let PrefetchJobs { repository, sha, .. } = &self.jobs;
                let request = FileRequest { repository, sha, file, destination };
                self.hub.obtain_until(&request, &*self.observer, &|| self.stopped())
            }));
            self.lock().results.insert(index, result);
            self.changed.notify_all();
        }
    }

    /// The next job, once there is room for it; `None` when there is none left or nobody waits for them.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let index = state.begun;
            let (file, _) = self.jobs.files.get(index)?;
            if self.dropped.load(Ordering::Relaxed) {
                return None;
            }
            let ahead = index - state.taken;
            let room = ahead < self.options.files_ahead
                && state.bytes_ahead.saturating_add(file.size) <= self.options.bytes_ahead;
            if ahead == 0 || room {
                state.begun += 1;
                state.bytes_ahead = state.bytes_ahead.saturating_add(file.size);
                return Some(index);
            }
            state = self.wait(state);
        }
    }
}
