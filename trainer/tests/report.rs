//! Pages about real runs, and the chain behind them: each link altered in turn and named.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Fixture, ROW, documents, write_split};

fn eval(arguments: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    command.args(arguments).args(paths).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The common fixture with its splits cut so that the last row is full: the audit has nothing to say about it.
fn whole_rows() -> Fixture {
    let fixture = Fixture::new();
    for (folder, split, seed) in [(&fixture.train, "train", 0), (&fixture.validation, "validation", 11)] {
        let mut documents = documents(seed);
        let tokens: usize = documents.iter().map(Vec::len).sum();
        let last = documents.last_mut().unwrap();
        let missing = (ROW - tokens % ROW) % ROW;
        last.splice(0..0, std::iter::repeat_n(1, missing));
        write_split(folder, split, &documents);
    }
    fixture
}

/// A run of twelve steps with these recipe values changed.
fn train(fixture: &Fixture, name: &str, set: &[&str]) -> PathBuf {
    let run = fixture.path(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    command.args(["--threads", "1", "--device", "cpu", "--manifest"]).arg(&fixture.train);
    command.arg("--validation").arg(&fixture.validation).arg("--recipe").arg(&fixture.recipe);
    command.arg("--out").arg(&run);
    for value in set {
        command.args(["--set", value]);
    }
    succeed(&command.output().unwrap());
    run
}

#[test]
fn a_page_tells_a_run_and_names_no_other_address() {
    let fixture = whole_rows();
    let run = train(&fixture, "a <run>", &[]);
    let printed = succeed(&eval(&["report"], &[&run]));
    assert_eq!(printed.trim_end(), run.join("report.html").display().to_string());
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    for id in ["recipe", "loss", "optimizer", "speed", "data", "chain", "environment"] {
        assert!(page.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
    assert!(page.contains("a &lt;run&gt;") && !page.contains("a <run>"));
    for forbidden in ["http://", "https://", "src=", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    // The chain names every digest that the run's files hold.
    let state: serde_json::Value =
        serde_json::from_slice(&fs_err::read(run.join("checkpoints/step-00000012/state.json")).unwrap())
            .unwrap();
    for digest in [
        state["files"]["model.safetensors"]["sha256"].as_str().unwrap(),
        state["train_root"].as_str().unwrap(),
    ] {
        assert!(page.contains(digest), "{digest}");
    }
}

#[test]
fn a_comparison_marks_what_differs() {
    let fixture = whole_rows();
    let runs = [train(&fixture, "a", &[]), train(&fixture, "b", &["optimizer.learning_rate=0.005"])];
    let out = fixture.path("both.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    succeed(&command.arg("compare").args(&runs).arg("--out").arg(&out).output().unwrap());
    let page = fs_err::read_to_string(out).unwrap();
    let row = page.split("<code>optimizer.learning_rate</code>").nth(1).unwrap();
    let row = row.split("</tr>").next().unwrap();
    assert!(row.contains(">0.01<") && row.contains(">0.005<") && row.contains("differ"), "{row}");
    let row = page.split("<code>training.steps</code>").nth(1).unwrap();
    assert!(row.split("</tr>").next().unwrap().contains("same"));
}

#[test]
fn a_dataset_that_is_gone_is_said_on_the_page_and_not_at_hand_for_the_chain() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    fs_err::rename(&fixture.train, fixture.path("elsewhere")).unwrap();
    let output = eval(&["report"], &[&run]);
    succeed(&output);
    assert!(text(&output.stderr).contains("no longer at"), "{}", text(&output.stderr));
    assert!(fs_err::read_to_string(run.join("report.html")).unwrap().contains("no longer at"));
    let told = succeed(&eval(&["verify"], &[&run]));
    assert!(told.lines().any(|line| line.starts_with("not at hand  training split ")), "{told}");
}

/// Changes the first occurrence of a text in a file.
fn replace(path: &Path, from: &str, to: &str) {
    let content = fs_err::read_to_string(path).unwrap();
    assert!(content.contains(from), "{}: no `{from}` in {content}", path.display());
    fs_err::write(path, content.replacen(from, to, 1)).unwrap();
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut content = fs_err::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs_err::write(path, content).unwrap();
}

#[test]
fn every_altered_link_is_named() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    let told = succeed(&eval(&["verify"], &[&run]));
    assert!(told.contains(" 0 do not"), "{told}");
    let checkpoint = run.join("checkpoints/step-00000012");
    type Damage<'a> = (&'a str, PathBuf, &'a dyn Fn(&Path));
    let damages: [Damage; 14] = [
        ("checkpoint 12: model.safetensors", checkpoint.join("model.safetensors"), &flip),
        ("checkpoint 12: optimizer.safetensors", checkpoint.join("optimizer.safetensors"), &flip),
        ("checkpoint 12: state", checkpoint.join("state.json"), &|path| {
            replace(path, "\"tokens\": 2304", "\"tokens\": 2305");
        }),
        ("recipe", run.join("recipe.toml"), &|path| replace(path, "steps = 12", "steps = 13")),
        ("run manifest", run.join("run.json"), &|path| replace(path, "\"seed\": 42", "\"seed\": 43")),
        ("run manifest", run.join("run.json"), &|path| {
            replace(path, "\"parameters\": ", "\"parameters\": 1")
        }),
        ("training split: manifest", run.join("run.json"), &|path| {
            let content = fs_err::read_to_string(path).unwrap();
            let tokens = content.split("\"train\":").nth(1).unwrap().split("\"tokens\": ").nth(1).unwrap();
            let tokens: String = tokens.chars().take_while(char::is_ascii_digit).collect();
            let altered = format!("\"tokens\": {}", tokens.parse::<u64>().unwrap() + 1);
            fs_err::write(path, content.replace(&format!("\"tokens\": {tokens}"), &altered)).unwrap();
        }),
        ("metrics", run.join("metrics.jsonl"), &|path| replace(path, "\"perplexity\":", "\"perplexity\":1")),
        ("metrics", run.join("metrics.jsonl"), &|path| replace(path, "\"loss\":", "\"loss\":1")),
        ("metrics", run.join("metrics.jsonl"), &|path| {
            replace(path, "\"learning_rate\":0.005", "\"learning_rate\":0.006");
        }),
        ("training split: manifest", fixture.train.join("manifest.json"), &|path| {
            replace(path, "\"documents\": 60", "\"documents\": 61");
        }),
        ("training split: shards", fixture.train.join("shard-00000.arrow"), &flip),
        ("training split: shards", fixture.train.join("manifest-sha256.txt"), &|path| {
            let content = fs_err::read_to_string(path).unwrap();
            let shard = content.find("  shard").unwrap();
            let digit = if &content[shard - 1..shard] == "0" { "1" } else { "0" };
            fs_err::write(path, format!("{}{digit}{}", &content[..shard - 1], &content[shard..])).unwrap();
        }),
        ("validation split: shards", fixture.validation.join("spans-00000.arrow"), &flip),
    ];
    for (link, path, damage) in damages {
        let before = fs_err::read(&path).unwrap();
        damage(&path);
        assert_ne!(fs_err::read(&path).unwrap(), before, "{link}");
        let output = eval(&["verify"], &[&run]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{link}: {told}{}", text(&output.stderr));
        let named = told
            .lines()
            .any(|line| line.strip_prefix("FAILED       ").is_some_and(|rest| rest.starts_with(link)));
        assert!(named, "{link}, altered in {}: {told}", path.display());
        fs_err::write(&path, before).unwrap();
    }
    succeed(&eval(&["verify"], &[&run]));
}

#[test]
fn a_loss_altered_with_all_that_follows_from_it_is_found_by_computing_it_again() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    let deep = |run: &Path| {
        let output = eval(&["verify", "--deep"], &[run]);
        text(&output.stdout)
    };
    let told = deep(&run);
    assert!(told.lines().any(|line| line.starts_with("ok           figure ")), "{told}");
    // The fixture's documents have no source file: that is said, and is another link.
    let path = run.join("metrics.jsonl");
    let content = fs_err::read_to_string(&path).unwrap();
    let lines = content.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["kind"] == "validation" && line["step"] == 12 {
            let loss = line["loss"].as_f64().unwrap() - 0.01;
            (line["loss"], line["perplexity"]) = (loss.into(), loss.exp().into());
        }
        format!("{line}\n")
    });
    let altered: String = lines.collect();
    fs_err::write(&path, altered).unwrap();
    assert!(succeed(&eval(&["verify"], &[&run])).contains(" 0 do not"));
    let told = deep(&run);
    assert!(told.lines().any(|line| line.starts_with("FAILED       figure ")), "{told}");
}

/// Two runs of three steps on parity.
const TINY_SWEEP: &str = r#"
description = "two runs"
paper = "none"
recipe = "tasks-small"
variants = ["0to1"]
learning_rates = [1e-2, 1e-3]
final_learning_rate = 1e-5
seeds = [0]
set = [
    "training.steps=3", "training.tokens_per_step=256", "training.micro_batch_rows=4", "schedule.warmup_steps=1",
    "model.embedding_dim=16", "validation.rows=8",
]
[[data]]
task = "parity"
examples = { train = 64, validation = 16, test = 16 }
parameters = { evaluation_length = [40, 64], row_length = 64 }
"#;

#[test]
fn a_sweep_goes_from_generators_to_a_page_and_leaves_alone_what_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("tiny.toml"), folder.path().join("out"));
    fs_err::write(&file, TINY_SWEEP).unwrap();
    let sweep = |more: &[&str]| -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
        command.arg("sweep").arg(&file).arg("--out").arg(&out).args(["--device", "cpu", "--json"]).args(more);
        serde_json::from_str(&succeed(&command.output().unwrap())).unwrap()
    };
    let names = |results: &serde_json::Value| -> Vec<String> {
        let runs = results["runs"].as_array().unwrap();
        runs.iter().map(|run| run["name"].as_str().unwrap().to_owned()).collect()
    };
    let half = sweep(&["--task", "2/2"]);
    assert_eq!(names(&half), ["parity_0to1_lr1e-3_seed0"]);
    let metrics = out.join("runs/parity_0to1_lr1e-3_seed0/metrics.jsonl");
    let before = fs_err::read(&metrics).unwrap();
    let all = sweep(&["--jobs", "2"]);
    assert_eq!(names(&all), ["parity_0to1_lr1e-2_seed0", "parity_0to1_lr1e-3_seed0"]);
    assert_eq!(fs_err::read(&metrics).unwrap(), before, "a finished run was touched");
    let best = &all["best"][0];
    assert!((-1.0..=1.0).contains(&best["test"].as_f64().unwrap()), "{best}");
    assert_eq!(sweep(&["--report"]), all);
    let page = fs_err::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("xLSTM[0:1]") && page.contains("2 of 2 runs are finished"), "{page}");
    // Another sweep does not take this one's data for its own.
    fs_err::write(&file, TINY_SWEEP.replace("row_length = 64", "row_length = 64, train_length = [3, 20]"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    let other = command.arg("sweep").arg(&file).arg("--out").arg(&out).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("data of parity"), "{}", text(&other.stderr));
}
