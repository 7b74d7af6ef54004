//! Models beyond parity: states, resets, generation, files, and the variants of the ablations.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use tch::{Device, Kind, Tensor};
use xlstm_manifests::recipe::architecture::{Gpt2Config, LlamaConfig};
use xlstm_manifests::recipe::{
    BlockKind, ForgetGate, GateWeights, InputBias, ModelConfig, Precision, RecurrentInit, SlstmBias,
    WeightInit, XlstmConfig,
};
use xlstm_trainer::TrainError;
use xlstm_trainer::model::{Generation, Model, ModelState, Placement, Sampling, TargetCount, export, import};
use xlstm_trainer::tensor_file;

fn config() -> XlstmConfig {
    let mut config = XlstmConfig {
        vocabulary_size: 40,
        embedding_dim: 16,
        blocks: 3,
        slstm_at: vec![1],
        ..XlstmConfig::default()
    };
    config.slstm.recurrent_init = RecurrentInit::Standard;
    config
}

fn placement() -> Placement {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    Placement { kind: Kind::Double, ..Placement::new(Device::Cpu, Precision::Float32, false) }
}

fn model() -> Model {
    Model::new(&config().into(), placement(), 3).unwrap()
}

/// The architectures whose sizes have the same names.
const BASELINES: [&str; 12] = [
    "retnet",
    "retnet-block",
    "gla",
    "hgrn",
    "hgrn2",
    "mamba",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "h3",
    "hyena",
    "lstm",
];

/// Other forms of the same architectures.
const FORMS: [&str; 6] = [
    "architecture = \"lstm\"\nform = \"plain\"",
    "architecture = \"lstm\"\nform = \"up-projection\"\nheads = 2",
    "architecture = \"lstm\"\nform = \"block\"",
    "architecture = \"hgrn\"\nswapped_norm = true",
    "slstm_at = [0, 1]\nslstm = { function = \"lstm\", heads = 2 }",
    "slstm_at = [1]\nslstm = { function = \"lstm\", convolution = 0 }",
];

fn small(architecture: &str) -> ModelConfig {
    let heads = match architecture {
        "retnet" | "retnet-block" | "gla" | "hgrn2" => "heads = 2",
        "rwkv4" | "rwkv5" | "rwkv6" => "head_dim = 8",
        _ => "",
    };
    let text = format!(
        "architecture = \"{architecture}\"\nvocabulary_size = 40\nembedding_dim = 16\nblocks = 2\n{heads}"
    );
    toml::from_str(&text).unwrap()
}

/// A small model of each architecture.
fn every_model() -> Vec<Model> {
    let llama =
        LlamaConfig { vocabulary_size: 40, embedding_dim: 16, blocks: 2, heads: 2, ..LlamaConfig::default() };
    let gpt2 = Gpt2Config {
        vocabulary_size: 40,
        embedding_dim: 16,
        blocks: 2,
        heads: 2,
        positions: 32,
        ..Gpt2Config::default()
    };
    let mut configs: Vec<ModelConfig> = vec![config().into(), llama.into(), gpt2.into()];
    configs.extend(BASELINES.map(small));
    let names: Vec<&str> = configs.iter().map(ModelConfig::architecture_name).collect();
    assert_eq!(names, ModelConfig::ARCHITECTURES, "an architecture without a test");
    let form = |text: &str| format!("vocabulary_size = 40\nembedding_dim = 16\nblocks = 2\n{text}");
    configs.extend(FORMS.iter().map(|text| toml::from_str::<ModelConfig>(&form(text)).unwrap()));
    configs.iter().map(|config| Model::new(config, placement(), 3).unwrap()).collect()
}

fn tokens(batch: i64, time: i64) -> Tensor {
    let ids: Vec<i64> = (0..batch * time).map(|i| (i * 7 + i / 5) % 40).collect();
    Tensor::from_slice(&ids).view([batch, time])
}

fn hidden(model: &Model, tokens: &Tensor, state: Option<&ModelState>) -> (Tensor, ModelState) {
    tch::no_grad(|| model.forward(tokens, state, None)).unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor) {
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(error < 1e-9, "{error:e}");
}

