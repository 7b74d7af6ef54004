//! What is finished, unfinished or empty answers for its own inputs and settings alone.

use xlstm_tests::program::{assert_same_files, files};

use super::*;

#[test]
fn a_finished_dataset_answers_only_for_its_own_inputs_and_options() {
    let inputs: [(&str, &[u8]); 2] =
        [("1.jsonl", b"{\"text\":\"one\"}\n"), ("2.jsonl", b"{\"text\":\"two\"}\n")];
    let folders = Folders::new(&inputs);
    folders.prepare(&[]).success();
    let before = files(&folders.path("out"));
    let refused = |folders: &Folders, input: &Path, more: &[&str], parts: &[&str]| {
        let error = folders.prepare_from(input, more).failure(1);
        assert_says(&error, &["finished dataset", "use another --out, or --restart"]);
        assert_says(&error, parts);
        assert_eq!(files(&folders.path("out")), before, "nothing was changed");
    };
    assert!(folders.prepare(&[]).success().contains("was finished before"));
    let other = folders.path("other");
    fs_err::create_dir(&other).unwrap();
    fs_err::write(other.join("sp ace.txt"), "other words").unwrap();
    refused(&folders, &other, &[], &["sp ace.txt"]);
    folders.put("3.jsonl", b"{\"text\":\"three\"}\n");
    refused(&folders, &folders.input(), &[], &["`3.jsonl` is new"]);
    fs_err::remove_file(folders.input().join("3.jsonl")).unwrap();
    folders.put("2.jsonl", b"{\"text\":\"TWO\"}\n");
    refused(&folders, &folders.input(), &[], &["`2.jsonl` has other bytes"]);
    fs_err::remove_file(folders.input().join("2.jsonl")).unwrap();
    refused(&folders, &folders.input(), &[], &["`2.jsonl` is gone"]);
    folders.put("2.jsonl", b"{\"text\":\"two\"}\n");
    for option in ["--id-field", "--license-field", "--source-field", "--set-field"] {
        refused(&folders, &folders.input(), &[option, "text"], &["selection"]);
    }
    assert!(folders.prepare(&[]).success().contains("was finished before"));
    // A prefix answers for what it read; files behind it were never in it.
    let folders = Folders::new(&inputs);
    folders.prepare(&["--max-tokens", "1"]).success();
    folders.put("9.jsonl", b"{\"text\":\"nine\"}\n");
    assert!(folders.prepare(&["--max-tokens", "1"]).success().contains("was finished before"));
}

