//! Many files: in order, ahead, within limits, stopped at once.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xlstm_pipeline::hub::{
    DownloadObserver, Hub, HubError, Prefetch, PrefetchJobs, PrefetchOptions, RemoteFile, SilentObserver,
};
use xlstm_tests::loopback_hub::client::{Client, REPOSITORY, noise};
use xlstm_tests::loopback_hub::{Effect, Fault, LoopbackHub, Target};

const SIZE: usize = 10_000;

fn name(index: usize) -> String {
    format!("train/{index:03}.zst")
}

fn server(count: usize, faults: impl IntoIterator<Item = Fault>) -> LoopbackHub {
    let files = (0..count).map(|index| (name(index), noise(SIZE, index as u64)));
    let builder = LoopbackHub::builder().dataset(REPOSITORY, files);
    faults.into_iter().fold(builder, |builder, fault| builder.fault(fault)).start()
}

struct Set {
    hub: Arc<Hub>,
    sha: String,
    folder: tempfile::TempDir,
    jobs: Vec<(RemoteFile, PathBuf)>,
    cancel: Arc<AtomicBool>,
}

impl Set {
    fn new(server: &LoopbackHub, stall: Duration) -> Self {
        let client = Client::with(server, |config| config.stall_timeout = stall);
        let files = client.list().unwrap().files;
        let jobs = files.into_iter().map(|file| {
            let destination = client.destination(&file.path);
            (file, destination)
        });
        let jobs = jobs.collect();
        let Client { hub, folder, sha } = client;
        Self { hub: Arc::new(hub), sha, folder, jobs, cancel: Arc::default() }
    }

    fn jobs(&self) -> PrefetchJobs {
        PrefetchJobs { repository: REPOSITORY.to_owned(), sha: self.sha.clone(), files: self.jobs.clone() }
    }

    fn start(&self, options: PrefetchOptions) -> Prefetch {
        let (hub, observer) = (Arc::clone(&self.hub), Arc::new(SilentObserver));
        Prefetch::start(hub, self.jobs(), options, observer, Arc::clone(&self.cancel)).unwrap()
    }
}

/// Files that have been asked for.
fn begun(server: &LoopbackHub) -> usize {
    let mut files: Vec<_> = server.requests().into_iter().filter_map(|request| request.file).collect();
    files.sort();
    files.dedup();
    files.len()
}

#[test]
fn results_come_in_input_order_whatever_arrives_first() {
    // The first file is slow: its bytes stall, then come by another connection.
    let server = server(24, [Fault::on_body(&name(0), Effect::StallAfter(100)).times(1)]);
    let set = Set::new(&server, Duration::from_millis(300));
    let prefetch = set.start(PrefetchOptions { threads: 4, ..PrefetchOptions::default() });
    let mut count = 0;
    for (index, fetched) in prefetch.enumerate() {
        assert_eq!(fetched.file.path, name(index));
        let stored = fetched.result.unwrap();
        assert!(fs_err::read(stored.path).unwrap() == noise(SIZE, index as u64));
        count += 1;
    }
    assert_eq!(count, 24);
}

#[test]
fn no_more_is_begun_than_the_limits_allow() {
    for (options, most) in [
        (PrefetchOptions { threads: 8, bytes_ahead: 3 * SIZE as u64, files_ahead: 100 }, 3),
        (PrefetchOptions { threads: 8, bytes_ahead: u64::MAX, files_ahead: 5 }, 5),
        // A file larger than the limit goes alone.
        (PrefetchOptions { threads: 8, bytes_ahead: 1, files_ahead: 100 }, 1),
    ] {
        let server = server(20, []);
        let set = Set::new(&server, Duration::from_secs(60));
        let mut prefetch = set.start(options);
        for taken in 1..=20 {
            assert!(prefetch.next().unwrap().result.is_ok());
            let begun = begun(&server);
            assert!(begun <= taken + most, "{options:?}: {begun} begun, {taken} taken");
        }
        assert!(prefetch.next().is_none());
    }
}

#[test]
fn a_file_that_fails_does_not_stop_the_others() {
    let server = server(6, [Fault::on_body(&name(2), Effect::WrongByte(5))]);
    let set = Set::new(&server, Duration::from_secs(60));
    let results: Vec<_> = set.start(PrefetchOptions::default()).map(|fetched| fetched.result).collect();
    for (index, result) in results.iter().enumerate() {
        assert_eq!(matches!(result, Err(HubError::WrongDigest { .. })), index == 2, "{index}");
        assert_eq!(result.is_ok(), index != 2, "{index}");
    }
}

#[test]
fn dropping_it_stops_its_downloads_and_leaves_no_thread() {
    let server = server(8, [Fault::new(Target::AnyBody, Effect::StallAfter(1000))]);
    let set = Set::new(&server, Duration::from_secs(600));
    let begun_at = Instant::now();
    let prefetch = set.start(PrefetchOptions::default());
    while begun(&server) < 8 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(prefetch);
    assert!(begun_at.elapsed() < Duration::from_secs(300), "no stall was waited for");
    assert_eq!(Arc::strong_count(&set.hub), 1, "all threads are gone");
    assert!(!set.cancel.load(Ordering::SeqCst), "the caller's own flag is left alone");
}

#[test]
fn a_cancelled_one_hands_out_cancellations_and_the_next_run_completes() {
    let server = server(8, [Fault::new(Target::AnyBody, Effect::StallAfter(1000)).times(8)]);
    let set = Set::new(&server, Duration::from_secs(600));
    let prefetch = set.start(PrefetchOptions::default());
    while server.requests().iter().filter(|request| request.is_body && request.body_bytes == 1000).count() < 8
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    set.cancel.store(true, Ordering::SeqCst);
    let results: Vec<_> = prefetch.map(|fetched| fetched.result).collect();
    assert_eq!(results.len(), 8);
    assert!(results.into_iter().all(|result| result.unwrap_err().is_cancelled()));
    set.cancel.store(false, Ordering::SeqCst);
    assert!(set.start(PrefetchOptions::default()).all(|fetched| fetched.result.is_ok()));
    assert!(set.folder.path().join("data/train/007.zst").exists());
}

#[test]
fn files_of_an_earlier_run_are_verified_and_not_asked_for() {
    let server = server(5, []);
    let set = Set::new(&server, Duration::from_secs(60));
    assert!(set.start(PrefetchOptions::default()).all(|fetched| fetched.result.is_ok()));
    fs_err::write(set.folder.path().join("data/train/003.zst"), "damaged").unwrap();
    server.forget_requests();
    let again = set.start(PrefetchOptions::default());
    let requests: Vec<_> = again.map(|fetched| fetched.result.unwrap().fetched.requests).collect();
    assert_eq!(requests, [0, 0, 0, 1, 0]);
    assert_eq!(begun(&server), 1);
}

struct Clumsy;

impl DownloadObserver for Clumsy {
    fn advanced(&self, _: u64) {
        panic!("the observer stumbled");
    }
}

#[test]
#[should_panic(expected = "the observer stumbled")]
fn a_panic_in_a_download_thread_reaches_the_caller() {
    let server = server(2, []);
    let set = Set::new(&server, Duration::from_secs(60));
    let (hub, cancel) = (Arc::clone(&set.hub), Arc::clone(&set.cancel));
    let options = PrefetchOptions::default();
    let prefetch = Prefetch::start(hub, set.jobs(), options, Arc::new(Clumsy), cancel);
    let _ = prefetch.unwrap().next();
}
