//! Models to and from folders of Hugging Face transformers, with the real programs.
//!
//! `tests/golden/transformers` holds small models that transformers saved and the logits that it computes
//! (`tests/python/transformers_golden.py`); `tests/python/transformers_package.py` lets transformers open what is exported here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::runs::{stderr, succeed, training};
use common::{Fixture, runs};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::recipe::{ModelConfig, Precision};
use xlstm_manifests::run_manifest::RunManifest;
use xlstm_trainer::hugging_face;
use xlstm_trainer::model::{Model, Placement, export, import};
use xlstm_trainer::tensor_file::{self, TensorFile};

const NAMES: [&str; 4] = ["llama", "gpt2", "mamba", "rwkv4"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/transformers").join(name)
}

fn placement() -> Placement {
    Placement::new(Device::Cpu, Precision::Float32, false)
}

/// A subcommand of `xlstm-train`.
fn command(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    command.args([name, "--threads", "1", "--device", "cpu"]);
    command
}

fn import_folder(folder: &Path, output: &Path) -> Output {
    command("import").arg(folder).arg("-o").arg(output).output().unwrap()
}

fn export_folder(from: &Path, output: &Path) -> Output {
    command("export").args(["--format", "transformers"]).arg(from).arg("-o").arg(output).output().unwrap()
}

fn export_own(from: &Path, output: &Path) -> Output {
    command("export").arg(from).arg("-o").arg(output).output().unwrap()
}

#[track_caller]
fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stderr(output)
}

/// The error of a command that the user's input has caused.
#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
    stderr(output)
}

fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    let file = TensorFile::open(path).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), file.tensor(&name).unwrap().unwrap())).collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A small model of an architecture that differs from its defaults in everything that transformers can say.
fn small(name: &str, more: &str) -> ModelConfig {
    let own = match name {
        "llama" => "heads = 2\nfeed_forward_dim = 20\nrotary_base = 700.0\nnorm_epsilon = 2e-5\n",
        "gpt2" => "heads = 2\nfeed_forward_dim = 20\npositions = 12\ngelu = \"erf\"\n",
        "mamba" => "state_dim = 3\nexpansion = 3\nnorm_epsilon = 2e-5\n",
        _ => "feed_forward_dim = 20\n",
    };
    let sizes = "vocabulary_size = 11\nembedding_dim = 8\nblocks = 2\n";
    toml::from_str(&format!("architecture = \"{name}\"\n{sizes}{own}{more}")).unwrap()
}

#[test]
fn what_transformers_saved_computes_the_same_here() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let file = folder.path().join(format!("{name}.safetensors"));
        success(&import_folder(&golden(name), &file));
        let expected = TensorFile::open(&golden(name).join("expected.safetensors")).unwrap();
        let tensor = |key: &str| expected.tensor(key).unwrap().unwrap();
        let (inputs, expected) = (tensor("input_ids"), tensor("logits"));
        let model = import(&file, placement()).unwrap();
        let (hidden, _) = tch::no_grad(|| model.forward(&inputs, None, None)).unwrap();
        let found = tch::no_grad(|| model.logits(&hidden)).unwrap();
        let largest = |tensor: Tensor| tensor.abs().max().to_kind(Kind::Double).double_value(&[]);
        let error = largest(&found - &expected) / largest(expected);
        assert!(error <= 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn models_go_there_and_back_to_the_bit() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tied = "tied_embedding = true\n";
    let cases =
        NAMES.map(|name| (name, "")).into_iter().chain([("llama", tied), ("mamba", tied), ("rwkv4", tied)]);
    for (number, (name, more)) in cases.enumerate() {
        let path = |what: &str| folder.path().join(format!("{number}-{what}"));
        let model = Model::new(&small(name, more), placement(), 1).unwrap();
        let (own, there, back) = (path("own.safetensors"), path("there"), path("back.safetensors"));
        export(&model, &own, 12).unwrap();
        success(&export_folder(&own, &there));
        success(&import_folder(&there, &back));
        let read = import(&back, placement()).unwrap();
        assert_eq!(read.config(), model.config(), "{name}");
        for (expected, found) in model.parameters().iter().zip(read.parameters()) {
            assert_eq!(expected.name, found.name);
            assert!(expected.tensor.equal(&found.tensor), "{name}: {}", expected.name);
        }
        let file = TensorFile::open(&there.join("model.safetensors")).unwrap();
        assert_eq!(file.metadata(), &[("format".to_owned(), "pt".to_owned())].into());
        let config = config(&there);
        assert_eq!(config["torch_dtype"], "float32");
        assert_eq!(config["tie_word_embeddings"], name == "gpt2" || !more.is_empty());
        // A vocabulary without GPT-2's end of text has none: transformers' own default would be some other token.
        assert!(config["eos_token_id"].is_null() && config.as_object().unwrap().contains_key("eos_token_id"));
        let (ours, theirs) = (model.parameters().len(), tensors(&there.join("model.safetensors")).len());
        assert_eq!(ours, theirs, "{name}: a tied output projection is there once");
        let files: Vec<_> =
            fs_err::read_dir(&there).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files.len(), 5, "{files:?}");
    }
}

