//! Pages about real runs, and the chain behind them: each link altered in turn and named.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod altered;
mod committed;
#[path = "../common/mod.rs"]
mod common;
mod sweep;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Fixture, ROW, documents, write_split};
use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};
use xlstm_trainer::model::{Model, Placement, export};

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
    // Out of the reach of a search around the run.
    let elsewhere = tempfile::tempdir().unwrap();
    let data = elsewhere.path().join("moved");
    copy(&fixture.train, &data);
    fs_err::remove_dir_all(&fixture.train).unwrap();
    let output = eval(&["report"], &[&run]);
    succeed(&output);
    assert!(text(&output.stderr).contains("no longer at"), "{}", text(&output.stderr));
    assert!(fs_err::read_to_string(run.join("report.html")).unwrap().contains("no longer at"));
    let output = eval(&["verify"], &[&run]);
    let told = text(&output.stdout);
    assert!(told.lines().any(|line| line.starts_with("not at hand  training split ")), "{told}");
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert_eq!(eval(&["verify", "--strict"], &[&run]).status.code(), Some(1));
    // With the folder named, every link is followed.
    let mut named = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    let told = succeed(&named.arg("verify").arg(&run).arg("--data").arg(elsewhere.path()).output().unwrap());
    assert!(told.contains(" 0 are not at hand"), "{told}");
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    for (path, content) in xlstm_tests::program::files(from) {
        let path = to.join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, content).unwrap();
    }
}

#[test]
fn a_run_and_its_data_move_together_and_a_namesake_is_not_taken_for_them() {
    let fixture = whole_rows();
    let run = train(&fixture, "runs/a", &[]);
    let moved = tempfile::tempdir().unwrap();
    let project = moved.path().join("project");
    copy(&run, &project.join("runs/a"));
    for split in [&fixture.train, &fixture.validation] {
        copy(split, &project.join(split.strip_prefix(fixture.path("")).unwrap()));
    }
    fs_err::remove_dir_all(&run).unwrap();
    // From a folder in which other data has the same names.
    let here = tempfile::tempdir().unwrap();
    for (split, name) in [(&fixture.train, "train"), (&fixture.validation, "validation")] {
        write_split(&here.path().join(split.strip_prefix(fixture.path("")).unwrap()), name, &documents(5));
        fs_err::remove_dir_all(split).unwrap();
    }
    let verify = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        command.current_dir(here.path()).arg("verify").arg(project.join("runs/a")).args(arguments);
        command.output().unwrap()
    };
    let told = succeed(&verify(&[]));
    assert!(told.contains(" 0 do not, 0 are not at hand"), "{told}");
    let chain = Command::new(env!("CARGO_BIN_EXE_xlstm-train"))
        .current_dir(here.path())
        .arg("chain")
        .arg(project.join("runs/a"))
        .output()
        .unwrap();
    assert!(succeed(&chain).contains("documents.txt record "), "{}", text(&chain.stdout));
    // An older run, which recorded paths from where it was started: the namesakes are no altered data.
    let manifest = project.join("runs/a/run.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs_err::read(&manifest).unwrap()).unwrap();
    for (split, folder) in [("train", &fixture.train), ("validation", &fixture.validation)] {
        json[split]["path"] = folder.strip_prefix(fixture.path("")).unwrap().display().to_string().into();
    }
    let old: xlstm_manifests::run_manifest::RunManifest = serde_json::from_value(json).unwrap();
    old.store(&project.join("runs/a")).unwrap();
    let told = succeed(&verify(&[]));
    assert!(told.contains(" 0 do not, 0 are not at hand"), "{told}");
    for split in [&fixture.train, &fixture.validation] {
        fs_err::remove_dir_all(project.join(split.strip_prefix(fixture.path("")).unwrap())).unwrap();
    }
    let output = verify(&[]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("another dataset, root "), "{told}");
}

#[test]
fn a_split_without_rows_gives_no_figure_anywhere() {
    let fixture = whole_rows();
    let empty = write_split(&fixture.path("nothing"), "validation", &[]);
    let run = fixture.path("a");
    let start = |validation: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
        command.args(["--threads", "1", "--device", "cpu", "--manifest"]).arg(&fixture.train);
        command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(&run);
        if validation {
            command.arg("--validation").arg(&empty);
        }
        command.output().unwrap()
    };
    let output = start(true);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("at least one row"), "{}", text(&output.stderr));
    succeed(&start(false));
    // A run of an earlier version, which recorded a loss of 0 over nothing.
    let path = run.join("metrics.jsonl");
    let line = "{\"kind\":\"validation\",\"step\":12,\"time\":0.0,\"loss\":0.0,\"perplexity\":1.0,\"tokens\":0,\
                \"rows\":0,\"rows_of_split\":0,\"unigram_entropy\":0.0}\n";
    fs_err::write(&path, fs_err::read_to_string(&path).unwrap() + line).unwrap();
    let chain = Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&run).output().unwrap();
    assert_eq!(chain.status.code(), Some(1));
    assert!(text(&chain.stderr).contains("a validation figure"), "{}", text(&chain.stderr));
    let both = fixture.path("both.html");
    succeed(&eval(&["report"], &[&run]));
    let mut compare = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    succeed(&compare.arg("compare").args([&run, &run]).arg("--out").arg(&both).output().unwrap());
    for page in [run.join("report.html"), both] {
        let page = fs_err::read_to_string(page).unwrap();
        assert!(page.contains("There is no validation figure."));
        assert!(!page.contains("perplexity 1.00") && !page.contains(">0.0000<"));
    }
    let output = eval(&["verify"], &[&run]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("a loss over at least one token, found none"), "{told}");
}

