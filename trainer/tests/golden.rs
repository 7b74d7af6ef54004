//! Parity with the official package over every language model in `XLSTM_GOLDEN_DIR` (default `tests/golden`), and with the
//! authors' code of the baselines over every file of its folder `baselines`: logits to 1e-5; loss, every gradient and ten
//! optimizer steps to 1e-4, relative to the largest value.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use xlstm_manifests::recipe::architecture::{
    Gpt2Config, H3Config, HyenaConfig, LlamaConfig, LstmConfig, LstmForm, MambaConfig, RecurrentConfig,
    RecurrentMixer, RetnetBlockConfig, RwkvConfig, RwkvVersion,
};
use xlstm_manifests::recipe::{ModelConfig, Optimizer, Precision};
use xlstm_trainer::model::{Model, Parameter, Placement, config_from_json};
use xlstm_trainer::optimizer::AdamW;
use xlstm_trainer::tensor_file::TensorFile;

fn folder() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    std::env::var_os("XLSTM_GOLDEN_DIR").map_or_else(default, PathBuf::from)
}

fn language_models() -> Vec<TensorFile> {
    models_in(&folder())
}

fn models_in(folder: &Path) -> Vec<TensorFile> {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let file = TensorFile::open(&path).unwrap();
            if file.metadata().contains_key("config") && file.names().any(|name| name == "logits") {
                files.push(file);
            }
        }
    }
    assert!(!files.is_empty(), "no language models in {}", folder.display());
    files
}

fn tensor(file: &TensorFile, name: &str) -> Tensor {
    file.tensor(name).unwrap().unwrap_or_else(|| panic!("{}: no {name}", file.path().display()))
}

fn values(file: &TensorFile, name: &str) -> Vec<f64> {
    Vec::try_from(tensor(file, name).to_kind(Kind::Double)).unwrap()
}

/// The largest difference over the largest expected value.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let scale = expected.abs().max().to_kind(Kind::Double).double_value(&[]).max(1e-12);
    (found.detach() - expected).abs().max().to_kind(Kind::Double).double_value(&[]) / scale
}

/// The model that a file describes: the official package's form, or a baseline's `method` with its sizes.
fn config_of(file: &TensorFile) -> ModelConfig {
    let text = &file.metadata()["config"];
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let official = || config_from_json(file.path(), text).unwrap();
    let Some(method) = value["method"].as_str() else { return official() };
    let size = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {text}"));
    let number = |key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key} in {text}"));
    match method {
        "llama" => ModelConfig::Llama(LlamaConfig {
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            heads: size("heads"),
            feed_forward_dim: size("ffn"),
            rotary_base: number("rope_base"),
            norm_epsilon: number("eps"),
            ..LlamaConfig::default()
        }),
        "gpt3" => ModelConfig::Gpt2(Gpt2Config {
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            heads: size("heads"),
            positions: size("positions"),
            ..Gpt2Config::default()
        }),
        "gla" => recurrent(size("heads"), &value).into_config(ModelConfig::Gla),
        "hgrn2" => recurrent(size("d") / size("expand_ratio"), &value).into_config(ModelConfig::Hgrn2),
        "hgrn" => match recurrent(1, &value).into_config(ModelConfig::Hgrn) {
            ModelConfig::Hgrn(mut config) => {
                config.swapped_norm = Some(value["swapped_norm"] == true);
                ModelConfig::Hgrn(config)
            }
            other => other,
        },
        "retnet_block" => ModelConfig::RetnetBlock(RetnetBlockConfig {
            tied_embedding: false,
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            heads: size("heads"),
            feed_forward_dim: size("ffn"),
        }),
        "retnet" => recurrent(size("heads"), &value).into_config(ModelConfig::Retnet),
        "rwkv4" => ModelConfig::Rwkv4(rwkv(&value)),
        "rwkv5" => ModelConfig::Rwkv5(rwkv(&value)),
        "rwkv6" => ModelConfig::Rwkv6(rwkv(&value)),
        "mamba" => ModelConfig::Mamba(MambaConfig {
            tied_embedding: false,
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            state_dim: size("d_state"),
            expansion: size("expand"),
            norm_epsilon: number("eps"),
        }),
        "h3" => ModelConfig::H3(H3Config {
            tied_embedding: false,
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            state_dim: size("d_state"),
            feed_forward_dim: size("ffn"),
        }),
        "hyena" => ModelConfig::Hyena(HyenaConfig {
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            order: size("order"),
            filter_dim: size("filter_order"),
            filter_layers: size("inner_mlps"),
            position_features: size("emb_dim"),
            positions: size("l_max"),
            feed_forward_dim: size("ffn"),
            ..HyenaConfig::default()
        }),
        "xlstm_block_with_lstm_cell" => official(),
        "lstm" => ModelConfig::Lstm(LstmConfig {
            vocabulary_size: size("vocab"),
            embedding_dim: size("d"),
            blocks: size("layers"),
            form: match value["kind"].as_str().unwrap() {
                "plain" | "block_plain" => LstmForm::Plain,
                "residual" => LstmForm::Residual,
                "up_projection" => LstmForm::UpProjection,
                other => panic!("{}: no form of LSTM for {other}", file.path().display()),
            },
            heads: value["heads"].as_u64().unwrap_or(1),
            ..LstmConfig::default()
        }),
        other => panic!("{}: no architecture for {other}", file.path().display()),
    }
}

