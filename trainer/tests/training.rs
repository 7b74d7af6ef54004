//! Whole runs of the real program on small datasets: what they write, that they resume bit for bit, and how they end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

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
fn a_killed_run_resumes_bit_for_bit() {
    let fixture = Fixture::new();
    succeed(&mut training(&fixture, "whole", &["training.steps=40"]));
    let mut child = training(&fixture, "killed", &["training.steps=40"]).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("killed"), 4, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    // Somebody else's folder is no checkpoint, and stays.
    let stray = fixture.path("killed/checkpoints/step-9");
    fs_err::create_dir_all(&stray).unwrap();
    fs_err::write(stray.join("DONE"), "").unwrap();
    let last = *checkpoint::list(&fixture.path("killed/checkpoints")).unwrap().last().unwrap();
    succeed(&mut resume(&fixture, "killed"));
    assert_eq!(
        state_bytes(&fixture.path("killed"), 40),
        state_bytes(&fixture.path("whole"), 40),
        "from step {last}"
    );
    let sessions = RunManifest::load(&fixture.path("killed")).unwrap().sessions;
    assert_eq!(sessions.iter().map(|session| session.first_step).collect::<Vec<_>>(), [1, last + 1]);
}

#[test]
fn sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been() {
    let fixture = Fixture::new();
    let set = [
        "training.steps=400",
        "checkpoint.every_steps=4",
        "validation.every_steps=0",
        "checkpoint.keep_last=3",
    ];
    succeed(&mut training(&fixture, "whole", &set));
    let mut child = training(&fixture, "stopped", &set).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("stopped"), 4, &mut child);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("saved; go on with `xlstm-train --resume"), "{}", stderr(&output));
    let done = lines(&fixture.path("stopped"), "train").last().unwrap().step;
    assert_eq!(
        checkpoint::list(&fixture.path("stopped/checkpoints")).unwrap().last(),
        Some(&done),
        "the very step"
    );
    succeed(&mut resume(&fixture, "stopped"));
    assert_eq!(state_bytes(&fixture.path("stopped"), 400), state_bytes(&fixture.path("whole"), 400));
}

/// A model whose steps and validation rounds take long enough to be interrupted.
const SLOW: [&str; 4] =
    ["model.embedding_dim=192", "model.blocks=24", "training.micro_batch_rows=1", "validation.every_steps=0"];

/// Waits until the run has written a line of this kind.
fn wait_for_line(run: &Path, kind: &str, child: &mut Child) {
    let begin = Instant::now();
    while !read_lines(&run.join("metrics.jsonl")).unwrap_or_default().iter().any(|line| line.kind == kind) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no line of kind {kind}");
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn sigterm_is_heard_in_validation() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    let mut child = training(&fixture, "run", &SLOW).spawn().unwrap();
    wait_for_line(&run, "session", &mut child);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(lines(&run, "validation").is_empty(), "the first validation was not finished");
    assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap(), [0]);
    succeed(&mut resume(&fixture, "run"));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    let mut child = training(&fixture, "run", &SLOW).spawn().unwrap();
    wait_for_line(&run, "session", &mut child);
    // Two different signals that wait for a stopped process reach it together when it goes on.
    for name in ["-STOP", "-TERM", "-INT", "-CONT"] {
        signal(&child, name);
    }
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(130 | 143)), "{}", stderr(&output));
    assert!(!stderr(&output).contains("saved;"), "{}", stderr(&output));
    assert!(checkpoint::list(&run.join("checkpoints")).unwrap_or_default().is_empty());
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
fn a_check_of_kernels_without_a_card_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    let message = fail(command.args(["selfcheck", "--device", "cpu", "--json"]), 1);
    assert!(message.contains("expected a card to check, found cpu"), "{message}");
}

/// A row of the split's only shard, overwritten in place: as many bytes, other tokens.
fn overwrite_row(split: &Path, row: usize) -> Vec<u8> {
    let path = split.join("shard-00000.arrow");
    let honest = fs_err::read(&path).unwrap();
    let stream: Vec<u16> = common::documents(0).concat();
    let bytes = |ids: &[u16]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let tokens = bytes(&stream[row * common::ROW..(row + 1) * common::ROW]);
    let at = honest.windows(tokens.len()).position(|window| window == tokens).unwrap();
    let mut altered = honest.clone();
    altered[at..at + tokens.len()].copy_from_slice(&bytes(&[7; common::ROW]));
    fs_err::write(&path, &altered).unwrap();
    honest
}

