//! `prepare task`: the same bytes however the work is shared out or cut short, and refusals before anything is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use xlstm_manifests::rows::{Rows, Sequences};
use xlstm_manifests::{Dataset, Manifest};
use xlstm_pipeline::audit::{Amount, AuditArgs, audit};
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{self, Example, Parameters, Range, Split, Task, TaskError, streamed};

use crate::checker;

/// Parity with short rows: three shares of samples are a few megabytes.
fn small(seed: u64) -> Box<dyn Task> {
    let parameters = Parameters {
        train_length: Some(Range { min: 3, max: 20 }),
        evaluation_length: Some(Range { min: 16, max: 20 }),
        row_length: Some(20),
        ..Parameters::default()
    };
    tasks::by_name("parity", seed, &parameters).unwrap()
}

const EXAMPLES: u64 = 140_000;

fn plan(task: &dyn Task) -> TaskPlan<'_> {
    TaskPlan::new(task, Split::Train, EXAMPLES, 50_000).unwrap()
}

/// Names and bytes of all files below a folder.
fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

/// A task that cannot make samples from some number on: a machine that goes down.
struct GoesDown<'a>(&'a dyn Task, u64);

impl Task for GoesDown<'_> {
    fn spec(&self) -> Value {
        self.0.spec()
    }
    fn vocabulary_size(&self) -> u32 {
        self.0.vocabulary_size()
    }
    fn row_length(&self) -> u32 {
        self.0.row_length()
    }
    fn random_accuracy(&self) -> (u32, u32) {
        self.0.random_accuracy()
    }
    fn symbol(&self, id: u16) -> String {
        self.0.symbol(id)
    }
    fn distinct(&self, split: Split) -> f64 {
        self.0.distinct(split)
    }
    fn mean_length(&self, split: Split) -> f64 {
        self.0.mean_length(split)
    }
    fn example(&self, split: Split, number: u64, out: &mut Example) -> Result<(), TaskError> {
        if number >= self.1 {
            Err(TaskError::Parameter("down".into()))
        } else {
            self.0.example(split, number, out)
        }
    }
}

#[test]
fn threads_parts_and_interruptions_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let task = small(0);
    plan(&*task).execute(&at("one"), 1, false).unwrap();
    let expected = bytes(&at("one/train"));
    assert!(expected.len() > 6, "several shards: {:?}", expected.keys());
    // Fewer workers than shards, as many, and teams of several threads for a shard.
    for threads in [2, 3, 4, 16] {
        let out = at(&format!("{threads} threads"));
        plan(&*task).execute(&out, threads, false).unwrap();
        assert!(bytes(&out.join("train")) == expected, "{threads} threads");
    }
    for threads in [1, 2, 4, 16] {
        let out = at(&format!("{threads} threads, no shards"));
        plan(&*task).streamed().execute(&out, threads, false).unwrap();
        let found = bytes(&out.join("train"));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["manifest-sha256.txt", "manifest.json"]);
        for (name, found) in found {
            assert!(found == expected[&name], "{threads} threads, no shards: {name}");
        }
    }
    // In the middle of an input and of a shard, behind the first two shards.
    let error = plan(&GoesDown(&*task, 130_000)).execute(&at("cut"), 2, false).err().unwrap();
    assert!(error.to_string().contains("down"), "{error}");
    assert!(!at("cut/train/manifest.json").exists());
    let again = plan(&*task).execute(&at("cut"), 2, false).unwrap();
    assert!(!again.was_finished && bytes(&at("cut/train")) == expected);
    let parts: Vec<_> = (1..=2)
        .map(|index| plan(&*task).part(index, 2).execute(&at("array"), 2, false).unwrap().folder)
        .collect();
    xlstm_pipeline::merge::merge(&parts, &at("array/train"), false).unwrap();
    assert!(bytes(&at("array/train")) == expected, "merged parts differ");
    assert!(plan(&*task).execute(&at("one"), 1, false).unwrap().was_finished);
    let other = small(1);
    assert!(plan(&*other).execute(&at("one"), 1, false).is_err(), "another seed in the same folder");
}