#[test]
fn a_text_in_pieces_is_the_text() {
    every_model().iter().for_each(check_in_pieces);
}

fn check_in_pieces(model: &Model) {
    let text = tokens(2, 23);
    let (whole, _) = hidden(model, &text, None);
    let mut state: Option<ModelState> = None;
    let mut pieces = Vec::new();
    for (start, length) in [(0, 1), (1, 9), (10, 2), (12, 11)] {
        let (piece, next) = hidden(model, &text.narrow(1, start, length), state.as_ref());
        pieces.push(piece);
        // Through names and back, as a saved state goes.
        let names = next.tensors();
        state = ModelState::from_tensors(&names, next.blocks.len());
    }
    assert_close(&Tensor::cat(&pieces, 1), &whole);
}

#[test]
fn a_reset_forgets_everything_before() {
    every_model().iter().for_each(check_resets);
}

fn check_resets(model: &Model) {
    let text = tokens(1, 20);
    let mut flags = vec![false; 20];
    flags[8] = true;
    flags[13] = true;
    let resets = Tensor::from_slice(&flags).view([1, 20]);
    let (found, _) = tch::no_grad(|| model.forward(&text, None, Some(&resets))).unwrap();
    let parts = [(0, 8), (8, 5), (13, 7)]
        .map(|(start, length)| hidden(model, &text.narrow(1, start, length), None).0);
    assert_close(&found, &Tensor::cat(&parts, 1));
}

#[test]
fn generation_takes_the_most_likely_token_and_no_neighbor_matters() {
    every_model().iter().for_each(check_generation);
}

fn check_generation(model: &Model) {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let prompts = [vec![1, 2, 3], vec![9]];
    let mut batch = Generation::new(model, &prompts, greedy).unwrap();
    let together: Vec<Vec<i64>> = (0..6).map(|_| batch.next_tokens().unwrap()).collect();
    for (index, prompt) in prompts.iter().enumerate() {
        let mut text = prompt.clone();
        for step in &together {
            let input = Tensor::from_slice(&text).unsqueeze(0);
            let logits = tch::no_grad(|| model.logits(&hidden(model, &input, None).0)).unwrap();
            let expected = logits.select(1, -1).argmax(-1, false).int64_value(&[0]);
            assert_eq!(step[index], expected);
            text.push(expected);
        }
    }
    let sampling = Sampling { seed: 5, ..Sampling::default() };
    let draw = || {
        let mut generation = Generation::new(model, &prompts, sampling).unwrap();
        (0..10).map(|_| generation.next_tokens().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw(), "a seed is a text");
    assert!(Generation::new(model, &[vec![40]], greedy).is_err());
    assert!(Generation::new(model, &[vec![]], greedy).is_err());
}

#[test]
fn files_round_trip_and_what_does_not_fit_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = model();
    export(&model, &path, 32).unwrap();
    let again = import(&path, placement()).unwrap();
    let text = tokens(1, 9);
    assert_close(&hidden(&again, &text, None).0, &hidden(&model, &text, None).0);

    let mut own = config();
    own.slstm.forget_gate = ForgetGate::Exponential;
    let own_path = folder.path().join("own.safetensors");
    let own = Model::new(&own.into(), placement(), 3).unwrap();
    export(&own, &own_path, 32).unwrap();
    assert!(!tensor_file::TensorFile::open(&own_path).unwrap().metadata().contains_key("xlstm_config"));
    let same = import(&own_path, placement()).unwrap();
    assert_close(&hidden(&same, &text, None).0, &hidden(&own, &text, None).0);

    let wider = XlstmConfig { embedding_dim: 32, ..config() };
    let file = tensor_file::TensorFile::open(&path).unwrap();
    let error = Model::new(&wider.into(), placement(), 0).unwrap().load(&file, "").unwrap_err();
    let TrainError::Parameters { count, ref list, .. } = error else { panic!("{error}") };
    assert!(
        count > 10 && list.contains("token_embedding.weight: expected [40, 32], found [40, 16]"),
        "{list}"
    );
    let more = XlstmConfig { blocks: 4, ..config() };
    let error = Model::new(&more.into(), placement(), 0).unwrap().load(&file, "").unwrap_err().to_string();
    assert!(error.contains("blocks.3.xlstm.proj_up.weight: expected [128, 16], found none"), "{error}");
}

