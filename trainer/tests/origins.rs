//! What was compared with its publisher and what was only claimed, from the dataset to a run's page, its chain and
//! `verify`; licenses that documents carry, in totals.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::prepared::{eval, train, training, write_recipe};
use xlstm_manifests::manifest::{Declared, MANIFEST_NAME};
use xlstm_manifests::{Manifest, Sha256Digest, checksums, identity};
use xlstm_tests::corpus;
use xlstm_tests::program::data;

/// Files in SlimPajama's layout that are not SlimPajama's, prepared as if they were, and a run of two steps on them.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for split in ["train", "validation"] {
            let lines: String = (0..60).map(|number| record(split, number)).collect();
            let part = if split == "train" { "train" } else { "holdout" };
            let file = path(&format!("from/{split}/chunk1/example_{part}_0.jsonl.zst"));
            fs_err::create_dir_all(file.parent().unwrap()).unwrap();
            fs_err::write(file, corpus::zstd_frames(lines.as_bytes(), 1)).unwrap();
        }
        for split in ["train", "validation"] {
            let (from, out) = (path("from"), path("data"));
            let options = ["prepare", "slimpajama", "--offline", "--quiet", "--split", split, "--from"];
            let arguments = options.iter().map(PathBuf::from);
            data(arguments.chain([from, "--out".into(), out])).success();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self) -> PathBuf {
        let (recipe, run) = (self.path("tiny.toml"), self.path("run"));
        write_recipe(&recipe, "tiny");
        train(training(&self.path("data/train"), &self.path("data/validation"), &recipe, &run)).success();
        run
    }
}