/// The run would claim data that it never saw: it stops before it computes anything from the shard.
#[test]
fn an_overwritten_row_is_never_trained_on() {
    let fixture = Fixture::new();
    let shard = fixture.train.join("shard-00000.arrow");
    let honest = overwrite_row(&fixture.train, 3);
    let error = fail(&mut training(&fixture, "altered", &[]), 1);
    for part in ["shard-00000.arrow", "tokens_root", "was wanted", "prepare the split again"] {
        assert!(error.contains(part), "`{part}` is not in {error}");
    }
    assert!(lines(&fixture.path("altered"), "train").is_empty(), "no step was done");
    // Restored, the same command trains; altered again, it does not go on.
    fs_err::write(&shard, &honest).unwrap();
    let mut child =
        training(&fixture, "run", &["training.steps=4000", "checkpoint.every_steps=1"]).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("run"), 1, &mut child);
    signal(&child, "-TERM");
    child.wait().unwrap();
    overwrite_row(&fixture.train, 3);
    let error = fail(&mut resume(&fixture, "run"), 1);
    assert!(error.contains("shard-00000.arrow") && error.contains("tokens_root"), "{error}");
    // The validation split is checked too.
    fs_err::write(&shard, &honest).unwrap();
    let path = fixture.validation.join("shard-00000.arrow");
    let mut bytes = fs_err::read(&path).unwrap();
    let tokens: Vec<u8> =
        common::documents(11).concat()[..common::ROW].iter().flat_map(|id| id.to_le_bytes()).collect();
    let at = bytes.windows(tokens.len()).position(|window| window == tokens).unwrap();
    bytes[at] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let error = fail(&mut training(&fixture, "validated", &[]), 1);
    assert!(error.contains("validation") && error.contains("tokens_root"), "{error}");
}

/// What prepare makes of files whose every record was left out.
#[test]
fn a_split_without_rows_is_refused_before_the_first_step() {
    let fixture = Fixture::new();
    let empty = common::write_split(&fixture.path("empty"), "train", &[]);
    for more in [&["--dry-run"][..], &[]] {
        let mut command = program();
        command.arg("--manifest").arg(&empty).arg("--recipe").arg(&fixture.recipe).args(more);
        let error = fail(command.arg("--out").arg(fixture.path("none")), 1);
        assert!(
            error.contains("a training split with at least one row") && error.contains("none"),
            "{error}"
        );
    }
    let mut command = program();
    command.arg("--manifest").arg(&fixture.train).arg("--validation").arg(&empty);
    command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path("none"));
    let error = fail(&mut command, 1);
    assert!(error.contains("a validation split with at least one row"), "{error}");
}

/// Writes three masked examples; they differ in length and in their number of targets.
fn write_examples(file: &Path) {
    let examples = [
        json!({"input_ids": [1, 2, 0, 0], "targets": [null, 2, 1, null], "length": 3, "id": "two-answers"}),
        json!({"input_ids": [3, 4, 5, 0], "targets": [null, null, 3, 4], "set": "long"}),
        json!({"input_ids": [6, 7], "targets": [null, 6]}),
    ];
    let lines: String = examples.iter().map(|example| format!("{example}\n")).collect();
    fs_err::write(file, lines).unwrap();
}

/// A run ends at the accuracy that its recipe asks for, and has nothing to do when it is resumed.
fn check_early_stop(run: &Path, command: &mut dyn FnMut() -> Command) {
    let said = String::from_utf8(succeed(&mut command()).stderr).unwrap();
    assert!(said.contains("ending early at step") && said.contains("stop_at_accuracy = 1"), "{said}");
    let last = lines(run, "train").last().unwrap().step;
    assert!(last < 1000 && last.is_multiple_of(20), "step {last}");
    assert_eq!(lines(run, "validation").last().unwrap().step, last);
    let said = String::from_utf8(succeed(command().arg("--resume")).stderr).unwrap();
    assert!(said.contains(&format!("ending early at step {last}")), "{said}");
    assert_eq!(lines(run, "train").last().unwrap().step, last, "nothing was trained after it");
}