#[test]
fn files_without_a_head_in_half_precision_and_with_masks_are_read() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As the file of `openai-community/gpt2`: names of the base model, and each block's causal mask.
    let mask = Tensor::ones([1, 1, 32, 32], (Kind::Float, Device::Cpu));
    let write = |number: i64, mask: &Tensor| {
        let there = folder.path().join(format!("gpt2-{number}"));
        fs_err::create_dir(&there).unwrap();
        fs_err::copy(golden("gpt2").join("config.json"), there.join("config.json")).unwrap();
        let strip = |(name, tensor): (String, Tensor)| {
            (name.replace("transformer.", ""), tensor.to_kind(Kind::BFloat16))
        };
        let mut all: Vec<_> =
            tensors(&golden("gpt2").join("model.safetensors")).into_iter().map(strip).collect();
        all.push(("h.1.attn.bias".into(), mask.shallow_clone()));
        // A tied output projection may be there under its own name too.
        let embedding = all.iter().find(|(name, _)| name == "wte.weight").unwrap().1.shallow_clone();
        all.push(("lm_head.weight".into(), embedding));
        tensor_file::write(&there.join("model.safetensors"), &[].into(), &all).unwrap();
        there
    };
    let back = folder.path().join("back.safetensors");
    success(&import_folder(&write(1, &mask.tril(0)), &back));
    let original = tensors(&golden("gpt2").join("model.safetensors"));
    let file = TensorFile::open(&back).unwrap();
    assert_eq!(file.names().count(), original.len());
    for (name, tensor) in original {
        let rounded = tensor.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert!(file.tensor(&name).unwrap().unwrap().equal(&rounded), "{name}");
    }
    let said = refused(&import_folder(&write(2, &mask), &back));
    assert!(said.contains("h.1.attn.bias: expected a causal mask"), "{said}");
}