#[test]
fn a_merged_dataset_answers_only_for_its_own_parts_and_an_altered_part_is_found() {
    let words: String = (0..3000).map(|n| format!("{n} ")).collect();
    let folders = Folders::new(&[("1.txt", words.as_bytes()), ("2.txt", b"short")]);
    let task = |folders: &Folders, task: &str| folders.prepare(&["--task", task]).success();
    task(&folders, "1/2");
    task(&folders, "2/2");
    let out = folders.path("out");
    data(["merge", "--out", text(&out)]).success();
    fs_err::remove_dir_all(out.join("parts")).unwrap();
    folders.put("2.txt", b"shoRT");
    task(&folders, "1/2");
    task(&folders, "2/2");
    let error = data(["merge", "--out", text(&out)]).failure(1);
    assert_says(&error, &["was not made from these parts", "--restart"]);
    data(["merge", "--out", text(&out), "--restart"]).success();

    // One token altered, and the file's own digest made anew: the Merkle roots still tell.
    let part = out.join("parts/00001-of-00002/train");
    let shard = part.join("shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    bytes[6900] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let mut manifest = Manifest::load(&part).unwrap();
    manifest.shards[0].file.sha256 = xlstm_manifests::Sha256Digest::of(&bytes);
    fs_err::write(part.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
    let error = data(["merge", "--out", text(&out), "--restart"]).failure(1);
    assert_says(&error, &["tokens_root", "altered"]);
}

#[test]
fn an_empty_split_is_said() {
    let notes: Vec<(String, Vec<u8>)> =
        (1..9).map(|n| (format!("{n}.txt"), format!("note {n} of a small corpus").into_bytes())).collect();
    let notes: Vec<(&str, &[u8])> =
        notes.iter().map(|(name, text)| (name.as_str(), text.as_slice())).collect();
    let folders = Folders::new(&notes);
    let ran = folders.prepare(&["--holdout", "0.000001"]);
    assert_says(&ran.stderr, &["split `validation` came out empty", "holdout of 0.000001"]);
    assert_says(&ran.success(), &["no document is in this split"]);
    let folders = Folders::new(&[("a.jsonl", b"\"context\"\n[\"text\"]\n42\nnull\n")]);
    let ran = folders.prepare(&["--on-bad-record", "skip", "--json"]);
    assert_says(&ran.stderr, &["split `train` came out empty", "of 4 records"]);
    assert_says(&ran.success(), &["\"empty\":true"]);
}

#[test]
fn an_unfinished_run_does_not_go_on_from_files_that_changed() {
    let mut second = b"{\"text\":\"ok\"}\n".repeat(3000);
    let first = second.clone();
    second.extend(b"{\"text\":\"bad\"} trailing\n{\"text\":\"last\"}\n");
    let folders = Folders::new(&[("1.jsonl", &first), ("2.jsonl", &second)]);
    let small = ["--rows-per-shard", "1"];
    assert_says(&folders.prepare(&small).failure(1), &["2.jsonl", "record 3000"]);
    let mut changed = first.clone();
    changed[9] = b'O';
    folders.put("1.jsonl", &changed);
    let skip = ["--rows-per-shard", "1", "--on-bad-record", "skip"];
    let error = folders.prepare(&skip).failure(1);
    assert_says(&error, &["an unfinished run", "`1.jsonl` has other bytes", "--restart"]);
    folders.put("1.jsonl", &first);
    folders.prepare(&skip).success();
    let whole = Folders::new(&[("1.jsonl", &first), ("2.jsonl", &second)]);
    whole.prepare(&skip).success();
    assert_same_files(&whole.split(), &folders.split());
}

#[test]
fn a_finished_task_answers_only_for_its_own_examples() {
    let folder = tempfile::tempdir().unwrap();
    let task = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let arguments = ["prepare", "task", "parity", "--split", "train", "--out", text(&out)];
        data(arguments.into_iter().chain(more.iter().copied()))
    };
    task("out", &["--examples", "300"]).success();
    let before = files(&folder.path().join("out"));
    assert!(task("out", &["--examples", "300"]).success().contains("was finished before"));
    for (more, parts) in [
        (&["--examples", "301"][..], &["its examples", "it has 300, asked for are 301"][..]),
        (&["--examples", "70000"], &["it has 300, asked for are 70000"]),
        (&["--examples", "300", "--seed", "1"], &["source"]),
        (&["--examples", "300", "--train-length", "3..30"], &["source"]),
        (&["--examples", "300", "--rows-per-shard", "100"], &["packing"]),
        (&["--examples", "300", "--stream"], &["was prepared with its shards"]),
    ] {
        let error = task("out", more).failure(1);
        assert_says(&error, parts);
        assert_says(&error, &["--restart"]);
        assert_eq!(files(&folder.path().join("out")), before, "nothing was changed");
    }
    task("streamed", &["--examples", "300", "--stream"]).success();
    assert!(task("streamed", &["--examples", "300", "--stream"]).success().contains("was finished before"));
    let error = task("streamed", &["--examples", "300"]).failure(1);
    assert_says(&error, &["has no shards", "--restart", "--stream"]);
    task("out", &["--examples", "301", "--restart"]).success();
}

#[test]
fn finished_examples_answer_only_for_their_own_files() {
    let folders = Folders::new(&[("a.jsonl", b"{\"input_ids\":[1,2],\"targets\":[null,3]}\n")]);
    let (input, out) = (folders.input().join("a.jsonl"), folders.path("out"));
    let prepare = |more: &[&str]| {
        let arguments = ["prepare", "examples", text(&input), "--out", text(&out)];
        data(arguments.into_iter().chain(more.iter().copied()))
    };
    prepare(&[]).success();
    assert!(prepare(&[]).success().contains("was finished before"));
    assert_says(&prepare(&["--vocabulary-size", "9"]).failure(1), &["a finished dataset", "tokenizer"]);
    folders.put("a.jsonl", b"{\"input_ids\":[2,1],\"targets\":[null,3]}\n");
    assert_says(&prepare(&[]).failure(1), &["a finished dataset", "its inputs", "--restart"]);
}

/// What is counted, compared or found over nothing says so.
#[test]
fn no_answer_stands_on_an_empty_split() {
    let folders = Folders::new(&[("1.jsonl", b"{\"body\": \"no text\"}\n")]);
    folders.prepare(&["--on-bad-record", "skip"]).success();
    let (split, counts) = (folders.split(), folders.path("counts.json"));
    let error = data(["count", text(&split), "--out", text(&counts)]).failure(1);
    assert_says(&error, &["at least one token", "none", "count a split with text"]);
    assert!(!counts.exists());
    let said = data(["diff", text(&split), text(&split)]).success();
    assert_says(&said, &["Both are empty: there was no token to compare"]);
    let said = data(["overlap", text(&split), text(&split)]).success();
    assert_says(&said, &["nothing was compared: the evaluation sets hold no document"]);
}

/// Of documents without a paragraph of the length that is compared, only the whole can be found.
#[test]
fn an_overlap_of_short_texts_says_what_was_compared() {
    let folders = Folders::new(&[("1.txt", b"a short text"), ("2.txt", b"and another")]);
    folders.prepare(&[]).success();
    let (split, other) = (folders.split(), folders.path("other"));
    folders.put("3.txt", b"one that is not in the first");
    fs_err::remove_file(folders.input().join("1.txt")).unwrap();
    fs_err::remove_file(folders.input().join("2.txt")).unwrap();
    let prepare = ["prepare", "local", text(&folders.input()), "--out", text(&other)].map(str::to_owned);
    data(prepare).success();
    let page = folders.path("page.html");
    let (train, page_name) = (other.join("train"), text(&page));
    let said = data(["overlap", text(&split), text(&train), "--html", page_name]).success();
    assert_says(&said, &["No evaluation paragraph has 13 words", "0 of 1 evaluation documents"]);
    let page = fs_err::read_to_string(page).unwrap();
    assert!(
        page.contains("no text within documents was compared") && !page.contains("No overlap."),
        "{page}"
    );
}
