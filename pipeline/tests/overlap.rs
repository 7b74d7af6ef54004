//! `overlap`: what is reported is what a plain search finds, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod datasets;

use std::collections::{BTreeSet, HashSet};

use datasets::{Built, Recipe, Source, build, source};
use proptest::prelude::*;
use xlstm_manifests::Manifest;
use xlstm_manifests::manifest::Layout;
use xlstm_manifests::mixture::MixedDataset;
use xlstm_manifests::order::Order;
use xlstm_manifests::run_manifest::{DatasetRef, Program, RUN_FORMAT, RecipeRef, RunManifest};
use xlstm_pipeline::overlap::{OverlapArgs, OverlapReport, TrainSet, overlap, run};

fn args(train: &Built, eval: &[&Built]) -> OverlapArgs {
    OverlapArgs {
        train: train.split(),
        eval: eval.iter().map(|built| built.split()).collect(),
        false_positive_rate: 1e-6,
        list: None,
        html: None,
        json: false,
    }
}

/// A paragraph of 14 words of its own.
fn paragraph(name: &str) -> String {
    (0..14).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join(" ")
}

fn built(layout: Layout, inputs: Vec<Vec<Source>>) -> Built {
    build(&Recipe { layout, inputs, ..Recipe::packed() })
}

fn train() -> Built {
    let filler =
        (0..50).map(|i| source("web", format!("{}\n{}", paragraph(&format!("w{i}x")), "short line")));
    let mut first: Vec<Source> = filler.collect();
    first.insert(7, source("web", format!("before\n  {}  \nafter", paragraph("shared"))));
    let second = vec![
        source("code", paragraph("whole")),
        source("code", "one two three four five six seven eight nine ten eleven twelve"),
        source("code", format!("{}\n{}", paragraph("shared"), paragraph("twice"))),
    ];
    built(Layout::Packed, vec![first, second])
}

fn eval() -> Built {
    let first = vec![
        source("news", format!("a headline\n{}", paragraph("shared"))),
        source("news", paragraph("unseen")),
        source("news", format!("{}\n{}", paragraph("twice"), paragraph("other"))),
    ];
    let second = vec![
        source("wiki", paragraph("whole")),
        source("wiki", "one two three four five six seven eight nine ten eleven twelve\nand more"),
        source("wiki", "🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂 🙂"),
    ];
    built(Layout::Documents, vec![first, second])
}

#[test]
fn documents_and_paragraphs_are_found_by_domain_and_set() {
    let report = overlap(&args(&train(), &[&eval()])).unwrap();
    let counts: Vec<_> = report
        .eval_sets
        .iter()
        .map(|s| {
            (
                s.name.as_str(),
                s.documents,
                s.documents_hit,
                s.documents_identical,
                s.paragraphs,
                s.paragraphs_hit,
            )
        })
        .collect();
    assert_eq!(counts, [("fixture/news", 3, 2, 0, 4, 2), ("fixture/wiki", 3, 1, 1, 1, 1)]);
    let counts: Vec<_> = report
        .train_sets
        .iter()
        .map(|s| (s.name.as_str(), s.documents, s.documents_hit, s.documents_identical, s.paragraphs_hit))
        .collect();
    assert_eq!(counts, [("code", 3, 2, 1, 3), ("web", 51, 1, 0, 1)]);
    assert_eq!((report.filter.members, report.filter.confirmed), (11, 4));
}

#[test]
fn a_poor_filter_gives_the_same_report() {
    let (train, eval) = (train(), eval());
    let good = overlap(&args(&train, &[&eval])).unwrap();
    let poor = overlap(&OverlapArgs { false_positive_rate: 0.5, ..args(&train, &[&eval]) }).unwrap();
    assert!(poor.filter.false_positives > 5, "{:?}", poor.filter);
    assert!(poor.filter.bytes <= good.filter.bytes);
    let results = |report: OverlapReport| (report.eval_sets, report.train_sets, report.filter.confirmed);
    assert_eq!(results(good), results(poor));
}

#[test]
fn a_corpus_is_all_of_itself_and_none_of_a_stranger() {
    let (train, eval) = (train(), eval());
    let same = overlap(&args(&eval, &[&eval])).unwrap();
    assert_eq!(same.eval_total.documents_identical, 6);
    assert_eq!(same.eval_total.paragraphs_hit, same.eval_total.paragraphs);
    assert_eq!(same.train_total.tokens_hit, same.train_total.tokens);
    let stranger = built(Layout::Packed, vec![vec![source("s", paragraph("stranger"))]]);
    let none = overlap(&args(&train, &[&stranger])).unwrap();
    assert_eq!((none.eval_total.documents_hit, none.train_total.documents_hit), (0, 0));
    let both = overlap(&args(&train, &[&stranger, &eval])).unwrap();
    assert_eq!((both.eval_total.documents, both.eval_total.documents_hit), (7, 3));
}

#[test]
fn the_list_names_every_hit_with_its_source() {
    let (train, eval) = (train(), eval());
    let path = train.folder.path().join("hits.jsonl");
    overlap(&OverlapArgs { list: Some(path.clone()), ..args(&train, &[&eval]) }).unwrap();
    let text = fs_err::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> = lines
        .iter()
        .map(|line| (line["input"].as_str().unwrap(), line["record"].as_u64().unwrap()))
        .collect();
    assert_eq!(places, [("part-0.jsonl", 7), ("part-1.jsonl", 0), ("part-1.jsonl", 2)]);
    assert_eq!(lines[0]["paragraphs"][0]["set"], "fixture/news");
    assert_eq!(lines[1]["identical_to"]["set"], "fixture/wiki");
    assert_eq!(lines[2]["paragraphs"].as_array().unwrap().len(), 2);
}