/// Three masked examples: prepared, audited, traced, trained on and scored.
#[test]
fn examples_go_from_a_file_to_a_figure() {
    let fixture = Fixture::new();
    let (file, out) = (fixture.path("toy.jsonl"), fixture.path("toy"));
    write_examples(&file);
    for split in ["train", "validation"] {
        let arguments =
            [OsStr::new("prepare"), "examples".as_ref(), file.as_ref(), "--out".as_ref(), out.as_ref()];
        let said = data(arguments.into_iter().chain(["--split".as_ref(), split.as_ref()])).success();
        assert!(said.contains("3 examples, 12 positions, 3 rows"), "{said}");
    }
    let (train, validation) = (out.join("train"), out.join("validation"));
    data([OsStr::new("audit"), out.as_ref(), "--deep".as_ref(), "all".as_ref()]).success();
    let trace = [
        OsStr::new("trace"),
        train.as_ref(),
        "--row".as_ref(),
        "1".as_ref(),
        "--token".as_ref(),
        "2".as_ref(),
    ];
    let said = data(trace).success();
    for part in ["proved", "toy.jsonl", "id 5, target 3", "set     long", "digest and text agree"] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }

    let train_toy = |run: &str, more: &[&str]| {
        let mut command = program();
        command.arg("--manifest").arg(&train).arg("--validation").arg(&validation);
        command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path(run));
        let toy = ["training.context_length=4", "training.tokens_per_step=12", "validation.every_steps=1000"];
        toy.iter().chain(more).for_each(|text| {
            command.args(["--set", text]);
        });
        command
    };
    let run = fixture.path("run");
    succeed(&mut train_toy("run", &["training.steps=120"]));
    let measured = lines(&run, "validation");
    assert!(measured.iter().all(|line| line.tokens == Some(5)), "five targets are scored: {measured:?}");
    assert!((measured[0].loss.unwrap() - 64.0_f64.ln()).abs() < 0.5, "{measured:?}");
    assert_eq!(measured.last().unwrap().accuracy, Some(1.0), "{measured:?}");
    check_early_stop(&fixture.path("early"), &mut || {
        train_toy(
            "early",
            &["training.steps=1000", "validation.every_steps=20", "validation.stop_at_accuracy=1.0"],
        )
    });
    // A step's mean is over its targets, whatever micro-batches it is cut into: they have 2, 2 and 1.
    let losses = |run: &str, rows: &str| {
        let cut = format!("training.micro_batch_rows={rows}");
        succeed(&mut train_toy(run, &["training.steps=3", &cut]));
        lines(&fixture.path(run), "train").iter().map(|line| line.loss.unwrap()).collect::<Vec<_>>()
    };
    let (whole, cut) = (losses("whole", "3"), losses("cut", "1"));
    assert_eq!((whole.len(), cut.len()), (3, 3));
    for (whole, cut) in whole.iter().zip(&cut) {
        assert!((whole - cut).abs() < 1e-5, "{whole} {cut}");
    }
    // Before the first update the step's loss is the validation's, over the same three rows.
    assert!((whole[0] - measured[0].loss.unwrap()).abs() < 1e-5);

    let evaluate = |command: &str, manifest: &Path, out: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        program.arg(command).arg(&run).arg("--manifest").arg(manifest).arg("--out").arg(fixture.path(out));
        program.args(["--device", "cpu", "--threads", "1", "--json"]);
        program
    };
    let report: Value =
        serde_json::from_slice(&succeed(&mut evaluate("accuracy", &validation, "accuracy")).stdout).unwrap();
    let results = &report["results"];
    assert_eq!(results["total"]["targets"], 5);
    assert_eq!(results["total"]["accuracy"], 1.0);
    let lengths: Vec<(u64, u64)> = results["lengths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|length| (length["first"].as_u64().unwrap(), length["figures"]["targets"].as_u64().unwrap()))
        .collect();
    assert_eq!(lengths, [(2, 1), (3, 2), (4, 2)]);
    let positions: Vec<(u64, u64)> = results["positions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| (place["first"].as_u64().unwrap(), place["targets"].as_u64().unwrap()))
        .collect();
    assert_eq!(positions, [(1, 2), (2, 2), (3, 1)]);
    assert!(results.get("scaled").is_none(), "nobody knows what a guess is right of: {results}");
    let csv = fs_err::read_to_string(fixture.path("accuracy").join("report.csv")).unwrap();
    assert!(csv.contains("total,,,3,5,5,1,") && csv.contains("position,3,3,,1,1,1,"), "{csv}");
    assert!(
        fs_err::read_to_string(fixture.path("accuracy").join("report.html"))
            .unwrap()
            .contains("Accuracy 1.0000")
    );
    let verified =
        succeed(Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("verify").arg(fixture.path("accuracy")));
    assert!(!String::from_utf8(verified.stdout).unwrap().contains("failed"));

    // Text where examples are needed, and the other way round.
    let error = fail(&mut evaluate("accuracy", &fixture.validation, "none"), 1);
    assert!(error.contains("layout `examples`") && error.contains("layout `packed`"), "{error}");
    for command in ["perplexity", "extrapolate"] {
        let error = fail(&mut evaluate(command, &validation, "none"), 1);
        assert!(error.contains("layout `packed`") && error.contains("found layout `examples`"), "{error}");
    }
    let mut mixed = program();
    mixed
        .arg("--manifest")
        .arg(&train)
        .arg("--validation")
        .arg(&fixture.validation)
        .arg("--recipe")
        .arg(&fixture.recipe);
    mixed.args(["--set", "training.context_length=4", "--set", "training.tokens_per_step=12"]);
    let error = fail(mixed.arg("--out").arg(fixture.path("mixed")), 1);
    assert!(error.contains("layout `examples`") && error.contains("layout `packed`"), "{error}");
    let error = fail(&mut train_toy("cut-examples", &["training.context_length=2"]), 1);
    assert!(error.contains("training.context_length") && error.contains("never cut"), "{error}");
}
