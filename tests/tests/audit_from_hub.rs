//! `xlstm-data audit --sources` and `--deep` of splits that came from a loopback Hub, which then changes.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use xlstm_tests::corpus;
use xlstm_tests::loopback_hub::LoopbackHub;
use xlstm_tests::program::{data_command, run};

const SAMPLE: &str = "DKYoon/SlimPajama-6B";
const COMMIT: &str = "b5f90f419b7489cdba26fdbc8c022fcb5562f968";

type Files = Vec<(String, Vec<u8>)>;

fn sample() -> Files {
    (0..3)
        .map(|part| {
            let name = format!("data/train-{part:05}-of-00048-ab722660a17694c2.parquet");
            (name, corpus::parquet(&corpus::documents(50 + part, 60_000), 31))
        })
        .collect()
}

fn hub_of(files: Files) -> LoopbackHub {
    LoopbackHub::builder().dataset(SAMPLE, files).commit(COMMIT).start()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command(hub: &LoopbackHub, home: &Path, arguments: &[&str]) -> Command {
    let mut command = data_command(arguments);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home).env("XLSTM_HUB_RETRY_DELAY", "0.01");
    command
}

/// The audit's JSON, after its exit code was compared with what it says.
fn audit(hub: &LoopbackHub, folder: &Path, more: &[&str]) -> Value {
    let train = folder.join("out/train");
    let arguments: Vec<&str> = ["audit", "--json", text(&train)].iter().chain(more).copied().collect();
    let ran = run(&mut command(hub, folder, &arguments));
    let value: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.code, Some(i32::from(value["clean"] == false)), "{value:#}");
    value
}

fn prepare(hub: &LoopbackHub, folder: &Path) {
    let out = folder.join("out");
    let arguments =
        ["prepare", "slimpajama", "--profile", "6b", "--split", "train", "--out", text(&out), "--quiet"];
    run(&mut command(hub, folder, &arguments)).success();
}

#[test]
fn sources_that_stand_and_sources_that_changed_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(sample());
    prepare(&hub, folder.path());
    let report = audit(&hub, folder.path(), &["--sources", "--deep", "all", "--text"]);
    let split = &report["splits"][0];
    assert_eq!(split["sources"]["matches"], 3, "{split:#}");
    assert_eq!(split["deep"]["documents"], split["deep"]["of"]);
    let card = split["summary"]["sets"].as_array().unwrap().iter().find(|set| set["name"] == "RedPajamaC4");
    assert_eq!(card.unwrap()["card_percent"], 26.7);
    drop(hub);

    let mut files = sample();
    files.remove(2);
    files[1].1.push(0);
    let changed = hub_of(files);
    let report = audit(&changed, folder.path(), &["--sources"]);
    let sources = &report["splits"][0]["sources"];
    assert_eq!(sources["matches"], 1, "{sources:#}");
    assert!(sources["changed"][0].as_str().unwrap().contains("train-00001"), "{sources:#}");
    assert!(sources["missing"][0].as_str().unwrap().contains("train-00002"), "{sources:#}");
    let named: Vec<_> =
        report["splits"][0]["findings"].as_array().unwrap().iter().map(|f| f["file"].clone()).collect();
    assert_eq!(named.len(), 2, "{named:?}");

    let gone = LoopbackHub::builder().dataset("somebody/else", sample()).start();
    let report = audit(&gone, folder.path(), &["--sources"]);
    let finding = &report["splits"][0]["findings"][0];
    assert_eq!((finding["file"].as_str(), finding["check"].as_str()), (Some(SAMPLE), Some("sources")));
}

#[test]
fn a_hub_that_cannot_be_asked_is_an_error_and_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(sample());
    prepare(&hub, folder.path());
    let train = folder.path().join("out/train");
    let mut offline = command(&hub, folder.path(), &["audit", "--sources", text(&train)]);
    let message = run(offline.env("HF_HUB_OFFLINE", "1")).failure(1);
    assert!(message.contains("cannot be asked"), "{message}");
}

#[test]
fn one_flipped_bit_ends_with_exit_code_1_and_the_files_name() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(sample());
    prepare(&hub, folder.path());
    let path = folder.path().join("out/train/spans-00000.arrow");
    let mut bytes = fs_err::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs_err::write(&path, bytes).unwrap();
    let out = folder.path().join("out");
    let ran = run(&mut data_command(["audit", text(&out)]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains("spans-00000.arrow [digest]"), "{}", ran.stdout);
}
