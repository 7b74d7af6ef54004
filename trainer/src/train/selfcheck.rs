//! Whether recorded steps are the steps that they stand for: the same losses, norms and parameters, to the last bit.

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cuda::selfcheck::{Check, CheckedTensor};
use xlstm_manifests::recipe::{ModelConfig, Optimizer, Precision, Recipe, XlstmConfig};

use super::recorded::Recording;
use super::step::{Launched, Numbers};
use crate::error::{Result, TrainError};
use crate::loader::MicroBatch;
use crate::model::{IGNORE_TARGET, Model, Placement};
use crate::optimizer::{AdamW, UpdateNumbers};

/// Steps of each way; the first ones are launched one by one in both.
const STEPS: u64 = 12;
const LEARNING_RATE: f64 = 1e-2;
const CLIP: f64 = 0.5;
const SEQUENCES: usize = 16;
const CONTEXT: usize = 40;
const VOCABULARY: u64 = 96;

/// Trains small models both ways; `each` is told of every result as it comes.
///
/// # Errors
/// When a step cannot be recorded, or libtorch fails.
pub fn check_recorded_steps(device: Device, each: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (case, slstm_at) in [("[0:1]", vec![0, 1]), ("[1:0]", vec![]), ("[1:1]", vec![1])] {
        for precision in [Precision::Float32, Precision::Bfloat16] {
            for resets in [false, true] {
                let mut config = XlstmConfig {
                    blocks: 2,
                    slstm_at: slstm_at.clone(),
                    embedding_dim: 128,
                    vocabulary_size: VOCABULARY,
                    ..XlstmConfig::default()
                };
                (config.mlstm.heads, config.slstm.heads) = (2, 2);
                let model = ModelConfig::from(config);
                let ends = if resets { ", documents" } else { "" };
                let case = format!("{case}, {}{ends}", precision.name());
                let run = |recorded| train(&model, (device, precision), resets, recorded);
                let check = compare(case, run(false)?, run(true)?);
                each(&check);
                checks.push(check);
            }
        }
    }
    Ok(checks)
}

/// What training came to: loss and norm of each step, and all parameters.
struct Trained {
    numbers: Vec<f64>,
    parameters: Vec<Tensor>,
}

fn compare(case: String, eager: Trained, recorded: Trained) -> Check {
    let numbers = (Tensor::from_slice(&recorded.numbers), Tensor::from_slice(&eager.numbers));
    let flat = |tensors: &[Tensor]| {
        let all: Vec<Tensor> = tensors.iter().map(|tensor| tensor.detach().view([-1])).collect();
        Tensor::cat(&all, 0).to_kind(Kind::Double)
    };
    let parameters = (flat(&recorded.parameters), flat(&eager.parameters));
    let repeatable = numbers.0.equal(&numbers.1) && parameters.0.equal(&parameters.1);
    let checked = |name: &str, (found, expected): &(Tensor, Tensor)| CheckedTensor {
        name: name.into(),
        error: (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]),
        libtorch: 0.0,
        rounding: 0.0,
    };
    let tensors = vec![checked("losses and norms", &numbers), checked("parameters", &parameters)];
    Check { kernel: "recorded step", case, tensors, repeatable }
}

fn train(
    config: &ModelConfig,
    (device, precision): (Device, Precision),
    resets: bool,
    recorded: bool,
) -> Result<Trained> {
    let model = Model::new(config, Placement::new(device, precision, false), 5)?;
    let recipe =
        Recipe { optimizer: Optimizer { clip_norm: CLIP, ..Optimizer::default() }, ..Recipe::default() };
    let mut optimizer = AdamW::new(&model, &recipe.optimizer)?;
    let mut recording = if recorded { Recording::planned(true) } else { Recording::Never(String::new()) };
    let mut numbers = Vec::new();
    let mut take = |found: Numbers| numbers.extend([found.loss, found.gradient_norm]);
    for step in 1..=STEPS {
        let batch = batch(step, resets, model.has_fused_loss());
        if recording.is_due() {
            recording.prepare(&model, &optimizer, &batch, &recipe)?;
            if !recording.fits(&batch) {
                return Err(TrainError::Internal("expected a recorded step for every batch".into()));
            }
            recording
                .launch(&batch, Launched { step, update: step, learning_rate: LEARNING_RATE, tokens: 0 })?;
            optimizer.count_update();
            continue;
        }
        take(eager(&model, &mut optimizer, &batch)?);
        recording.count_eager();
    }
    for (_, found) in recording.take()? {
        take(found);
    }
    let parameters = model.parameters().iter().map(|parameter| parameter.tensor.copy()).collect();
    Ok(Trained { numbers, parameters })
}

fn eager(model: &Model, optimizer: &mut AdamW, batch: &MicroBatch) -> Result<Numbers> {
    let device = model.placement().device;
    let (inputs, targets, resets) = batch.tensors(device)?;
    optimizer.begin_step(false)?;
    let output = model.loss_with_count(&inputs, &targets, resets.as_ref(), batch.target_count())?;
    xlstm_bridge::autograd::backward(&[&output.loss], &[None], false)?;
    let number = |value: f64| Tensor::f_full([], value, (Kind::Float, device));
    let (step, learning_rate) = (number(optimizer.count_update() as f64)?, number(LEARNING_RATE)?);
    let loss = output.loss.detach().f_to_kind(Kind::Double)?;
    let update = UpdateNumbers { step: &step, learning_rate: &learning_rate };
    let norm = optimizer.update_on_gpu(update, &loss, CLIP)?;
    Ok(Numbers { loss: f64::try_from(loss)?, gradient_norm: f64::try_from(norm)? })
}

/// Random tokens, another number of targets in each step unless it is to be `fixed`.
fn batch(step: u64, resets: bool, fixed: bool) -> MicroBatch {
    let mut state = step;
    let mut draw = |below: u64| {
        // A linear congruential generator: any numbers do.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let count = SEQUENCES * CONTEXT;
    let mut ids = || (0..count).map(|_| draw(VOCABULARY) as i64).collect::<Vec<_>>();
    let (inputs, mut targets) = (ids(), ids());
    let mut masked = vec![false; count];
    if !fixed {
        masked.iter_mut().for_each(|masked| *masked = draw(3) == 0);
    }
    for (target, masked) in targets.iter_mut().zip(&masked) {
        if *masked {
            *target = IGNORE_TARGET;
        }
    }
    let resets = if resets { (0..count).map(|_| draw(9) == 0).collect() } else { Vec::new() };
    let tokens = masked.iter().filter(|masked| !**masked).count() as u64;
    MicroBatch { context: CONTEXT, inputs, targets, resets, tokens, ..MicroBatch::default() }
}
