//! `xlstm-data prepare slimpajama|paloma` against a loopback Hub that misbehaves: the same root as from files of
//! this machine, or the right error.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use xlstm_manifests::Manifest;
use xlstm_manifests::documents::{DocumentShard, read_windows};
use xlstm_tests::corpus::{self, Document};
use xlstm_tests::layouts::{Files, ORIGINAL, ORIGINAL_COMMIT, PALOMA, slimpajama_files};
use xlstm_tests::loopback_hub::{Effect, Fault, LoopbackHub};
use xlstm_tests::program::{data_command, run};

const SAMPLE: &str = "DKYoon/SlimPajama-6B";

fn write_files(folder: &Path, files: &Files) {
    for (path, content) in files {
        let path = folder.join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, content).unwrap();
    }
}

fn from_hub(hub: &LoopbackHub, home: &Path, arguments: &[&str]) -> Command {
    let mut command = data_command(arguments);
    command
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", home)
        .env("XLSTM_HUB_RETRY_DELAY", "0.01")
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Roots by split of a prepared dataset.
fn roots(out: &Path, splits: &[&str]) -> Vec<String> {
    splits.iter().map(|split| Manifest::load(&out.join(split)).unwrap().root.to_string()).collect()
}

#[test]
fn slimpajama_from_a_hub_that_misbehaves_is_slimpajama_from_local_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = slimpajama_files();
    let mirror = folder.path().join("mirror");
    write_files(&mirror, &files);
    let splits = ["train", "validation", "test"];
    let local = folder.path().join("local");
    let arguments =
        ["prepare", "slimpajama", "--out", text(&local), "--from", text(&mirror), "--offline", "--quiet"];
    run(&mut data_command(arguments)).success();

    let hub = LoopbackHub::builder()
        .dataset(ORIGINAL, files)
        .commit(ORIGINAL_COMMIT)
        .page_size(7)
        .fault(Fault::on_body("train/chunk1/example_train_0.jsonl.zst", Effect::ResetAfter(5_000)).times(2))
        .fault(Fault::on_body("train/chunk2/example_train_0.jsonl.zst", Effect::WrongByte(100)).times(1))
        .fault(Fault::on_body("train/chunk3/example_train_0.jsonl.zst", Effect::StallAfter(2_000)).times(1))
        .fault(
            Fault::on_resolve(
                "train/chunk4/example_train_0.jsonl.zst",
                Effect::Status(503, Vec::new(), String::new()),
            )
            .times(2),
        )
        .fault(Fault::on_resolve("train/chunk5/example_train_0.jsonl.zst", Effect::RateLimited(1)).times(1))
        .start();
    let remote = folder.path().join("remote");
    let home = folder.path().join("home");
    let arguments = ["prepare", "slimpajama", "--out", text(&remote), "--quiet", "--discard-downloads"];
    let ran = run(&mut from_hub(&hub, &home, &arguments));
    assert!(ran.stderr.contains("for 5912"), "the catalog's counts are compared: {}", ran.stderr);
    assert_eq!(ran.stderr.matches("note:").count(), 1, "in one line: {}", ran.stderr);
    ran.success();
    assert_eq!(roots(&remote, &splits), roots(&local, &splits));

    let manifest = Manifest::load(&remote.join("train")).unwrap();
    assert_eq!(manifest.source.resolved_revision.as_deref(), Some(ORIGINAL_COMMIT));
    let order: Vec<_> = manifest.inputs.iter().take(4).map(|input| input.path.as_str()).collect();
    assert_eq!(
        order,
        [
            "train/chunk1/example_train_0.jsonl.zst",
            "train/chunk1/example_train_2.jsonl.zst",
            "train/chunk1/example_train_10.jsonl.zst",
            "train/chunk2/example_train_0.jsonl.zst",
        ]
    );
    assert!(manifest.inputs.last().unwrap().path.as_str().starts_with("train/chunk10/"));
    assert!(manifest.inputs.iter().all(|input| input.declared.is_some()));

    // A second run asks nobody for anything that it has.
    hub.forget_requests();
    let out = run(&mut from_hub(&hub, &home, &arguments)).success();
    assert!(out.contains("was finished before"), "{out}");
}