#[test]
fn text_json_and_page_are_written() {
    let (train, eval) = (train(), eval());
    let html = train.folder.path().join("overlap.html");
    let mut out = Vec::new();
    let args = OverlapArgs { html: Some(html.clone()), ..args(&train, &[&eval]) };
    assert_eq!(run(&args, &mut out).unwrap().exit_code(), 0);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("3 of 6 evaluation documents") && text.contains("4 confirmed"), "{text}");
    let page = fs_err::read_to_string(html).unwrap();
    assert!(page.contains("They overlap.") && page.contains("fixture/wiki"));
    let mut out = Vec::new();
    assert_eq!(run(&OverlapArgs { json: true, ..args }, &mut out).unwrap().exit_code(), 0);
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["eval_total"]["documents_hit"], 3);
}

/// What the report should say, by comparing every paragraph with every other.
fn by_hand(train: &[String], eval: &[String]) -> (u64, u64, u64) {
    let long = |text: &str| -> Vec<String> {
        text.split('\n').map(str::trim).filter(|p| p.split(' ').count() >= 13).map(str::to_owned).collect()
    };
    let train_texts: HashSet<&str> = train.iter().map(String::as_str).collect();
    let train_paragraphs: BTreeSet<String> = train.iter().flat_map(|text| long(text)).collect();
    let hits: Vec<usize> =
        eval.iter().map(|text| long(text).iter().filter(|p| train_paragraphs.contains(*p)).count()).collect();
    let identical = eval.iter().filter(|text| train_texts.contains(text.as_str())).count();
    let documents = eval
        .iter()
        .zip(&hits)
        .filter(|(text, hits)| **hits > 0 || train_texts.contains(text.as_str()))
        .count();
    (identical as u64, documents as u64, hits.iter().sum::<usize>() as u64)
}

/// A document of one to three lines of 1 to 16 words, from few enough different ones to meet again.
fn document() -> impl Strategy<Value = String> {
    let line = (0u8..6, 11usize..16).prop_map(|(kind, words)| {
        (0..words).map(|i| format!("{}{i}", char::from(b'a' + kind))).collect::<Vec<_>>().join(" ")
    });
    prop::collection::vec(line, 1..4).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_report_is_what_comparing_everything_gives(
        train in prop::collection::vec(document(), 1..30),
        eval in prop::collection::vec(document(), 1..10),
    ) {
        let corpus = |texts: &[String]| {
            built(Layout::Packed, vec![texts.iter().map(|text| source("s", text.clone())).collect()])
        };
        let report = overlap(&args(&corpus(&train), &[&corpus(&eval)])).unwrap().eval_total;
        let found = (report.documents_identical, report.documents_hit, report.paragraphs_hit);
        prop_assert_eq!(found, by_hand(&train, &eval));
    }
}

/// A run over both datasets.
fn trained_on(folder: &std::path::Path, datasets: [&Built; 2]) -> std::path::PathBuf {
    let manifests = datasets.map(|built| Manifest::load(&built.split()).unwrap());
    let mixed = [(0, 2), (1, 1)].map(|(index, weight)| MixedDataset::new(&manifests[index], weight));
    let order = Order::of(&mixed, 2048, 1, 4);
    let references = [0, 1].map(|index| DatasetRef::new(&manifests[index], &datasets[index].split()));
    let program = Program {
        name: "xlstm-train".into(),
        version: "0".into(),
        commit: "unknown".into(),
        binary_sha256: None,
        libtorch: "none".into(),
        kernels: "none".into(),
    };
    let root = order.root;
    let run = RunManifest {
        format: RUN_FORMAT.into(),
        version: 3,
        train: DatasetRef { root, path: ".".into(), ..references[0].clone() },
        mixture: references.to_vec(),
        validation: None,
        recipe: RecipeRef { name: "any".into(), sha256: root },
        order,
        initialization_seed: 1,
        initialized_from: None,
        parameters: 1,
        program,
        sessions: Vec::new(),
    };
    let path = folder.join("run");
    fs_err::create_dir_all(&path).unwrap();
    run.store(&path).unwrap();
    path
}

#[test]
fn a_run_stands_for_all_that_it_was_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let (first, eval) = (train(), eval());
    let second = built(Layout::Packed, vec![vec![source("more", format!("a\n{}", paragraph("other")))]]);
    let run = trained_on(folder.path(), [&first, &second]);
    let whole = overlap(&OverlapArgs { train: run.clone(), ..args(&first, &[&eval]) }).unwrap();
    let alone = [&first, &second].map(|built| overlap(&args(built, &[&eval])).unwrap().train_total);
    let sum = |number: fn(&TrainSet) -> u64| alone.iter().map(number).sum::<u64>();
    let found = &whole.train_total;
    assert_eq!(found.documents, sum(|set| set.documents));
    assert_eq!(found.documents_hit, sum(|set| set.documents_hit));
    assert_eq!(found.paragraphs_hit, sum(|set| set.paragraphs_hit));
    assert!(alone.iter().all(|set| set.documents_hit > 0) && whole.train.len() == 2);

    drop(second);
    let error = overlap(&OverlapArgs { train: run, ..args(&first, &[&eval]) }).unwrap_err().to_string();
    assert!(error.contains("that the run was trained on") && error.contains("no such split"), "{error}");
}
