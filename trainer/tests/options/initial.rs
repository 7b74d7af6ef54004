//! Runs that begin with the parameters of another: `--init-from`.

use std::path::Path;
use std::process::Command;

use xlstm_manifests::run_manifest::RunManifest;
use xlstm_trainer::checkpoint;
use xlstm_trainer::tensor_file::{self, TensorFile};

use crate::common::runs::*;
use crate::common::{Fixture, documents, write_split};

fn eval(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
    (output.status.code().unwrap(), text)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A run of 12 steps on the fixture's training split.
fn first(fixture: &Fixture) -> std::path::PathBuf {
    succeed(&mut training(fixture, "first", &[]));
    fixture.path("first")
}

#[test]
fn no_step_gives_the_same_evaluation_to_the_last_bit() {
    let fixture = Fixture::new();
    let run = first(&fixture);
    succeed(training(&fixture, "second", &["training.steps=0"]).arg("--init-from").arg(&run));
    let second = fixture.path("second");
    let measured = |run: &Path| lines(run, "validation").last().unwrap().loss.unwrap().to_bits();
    assert_eq!(measured(&second), measured(&run));
    let model = |run: &Path, step| {
        fs_err::read(checkpoint::folder_of(&run.join("checkpoints"), step).join(checkpoint::MODEL_NAME))
            .unwrap()
    };
    assert_eq!(model(&second, 0), model(&run, 12));
    // Also from an exported file.
    let exported = fixture.path("model.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    succeed(command.arg("export").arg(&run).arg("--output").arg(&exported));
    succeed(training(&fixture, "third", &["training.steps=0"]).arg("--init-from").arg(&exported));
    assert_eq!(measured(&fixture.path("third")), measured(&run));
    let manifest = RunManifest::load(&fixture.path("third")).unwrap();
    assert!(manifest.version == 2 && manifest.initialized_from.unwrap().run.is_none());
}

#[test]
fn the_chain_goes_through_both_runs_data() {
    let fixture = Fixture::new();
    let run = first(&fixture);
    let other = write_split(&fixture.path("other"), "train", &documents(3));
    let mut command = program();
    command.arg("--manifest").arg(&other).arg("--validation").arg(&fixture.validation);
    command.arg("--recipe").arg(&fixture.recipe).args(["--set", "training.steps=4"]);
    command.arg("--out").arg(fixture.path("second"));
    let said = stderr(&succeed(command.arg("--init-from").arg(&run)));
    assert!(said.contains("from             step 12 of tiny"), "{said}");
    let second = fixture.path("second");
    let manifest = RunManifest::load(&second).unwrap();
    let from = manifest.initialized_from.clone().unwrap();
    let parent = RunManifest::load(&run).unwrap();
    assert_eq!(from.run.as_ref().unwrap().train_root, parent.train.root);
    assert_ne!(manifest.train.root, parent.train.root);

    let (code, links) = eval(&["verify", &text(&second)]);
    assert!(code == 0 && links.contains("first parameters: model.safetensors"), "{links}");
    assert!(links.contains("first parameters: training split"), "{links}");
    let chain = Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&second).output().unwrap();
    let chain = String::from_utf8_lossy(&chain.stdout).into_owned();
    for root in [manifest.train.root, parent.train.root] {
        assert!(chain.contains(&root.to_string()), "{root}: {chain}");
    }
    let page = fixture.path("page.html");
    let (code, said) = eval(&["report", &text(&second), "--out", &text(&page)]);
    assert_eq!(code, 0, "{said}");
    let page = fs_err::read_to_string(page).unwrap();
    assert!(page.contains("6. First parameters") && page.contains(&parent.train.root.to_string()));

    // What is altered behind the run breaks its chain.
    let model = checkpoint::folder_of(&run.join("checkpoints"), 12).join(checkpoint::MODEL_NAME);
    let mut content = fs_err::read(&model).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs_err::write(&model, content).unwrap();
    let (code, links) = eval(&["verify", &text(&second)]);
    assert!(code == 1 && links.contains("first parameters: model.safetensors"), "{links}");
}

#[test]
fn moments_go_on_and_a_resume_is_bit_for_bit() {
    let fixture = Fixture::new();
    let run = first(&fixture);
    for (name, moments) in [("fresh", false), ("moments", true)] {
        let begin = |name: &str| {
            let mut command = training(&fixture, name, &[]);
            command.arg("--init-from").arg(&run);
            if moments {
                command.arg("--init-optimizer");
            }
            succeed(&mut command);
        };
        begin(name);
        let again = format!("{name}-again");
        begin(&again);
        let parts = fixture.path(&again);
        for step in [8, 12] {
            fs_err::remove_dir_all(checkpoint::folder_of(&parts.join("checkpoints"), step)).unwrap();
        }
        succeed(&mut resume(&fixture, &again));
        assert_eq!(state_bytes(&parts, 12), state_bytes(&fixture.path(name), 12), "{name}");
    }
    assert_ne!(state_bytes(&fixture.path("fresh"), 4), state_bytes(&fixture.path("moments"), 4));
    let from = RunManifest::load(&fixture.path("moments")).unwrap().initialized_from.unwrap();
    assert_eq!(from.moments.unwrap().updates, 12);
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_step() {
    let fixture = Fixture::new();
    let run = first(&fixture);
    let refused = |set: &[&str], from: &Path, more: &[&str]| {
        let message = fail(training(&fixture, "bad", set).arg("--init-from").arg(from).args(more), 1);
        assert!(!fixture.path("bad").exists(), "{message}");
        message
    };
    let message = refused(&["model.embedding_dim=32"], &run, &[]);
    assert!(message.contains("token_embedding.weight: expected [64, 32], found [64, 16]"), "{message}");
    let message = refused(&["model.mlstm.heads=2"], &run, &[]);
    assert!(
        message.contains("model.mlstm.heads: expected 2, found 4") || message.contains("expected ["),
        "{message}"
    );
    let message = refused(&["model.slstm.forget_gate=exponential"], &run, &[]);
    let expected = "model.slstm.forget_gate: expected \"exponential\", found \"sigmoid\"";
    assert!(message.contains(expected), "same shapes, another model: {message}");
    let torch = fixture.path("model.pt");
    fs_err::write(&torch, b"PK\x03\x04rest").unwrap();
    let message = refused(&[], &torch, &[]);
    assert!(
        message.contains("a file of torch.save") && message.contains("metadata={\"config\""),
        "{message}"
    );
    let exported = fixture.path("model.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    succeed(command.arg("export").arg(&run).arg("--output").arg(&exported));
    let message = refused(&[], &exported, &["--init-optimizer"]);
    assert!(message.contains("optimizer.safetensors"), "{message}");
    let message = refused(&[], &fixture.path("nowhere"), &[]);
    assert!(message.contains("a run, a checkpoint or a file of parameters"), "{message}");
}

#[test]
fn official_files_are_taken_by_either_description() {
    let fixture = Fixture::new();
    let run = first(&fixture);
    let exported = fixture.path("model.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    succeed(command.arg("export").arg(&run).arg("--output").arg(&exported));
    let file = TensorFile::open(&exported).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.clone(), file.tensor(name).unwrap().unwrap())).collect();
    for key in ["config", "xlstm_config"] {
        let own = fixture.path(&format!("{key}.safetensors"));
        let metadata = [(key.to_owned(), file.metadata()[key].clone())].into();
        tensor_file::write(&own, &metadata, &tensors).unwrap();
        let name = format!("from-{key}");
        succeed(training(&fixture, &name, &["training.steps=0"]).arg("--init-from").arg(&own));
        let loss = |run: &Path| lines(run, "validation").last().unwrap().loss;
        assert_eq!(loss(&fixture.path(&name)), loss(&run), "{key}");
    }
}
