//! A sweep from generators to a page.

use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Parameters, Split, by_name};

use super::*;

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
also = [{ label = "longer", examples = 8, parameters = { evaluation_length = [64, 80], row_length = 80 } }]
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
    assert!(best["also"]["longer"].is_number() && page.contains("longer"), "{best}");
    // The same figures as reports of their own, of other lengths than trained too; another task has other ids.
    let measure = |data: &std::path::Path| {
        let mut accuracy = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        accuracy.arg("accuracy").arg(out.join("runs/parity_0to1_lr1e-2_seed0"));
        accuracy.arg("--manifest").arg(data).args(["--device", "cpu", "--json"]);
        accuracy.output().unwrap()
    };
    let run = &all["runs"][0];
    for (data, expected) in [("data/parity/test", &run["test"]), ("data/longer/test", &run["also"]["longer"])]
    {
        let report: serde_json::Value = serde_json::from_str(&succeed(&measure(&out.join(data)))).unwrap();
        assert_eq!(report["results"]["scaled"]["total"], *expected, "{data}");
    }
    let task = by_name("even_pairs", 0, &Parameters::default()).unwrap();
    let plan = TaskPlan::new(&*task, Split::Test, 8, 64).unwrap();
    plan.execute(&folder.path().join("pairs"), 1, false).unwrap();
    let refused = measure(&folder.path().join("pairs/test"));
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("expected the tokenizer that the model was trained with"), "{said}");
    // Another sweep does not take this one's data for its own.
    fs_err::write(&file, TINY_SWEEP.replace("row_length = 64", "row_length = 64, train_length = [3, 20]"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    let other = command.arg("sweep").arg(&file).arg("--out").arg(&out).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("data of parity"), "{}", text(&other.stderr));
}
