//! Options that every trainer has: schedules, dropout, z-loss, tied embeddings, clipping, early stopping, checkpoints by
//! time and of the best. All are off unless they are set.

use std::process::Command;

use tch::{Device, Kind, Tensor};
use xlstm_manifests::recipe::{ModelConfig, Precision, Recipe, resolve};
use xlstm_manifests::run_manifest::RunManifest;
use xlstm_trainer::checkpoint;
use xlstm_trainer::metrics::Line;
use xlstm_trainer::model::{Model, Placement, export, import};
use xlstm_trainer::tensor_file::TensorFile;

use crate::common::Fixture;
use crate::common::runs::*;

fn losses(fixture: &Fixture, run: &str) -> Vec<f64> {
    lines(&fixture.path(run), "train").iter().map(|line| line.loss.unwrap()).collect()
}

fn train(fixture: &Fixture, run: &str, set: &[&str]) -> Vec<f64> {
    succeed(&mut training(fixture, run, set));
    losses(fixture, run)
}

#[track_caller]
fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
}

const DROPOUT: [&str; 2] = ["training.dropout=0.2", "training.embedding_dropout=0.1"];

#[test]
fn dropout_is_the_same_for_any_cut_and_any_number_of_ranks() {
    let fixture = Fixture::new();
    let with = |run: &str, more: &[&str]| train(&fixture, run, &[&DROPOUT, more].concat());
    let whole = with("whole", &["training.micro_batch_rows=6"]);
    let plain = train(&fixture, "plain", &["training.micro_batch_rows=6"]);
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(difference(&whole, &plain) > 0.02, "something is dropped: {whole:?} {plain:?}");
    near(&with("cut", &["training.micro_batch_rows=1"]), &whole);
    near(&with("checkpointed", &["training.activation_checkpointing=true"]), &whole);
    for ranks in ["2", "3"] {
        let run = format!("ranks-{ranks}");
        succeed(training(&fixture, &run, &DROPOUT).args(["--nproc", ranks]));
        near(&losses(&fixture, &run), &whole);
    }
    let other = with("other", &["training.micro_batch_rows=6", "training.dropout_seed=5"]);
    assert!(difference(&other, &whole) > 1e-3, "another seed drops other numbers");
    // Evaluation and validation drop nothing: before the first step the models are the same.
    let first = |run: &str| lines(&fixture.path(run), "validation")[0].loss;
    assert_eq!(first("whole"), first("plain"));
}

#[test]
fn a_run_with_every_option_goes_on_bit_for_bit() {
    let fixture = Fixture::new();
    let options = [
        &DROPOUT[..],
        &[
            "training.z_loss=1e-3",
            "model.tied_embedding=true",
            "schedule.shape=linear",
            "optimizer.clip_norm=0",
        ],
    ]
    .concat();
    train(&fixture, "whole", &options);
    train(&fixture, "parts", &options);
    let run = fixture.path("parts");
    for step in [8, 12] {
        fs_err::remove_dir_all(checkpoint::folder_of(&run.join("checkpoints"), step)).unwrap();
    }
    succeed(&mut resume(&fixture, "parts"));
    assert_eq!(state_bytes(&run, 12), state_bytes(&fixture.path("whole"), 12));
    let verify = Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("verify").arg(&run).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}

#[test]
fn options_are_said_in_the_first_lines() {
    let fixture = Fixture::new();
    let plan = |set: &[&str]| {
        let mut command = training(&fixture, "run", set);
        String::from_utf8(succeed(command.arg("--dry-run")).stdout).unwrap()
    };
    let plain = plan(&[]);
    assert!(plain.contains("clipping         gradients of a larger norm than 1"), "{plain}");
    assert!(
        plain.contains("schedule         cosine from 1.000e-2 to 1.000e-3 at step 12, warm-up 2"),
        "{plain}"
    );
    for absent in ["dropout", "z-loss", "tied"] {
        assert!(!plain.contains(absent), "{absent}: {plain}");
    }
    let set = ["optimizer.clip_norm=0", "training.z_loss=1e-4", "model.tied_embedding=true"];
    let all = plan(&[&DROPOUT[..], &set].concat());
    for expected in [
        "clipping         none: gradients are taken as they are",
        "dropout          0.1 of the embedding, 0.2 of each branch",
        "z-loss           0.0001",
        "output           the token embedding",
        "CPU kernels; the loss by libtorch's operations (training.z_loss has no kernel)",
    ] {
        assert!(all.contains(expected), "{expected}: {all}");
    }
}

