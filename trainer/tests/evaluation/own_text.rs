//! Losses by token as a table, and files of text in place of prepared splits.

use serde_json::{Value, json};
use xlstm_tests::token_losses::{TokenLoss, read};

use super::*;

/// What `xlstm-eval losses … --json` says, and its table.
fn losses(fixture: &Fixture, name: &str, arguments: &[&str]) -> (Value, Vec<TokenLoss>) {
    let to = fixture.path(name).with_extension("parquet");
    let arguments = arguments.iter().copied().chain(["--to", text(&to), "--json"]);
    let said = run(evaluate("losses", fixture).args(arguments)).success();
    let report: Value = serde_json::from_str(&said).unwrap();
    let (records, metadata) = read(&to);
    assert_eq!(report["tokens"], records.len());
    assert_eq!(metadata["xlstm.split_root"], report["root"].as_str().unwrap());
    let parameters = xlstm_manifests::digest::digest_file(&fixture.parameters()).unwrap().1;
    assert!(
        metadata["xlstm.model_sha256"].contains(&format!("model.safetensors {parameters}")),
        "{metadata:?}"
    );
    (report, records)
}

#[test]
fn losses_by_token_add_up_and_the_likeliest_stand_beside_them() {
    let fixture = fixture();
    let options = ["--manifest", text(&fixture.paloma), "--precision", "float64"];
    let out = fixture.path("summed");
    run(evaluate("perplexity", fixture).args(options).args(["--out", text(&out)])).success();
    let report = Report::load(&out).unwrap();
    let total = &perplexity(&report).total;
    let (said, records) = losses(fixture, "whole", &options);
    assert_eq!(records.len() as u64, total.tokens);
    close(records.iter().map(|record| record.loss).sum(), total.nll);
    close(said["loss"].as_f64().unwrap(), total.loss);

    // Every token of every document once, in order, and with the ids of the split.
    let mut stored = Vec::new();
    let manifest = Manifest::load(&fixture.paloma).unwrap();
    for shard in &manifest.shards {
        let path = shard.file.path.resolve(&fixture.paloma).unwrap();
        let shard = DocumentShard::open(&path, shard.file.records).unwrap();
        stored.extend(shard.iter().map(|document| document.ids.clone()).filter(|ids| !ids.is_empty()));
    }
    let expected = stored
        .iter()
        .zip(0..)
        .flat_map(|(ids, document)| ids.iter().zip(0..).map(move |(&id, position)| (document, position, id)));
    assert!(expected.eq(records.iter().map(|one| (one.document, one.position, one.token))));

    // Documents of 2049 tokens have their last window filled up: its only new token has 2047 before it.
    let long = stored.iter().position(|ids| ids.len() == 2049).unwrap() as u64;
    let last = records.iter().rfind(|record| record.document == long).unwrap();
    assert_eq!((last.position, last.context), (2048, 2047));
    // Against the plain reference, token by token.
    let ids: Vec<i64> = stored[long as usize].iter().map(|&id| i64::from(id)).collect();
    let inputs: Vec<i64> = std::iter::once(50256).chain(ids[..2047].iter().copied()).collect();
    let plain = evaluation_fixture::reference(&fixture.model(), &inputs, &ids[..2048]);
    let own = records.iter().filter(|record| record.document == long);
    own.zip(&plain).for_each(|(record, &expected)| close(record.loss, expected));

    for record in &records {
        assert_eq!(record.alternatives.len(), 5);
        assert!(record.alternatives.is_sorted_by(|a, b| a.1 <= b.1), "{record:?}");
        assert!(record.loss >= record.alternatives[0].1 - TOLERANCE, "{record:?}");
        match record.alternatives.iter().find(|other| other.0 == record.token) {
            Some(own) => close(own.1, record.loss),
            None => assert!(record.loss >= record.alternatives[4].1 - TOLERANCE, "{record:?}"),
        }
    }
    assert!(records.iter().any(|record| record.alternatives[0].0 == record.token), "something was learned");
    // Batches and the number of alternatives decide no loss.
    let (_, again) =
        losses(fixture, "again", &[&options[..], &["--batch-tokens", "300", "--top", "0"]].concat());
    assert_eq!(again.len(), records.len());
    again.iter().zip(&records).for_each(|(again, first)| {
        assert!(again.alternatives.is_empty());
        close(again.loss, first.loss);
    });
}

#[test]
fn any_number_of_ranks_writes_the_same_table() {
    let fixture = fixture();
    // A batch for each sequence; more batches than ranks, and no multiple of them.
    let options = ["--manifest", text(&fixture.paloma), "--batch-tokens", "1"];
    let table = |ranks: &str| {
        let name = format!("ranks-{ranks}");
        let (report, records) = losses(fixture, &name, &[&options[..], &["--nproc", ranks]].concat());
        assert!(records.len() > 10_000, "{report}");
        fs_err::read(fixture.path(&name).with_extension("parquet")).unwrap()
    };
    let one = table("1");
    for ranks in ["2", "3"] {
        assert!(one == table(ranks), "{ranks} ranks write another table");
    }
    // More ranks than batches: a rank without one still takes part.
    let first = [&options[..], &["--first", "1", "--top", "2", "--nproc"]].concat();
    let few = |ranks| losses(fixture, "few", &[&first[..], &[ranks]].concat());
    assert_eq!(few("2"), few("1"));
    // What the first rank refuses ends all of them, and leaves no table.
    let to = fixture.path("no-such-folder/table.parquet");
    let arguments = [&options[..], &["--nproc", "2", "--to", text(&to)]].concat();
    let message = run(evaluate("losses", fixture).args(arguments)).failure(1);
    assert!(message.contains("no-such-folder"), "{message}");
}