/// Changes of a sound configuration, and what the refusal says of each.
fn refusals(name: &str) -> Vec<(Value, &'static str)> {
    let mut all = vec![
        (json!({"model_type": "bert"}), "`model_type`: one of llama, gpt2, mamba, rwkv, found \"bert\""),
        (json!({"architectures": ["Some"]}), "`architectures`"),
        (json!({"vocab_size": null}), "`vocab_size`: a whole number, found none"),
        (json!({"vocab_size": -1}), "`vocab_size`: a whole number up to 16777216, found -1"),
        (json!({"vocab_size": 60}), "expected [60,"),
        (json!({"quantization_config": {"bits": 4}}), "no key `quantization_config`"),
        (json!({"is_decoder": true}), "`is_decoder`: false, found true"),
    ];
    all.extend(match name {
        "llama" => vec![
            (json!({"num_key_value_heads": 2}), "`num_key_value_heads`: 4, as `num_attention_heads`"),
            (json!({"hidden_act": "gelu"}), "`hidden_act`: one of silu, swish, found \"gelu\""),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}), "`rope_scaling."),
            (json!({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0}}), "found \"llama3\""),
            (
                json!({"rope_theta": 10000.0}),
                "`rope_theta`: 500, as the rotary parameters have it, found 10000",
            ),
            (json!({"attention_bias": true}), "`attention_bias`: false, found true"),
            (json!({"mlp_bias": true}), "`mlp_bias`: false, found true"),
            (json!({"head_dim": 16}), "`head_dim`: 8,"),
            (json!({"num_attention_heads": 3, "num_key_value_heads": 3}), "`head_dim`: 10,"),
            (json!({"rms_norm_eps": "1e-5"}), "`rms_norm_eps`: a number"),
            (
                json!({"tie_word_embeddings": true}),
                "lm_head.weight: expected the numbers of model.embed_tokens.weight",
            ),
            (
                json!({"num_hidden_layers": 3}),
                "model.layers.2.input_layernorm.weight: expected [32], found none",
            ),
            (
                json!({"num_hidden_layers": 1}),
                "model.layers.1.mlp.up_proj.weight: expected no such parameter, found one",
            ),
        ],
        "gpt2" => vec![
            (json!({"activation_function": "relu"}), "`activation_function`: one of gelu_new"),
            (json!({"layer_norm_epsilon": 1e-6}), "`layer_norm_epsilon`: 0.00001, found 0.000001"),
            (json!({"scale_attn_by_inverse_layer_idx": true}), "`scale_attn_by_inverse_layer_idx`: false"),
            (json!({"scale_attn_weights": false}), "`scale_attn_weights`: true, found false"),
            (json!({"tie_word_embeddings": false}), "`tie_word_embeddings`: true, found false"),
            (json!({"add_cross_attention": true}), "`add_cross_attention`: false, found true"),
            (json!({"n_positions": 31}), "transformer.wpe.weight: expected [31, 24], found [32, 24]"),
        ],
        "mamba" => vec![
            (json!({"use_conv_bias": false}), "`use_conv_bias`: true, found false"),
            (json!({"use_bias": true}), "`use_bias`: false, found true"),
            (json!({"conv_kernel": 3}), "`conv_kernel`: 4,"),
            (json!({"time_step_rank": 5}), "`time_step_rank`: 2,"),
            (json!({"hidden_act": "relu"}), "`hidden_act`: one of silu"),
            (json!({"ssm_cfg": {"layer": "Mamba2"}}), "`ssm_cfg`: {}"),
            (json!({"tie_word_embeddings": false}), "lm_head.weight: expected [61, 24], found none"),
            (json!({"state_size": 300}), "`model.state_dim` 1 to 256"),
        ],
        _ => vec![
            (json!({"attention_hidden_size": 48}), "`attention_hidden_size`: 24, as `hidden_size`"),
            (json!({"layer_norm_epsilon": 1e-6}), "`layer_norm_epsilon`: 0.00001, found 0.000001"),
            (
                json!({"intermediate_size": 41}),
                "rwkv.blocks.0.feed_forward.key.weight: expected [41, 24], found [40, 24]",
            ),
        ],
    });
    all
}

#[test]
fn configurations_of_other_models_are_refused_by_key() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let back = folder.path().join("back.safetensors");
    for name in NAMES {
        let parameters = golden(name).join("model.safetensors");
        for (change, expected) in refusals(name) {
            let mut config = config(&golden(name));
            let object = config.as_object_mut().unwrap();
            for (key, value) in change.as_object().unwrap() {
                object.insert(key.clone(), value.clone());
            }
            let file = folder.path().join("changed.json");
            fs_err::write(&file, config.to_string()).unwrap();
            // Not the program: it takes half a second to start, and there are many.
            let said = hugging_face::import(&parameters, Some(&file), &back).unwrap_err().to_string();
            assert!(said.contains(expected), "{name}, {change}: {said}");
            assert!(!back.exists());
        }
    }
}