#[test]
fn schedules_are_what_the_metrics_say() {
    let fixture = Fixture::new();
    let rates = |run: &str, set: &[&str]| -> Vec<f64> {
        train(&fixture, run, set);
        lines(&fixture.path(run), "train").iter().map(|line| line.learning_rate.unwrap()).collect()
    };
    let constant = rates("constant", &["schedule.shape=constant"]);
    assert!(constant[1..].iter().all(|&rate| rate == 1e-2), "{constant:?}");
    let zero = rates("zero", &["schedule.final_fraction=0"]);
    assert!(zero[11] == 0.0 && zero[10] > 0.0, "{zero:?}");
    let linear = rates("linear", &["schedule.shape=linear", "schedule.final_fraction=0"]);
    assert!((linear[6] - 5e-3).abs() < 1e-12, "half way from step 2 to 12: {linear:?}");
    let stable =
        ["schedule.shape=warmup-stable-decay", "schedule.stable_until=8", "schedule.final_fraction=0"];
    let stable = rates("stable", &stable);
    assert!(stable[1..8].iter().all(|&rate| rate == 1e-2) && (stable[9] - 5e-3).abs() < 1e-12, "{stable:?}");
}

#[test]
fn a_z_loss_is_minimized_and_not_logged() {
    let fixture = Fixture::new();
    let (plain, with) = (train(&fixture, "plain", &[]), train(&fixture, "with", &["training.z_loss=0.1"]));
    assert!((plain[0] - with[0]).abs() < 1e-6, "the first step's loss is the cross-entropy of both");
    assert!(plain.iter().zip(&with).any(|(plain, with)| (plain - with).abs() > 1e-3));
}

fn tied(architecture: &str) -> Recipe {
    let set = [
        format!("model.architecture={architecture}"),
        "model.vocabulary_size=64".into(),
        "model.embedding_dim=64".into(),
        "model.blocks=2".into(),
    ];
    let more: &[&str] = match architecture {
        "xlstm" => &["model.slstm_at=[1]"],
        "llama" | "gpt2" | "retnet" | "gla" | "retnet-block" => &["model.heads=2"],
        "rwkv5" | "rwkv6" | "rwkv4" => &["model.head_dim=32"],
        _ => &[],
    };
    let more = more.iter().map(|&text| text.to_owned());
    let set: Vec<String> = set.into_iter().chain(more).chain(["model.tied_embedding=true".into()]).collect();
    resolve(&Recipe::default(), &set).unwrap()
}

#[test]
fn every_architecture_can_share_its_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let placement = Placement::new(Device::Cpu, Precision::Float32, false);
    for &architecture in ModelConfig::ARCHITECTURES.iter().filter(|&&name| name != "gpt2") {
        let config = tied(architecture).model;
        let model = Model::new(&config, placement, 1).unwrap();
        assert_eq!(model.parameter_count(), config.size().parameters, "{architecture}");
        let path = folder.path().join(format!("{architecture}.safetensors"));
        export(&model, &path, 32).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().count(), model.parameters().len() + 1, "{architecture}: under both names");
        let again = import(&path, placement).unwrap();
        let tokens = Tensor::arange(32, (Kind::Int64, Device::Cpu)).view([1, 32]);
        let logits = |model: &Model| {
            let (hidden, _) = tch::no_grad(|| model.forward(&tokens, None, None)).unwrap();
            model.logits(&hidden).unwrap()
        };
        assert!(logits(&model).equal(&logits(&again)), "{architecture}");
        // Gradients of both uses meet in one tensor.
        let targets = tokens.roll([-1], [1]);
        let loss = model.loss(&tokens, &targets, None).unwrap().loss;
        loss.backward();
        let gradient = model.parameters()[0].tensor.grad();
        assert!(gradient.square().sum(Kind::Double).double_value(&[]) > 0.0, "{architecture}");
    }
}

