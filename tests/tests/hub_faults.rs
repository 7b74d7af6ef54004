//! A Hub that misbehaves: the file arrives all the same, or there is a clean error.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xlstm_pipeline::hub::{DownloadObserver, FileRequest, HubError};
use xlstm_tests::loopback_hub::client::{Client, REPOSITORY, noise};
use xlstm_tests::loopback_hub::{Effect, Fault, LoopbackHub, RecordedRequest, Target};

const PATH: &str = "validation/chunk1/example_holdout_0.jsonl.zst";
const SIZE: usize = 300_000;

fn content() -> Vec<u8> {
    noise(SIZE, 2)
}

fn server(faults: impl IntoIterator<Item = Fault>) -> LoopbackHub {
    let builder = LoopbackHub::builder().dataset(REPOSITORY, [(PATH.to_owned(), content())]);
    faults.into_iter().fold(builder, |builder, fault| builder.fault(fault)).start()
}

/// Downloads against `faults`; the file must arrive. What was asked of the bytes.
fn arrives(faults: impl IntoIterator<Item = Fault>) -> Vec<RecordedRequest> {
    arrives_within(Duration::from_secs(60), faults)
}

/// As [`arrives`], giving up a silent connection after `stall`.
fn arrives_within(stall: Duration, faults: impl IntoIterator<Item = Fault>) -> Vec<RecordedRequest> {
    let server = server(faults);
    let client = Client::with(&server, |config| config.stall_timeout = stall);
    client.download(PATH).unwrap();
    assert!(fs_err::read(client.destination(PATH)).unwrap() == content());
    server.requests().into_iter().filter(|request| request.is_body).collect()
}

fn first_byte(request: &RecordedRequest) -> u64 {
    let range = request.range.as_deref().unwrap_or("bytes=0-");
    range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
}

#[test]
fn after_a_reset_a_cut_an_early_end_or_a_stall_it_goes_on_from_the_byte_reached() {
    for effect in [
        Effect::ResetAfter(100_000),
        Effect::CutAfter(100_000),
        Effect::EndAfter(100_000),
        Effect::StallAfter(100_000),
    ] {
        let fault = Fault::on_body(PATH, effect.clone()).times(1);
        let requests = arrives_within(Duration::from_secs(2), [fault]);
        assert_eq!(requests.len(), 2, "{effect:?}");
        // A reset may overtake bytes that were sent before it.
        let expected = if matches!(effect, Effect::ResetAfter(_)) { 0..=100_000 } else { 100_000..=100_000 };
        assert!(expected.contains(&first_byte(&requests[1])), "{effect:?}: {:?}", requests[1].range);
    }
}

#[test]
fn a_connection_closed_or_silent_before_any_answer_is_tried_again() {
    for effect in [Effect::Close, Effect::StallBeforeHeader] {
        let requests = arrives_within(Duration::from_secs(2), [Fault::on_body(PATH, effect).times(1)]);
        assert_eq!(requests.last().unwrap().status, 200);
    }
}

#[test]
fn server_errors_are_waited_out_on_both_hosts() {
    for status in [408, 500, 502, 503, 504] {
        let effect = Effect::Status(status, vec![], "<html>oops</html>".into());
        let on_hub = Fault::on_resolve(PATH, effect.clone()).times(1);
        let requests = arrives([on_hub, Fault::on_body(PATH, effect).times(1)]);
        assert_eq!(requests.len(), 2);
    }
}

#[test]
fn an_expired_signature_is_replaced_by_a_new_one() {
    let expired = Effect::Status(403, vec![], "<Error>Request has expired</Error>".into());
    let server = server([Fault::on_body(PATH, expired).times(1)]);
    Client::anonymous(&server).download(PATH).unwrap();
    assert_eq!(server.resolver_requests(PATH), 2, "the Hub was asked for a new address");
}

/// What was asked for, and how it was answered, when the first answer is cut and the next ones are `effects`.
fn after_a_cut(effects: &[Effect]) -> Vec<(u64, u16)> {
    let effects = [Effect::CutAfter(100_000)].into_iter().chain(effects.iter().cloned());
    let faults = effects.map(|effect| Fault::on_body(PATH, effect).times(1));
    arrives(faults).iter().map(|request| (first_byte(request), request.status)).collect()
}

#[test]
fn answers_that_do_not_fit_the_range_start_the_file_anew() {
    // The whole file: used as it comes, with no further request.
    assert_eq!(after_a_cut(&[Effect::IgnoreRange]), [(0, 200), (100_000, 200)]);
    // Other bytes than asked for: not appended. That this is not mistaken for wrong content, which is forgiven once
    // only, shows in the wrong byte that may still follow.
    for (effect, status) in [(Effect::OtherRange, 206), (Effect::Unsatisfiable, 416)] {
        let asked = after_a_cut(&[effect, Effect::WrongByte(7)]);
        assert_eq!(asked, [(0, 200), (100_000, status), (0, 200), (0, 200)]);
    }
}