#[test]
fn parameters_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let name = "rwkv.blocks.1.attention.time_decay";
    let cases = [
        (None, format!("{name}: expected [24], found none")),
        (Some(numbers(&[1, 24])), format!("{name}: expected [24], found [1, 24]")),
        (Some(numbers(&[24]) + f64::NAN), format!("{name}: expected finite numbers")),
        (
            Some(numbers(&[24]).to_kind(Kind::Int64)),
            format!("{name}: expected float32, bfloat16 or float16, found Int64"),
        ),
    ];
    let back = folder.path().join("back.safetensors");
    fs_err::copy(golden("rwkv4").join("config.json"), folder.path().join("config.json")).unwrap();
    for (replaced, expected) in cases {
        let mut all = tensors(&golden("rwkv4").join("model.safetensors"));
        all.retain(|(other, _)| other != name);
        all.extend(replaced.map(|tensor| (name.to_owned(), tensor)));
        tensor_file::write(&folder.path().join("model.safetensors"), &[].into(), &all).unwrap();
        let said = refused(&import_folder(folder.path(), &back));
        assert!(said.contains(&expected), "{said}");
        assert!(!back.exists());
    }
    fs_err::remove_file(folder.path().join("model.safetensors")).unwrap();
    fs_err::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    let said = refused(&import_folder(folder.path(), &back));
    assert!(said.contains("found a model in several files") && said.contains("max_shard_size"), "{said}");
}

/// A run over the fixture's data, of a Llama.
fn llama_run(fixture: &Fixture) -> PathBuf {
    let recipe = fs_err::read_to_string(&fixture.recipe).unwrap();
    let recipe =
        recipe.replace("[model]", "[model]\narchitecture = 'llama'\nheads = 2").replace("slstm_at = [1]", "");
    fs_err::write(&fixture.recipe, recipe).unwrap();
    succeed(&mut training(fixture, "run", &[]));
    fixture.path("run")
}

#[test]
fn a_run_goes_there_with_its_provenance_and_comes_back_to_be_used() {
    let fixture = Fixture::new();
    let run = llama_run(&fixture);
    let (there, back) = (fixture.path("there"), fixture.path("back.safetensors"));
    success(&export_folder(&run, &there.join("")));
    let provenance: Value =
        serde_json::from_slice(&fs_err::read(there.join("provenance.json")).unwrap()).unwrap();
    let card = fs_err::read_to_string(there.join("README.md")).unwrap();
    let digest = |path: &Path| json!(Sha256Digest::of(&fs_err::read(path).unwrap()).to_string());
    let from = &provenance["from"];
    assert_eq!(from["step"], 12);
    let checkpoint = run.join("checkpoints/step-00000012/model.safetensors");
    assert_eq!(from["parameters"]["sha256"], digest(&checkpoint));
    assert_eq!(from["run"]["manifest_sha256"], digest(&run.join("run.json")));
    let manifest = RunManifest::load(&run).unwrap();
    assert_eq!(from["run"]["train"][0]["root"], manifest.train.root.to_string());
    assert_eq!(from["run"]["validation"]["root"], manifest.validation.unwrap().root.to_string());
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        assert_eq!(provenance["files"][name]["sha256"], digest(&there.join(name)), "{name}");
    }
    for known in
        [&from["parameters"]["sha256"], &from["run"]["manifest_sha256"], &from["run"]["train"][0]["root"]]
    {
        assert!(card.contains(known.as_str().unwrap()), "{card}");
    }
    let everything = card + &provenance.to_string();
    assert!(
        !everything.contains(fixture.folder.path().to_str().unwrap()),
        "a path of this machine leaves: {everything}"
    );
    assert_eq!(config(&there)["max_position_embeddings"], 32);

    // As it is, nothing takes it: what decides its numbers stands where nothing else looks.
    for path in [there.clone(), there.join("model.safetensors")] {
        let mut command = training(&fixture, "not-imported", &["training.steps=0"]);
        let said = refused(&command.arg("--init-from").arg(&path).output().unwrap());
        assert!(said.contains("`xlstm-train import` reads it"), "{said}");
    }
    success(&import_folder(&there, &back));
    let source: Value =
        serde_json::from_str(&TensorFile::open(&back).unwrap().metadata()["imported"]).unwrap();
    assert_eq!(source["parameters_sha256"], digest(&there.join("model.safetensors")));
    let measured = |run: &Path| runs::lines(run, "validation").last().unwrap().loss.unwrap().to_bits();
    succeed(training(&fixture, "second", &["training.steps=0"]).arg("--init-from").arg(&back));
    assert_eq!(measured(&fixture.path("second")), measured(&run));
    let perplexity = |model: &Path, out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        command.args(["perplexity", "--json", "--threads", "1", "--device", "cpu"]).arg(model);
        command.arg("--manifest").arg(&fixture.validation).arg("--out").arg(fixture.path(out));
        let output = succeed(&mut command);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["results"].to_string()
    };
    assert_eq!(perplexity(&back, "of-back"), perplexity(&run, "of-run"));
}