#[test]
fn files_of_shared_embeddings_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let placement = Placement::new(Device::Cpu, Precision::Float32, false);
    let model = Model::new(&tied("xlstm").model, placement, 1).unwrap();
    let path = folder.path().join("model.safetensors");
    export(&model, &path, 32).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let config: serde_json::Value = serde_json::from_str(&file.metadata()["config"]).unwrap();
    assert_eq!(config["tie_weights"], serde_json::json!(true), "as the official package calls it");
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let mut tensors: Vec<(String, Tensor)> =
        names.iter().map(|name| (name.clone(), file.tensor(name).unwrap().unwrap())).collect();
    let output = tensors.iter_mut().find(|(name, _)| name == "lm_head.weight").unwrap();
    output.1 = &output.1 + 1.0;
    let other = folder.path().join("other.safetensors");
    xlstm_trainer::tensor_file::write(&other, file.metadata(), &tensors).unwrap();
    let error = import(&other, placement).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight: expected the numbers of token_embedding.weight"), "{error}");
}

#[test]
fn a_run_counts_a_shared_embedding_once() {
    let fixture = Fixture::new();
    train(&fixture, "tied", &["model.tied_embedding=true"]);
    train(&fixture, "untied", &[]);
    let parameters = |run: &str| RunManifest::load(&fixture.path(run)).unwrap().parameters;
    assert_eq!(parameters("untied") - parameters("tied"), 64 * 16);
}

#[test]
fn early_stopping_needs_something_to_measure() {
    let fixture = Fixture::new();
    let without = |set: &str| {
        let mut command = program();
        command.arg("--manifest").arg(&fixture.train).arg("--recipe").arg(&fixture.recipe);
        command.args(["--set", set]).arg("--out").arg(fixture.path("bad"));
        fail(&mut command, 1)
    };
    for (set, key) in [
        ("validation.patience=2", "validation.patience"),
        ("validation.stop_at_accuracy=0.9", "validation.stop_at_accuracy"),
        ("checkpoint.keep_best=true", "checkpoint.keep_best"),
    ] {
        let message = without(set);
        assert!(message.contains(&format!("`{key}` needs a validation split, found none")), "{message}");
    }
    let set = ["validation.patience=2", "validation.every_steps=0"];
    let message = fail(&mut training(&fixture, "bad", &set), 1);
    assert!(message.contains("`validation.every_steps` = 0"), "{message}");
    assert!(!fixture.path("bad").exists());
}

#[test]
fn the_best_checkpoint_is_kept_and_marked() {
    let fixture = Fixture::new();
    // A rate that learns, then one that destroys: the best is not the last.
    let set = [
        "training.steps=24",
        "optimizer.learning_rate=8",
        "optimizer.clip_norm=0",
        "schedule.warmup_steps=20",
        "validation.every_steps=2",
        "checkpoint.every_steps=0",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=true",
    ];
    train(&fixture, "run", &set);
    let run = fixture.path("run");
    let measured: Vec<Line> = lines(&run, "validation");
    let lowest = measured.iter().min_by(|a, b| a.loss.unwrap().total_cmp(&b.loss.unwrap())).unwrap();
    assert!(lowest.step > 0 && lowest.step < 24, "the lowest loss is at step {}", lowest.step);
    assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap(), [lowest.step, 24]);
    assert_eq!(checkpoint::best(&run.join("checkpoints")), Some(lowest.step));
    let sample = |path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
        let output =
            command.args(["export"]).arg(run.join(path)).arg("-o").arg(fixture.path("best.safetensors"));
        succeed(output);
        fs_err::read(fixture.path("best.safetensors")).unwrap()
    };
    assert_eq!(sample("checkpoints/best"), sample(&format!("checkpoints/step-{:08}", lowest.step)));
}

#[test]
fn checkpoints_come_by_time_too_on_all_ranks() {
    let fixture = Fixture::new();
    let set = ["checkpoint.every_steps=0", "checkpoint.every_minutes=1e-9", "validation.every_steps=0"];
    for ranks in ["1", "2"] {
        let run = format!("ranks-{ranks}");
        succeed(training(&fixture, &run, &set).args(["--nproc", ranks]));
        let steps = checkpoint::list(&fixture.path(&run).join("checkpoints")).unwrap();
        assert_eq!(steps, (1..=12).collect::<Vec<_>>(), "{ranks} ranks: a moment passes in every step");
    }
    let never = ["checkpoint.every_steps=0", "checkpoint.every_minutes=600"];
    train(&fixture, "never", &never);
    assert_eq!(checkpoint::list(&fixture.path("never/checkpoints")).unwrap(), [12]);
}
