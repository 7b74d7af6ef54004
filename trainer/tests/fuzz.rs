//! The bodies of the fuzz targets that need libtorch (`tests/fuzz`), over altered sound files, the same ones every time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;
use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};
use xlstm_tests::hostile::{alter_and_run, corpus_folder};
use xlstm_trainer::model::{Model, Placement, export};
use xlstm_trainer::tensor_file;

#[path = "../../tests/fuzz/bodies/checkpoints.rs"]
mod checkpoints;
#[path = "../../tests/fuzz/bodies/http_requests.rs"]
mod http_requests;
#[path = "../../tests/fuzz/bodies/run_folders.rs"]
mod run_folders;
#[path = "../../tests/fuzz/bodies/transformers.rs"]
mod transformers;

fn exported(config: &ModelConfig) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    export(&Model::new(config, placement, 1).unwrap(), &path, 8).unwrap();
    fs_err::read(path).unwrap()
}

/// A small model of an architecture.
fn small(architecture: &str) -> ModelConfig {
    let sizes = "vocabulary_size = 5\nembedding_dim = 8\nblocks = 2\n";
    let more = match architecture {
        "xlstm" => "slstm_at = [1]\n[mlstm]\nheads = 2\n[slstm]\nheads = 2\n",
        "llama" | "gpt2" | "retnet" | "gla" | "hgrn2" => "heads = 2\n",
        "rwkv4" | "rwkv5" | "rwkv6" => "head_dim = 4\n",
        "hyena" => "positions = 16\nfilter_dim = 4\n",
        "h3" => "state_dim = 4\n",
        _ => "",
    };
    toml::from_str(&format!("architecture = \"{architecture}\"\n{sizes}{more}")).unwrap()
}

#[test]
fn checkpoints_of_every_architecture() {
    let seeds: Vec<Vec<u8>> = ModelConfig::ARCHITECTURES.iter().map(|name| exported(&small(name))).collect();
    alter_and_run(&seeds, 150, checkpoints::run);
    // The toolkit's own more often.
    alter_and_run(&[exported(&small("xlstm"))], 1350, checkpoints::run);
}

/// Metadata alone: a description of any model, with the tensors of a small one.
#[test]
fn metadata_that_describes_other_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors =
        [("token_embedding.weight".to_owned(), Tensor::zeros([5, 8], (tch::Kind::Float, tch::Device::Cpu)))];
    let values =
        ["0", "1", "3", "-1", "1024", "65536", "1000000000000000000", "1e308", "inf", "nan", "true", "[]"];
    for architecture in ModelConfig::ARCHITECTURES {
        let sound = toml::to_string(&small(architecture)).unwrap();
        let lines: Vec<&str> = sound.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some((key, _)) = line.split_once('=') else { continue };
            for value in values {
                let changed = format!("{key}= {value}");
                let mut other = lines.clone();
                other[number] = &changed;
                let metadata = BTreeMap::from([("model".to_owned(), other.join("\n"))]);
                tensor_file::write(&path, &metadata, &tensors).unwrap();
                checkpoints::run(&fs_err::read(&path).unwrap());
                fs_err::remove_file(&path).unwrap();
            }
        }
    }
}

#[test]
fn bodies_of_requests() {
    let seed = br#"{"model": "m", "prompt": ["a", "b"], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": -1,
        "logprobs": 2, "echo": true, "stop": ["x"], "seed": 7, "n": 1, "stream": false}"#;
    alter_and_run(&[seed.to_vec(), br#"{"prompt": [[1, 2], [3]]}"#.to_vec()], 10_000, http_requests::run);
}

#[test]
fn models_of_transformers() {
    let seeds: Vec<Vec<u8>> = (0_u8..)
        .zip(transformers::SOUND.as_flattened())
        .map(|(which, content)| [&[which], *content].concat())
        .collect();
    // Configurations more often: that is where a new key means another model.
    let configurations: Vec<Vec<u8>> = seeds.iter().step_by(2).cloned().collect();
    alter_and_run(&seeds, 100, transformers::run);
    alter_and_run(&configurations, 300, transformers::run);
}

#[test]
fn folders_of_runs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    write_run(&run);
    run_folders::RUN.set(run.clone()).unwrap();
    let seeds: Vec<Vec<u8>> = (0_u8..)
        .zip(run_folders::FILES)
        .map(|(which, name)| {
            let mut data = vec![which];
            data.extend(fs_err::read(run.join(name)).unwrap_or_default());
            data
        })
        .collect();
    if let Some(corpus) = corpus_folder() {
        // libFuzzer's target takes the sound run from here.
        run_folders::copy(&run, &corpus.join("run"));
    }
    alter_and_run(&seeds, 150, run_folders::run);
    a_step_that_no_run_has(&run);
}

/// Memory and time are not decided by the number of a step.
fn a_step_that_no_run_has(run: &Path) {
    use xlstm_trainer::verify::{Depth, verify};
    let path = run.join("metrics.jsonl");
    let sound = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, sound.replace("\"step\":1,", "\"step\":9007199254740991,")).unwrap();
    let chain = verify(run, &Depth::default()).unwrap();
    let wrong = chain.links.iter().find(|link| link.link == "steps").unwrap();
    assert!(wrong.detail.contains("found step 9007199254740991") && !chain.holds(), "{wrong:?}");
    fs_err::write(&path, sound).unwrap();
}

/// A run of one step, as training leaves it, without its data.
fn write_run(run: &Path) {
    use xlstm_manifests::Sha256Digest;
    use xlstm_manifests::recipe::{Recipe, resolve};
    use xlstm_trainer::checkpoint::{Retention, Snapshot, write};
    let model = XlstmConfig { vocabulary_size: 5, embedding_dim: 8, blocks: 1, ..XlstmConfig::default() };
    let model: ModelConfig = XlstmConfig { slstm_at: vec![], ..model }.into();
    let recipe = Recipe {
        model: model.clone(),
        ..resolve(&Recipe::default(), &["schedule.warmup_steps=0".into()]).unwrap()
    };
    fs_err::create_dir_all(run).unwrap();
    fs_err::write(run.join("recipe.toml"), recipe.to_toml().unwrap()).unwrap();
    fs_err::write(run.join("run.json"), include_bytes!("../../tests/fuzz/seeds/run.json")).unwrap();
    let lines = [
        r#"{"kind":"session","step":0,"time":1795728985.3943062,"world":1}"#,
        r#"{"kind":"train","step":1,"time":1795728989.2,"loss":11.0,"perplexity":62693.1,"gradient_norm":2.0,"learning_rate":0.001,"tokens":1500,"tokens_per_second":389.6,"data_wait_share":0.0001,"memory_peak_bytes":341856256}"#,
    ];
    fs_err::write(run.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("model.safetensors");
    fs_err::write(&path, exported(&model)).unwrap();
    let file = tensor_file::TensorFile::open(&path).unwrap();
    let tensors = || -> Vec<(String, Tensor)> {
        file.names().map(|name| (name.to_owned(), file.tensor(name).unwrap().unwrap())).collect()
    };
    let root = "d90525e8e0d71e8dfa67cc63054f96b254f3d7fa7820841f06bce06c947f76f1";
    let snapshot = Snapshot {
        step: 1,
        tokens: 2048,
        train_root: root.parse::<Sha256Digest>().unwrap(),
        model: tensors(),
        optimizer: tensors(),
        metadata: file.metadata().clone(),
    };
    write(&run.join("checkpoints"), &snapshot, Retention { keep_last: 1, keep_every: 0 }).unwrap();
}
