//! Revisions, listings, and what the Hub refuses.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use xlstm_pipeline::hub::{DeclaredDigest, FileRequest, Gated, HubError, SilentObserver};
use xlstm_tests::loopback_hub::client::{Client, REPOSITORY, noise};
use xlstm_tests::loopback_hub::{Effect, Fault, Host, LoopbackHub, SIGNATURE, Target};

const PATH: &str = "train/chunk0/file_0.jsonl.zst";

fn files(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|i| (format!("train/chunk{}/file_{i}.jsonl.zst", i % 3), noise(50 + i, i as u64)))
        .collect()
}

#[test]
fn a_revision_resolves_to_its_commit_gate_and_licence() {
    let sha = "65cd6fc0123456789abcdef0123456789abcdef0";
    let builder = LoopbackHub::builder().dataset(REPOSITORY, files(1)).commit(sha);
    let server = builder.licence("other").gated("hf_right").start();
    let client = Client::anonymous(&server);
    for revision in ["main", "65cd6fc", sha] {
        let resolved = client.hub.resolve(REPOSITORY, revision).unwrap();
        assert_eq!((resolved.sha.as_str(), resolved.requested.as_str()), (sha, revision));
        assert_eq!((resolved.gated, resolved.licences), (Gated::Auto, vec!["other".to_owned()]));
        assert_eq!(resolved.last_modified.as_deref(), Some("2024-06-06T20:14:54.000Z"));
    }
}

#[test]
fn a_listing_is_complete_sorted_paged_and_kept_for_good() {
    let mut all = files(25);
    all.push(("README.md".into(), b"# Card\n".to_vec()));
    let server = LoopbackHub::builder().dataset(REPOSITORY, all.clone()).page_size(4).start();
    let client = Client::anonymous(&server);
    let listing = client.list().unwrap();
    all.sort();
    let paths: Vec<_> = listing.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, all.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>());
    for (file, (_, content)) in listing.files.iter().zip(&all) {
        assert_eq!(file.size, content.len() as u64);
        assert_eq!(matches!(file.digest, DeclaredDigest::Sha256(_)), file.path.ends_with(".zst"));
    }
    // 26 files and 4 folders.
    assert_eq!((listing.requests, listing.not_kept), (8, None));
    assert_eq!(server.requests().len(), 8);

    let again = client.list().unwrap();
    assert_eq!((again.requests, again.files), (0, listing.files));
    assert_eq!(server.requests().len(), 8, "the second listing came from the disk");
}

#[test]
fn a_listing_survives_rate_limits_errors_and_broken_pages() {
    let server = LoopbackHub::builder()
        .dataset(REPOSITORY, files(10))
        .page_size(3)
        .fault(Fault::new(Target::Tree, Effect::Status(503, vec![], "busy".into())).after(1).times(1))
        .fault(Fault::new(Target::Tree, Effect::RetryAfter("0".into())).after(1).times(2))
        .fault(Fault::new(Target::Tree, Effect::CutAfter(30)).after(2).times(1))
        .start();
    let client = Client::anonymous(&server);
    assert_eq!(client.list().unwrap().files.len(), 10);
    let refused = server.requests().iter().filter(|request| request.status != 200).count();
    assert_eq!(refused, 3, "the faults did strike");
}

#[test]
fn a_cache_folder_that_cannot_be_written_costs_nothing_but_the_cache() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(2)).start();
    let client = Client::with(&server, |config| {
        fs_err::write(&config.listing_cache, "a file where a folder should be").unwrap();
    });
    let listing = client.list().unwrap();
    assert_eq!(listing.files.len(), 2);
    assert!(listing.not_kept.unwrap().contains("listings"));
}

#[test]
fn a_listing_that_could_leave_its_folder_is_refused_and_not_kept() {
    for path in ["../evil", "/etc/passwd", "a/../../evil", "a\\evil", "a//b", "a\0b", "./a", ""] {
        let server = LoopbackHub::builder().dataset(REPOSITORY, files(3)).listed_path(path).start();
        let client = Client::anonymous(&server);
        for _ in 0..2 {
            let error = client.list().unwrap_err();
            assert!(matches!(&error, HubError::UnsafePath { .. }), "{path:?}: {error}");
            assert!(error.to_string().contains(&path.escape_debug().to_string()), "{path:?}: {error}");
        }
    }
}