fn record(split: &str, number: u32) -> String {
    let license = if number.is_multiple_of(3) { "public domain" } else { "CC-BY-SA-3.0" };
    let meta = serde_json::json!({
        "redpajama_set_name": "RedPajamaBook", "license": license, "source": format!("shelf@{}", number % 2),
    });
    let text =
        format!("The {split} story number {number}, which goes on and on until its row is full. ").repeat(8);
    format!("{}\n", serde_json::json!({"text": text, "meta": meta}))
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

const CLAIM: &str = "claimed to be cerebras/SlimPajama-627B";

/// The same rows from a source file of another name have the same root and another manifest: `verify` holds a report to the one that it
/// was made of.
#[test]
fn a_split_prepared_again_from_another_place_is_followed_for_itself() {
    let fixture = Fixture::new();
    let run = fixture.run();
    let again = fixture.path("again/validation/chunk2/example_holdout_0.jsonl.zst");
    fs_err::create_dir_all(again.parent().unwrap()).unwrap();
    fs_err::copy(fixture.path("from/validation/chunk1/example_holdout_0.jsonl.zst"), again).unwrap();
    let options = ["prepare", "slimpajama", "--offline", "--quiet", "--split", "validation", "--from"];
    let arguments = options.iter().map(PathBuf::from);
    data(arguments.chain([fixture.path("again"), "--out".into(), fixture.path("again-data")])).success();
    let [one, other] = ["data", "again-data"].map(|name| fixture.path(name).join("validation"));
    let [one_manifest, other_manifest] = [&one, &other].map(|split| Manifest::load(split).unwrap());
    assert_eq!(one_manifest.root, other_manifest.root);
    assert_ne!(one_manifest.inputs[0].path, other_manifest.inputs[0].path);
    for split in [&one, &other] {
        let report = fixture.path("report");
        let arguments = ["perplexity", text(&run), "--manifest", text(split), "--out", text(&report)];
        eval(arguments).success();
        let links = eval(["verify", text(&report)]).success().all();
        assert!(links.contains(" 0 do not"), "{links}");
        fs_err::remove_dir_all(&report).unwrap();
    }
    // A manifest that was changed since is still found out.
    let report = fixture.path("report");
    eval(["perplexity", text(&run), "--manifest", text(&other), "--out", text(&report)]).success();
    let manifest = other.join(MANIFEST_NAME);
    let changed = fs_err::read_to_string(&manifest).unwrap().replace("chunk2", "chunk3");
    fs_err::write(&manifest, changed).unwrap();
    let links = eval(["verify", text(&report)]);
    assert!(links.code != Some(0) && links.all().contains("evaluated split: manifest"), "{}", links.all());
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_claim_stays_one_from_the_data_to_every_page() {
    let fixture = Fixture::new();
    let run = fixture.run();
    let chain = train([Path::new("chain"), &run]).success().stdout;
    contains(&chain, &[CLAIM, "not checked", "compared with nothing", "its own license public domain"]);
    assert_eq!(chain.matches("from: 1 inputs compared with nothing; ").count(), 2, "both splits: {chain}");
    let told = eval([Path::new("verify"), &run]).success().stdout;
    for split in ["training split: origin", "validation split: origin"] {
        let line = told.lines().find(|line| line.contains(split)).unwrap_or_default();
        assert!(line.starts_with("unchecked  "), "{told}");
    }
    contains(&told, &[CLAIM, "2 splits have source files that were compared with nothing", " 0 do not"]);
    let json = eval([Path::new("verify"), &run, Path::new("--json")]).success().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let unchecked = json["links"].as_array().unwrap().iter().filter(|link| link["state"] == "unchecked");
    assert_eq!(unchecked.count(), 2, "{json}");

    eval([Path::new("report"), &run]).success();
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    contains(
        &page,
        &[CLAIM, "not checked", "Licenses that documents carry themselves", "CC-BY-SA-3.0", "shelf@1"],
    );
    // 40 of 60 documents.
    let row = page.split(">CC-BY-SA-3.0<").nth(1).unwrap().split("</tr>").next().unwrap();
    contains(row, &[">40<"]);
    let said = "cerebras/SlimPajama-627B @";
    let claimed = format!("claimed to be {said}");
    assert_eq!(page.matches(said).count(), page.matches(&claimed).count(), "a claim is no fact");
    assert!(!page.contains("--sources"), "there is no publisher to ask");

    let (data, out) = (fixture.path("data/validation"), fixture.path("evaluation"));
    let options = ["--device", "cpu", "--threads", "1", "--manifest"].map(PathBuf::from);
    let arguments = [PathBuf::from("perplexity"), run.clone()].into_iter().chain(options);
    let said = eval(arguments.chain([data, "--out".into(), out.clone()])).success();
    contains(&said.stderr, &["note: the data is claimed to be"]);
    for file in ["report.html", "report.md", "report.json"] {
        contains(&fs_err::read_to_string(out.join(file)).unwrap(), &[CLAIM]);
    }
    contains(&fs_err::read_to_string(out.join("report.json")).unwrap(), &["only-claimed"]);
    contains(&eval([Path::new("verify"), &out]).success().stdout, &[CLAIM]);
}

/// The split as `prepare` writes it where the Hub listed these very files.
fn as_compared(split: &Path) {
    let mut manifest = Manifest::load(split).unwrap();
    let claim = manifest.source.claimed.take().unwrap();
    manifest.source.repository = Some(claim.repository);
    manifest.source.resolved_revision = Some("2d0accdd58c5d5511943ca1f5ff0e3eb5e293543".into());
    for input in &mut manifest.inputs {
        let digest = input.sha256.to_string();
        input.declared = Some(Declared { algorithm: "sha256".into(), digest, by: "hub".into() });
    }
    manifest.root = identity::root(&manifest).unwrap();
    let bytes = manifest.to_bytes().unwrap();
    fs_err::write(split.join(MANIFEST_NAME), &bytes).unwrap();
    let sums = split.join(checksums::CHECKSUMS_NAME);
    let mut listed = checksums::read(&sums).unwrap();
    for (name, digest) in &mut listed {
        if name.as_str() == MANIFEST_NAME {
            *digest = Sha256Digest::of(&bytes);
        }
    }
    fs_err::write(&sums, checksums::render(&listed)).unwrap();
}

#[test]
fn what_was_compared_says_by_which_digest_and_with_whom() {
    let fixture = Fixture::new();
    for split in ["train", "validation"] {
        as_compared(&fixture.path("data").join(split));
    }
    let run = fixture.run();
    let digest = Manifest::load(&fixture.path("data/train")).unwrap().inputs[0].sha256.to_string();
    let published = format!("compared with sha256 {digest} published by hub");
    let repository = "cerebras/SlimPajama-627B @ 2d0accdd58c5d5511943ca1f5ff0e3eb5e293543";
    let chain = train([Path::new("chain"), &run]).success().stdout;
    contains(&chain, &[&published, repository, "from: 1 inputs compared with sha256 published by hub"]);
    let told = eval([Path::new("verify"), &run]).success().stdout;
    contains(&told, &["ok           training split: origin", repository, " 0 do not"]);
    assert!(!told.contains("unchecked"), "{told}");
    eval([Path::new("report"), &run]).success();
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    contains(&page, &[repository, "1 source files with sha256 published by hub", "--sources"]);
    for said in [&chain, &told, &page] {
        assert!(!said.contains("claimed to be"), "{said}");
    }
}

#[test]
fn a_split_that_was_replaced_is_said_where_it_is_looked_for() {
    let fixture = Fixture::new();
    let run = fixture.run();
    let split = fixture.path("data/train");
    as_compared(&split);
    let mut manifest = Manifest::load(&split).unwrap();
    manifest.selection.max_tokens = Some(1 << 40);
    manifest.root = identity::root(&manifest).unwrap();
    fs_err::write(split.join(MANIFEST_NAME), manifest.to_bytes().unwrap()).unwrap();
    let chain = train([Path::new("chain"), &run]).success().stdout;
    contains(&chain, &["was altered or replaced", &manifest.root.to_string()]);
    let told = eval([Path::new("verify"), &run]);
    assert_eq!(told.code, Some(1), "{}", told.stdout);
    contains(&told.stdout, &["FAILED       training split: manifest"]);
    eval([Path::new("report"), &run]).success();
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    contains(
        &page,
        &["lies another training split now", "the documents cannot be named without the dataset"],
    );
}
