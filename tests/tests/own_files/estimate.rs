//! `plan`: how many tokens it expects of files that differ much in tokens a byte, and what `prepare` then makes of them.

use serde_json::{Value, json};
use xlstm_tests::corpus;

use super::*;

/// The split that `plan` describes, and what it said on stderr.
fn plan(place: &Folders, more: &[&str]) -> (Value, String) {
    let (input, out) = (place.input(), place.path("out"));
    let arguments = ["plan", "local", text(&input), "--out", text(&out), "--json"];
    let ran = data(arguments.into_iter().chain(more.iter().copied()));
    let said = ran.stderr.clone();
    let mut plan: Value = serde_json::from_str(&ran.success()).unwrap();
    (plan["splits"][0].take(), said)
}

#[track_caller]
fn close(plan: &Value, tokens: u64) {
    let expected = plan["expected_tokens"].as_u64().unwrap();
    let ratio = expected as f64 / tokens as f64;
    assert!((0.97..1.03).contains(&ratio), "planned {expected}, found {tokens}: {ratio}");
}

/// Numbers: two bytes a token, about.
fn digits(bytes: usize, mut state: u64) -> String {
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text += &format!("{} ", state >> 20);
    }
    text
}

fn lines(texts: &[String]) -> Vec<u8> {
    texts
        .iter()
        .map(|text| format!("{}\n", json!({"text": text, "meta": {"redpajama_set_name": "one"}})))
        .collect::<String>()
        .into_bytes()
}

/// Files whose tokens a byte of file differ by more than a hundred times.
fn corpus_of_many_kinds() -> Folders {
    let prose = corpus::documents(5, 3 << 20);
    let numbers: Vec<String> = (0..300).map(|n| digits(10_000, n)).collect();
    // One text over and over: a few bytes of a compressed file.
    let same: Vec<String> = vec!["the same words again and again, ".repeat(50); 2000];
    let spaces = format!("{}end", " ".repeat(3 << 20));
    // A file that is read in stretches of its text, first of one kind and then of another.
    let mut sorted: Vec<String> = prose.iter().map(|document| document.text.clone()).collect();
    sorted.extend((0..1200).map(|n| digits(10_000, 1000 + n)));
    Folders::new(&[
        ("prose.parquet", &corpus::parquet(&prose, 100)),
        ("numbers.jsonl", &lines(&numbers)),
        ("same.jsonl.zst", &corpus::zstd_frames(&lines(&same), 3)),
        ("sorted.jsonl.gz", &corpus::gzip_members(&lines(&sorted), 4)),
        ("spaces.txt", spaces.as_bytes()),
        ("notes/short.md", b"a few words"),
        ("notes/empty.txt", b""),
    ])
}

#[test]
fn a_plan_expects_what_prepare_makes_of_files_of_many_kinds() {
    let place = corpus_of_many_kinds();
    let (whole, _) = plan(&place, &[]);
    assert_eq!(whole["sample"]["files"], 7);
    place.prepare(&[]).success();
    let manifest = place.manifest();
    close(&whole, manifest.totals.tokens);
    assert_eq!(whole["sample"]["documents"], manifest.totals.documents);
    let sampled = whole["sample"]["text_bytes"].as_u64().unwrap();
    assert!(sampled < manifest.totals.text_bytes, "not all of it is tokenized: {sampled}");
    let said = data(["plan", "local", text(&place.input()), "--out", text(&place.path("out"))]).success();
    assert_says(&said, &["estimated from a sample: ", " of text tokenized, from ", "of 7 of 7 files"]);

    // What is left out is not expected.
    let list = place.path("copies.jsonl");
    data(["duplicates", text(&place.split()), "--list", text(&list)]).success();
    let options = ["--drop-duplicates", text(&list)];
    let (dropped, _) = plan(&place, &options);
    place.prepare(&[&options[..], &["--restart"]].concat()).success();
    assert!(place.manifest().totals.left_out["duplicate"] >= 1999);
    close(&dropped, place.manifest().totals.tokens);
    let options = ["--set-field", "meta.redpajama_set_name", "--exclude-set", "one"];
    let (excluded, _) = plan(&place, &options);
    place.prepare(&[&options[..], &["--restart"]].concat()).success();
    close(&excluded, place.manifest().totals.tokens);
}

#[test]
fn what_cannot_be_sampled_is_said() {
    let place = Folders::new(&[
        ("good.jsonl", &lines(&vec!["some words".into(); 100])),
        ("other.jsonl", b"{\"body\": \"words\"}\n{\"text\": 3}\n"),
        ("cut.jsonl.zst", &corpus::zstd_frames(&lines(&[digits(100_000, 1)]), 1)[..20_000]),
    ]);
    let (split, said) = plan(&place, &[]);
    assert_says(&said, &["`cut.jsonl.zst` could not be sampled, so its tokens are estimated by its size"]);
    assert_says(&said, &["the sample has 2 records that cannot be used (first in `other.jsonl`)"]);
    assert_eq!(
        (split["sample"]["files"].as_u64(), split["sample"]["documents"].as_u64()),
        (Some(2), Some(100))
    );
    // 20,000 compressed bytes, as English web text.
    let expected = split["expected_tokens"].as_u64().unwrap();
    assert!((14_000..15_000).contains(&expected), "{expected}");
}

#[test]
fn copies_are_not_expected_of_a_file_that_is_read_in_pieces() {
    // More than 64 MiB, of which lines have numbers in the first piece alone. Half of the texts are there twice, in each half of the
    // file once, and one of them very often.
    let texts = |seed: u64, count: u64| (0..count).map(move |n| digits(200_000, seed * 1000 + n));
    let twice: Vec<String> = texts(1, 90).collect();
    let (once, other): (Vec<String>, Vec<String>) = (texts(2, 80).collect(), texts(3, 80).collect());
    let often = vec![digits(1_000_000, 9); 10];
    let all = [&twice[..], &once, &often, &twice, &other].concat();
    let place = Folders::new(&[("large.jsonl", &lines(&all))]);
    assert!(fs_err::metadata(place.input().join("large.jsonl")).unwrap().len() > 70 << 20);
    place.prepare(&[]).success();
    let (list, out) = (place.path("copies.jsonl"), place.path("out"));
    let found = data(["duplicates", text(&out), "--list", text(&list), "--json"]).success();
    let found: Value = serde_json::from_str(&found).unwrap();
    let number = |of: &str| found["total"][of].as_u64().unwrap();
    assert_eq!((number("exact"), number("near")), (99, 0));
    let whole = place.manifest().totals.tokens;
    close(&plan(&place, &[]).0, whole);
    let (dropped, _) = plan(&place, &["--drop-duplicates", text(&list)]);
    let kept = whole - number("exact_tokens") - number("exact");
    // Which copies are in the pieces is chance: within a tenth, where all copies counted would be two fifths too many.
    let ratio = dropped["expected_tokens"].as_u64().unwrap() as f64 / kept as f64;
    assert!((0.9..1.1).contains(&ratio), "planned {ratio} of what is kept");
    assert!(whole as f64 / kept as f64 > 1.3);
}
