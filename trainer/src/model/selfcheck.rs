//! Whether going token by token is the model: logits of a step against a forward pass in float64, and recorded tokens
//! against launched ones.

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cuda::selfcheck::{Check, CheckedTensor};
use xlstm_kernels::cuda::use_only_libtorch;
use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};

use super::{Generation, Model, ModelState, Placement, Sampling, signed};
use crate::error::{Result, TrainError};

const VOCABULARY: u64 = 512;
/// Tokens that are gone one by one.
const STEPS: i64 = 24;
/// What rounding to bf16 and sums in float32 may cost.
const ROUNDING: [f64; 2] = [1.0 / 256.0, 1.0 / 65536.0];

/// Checks small models; `each` is told of every result as it comes.
///
/// # Errors
/// When libtorch or a kernel fails.
pub fn check_generation(device: Device, each: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut take = |check: Check| {
        each(&check);
        checks.push(check);
    };
    for (label, config) in configs() {
        for (batch, prompt) in [(1, 1), (3, 63), (64, 130)] {
            for precision in [Precision::Bfloat16, Precision::Float32] {
                let case = format!("{label}, {}, {batch} after {prompt} tokens", precision.name());
                take(logits_of_steps(case, &config, (device, precision), [batch, prompt])?);
            }
        }
        for precision in [Precision::Bfloat16, Precision::Float32] {
            for temperature in [0.0, 1.0] {
                let case = format!("{label}, {}, temperature {temperature}", precision.name());
                take(recorded_tokens(case, &config, (device, precision), temperature)?);
            }
        }
    }
    Ok(checks)
}

fn configs() -> [(&'static str, ModelConfig); 3] {
    let config = |slstm_at: Vec<u64>, embedding_dim: u64| {
        let mut config = XlstmConfig {
            blocks: 3,
            slstm_at,
            embedding_dim,
            vocabulary_size: VOCABULARY,
            ..XlstmConfig::default()
        };
        (config.mlstm.heads, config.slstm.heads) = (4, 4);
        ModelConfig::from(config)
    };
    [
        ("[1:0], width 128", config(vec![], 128)),
        ("[2:1], width 768", config(vec![1], 768)),
        ("[1:2], width 64", config(vec![0, 2], 64)),
    ]
}

/// Models of the same values, whose gates depend on what they see: at first theirs are zero.
fn model(config: &ModelConfig, placement: Placement) -> Result<Model> {
    let drawn = Model::new(config, Placement::new(Device::Cpu, Precision::Float32, false), 5)?;
    let model = Model::new(config, placement, 5)?;
    tch::manual_seed(9);
    tch::no_grad(|| {
        for (from, to) in drawn.parameters().iter().zip(model.parameters()) {
            let noise = Tensor::randn(from.tensor.size(), (Kind::Float, Device::Cpu)) * 0.05;
            to.tensor.shallow_clone().f_copy_(&(&from.tensor + noise))?;
        }
        Ok(model)
    })
}

fn placement(device: Device, precision: Precision) -> Placement {
    Placement::new(device, precision, false)
}

/// Logits after each of the last tokens: by steps, by libtorch's operations, and in float64 all at once.
fn logits_of_steps(
    case: String,
    config: &ModelConfig,
    (device, precision): (Device, Precision),
    [batch, prompt]: [i64; 2],
) -> Result<Check> {
    let options = (Kind::Int64, device);
    let tokens = Tensor::f_randint(signed(VOCABULARY), [batch, prompt + STEPS], options)?;
    let mut ours = model(config, placement(device, precision))?;
    ours.freeze()?;
    let stepped = |model: &Model| tch::no_grad(|| by_steps(model, &tokens, prompt));
    let (found, again) = (stepped(&ours)?, stepped(&ours)?);
    let plain = model(config, placement(device, precision))?;
    use_only_libtorch(true);
    let plain = stepped(&plain);
    let exact =
        model(config, Placement { kind: Kind::Double, products: None, ..placement(device, precision) });
    let exact = exact.and_then(|exact| {
        tch::no_grad(|| {
            let (hidden, _) = exact.forward(&tokens, None, None)?;
            exact.logits(&hidden.f_narrow(1, prompt, STEPS)?)
        })
    });
    use_only_libtorch(false);
    let (plain, exact) = (plain?, exact?);
    let relative = |tensor: &Tensor| {
        (tensor.to_kind(Kind::Double) - &exact).norm().double_value(&[]) / exact.norm().double_value(&[])
    };
    let rounding = ROUNDING[usize::from(precision != Precision::Bfloat16)];
    let logits = CheckedTensor {
        name: "logits".into(),
        error: relative(&found),
        libtorch: relative(&plain),
        rounding,
    };
    Ok(Check { kernel: "step", case, tensors: vec![logits], repeatable: found.equal(&again) })
}

/// Logits `(B, STEPS, V)` of all tokens after the prompt, each prompt read for itself.
fn by_steps(model: &Model, tokens: &Tensor, prompt: i64) -> Result<Tensor> {
    let mut states = Vec::new();
    for row in 0..tokens.size()[0] {
        let (_, state) = model.forward(&tokens.f_narrow(0, row, 1)?.f_narrow(1, 0, prompt)?, None, None)?;
        states.push(state);
    }
    let state: ModelState = model.join(&states)?;
    let step = model.step_state(state)?;
    let mut logits = Vec::new();
    for at in prompt..prompt + STEPS {
        logits.push(model.step(&tokens.f_narrow(1, at, 1)?, &step)?);
    }
    Ok(Tensor::f_stack(&logits, 1)?)
}

/// Tokens and states of a recorded generation against one that is launched operation by operation: the same bits.
fn recorded_tokens(
    case: String,
    config: &ModelConfig,
    (device, precision): (Device, Precision),
    temperature: f64,
) -> Result<Check> {
    let mut model = model(config, placement(device, precision))?;
    model.freeze()?;
    let prompts = vec![vec![1, 2, 3], vec![7; 70], (0..129).collect()];
    let sampling = Sampling { temperature, top_k: 0, top_p: 0.95, seed: 3 };
    let generate = |recorded: bool| -> Result<(Tensor, Vec<Tensor>)> {
        let mut generation = Generation::new(&model, &prompts, sampling)?;
        if !recorded {
            generation = generation.launched();
        }
        let mut tokens = Vec::new();
        for _ in 0..2 * STEPS {
            tokens.extend(generation.next_tokens()?);
        }
        if recorded && !generation.is_recorded() {
            return Err(TrainError::internal(format!("tokens are {}", generation.manner())));
        }
        let state = generation.state().tensors();
        Ok((Tensor::from_slice(&tokens), state.into_iter().map(|(_, tensor)| tensor.copy()).collect()))
    };
    let ((found, found_state), (expected, expected_state)) = (generate(true)?, generate(false)?);
    let same_state = found_state.iter().zip(&expected_state).all(|(a, b)| a.equal(b));
    let different = i64::try_from(found.ne_tensor(&expected).sum(Kind::Int64))?;
    let share = different as f64 / found.numel() as f64;
    let tokens = CheckedTensor { name: "tokens".into(), error: share, libtorch: 0.0, rounding: 0.0 };
    Ok(Check { kernel: "recorded token", case, tensors: vec![tokens], repeatable: same_state })
}
