//! Names from data and files that try to take over a terminal, a page, a table or a report: every command that can meet
//! one shows it as what it is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::prepared::{Said, eval, train, training, write_recipe};
use xlstm_manifests::printable::is_unsafe;
use xlstm_tests::program::data;

/// Clears the screen, forges a line, a row, a tag and a link, writes backwards; `kind` tells names apart.
fn hostile(kind: &str) -> String {
    format!("{kind}\u{1b}[2J\u{9b}31m\u{202e}\nforged line|`<img src=x>[y](z)\\|\u{7f}\u{2028}")
}

/// Without a slash, for the name of a file.
fn hostile_file(kind: &str) -> String {
    hostile(kind).replace('\\', "")
}

struct Fixture {
    folder: tempfile::TempDir,
    run: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let lines: String = (0..80).map(record).collect();
        let input = path("in");
        fs_err::create_dir_all(&input).unwrap();
        fs_err::write(input.join("a\u{202e}b.jsonl"), lines).unwrap();
        let fields = [
            "--set-field",
            "set",
            "--id-field",
            "id",
            "--license-field",
            "license",
            "--source-field",
            "source",
            "--holdout",
            "0.3",
            "--quiet",
            "--out",
        ];
        let arguments = [PathBuf::from("prepare"), "local".into(), input].into_iter();
        data(arguments.chain(fields.map(PathBuf::from)).chain([path("data")])).success();
        let recipe = path("recipe.toml");
        write_recipe(&recipe, &hostile("recipe"));
        let run = folder.path().join(hostile_file("run"));
        let fixture = Self { folder, run };
        let said =
            train(training(&fixture.split("train"), &fixture.split("validation"), &recipe, &fixture.run));
        harmless("train", &said.success().all());
        fixture
    }

    fn split(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn record(number: u32) -> String {
    let text = format!("Story {number} is about the number {number}, and it goes on for a while. ").repeat(6);
    let record = serde_json::json!({
        "text": text, "id": hostile(&format!("id{number}")), "set": hostile(&format!("set{}", number % 2)),
        "license": hostile("license"), "source": hostile("source"),
    });
    format!("{record}\n")
}

/// What a program wrote holds nothing that a terminal obeys.
#[track_caller]
fn inert(what: &str, said: &str) {
    assert!(!said.trim().is_empty(), "{what} said nothing");
    let obeyed = said.chars().find(|&c| c != '\n' && c != '\t' && is_unsafe(c));
    assert_eq!(obeyed, None, "{what}: {said:?}");
}

/// As [`inert`], and no line is forged.
#[track_caller]
fn harmless(what: &str, said: &str) {
    inert(what, said);
    let forged = said.lines().find(|line| line.trim_start().starts_with("forged"));
    assert_eq!(forged, None, "{what}: {said}");
}

/// As [`harmless`], and no tag and no link came of a name.
#[track_caller]
fn harmless_file(path: &Path) {
    let content = fs_err::read_to_string(path).unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    inert(&name, &content);
    if name.ends_with(".html") || name.ends_with(".svg") {
        assert!(!content.contains("<img"), "{}: {content}", path.display());
    } else {
        // In HTML a line's end is a space.
        harmless(&name, &content);
    }
    if name.ends_with(".md") {
        harmless_markdown(&content);
    }
    if name.ends_with(".csv") {
        let commas = content.lines().next().unwrap().matches(',').count();
        assert!(content.lines().skip(1).all(|line| line.matches(',').count() == commas), "{content}");
    }
}

/// A line of Markdown without its code and without what is escaped.
fn outside_code(line: &str) -> String {
    let (mut rest, mut out) = (line, String::new());
    while let Some(at) = rest.find(['`', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(escaped) = rest.strip_prefix('\\') {
            rest = escaped.strip_prefix(|c: char| c.is_ascii_punctuation()).unwrap_or(escaped);
            continue;
        }
        let after = rest.trim_start_matches('`');
        let fence = &rest[..rest.len() - after.len()];
        let runs = after.match_indices(fence).map(|(at, _)| at);
        let ends = runs.map(|at| (at, at + fence.len()));
        let alone =
            |&(start, end): &(usize, usize)| !after[..start].ends_with('`') && !after[end..].starts_with('`');
        rest = ends.into_iter().find(alone).map_or(after, |(_, end)| &after[end..]);
    }
    out + rest
}

/// Every row of a table has as many cells as its head, and neither tags nor links begin outside of code.
#[track_caller]
fn harmless_markdown(content: &str) {
    let mut cells = None;
    for line in content.lines() {
        let text = outside_code(line);
        let link = text.contains('[') && text.contains("](");
        assert!(!text.contains('<') && !link, "{line}: {text}");
        if line.starts_with('|') {
            let bars = text.matches('|').count();
            assert_eq!(*cells.get_or_insert(bars), bars, "{line}\n{content}");
        } else {
            cells = None;
        }
    }
}

fn device(arguments: &[&Path]) -> Vec<PathBuf> {
    let device = ["--device", "cpu", "--threads", "1"].map(PathBuf::from);
    arguments.iter().map(PathBuf::from).chain(device).collect()
}

#[test]
fn no_command_obeys_a_name_from_data() {
    let fixture = Fixture::new();
    let (run, validation) = (fixture.run.as_path(), fixture.split("validation"));
    let p = Path::new;
    let said = |what: &str, said: Said| harmless(what, &said.success().all());
    said("chain", train([p("chain"), run]));
    let svg = fixture.path("loss.svg");
    train([p("plot"), run, p("-o"), &svg]).success();
    harmless_file(&svg);
    said("plot", train([p("plot"), run]));
    said(
        "sample",
        train(device(&[p("sample"), run, p("--tokens"), p("3"), p("--prompt"), p("a\u{1b}[2Jb")])),
    );
    let sample = [p("sample"), run, p("--tokens"), p("3"), p("--prompt"), p("a\u{9b}b"), p("--json")];
    let json = train(device(&sample)).success().stdout;
    harmless("sample --json", &json);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["samples"][0]["prompt"], "a\u{9b}b", "JSON means the same afterwards");
    said("export", train(device(&[p("export"), run, p("-o"), &fixture.path(&hostile_file("exported"))])));
    let resumed = [p("--resume"), p("--out"), run].map(PathBuf::from);
    said("resume", train(resumed.into_iter().chain(["--device".into(), "cpu".into()])));
    let recipe = fixture.path("recipe.toml");
    let mut dry = training(&fixture.split("train"), &validation, &recipe, &fixture.path("dry"));
    dry.push("--dry-run".into());
    said("dry run", train(dry));

    for (name, first) in [("one", None), ("two", Some("1"))] {
        let out = run.join("evaluations").join(name);
        let mut arguments = device(&[p("perplexity"), run, p("--manifest"), &validation, p("--out"), &out]);
        arguments.extend(first.iter().flat_map(|first| ["--first".into(), PathBuf::from(first)]));
        said("perplexity", eval(&arguments));
        arguments.push("--json".into());
        said("perplexity --json", eval(&arguments));
        for file in ["report.html", "report.md", "report.csv", "documents.csv"] {
            harmless_file(&out.join(file));
        }
        said("page", eval([p("page"), &out]));
        said("verify of a report", eval([p("verify"), &out]));
    }
    let out = fixture.path(&hostile_file("extrapolated"));
    let text = [
        p("--text"),
        p("stream"),
        p("--lengths"),
        p("64,128"),
        p("--stretches"),
        p("2"),
        p("--chunk"),
        p("64"),
    ];
    let options = [p("extrapolate"), run, p("--manifest"), &validation, p("--out"), &out];
    said("extrapolate", eval(device(&[&options[..], &text[..]].concat())));
    said("generate", eval(device(&[p("generate"), run, p("--tokens"), p("3"), p("--prompt"), p("\u{1b}c")])));
    let speed = ["--lengths", "1,2", "--batches", "1", "--prefill", "2", "--repetitions", "1"].map(p);
    said(
        "throughput",
        eval(device(&[&[p("throughput"), run, p("--out"), &fixture.path("speed")][..], &speed].concat())),
    );
    said("report", eval([p("report"), run]));
    harmless_file(&run.join("report.html"));
    let both = fixture.path("both.html");
    said("compare", eval([p("compare"), run, run, p("--out"), &both]));
    harmless_file(&both);
    said("verify", eval([p("verify"), run]));
    said("verify --json", eval([p("verify"), run, p("--json")]));
    // What is not there is named in an error.
    let gone = fixture.path(&hostile_file("gone"));
    for refused in [eval([p("verify"), &gone]), eval([p("report"), &gone]), train([p("chain"), &gone])] {
        assert_eq!(refused.code, Some(1));
        harmless("an error", &refused.all());
    }
    let lines = serve(run);
    harmless("serve", &lines);
}

/// What `serve` says until it listens.
fn serve(run: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    command.arg("serve").arg(run).args(["--device", "cpu", "--port", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    address + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn no_evaluation_of_examples_obeys_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let file = path("examples\u{202e}|`<img src=x>.jsonl");
    let example = |number: u64| {
        let ids = [1, 2 + number % 2, 3, 4];
        let set = hostile(&format!("set{}", number % 2));
        format!(
            "{}\n",
            serde_json::json!({"input_ids": ids, "targets": [null, null, 5, 6 + number % 2], "set": set, "id": hostile("id")})
        )
    };
    fs_err::write(&file, (0..12).map(example).collect::<String>()).unwrap();
    for split in ["train", "validation"] {
        let options = ["--split", split, "--vocabulary-size", "64", "--out"].map(PathBuf::from);
        let arguments = [PathBuf::from("prepare"), "examples".into(), file.clone()].into_iter();
        data(arguments.chain(options).chain([path("data")])).success();
    }
    let recipe = common::write_recipe(folder.path());
    let (run, out) = (path(&hostile_file("run")), path(&hostile_file("out")));
    let mut arguments = training(&path("data/train"), &path("data/validation"), &recipe, &run);
    for value in ["training.context_length=4", "training.tokens_per_step=24", "training.steps=2"] {
        arguments.extend(["--set".into(), PathBuf::from(value)]);
    }
    harmless("train", &train(arguments).success().all());
    let p = Path::new;
    let accuracy = [p("accuracy"), &run, p("--manifest"), &path("data/validation"), p("--out"), &out];
    harmless("accuracy", &eval(device(&accuracy)).success().all());
    for file in ["report.html", "report.md", "report.csv"] {
        harmless_file(&out.join(file));
    }
    harmless("chain", &train([p("chain"), &run]).success().all());
    harmless("report", &eval([p("report"), &run]).success().all());
    harmless_file(&run.join("report.html"));
}
