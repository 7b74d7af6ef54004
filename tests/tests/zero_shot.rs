//! Task files for lm-evaluation-harness from files on disk: each form that people have is read, each task gets the rows that
//! the harness's own task reads, and what is missing or unclear is said.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// A harness that has the task files that are included, and nothing else.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = [
            "lambada/lambada_openai",
            "hellaswag/hellaswag",
            "piqa/piqa",
            "arc/arc_easy",
            "arc/arc_challenge",
        ];
        for task in tasks.iter().chain(&["winogrande/default"]) {
            let path = folder.path().join(format!("harness/{task}.yaml"));
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "task: x\n").unwrap();
        }
        fs_err::create_dir_all(folder.path().join("raw")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, rows: &[Value]) {
        let path = self.path("raw").join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    }

    /// Runs the tool; its exit code, and all that it said.
    fn run(&self, more: &[&str]) -> (Option<i32>, String) {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/zero_shot.py");
        let mut command = Command::new("python3");
        command.arg(tool).arg(self.path("raw")).arg("--out").arg(self.path("out"));
        let output = command.arg("--harness").arg(self.path("harness")).args(more).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    fn rows(&self, task: &str) -> Vec<Value> {
        let text = fs_err::read_to_string(self.path("out").join(format!("{task}.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn task(&self, task: &str) -> String {
        fs_err::read_to_string(self.path("out").join(format!("local_{task}.yaml"))).unwrap()
    }
}

#[test]
fn every_form_of_the_papers_tasks_becomes_the_harnesss_own() {
    let fixture = Fixture::new();
    // What else a row has is not the task's, and white space is: the last word is what follows the last space.
    let passages = ["one two three", "He said: \u{201c}No\u{201d} \u{2014} caf\u{e9}", " a  b c"];
    let lambada: Vec<Value> = passages.iter().map(|text| json!({"text": text})).collect();
    fixture.write("lambada_test.jsonl", &lambada);
    let endings = json!(["a", "b", "c", "d"]);
    let row = json!({
        "ind": 1, "activity_label": "Reading", "ctx_a": "A", "ctx_b": "b", "ctx": "A b", "endings": endings, "label": "3",
    });
    fixture.write("hellaswag/data/validation-00000.jsonl", &[row]);
    // PIQA's authors keep the answers in a file of their own.
    fixture.write("piqa/valid.jsonl", &[json!({"goal": "g", "sol1": "x", "sol2": "y"})]);
    fs_err::write(fixture.path("raw/piqa/valid-labels.lst"), "1\n").unwrap();
    // ARC's nest the choices; of two splits the one that the harness scores is taken.
    let nested = json!({"id": "q", "answerKey": "B", "question": {"stem": "s", "choices": [
        {"label": "A", "text": "x"}, {"label": "B", "text": "y"}]}});
    fixture.write("ARC-Easy/ARC-Easy-Test.jsonl", &[nested]);
    fixture.write("ARC-Easy/ARC-Easy-Dev.jsonl", &[json!({"other": 1})]);
    let rendered = json!({"id": "r", "query": "Question: q\nAnswer:", "choices": ["x", "y"], "gold": 1});
    fixture.write("arc_challenge_val.jsonl", std::slice::from_ref(&rendered));
    let row = json!({"qID": "w", "sentence": "a _ b", "option1": "x", "option2": "y", "answer": "2"});
    fixture.write("winogrande_xl_dev.jsonl", &[row]);

    let (code, said) = fixture.run(&["--context", "512", "--url", "http://127.0.0.1:1/v1/completions"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("local_hellaswag: 1 rows (the harness's split has 10042)"), "{said}");
    assert!(
        said.contains(
            "local_arc_challenge: 1 rows (the harness's split has 1172), validation instead of the"
        ),
        "{said}"
    );
    assert!(!said.contains("MISSING"), "{said}");
    let command = said.lines().last().unwrap();
    // One more than the context: the harness takes one off.
    for part in ["HF_HUB_OFFLINE=1", "max_length=513", "127.0.0.1:1/v1", "local_arc_easy,local_arc_challenge"]
    {
        assert!(command.contains(part), "{command}");
    }
    assert!(said.contains("local_lambada_openai: 3 rows (the harness's split has 5153)"), "{said}");
    assert_eq!(fixture.rows("lambada_openai"), lambada);
    let included = fixture.task("lambada_openai");
    let own = fixture.path("harness").canonicalize().unwrap().join("lambada/lambada_openai.yaml");
    assert!(included.contains(&format!("include: \"{}\"", own.display())), "{included}");
    assert!(included.contains("test_split: test"), "{included}");
    let included = fixture.task("hellaswag");
    let own = fixture.path("harness").canonicalize().unwrap().join("hellaswag/hellaswag.yaml");
    assert!(included.contains(&format!("include: \"{}\"", own.display())), "{included}");
    let data = fixture.path("out").canonicalize().unwrap().join("hellaswag.jsonl");
    assert!(included.contains(&format!("data_files: {{validation: \"{}\"}}", data.display())), "{included}");
    assert!(included.contains("test_split: null") && included.contains("dataset_name: null"), "{included}");
    assert_eq!(fixture.rows("hellaswag")[0]["label"], "3");
    assert_eq!(fixture.rows("piqa"), [json!({"goal": "g", "sol1": "x", "sol2": "y", "label": 1})]);
    let easy =
        json!({"question": "s", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"});
    assert_eq!(fixture.rows("arc_easy"), [easy]);
    assert!(fixture.task("arc_easy").contains("test_split: test"));
    assert_eq!(fixture.rows("arc_challenge"), [rendered]);
    assert!(fixture.task("arc_challenge").contains("doc_to_choice: choices"));
    assert_eq!(fixture.rows("winogrande")[0]["answer"], "2");
}

#[test]
fn what_cannot_be_used_is_said_with_what_to_do() {
    let fixture = Fixture::new();
    let (code, said) = fixture.run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("found none; name them with --task NAME=FILE"), "{said}");
    fixture.write("piqa_val.jsonl", &[json!({"goal": "g", "sol1": "x"})]);
    let (code, said) = fixture.run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("record 0: expected the fields") && said.contains("--task piqa=FILE"), "{said}");
    fixture.write("piqa_val.jsonl", &[json!({"goal": "g", "sol1": "x", "sol2": "y", "label": -1})]);
    let (_, said) = fixture.run(&[]);
    assert!(said.contains("expected an answer, found none"), "{said}");
    fixture.write("piqa_val.jsonl", &[json!({"goal": "g", "sol1": "x", "sol2": "y", "label": 0})]);
    let (code, said) = fixture.run(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("MISSING").count(), 5, "{said}");
    fixture.write("piqa_dev.jsonl", &[json!({"goal": "g", "sol1": "x", "sol2": "y", "label": 0})]);
    let (code, said) = fixture.run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("piqa: expected one file, found"), "{said}");
    let chosen = fixture.path("raw/piqa_dev.jsonl");
    let (code, said) = fixture.run(&["--task", &format!("piqa={}", chosen.display())]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("Traceback"), "{said}");
}
