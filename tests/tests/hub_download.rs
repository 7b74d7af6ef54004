//! One file: whole, resumed, verified, refused.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use xlstm_pipeline::hub::{
    DownloadObserver, FileRequest, HubError, Origin, RemoteFile, SilentObserver, StoredFile, verify_file,
};
use xlstm_tests::loopback_hub::client::{Client, REPOSITORY, noise};
use xlstm_tests::loopback_hub::{Effect, Fault, LoopbackHub, hex};

const PATH: &str = "train/chunk1/example_train_0.jsonl.zst";
const SIZE: usize = 300_000;

fn content() -> Vec<u8> {
    noise(SIZE, 1)
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn server(faults: impl IntoIterator<Item = Fault>) -> LoopbackHub {
    let builder = LoopbackHub::builder().dataset(REPOSITORY, [(PATH.to_owned(), content())]);
    faults.into_iter().fold(builder, |builder, fault| builder.fault(fault)).start()
}

/// Leaves `bytes` as an interrupted run would.
fn leave_part(client: &Client, bytes: &[u8]) {
    let file = client.file(PATH);
    let destination = client.destination(PATH);
    fs_err::create_dir_all(destination.parent().unwrap()).unwrap();
    fs_err::write(destination.with_added_extension("part"), bytes).unwrap();
    let sidecar = serde_json::json!({"digest": file.digest, "size": file.size}).to_string();
    fs_err::write(destination.with_added_extension("part.json"), sidecar).unwrap();
}

/// The file is there, right, and alone.
fn assert_arrived(client: &Client) {
    let destination = client.destination(PATH);
    assert!(fs_err::read(&destination).unwrap() == content());
    assert_eq!(fs_err::read_dir(destination.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
}

fn ranges(server: &LoopbackHub) -> Vec<Option<String>> {
    server.requests().into_iter().filter(|request| request.is_body).map(|request| request.range).collect()
}

#[test]
fn large_small_and_empty_files_arrive_verified_with_one_request_each() {
    let files = [
        (PATH.to_owned(), content()),
        ("README.md".to_owned(), b"# Card\n".to_vec()),
        ("odd name #1?%.json".to_owned(), b"{}".to_vec()),
        ("empty.jsonl.gz".to_owned(), vec![]),
    ];
    let server = LoopbackHub::builder().dataset(REPOSITORY, files.clone()).start();
    let client = Client::anonymous(&server);
    for (path, content) in files {
        let fetched = client.download(&path).unwrap();
        assert!(fs_err::read(client.destination(&path)).unwrap() == content, "{path}");
        assert_eq!(fetched.sha256.to_string(), sha256(&content), "{path}");
        assert_eq!((fetched.size, fetched.reused_bytes), (content.len() as u64, 0), "{path}");
        // Nothing needs to be asked for the bytes of an empty file.
        let expected = usize::from(!content.is_empty());
        assert_eq!(
            (server.resolver_requests(&path), fetched.requests as usize),
            (expected, expected),
            "{path}"
        );
    }
    assert!(server.requests().iter().all(|request| request.method == "GET"));
    let bodies: Vec<_> = server.requests().into_iter().filter(|request| request.is_body).collect();
    assert!(bodies.iter().all(|request| request.accept_encoding.as_deref() == Some("identity")));
}

#[test]
fn a_finished_file_is_verified_and_not_asked_for_again() {
    let server = server([]);
    let client = Client::anonymous(&server);
    client.download(PATH).unwrap();
    server.forget_requests();
    let again = client.download(PATH).unwrap();
    assert_eq!((again.requests, again.reused_bytes), (0, SIZE as u64));
    assert!(server.requests().is_empty());
}

#[derive(Default)]
struct Replacements(Mutex<Vec<String>>);

impl DownloadObserver for Replacements {
    fn replacing(&self, _: &std::path::Path, problem: &HubError) {
        self.0.lock().unwrap().push(problem.to_string());
    }
}

#[test]
fn a_finished_file_that_was_damaged_since_is_replaced_and_the_observer_told() {
    let server = server([]);
    let client = Client::anonymous(&server);
    client.download(PATH).unwrap();
    let destination = client.destination(PATH);
    let mut bytes = content();
    bytes[SIZE / 2] ^= 0x10;
    fs_err::write(&destination, bytes).unwrap();
    let file = client.file(PATH);
    assert!(matches!(verify_file(&destination, &file), Err(HubError::WrongDigest { .. })));
    let (told, cancel) = (Replacements::default(), AtomicBool::new(false));
    client
        .hub
        .download(
            &FileRequest { repository: REPOSITORY, sha: &client.sha, file: &file, destination: &destination },
            &told,
            &cancel,
        )
        .unwrap();
    assert_arrived(&client);
    assert_eq!(told.0.into_inner().unwrap().len(), 1);
}

#[test]
fn a_resumed_download_asks_for_the_missing_bytes_only() {
    let server = server([]);
    let client = Client::anonymous(&server);
    leave_part(&client, &content()[..100_000]);
    let fetched = client.download(PATH).unwrap();
    assert_arrived(&client);
    assert_eq!((fetched.reused_bytes, fetched.requests), (100_000, 1));
    assert_eq!(ranges(&server), [Some("bytes=100000-".to_owned())]);
    assert_eq!(server.bytes_served(PATH), (SIZE - 100_000) as u64);
}

#[test]
fn a_part_that_is_whole_needs_no_request() {
    let server = server([]);
    let client = Client::anonymous(&server);
    leave_part(&client, &content());
    assert_eq!(client.download(PATH).unwrap().requests, 0);
    assert_arrived(&client);
    assert_eq!(server.resolver_requests(PATH), 0);
}

#[test]
fn a_part_whose_bytes_were_damaged_is_found_out_and_downloaded_anew() {
    let server = server([]);
    let client = Client::anonymous(&server);
    let mut part = content()[..100_000].to_vec();
    part[7] ^= 1;
    leave_part(&client, &part);
    let fetched = client.download(PATH).unwrap();
    assert_arrived(&client);
    assert_eq!((fetched.reused_bytes, fetched.requests), (0, 2));
}

#[test]
fn a_part_of_another_file_is_not_used() {
    let server = server([]);
    let client = Client::anonymous(&server);
    leave_part(&client, &content()[..100_000]);
    let sidecar = client.destination(PATH).with_added_extension("part.json");
    let other = serde_json::json!({"digest": {"sha256": "00".repeat(32)}, "size": SIZE}).to_string();
    fs_err::write(sidecar, other).unwrap();
    assert_eq!(client.download(PATH).unwrap().reused_bytes, 0);
    assert_arrived(&client);
    assert_eq!(ranges(&server), [None]);
}

/// Sets its flag once half of the file is there.
struct StopHalfway<'a> {
    seen: AtomicU64,
    cancel: &'a AtomicBool,
}

impl DownloadObserver for StopHalfway<'_> {
    fn advanced(&self, bytes: u64) {
        if self.seen.fetch_add(bytes, Ordering::SeqCst) + bytes >= SIZE as u64 / 2 {
            self.cancel.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn a_client_that_stops_halfway_downloads_the_other_half_the_next_time() {
    // The body stalls past the half, so that the stop is certain to come before the end.
    let server = server([Fault::on_body(PATH, Effect::StallAfter(200_000)).times(1)]);
    let client = Client::with(&server, |config| config.stall_timeout = Duration::from_secs(600));
    let (file, destination) = (client.file(PATH), client.destination(PATH));
    let cancel = AtomicBool::new(false);
    let observer = StopHalfway { seen: AtomicU64::new(0), cancel: &cancel };
    let begun = Instant::now();
    let stopped = client.hub.download(
        &FileRequest { repository: REPOSITORY, sha: &client.sha, file: &file, destination: &destination },
        &observer,
        &cancel,
    );
    assert!(stopped.unwrap_err().is_cancelled());
    assert!(begun.elapsed() < Duration::from_secs(300), "it did not wait for the stall to end");
    assert!(!destination.exists());
    let part = fs_err::metadata(destination.with_added_extension("part")).unwrap().len();
    assert!(part >= SIZE as u64 / 2, "{part}");

    server.forget_requests();
    let fetched = client.download(PATH).unwrap();
    assert_arrived(&client);
    assert_eq!(fetched.reused_bytes, part);
    assert_eq!(server.bytes_served(PATH), SIZE as u64 - part, "each byte is sent once");
}

#[test]
fn two_at_once_do_not_write_one_file() {
    let server = server([Fault::on_body(PATH, Effect::StallAfter(100_000)).times(1)]);
    let client = Client::with(&server, |config| config.stall_timeout = Duration::from_secs(600));
    let (file, destination) = (client.file(PATH), client.destination(PATH));
    let cancel = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            client.hub.download(
                &FileRequest {
                    repository: REPOSITORY,
                    sha: &client.sha,
                    file: &file,
                    destination: &destination,
                },
                &SilentObserver,
                &cancel,
            )
        });
        let part = destination.with_added_extension("part");
        while fs_err::metadata(&part).map_or(0, |metadata| metadata.len()) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let second = client.download(PATH).unwrap_err();
        assert!(matches!(second, HubError::Busy { .. }), "{second}");
        cancel.store(true, Ordering::SeqCst);
        assert!(first.join().unwrap().unwrap_err().is_cancelled());
    });
    client.download(PATH).unwrap();
    assert_arrived(&client);
}