#[test]
fn rows_are_the_samples_and_a_deep_audit_makes_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let task = tasks::by_name("mod_arithmetic", 3, &Parameters::default()).unwrap();
    TaskPlan::new(&*task, Split::Test, 300, 128).unwrap().execute(folder.path(), 2, false).unwrap();
    let split = folder.path().join("test");
    let dataset = Dataset::open(&split).unwrap();
    assert_eq!(dataset.rows(), 300);
    let mut sample = Example::default();
    for number in 0..300 {
        task.example(Split::Test, number, &mut sample).unwrap();
        let row = dataset.example(number).unwrap().unwrap();
        let stored = Example {
            input_ids: row.input_ids.to_vec(),
            targets: row.targets().collect(),
            length: usize::from(row.length),
        };
        assert_eq!(stored, sample);
        assert_eq!(checker::check("mod_arithmetic", &stored), Ok(()));
    }
    let deep = AuditArgs { deep: Some(Amount::All), ..AuditArgs::new(vec![split.clone()]) };
    let report = audit(&deep).unwrap();
    assert!(report.clean, "{report:?}");
    assert_eq!(report.splits[0].deep.as_ref().unwrap().documents, 300);
    // Another seed in the manifest: its inputs are not those of the generator that it names.
    let mut manifest = Manifest::load(&split).unwrap();
    manifest.source.generator.as_mut().unwrap()["seed"] = 4.into();
    std::fs::write(split.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
    let checksums = split.join("manifest-sha256.txt");
    std::fs::remove_file(&checksums).unwrap();
    let report = audit(&deep).unwrap();
    assert!(!report.clean);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("data");
    let refused = |arguments: &[&str], said: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_xlstm-data"))
            .args(["prepare", "task"])
            .args(arguments)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([Some(1), Some(2)].contains(&output.status.code()), "{arguments:?}: {:?}", output.status);
        assert!(text.contains(said), "{arguments:?}: {text}");
        assert!(!out.exists(), "{arguments:?}");
    };
    refused(&["parrots"], "no task is named `parrots`");
    refused(&["mqar", "--pairs", "40"], "more than context_length 64");
    refused(&["parity", "--examples", "0"], "expected a count");
    refused(
        &["parity", "--split", "train", "--examples", "5", "--examples", "6"],
        "one number for each of train",
    );
    refused(&["parity", "--split", "dev"], "the split `train`, `validation` or `test`");
    refused(&["mod_arithmetic", "--train-length", "4..4"], "no sample with a length");
    // The second split is refused before the first is made.
    let few = [
        "--train-length",
        "3..5",
        "--split",
        "test",
        "--examples",
        "5",
        "--split",
        "train",
        "--examples",
        "99",
    ];
    refused(&[&["parity"], &few[..]].concat(), "only 28 different ones");
}

#[test]
fn a_plan_says_what_is_written_then() {
    let folder = tempfile::tempdir().unwrap();
    let run = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_xlstm-data"))
            .args([
                command,
                "task",
                "reverse_string",
                "--split",
                "validation",
                "--examples",
                "2000",
                "--json",
            ])
            .arg("--out")
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["splits"][0].clone()
    };
    let plan = run("plan");
    assert!(!folder.path().join("validation").exists());
    let made = run("prepare");
    assert_eq!(plan["positions"], made["totals"]["tokens"]);
    assert_eq!(plan["examples"], made["totals"]["rows"]);
    let files = std::fs::read_dir(folder.path().join("validation")).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    let planned = plan["bytes"].as_u64().unwrap();
    assert!(planned.abs_diff(size) < size / 10, "planned {planned} bytes, found {size}");
    let dataset = Dataset::open(&folder.path().join("validation")).unwrap();
    let lengths: u64 = (0..2000).map(|row| u64::from(dataset.example(row).unwrap().unwrap().length)).sum();
    let tokens = plan["tokens"].as_u64().unwrap();
    assert!(tokens.abs_diff(lengths) < lengths / 20, "planned {tokens} tokens, found {lengths}");
}

#[test]
fn a_streamed_split_has_the_manifest_and_the_rows_of_a_written_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let task = small(5);
    let plan = || TaskPlan::new(&*task, Split::Train, 1200, 500).unwrap();
    plan().execute(&at("written"), 2, false).unwrap();
    plan().streamed().execute(&at("streamed"), 2, false).unwrap();
    let files = bytes(&at("streamed/train"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["manifest-sha256.txt", "manifest.json"]);
    assert!(files["manifest.json"] == bytes(&at("written/train"))["manifest.json"]);
    let [written, streamed] =
        ["written/train", "streamed/train"].map(|name| streamed::open(&at(name)).unwrap());
    assert_eq!(written.rows(), streamed.rows());
    for row in [0, 1, 499, 500, 1199] {
        let read = |rows: &dyn Rows| {
            let mut into = Sequences::default();
            rows.read(row, true, &mut into).unwrap();
            (into, rows.targets_in(row).unwrap(), rows.documents_in_row(row).unwrap())
        };
        assert_eq!(read(&*written), read(&*streamed), "row {row}");
    }
    assert!(streamed.read(1200, false, &mut Sequences::default()).is_err());
    let error = plan().execute(&at("streamed"), 1, false).err().unwrap().to_string();
    assert!(error.contains("--stream"), "{error}");
    assert!(plan().streamed().execute(&at("streamed"), 1, false).unwrap().was_finished);
    // A split that lost one shard is damaged, and one that is not what its manifest says is refused.
    std::fs::remove_file(at("written/train/shard-00001.arrow")).unwrap();
    assert!(!streamed::is_streamed(&at("written/train")).unwrap());
    let mut manifest = Manifest::load(&at("streamed/train")).unwrap();
    manifest.shards[0].tokens_root = manifest.shards[1].tokens_root;
    std::fs::write(at("streamed/train/manifest.json"), manifest.to_bytes().unwrap()).unwrap();
    let error = streamed::open(&at("streamed/train")).err().unwrap().to_string();
    assert!(error.contains("tokens_root"), "{error}");
}