#[test]
fn progress_renews_the_attempts() {
    // 30 breaks, though only 4 attempts in a row are allowed: each brought new bytes.
    let requests = arrives([Fault::on_body(PATH, Effect::CutAfter(9_000)).times(30)]);
    assert_eq!(requests.len(), 31);
    let sent: u64 = requests.iter().map(|request| request.body_bytes).sum();
    assert_eq!(sent, SIZE as u64, "no byte was sent twice");
}

#[test]
fn the_same_bytes_again_and_again_are_no_progress() {
    // Ranges ignored and the body broken off each time: without an end to it, this would go on for ever.
    let server = server([Fault::on_body(PATH, Effect::IgnoreRangeAndResetAfter(50_000))]);
    let error = Client::anonymous(&server).download(PATH).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn after_all_attempts_the_part_stays_for_the_next_run() {
    let cut = Fault::on_body(PATH, Effect::CutAfter(100_000)).times(1);
    // The file's attempts after the cut: three more, all refused on the Hub's side.
    let down = Fault::on_resolve(PATH, Effect::Status(503, vec![], String::new())).after(1).times(3);
    let server = server([cut, down]);
    let client = Client::anonymous(&server);
    let error = client.download(PATH).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 4, .. }), "{error}");
    assert!(error.to_string().contains(PATH), "{error}");
    server.forget_requests();
    assert_eq!(client.download(PATH).unwrap().reused_bytes, 100_000);
    assert_eq!(server.bytes_served(PATH), SIZE as u64 - 100_000);
    assert!(fs_err::read(client.destination(PATH)).unwrap() == content());
}

#[test]
fn rate_limits_do_not_use_up_the_attempts() {
    let date = Effect::RetryAfter("Mon, 23 Nov 2020 12:00:00 GMT".into());
    // 12 refusals, though only 4 attempts in a row are allowed.
    let effects = [Effect::RetryAfter("0".into()), Effect::RateLimited(0), Effect::BareTooMany, date];
    let server = server(effects.map(|effect| Fault::on_resolve(PATH, effect).times(3)));
    let fetched = Client::anonymous(&server).download(PATH).unwrap();
    assert_eq!(fetched.requests, 13);
}

/// Remembers for how long it was told to wait.
#[derive(Default)]
struct Waits(Mutex<Vec<Duration>>);

impl DownloadObserver for Waits {
    fn waiting(&self, _: &str, duration: Duration) {
        self.0.lock().unwrap().push(duration);
    }
}

#[test]
fn the_wait_is_as_long_as_the_hub_says_and_shared_by_all_downloads() {
    let paths = ["a.zst", "b.zst", "c.zst", "d.zst"];
    let files = paths.map(|path| (path.to_owned(), noise(1000, 3)));
    let server = LoopbackHub::builder().dataset(REPOSITORY, files).start();
    let client = Client::anonymous(&server);
    let listing = client.list().unwrap();
    // The first download is told to come back in two seconds; the others begin within them and must wait as well.
    server.add_fault(Fault::on_resolve("a.zst", Effect::RateLimited(2)).times(1));
    let (observer, cancel) = (Waits::default(), AtomicBool::new(false));
    let download = |path: &str| {
        let file = listing.files.iter().find(|file| file.path == path).unwrap();
        let destination = client.destination(path);
        client
            .hub
            .download(
                &FileRequest { repository: REPOSITORY, sha: &client.sha, file, destination: &destination },
                &observer,
                &cancel,
            )
            .unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| download("a.zst"));
        while observer.0.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for path in &paths[1..] {
            scope.spawn(|| download(path));
        }
    });
    let waits = observer.0.into_inner().unwrap();
    assert!(waits[0] > Duration::from_millis(1900), "{waits:?}");
    assert_eq!(waits.len(), 4, "each download waited once, three of them before asking at all: {waits:?}");
    let refused = server.requests().iter().filter(|request| request.status == 429).count();
    assert_eq!(refused, 1, "nobody else ran into the limit");
}

#[test]
fn the_last_request_of_a_window_closes_the_gate_before_any_refusal() {
    let files = ["a.zst", "b.zst"].map(|path| (path.to_owned(), noise(1000, 3)));
    let builder = LoopbackHub::builder().dataset(REPOSITORY, files);
    let server = builder.fault(Fault::on_resolve("a.zst", Effect::LastOfWindow(2))).start();
    let client = Client::anonymous(&server);
    client.download("a.zst").unwrap();
    let (observer, cancel, file) = (Waits::default(), AtomicBool::new(false), client.file("b.zst"));
    let destination = client.destination("b.zst");
    client
        .hub
        .download(
            &FileRequest { repository: REPOSITORY, sha: &client.sha, file: &file, destination: &destination },
            &observer,
            &cancel,
        )
        .unwrap();
    assert_eq!(observer.0.into_inner().unwrap().len(), 1);
}

