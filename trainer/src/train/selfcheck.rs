//! Whether recorded steps are the steps that they stand for: the same losses, norms and parameters, to the last bit.

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cuda::selfcheck::{Check, CheckedTensor};
use xlstm_manifests::order::StepRow;
use xlstm_manifests::recipe::{ModelConfig, Optimizer, Precision, Recipe, Training, XlstmConfig};
use xlstm_manifests::rows;

use super::recorded::{Recording, Terms};
use super::step::{Launched, Numbers};
use crate::error::{Result, TrainError};
use crate::loader::MicroBatch;
use crate::model::{Dropout, IGNORE_TARGET, Model, Placement, TrainingCall};
use crate::optimizer::{AdamW, UpdateNumbers};

/// Steps of each way; the first ones are launched one by one in both.
const STEPS: u64 = 12;
/// Launched too, between recorded ones.
const LAUNCHED_BETWEEN: u64 = 8;
const LEARNING_RATE: f64 = 1e-2;
const CLIP: f64 = 0.5;
const SEQUENCES: usize = 16;
const CONTEXT: usize = 40;
const VOCABULARY: u64 = 96;
/// Numbers of a position, where inputs are numbers.
const WIDTH: usize = 3;

/// Trains small models both ways; `each` is told of every result as it comes.
///
/// # Errors
/// When a step cannot be recorded, or libtorch fails.
pub fn check_recorded_steps(device: Device, each: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut compared = |case: &Case, name: String| -> Result<()> {
        let terms = Terms { required: true, alone: case.documents };
        let check = compare(name, train(case, device, None)?, train(case, device, Some(terms))?);
        each(&check);
        checks.push(check);
        Ok(())
    };
    for precision in [Precision::Float32, Precision::Bfloat16] {
        for (name, slstm_at) in [("[0:1]", vec![0, 1]), ("[1:0]", vec![]), ("[1:1]", vec![1])] {
            let (slstm_at, name) = (&slstm_at, format!("{name}, {}", precision.name()));
            let case = |documents| Case { slstm_at, precision, documents, numbers: false };
            compared(&case(false), name.clone())?;
            compared(&case(true), format!("{name}, documents, dropout, recorded twice"))?;
        }
        let case = Case { slstm_at: &[1], precision, documents: false, numbers: true };
        compared(&case, format!("[1:1], {}, numbers, dropout", precision.name()))?;
    }
    Ok(checks)
}

/// What is trained.
struct Case<'a> {
    slstm_at: &'a [u64],
    precision: Precision,
    /// With resets at the beginnings of documents, with dropout, and as if there were no memory for another step: freed and
    /// recorded again in between.
    documents: bool,
    /// Inputs and targets are numbers, with dropout: the paper's nearest-neighbor search.
    numbers: bool,
}

impl Case<'_> {
    fn model(&self) -> ModelConfig {
        let mut config = XlstmConfig {
            blocks: 2,
            slstm_at: self.slstm_at.to_vec(),
            embedding_dim: 128,
            vocabulary_size: VOCABULARY,
            ..XlstmConfig::default()
        };
        (config.mlstm.heads, config.slstm.heads) = (2, 2);
        if self.numbers {
            (config.input_width, config.vocabulary_size) = (WIDTH as u64, 1);
        }
        ModelConfig::from(config)
    }

    fn recipe(&self) -> Recipe {
        let dropout = if self.documents || self.numbers { 0.1 } else { 0.0 };
        Recipe {
            optimizer: Optimizer { clip_norm: CLIP, ..Optimizer::default() },
            training: Training { dropout, embedding_dropout: dropout, ..Training::default() },
            ..Recipe::default()
        }
    }
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