#[test]
fn the_parquet_sample_takes_a_prefix_and_leaves_a_set_out() {
    let folder = tempfile::tempdir().unwrap();
    let files: Files = (0..3)
        .map(|part| {
            let name = format!("data/train-{part:05}-of-00048-ab722660a17694c2.parquet");
            (name, corpus::parquet(&corpus::documents(50 + part, 400_000), 31))
        })
        .collect();
    let hub = LoopbackHub::builder()
        .dataset(SAMPLE, files)
        .commit("b5f90f419b7489cdba26fdbc8c022fcb5562f968")
        .start();
    let out = folder.path().join("out");
    let arguments = [
        "prepare",
        "slimpajama",
        "--profile",
        "6b",
        "--split",
        "train",
        "--out",
        text(&out),
        "--quiet",
        "--json",
        "--max-tokens",
        "150k",
        "--exclude-set",
        "RedPajamaBook",
    ];
    let stdout = run(&mut from_hub(&hub, folder.path(), &arguments)).success();
    let summary: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let manifest = Manifest::load(&out.join("train")).unwrap();
    assert_eq!(summary["splits"][0]["root"], manifest.root.to_string());
    assert!((150_000..200_000).contains(&manifest.totals.tokens), "{}", manifest.totals.tokens);
    assert!(manifest.inputs.len() < 3, "inputs behind the prefix are not read");
    assert!(manifest.sets.iter().any(|set| set.name == "RedPajamaC4"));
    assert!(manifest.sets.iter().all(|set| set.name != "RedPajamaBook"));
}

const SOURCES: [&str; 16] = [
    "c4_en",
    "mc4",
    "wikitext_103",
    "ptb",
    "redpajama",
    "falcon-refinedweb",
    "dolma-v1_5",
    "m2d2_s2orc_unsplit",
    "m2d2_wikipedia_unsplit",
    "c4_100_domains",
    "dolma_100_subreddits",
    "dolma_100_programing_languages",
    "twitterAAE_HELM_fixed",
    "manosphere_meta_sep",
    "gab",
    "4chan_meta_sep",
];

/// PALOMA's layout: one file a domain where there are domains, one or more a source elsewhere; ids that are
/// numbers; metadata that is a string, an object or absent; a truncated last document.
fn paloma_files() -> Files {
    let mut files = Vec::new();
    for (number, source) in SOURCES.iter().enumerate() {
        for split in ["val", "test"] {
            let seed = number as u64 * 2 + u64::from(split == "test");
            let domains: &[&str] = if number % 3 == 0 { &["alpha", "beta"] } else { &[""] };
            for domain in domains {
                let documents = corpus::documents(3000 + seed * 10 + domain.len() as u64, 12_000);
                let name = match (*domain, number % 2) {
                    ("", 0) => format!("{source}/{split}/{split}.jsonl.gz"),
                    ("", _) => format!("{source}/{split}/{split}-00000000.jsonl.gz"),
                    (domain, _) => format!("{source}/{split}/{split}_{domain}.jsonl.gz"),
                };
                files.push((name, corpus::gzip_members(&paloma_lines(source, domain, &documents), 3)));
            }
        }
    }
    files
}

fn paloma_lines(source: &str, domain: &str, documents: &[Document]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let last = index + 1 == documents.len();
        let mut line = serde_json::json!({"text": document.text, "source": source, "added": "2023-11-28"});
        line["id"] =
            if index % 2 == 0 { serde_json::json!(index) } else { serde_json::json!(format!("d{index}")) };
        if !domain.is_empty() {
            line["subdomain"] = domain.into();
        }
        line["metadata"] = match (index % 3, last) {
            (_, true) => serde_json::json!({"truncated_portion": " and so on"}),
            (0, _) => serde_json::json!("{}"),
            (1, _) => serde_json::json!({"split": "val"}),
            _ => serde_json::Value::Null,
        };
        serde_json::to_writer(&mut lines, &line).unwrap();
        lines.push(b'\n');
    }
    lines
}