#[test]
fn a_reset_after_a_state_forgets_the_state() {
    for model in every_model() {
        let text = tokens(2, 20);
        let (_, state) = hidden(&model, &text.narrow(1, 0, 9), None);
        // The first row goes on from the state, and forgets it at its fourth token; the second goes on to the end.
        let flags: Vec<bool> = (0..22).map(|index| index == 3).collect();
        let resets = Tensor::from_slice(&flags).view([2, 11]);
        let rest = text.narrow(1, 9, 11);
        let (found, after) = tch::no_grad(|| model.forward(&rest, Some(&state), Some(&resets))).unwrap();
        let (whole, _) = hidden(&model, &text, None);
        let (fresh, fresh_after) = hidden(&model, &text.narrow(0, 0, 1).narrow(1, 12, 8), None);
        assert_close(&found.get(0).narrow(0, 0, 3), &whole.get(0).narrow(0, 9, 3));
        assert_close(&found.narrow(0, 0, 1).narrow(1, 3, 8), &fresh);
        assert_close(&found.get(1), &whole.get(1).narrow(0, 9, 11));
        // What comes next depends on the new document alone.
        let more = tokens(2, 5);
        let next = hidden(&model, &more, Some(&after)).0;
        assert_close(&next.get(0), &hidden(&model, &more.narrow(0, 0, 1), Some(&fresh_after)).0.get(0));
    }
}

#[test]
fn every_architecture_has_its_counted_size_and_comes_back_from_files() {
    let folder = tempfile::tempdir().unwrap();
    for model in every_model() {
        let name = model.config().architecture_name();
        assert_eq!(model.parameter_count(), model.config().size().parameters, "{name}");
        let path = folder.path().join(name);
        export(&model, &path, 32).unwrap();
        let again = import(&path, placement()).unwrap();
        assert_eq!(again.config(), model.config());
        assert_close(&hidden(&again, &tokens(1, 9), None).0, &hidden(&model, &tokens(1, 9), None).0);
    }
}

#[test]
fn both_slstm_layouts_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cuda.safetensors");
    let model = model();
    let vanilla = folder.path().join("vanilla.safetensors");
    export(&model, &vanilla, 32).unwrap();
    let metadata = tensor_file::TensorFile::open(&vanilla).unwrap().metadata().clone();
    let tensors: Vec<(String, Tensor)> = model
        .snapshot()
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| {
            // vanilla: (H, gate·out, in) and [gate][head][out]; cuda: (H, in, gate·out) and [head][gate][out].
            let tensor = if name.ends_with("_recurrent_kernel_") {
                tensor.transpose(1, 2).contiguous()
            } else if name.ends_with("_bias_") {
                tensor.view([4, 4, 4]).transpose(0, 1).contiguous().view([-1])
            } else {
                tensor
            };
            (name, tensor)
        })
        .collect();
    tensor_file::write(&path, &metadata, &tensors).unwrap();
    let text = tokens(1, 9);
    let again = import(&path, placement()).unwrap();
    assert_close(&hidden(&again, &text, None).0, &hidden(&model, &text, None).0);
}

#[test]
fn evaluation_and_validation_give_the_same_digits() {
    for model in every_model() {
        let plain = Placement { kind: Kind::Float, ..placement() };
        let model = Model::new(model.config(), plain, 3).unwrap();
        let text = tokens(3, 21);
        let (inputs, targets) = (text.narrow(1, 0, 20), text.narrow(1, 1, 20).contiguous());
        let flags: Vec<bool> = (0..60).map(|index| index % 9 == 4).collect();
        let flags = Tensor::from_slice(&flags).view([3, 20]);
        for resets in [None, Some(&flags)] {
            // As `train::measure` and as `evaluation::score` compute.
            let validation =
                tch::no_grad(|| model.loss_with_count(&inputs, &targets, resets, TargetCount::Known(60)))
                    .unwrap();
            let validation = validation.token_losses_N.to_kind(Kind::Double);
            let evaluation = model.sequence_losses(&inputs, &targets, resets).unwrap();
            assert_eq!(Vec::<f64>::try_from(validation).unwrap(), evaluation);
        }
    }
}