fn train(case: &Case<'_>, device: Device, recorded: Option<Terms>) -> Result<Trained> {
    let model = Model::new(&case.model(), Placement::new(device, case.precision, false), 5)?;
    let recipe = case.recipe();
    let mut optimizer = AdamW::new(&model, &recipe.optimizer)?;
    let mut recording = recorded.map_or_else(|| Recording::Never(String::new()), Recording::planned);
    let mut numbers = Vec::new();
    let mut take = |found: Numbers| numbers.extend([found.loss, found.gradient_norm]);
    for step in 1..=STEPS {
        let batch = case.batch(step, model.has_fused_loss());
        if step == LAUNCHED_BETWEEN {
            recording.take()?.into_iter().for_each(|(_, found)| take(found));
            recording.make_room(&optimizer)?;
        } else if recording.is_due() {
            recording.prepare(&model, &optimizer, &batch, &recipe)?;
            if !recording.fits(&batch) {
                return Err(TrainError::Internal("expected a recorded step for every batch".into()));
            }
            recording
                .launch(&batch, Launched { step, update: step, learning_rate: LEARNING_RATE, tokens: 0 })?;
            optimizer.count_update();
            continue;
        }
        take(eager(&model, &mut optimizer, &batch, (step, &recipe))?);
        recording.count_eager();
    }
    for (_, found) in recording.take()? {
        take(found);
    }
    let parameters = model.parameters().iter().map(|parameter| parameter.tensor.copy()).collect();
    Ok(Trained { numbers, parameters })
}

fn eager(
    model: &Model,
    optimizer: &mut AdamW,
    batch: &MicroBatch,
    (step, recipe): (u64, &Recipe),
) -> Result<Numbers> {
    let device = model.placement().device;
    let (inputs, targets, resets) = batch.tensors(device)?;
    optimizer.begin_step(false)?;
    let dropout = Dropout::of_step(&recipe.training, step, &batch.rows, batch.sequences(), device)?;
    let call = TrainingCall { resets_BT: resets.as_ref(), count: batch.target_count(), dropout, z_loss: 0.0 };
    let output = model.training_loss(&inputs, &targets, &call)?;
    xlstm_bridge::autograd::backward(&[&output.minimized], &[None], false)?;
    let number = |value: f64| Tensor::f_full([], value, (Kind::Float, device));
    let (step, learning_rate) = (number(optimizer.count_update() as f64)?, number(LEARNING_RATE)?);
    let loss = output.cross_entropy.f_to_kind(Kind::Double)?;
    let update = UpdateNumbers { step: &step, learning_rate: &learning_rate };
    let norm = optimizer.update_on_gpu(update, &loss, CLIP)?;
    Ok(Numbers { loss: f64::try_from(loss)?, gradient_norm: f64::try_from(norm)? })
}

impl Case<'_> {
    /// Random tokens or numbers, another number of targets in each step unless it is to be `fixed`.
    fn batch(&self, step: u64, fixed: bool) -> MicroBatch {
        let mut state = step;
        let mut draw = |below: u64| {
            // A linear congruential generator: any numbers do.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let count = SEQUENCES * CONTEXT;
        let mut ids = |count| (0..count).map(|_| draw(VOCABULARY)).collect::<Vec<_>>();
        let (inputs, targets) = (ids(if self.numbers { count * WIDTH } else { count }), ids(count));
        let masked: Vec<bool> = (0..count).map(|_| !fixed && draw(3) == 0).collect();
        let resets = if self.documents { (0..count).map(|_| draw(9) == 0).collect() } else { Vec::new() };
        let tokens = masked.iter().filter(|masked| !**masked).count() as u64;
        let rows = (0..SEQUENCES as u64).map(|row| StepRow { epoch: step, row }).collect();
        let batch = MicroBatch { rows, context: CONTEXT, resets, tokens, ..MicroBatch::default() };
        let kept = targets.iter().zip(&masked);
        if self.numbers {
            let number = |id: u64| id as f32 / VOCABULARY as f32;
            let targets = kept.map(|(&id, &masked)| if masked { f32::NAN } else { number(id) }).collect();
            let numbers = rows::Numbers { inputs: inputs.into_iter().map(number).collect(), targets };
            return MicroBatch { numbers, ..batch };
        }
        let targets = kept.map(|(&id, &masked)| if masked { IGNORE_TARGET } else { id as i64 }).collect();
        MicroBatch { inputs: inputs.into_iter().map(|id| id as i64).collect(), targets, ..batch }
    }
}
