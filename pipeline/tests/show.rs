//! `show`: the documents and rows that are shown are those of the split, and nothing in them reaches a terminal as a command.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod datasets;

use datasets::{Built, Recipe, Source, build, source};
use xlstm_manifests::manifest::Layout;
use xlstm_pipeline::show::{ShowArgs, ShowReport, run, show};
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Parameters, Split, by_name};
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

fn args(path: std::path::PathBuf) -> ShowArgs {
    ShowArgs { path, count: 3, longest: false, first: false, set: None, rows: false, bytes: 0, json: false }
}

/// What the command prints.
fn printed(args: &ShowArgs) -> String {
    let mut out = Vec::new();
    assert_eq!(run(args, &mut out).unwrap().exit_code(), 0);
    String::from_utf8(out).unwrap()
}

/// All documents of a recipe: number, set, text, tokens.
fn all(recipe: &Recipe) -> Vec<(u64, &'static str, String, u64)> {
    let tokenizer = Gpt2Tokenizer::new().unwrap();
    let sources: Vec<&Source> = recipe.inputs.iter().flatten().collect();
    let tokens = |source: &Source| tokenizer.encode(&source.text).unwrap().len() as u64;
    (0..).zip(sources).map(|(number, one)| (number, one.set, one.text.clone(), tokens(one))).collect()
}

#[test]
fn documents_are_those_of_the_split_in_both_layouts() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let documents = all(&recipe);
        let report = show(&ShowArgs { count: 1000, ..args(built.split()) }).unwrap();
        assert_eq!((report.documents, report.root), (documents.len() as u64, built.manifest().root));
        assert_eq!(report.shown.len(), documents.len());
        for (shown, (number, _, text, tokens)) in report.shown.iter().zip(&documents) {
            assert_eq!((shown.document, &shown.text, shown.tokens), (*number, text, *tokens));
            assert!(!shown.cut && shown.input.ends_with(".jsonl"));
        }
        let lengths = report.lengths.unwrap();
        for bin in &lengths.bins {
            let own = documents.iter().filter(|(_, _, _, tokens)| (bin.first..=bin.last).contains(tokens));
            assert_eq!(bin.documents, own.clone().count() as u64, "{bin:?}");
            assert_eq!(bin.tokens, own.map(|(_, _, _, tokens)| tokens).sum::<u64>(), "{bin:?}");
        }
        assert_eq!(lengths.documents, report.documents);
        assert_eq!(lengths.longest, documents.iter().map(|one| one.3).max().unwrap());

        // Three are spread over all; the longest come longest first.
        let spread = show(&args(built.split())).unwrap();
        let numbers = |report: &ShowReport| report.shown.iter().map(|one| one.document).collect::<Vec<_>>();
        assert_eq!(numbers(&spread), [0, 14, 28]);
        let longest = show(&ShowArgs { longest: true, count: 5, ..args(built.split()) }).unwrap();
        let mut sorted = documents.clone();
        sorted.sort_by_key(|one| (std::cmp::Reverse(one.3), one.0));
        assert_eq!(numbers(&longest), sorted[..5].iter().map(|one| one.0).collect::<Vec<_>>());
        let first = show(&ShowArgs { first: true, ..args(built.split()) }).unwrap();
        assert_eq!((numbers(&first), first.lengths), (vec![0, 1, 2], None));
    }
}

#[test]
fn a_set_is_shown_by_itself() {
    let recipe = Recipe::packed();
    let built = build(&recipe);
    let report = show(&ShowArgs { set: Some("prose".into()), count: 1000, ..args(built.split()) }).unwrap();
    let documents = all(&recipe);
    let prose: Vec<_> = documents.iter().filter(|one| one.1 == "prose").collect();
    assert_eq!(report.shown.len(), prose.len());
    assert!(report.shown.iter().zip(&prose).all(|(shown, one)| shown.document == one.0));
    assert_eq!(report.lengths.unwrap().documents, prose.len() as u64);
    let wrong = ShowArgs { set: Some("pros".into()), ..args(built.split()) };
    let error = show(&wrong).unwrap_err().to_string();
    assert!(error.contains("`prose`") && error.contains("`notes`"), "{error}");
}

