//! `trace`: every token leads back to the bytes it came from.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should stop"
)]

mod datasets;

use datasets::{Built, Recipe, build};
use xlstm_manifests::Dataset;
use xlstm_pipeline::trace::{SourceTrace, TraceArgs, TraceReport, run, trace};

fn args(built: &Built) -> TraceArgs {
    TraceArgs {
        path: Some(built.split()),
        run: None,
        step: None,
        rank: None,
        row: None,
        document: None,
        token: None,
        inputs: Some(built.inputs()),
        around: 40,
        json: false,
    }
}

fn row(built: &Built, row: u64, token: Option<u64>) -> TraceReport {
    trace(&TraceArgs { row: Some(row), token, ..args(built) }).unwrap()
}

/// The text of record `record` of input `path`, read without the program's help.
fn text_of(built: &Built, path: &str, record: u64) -> String {
    let lines = fs_err::read_to_string(built.inputs().join(path)).unwrap();
    let line = lines.lines().nth(record as usize).unwrap();
    serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
}

#[test]
fn every_token_of_every_row_leads_to_its_text() {
    let built = build(&Recipe::packed());
    let dataset = Dataset::open(&built.split()).unwrap();
    let mut separators = 0;
    // Tokens at the borders of rows and documents, and some between.
    for number in (0..dataset.rows()).step_by(9) {
        let length = dataset.row(number).unwrap().length as u64;
        for token in [0, 17, length - 1].into_iter().filter(|&token| token < length) {
            let report = row(&built, number, Some(token));
            assert!(report.row.as_ref().unwrap().proved && report.problems.is_empty(), "{report:#?}");
            let found = report.token.as_ref().unwrap();
            assert_eq!(found.id, Some(dataset.row(number).unwrap().tokens()[token as usize]));
            let document = report.documents.iter().find(|d| d.document == found.document).unwrap();
            let text = text_of(&built, &document.input.path, document.record);
            let SourceTrace::Agrees { text: source, .. } = &found.source else { panic!("{report:#?}") };
            let at = found.byte_of_document as usize;
            if found.separator {
                separators += 1;
                assert_eq!(at, text.len());
                assert_eq!(found.text.token, "<|endoftext|>");
            } else {
                assert_eq!(source, &found.text);
                if !source.token.contains('\u{fffd}') {
                    assert!(text[at..].starts_with(&source.token), "{report:#?}");
                    assert!(text[..at].ends_with(source.before.trim_end_matches('\u{fffd}')));
                }
            }
        }
    }
    let first = row(&built, 0, None).documents[0].clone();
    let end = first.tokens_of_row.unwrap().1;
    assert!(row(&built, 0, Some(end)).token.unwrap().separator || separators > 0);
}

#[test]
fn the_documents_of_a_row_tile_it() {
    let built = build(&Recipe::packed());
    let rows = built.manifest().totals.rows;
    for number in 0..rows {
        let report = row(&built, number, None);
        let mut next = 0;
        for document in &report.documents {
            let (first, last) = document.tokens_of_row.unwrap();
            assert_eq!(first, next, "row {number}");
            next = last + 1;
        }
        assert_eq!(next, report.row.unwrap().tokens, "row {number}");
    }
}

#[test]
fn documents_are_traced_by_number_in_both_layouts() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let report = trace(&TraceArgs { document: Some(20), token: Some(3), ..args(&built) }).unwrap();
        let document = &report.documents[0];
        assert_eq!((document.input.path.as_str(), document.record), ("part-1.jsonl", 6));
        assert!(matches!(report.token.unwrap().source, SourceTrace::Agrees { .. }));
    }
}

#[test]
fn without_the_source_the_text_still_comes_from_the_tokens() {
    let built = build(&Recipe::packed());
    fs_err::remove_dir_all(built.inputs()).unwrap();
    let report = row(&built, 2, Some(5));
    let token = report.token.unwrap();
    assert!(!token.text.before.is_empty());
    let SourceTrace::NotAtHand { reason } = token.source else { panic!() };
    assert!(reason.contains("--inputs"), "{reason}");
}

#[test]
fn a_changed_row_is_not_proved() {
    let built = build(&Recipe::packed());
    let path = built.split().join("shard-00000.arrow");
    let mut bytes = fs_err::read(&path).unwrap();
    // The first row's tokens lie somewhere in the file: change one of them.
    let first: Vec<u8> = {
        let dataset = Dataset::open(&built.split()).unwrap();
        dataset.row(0).unwrap().ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    };
    let at = bytes.windows(first.len()).position(|window| window == first).unwrap();
    bytes[at] ^= 1;
    fs_err::remove_file(&path).unwrap();
    fs_err::write(&path, bytes).unwrap();
    let report = row(&built, 1, None);
    assert!(!report.row.as_ref().unwrap().proved && !report.problems.is_empty());
    let outcome = run(&TraceArgs { row: Some(1), ..args(&built) }, &mut Vec::new()).unwrap();
    assert_eq!(outcome.exit_code(), 1);
}

#[test]
fn what_is_not_there_is_said() {
    let built = build(&Recipe::packed());
    let error = |row, document, token| {
        trace(&TraceArgs { row, document, token, ..args(&built) }).unwrap_err().to_string()
    };
    assert!(error(Some(100_000), None, None).contains("a row below"));
    assert!(error(Some(0), None, Some(64)).contains("a token below 64"));
    assert!(error(None, Some(42), None).contains("a document below 42"));
    let documents = build(&Recipe::documents());
    let message = trace(&TraceArgs { row: Some(0), ..args(&documents) }).unwrap_err().to_string();
    assert!(message.contains("--document"), "{message}");
}

#[test]
fn text_shows_the_chain_and_marks_the_token() {
    let built = build(&Recipe::packed());
    let mut out = Vec::new();
    assert_eq!(
        run(&TraceArgs { row: Some(3), token: Some(9), ..args(&built) }, &mut out).unwrap().exit_code(),
        0
    );
    let text = String::from_utf8(out).unwrap();
    for part in
        ["row 3 is row 3 of shard-00000.arrow", "proved", "made up for tests", "⟦", "digest and text agree"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut out = Vec::new();
    let json = TraceArgs { row: Some(3), token: Some(9), json: true, ..args(&built) };
    assert_eq!(run(&json, &mut out).unwrap().exit_code(), 0);
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["token"]["source"]["state"], "agrees");
}