#[test]
fn a_padded_vocabulary_says_what_its_ids_are_and_text_comes_out_the_same() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = "architecture = \"gpt2\"\nembedding_dim = 8\nblocks = 1\nheads = 2\npositions = 32\n";
    export(&Model::new(&toml::from_str(text).unwrap(), placement(), 1).unwrap(), &path("own"), 32).unwrap();
    success(&export_folder(&path("own"), &path("there")));
    success(&import_folder(&path("there"), &path("back")));
    let config = config(&path("there"));
    assert_eq!((&config["vocab_size"], &config["eos_token_id"]), (&json!(50304), &json!(50256)));
    let card = fs_err::read_to_string(path("there").join("README.md")).unwrap();
    assert!(card.contains("Ids 0 to 50256 are GPT-2's tokens"), "{card}");
    assert!(card.contains("Ids 50257 to 50303 are no tokens"), "{card}");
    let generated = |model: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        command.arg("generate").arg(model).args(["--threads", "1", "--device", "cpu", "--seed", "3"]);
        let output = succeed(command.args(["--prompt", "The", "--tokens", "9", "--json"]));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["samples"].clone()
    };
    assert_eq!(generated(&path("back")), generated(&path("own")));
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, there) = (folder.path().join("model.safetensors"), folder.path().join("there"));
    let numbers = "architecture = \"llama\"\nvocabulary_size = 1\ninput_width = 3\nembedding_dim = 8\nblocks = 1\nheads = 2\n";
    for text in
        ["vocabulary_size = 5\nembedding_dim = 8\nblocks = 1\nslstm_at = []\n[mlstm]\nheads = 2\n", numbers]
    {
        export(&Model::new(&toml::from_str(text).unwrap(), placement(), 1).unwrap(), &file, 8).unwrap();
        let said = refused(&export_folder(&file, &there));
        assert!(said.contains("llama, gpt2, mamba, rwkv4") && said.contains("width 8"), "{said}");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file is left");
    }
    export(&Model::new(&small("gpt2", ""), placement(), 1).unwrap(), &file, 8).unwrap();
    fs_err::create_dir(&there).unwrap();
    let said = refused(&export_folder(&file, &there));
    assert!(said.contains("a folder that is not there yet"), "{said}");
    let said = refused(&import_folder(folder.path(), &file));
    assert!(said.contains("another file than the one that is read"), "{said}");
}

fn provenance(folder: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(folder.join("provenance.json")).unwrap()).unwrap()
}

