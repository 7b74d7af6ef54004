//! Fields, sets and other names that options give, and what records have instead.

use xlstm_tests::program::{assert_same_files, data_command, run};

use super::*;

#[test]
fn options_that_nothing_matches_are_said() {
    let lines = b"{\"text\":\"a book\",\"source\":\"books\",\"id\":\"b1\"}\n{\"text\":\"a page\",\"source\":\"web\",\"id\":\"w1\"}\n";
    let folders = Folders::new(&[("a.jsonl", lines)]);
    let error = folders.prepare(&["--set-field", "source", "--exclude-set", "bookz"]).failure(1);
    assert_says(&error, &["--exclude-set bookz", "`books`, `web`"]);
    for option in ["--set-field", "--id-field", "--license-field", "--source-field"] {
        let error = folders.prepare(&[option, "uid"]).failure(1);
        assert_says(&error, &[option, "uid", "none of 2"]);
    }
    assert!(!folders.split().join("manifest.json").exists());
    // The right name goes on in the same folder, without --restart: nothing was stored.
    folders.prepare(&["--set-field", "source", "--exclude-set", "books", "--id-field", "id"]).success();
    assert_eq!(folders.ids(), [Some("w1".to_owned())]);
    for split in ["../outside", "", ".", "..", "a/b", ".hidden", "parts", "downloads"] {
        let folders = Folders::new(&[("a.txt", b"words")]);
        let error = folders.prepare(&["--split", split]).failure(1);
        assert_says(&error, &["--split", "expected a plain name"]);
        assert!(!folders.path("out").exists() && !folders.path("outside").exists(), "{split}");
    }
}

/// Prepares all parts of a task array, then merges them.
fn array(place: &Folders, tasks: u32, options: &[&str]) -> Ran {
    for task in 1..=tasks {
        let task = format!("{task}/{tasks}");
        place.prepare(&[&["--task", &task][..], options].concat()).success();
    }
    data(["merge", "--out", text(&place.path("out"))])
}