#[test]
fn what_is_no_listing_is_an_error_of_the_protocol() {
    for body in ["<html>sign in to the network</html>", "{}", r#"[{"type":"file"}]"#] {
        let fault = Fault::new(Target::Tree, Effect::OtherBody(body.into()));
        let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).fault(fault).start();
        let error = Client::anonymous(&server).list().unwrap_err();
        assert!(matches!(error, HubError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    }
}

#[test]
fn missing_things_are_told_apart() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).start();
    let (anonymous, known) = (Client::anonymous(&server), Client::with_token(&server, "hf_any"));
    // Without a token the Hub says 401, "Invalid username or password.": the repository is still what is missing.
    let error = anonymous.hub.resolve("cerebras/SlimPajama-627B", "main").unwrap_err();
    assert!(matches!(error, HubError::RepositoryNotFound { authenticated: false, .. }), "{error}");
    assert!(error.to_string().contains("cerebras/SlimPajama-627B"), "{error}");
    let error = known.hub.resolve("cerebras/SlimPajama-627B", "main").unwrap_err();
    assert!(matches!(error, HubError::RepositoryNotFound { authenticated: true, .. }), "{error}");

    let error = anonymous.hub.resolve(REPOSITORY, "v9").unwrap_err();
    assert!(matches!(&error, HubError::RevisionNotFound { revision, .. } if revision == "v9"), "{error}");
    let gone = "0".repeat(40);
    let error = anonymous.hub.list(REPOSITORY, &gone).unwrap_err();
    assert!(matches!(&error, HubError::RevisionNotFound { revision, .. } if *revision == gone), "{error}");

    let mut file = anonymous.file(PATH);
    file.path = "not/there.zst".into();
    let (destination, cancel) = (anonymous.destination("x"), AtomicBool::new(false));
    let (hub, sha) = (&anonymous.hub, &anonymous.sha);
    let error = hub
        .download(
            &FileRequest { repository: REPOSITORY, sha, file: &file, destination: &destination },
            &SilentObserver,
            &cancel,
        )
        .unwrap_err();
    assert!(matches!(&error, HubError::EntryNotFound { path, .. } if path == "not/there.zst"), "{error}");
}

#[test]
fn a_gated_dataset_wants_a_token_whose_account_accepted() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).gated("hf_right").start();
    let error = Client::anonymous(&server).download(PATH).unwrap_err();
    assert!(matches!(error, HubError::Gated { authenticated: false, .. }), "{error}");
    let words = error.to_string();
    let page = format!("{}/datasets/{REPOSITORY}", server.endpoint());
    assert!(words.contains(&page) && words.contains("HF_TOKEN"), "{words}");

    let error = Client::with_token(&server, "hf_other").download(PATH).unwrap_err();
    assert!(matches!(error, HubError::Gated { authenticated: true, .. }), "{error}");
    assert!(!error.to_string().contains("hf_other"), "{error}");

    let error = Client::with_token(&server, "bogus").hub.resolve(REPOSITORY, "main").unwrap_err();
    assert!(matches!(error, HubError::InvalidToken { .. }), "{error}");

    Client::with_token(&server, "hf_right").download(PATH).unwrap();
}

#[test]
fn a_disabled_dataset_is_called_so() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).disabled().start();
    let error = Client::anonymous(&server).hub.resolve(REPOSITORY, "main").unwrap_err();
    assert!(matches!(error, HubError::Disabled { .. }), "{error}");
}

#[test]
fn the_token_reaches_the_hub_and_no_other_host() {
    let small = ("README.md".to_owned(), b"# Card\n".to_vec());
    let all = files(1).into_iter().chain([small]);
    let server = LoopbackHub::builder().dataset(REPOSITORY, all).gated("hf_right").start();
    let client = Client::with_token(&server, "hf_right");
    client.download(PATH).unwrap();
    client.download("README.md").unwrap();
    let (hub, storage): (Vec<_>, Vec<_>) =
        server.requests().into_iter().partition(|request| request.host == Host::Hub);
    assert_eq!(storage.len(), 1);
    assert_eq!(storage[0].authorization, None);
    for request in hub {
        assert_eq!(request.authorization.as_deref(), Some("Bearer hf_right"), "{}", request.path);
        assert_eq!(request.method, "GET", "no HEAD");
    }
}

