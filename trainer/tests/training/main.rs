//! Whole runs of the real program on small datasets: what they write, that they resume bit for bit, and how they end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../common/mod.rs"]
mod common;
mod data;
mod interrupted;
mod numbers;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::Fixture;
use common::runs::*;
use serde_json::{Value, json};
use xlstm_manifests::Dataset;
use xlstm_manifests::run_manifest::{RunManifest, rows_of_step};
use xlstm_tests::program::data;
use xlstm_trainer::checkpoint;
use xlstm_trainer::metrics::{Line, read_lines};

#[test]
fn a_run_learns_and_writes_what_it_did() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    let output = succeed(training(&fixture, "run", &["training.steps=60"]).arg("--json"));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["status"].as_str(), json["step"].as_u64()), (Some("finished"), Some(60)));

    let (steps, measured) = (lines(&run, "train"), lines(&run, "validation"));
    assert_eq!(steps.iter().map(|line| line.step).collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    assert_eq!(measured.first().map(|line| line.step), Some(0));
    assert_eq!(measured.last().map(|line| line.step), Some(60));
    let validation = Dataset::open(&fixture.validation).unwrap();
    assert!(measured.iter().all(|line| line.tokens == Some(validation.manifest().totals.tokens)));
    let loss = |line: Option<&Line>| line.and_then(|line| line.loss).unwrap();
    assert!((loss(measured.first()) - 64.0_f64.ln()).abs() < 0.5, "{measured:?}");
    assert!(loss(measured.last()) < loss(measured.first()) - 1.0, "{measured:?}");
    let tokens: u64 = (1..=60).map(|step| RunManifest::load(&run).unwrap().order.tokens_of_step(step)).sum();
    assert_eq!(steps.last().unwrap().tokens, Some(tokens));
    assert!(steps.iter().all(|line| line.gradient_norm.is_some() && line.data_wait_share.is_some()));
    assert_eq!(fs_err::read_dir(run.join("tensorboard")).unwrap().count(), 1);

    let manifest = RunManifest::load(&run).unwrap();
    assert_eq!(manifest.train.root, Dataset::open(&fixture.train).unwrap().manifest().root);
    assert_eq!(manifest.sessions.len(), 1);
    let mut first_pass: Vec<u64> = (1..=60)
        .flat_map(|step| rows_of_step(&run, step, None).unwrap())
        .filter(|row| row.epoch == 0)
        .map(|row| row.row)
        .collect();
    first_pass.sort_unstable();
    assert_eq!(first_pass, (0..manifest.order.rows).collect::<Vec<_>>(), "each row once a pass");

    let chain = succeed(Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&run));
    let chain = String::from_utf8(chain.stdout).unwrap();
    let digest = xlstm_manifests::digest::digest_file(
        &checkpoint::folder_of(&run.join("checkpoints"), 60).join(checkpoint::MODEL_NAME),
    );
    let row = rows_of_step(&run, 60, None).unwrap()[0].row;
    for expected in [
        format!("perplexity {:.2}, after step 60", loss(measured.last()).exp()),
        digest.unwrap().1.to_string(),
        manifest.train.root.to_string(),
        format!("row {row}: documents.txt record "),
        "file documents.txt: ".to_owned(),
    ] {
        assert!(chain.contains(&expected), "{expected}: {chain}");
    }

    let plot = succeed(Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("plot").arg(&run));
    assert!(String::from_utf8(plot.stdout).unwrap().starts_with("<svg"));
}