#[test]
fn a_file_of_text_is_evaluated_as_a_prepared_split_of_it() {
    let fixture = fixture();
    let own = |name: &str, content: &str| {
        let path = fixture.path(name);
        fs_err::write(&path, content).unwrap();
        path
    };
    let texts = ["the end of the road", "to be in the house was for the best", ""];
    let records = |field: &str| texts.map(|text| format!("{}\n", json!({field: text}))).concat();
    let lines = own("own.jsonl", &records("text"));
    let prepared = fixture.path("own-prepared");
    run(&mut xlstm_tests::program::data_command([
        "prepare",
        "local",
        text(&lines),
        "--out",
        text(&prepared),
        "--split",
        "text",
        "--quiet",
    ]))
    .success();
    let outs = ["own-split", "own-text"].map(|name| fixture.path(name));
    run(evaluate("perplexity", fixture).args(["--manifest", text(&prepared), "--out", text(&outs[0])]))
        .success();
    run(evaluate("perplexity", fixture).args(["--text", text(&lines), "--out", text(&outs[1])])).success();
    let [split, own_text] = outs.each_ref().map(|out| Report::load(out).unwrap());
    assert_eq!(split.results, own_text.results);
    let roots = [&split, &own_text].map(|report| report.dataset.as_ref().unwrap().root);
    assert_eq!(roots[0], roots[1]);
    // It leads back to the file's bytes.
    let mut verify = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    let links = run(verify.args(["verify", text(&outs[1]), "--deep"]));
    // The run itself was never validated, which is a link that cannot be followed.
    assert_eq!(links.code, Some(3), "{}{}", links.stdout, links.stderr);
    let links = links.stdout;
    assert!(links.contains("evaluated split: source files") && links.contains("2 of 2 documents"), "{links}");

    // Plain text is one document, in the run's folder where no other is named; another field is another split.
    let plain = own("plain.txt", "the end of the road\nto be in the house");
    let said = run(evaluate("losses", fixture).args([
        "--text",
        text(&plain),
        "--to",
        text(&fixture.path("plain.parquet")),
    ]));
    assert!(said.success().contains("tokens of 1 documents"), "one document");
    let texts = fixture.run.join("evaluations/texts");
    assert!(
        fs_err::read_dir(texts)
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("plain-") })
    );
    let body = own("body.jsonl", &records("body"));
    let arguments = ["--text", text(&body), "--text-field", "body"];
    let (report, records) = losses(fixture, "body", &arguments);
    assert_eq!(report["documents"], 2);
    assert_eq!(
        records.iter().filter(|record| record.token == 50256).count(),
        2,
        "separators are tokens of a row"
    );
}

#[test]
fn a_split_without_its_copies_says_what_verifying_its_selection_needs() {
    let fixture = fixture();
    let path = |name: &str| fixture.path(name);
    let (file, list) = (path("twice.jsonl"), path("twice-copies.jsonl"));
    let record = format!("{}\n", json!({"text": "the end of the road was in the house"}));
    fs_err::write(&file, record.repeat(2)).unwrap();
    let (first, out) = (path("twice-first"), path("twice-once"));
    let data = |arguments: &[&str]| run(&mut xlstm_tests::program::data_command(arguments)).success();
    data(&["prepare", "local", text(&file), "--out", text(&first), "--quiet"]);
    data(&["duplicates", text(&first), "--list", text(&list)]);
    let options = ["--drop-duplicates", text(&list), "--quiet"];
    data(&[&["prepare", "local", text(&file), "--out", text(&out)], &options[..]].concat());
    let (report, split) = (path("twice-report"), out.join("train"));
    run(evaluate("perplexity", fixture).args(["--manifest", text(&split), "--out", text(&report)])).success();
    let mut verify = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    let links = run(verify.args(["verify", text(&report), "--deep"])).stdout;
    assert!(links.contains("1 of 1 documents read again"), "{links}");
    assert!(
        links.contains("the selection of --deep: not done, since the list of copies is needed"),
        "{links}"
    );
}

#[test]
fn what_is_no_text_is_refused() {
    let fixture = fixture();
    let refused = |command: &str, arguments: &[&str], code: i32| {
        let ended = run(evaluate(command, fixture).args(arguments));
        ended.failure(code)
    };
    let (to, missing) = (fixture.path("refused.parquet"), fixture.path("missing.txt"));
    let message = refused("losses", &["--text", text(&missing), "--to", text(&to)], 1);
    assert!(message.contains("missing.txt`: expected a file of text, found none"), "{message}");
    let bad = fixture.path("bad.jsonl");
    fs_err::write(&bad, "{\"text\": 3}\n").unwrap();
    let message = refused("perplexity", &["--text", text(&bad)], 1);
    assert!(message.contains("--text") && message.contains("bad.jsonl"), "{message}");
    let (manifest, top) = (text(&fixture.paloma), "50305");
    let message = refused("losses", &["--manifest", manifest, "--to", text(&to), "--top", top], 1);
    assert!(message.contains("expected at most 50304, the ids of the model"), "{message}");
    refused("losses", &["--manifest", manifest, "--text", text(&bad), "--to", text(&to)], 2);
    refused("losses", &["--to", text(&to)], 2);
    assert!(!to.exists(), "nothing half-written is left");
}