/// The official package's rule for weight decay: by names, and never the token embedding.
fn official_decay(name: &str) -> bool {
    name.contains("weight") && !name.contains("norm") && name != "token_embedding.weight"
}

#[test]
fn weight_decay_follows_the_official_package() {
    for block in [BlockKind::PreUpProjection, BlockKind::PostUpProjection] {
        let mut config = config();
        config.mlstm.block = block;
        let model = Model::new(&config.into(), placement(), 1).unwrap();
        for parameter in model.parameters() {
            assert_eq!(parameter.decays, official_decay(&parameter.name), "{}", parameter.name);
        }
        let decaying = model.parameters().iter().filter(|parameter| parameter.decays).count();
        assert!(decaying > 20 && decaying < model.parameters().len() - 10);
    }
}

#[test]
fn every_variant_trains_and_has_the_counted_size() {
    let variants: [fn(&mut XlstmConfig); 9] = [
        |_| {},
        |c| c.mlstm.block = BlockKind::PostUpProjection,
        |c| (c.mlstm.convolution, c.slstm.convolution) = (0, 0),
        |c| (c.mlstm.forget_gate_input_dependent, c.mlstm.input_gate_input_dependent) = (false, false),
        |c| {
            (c.mlstm.forget_gate_input_dependent, c.mlstm.forget_gate_bias_learnable) = (false, false);
            (c.mlstm.forget_gate_bias, c.mlstm.input_gate_bias) = ([f64::INFINITY; 2], InputBias::Zero);
            (c.mlstm.input_gate_input_dependent, c.mlstm.input_gate_bias_learnable) = (false, false);
        },
        |c| (c.slstm.gate_weights, c.slstm.feed_forward_factor) = (GateWeights::Dense, 2.6),
        |c| (c.slstm.bias_init, c.slstm.weight_init) = (SlstmBias::SmallInit, WeightInit::Standard),
        |c| (c.slstm.bias_init, c.slstm.recurrent_gradient_clip) = (SlstmBias::Standard, 10.0),
        |c| c.slstm.forget_gate = ForgetGate::Exponential,
    ];
    for (number, change) in variants.into_iter().enumerate() {
        let mut config = config();
        change(&mut config);
        let model = Model::new(&config.into(), placement(), 1).unwrap();
        assert_eq!(model.parameter_count(), model.config().size().parameters, "variant {number}");
        let text = tokens(2, 17);
        let output = model.loss(&text.narrow(1, 0, 16), &text.narrow(1, 1, 16).contiguous(), None).unwrap();
        xlstm_bridge::autograd::backward(&[&output.loss], &[None], false).unwrap();
        for parameter in model.parameters().iter().filter(|parameter| parameter.trainable) {
            let gradient = parameter.tensor.grad();
            assert!(gradient.defined(), "variant {number}: {}", parameter.name);
            assert!(gradient.isfinite().all().int64_value(&[]) == 1, "variant {number}: {}", parameter.name);
        }
    }
}

#[test]
fn first_values_are_the_published_ones() {
    let config = XlstmConfig { embedding_dim: 64, blocks: 4, slstm_at: vec![0, 3], ..XlstmConfig::default() };
    let model =
        Model::new(&config.into(), Placement::new(Device::Cpu, Precision::Float32, false), 7).unwrap();
    let get = |name: &str| {
        let found = model.parameters().iter().find(|parameter| parameter.name.ends_with(name));
        found.unwrap_or_else(|| panic!("no {name}")).tensor.detach().to_kind(Kind::Double)
    };
    let deviation = |name: &str| get(name).std(true).double_value(&[]);
    assert!((deviation("token_embedding.weight") - (2.0_f64 / 320.0).sqrt()).abs() < 1e-3);
    assert!((deviation("blocks.1.xlstm.proj_down.weight") - 2.0 / (4.0 * 8.0)).abs() < 3e-3);
    assert_eq!(
        Vec::<f64>::try_from(get("blocks.1.xlstm.mlstm_cell.fgate.bias")).unwrap(),
        [3.0, 4.0, 5.0, 6.0]
    );
    // Forget biases of the first head: from 5 down to -7, steeper in the first block than in the last.
    for (block, exponent) in [(0, 0.3), (3, 1.6)] {
        let bias = get(&format!("blocks.{block}.xlstm.slstm_cell._bias_"));
        let at = |index: i64| bias.double_value(&[index]);
        assert!((at(64) - 5.0).abs() < 1e-6 && (at(64 + 15) + 7.0).abs() < 1e-6);
        assert!((at(64 + 16 + 5) - (5.0 - 12.0 * (5.0_f64 / 15.0).powf(exponent))).abs() < 1e-5);
        assert_eq!((at(0), at(128), at(255)), (0.0, 0.0, 0.0));
    }
}

