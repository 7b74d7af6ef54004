//! Where data comes from: what was compared and what was only claimed are told apart everywhere, licenses and sources
//! that records carry are kept, and nothing that data holds reaches a terminal as a command.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::origin::Origin;
use xlstm_manifests::{Dataset, Manifest, Sha256Digest, checksums};
use xlstm_tests::corpus;
use xlstm_tests::program::{data, files};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write(path: PathBuf, content: &[u8]) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, content).unwrap();
}

/// A folder in SlimPajama's layout that is not SlimPajama.
fn looks_like_slimpajama(folder: &Path) {
    let line = |text: &str, license: &str, source: &str| {
        let meta = serde_json::json!({
            "redpajama_set_name": "RedPajamaBook", "license": license, "source": source,
        });
        format!("{}\n", serde_json::json!({"text": text, "meta": meta}))
    };
    let lines = [
        line("an essay of long ago", "public domain", "books@1"),
        line("words of an encyclopedia", "CC-BY-SA-3.0", "wiki@2"),
        line("more words of an encyclopedia", "CC-BY-SA-3.0", "wiki@2"),
    ];
    let file = folder.join("train/chunk1/example_train_0.jsonl.zst");
    write(file, &corpus::zstd_frames(lines.concat().as_bytes(), 1));
}

#[test]
fn files_that_nothing_was_compared_with_are_only_claimed_to_be_a_repository() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = (folder.path().join("from"), folder.path().join("out"));
    looks_like_slimpajama(&from);
    let prepare =
        ["prepare", "slimpajama", "--offline", "--split", "train", "--quiet", "--from", text(&from)];
    data(prepare.iter().copied().chain(["--out", text(&out)])).success();
    let split = out.join("train");
    let manifest = Manifest::load(&split).unwrap();
    let origin = Origin::of(&manifest);
    assert!(!origin.is_verified());
    assert_eq!((manifest.source.repository.as_deref(), origin.not_compared), (None, 1));
    assert_eq!(origin.claimed.as_ref().unwrap().repository, "cerebras/SlimPajama-627B");
    for licence in &manifest.source.licences {
        assert!(licence.claimed_by.contains("not checked") && licence.spdx.is_none(), "{licence:?}");
    }
    let totals: Vec<_> =
        manifest.record_licenses.iter().map(|total| (total.name.as_str(), total.documents)).collect();
    assert_eq!(totals, [("public domain", 1), ("CC-BY-SA-3.0", 2)]);
    assert_eq!(manifest.record_sources.len(), 2);

    let audit = data(["audit", text(&out), "--deep", "all"]).success();
    for part in ["claimed to be cerebras/SlimPajama-627B", "not checked", "with nothing", "CC-BY-SA-3.0"] {
        assert!(audit.contains(part), "`{part}` is not in: {audit}");
    }
    assert!(!audit.contains("source      cerebras"), "{audit}");
    let trace = data(["trace", text(&split), "--document", "1"]).success();
    for part in
        ["license CC-BY-SA-3.0 (the document's own)", "from    wiki@2 (says the document)", "claimed to be"]
    {
        assert!(trace.contains(part), "`{part}` is not in: {trace}");
    }
    let file = folder.path().join("croissant.json");
    data(["export", text(&split), "--to", "croissant", "--out", text(&file)]).success();
    let croissant = fs_err::read_to_string(&file).unwrap();
    assert!(croissant.contains("unverified-slimpajama-original-train-gpt2"), "{croissant}");
    assert!(
        croissant.contains("\"CC-BY-SA-3.0\"") && !croissant.contains("spdx.org/licenses/Apache"),
        "{croissant}"
    );
    assert!(!croissant.contains("huggingface.co/datasets/cerebras"), "{croissant}");
    data(["export", text(&split), "--to", "sha256sums", "--out", text(&file)]).success();
    assert!(fs_err::read_to_string(&file).unwrap().contains("# inputs, claimed to be"));
}