/// Sizes that the models of one shell share.
struct Shared {
    vocabulary_size: u64,
    embedding_dim: u64,
    blocks: u64,
    feed_forward_dim: u64,
    /// Heads, or their width.
    heads: u64,
}

impl Shared {
    fn new(value: &serde_json::Value, heads: u64) -> Self {
        let size = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"));
        let (vocabulary_size, embedding_dim) = (size("vocab"), size("d"));
        Self { vocabulary_size, embedding_dim, blocks: size("layers"), feed_forward_dim: size("ffn"), heads }
    }

    fn into_config<M: RecurrentMixer>(self, variant: fn(RecurrentConfig<M>) -> ModelConfig) -> ModelConfig {
        let Self { vocabulary_size, embedding_dim, blocks, feed_forward_dim, heads } = self;
        let mut config = RecurrentConfig::default();
        config.vocabulary_size = vocabulary_size;
        config.embedding_dim = embedding_dim;
        config.blocks = blocks;
        config.feed_forward_dim = feed_forward_dim;
        config.heads = heads;
        variant(config)
    }
}

fn recurrent(heads: u64, value: &serde_json::Value) -> Shared {
    Shared::new(value, heads)
}

fn rwkv<N: RwkvVersion>(value: &serde_json::Value) -> RwkvConfig<N> {
    let shared = Shared::new(value, value["head_size"].as_u64().unwrap_or(64));
    let mut config = RwkvConfig::default();
    config.vocabulary_size = shared.vocabulary_size;
    config.embedding_dim = shared.embedding_dim;
    config.blocks = shared.blocks;
    config.feed_forward_dim = shared.feed_forward_dim;
    config.head_dim = shared.heads;
    config
}

fn model_of(file: &TensorFile, checkpointing: bool) -> Model {
    let placement = Placement::new(Device::Cpu, Precision::Float32, checkpointing);
    let model = Model::new(&config_of(file), placement, 1).unwrap();
    // The files hold `param.*` beside inputs and gradients; the loader leaves other names alone.
    model.load(file, "param.").unwrap();
    model
}

#[test]
fn golden_logits() {
    for file in language_models() {
        let model = model_of(&file, false);
        let (hidden, _) = tch::no_grad(|| model.forward(&tensor(&file, "inputs"), None, None)).unwrap();
        let error = relative_error(&model.logits(&hidden).unwrap(), &tensor(&file, "logits"));
        println!("{}: logits {error:.1e}", file.path().display());
        assert!(error <= 1e-5, "{}: {error:e}", file.path().display());
    }
}

#[test]
fn golden_loss_and_gradients() {
    for (file, checkpointing) in language_models().into_iter().flat_map(|file| {
        let again = TensorFile::open(file.path()).unwrap();
        [(file, false), (again, true)]
    }) {
        let model = model_of(&file, checkpointing);
        let output = model.loss(&tensor(&file, "inputs"), &tensor(&file, "targets"), None).unwrap();
        let expected = values(&file, "loss")[0];
        let loss = output.loss.double_value(&[]);
        assert!((loss - expected).abs() / expected <= 1e-4, "loss {loss}, expected {expected}");
        xlstm_bridge::autograd::backward(&[&output.loss], &[None], false).unwrap();
        let mut worst = (0.0, String::new());
        for parameter in model.parameters() {
            let expected = tensor(&file, &format!("grad.{}", parameter.name));
            let error = relative_error(&parameter.tensor.grad(), &expected);
            if error >= worst.0 {
                worst = (error, parameter.name.clone());
            }
        }
        println!("{}: worst gradient {:.1e} ({})", file.path().display(), worst.0, worst.1);
        assert!(worst.0 <= 1e-4, "{}: {worst:?}", file.path().display());
    }
}

/// A gradient and what it should be: all of it, or every so manieth number of it (`tests/python/sample_golden.py`).
fn gradients(file: &TensorFile, parameter: &Parameter) -> (Tensor, Tensor) {
    let found = parameter.tensor.grad();
    if let Some(expected) = file.tensor(&format!("grad.{}", parameter.name)).unwrap() {
        return (found, expected);
    }
    let strides: BTreeMap<String, i64> = serde_json::from_str(&file.metadata()["grad_stride"]).unwrap();
    let expected = tensor(file, &format!("grad_sample.{}", parameter.name));
    (found.reshape([-1]).slice(0, 0, None, strides[&parameter.name]), expected)
}