#[test]
fn a_wait_beyond_patience_is_an_error_that_says_so() {
    let server = server([Fault::on_resolve(PATH, Effect::RateLimited(3600))]);
    let error = Client::anonymous(&server).download(PATH).unwrap_err();
    assert!(matches!(error, HubError::RateLimited { .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
}

/// Adds up what the observer is told: reused and advanced less rewound must come to the file's length.
#[derive(Default)]
struct Ledger {
    plus: AtomicU64,
    minus: AtomicU64,
}

impl DownloadObserver for Ledger {
    fn reused(&self, bytes: u64) {
        self.plus.fetch_add(bytes, Ordering::SeqCst);
    }
    fn advanced(&self, bytes: u64) {
        self.plus.fetch_add(bytes, Ordering::SeqCst);
    }
    fn rewound(&self, bytes: u64) {
        self.minus.fetch_add(bytes, Ordering::SeqCst);
    }
}

fn random_fault(random: &mut StdRng, path: &str, size: u64) -> Fault {
    let at = random.random_range(0..=size);
    let effect = match random.random_range(0..16) {
        0 => Effect::ResetAfter(at),
        1 => Effect::CutAfter(at),
        2 => Effect::EndAfter(at),
        3 => Effect::StallAfter(at),
        4 => Effect::StallBeforeHeader,
        5 => Effect::Close,
        6 => Effect::IgnoreRange,
        7 => Effect::IgnoreRangeAndResetAfter(at),
        8 => Effect::OtherRange,
        9 => Effect::Unsatisfiable,
        10 => Effect::WrongByte(at),
        11 => Effect::OtherBody(noise(random.random_range(0..100), at)),
        12 => Effect::Status([403, 408, 500, 502, 503, 504][at as usize % 6], vec![], "oops".into()),
        13 => Effect::RetryAfter("0".into()),
        14 => Effect::RateLimited(0),
        _ => Effect::BareTooMany,
    };
    let may_strike_hub = matches!(effect, Effect::Close | Effect::RetryAfter(_) | Effect::RateLimited(_));
    let target = match may_strike_hub && random.random() {
        true => Target::Resolve(path.to_owned()),
        false => Target::Body(path.to_owned()),
    };
    Fault::new(target, effect).after(random.random_range(0..3)).times(random.random_range(1..4))
}

/// What is on disk: the right file or none, and never both a file and an error.
fn assert_clean(destination: &Path, content: &[u8], arrived: bool, story: &str) {
    match fs_err::read(destination) {
        Ok(bytes) => assert!(arrived && bytes == content, "{story}"),
        Err(_) => assert!(!arrived, "{story}"),
    }
}

/// One run against whatever faults are left; whether the file arrived.
fn run(client: &Client, path: &str, content: &[u8], story: &str) -> bool {
    let (file, destination) = (client.file(path), client.destination(path));
    let (ledger, cancel) = (Ledger::default(), AtomicBool::new(false));
    let result = client.hub.download(
        &FileRequest { repository: REPOSITORY, sha: &client.sha, file: &file, destination: &destination },
        &ledger,
        &cancel,
    );
    assert_clean(&destination, content, result.is_ok(), story);
    match result {
        Ok(fetched) => {
            let counted = ledger.plus.into_inner() - ledger.minus.into_inner();
            assert_eq!((fetched.size, counted), (content.len() as u64, content.len() as u64), "{story}");
            assert!(!destination.with_added_extension("part").exists(), "{story}");
            true
        }
        // From the Hub itself, where small files lie, 403 is final for that run, and so is 416 to no range.
        Err(
            HubError::Unreachable { .. }
            | HubError::WrongSize { .. }
            | HubError::WrongDigest { .. }
            | HubError::Forbidden { .. }
            | HubError::Status { status: 416, .. },
        ) => false,
        Err(error) => panic!("{error}; {story}"),
    }
}

#[test]
fn whatever_goes_wrong_the_file_arrives_byte_for_byte_or_there_is_a_clean_error() {
    let mut failed = 0;
    for seed in 0..60 {
        let random = &mut StdRng::seed_from_u64(seed);
        let path = ["x.zst", "x.json"][seed as usize % 2];
        let content = noise(random.random_range(1..200_000), seed);
        let faults: Vec<_> = (0..random.random_range(1..6))
            .map(|_| random_fault(random, path, content.len() as u64))
            .collect();
        let story = format!("seed {seed}, {} bytes, {faults:?}", content.len());
        let builder = LoopbackHub::builder().dataset(REPOSITORY, [(path.to_owned(), content.clone())]);
        let server = faults.into_iter().fold(builder, |builder, fault| builder.fault(fault)).start();
        let client = Client::with(&server, |config| config.stall_timeout = Duration::from_millis(100));
        // All faults pass, so that runs one after the other must come to an end.
        let runs = (1..=20).find(|_| run(&client, path, &content, &story));
        failed += runs.unwrap_or_else(|| panic!("it never arrives; {story}")) - 1;
    }
    assert!(failed > 0, "the faults are hard enough to make some runs fail");
}