#[test]
fn a_redirect_by_way_of_another_host_does_not_bring_the_token_back() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).gated("hf_right").start();
    let client = Client::with_token(&server, "hf_right");
    // Another Hub that redirects to the first: in the client's eyes a foreign host.
    let address = |hub: &LoopbackHub| format!("{}/datasets/{REPOSITORY}/resolve/main/{PATH}", hub.endpoint());
    let back = Fault::on_resolve(PATH, Effect::Redirect(address(&server)));
    let detour = LoopbackHub::builder().dataset(REPOSITORY, files(1)).fault(back).start();
    server.add_fault(Fault::on_resolve(PATH, Effect::Redirect(address(&detour))).times(1));
    // The way back is anonymous, and the dataset is gated: a refusal, which may pass with the next attempt.
    client.download(PATH).unwrap();
    assert_eq!(detour.requests().len(), 1);
    assert_eq!(detour.requests()[0].authorization, None);
    let resolver: Vec<_> = server.requests().into_iter().filter(|request| request.file.is_some()).collect();
    let sent: Vec<_> = resolver.iter().map(|r| (r.is_body, r.status, r.authorization.is_some())).collect();
    assert_eq!(
        sent,
        [(false, 302, true), (false, 401, false), (false, 302, true), (true, 200, false)],
        "the first answer leads away, the second request comes back anonymously"
    );
}

#[test]
fn signed_addresses_appear_in_no_message() {
    for effect in [
        Effect::Close,
        Effect::Status(403, vec![], format!("<Error>expired {SIGNATURE}</Error>")),
        Effect::Status(500, vec![], SIGNATURE.into()),
        Effect::StallBeforeHeader,
        Effect::Redirect(format!("ftp://127.0.0.1/?X-Signature={SIGNATURE}")),
        Effect::OtherBody(vec![0; 7]),
    ] {
        let fault = Fault::on_body(PATH, effect.clone());
        let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).fault(fault).start();
        let client = Client::with(&server, |config| config.stall_timeout = Duration::from_millis(300));
        let error = client.download(PATH).unwrap_err();
        let words = format!("{error} {error:?}");
        assert!(words.contains(PATH) && !words.contains(SIGNATURE), "{effect:?}: {words}");
    }
}

#[test]
fn a_hub_that_is_not_there_is_named_after_all_attempts() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).start();
    let client = Client::anonymous(&server);
    drop(server);
    let error = client.hub.resolve(REPOSITORY, "main").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 4, .. }), "{error}");
    assert!(error.to_string().contains("refused"), "the innermost words are there: {error}");
}

#[test]
fn offline_means_no_request() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).start();
    let client = Client::with(&server, |config| config.offline = true);
    let error = client.hub.resolve(REPOSITORY, "main").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn names_that_are_no_repository_or_commit_never_become_an_address() {
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).start();
    let client = Client::anonymous(&server);
    for bad in ["", "a/b/c", "../x", "a/..", "a b/c", "a?b/c", "a/b#c"] {
        assert!(matches!(client.hub.resolve(bad, "main"), Err(HubError::Setting { .. })), "{bad}");
        assert!(matches!(client.hub.list(bad, &client.sha), Err(HubError::Setting { .. })), "{bad}");
    }
    for bad in ["", "main", "../../x", "65cd6fc"] {
        assert!(matches!(client.hub.list(REPOSITORY, bad), Err(HubError::Setting { .. })), "{bad}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_refusal_that_repeats_the_token_does_not_show_it() {
    let token = "hf_rightAndVerySecret123";
    let said = format!("you sent Authorization: Bearer {token}, {}", "which is not enough ".repeat(20));
    for (headers, body) in [
        (vec![("X-Error-Message".to_owned(), said.clone())], String::new()),
        (Vec::new(), serde_json::json!({ "error": said }).to_string()),
        (Vec::new(), said.clone()),
        // Cut where the message is cut.
        (Vec::new(), format!("{}{token}", "x".repeat(290))),
    ] {
        let fault = Fault::new(Target::Revision, Effect::Status(403, headers, body));
        let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).fault(fault).start();
        let error = Client::with_token(&server, token).hub.resolve(REPOSITORY, "main").unwrap_err();
        let shown = error.to_string();
        assert!(!shown.contains("hf_right") && shown.contains("status 403"), "{shown}");
    }
    assert!(!xlstm_manifests::printable::lines(&said).contains(token), "nothing that is printed shows it");
}

#[test]
fn a_listing_of_empty_pages_ends() {
    let link = [("Link".to_owned(), "</api/datasets/next?cursor=1>; rel=\"next\"".to_owned())];
    let fault = Fault::new(Target::Tree, Effect::Status(200, link.to_vec(), "[]".into()));
    let server = LoopbackHub::builder().dataset(REPOSITORY, files(1)).fault(fault).start();
    let error = Client::anonymous(&server).list().unwrap_err();
    assert!(
        matches!(error, HubError::Protocol { .. }) && error.to_string().contains("without any"),
        "{error}"
    );
}