#[test]
fn a_value_that_is_not_finite_stops_before_the_update() {
    let fixture = Fixture::new();
    let set = ["optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "checkpoint.every_steps=1"];
    let message = fail(&mut training(&fixture, "run", &set), 1);
    assert!(message.contains("stopped before the update"), "{message}");
    let bad = lines(&fixture.path("run"), "train").last().unwrap().step + 1;
    assert!(message.contains(&format!("step {bad}: ")), "{message}");
    let row = rows_of_step(&fixture.path("run"), bad, None).unwrap()[0].row;
    assert!(message.contains(&format!("rows of the step: {row},")), "{message}");
    assert!(message.contains("documents.txt record "), "{message}");
}

#[test]
fn batches_do_not_depend_on_how_they_are_cut() {
    let fixture = Fixture::new();
    let losses = |run: &str, set: &[&str]| -> Vec<f64> {
        succeed(&mut training(&fixture, run, set));
        lines(&fixture.path(run), "train").iter().map(|line| line.loss.unwrap()).collect()
    };
    let whole = losses("whole", &["training.micro_batch_rows=6"]);
    for (run, set) in [
        ("cut", vec!["training.micro_batch_rows=1"]),
        ("uneven", vec!["training.micro_batch_rows=4"]),
        ("checkpointed", vec!["training.activation_checkpointing=true"]),
    ] {
        for (found, expected) in losses(run, &set).iter().zip(&whole) {
            assert!((found - expected).abs() < 1e-4, "{run}: {found} {expected}");
        }
    }
}

#[test]
fn a_run_refuses_what_does_not_belong_to_it() {
    let fixture = Fixture::new();
    succeed(&mut training(&fixture, "run", &["training.steps=4"]));
    let message = fail(&mut training(&fixture, "run", &["training.steps=4"]), 1);
    assert!(message.contains("add --resume"), "{message}");

    let other = common::write_split(&fixture.path("other"), "train", &common::documents(3));
    let message = fail(resume(&fixture, "run").arg("--manifest").arg(&other), 1);
    assert!(message.contains("that this run began with") && message.contains("found root"), "{message}");

    let message = fail(resume(&fixture, "run").args(["--set", "optimizer.beta1=0.8"]), 1);
    assert!(message.contains("beta1 = 0.9") && message.contains("beta1 = 0.8"), "{message}");

    let model = checkpoint::folder_of(&fixture.path("run/checkpoints"), 4).join(checkpoint::MODEL_NAME);
    let content = fs_err::read(&model).unwrap();
    fs_err::write(&model, &content[..content.len() / 2]).unwrap();
    let message = fail(&mut resume(&fixture, "run"), 1);
    assert!(message.contains("model.safetensors") && message.contains("bytes"), "{message}");
}

#[test]
fn bad_input_is_named() {
    let fixture = Fixture::new();
    for (set, expected) in [
        ("training.step=4", "did you mean `training.steps`?"),
        ("training.context_length=64", "expected at most 32, the length of the dataset's rows"),
        ("training.tokens_per_step=100", "expected a multiple of the row length 32"),
        ("model.vocabulary_size=63", "expected at least 64"),
        ("training.precision=half", "bfloat16"),
        ("model.slstm_at=[2]", "block numbers below model.blocks = 2"),
        ("model.slstm.heads=3", "a divisor of model.embedding_dim = 16"),
        ("schedule.warmup_steps=13", "at most 12, where the cosine ends"),
        ("model.embedding_dim=65536", "for parameters, gradients and moments"),
    ] {
        let message = fail(&mut training(&fixture, "bad", &[set]), 1);
        assert!(message.contains(expected), "{set}: {message}");
        assert!(!fixture.path("bad").exists(), "{set} left a folder behind");
    }
    let foreign = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/slstm_cell.safetensors");
    let message = fail(Command::new(env!("CARGO_BIN_EXE_xlstm-train")).args(["sample", foreign]), 1);
    assert!(message.contains("expected metadata with the model's `config`, found none"), "{message}");
    let message = fail(program().args(["--manifest", "nowhere"]), 1);
    assert!(message.contains("expected a manifest, found no such file"), "{message}");
    let message = fail(&mut resume(&fixture, "nothing"), 1);
    assert!(message.contains("run to go on with") || message.contains("--manifest"), "{message}");
}

#[test]
fn a_manifest_alone_is_enough() {
    let fixture = Fixture::new();
    let mut command = program();
    let plan = succeed(command.arg("--manifest").arg(&fixture.train).arg("--dry-run"));
    let text = String::from_utf8(plan.stdout).unwrap();
    for expected in ["auto (small-cpu)", "parameters", "activations", "tokens", "time"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let whole = succeed(program().arg("--manifest").arg(fixture.folder.path()).arg("--dry-run"));
    let root = Dataset::open(&fixture.train).unwrap().manifest().root.to_string();
    let text = String::from_utf8(whole.stdout).unwrap();
    assert!(text.contains(&root), "the folder of a dataset will do");
    let printed = succeed(program().arg("--manifest").arg(&fixture.train).arg("--print-config"));
    let path: PathBuf = fixture.path("printed.toml");
    fs_err::write(&path, printed.stdout).unwrap();
    let again = succeed(
        program().arg("--manifest").arg(&fixture.train).arg("--print-config").arg("--recipe").arg(&path),
    );
    let name = |line: &&str| !line.starts_with("name");
    let first = fs_err::read_to_string(&path).unwrap();
    let second = String::from_utf8(again.stdout).unwrap();
    assert!(first.lines().filter(name).eq(second.lines().filter(name)), "a printed recipe is a recipe");

    // The chosen model has GPT-2's vocabulary: a few rows are enough of it.
    let small = fixture.path("small");
    for split in ["train", "validation"] {
        common::write_split(&small.join(split), split, &common::documents(0)[..3]);
    }
    let mut command = program();
    command.current_dir(fixture.folder.path()).arg("--manifest").arg(&small);
    let output = succeed(&mut command);
    assert!(stderr(&output).contains("name = \"auto (small-cpu)\""), "{}", stderr(&output));
    let run = fs_err::read_dir(fixture.path("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(lines(&run, "validation").len() >= 2, "the validation split beside it is taken");
    assert!(!checkpoint::list(&run.join("checkpoints")).unwrap().is_empty());
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_later() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    succeed(&mut training(&fixture, "run", &[]));
    let whole = state_bytes(&run, 12);
    for step in [8, 12] {
        fs_err::remove_dir_all(checkpoint::folder_of(&run.join("checkpoints"), step)).unwrap();
    }
    // No file may grow beyond 16 KiB: writing parameters fails as on a full disk, lines of metrics do not.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{}' --device cpu --threads 1 --set logging.tensorboard=false --resume --out '{}'",
        env!("CARGO_BIN_EXE_xlstm-train"),
        run.display()
    );
    let message = fail(Command::new("bash").args(["-c", &limited]), 1);
    assert!(
        message.contains("a checkpoint was not written") && message.contains("File too large"),
        "{message}"
    );
    assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap(), [4]);
    assert_eq!(fs_err::read_dir(run.join("checkpoints")).unwrap().count(), 1, "nothing half-written stays");
    succeed(&mut resume(&fixture, "run"));
    assert_eq!(state_bytes(&run, 12), whole);
}

#[test]
fn documents_can_be_kept_apart_and_products_halved() {
    let fixture = Fixture::new();
    let losses = |run: &str, set: &[&str]| -> Vec<f64> {
        succeed(&mut training(&fixture, run, set));
        lines(&fixture.path(run), "train").iter().map(|line| line.loss.unwrap()).collect()
    };
    let plain = losses("plain", &[]);
    let half = losses("half", &["training.precision=bfloat16"]);
    let apart = losses("apart", &["training.reset_at_document_boundaries=true"]);
    let pieces = losses("pieces", &["training.context_length=8"]);
    assert!(half.iter().zip(&plain).all(|(half, plain)| (half - plain).abs() < 0.05), "{half:?} {plain:?}");
    assert!(half != plain && apart != plain && pieces != plain);
    assert!(
        apart.iter().zip(&plain).all(|(apart, plain)| (apart - plain).abs() < 0.5),
        "{apart:?} {plain:?}"
    );
}

#[test]
fn a_check_of_kernels_without_a_gpu_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    let message = fail(command.args(["selfcheck", "--device", "cpu", "--json"]), 1);
    assert!(message.contains("expected a GPU to check, found cpu"), "{message}");
}