#[test]
fn only_a_checkpoint_of_a_run_is_said_to_be_of_it() {
    let fixture = Fixture::new();
    let run = llama_run(&fixture);
    let checkpoint = run.join("checkpoints/step-00000012");
    let manifest = Sha256Digest::of(&fs_err::read(run.join("run.json")).unwrap()).to_string();

    // Named from inside the checkpoint's folder, and by a link from elsewhere.
    let mut command = command("export");
    command.args(["--format", "transformers", "model.safetensors", "-o"]).arg(fixture.path("inside"));
    success(&command.current_dir(&checkpoint).output().unwrap());
    let link = fixture.path("link.safetensors");
    std::os::unix::fs::symlink(checkpoint.join("model.safetensors"), &link).unwrap();
    success(&export_folder(&link, &fixture.path("linked")));
    for name in ["inside", "linked"] {
        let from = &provenance(&fixture.path(name))["from"];
        assert_eq!(
            (&from["step"], &from["run"]["manifest_sha256"]),
            (&json!(12), &json!(manifest)),
            "{name}"
        );
        assert_eq!(config(&fixture.path(name))["max_position_embeddings"], 32, "{name}");
    }

    // Parameters of another origin in the run's folder, with or without a checkpoint's name and place.
    for (number, name) in
        ["other.safetensors", "checkpoints/step-00000012/other.safetensors"].iter().enumerate()
    {
        let (other, there) = (run.join(name), fixture.path(&format!("other-{number}")));
        success(&import_folder(&golden("llama"), &other));
        success(&export_folder(&other, &there));
        let from = &provenance(&there)["from"];
        assert!(from["run"].is_null() && from["step"].is_null(), "{name}: {from}");
        let card = fs_err::read_to_string(there.join("README.md")).unwrap();
        assert!(card.contains("| run | not known |"), "{card}");
        let own = &config(&golden("llama"))["max_position_embeddings"];
        assert_eq!(&config(&there)["max_position_embeddings"], own, "{name}: the run's contexts are of 32");
        assert_ne!(own, 32);
    }

    // A checkpoint that was copied out of its place, or whose data is not the run's, is of no run that is known.
    let copy = fixture.path("run/checkpoints/step-00000013");
    fs_err::create_dir(&copy).unwrap();
    for entry in fs_err::read_dir(&checkpoint).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    success(&export_folder(&copy, &fixture.path("copied")));
    let from = &provenance(&fixture.path("copied"))["from"];
    assert!(from["run"].is_null() && from["step"] == 12, "{from}");
    let state = checkpoint.join("state.json");
    let mut changed: Value = serde_json::from_slice(&fs_err::read(&state).unwrap()).unwrap();
    changed["train_root"] = json!(manifest);
    fs_err::write(&state, changed.to_string()).unwrap();
    success(&export_folder(&checkpoint, &fixture.path("of-other-data")));
    assert!(provenance(&fixture.path("of-other-data"))["from"]["run"].is_null());

    // Parameters that are not those that the checkpoint records are refused through a link too.
    let parameters = checkpoint.join("model.safetensors");
    let mut bytes = fs_err::read(&parameters).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&parameters, bytes).unwrap();
    let said = refused(&export_folder(&link, &fixture.path("altered")));
    assert!(said.contains("altered after it was written"), "{said}");
    assert!(!fixture.path("altered").exists());
}