#[test]
fn paloma_is_stored_by_document_and_the_same_from_hub_and_folder() {
    let folder = tempfile::tempdir().unwrap();
    let files = paloma_files();
    let mirror = folder.path().join("mirror");
    write_files(&mirror, &files);
    let local = folder.path().join("local");
    let arguments =
        ["prepare", "paloma", "--out", text(&local), "--from", text(&mirror), "--offline", "--quiet"];
    run(&mut data_command(arguments)).success();

    let hub = LoopbackHub::builder().dataset(PALOMA, files).gated("hf_right").start();
    let remote = folder.path().join("remote");
    let commit = hub.commit(PALOMA);
    let revision = &commit[..7];
    let arguments = ["prepare", "paloma", "--revision", revision, "--out", text(&remote), "--quiet"];
    run(from_hub(&hub, folder.path(), &arguments).env("HF_TOKEN", "hf_right")).success();
    let splits = ["validation", "test"];
    assert_eq!(roots(&remote, &splits), roots(&local, &splits));

    let out = remote.join("validation");
    let manifest = Manifest::load(&out).unwrap();
    assert_eq!(manifest.source.resolved_revision.as_deref(), Some(commit.as_ref()));
    let names: Vec<_> = manifest.shards.iter().map(|shard| shard.file.path.to_string()).collect();
    let expected: Vec<_> = SOURCES.iter().map(|source| format!("documents-{source}.arrow")).collect();
    assert_eq!(names, expected, "one shard a source, in the paper's order");
    check_documents(&out, &manifest);

    // Tasks cut through sources; the whole is the same.
    let tasks = folder.path().join("tasks");
    for task in ["1/3", "2/3", "3/3"] {
        let arguments =
            ["prepare", "paloma", "--revision", revision, "--out", text(&tasks), "--task", task, "--quiet"];
        run(from_hub(&hub, folder.path(), &arguments).env("HF_TOKEN", "hf_right")).success();
    }
    run(&mut data_command(["merge", "--out", text(&tasks)])).success();
    xlstm_tests::program::assert_same_files(&remote.join("test"), &tasks.join("test"));
    xlstm_tests::program::assert_same_files(&out, &tasks.join("validation"));
}

fn check_documents(out: &Path, manifest: &Manifest) {
    let domains = fs_err::read_to_string(out.join("domains.csv")).unwrap();
    let mut counted = BTreeMap::<String, u64>::new();
    for shard in &manifest.shards {
        let file = DocumentShard::open(&out.join(shard.file.path.as_str()), shard.file.records).unwrap();
        let windows =
            read_windows(&out.join(shard.companion.path.as_str()), shard.companion.records).unwrap();
        let mut predicted = vec![0u64; file.len()];
        for window in &windows {
            assert_eq!(window.start, predicted[window.document as usize], "windows follow one another");
            predicted[window.document as usize] += u64::from(window.predicted);
            assert!(window.context >= 1 && u64::from(window.context) <= window.start + 1);
        }
        let mut last_truncated = false;
        for (document, predicted) in file.iter().zip(predicted) {
            assert_eq!(document.ids.len() as u64, predicted, "each token is predicted once");
            assert!(document.id.is_some());
            *counted.entry(format!("{},{}", document.source, document.domain)).or_default() += predicted;
            last_truncated = document.truncated;
        }
        assert!(last_truncated, "the cut document of {} is marked", shard.file.path);
    }
    for (domain, tokens) in counted {
        let line = domains.lines().find(|line| line.starts_with(&format!("{domain},"))).unwrap();
        assert_eq!(line.split(',').nth(3), Some(tokens.to_string().as_str()), "{line}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let hub = LoopbackHub::builder().dataset(PALOMA, paloma_files()).gated("hf_right").start();
    let commit = hub.commit(PALOMA);
    let arguments = ["prepare", "paloma", "--revision", &commit[..7], "--out", text(&out), "--quiet"];
    let no_token = run(&mut from_hub(&hub, folder.path(), &arguments)).failure(1);
    assert!(no_token.contains("HF_TOKEN") && no_token.contains("datasets/allenai/paloma"), "{no_token}");
    let not_accepted = run(from_hub(&hub, folder.path(), &arguments).env("HF_TOKEN", "hf_other")).failure(1);
    assert!(not_accepted.contains("license") || not_accepted.contains("terms"), "{not_accepted}");
    assert!(!no_token.contains("hf_") && !not_accepted.contains("hf_other"), "the token is in no message");
    let missing = ["prepare", "slimpajama", "--out", text(&out), "--quiet"];
    let gone = run(&mut from_hub(&hub, folder.path(), &missing)).failure(1);
    assert!(gone.contains("cerebras/SlimPajama-627B") && gone.contains("--profile"), "{gone}");
    let unknown = ["prepare", "slimpajama", "--out", text(&out), "--exclude-set", "Books"];
    let unknown = run(&mut from_hub(&hub, folder.path(), &unknown)).failure(1);
    assert!(unknown.contains("RedPajamaBook"), "{unknown}");
    assert!(!out.join("validation/manifest.json").exists());
}

#[test]
fn a_file_whose_bytes_are_never_right_stops_the_run_and_a_later_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let bad = "train/chunk2/example_train_0.jsonl.zst";
    let hub = LoopbackHub::builder()
        .dataset(ORIGINAL, slimpajama_files())
        .commit(ORIGINAL_COMMIT)
        .fault(Fault::on_body(bad, Effect::WrongByte(100)).times(2))
        .start();
    let arguments = ["prepare", "slimpajama", "--split", "train", "--out", text(&out), "--quiet"];
    let error = run(&mut from_hub(&hub, folder.path(), &arguments)).failure(1);
    assert!(error.contains("example_train_0.jsonl.zst") && error.contains("SHA-256"), "{error}");
    assert!(!out.join("train/manifest.json").exists());
    run(&mut from_hub(&hub, folder.path(), &arguments)).success();
    Manifest::load(&out.join("train")).unwrap();
}

#[test]
fn a_plan_counts_files_requests_and_time_without_downloading() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let hub = LoopbackHub::builder().dataset(ORIGINAL, slimpajama_files()).commit(ORIGINAL_COMMIT).start();
    let arguments = ["plan", "slimpajama", "--split", "train", "--out", text(&out), "--json"];
    let stdout = run(&mut from_hub(&hub, folder.path(), &arguments)).success();
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["splits"][0]["files"], 30);
    assert_eq!(plan["splits"][0]["requests"], 30);
    assert!(plan["splits"][0]["expected_tokens"].as_u64().unwrap() > 0);
    assert!(!out.exists(), "a plan writes nothing");
}