#[test]
fn wrong_bytes_once_are_downloaded_again() {
    let server = server([Fault::on_body(PATH, Effect::WrongByte(12_345)).times(1)]);
    let client = Client::anonymous(&server);
    assert_eq!(client.download(PATH).unwrap().requests, 2);
    assert_arrived(&client);
    assert_eq!(ranges(&server), [None, None], "from the first byte");
}

#[test]
fn wrong_bytes_twice_are_an_error_that_names_file_expected_and_found() {
    let server = server([Fault::on_body(PATH, Effect::WrongByte(12_345))]);
    let client = Client::anonymous(&server);
    let error = client.download(PATH).unwrap_err();
    let HubError::WrongDigest { expected, found, .. } = &error else { panic!("{error}") };
    let mut wrong = content();
    wrong[12_345] ^= 1;
    assert!(expected.contains(&sha256(&content())) && found.contains(&sha256(&wrong)));
    let words = error.to_string();
    assert!(words.contains(PATH) && words.contains(expected) && words.contains(found), "{words}");
    assert_eq!(ranges(&server).len(), 2);
    let folder = client.destination(PATH).parent().unwrap().to_owned();
    assert_eq!(fs_err::read_dir(folder).unwrap().count(), 0, "no wrong byte is kept");
}

#[test]
fn an_error_page_in_place_of_the_file_is_no_file() {
    for length in [20, SIZE - 1, SIZE + 1] {
        let server = server([Fault::on_body(PATH, Effect::OtherBody(vec![b'x'; length]))]);
        let error = Client::anonymous(&server).download(PATH).unwrap_err();
        let wrong = matches!(error, HubError::WrongSize { expected, found, .. }
            if (expected, found) == (SIZE as u64, length as u64));
        assert!(wrong, "{error}");
        assert_eq!(ranges(&server).len(), 2);
    }
}