#[test]
fn what_was_imported_is_still_said_when_it_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    success(&import_folder(&golden("gpt2"), &path("own.safetensors")));
    success(&export_folder(&path("own.safetensors"), &path("there")));
    let imported = &provenance(&path("there"))["from"]["imported"];
    let card = fs_err::read_to_string(path("there/README.md")).unwrap();
    for (key, name) in [("config_sha256", "config.json"), ("parameters_sha256", "model.safetensors")] {
        let digest = Sha256Digest::of(&fs_err::read(golden("gpt2").join(name)).unwrap()).to_string();
        assert_eq!(imported[key], json!(digest));
        assert!(card.contains(&digest), "{card}");
    }
    // Through this program's own form too.
    success(&export_own(&path("own.safetensors"), &path("again.safetensors")));
    success(&export_folder(&path("again.safetensors"), &path("there-again")));
    assert_eq!(&provenance(&path("there-again"))["from"]["imported"], imported);
    // What is no record of an import is not passed on, nor left out in silence.
    let own = TensorFile::open(&path("own.safetensors")).unwrap();
    let mut metadata = own.metadata().clone();
    metadata.insert("imported".into(), "from a friend".into());
    tensor_file::write(&path("claimed.safetensors"), &metadata, &tensors(&path("own.safetensors"))).unwrap();
    for export in [export_folder, export_own] {
        let said = refused(&export(&path("claimed.safetensors"), &path("nowhere")));
        assert!(
            said.contains("claimed.safetensors") && said.contains("`imported` of the metadata"),
            "{said}"
        );
        assert!(!path("nowhere").exists());
    }
}

#[test]
fn an_import_replaces_nothing_that_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(golden("llama").join(name), folder.path().join(name)).unwrap();
    }
    let read =
        || ["config.json", "model.safetensors"].map(|name| fs_err::read(folder.path().join(name)).unwrap());
    let before = read();
    let (configuration, link) = (folder.path().join("config.json"), folder.path().join("link.json"));
    std::os::unix::fs::symlink(&configuration, &link).unwrap();
    let named = |config: &Path, output: &Path| {
        let mut command = command("import");
        command.arg(folder.path()).arg("--config").arg(config).arg("-o").arg(output).output().unwrap()
    };
    let outputs = [
        import_folder(folder.path(), &configuration),
        import_folder(folder.path(), &folder.path().join("model.safetensors")),
        named(&configuration, &configuration),
        named(&link, &configuration),
        named(&configuration, &link),
    ];
    for output in &outputs {
        let said = refused(output);
        assert!(said.contains("another file than the one that is read"), "{said}");
        assert!(read() == before);
    }
}

#[test]
fn exports_leave_the_folders_of_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    success(&import_folder(&golden("llama"), &path("own.safetensors")));
    // A folder of the user's, whatever its name.
    fs_err::create_dir(path("there.export-partial")).unwrap();
    fs_err::write(path("there.export-partial/notes"), "mine").unwrap();
    let mut exports: Vec<_> = (0..3)
        .map(|_| {
            let mut command = command("export");
            command.args(["--format", "transformers"]).arg(path("own.safetensors"));
            command.arg("-o").arg(path("there")).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let done = exports.iter_mut().filter_map(|export| export.wait().unwrap().success().then_some(())).count();
    assert_eq!(done, 1, "the first one has the folder, the others are refused");
    assert_eq!(fs_err::read_to_string(path("there.export-partial/notes")).unwrap(), "mine");
    let files = provenance(&path("there"))["files"].clone();
    for (name, record) in files.as_object().unwrap() {
        let digest = Sha256Digest::of(&fs_err::read(path("there").join(name)).unwrap());
        assert_eq!(record["sha256"], json!(digest.to_string()), "{name}");
    }
    assert_eq!(files.as_object().unwrap().len(), 3);
    let mut left: Vec<_> =
        fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["own.safetensors", "there", "there.export-partial"]);
    // As readable as any new folder.
    fs_err::create_dir(path("new")).unwrap();
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(path(name)).unwrap().permissions())
    };
    assert_eq!(mode("there"), mode("new"));
}

#[test]
fn a_configuration_that_cannot_be_reached_is_not_said_to_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let import = |config: &Path| {
        let mut command = command("import");
        command.arg(golden("llama")).arg("--config").arg(config).arg("-o").arg(folder.path().join("back"));
        refused(&command.output().unwrap())
    };
    let said = import(&folder.path().join("config.json"));
    assert!(said.contains("found none"), "{said}");
    // Through a file as if it were a folder.
    let said = import(&golden("llama").join("config.json/config.json"));
    assert!(!said.contains("found none") && said.contains("Not a directory"), "{said}");
}