#[test]
fn rows_are_what_a_model_gets() {
    let built = build(&Recipe::packed());
    let report = show(&ShowArgs { rows: true, count: 1000, ..args(built.split()) }).unwrap();
    assert_eq!(report.shown_rows.len() as u64, built.manifest().totals.rows);
    let text: String = report.shown_rows.iter().map(|row| row.text.as_str()).collect();
    let documents: String = all(&Recipe::packed()).into_iter().map(|one| one.2 + "<|endoftext|>").collect();
    // Rows cut characters of several tokens, which are then shown as U+FFFD.
    let plain = |text: &str| text.chars().filter(char::is_ascii).collect::<String>();
    assert_eq!(plain(&text), plain(&documents));
    let by_document = build(&Recipe::documents());
    let error = show(&ShowArgs { rows: true, ..args(by_document.split()) }).unwrap_err().to_string();
    assert!(error.contains("expected packed rows, found layout `documents`"), "{error}");
}

#[test]
fn nothing_in_a_text_reaches_the_terminal_as_a_command() {
    let hostile = "\u{1b}[31mred\u{1b}[0m\r\u{7}\nsplit train: 9 documents\u{202e}drow";
    for layout in [Layout::Packed, Layout::Documents] {
        let inputs = vec![vec![source("\u{1b}]0;title\u{7}", hostile)]];
        let built: Built = build(&Recipe { layout, inputs, ..Recipe::packed() });
        let mut shown = vec![args(built.split())];
        if layout == Layout::Packed {
            shown.push(ShowArgs { rows: true, ..args(built.split()) });
        }
        for args in shown {
            let text = printed(&args);
            assert!(!text.contains(['\u{1b}', '\u{7}', '\r', '\u{202e}']), "{text:?}");
            assert!(text.contains("  | \\u{1b}[31mred"), "{text}");
            // A line of the text cannot be taken for one of the report.
            assert_eq!(text.lines().filter(|line| line.starts_with("split ")).count(), 1, "{text}");
            let json = printed(&ShowArgs { json: true, ..args });
            assert!(!json.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{json:?}");
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let found =
                [&value["shown"], &value["shown_rows"]].into_iter().find_map(|list| list[0]["text"].as_str());
            assert!(found.unwrap().starts_with(hostile), "a program gets the text itself");
        }
    }
}

#[test]
fn long_texts_are_cut_at_a_character_and_examples_show_ids() {
    let built = build(&Recipe { inputs: vec![vec![source("s", "ä".repeat(100))]], ..Recipe::packed() });
    let report = show(&ShowArgs { bytes: 15, ..args(built.split()) }).unwrap();
    assert_eq!((report.shown[0].text.as_str(), report.shown[0].cut), ("äääääää", true));
    assert!(printed(&ShowArgs { bytes: 15, ..args(built.split()) }).contains("more: --bytes 0"));

    let folder = tempfile::tempdir().unwrap();
    let task = |name: &str, folder: &std::path::Path| {
        let task = by_name(name, 0, &Parameters::default()).unwrap();
        TaskPlan::new(&*task, Split::Train, 4, 64).unwrap().execute(folder, 1, false).unwrap();
        folder.join("train")
    };
    let strings = task("reverse_string", &folder.path().join("strings"));
    let dataset = xlstm_manifests::Dataset::open(&strings).unwrap();
    let report = show(&args(strings)).unwrap();
    for shown in &report.shown {
        let example = dataset.example(shown.document).unwrap().unwrap();
        let length = usize::from(example.length);
        let ids: Vec<String> = example.input_ids[..length].iter().map(u16::to_string).collect();
        assert!(shown.text == ids.join(" "), "{} is not {ids:?}", shown.text);
        let (first, target) = example.targets().enumerate().find_map(|(at, id)| Some((at, id?))).unwrap();
        assert!(shown.targets.as_ref().unwrap().starts_with(&format!("{target} at {first}")), "{shown:?}");
    }
    let numbers = task("nearest-neighbor-search", &folder.path().join("numbers"));
    let error = show(&args(numbers)).unwrap_err().to_string();
    assert!(error.contains("spell nothing") && error.contains("trace --row"), "{error}");
}