#[test]
fn baselines_agree_with_their_authors_code() {
    for file in models_in(&folder().join("baselines")) {
        let name = file.path().file_stem().unwrap().to_string_lossy().into_owned();
        // The official package's own blocks come without training steps and their groups.
        let no_decay = file.metadata().get("no_decay");
        let no_decay: Option<Vec<String>> = no_decay.map(|list| serde_json::from_str(list).unwrap());
        for checkpointing in [false, true] {
            let model = model_of(&file, checkpointing);
            let (inputs, targets) = (tensor(&file, "inputs"), tensor(&file, "targets"));
            let (hidden, _) = tch::no_grad(|| model.forward(&inputs, None, None)).unwrap();
            let logits = relative_error(&model.logits(&hidden).unwrap(), &tensor(&file, "logits"));
            let output = model.loss(&inputs, &targets, None).unwrap();
            let expected = values(&file, "loss")[0];
            let loss = (output.loss.double_value(&[]) - expected).abs() / expected;
            xlstm_bridge::autograd::backward(&[&output.loss], &[None], false).unwrap();
            let mut worst = (0.0, String::new());
            for parameter in model.parameters() {
                if let Some(no_decay) = &no_decay {
                    let decays = !no_decay.contains(&parameter.name);
                    assert_eq!(parameter.decays, decays, "{name}: {}", parameter.name);
                }
                let (found, expected) = gradients(&file, parameter);
                let error = relative_error(&found, &expected);
                if error >= worst.0 {
                    worst = (error, parameter.name.clone());
                }
            }
            println!(
                "{name}: logits {logits:.1e}, loss {loss:.1e}, worst gradient {:.1e} ({})",
                worst.0, worst.1
            );
            assert!(
                logits <= 1e-5 && loss <= 1e-5 && worst.0 <= 1e-4,
                "{name}: {logits:e}, {loss:e}, {worst:?}"
            );
        }
        assert_eq!(no_decay.is_some(), file.names().any(|name| name == "train.losses"), "{name}");
        if no_decay.is_none() {
            continue;
        }
        let (losses, norms) = train(&file, Kind::Double);
        assert_eq!(losses.len(), values(&file, "train.losses").len());
        let loss = worst(&losses, &values(&file, "train.losses"));
        let norm = worst(&norms, &values(&file, "train.grad_norms"));
        println!("{name}: ten steps: losses {loss:.1e}, norms {norm:.1e}");
        // Hyena's filters are sines of sines: a step multiplies what rounding there was by about three.
        let norm_tolerance = if name.starts_with("hyena") { 1e-3 } else { 1e-4 };
        assert!(loss <= 1e-4 && norm <= norm_tolerance, "{name}: losses {losses:?}, norms {norms:?}");
    }
}

/// Losses before each of ten AdamW steps, and gradient norms before clipping.
fn train(file: &TensorFile, kind: Kind) -> (Vec<f64>, Vec<f64>) {
    let config = config_of(file);
    let placement = Placement { kind, ..Placement::new(Device::Cpu, Precision::Float32, false) };
    let model = Model::new(&config, placement, 1).unwrap();
    model.load(file, "param.").unwrap();
    let mut optimizer = AdamW::new(&model, &Optimizer::default()).unwrap();
    let (inputs, targets) = (tensor(file, "inputs"), tensor(file, "targets"));
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for rate in values(file, "train.lrs") {
        let loss = model.loss(&inputs, &targets, None).unwrap().loss;
        optimizer.begin_step(false).unwrap();
        xlstm_bridge::autograd::backward(&[&loss], &[None], false).unwrap();
        let norm = optimizer.gradient_norm().unwrap();
        optimizer.update(rate, (1.0 / (norm + 1e-6)).min(1.0)).unwrap();
        losses.push(loss.double_value(&[]));
        norms.push(norm);
    }
    (losses, norms)
}

fn worst(found: &[f64], expected: &[f64]) -> f64 {
    found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs() / expected.abs())
        .fold(0.0, f64::max)
}

#[test]
fn golden_optimizer_steps() {
    for file in language_models() {
        let (losses, norms) = (values(&file, "train.losses"), values(&file, "train.grad_norms"));
        // Rounding of float32 grows about threefold with each step, most of all in the norm. The official package is
        // 1.3e-4 from the golden norms (which are its own) when one parameter is moved by one unit in the last place,
        // and the golden norms are 6e-5 from its float64 run (docs/benchmarks/cpu/epyc-zen4/golden-noise.txt): float64 can be held to
        // 1e-4, float32 to twice what one rounding does.
        for (kind, norm_tolerance) in [(Kind::Double, 1e-4), (Kind::Float, 2.6e-4)] {
            let (found_losses, found_norms) = train(&file, kind);
            let (loss, norm) = (worst(&found_losses, &losses), worst(&found_norms, &norms));
            println!("{}, {kind:?}: losses {loss:.1e}, norms {norm:.1e}", file.path().display());
            assert!(loss <= 1e-4, "{}: losses {found_losses:?}, expected {losses:?}", file.path().display());
            assert!(norm <= norm_tolerance, "{}: {found_norms:?}, {norms:?}", file.path().display());
        }
    }
}
