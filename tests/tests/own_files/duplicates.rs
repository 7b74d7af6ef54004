//! `prepare --drop-duplicates`: copies that `duplicates` found are left out, by a list that the manifest names and that an
//! audit applies again.

use serde_json::{Value, json};
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::DropDuplicates;
use xlstm_tests::program::assert_same_files;

use super::*;

const WORDS: usize = 120;

/// A text of words of its own; `other` of them, evenly spread, are others.
fn words(name: &str, other: usize) -> String {
    let replaced = |word: usize| other > 0 && word.is_multiple_of(WORDS / other);
    let word = |word: usize| if replaced(word) { format!("other{word} ") } else { format!("{name}{word} ") };
    (0..WORDS).map(word).collect()
}

/// Lines of `text` and `set`.
fn lines(documents: &[(&str, String)]) -> Vec<u8> {
    let line = |(set, text): &(&str, String)| format!("{}\n", json!({"set": set, "text": text}));
    documents.iter().map(line).collect::<String>().into_bytes()
}

/// Two files of nine documents. Copies: `a.jsonl` 2 (exact); `b.jsonl` 0 (near the first), 1 (exact), 4 (exact copy of a near
/// copy).
fn corpus() -> Folders {
    let a =
        [("web", words("a", 0)), ("web", words("b", 0)), ("web", words("a", 0)), ("books", words("c", 0))];
    let b = [
        ("web", words("a", 1)),
        ("books", words("b", 0)),
        ("web", words("b", 20)),
        ("web", words("d", 0)),
        ("web", words("a", 1)),
    ];
    Folders::new(&[("a.jsonl", &lines(&a)), ("b.jsonl", &lines(&b))])
}

const COPIES: [(&str, u64); 4] = [("a.jsonl", 2), ("b.jsonl", 0), ("b.jsonl", 1), ("b.jsonl", 4)];

const SETS: [&str; 2] = ["--set-field", "set"];

/// Makes the list of the splits in `out`, and moves them out of the way.
fn list(place: &Folders) -> PathBuf {
    let (out, list) = (place.path("out"), place.path("copies.jsonl"));
    data(["duplicates", text(&out), "--list", text(&list)]).success();
    fs_err::rename(&out, place.path("first")).unwrap();
    list
}

/// A corpus that was prepared and its list.
fn listed() -> (Folders, PathBuf) {
    let place = corpus();
    place.prepare(&SETS).success();
    let list = list(&place);
    (place, list)
}

fn dropping<'a>(list: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&SETS[..], &["--drop-duplicates", text(list)], more].concat()
}