#[test]
fn figures_of_different_data_and_of_training_data_are_marked() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    for (name, data) in [("one", &fixture.train), ("two", &fixture.validation)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        command
            .args(["perplexity", "--device", "cpu", "--threads", "1"])
            .arg(&run)
            .arg("--manifest")
            .arg(data);
        let output = command.arg("--out").arg(run.join("evaluations").join(name)).output().unwrap();
        succeed(&output);
        let own = text(&output.stderr).contains("the split that the model was trained on");
        assert_eq!(own, name == "one", "{}", text(&output.stderr));
    }
    let out = fixture.path("both.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    succeed(&command.arg("compare").arg(&run).arg("--out").arg(&out).output().unwrap());
    let page = fs_err::read_to_string(out).unwrap();
    assert!(page.contains("these evaluations are of different data"));
    for data in [&fixture.train, &fixture.validation] {
        let root = xlstm_manifests::Manifest::load(data).unwrap().root.to_string();
        assert!(page.contains(&format!("{}…", &root[..12])));
    }
    // The training split as the one to validate on is said to be so, from the first line to the page.
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    command.args(["--threads", "1", "--device", "cpu", "--manifest"]).arg(&fixture.train);
    command.arg("--validation").arg(&fixture.train).arg("--recipe").arg(&fixture.recipe);
    let output = command.arg("--out").arg(fixture.path("own")).output().unwrap();
    succeed(&output);
    assert!(text(&output.stderr).contains("is the training split too"), "{}", text(&output.stderr));
    let own = fixture.path("own");
    let chain = Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&own).output().unwrap();
    assert!(succeed(&chain).contains("the validation split is the training split"));
    succeed(&eval(&["report"], &[&own]));
    let page = fs_err::read_to_string(own.join("report.html")).unwrap();
    assert!(page.contains("validated on its own training split"));
}

#[test]
fn what_is_asked_wrongly_is_named_with_what_to_do() {
    let fixture = Fixture::new();
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let none = fixture.path("none");
    let none = none.to_str().unwrap();
    let error = refused(&["--resume", "--out", none]);
    assert!(error.contains(none) && error.contains("a run to go on with"), "{error}");
    let picture = fixture.path("x.png");
    let error = refused(&["plot", none, "-o", picture.to_str().unwrap()]);
    assert!(error.contains("ends in .svg") && !picture.exists(), "{error}");
    let checkpoint = fixture.path("model.pt");
    fs_err::write(&checkpoint, b"PK\x03\x04rest").unwrap();
    let error = refused(&["export", checkpoint.to_str().unwrap(), "-o", none]);
    assert!(error.contains("a file of torch.save") && error.contains("save_file"), "{error}");
    let error = refused(&["--print-config", "--recipe", "demo", "--set", "training.label_smoothing=0.1"]);
    assert!(error.contains("`training` has: ") && !error.contains("did you mean"), "{error}");
    let error = refused(&["--print-config", "--recipe", "demo", "--set", "training.precision=fp16"]);
    assert!(error.contains("`training.precision`"), "{error}");
    // Names as PyTorch's wrappers write them.
    let wrapped = fixture.path("wrapped.safetensors");
    let tensor = tch::Tensor::ones([2], (tch::Kind::Float, tch::Device::Cpu));
    let config = XlstmConfig {
        vocabulary_size: 64,
        embedding_dim: 16,
        blocks: 1,
        slstm_at: vec![],
        ..XlstmConfig::default()
    };
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    let model = Model::new(&ModelConfig::Xlstm(config), placement, 1).unwrap();
    export(&model, &wrapped, 32).unwrap();
    let metadata = xlstm_trainer::tensor_file::TensorFile::open(&wrapped).unwrap().metadata().clone();
    for (prefix, by) in [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel")] {
        let tensors = [(format!("{prefix}token_embedding.weight"), tensor.shallow_clone())];
        xlstm_trainer::tensor_file::write(&wrapped, &metadata, &tensors).unwrap();
        let error = refused(&["export", wrapped.to_str().unwrap(), "-o", none]);
        assert!(error.contains(by) && error.contains("remove the prefix"), "{error}");
    }
    // A rank of a launcher of which not all is known.
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    command
        .args(["--device", "cpu", "--manifest"])
        .arg(&fixture.train)
        .env("PMI_RANK", "0")
        .env("PMI_SIZE", "2");
    let output = command.arg("--out").arg(none).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("set MPI_LOCALRANKID as well"), "{}", text(&output.stderr));
    assert!(!fixture.path("none").exists());
}