#[test]
fn what_no_part_of_an_array_has_is_said_by_merge() {
    let book = b"{\"text\":\"a book\",\"source\":\"books\",\"id\":\"b1\"}\n";
    let page = b"{\"text\":\"a page\",\"source\":\"web\"}\n";
    let place = || Folders::new(&[("a.jsonl", &book[..]), ("b.jsonl", page), ("c.jsonl", b"")]);
    // Four tasks for three files: one part is empty.
    let bookz = ["--set-field", "source", "--exclude-set", "bookz"];
    let alone = place().prepare(&bookz).failure(1);
    let refused = place();
    let error = array(&refused, 4, &bookz).failure(1);
    assert_says(&error, &["--exclude-set bookz", "`books`, `web` in 2 records"]);
    let message = |said: &str| said.split("; mend the name").next().unwrap().to_owned();
    assert_eq!(message(&error), message(&alone), "as a whole `prepare` says it");
    assert!(!refused.split().join("manifest.json").exists());
    for option in ["--set-field", "--id-field", "--license-field", "--source-field"] {
        let error = array(&place(), 3, &[option, "uid"]).failure(1);
        assert_says(&error, &[option, "uid", "none of 2"]);
    }
    // Part 1 alone has ids and books: the others need not.
    let options = ["--set-field", "source", "--exclude-set", "books", "--id-field", "id"];
    let (whole, merged) = (place(), place());
    whole.prepare(&options).success();
    array(&merged, 3, &options).success();
    assert_same_files(&whole.split(), &merged.split());
    // A part that is there is the one that is asked for, although it says what it met.
    merged.prepare(&[&["--task", "1/3"][..], &options].concat()).success();
    // Parts of an older program do not say it, and are merged as they were.
    let older = place();
    array(&older, 2, &["--id-field", "uid"]).failure(1);
    let part = older.path("out/parts/00001-of-00002/train/manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&part).unwrap()).unwrap();
    assert!(manifest["part"].as_object_mut().unwrap().remove("met").is_some());
    fs_err::write(&part, serde_json::to_vec(&manifest).unwrap()).unwrap();
    data(["merge", "--out", text(&older.path("out"))]).success();
}

#[test]
fn numbers_without_a_canonical_form_are_refused_where_they_are_given_or_read() {
    let place = Folders::new(&[("a.txt", b"some words")]);
    for option in ["--max-tokens", "--rows-per-shard"] {
        for number in ["18446744073709551615", "9007199254740993"] {
            let error = place.prepare(&[option, number]).failure(2);
            assert_says(&error, &[option, number, "9007199254740992"]);
            assert!(!error.contains("internal fault"), "{error}");
        }
    }
    place.prepare(&["--task", "1/1", "--max-tokens", "100"]).success();
    let part = place.path("out/parts/00001-of-00001/train/manifest.json");
    let sound: serde_json::Value = serde_json::from_slice(&fs_err::read(&part).unwrap()).unwrap();
    let altered: [(&[&str], serde_json::Value); 3] = [
        (&["selection", "max_tokens"], u64::MAX.into()),
        (&["packing", "rows_per_shard"], u64::MAX.into()),
        (&["source", "generator"], serde_json::json!({"seed": -0.5})),
    ];
    for (path, value) in altered {
        let mut manifest = sound.clone();
        path.iter().fold(&mut manifest, |value, key| &mut value[*key]).clone_from(&value);
        fs_err::write(&part, serde_json::to_vec(&manifest).unwrap()).unwrap();
        let error = data(["merge", "--out", text(&place.path("out"))]).failure(1);
        assert_says(&error, &["manifest.json", "expected"]);
    }
}

#[test]
fn a_resumed_run_knows_what_the_records_before_had() {
    // The run stops at a bad record in the middle, with rows stored.
    let record = |id: &str| format!("{{\"text\":\"{}\"{id}}}\n", "word ".repeat(50));
    let lines = |first: &str| {
        let mut lines = record(first).repeat(500);
        lines.push_str("{\"text\": 1}\n");
        lines.push_str(&record(""));
        lines
    };
    for (first, found) in [(",\"id\":\"x\"", true), ("", false)] {
        let place = Folders::new(&[("a.jsonl", lines(first).as_bytes())]);
        let options = ["--id-field", "id", "--rows-per-shard", "1"];
        place.prepare(&options).failure(1);
        assert!(place.split().join("shard-00000.arrow").exists(), "rows were stored before");
        let resumed = place.prepare(&[&options[..], &["--on-bad-record", "skip"]].concat());
        if found {
            resumed.success();
        } else {
            assert_says(&resumed.failure(1), &["--id-field id", "none of 501"]);
        }
    }
}

#[test]
fn a_wrong_text_field_is_named_with_the_keys_that_are_there() {
    let folders = Folders::new(&[("a.jsonl", b"{\"content\":\"hello\",\"url\":\"u1\"}\n")]);
    let error = folders.prepare(&[]).failure(1);
    assert_says(&error, &["record 0", "no field `text`", "`content`, `url`", "--text-field"]);
    assert!(!error.contains("mend the file"), "{error}");
    folders.prepare(&["--text-field", "content"]).success();
    // What the message advises works, also after records were stored.
    let mut lines = b"{\"text\":\"ok\"}\n".repeat(3000);
    lines.extend(b"{\"text\":\"bad\"} trailing\n{\"text\":\"last\"}\n");
    let folders = Folders::new(&[("a.jsonl", &lines)]);
    let shards = ["--rows-per-shard", "1"];
    assert_says(&folders.prepare(&shards).failure(1), &["record 3000", "--on-bad-record skip"]);
    assert!(folders.split().join("shard-00000.arrow").exists(), "rows were stored before");
    folders.prepare(&["--rows-per-shard", "1", "--on-bad-record", "skip"]).success();
    let whole = Folders::new(&[("a.jsonl", &lines)]);
    whole.prepare(&["--rows-per-shard", "1", "--on-bad-record", "skip"]).success();
    assert_same_files(&whole.split(), &folders.split());
    assert_eq!(folders.manifest().totals.left_out["invalid-json"], 1);
}

#[test]
fn a_field_is_found_by_its_path_and_by_a_key_with_dots() {
    let lines =
        b"{\"a\":{\"b\":{\"text\":\"deep\"}}}\n{\"a.b.text\":\"flat\"}\n{\"a\":{\"b.text\":\"mixed\"}}\n";
    let folders = Folders::new(&[("a.jsonl", lines)]);
    folders.prepare(&["--text-field", "a.b.text"]).success();
    assert_eq!(folders.texts(), ["deep", "flat", "mixed"]);
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
}

#[test]
fn names_of_every_kind_are_kept_as_they_are_written() {
    let values = [
        "null",
        "true",
        "1.50",
        "[\"x\", 2]",
        "{\"o\":1}",
        "\"\"",
        "1e400",
        "12345678901234567890123",
        "NaN",
    ];
    let lines: String = values.iter().map(|id| format!("{{\"text\":\"t\",\"id\": {id}}}\n")).collect();
    let folders = Folders::new(&[("a.jsonl", lines.as_bytes())]);
    for option in ["--id-field", "--license-field"] {
        folders.prepare(&[option, "id", "--restart"]).success();
        let expected: Vec<Option<String>> =
            values.iter().map(|id| (*id != "null").then(|| id.trim_matches('"').to_owned())).collect();
        if option == "--id-field" {
            assert_eq!(folders.ids(), expected);
        } else {
            let manifest = folders.manifest();
            let names: Vec<_> =
                manifest.record_licenses.iter().map(|total| Some(total.name.clone())).collect();
            assert_eq!(names, expected[1..]);
        }
        data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
    }
}

#[test]
fn a_holdout_is_a_fraction_between_nothing_and_all() {
    let folders = Folders::new(&[("a.txt", b"words")]);
    for fraction in ["0", "1", "NaN", "inf", "-0.1", "1%", "", "abc", "0.9999999999999999999", "1e400"] {
        let error = folders.prepare(&["--holdout", fraction]).failure(1);
        assert_says(&error, &["--holdout", "a fraction above 0 and below 1"]);
        assert!(!folders.path("out").exists(), "{fraction}");
    }
    // Every fraction that is one makes two splits that together have every document once.
    for fraction in [".5", "5e-1", "1e-300", "0.999999999999"] {
        folders.prepare(&["--holdout", fraction, "--restart"]).success();
        let documents =
            |split: &str| Manifest::load(&folders.path("out").join(split)).unwrap().totals.documents;
        assert_eq!(documents("train") + documents("validation"), 1, "{fraction}");
    }
}

#[test]
fn a_license_is_somebodys_statement_and_decides_no_root() {
    let inputs: [(&str, &[u8]); 1] = [("a.txt", b"some words of a license")];
    let plain = Folders::new(&inputs);
    plain.prepare(&[]).success();
    let folders = Folders::new(&inputs);
    folders.prepare(&["--license", " CC-BY-4.0 \u{1b}[31m"]).success();
    let manifest = folders.manifest();
    assert_eq!(manifest.root, plain.manifest().root);
    assert_eq!(plain.manifest().source.licences[0].claimed_by, "nobody");
    let licence = &manifest.source.licences[0];
    assert_eq!((licence.statement.as_str(), &licence.spdx), ("CC-BY-4.0 \u{1b}[31m", &None));
    assert!(licence.claimed_by.contains("not checked"), "{licence:?}");

    let page = folders.path("datasheet.html");
    let audit = data(["audit", text(&folders.split()), "--html", text(&page)]).success();
    let trace = data(["trace", text(&folders.split()), "--document", "0"]).success();
    let croissant = folders.path("croissant.json");
    data(["export", text(&folders.split()), "--to", "croissant", "--out", text(&croissant)]).success();
    let [page, croissant] = [page, croissant].map(|file| fs_err::read_to_string(file).unwrap());
    for (what, said) in [("audit", &audit), ("trace", &trace), ("page", &page), ("croissant", &croissant)] {
        assert!(said.contains("CC-BY-4.0") && said.contains("not checked"), "{what}: {said}");
        assert!(!said.contains('\u{1b}'), "{what}: {said:?}");
    }

    // Another statement about the same files is another dataset to whoever reads it.
    let ran = folders.prepare(&["--license", "proprietary"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let ran = plain.prepare(&["--license", "  ", "--restart"]);
    assert_eq!(ran.code, Some(1));
    assert_says(&ran.stderr, &["--license: expected a license such as CC-BY-4.0"]);
}

#[test]
fn examples_and_crates_take_a_license_too() {
    let place = Folders::new(&[("a.jsonl", b"{\"input_ids\": [1, 2], \"targets\": [null, 3]}\n")]);
    let (file, out, page) = (place.input().join("a.jsonl"), place.path("out"), place.path("page.html"));
    let examples = |more: &[&str]| {
        let arguments = ["prepare", "examples", text(&file), "--out", text(&out), "--restart"];
        data(arguments.into_iter().chain(more.iter().copied()))
    };
    examples(&[]).success();
    let plain = place.manifest();
    assert_eq!(plain.source.licences[0].claimed_by, "nobody");
    assert_says(
        &examples(&["--license", " "]).failure(1),
        &["--license: expected a license such as CC-BY-4.0"],
    );
    examples(&["--license", "CC0-1.0 \u{1b}[31m"]).success();
    assert_eq!(place.manifest().root, plain.root);
    let audit = data(["audit", text(&place.split()), "--html", text(&page)]).success();
    for said in [&audit, &fs_err::read_to_string(&page).unwrap()] {
        assert!(
            said.contains("CC0-1.0") && said.contains("not checked") && !said.contains('\u{1b}'),
            "{said:?}"
        );
    }

    // A crate in a cache of its own.
    let cache = place.path("cargo/registry/cache/index");
    fs_err::create_dir_all(&cache).unwrap();
    let archive = xlstm_tests::corpus::tar_gz(&[
        ("some-1.0.0/Cargo.toml", "[package]\nname = \"some\"\nversion = \"1.0.0\"\nlicense = \"MIT\"\n"),
        ("some-1.0.0/src/lib.rs", "// words\n"),
    ]);
    fs_err::write(cache.join("some-1.0.0.crate"), &archive).unwrap();
    let lock = place.path("Cargo.lock");
    let checksum = xlstm_manifests::Sha256Digest::of(&archive);
    let package = format!(
        "version = 4\n\n[[package]]\nname = \"some\"\nversion = \"1.0.0\"\nsource = \"registry+https://x\"\nchecksum = \"{checksum}\"\n"
    );
    fs_err::write(&lock, package).unwrap();
    let crates = |more: &[&str]| {
        let arguments = ["prepare", "crates", "--lockfile", text(&lock), "--out", text(&out), "--restart"];
        let mut command = data_command(arguments.into_iter().chain(more.iter().copied()));
        command.env("CARGO_HOME", place.path("cargo"));
        run(&mut command)
    };
    crates(&[]).success();
    let plain = place.manifest();
    assert_eq!(plain.source.licences.len(), 1);
    crates(&["--license", "reviewed: MIT"]).success();
    let manifest = place.manifest();
    assert_eq!(manifest.root, plain.root);
    let said: Vec<_> = manifest.source.licences.iter().map(|licence| licence.statement.as_str()).collect();
    assert_eq!(said, ["the licence of each input is recorded with it", "reviewed: MIT"]);
    assert_eq!(manifest.inputs[0].licence.as_deref(), Some("MIT"));
    let trace = data(["trace", text(&place.split()), "--document", "0"]).success();
    assert_says(
        &trace,
        &["MIT (the file's own)", "reviewed: MIT (whoever prepared these files, not checked)"],
    );
}
