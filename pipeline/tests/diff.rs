//! `diff`: what makes two datasets differ is named, and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should stop"
)]

mod datasets;

use datasets::{Built, Recipe, build, source};
use xlstm_pipeline::diff::{DiffArgs, DiffReport, diff, run};

fn compare(a: &Built, b: &Built) -> DiffReport {
    diff(&DiffArgs { a: a.split(), b: b.split(), manifests_only: true, json: false }).unwrap()
}

fn fields(report: &DiffReport) -> Vec<&str> {
    report.deciding.iter().map(|difference| difference.field.as_str()).collect()
}

#[test]
fn the_same_dataset_twice_does_not_differ() {
    let report = compare(&build(&Recipe::packed()), &build(&Recipe::packed()));
    assert!(report.same_root && report.deciding.is_empty() && report.other.is_empty(), "{report:#?}");
}

#[test]
fn shard_size_and_names_decide_nothing() {
    let a = build(&Recipe::packed());
    let b = build(&Recipe { rows_per_shard: 7, profile: "crates", ..Recipe::packed() });
    let report = compare(&a, &b);
    assert!(report.same_root && report.deciding.is_empty());
    let other: Vec<_> = report.other.iter().map(|difference| difference.field.as_str()).collect();
    assert_eq!(other, ["source.profile", "packing.rows_per_shard", "shards (number)"]);
}

#[test]
fn one_changed_document_is_traced_to_its_input_and_set() {
    let a = build(&Recipe::packed());
    let mut recipe = Recipe::packed();
    recipe.inputs[1][3].text.push_str(" and more");
    let report = compare(&a, &build(&recipe));
    assert!(!report.same_root);
    assert_eq!(report.inputs.changed, ["part-1.jsonl"]);
    assert!(fields(&report).contains(&"tokens_root") && fields(&report).contains(&"documents_root"));
    assert_eq!(report.sets.len(), 1);
    assert!(report.explanation.contains("other input bytes"), "{}", report.explanation);
}

#[test]
fn added_removed_and_reordered_inputs_are_told_apart() {
    let a = build(&Recipe::packed());
    let mut more = Recipe::packed();
    more.inputs.push(vec![source("prose", "a new file")]);
    let more = build(&more);
    assert_eq!(compare(&a, &more).inputs.added, ["part-3.jsonl"]);
    assert_eq!(compare(&more, &a).inputs.removed, ["part-3.jsonl"]);
    let mut swapped = Recipe::packed();
    swapped.inputs.swap(0, 1);
    let report = compare(&a, &build(&swapped));
    assert!(report.inputs.reordered && report.inputs.added.is_empty(), "{report:#?}");
    assert_eq!(report.inputs.renamed.len(), 2);
}

#[test]
fn another_packing_is_named() {
    let a = build(&Recipe::packed());
    let report = compare(&a, &build(&Recipe { row_length: 32, rows_per_shard: 40, ..Recipe::packed() }));
    assert!(fields(&report).contains(&"packing.row_length"));
    assert!(report.explanation.contains("another layout"), "{}", report.explanation);
}

#[test]
fn the_exit_code_says_whether_the_roots_are_the_same() {
    let (a, b) = (build(&Recipe::packed()), build(&Recipe::documents()));
    let code = |other: &Built, json| {
        let mut out = Vec::new();
        let args = DiffArgs { a: a.split(), b: other.split(), manifests_only: true, json };
        (run(&args, &mut out).unwrap().exit_code(), String::from_utf8(out).unwrap())
    };
    assert_eq!(code(&a, false).0, 0);
    let (exit, text) = code(&b, false);
    assert!(exit == 1 && text.contains("layout (decides the tokens)"), "{text}");
    let value: serde_json::Value = serde_json::from_str(&code(&b, true).1).unwrap();
    assert_eq!(value["same_root"], false);
}