/// A model of numbers by its definition: a linear map, blocks, a linear unit, and the mean square of what is scored.
#[test]
fn numbers_go_through_linear_maps_to_a_mean_squared_error() {
    for (name, variant) in ["0to1", "1to0", "1to1", "lstm", "llama"].map(|name| {
        let set = ["model.embedding_dim=16".to_owned()];
        (name, xlstm_manifests::recipe::load(&format!("figure2-nearest-small/{name}"), &set).unwrap().model)
    }) {
        let model = Model::new(&variant, placement(), 5).unwrap();
        assert_eq!(model.parameter_count(), variant.size().parameters, "{name}");
        tch::manual_seed(9);
        let options = (Kind::Float, Device::Cpu);
        let inputs = Tensor::randn([2, 6, 3], options);
        let targets = Tensor::rand([2, 6], options);
        // The first position of both rows and the last of the second are not scored.
        let unscored = [0_i64, 6, 11];
        let places = Tensor::arange(12, (Kind::Int64, Device::Cpu)).reshape([2, 6]);
        let mask = unscored.iter().fold(places.lt(0), |mask, &place| mask.logical_or(&places.eq(place)));
        let targets = targets.masked_fill(&mask, f64::NAN);
        let output = model.loss(&inputs, &targets, None).unwrap();
        let (hidden, _) = model.forward(&inputs, None, None).unwrap();
        let of = |name: &str| {
            let found = model.parameters().iter().find(|parameter| parameter.name == name);
            &found.unwrap_or_else(|| panic!("no {name}")).tensor
        };
        let found = hidden.matmul(&of("lm_head.weight").tr()).squeeze_dim(-1) + of("lm_head.bias");
        let squares = (found - targets.to_kind(Kind::Double)).square().masked_select(&mask.logical_not());
        assert_eq!(squares.numel(), 9);
        assert_close(&output.loss, &squares.mean(Kind::Double));
        let losses = model.sequence_losses(&inputs, &targets, None).unwrap();
        assert_close(&Tensor::from_slice(&losses), &squares.detach());
        assert_eq!(output.count, 9);
        // A gradient for every parameter, finite although NaN stands among the targets.
        xlstm_bridge::autograd::backward(&[&output.loss], &[None], false).unwrap();
        for parameter in model.parameters().iter().filter(|parameter| parameter.trainable) {
            let gradient = parameter.tensor.grad();
            assert!(gradient.defined(), "{name}: {}", parameter.name);
            assert_eq!(i64::try_from(gradient.isfinite().all()).unwrap(), 1, "{name}: {}", parameter.name);
        }
        let weight = of("input_projection.weight");
        assert_eq!(weight.size(), [16, 3]);
        assert!(f64::try_from(weight.grad().abs().sum(Kind::Double)).unwrap() > 0.0);
        // The model comes back from its file, and text cannot be made of it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        export(&model, &path, 6).unwrap();
        let again = import(&path, placement()).unwrap();
        assert_close(&again.loss(&inputs, &targets, None).unwrap().loss, &output.loss.detach());
        let refused = Generation::new(&model, &[vec![0]], Sampling::default()).err().unwrap().to_string();
        assert!(refused.contains("found one of numbers"), "{refused}");
    }
}