#[test]
fn a_manifest_of_before_claims_were_written_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = (folder.path().join("from"), folder.path().join("out"));
    looks_like_slimpajama(&from);
    let prepare = [
        "prepare",
        "slimpajama",
        "--offline",
        "--split",
        "train",
        "--quiet",
        "--from",
        text(&from),
        "--out",
        text(&out),
    ];
    data(prepare).success();
    let path = out.join("train").join(MANIFEST_NAME);
    let mut value: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let root = value["root"].clone();
    let source = value["source"].as_object_mut().unwrap();
    let claim = source.remove("claimed").unwrap();
    source.insert("repository".into(), claim["repository"].clone());
    source.insert("requested_revision".into(), claim["revision"].clone());
    let catalog = xlstm_manifests::catalog::Catalog::load().unwrap();
    let said = &catalog.profile("slimpajama", "original").unwrap().licences;
    assert_eq!(said[0].spdx.as_deref(), Some("Apache-2.0"));
    source.insert("licences".into(), serde_json::to_value(said).unwrap());
    let old: Manifest = serde_json::from_value(value).unwrap();
    fs_err::write(&path, old.to_bytes().unwrap()).unwrap();
    let sums = out.join("train").join(checksums::CHECKSUMS_NAME);
    let mut listed = checksums::read(&sums).unwrap();
    for (name, digest) in &mut listed {
        if name.as_str() == MANIFEST_NAME {
            *digest = Sha256Digest::of(&old.to_bytes().unwrap());
        }
    }
    fs_err::write(&sums, checksums::render(&listed)).unwrap();
    let audit = data(["audit", text(&out), "--json"]).success();
    let audit: serde_json::Value = serde_json::from_str(&audit).unwrap();
    let summary = &audit["splits"][0]["summary"];
    assert_eq!(summary["root"], root);
    assert_eq!(summary["origin"]["claimed"]["repository"], "cerebras/SlimPajama-627B");
    assert_eq!(
        (&summary["repository"], &summary["licences"][0]["spdx"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    // The same command finds the same dataset finished.
    assert!(data(prepare).success().contains("was finished before"));
}

#[test]
fn licenses_and_sources_of_records_are_kept_by_document_through_tasks_and_merge() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    for file in 0..4 {
        let lines: String = (0..5)
            .map(|line| {
                let license = if line == 3 { serde_json::Value::Null } else { format!("L{}", line % 2).into() };
                let record = serde_json::json!({
                    "text": format!("words {file} {line}"), "metadata": {"license": license}, "source": format!("s{file}"),
                });
                format!("{record}\n")
            })
            .collect();
        write(input.join(format!("{file}.jsonl")), lines.as_bytes());
    }
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let prepare = |out: &Path, more: &[&str]| {
        let fields = ["--license-field", "metadata.license", "--source-field", "source", "--quiet"];
        let arguments = ["prepare", "local", text(&input), "--out", text(out)];
        data(arguments.into_iter().chain(fields).chain(more.iter().copied())).success();
    };
    prepare(&one, &[]);
    prepare(&two, &["--task", "1/2"]);
    prepare(&two, &["--task", "2/2"]);
    data(["merge", "--out", text(&two)]).success();
    assert_eq!(files(&one.join("train")), files(&two.join("train")));
    let manifest = Manifest::load(&one.join("train")).unwrap();
    let licenses: Vec<_> = manifest.record_licenses.iter().map(|t| (t.name.as_str(), t.documents)).collect();
    assert_eq!(licenses, [("L0", 12), ("L1", 4)]);
    assert_eq!(manifest.record_sources.len(), 4);
    let spans: Vec<_> = Dataset::open(&one.join("train")).unwrap().spans(0).unwrap().iter().collect();
    assert_eq!(spans[8].license, None);
    assert_eq!((spans[6].license, spans[6].source), (Some(1), Some(1)));
    data(["audit", text(&one), "--deep", "all"]).success();
    // A dataset without them is what it was before they could be asked for.
    let plain = folder.path().join("plain");
    data(["prepare", "local", text(&input), "--out", text(&plain), "--quiet"]).success();
    let without = Manifest::load(&plain.join("train")).unwrap();
    assert_eq!(without.root, manifest.root);
    let bytes = fs_err::read_to_string(plain.join("train").join(MANIFEST_NAME)).unwrap();
    assert!(!bytes.contains("record_") && !bytes.contains("license_field"), "{bytes}");
}

#[test]
fn nothing_that_data_holds_is_obeyed_by_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    let record = serde_json::json!({
        "text": "plain \u{1b}[31mtext\u{1b}[0m here, of more than thirteen words, so that it is a paragraph to compare with",
        "set": "s\u{1b}[2J\u{9b}31m\u{202e}", "id": "\u{1b}]0;title\u{7}id\n  license MIT (forged line)",
        "license": "L\u{1b}c\nx", "source": "\u{7f}\u{85}src",
    });
    write(input.join("a\u{202e}b.jsonl"), format!("{record}\n{record}\n").as_bytes());
    let out = folder.path().join("out");
    let mut arguments = vec!["prepare", "local", text(&input), "--out", text(&out), "--quiet"];
    arguments.extend([
        "--set-field",
        "set",
        "--id-field",
        "id",
        "--license-field",
        "license",
        "--source-field",
        "source",
    ]);
    let prepared = data(&arguments);
    let split = out.join("train");
    let (split, list) = (text(&split), folder.path().join("list"));
    let mut runs = vec![prepared];
    for arguments in [
        &["audit", split][..],
        &["audit", split, "--json", "--deep", "all", "--text"],
        &["trace", split, "--row", "0", "--token", "3"],
        &["trace", split, "--row", "0", "--token", "3", "--json"],
        &["overlap", split, split],
        &["overlap", split, split, "--json", "--list", text(&list)],
        &["diff", split, split],
        &["export", split, "--to", "sha256sums", "--out", text(&list)],
        &["prepare", "local", text(&input), "--out", text(&out), "--exclude-set", "a\u{1b}b", "--json"],
    ] {
        runs.push(data(arguments));
    }
    for ran in runs {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        let obeyed = said.chars().find(|&c| c != '\n' && xlstm_manifests::printable::is_unsafe(c));
        assert_eq!(obeyed, None, "{said:?}");
        assert!(!said.lines().any(|line| line.starts_with("  license MIT")), "{said}");
        assert!(!said.is_empty());
    }
}