fn read(list: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(list).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn audit(place: &Folders, more: &[&str]) -> Ran {
    let out = place.path("out");
    data(["audit", text(&out)].into_iter().chain(more.iter().copied()))
}

#[test]
fn copies_are_left_out_and_the_manifest_says_by_which_list() {
    let (place, list) = listed();
    let named: Vec<_> = read(&list)
        .iter()
        .map(|line| (line["input"].as_str().unwrap().to_owned(), line["record"].as_u64().unwrap()))
        .collect();
    assert_eq!(named, COPIES.map(|(input, record)| (input.to_owned(), record)));
    assert!(
        !fs_err::read_to_string(&list).unwrap().contains(text(place.0.path())),
        "no place of this machine"
    );
    place.prepare(&dropping(&list, &[])).success();
    let manifest = place.manifest();
    let bytes = fs_err::read(&list).unwrap();
    let expected = DropDuplicates { list_sha256: Sha256Digest::of(&bytes), documents: 4 };
    assert_eq!(manifest.selection.drop_duplicates, Some(expected));
    let left_out: Vec<_> = manifest.inputs.iter().map(|input| input.counts.left_out["duplicate"]).collect();
    assert_eq!((manifest.totals.documents, left_out), (5, vec![1, 3]));
    assert_eq!(place.texts(), [words("a", 0), words("b", 0), words("c", 0), words("b", 20), words("d", 0)]);
    // Nothing is left to leave out.
    let again = place.path("again.jsonl");
    data(["duplicates", text(&place.split()), "--list", text(&again)]).success();
    assert_eq!(fs_err::read(&again).unwrap(), b"");
    // Another selection: a finished split does not answer for it, and its root is another.
    assert_says(&place.prepare(&SETS).failure(1), &["a finished dataset", "selection"]);
    let first = Manifest::load(&place.path("first/train")).unwrap();
    assert!(first.root != manifest.root && first.selection.drop_duplicates.is_none());
    let diff = data(["diff", text(&place.path("first/train")), text(&place.split())]);
    assert_eq!(diff.code, Some(1));
    assert_says(&diff.stdout, &["selection.drop_duplicates (decides the tokens)", "another selection"]);
    let plain = fs_err::read_to_string(place.path("first/train/manifest.json")).unwrap();
    assert!(!plain.contains("drop_duplicates"), "a manifest without a list is as it was");
}

#[test]
fn a_document_that_is_there_once_more_is_no_copy_of_itself() {
    let place = corpus();
    let list = place.path("copies.jsonl");
    for split in ["train", "validation"] {
        place.prepare(&[&SETS[..], &["--split", split]].concat()).success();
    }
    let (out, train) = (place.path("out"), place.split());
    // The same files in two splits, and one split named twice.
    for paths in [vec![text(&out)], vec![text(&train), text(&train)]] {
        let arguments = [&["duplicates"][..], &paths, &["--list", text(&list)]].concat();
        let said = data(arguments).success();
        assert_says(&said, &["9 of these copies are an earlier document once more", "not in a list"]);
        let named = read(&list).iter().map(|line| line["record"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(named, COPIES.map(|(_, record)| record));
        place.prepare(&dropping(&list, &["--restart"])).success();
        assert_eq!(place.manifest().totals.documents, 5, "the first of each kind stays");
        place.prepare(&[&SETS[..], &["--restart"]].concat()).success();
    }
    // A file without copies gives no list that could leave all of it out.
    let place = Folders::new(&[("x.jsonl", &lines(&[("web", words("a", 0)), ("web", words("b", 0))]))]);
    for split in ["train", "validation"] {
        place.prepare(&[&SETS[..], &["--split", split]].concat()).success();
    }
    data(["duplicates", text(&place.path("out")), "--list", text(&list)]).success();
    assert_eq!(fs_err::read(&list).unwrap(), b"");
}

#[test]
fn tasks_resumed_runs_and_one_run_give_the_same_bytes() {
    let (place, list) = listed();
    let options = dropping(&list, &[]);
    let whole = place.path("whole");
    place.prepare(&options).success();
    fs_err::rename(place.path("out"), &whole).unwrap();
    for task in ["1/2", "2/2"] {
        place.prepare(&[&options[..], &["--task", task]].concat()).success();
    }
    let merge = || data(["merge", "--out", text(&place.path("out"))]);
    merge().success();
    assert_same_files(&whole.join("train"), &place.split());
    // A part of another list is a part of another whole.
    let other = place.path("other.jsonl");
    let bytes = fs_err::read_to_string(&list).unwrap();
    fs_err::write(&other, bytes.split_inclusive('\n').take(3).collect::<String>()).unwrap();
    place.prepare(&dropping(&other, &["--task", "2/2", "--restart"])).success();
    assert_says(&merge().failure(1), &["parts of different wholes"]);

    // A run that ended at a bad record in the middle, after rows were stored.
    let mut broken = lines(&[("web", words("e", 0)), ("web", words("e", 0))]).repeat(40);
    broken.extend(b"not JSON\n");
    broken.extend(lines(&[("web", words("e", 0))]));
    let place = Folders::new(&[("a.jsonl", &broken)]);
    let skip = ["--on-bad-record", "skip", "--rows-per-shard", "1"];
    place.prepare(&[&SETS[..], &skip].concat()).success();
    let list = self::list(&place);
    // Leaves out some of the copies, so that rows are stored on both sides of the bad record.
    let kept: String = read(&list).iter().skip(60).map(|line| format!("{line}\n")).collect();
    fs_err::write(&list, kept).unwrap();
    let stops = dropping(&list, &["--rows-per-shard", "1"]);
    let skips = dropping(&list, &skip);
    place.prepare(&stops).failure(1);
    assert!(place.split().join("shard-00000.arrow").exists(), "rows were stored before");
    // With another list the run is another one.
    let less = place.path("less.jsonl");
    fs_err::write(&less, read(&list).iter().skip(1).map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    assert_says(&place.prepare(&dropping(&less, &skip)).failure(1), &["an unfinished run", "--restart"]);
    place.prepare(&skips).success();
    let whole = Folders::new(&[("a.jsonl", &broken)]);
    whole.prepare(&skips).success();
    assert_same_files(&whole.split(), &place.split());
    assert_eq!(place.manifest().totals.left_out["duplicate"], 20);
}

#[test]
fn the_rest_of_the_selection_comes_first_and_an_audit_applies_the_list_again() {
    let (place, list) = listed();
    let every = ["--deep", "all", "--duplicates", text(&list)];
    // Excluded and held-out copies are counted as such, and no copy on two sides.
    let options = dropping(&list, &["--exclude-set", "books", "--holdout", "0.5"]);
    place.prepare(&options).success();
    let sides = ["train", "validation"].map(|split| Manifest::load(&place.path("out").join(split)).unwrap());
    let sum = |reason: &str| -> u64 {
        sides.iter().filter_map(|manifest| manifest.totals.left_out.get(reason)).sum()
    };
    assert_eq!((sum("duplicate"), sum("excluded-set")), (3, 4));
    assert_eq!(sides.iter().map(|manifest| manifest.totals.documents).sum::<u64>(), 4);
    let said = audit(&place, &every).success();
    assert_says(&said, &["4 copies that the list left out read again"]);
    // Without the list an audit says what it needs; a damaged or another list is refused.
    let digest = Sha256Digest::of(&fs_err::read(&list).unwrap()).to_string();
    let said = audit(&place, &["--deep", "all"]).success();
    assert_says(&said, &["the selection of --deep: not done", &digest, "4 documents", "--duplicates"]);
    let other = place.path("other.jsonl");
    fs_err::write(&other, fs_err::read_to_string(&list).unwrap().replacen("true", "false", 1)).unwrap();
    let error = audit(&place, &["--deep", "all", "--duplicates", text(&other)]).failure(1);
    assert_says(&error, &["other.jsonl", "expected the list", &digest]);
    fs_err::rename(place.path("out"), place.path("second")).unwrap();
    place.prepare(&SETS).success();
    assert_says(&audit(&place, &every).failure(1), &["expected a split prepared with --drop-duplicates"]);
}

#[test]
fn an_audit_finds_a_copy_that_stayed_and_counts_that_are_wrong() {
    let (place, list) = listed();
    let every = ["--deep", "all", "--duplicates", text(&list)];
    // A split that claims the list, made without it: copies stand in it, and its counts cannot be made again.
    let claim = |documents: u64| {
        let bytes = fs_err::read(&list).unwrap();
        let mut manifest = Manifest::load(&place.path("first/train")).unwrap();
        let list_sha256 = Sha256Digest::of(&bytes);
        manifest.selection.drop_duplicates = Some(DropDuplicates { list_sha256, documents });
        manifest
    };
    let seal = |mut manifest: Manifest| {
        manifest.root = xlstm_manifests::identity::root(&manifest).unwrap();
        let split = place.split();
        fs_err::write(split.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
        let sums = split.join("manifest-sha256.txt");
        let before = fs_err::read_to_string(&sums).unwrap();
        let digest = Sha256Digest::of(&manifest.to_bytes().unwrap()).to_string();
        let line = |line: &str| match line.split_once(' ') {
            Some((_, name)) if name.trim_start_matches([' ', '*']) == "manifest.json" => {
                format!("{digest} {name}\n")
            }
            _ => format!("{line}\n"),
        };
        fs_err::write(&sums, before.lines().map(line).collect::<String>()).unwrap();
    };
    place.prepare(&SETS).success();
    seal(claim(4));
    assert_says(&audit(&place, &[]).success(), &["ok"]);
    let found = audit(&place, &every);
    assert_eq!(found.code, Some(1), "{}", found.stderr);
    for (_, record) in COPIES {
        assert_says(&found.stdout, &[&format!("(record {record}): expected to be left out")]);
    }
    assert_says(&found.stdout, &["expected 1 documents left out as `duplicate`", "found 0 in the manifest"]);
    // A manifest that counts the list otherwise: said, and the list is applied all the same.
    seal(claim(3));
    let found = audit(&place, &every);
    assert_eq!(found.code, Some(1), "{}", found.stderr);
    assert_says(
        &found.stdout,
        &[
            "selection.drop_duplicates.documents: expected 4, as many as the list",
            "found 3",
            "(record 4): expected to be left out",
        ],
    );
    assert!(!found.stdout.contains("name the file of SHA-256"), "{}", found.stdout);
    seal(claim(4));
    // Some documents at a time: as many copies are read again, and stored copies are found all the same.
    let some = audit(&place, &["--deep", "2", "--duplicates", text(&list)]);
    assert_eq!(some.code, Some(1));
    assert_says(
        &some.stdout,
        &["2 copies that the list left out read again", "(record 4): expected to be left out"],
    );
    // More left out than the list names contradicts itself.
    let mut manifest = claim(1);
    manifest.totals.left_out.insert("duplicate".into(), 2);
    manifest.inputs[0].counts.left_out.insert("duplicate".into(), 2);
    seal(manifest);
    let found = audit(&place, &[]);
    assert_says(&found.stdout, &["totals.left_out.duplicate of at most 1"]);
}

#[test]
fn a_list_of_something_else_is_refused_before_anything_is_written() {
    let (place, list) = listed();
    let refused = |list: &Path, parts: &[&str]| {
        let error = place.prepare(&dropping(list, &[])).failure(1);
        assert_says(&error, parts);
        assert!(!place.split().join("manifest.json").exists(), "{error}");
    };
    let put = |name: &str, content: &str| {
        let path = place.path(name);
        fs_err::write(&path, content).unwrap();
        path
    };
    let good = fs_err::read_to_string(&list).unwrap();
    refused(&place.path("none.jsonl"), &["none.jsonl"]);
    refused(&put("empty.jsonl", ""), &["empty.jsonl", "found an empty file", "leave the option out"]);
    let manifest = fs_err::read_to_string(place.path("first/train/manifest.json")).unwrap();
    refused(&put("manifest.json", &manifest), &["manifest.json`, line 1", "name that command's list"]);
    refused(&put("a.jsonl", "{\"text\": \"words\"}\n"), &["a.jsonl`, line 1", "duplicates --list"]);
    let overlap = place.path("overlap.jsonl");
    let first = place.path("first/train");
    data(["overlap", text(&first), text(&first), "--list", text(&overlap)]).success();
    refused(&overlap, &["overlap.jsonl`, line 1", "name that command's list"]);
    let cut = &good[..good.len() - 20];
    refused(&put("cut.jsonl", cut), &["cut.jsonl`, line 4"]);
    refused(
        &put("twice.jsonl", &format!("{good}{}\n", good.lines().next().unwrap())),
        &["line 5", "named twice"],
    );
    let mut line = read(&list).remove(1);
    line["copy_of"] = line.clone();
    refused(
        &put("itself.jsonl", &format!("{line}\n")),
        &[
            "itself.jsonl`, line 1",
            "expected a copy and an earlier document at another place",
            "found record 0 of `b.jsonl` as a copy of itself",
            "make the list again",
        ],
    );
    // Of other files; of these files with other bytes; of another field's texts.
    let elsewhere = good.replace("b.jsonl", "c.jsonl");
    refused(
        &put("elsewhere.jsonl", &elsewhere.replace("a.jsonl", "aa\\u001bace.jsonl")),
        &[
            "expected copies among the files that are prepared",
            "found 4 documents of other files",
            "aa\\u{1b}ace",
        ],
    );
    place.put("b.jsonl", &lines(&[("web", words("a", 1))]));
    refused(&list, &["`b.jsonl` is not the file", "copies.jsonl", "make the list from these files"]);
    let (place, list) = listed();
    let error = place.prepare(&["--text-field", "set", "--drop-duplicates", text(&list)]).failure(1);
    assert_says(&error, &["a.jsonl", "record 2", "--text-field"]);
    // Some of it of other files is said, and the rest is left out.
    let part = place.path("part.jsonl");
    fs_err::write(&part, elsewhere).unwrap();
    let ran = place.prepare(&dropping(&part, &["--restart"]));
    assert_says(&ran.stderr, &["split `train`: 3 of 4 documents of", "not read for it (first: `c.jsonl`)"]);
    ran.success();
    assert_eq!(place.manifest().totals.left_out["duplicate"], 1);
    let out = place.path("paloma");
    let arguments = ["prepare", "paloma", "--offline", "--from", text(&out), "--out", text(&out)];
    let error = data(arguments.into_iter().chain(["--drop-duplicates", text(&list)])).failure(1);
    assert_says(&error, &["--drop-duplicates does not go with PALOMA"]);
}