fn obtain(client: &Client, file: &RemoteFile) -> StoredFile {
    let (destination, cancel) = (client.destination(PATH), AtomicBool::new(false));
    client
        .hub
        .obtain(
            &FileRequest { repository: REPOSITORY, sha: &client.sha, file, destination: &destination },
            &SilentObserver,
            &cancel,
        )
        .unwrap()
}

#[test]
fn a_blob_of_the_hugging_face_cache_is_used_where_it_lies_if_it_is_right() {
    let server = server([]);
    let client = Client::anonymous(&server);
    let file = client.file(PATH);
    assert_eq!(client.hub.locate_in_hf_cache(REPOSITORY, &client.sha, &file), None);
    let blobs = client.folder.path().join("hf/datasets--owner--name/blobs");
    fs_err::create_dir_all(&blobs).unwrap();
    let blob = blobs.join(sha256(&content()));
    fs_err::write(&blob, content()).unwrap();
    assert_eq!(client.hub.locate_in_hf_cache(REPOSITORY, &client.sha, &file).as_ref(), Some(&blob));
    let stored = obtain(&client, &file);
    assert_eq!((stored.origin, stored.path), (Origin::HuggingFaceCache, blob.clone()));
    assert_eq!(server.resolver_requests(PATH), 0);

    let mut damaged = content();
    damaged[0] ^= 1;
    fs_err::write(&blob, damaged).unwrap();
    let stored = obtain(&client, &file);
    assert_eq!((stored.origin, stored.path), (Origin::Hub, client.destination(PATH)));
    assert_arrived(&client);
    assert_eq!(obtain(&client, &file).origin, Origin::Destination);
}

#[test]
fn a_folder_that_cannot_be_made_is_named_before_any_request() {
    let server = server([]);
    let client = Client::anonymous(&server);
    let file = client.file(PATH);
    // A file where a folder should be fails for every user, root included.
    let wall = client.folder.path().join("wall");
    fs_err::write(&wall, "").unwrap();
    let (destination, cancel) = (wall.join("deep/file.zst"), AtomicBool::new(false));
    let result = client.hub.download(
        &FileRequest { repository: REPOSITORY, sha: &client.sha, file: &file, destination: &destination },
        &SilentObserver,
        &cancel,
    );
    let error = result.unwrap_err();
    assert!(matches!(error, HubError::Disk { .. }), "{error}");
    assert!(error.to_string().contains("wall"), "{error}");
    assert_eq!(server.resolver_requests(PATH), 0);
}

/// Everything written to `/dev/full` fails with "no space left on device".
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_what_to_do_and_the_next_run_completes() {
    let server = server([]);
    let client = Client::anonymous(&server);
    let destination = client.destination(PATH);
    fs_err::create_dir_all(destination.parent().unwrap()).unwrap();
    let part = destination.with_added_extension("part");
    fs_err::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = client.download(PATH).unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, HubError::Disk { .. }), "{words}");
    assert!(words.contains("example_train_0.jsonl.zst.part") && words.contains("free some space"), "{words}");
    assert!(!destination.exists());
    fs_err::remove_file(&part).unwrap();
    client.download(PATH).unwrap();
    assert_arrived(&client);
}
