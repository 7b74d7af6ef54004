//! `duplicates`: what is reported is what a comparison of every document with every earlier one finds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod datasets;

use std::collections::HashSet;
use std::path::PathBuf;

use datasets::{Built, Recipe, Source, build, source};
use proptest::prelude::*;
use serde_json::Value;
use xlstm_manifests::manifest::Layout;
use xlstm_pipeline::duplicates::{DuplicatesArgs, duplicates, run};

fn args(splits: &[&Built]) -> DuplicatesArgs {
    let paths = splits.iter().map(|built| built.split()).collect();
    DuplicatesArgs { paths, threshold: 0.8, list: None, json: false }
}

fn built(layout: Layout, inputs: Vec<Vec<Source>>) -> Built {
    build(&Recipe { layout, inputs, ..Recipe::packed() })
}

/// A text of words of its own, with some of them replaced.
fn words(name: &str, count: usize, replaced: &[usize]) -> String {
    let word = |index: usize| match replaced.contains(&index) {
        true => format!("other{index}"),
        false => format!("{name}{index}"),
    };
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// The five-word shingles of a text, plainly.
fn plain_shingles(text: &str) -> HashSet<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    match words.len() {
        0 => HashSet::new(),
        1..5 => HashSet::from([words]),
        _ => words.windows(5).map(<[String]>::to_vec).collect(),
    }
}

/// Exact and near copies: each document with the earlier one that it is a copy of, by comparing all with all.
fn plain(texts: &[String], threshold: f64) -> Vec<(usize, usize, bool)> {
    let mut copies: Vec<(usize, usize, bool)> = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        if let Some(of) = texts[..number].iter().position(|other| other == text) {
            copies.push((number, of, true));
            continue;
        }
        let own = plain_shingles(text);
        let near = |other: &usize| {
            let other = plain_shingles(&texts[*other]);
            let both = own.intersection(&other).count() as f64;
            both > 0.0 && both / (own.len() + other.len()) as f64 >= threshold / (1.0 + threshold)
        };
        let firsts = (0..number).filter(|other| !copies.iter().any(|copy| copy.0 == *other));
        if let Some(of) = firsts.filter(|_| !own.is_empty()).find(near) {
            copies.push((number, of, false));
        }
    }
    copies
}

/// What the command lists, as numbers in the stream: the inputs are one document each.
fn listed(splits: &[&Built]) -> Vec<(usize, usize, bool)> {
    let list: PathBuf = splits[0].folder.path().join("copies.jsonl");
    let report = duplicates(&DuplicatesArgs { list: Some(list.clone()), ..args(splits) }).unwrap();
    let number = |value: &Value| {
        let input = value["input"].as_str().unwrap();
        input.trim_start_matches("part-").trim_end_matches(".jsonl").parse::<usize>().unwrap()
    };
    let text = fs_err::read_to_string(list).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let copies: Vec<_> = lines
        .map(|line| {
            let similarity = line["similarity"].as_f64().unwrap();
            assert!((0.8..=1.0).contains(&similarity), "{line}");
            (number(&line), number(&line["copy_of"]), line["exact"].as_bool().unwrap())
        })
        .collect();
    let exact = copies.iter().filter(|copy| copy.2).count() as u64;
    assert_eq!((report.total.exact, report.total.near), (exact, copies.len() as u64 - exact));
    copies
}

#[test]
fn copies_are_found_in_both_layouts_and_over_several_splits() {
    let texts = [
        words("a", 120, &[]),
        words("b", 80, &[]),
        words("a", 120, &[60]),              // near the first: 5 of 116 shingles differ
        words("a", 120, &[]).to_uppercase(), // the same shingles, another text
        words("b", 80, &[]),                 // exact
        words("b", 80, &[10, 20, 30, 40, 50, 60]), // too far
        words("c", 3, &[]),
        words("c", 3, &[]),
        words("c", 4, &[]),
        String::new(),
    ];
    let inputs = || texts.iter().map(|text| vec![source("s", text.clone())]).collect::<Vec<_>>();
    let expected = [(2, 0, false), (3, 0, false), (4, 1, true), (7, 6, true)];
    assert_eq!(plain(&texts, 0.8), expected);
    for layout in [Layout::Packed, Layout::Documents] {
        assert_eq!(listed(&[&built(layout, inputs())]), expected, "{layout}");
    }
    // A split after itself: every document of the second is an exact copy, but the list is that of the first.
    let (first, second) = (built(Layout::Packed, inputs()), built(Layout::Documents, inputs()));
    let list = first.folder.path().join("both.jsonl");
    let report =
        duplicates(&DuplicatesArgs { list: Some(list.clone()), ..args(&[&first, &second]) }).unwrap();
    assert_eq!((report.total.documents, report.total.exact, report.total.near), (20, 12, 2));
    assert_eq!(report.again, 10);
    let both = fs_err::read(&list).unwrap();
    duplicates(&DuplicatesArgs { list: Some(list.clone()), ..args(&[&first]) }).unwrap();
    assert!(both == fs_err::read(&list).unwrap(), "the second time a document is seen it is no copy");
    // With a threshold of 1 only shingles that are all the same count as near.
    let strict = duplicates(&DuplicatesArgs { threshold: 1.0, ..args(&[&first]) }).unwrap();
    assert_eq!((strict.total.exact, strict.total.near), (2, 1));
}

#[test]
fn sets_are_counted_and_their_names_are_safe_to_print() {
    let text = words("a", 50, &[]);
    let inputs = vec![vec![source("web\u{1b}[31m", text.clone()), source("code", text)]];
    let corpus = built(Layout::Packed, inputs);
    let report = duplicates(&args(&[&corpus])).unwrap();
    let exact: Vec<_> = report.sets.iter().map(|set| (set.name.as_str(), set.documents, set.exact)).collect();
    assert_eq!(exact, [("code", 1, 1), ("web\u{1b}[31m", 1, 0)]);
    let mut out = Vec::new();
    assert_eq!(run(&args(&[&corpus]), &mut out).unwrap().exit_code(), 0);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("web\\u{1b}[31m") && !text.contains('\u{1b}'), "{text:?}");
    assert!(text.contains("1 (50 %)") || text.contains("1 (50.0 %)"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Few words, so that texts meet; similarities near the threshold, where MinHash might miss, are left out.
    #[test]
    fn any_corpus_gives_what_comparing_all_with_all_gives(
        bases in prop::collection::vec((40_usize..90, prop::collection::vec(0_usize..90, 0..3)), 3..12),
    ) {
        let texts: Vec<String> = bases
            .iter()
            .enumerate()
            .map(|(index, (count, replaced))| words(["x", "y", "z"][index % 3], *count, replaced))
            .collect();
        let near_border = texts.iter().enumerate().any(|(number, text)| {
            let own = plain_shingles(text);
            texts[..number].iter().any(|other| {
                let other = plain_shingles(other);
                let both = own.intersection(&other).count();
                let similarity = both as f64 / (own.len() + other.len() - both).max(1) as f64;
                (0.75..0.86).contains(&similarity)
            })
        });
        prop_assume!(!near_border);
        let inputs = texts.iter().map(|text| vec![source("s", text.clone())]).collect();
        prop_assert_eq!(listed(&[&built(Layout::Packed, inputs)]), plain(&texts, 0.8));
    }
}