#[test]
fn files_that_the_user_gave_are_checked_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, out) = (folder.path().join("mirror"), folder.path().join("out"));
    let files = slimpajama_files();
    write_files(&mirror, &files);
    let missing = "train/chunk3/example_train_2.jsonl.zst";
    fs_err::remove_file(mirror.join(missing)).unwrap();
    let damaged = mirror.join("train/chunk4/example_train_10.jsonl.zst");
    let mut bytes = fs_err::read(&damaged).unwrap();
    bytes[50] ^= 1;
    fs_err::write(&damaged, &bytes).unwrap();
    let hub = LoopbackHub::builder().dataset(ORIGINAL, files.clone()).commit(ORIGINAL_COMMIT).start();
    let from = text(&mirror);
    let arguments =
        ["prepare", "slimpajama", "--split", "train", "--out", text(&out), "--from", from, "--quiet"];
    let error = run(&mut from_hub(&hub, folder.path(), &arguments)).failure(1);
    assert!(error.contains("chunk4/example_train_10.jsonl.zst") && error.contains("SHA-256"), "{error}");
    assert_eq!(fs_err::read(&damaged).unwrap(), bytes, "the user's file is as it was");

    bytes[50] ^= 1;
    fs_err::write(&damaged, &bytes).unwrap();
    hub.forget_requests();
    run(&mut from_hub(&hub, folder.path(), &arguments)).success();
    assert!(hub.resolver_requests(missing) > 0 || out.join("downloads").join(missing).exists());
    assert_eq!(
        hub.resolver_requests("train/chunk1/example_train_0.jsonl.zst"),
        0,
        "what was given is not fetched"
    );
    assert!(!mirror.join(missing).exists(), "nothing is put into the user's folder");
}

#[test]
fn a_plan_samples_the_files_of_the_hugging_face_cache() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("hf");
    let blobs = home.join("hub/datasets--cerebras--SlimPajama-627B/blobs");
    fs_err::create_dir_all(&blobs).unwrap();
    let files = slimpajama_files();
    let name = "validation/chunk2/example_holdout_2.jsonl.zst";
    let (_, content) = files.iter().find(|(path, _)| path == name).unwrap();
    fs_err::write(blobs.join(xlstm_manifests::Sha256Digest::of(content).to_string()), content).unwrap();
    let size = content.len();
    let hub = LoopbackHub::builder().dataset(ORIGINAL, files).commit(ORIGINAL_COMMIT).start();
    let out = folder.path().join("out");
    let arguments = ["plan", "slimpajama", "--split", "validation", "--out", text(&out), "--json"];
    let plan = run(&mut from_hub(&hub, &home, &arguments)).success();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let split = &plan["splits"][0];
    assert_eq!((split["files"].as_u64(), split["files_to_download"].as_u64()), (Some(15), Some(14)));
    assert_eq!(split["sample"]["files"].as_u64(), Some(1), "{split}");
    assert_eq!(split["sample"]["file_bytes"].as_u64(), Some(size as u64), "{split}");
}
