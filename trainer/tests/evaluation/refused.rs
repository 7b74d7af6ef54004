//! What is refused before anything is computed.

use super::*;

#[test]
fn what_cannot_be_trusted_is_refused_by_name() {
    let fixture = fixture();
    let out = fixture.path("refused");
    let refused = |command: &str, model: &std::path::Path, data: &std::path::Path| {
        let mut command = evaluation_fixture::evaluate_model(command, model);
        let error = run(command.args(["--manifest", text(data), "--out", text(&out)])).failure(1);
        assert!(!out.join("report.json").exists());
        error
    };
    // Packed rows are no PALOMA.
    let error = refused("paloma", &fixture.run, &fixture.train);
    assert!(error.contains("xlstm-eval perplexity"), "{error}");

    // NaN in one parameter.
    let bad = fixture.with_changed_parameter("nan", "token_embedding.weight", f64::NAN);
    let error = refused("paloma", &bad, &fixture.paloma);
    assert!(error.contains("token_embedding.weight"), "{error}");

    // A vocabulary that is too small.
    let small = fixture.small_model();
    let error = refused("paloma", &small, &fixture.paloma);
    assert!(error.contains("50257") && error.contains("64"), "{error}");

    // Bytes of a shard, of the manifest's promise, of a checkpoint.
    let data = fixture.copy(&fixture.paloma, "altered");
    fixture.flip_last_byte_but(&data.join("documents-ptb.arrow"), 600);
    let error = refused("paloma", &fixture.run, &data);
    assert!(error.contains("documents-ptb.arrow") && error.contains("audit"), "{error}");
    let copied = fixture.copy(&fixture.run, "run-altered");
    let model = copied.join("checkpoints/step-00000004/model.safetensors");
    fixture.flip_last_byte_but(&model, 0);
    let error = refused("paloma", &copied, &fixture.paloma);
    assert!(error.contains("model.safetensors") && error.contains("SHA-256"), "{error}");

    // Another tokenizer than that of the training data.
    let other = fixture.copy(&fixture.run, "run-other-tokenizer");
    let path = other.join("run.json");
    let manifest = fs_err::read_to_string(&path).unwrap();
    let known = xlstm_manifests::identity::tokenizer(&Manifest::load(&fixture.paloma).unwrap().tokenizer);
    let changed =
        manifest.replace(&known.to_string(), &xlstm_manifests::Sha256Digest::of(b"other").to_string());
    assert_ne!(manifest, changed);
    fs_err::write(&path, changed).unwrap();
    let error = refused("paloma", &other, &fixture.paloma);
    assert!(error.contains("tokenizer"), "{error}");
}

/// Every command that loads parameters, ready to run but for the model.
fn commands_that_load(folder: &std::path::Path, data: &std::path::Path) -> Vec<(&'static str, Vec<String>)> {
    let out = |name: &str| folder.join(name).display().to_string();
    let data = data.display().to_string();
    let owned = |arguments: &[&str]| arguments.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    vec![
        ("xlstm-eval generate", owned(&["--tokens", "1"])),
        ("xlstm-eval serve", owned(&["--port", "0"])),
        ("xlstm-eval perplexity", owned(&["--manifest", &data, "--out", &out("perplexity")])),
        ("xlstm-eval paloma", owned(&["--manifest", &data, "--out", &out("paloma")])),
        (
            "xlstm-eval extrapolate",
            owned(&["--manifest", &data, "--lengths", "2048", "--out", &out("extra")]),
        ),
        ("xlstm-eval throughput", owned(&["--lengths", "1", "--batches", "1", "--tokens", "1"])),
        ("xlstm-train sample", owned(&["--tokens", "1"])),
        ("xlstm-train export", owned(&["--output", &out("exported.safetensors")])),
    ]
}

fn run_on(model: &std::path::Path, command: &str, arguments: &[String]) -> String {
    let (program, command) = command.split_once(' ').unwrap();
    let program = match program {
        "xlstm-eval" => env!("CARGO_BIN_EXE_xlstm-eval"),
        _ => env!("CARGO_BIN_EXE_xlstm-train"),
    };
    let mut child = std::process::Command::new(program);
    child.args([command, "--device", "cpu", "--threads", "1"]).arg(model).args(arguments);
    run(&mut child).failure(1)
}

#[test]
fn no_command_uses_parameters_that_are_no_numbers_or_were_altered() {
    let fixture = fixture();
    let folder = fixture.path("loaded");
    fs_err::create_dir_all(&folder).unwrap();
    let nan = fixture.with_changed_parameter("nan-everywhere", "token_embedding.weight", f64::NAN);
    let infinite = fixture.with_changed_parameter("infinite", "token_embedding.weight", f64::INFINITY);
    let altered = fixture.copy(&fixture.run, "altered-everywhere");
    fixture.flip_last_byte_but(&altered.join("checkpoints/step-00000004/model.safetensors"), 0);
    for (command, arguments) in commands_that_load(&folder, &fixture.paloma) {
        for bad in [&nan, &infinite] {
            let error = run_on(bad, command, &arguments);
            assert!(error.contains("finite numbers in `token_embedding.weight`"), "{command}: {error}");
        }
        let error = run_on(&altered, command, &arguments);
        assert!(error.contains("model.safetensors") && error.contains("SHA-256"), "{command}: {error}");
    }
    assert!(!folder.join("exported.safetensors").exists());
}

#[test]
fn a_file_that_only_lies_in_a_run_is_not_said_to_be_that_runs() {
    let fixture = fixture();
    let run_folder = fixture.copy(&fixture.run, "run-with-a-stranger");
    let stranger = run_folder.join("other.safetensors");
    fs_err::copy(run_folder.join("checkpoints/step-00000004/model.safetensors"), &stranger).unwrap();
    let report = |model: &std::path::Path, name: &str| {
        let out = fixture.path(name);
        let mut command = evaluation_fixture::evaluate_model("perplexity", model);
        run(command.args(["--manifest", text(&fixture.train), "--out", text(&out)])).success();
        Report::load(&out.join("report.json")).unwrap()
    };
    let found = report(&stranger, "of-a-stranger");
    assert!(found.run.is_none(), "{:?}", found.run);
    assert!(found.marks.iter().any(|mark| mark.text.contains("run is not known")), "{:?}", found.marks);
    // The run's own checkpoint is, whatever it is named by.
    for (name, model) in [
        ("of-the-run", run_folder.clone()),
        ("of-the-file", run_folder.join("checkpoints/step-00000004/model.safetensors")),
    ] {
        assert_eq!(report(&model, name).run.unwrap().path, run_folder);
    }
}
