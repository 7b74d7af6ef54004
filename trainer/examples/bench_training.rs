//! Tokens a second of whole training steps on a GPU: forward, backward, gradient norm, clipping, update.
//!
//! ```text
//! cargo run --release -p xlstm-trainer --example bench_training -- RECIPE[:ROWS] … [--repeats N] [--profile] [--recorded]
//! ```
//! Random tokens in rows of the recipe's context; one micro-batch a step, of ROWS rows or of as many as the plan says
//! fit. `--set` changes the recipe: its precision (bfloat16 unless set), resets at document boundaries (drawn, one token
//! in 500), checkpointing; `--gpu-architecture 8.0` has the kernels of an older GPU. The first two steps are not counted. One JSON line for each recipe: tokens a second (median, least, most),
//! model FLOP/s utilization, peak memory and the plan's. With `--profile`, where one step's time goes, a line for
//! each kernel and for what libtorch runs between two of them. With `--recorded`, a step is one CUDA graph, and 50 of them
//! are timed together.
#![allow(clippy::print_stdout, reason = "its output is data")]

use std::time::Instant;

use serde_json::json;
use tch::{Kind, Tensor};
use xlstm_bridge::graph::Graph;
use xlstm_bridge::{autograd, memory, runtime};
use xlstm_kernels::cuda::{Architecture, Gpu, profile};
use xlstm_manifests::recipe::{self, ComputePath, Precision};
use xlstm_trainer::device::{self, DeviceInfo};
use xlstm_trainer::metrics::peak_operations;
use xlstm_trainer::model::{Model, Need, Placement, TargetCount};
use xlstm_trainer::optimizer::{AdamW, UpdateNumbers};
use xlstm_trainer::train::{memory_estimate, micro_batch_rows};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Replays of a recorded step that are timed together.
const REPLAYS: u32 = 50;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (mut recipes, mut repeats, mut overrides) = (Vec::new(), 5, Vec::new());
    let (mut with_profile, mut recorded) = (false, false);
    let mut architecture = "as the GPU".to_owned();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--repeats" => repeats = arguments.next().ok_or("expected a number after --repeats")?.parse()?,
            "--set" => overrides.push(arguments.next().ok_or("expected KEY=VALUE after --set")?),
            "--profile" => with_profile = true,
            "--recorded" => recorded = true,
            "--gpu-architecture" => {
                let name = arguments.next().ok_or("expected 8.0 or 8.6 after --gpu-architecture")?;
                xlstm_kernels::cuda::force_architecture(Architecture::forced(&name)?);
                architecture = name;
            }
            _ => recipes.push(argument),
        }
    }
    runtime::initialize(None)?;
    let device = device::find("cuda")?;
    for text in recipes {
        let (name, rows) = match text.split_once(':') {
            Some((name, rows)) => (name.to_owned(), Some(rows.parse::<u64>()?)),
            None => (text, None),
        };
        match measure(&device, &name, rows, repeats, (with_profile, recorded), &overrides) {
            Ok(mut line) => {
                line["gpu architecture"] = json!(architecture);
                println!("{line}");
            }
            Err(error) => println!("{}", json!({"recipe": name, "rows": rows, "failed": error.to_string()})),
        }
    }
    Ok(())
}

fn measure(
    device: &DeviceInfo,
    name: &str,
    rows: Option<u64>,
    repeats: usize,
    (with_profile, recorded): (bool, bool),
    overrides: &[String],
) -> Result<serde_json::Value, Failure> {
    let mut recipe = recipe::load(name, overrides)?;
    if !overrides.iter().any(|text| text.starts_with("training.precision")) {
        recipe.training.precision = Precision::Bfloat16;
    }
    let precision = recipe.training.precision;
    runtime::allow_tf32(precision == Precision::Tf32)?;
    let context = recipe.training.context_length;
    // One micro-batch a step.
    recipe.training.tokens_per_step = 0;
    let rows = match rows {
        Some(rows) => rows,
        None => micro_batch_rows(&recipe, 64, context, device)?,
    };
    let checkpointing = recipe.training.activation_checkpointing;
    let model = Model::new(&recipe.model, Placement::new(device.device, precision, checkpointing), 1)?;
    let optimizer = AdamW::new(&model, &recipe.optimizer)?;
    let (shape, options) = ([rows as i64, context as i64], (Kind::Int64, device.device));
    let draw = || Tensor::f_randint(recipe.model.vocabulary_size() as i64, shape, options);
    let (inputs, targets) = (draw()?, draw()?);
    let count = shape[0] * shape[1];
    let with_resets = recipe.training.reset_at_document_boundaries;
    let need = Need { resets: with_resets, ..Need::default() };
    let flags = Tensor::f_rand(shape, (Kind::Float, device.device))?.f_lt(1.0 / 500.0)?;
    let resets = with_resets.then_some(&flags);
    let number = |value: f64| Tensor::f_full([], value, (Kind::Float, device.device));
    let (update, learning_rate) = (number(1.0)?, number(1e-4)?);
    let launch = || -> Result<Tensor, Failure> {
        optimizer.begin_step(false)?;
        let loss = model.loss_with_count(&inputs, &targets, resets, TargetCount::Known(count))?.loss;
        autograd::backward(&[&loss], &[None], false)?;
        let loss = loss.detach().f_to_kind(Kind::Double)?;
        let numbers = UpdateNumbers { step: &update, learning_rate: &learning_rate };
        let _ = optimizer.update_on_gpu(numbers, &loss, 1.0)?;
        Ok(loss)
    };
    let step = || -> Result<f64, Failure> {
        let begin = Instant::now();
        let loss = launch()?;
        tch::Cuda::synchronize(0);
        if !f64::try_from(loss)?.is_finite() {
            return Err("the loss is not finite".into());
        }
        Ok(begin.elapsed().as_secs_f64())
    };
    let first = step()?;
    step()?;
    let mut seconds = Vec::with_capacity(repeats);
    if recorded {
        let (graph, _) = Graph::record(0, launch)?;
        graph.replay()?;
        tch::Cuda::synchronize(0);
        for _ in 0..repeats {
            let begin = Instant::now();
            for _ in 0..REPLAYS {
                graph.replay()?;
            }
            tch::Cuda::synchronize(0);
            seconds.push(begin.elapsed().as_secs_f64() / f64::from(REPLAYS));
        }
    } else {
        for _ in 0..repeats {
            seconds.push(step()?);
        }
    }
    if with_profile {
        profile::start();
        let whole = step()?;
        let gpu = Gpu::of(&model.parameters()[0].tensor)?;
        for share in profile::stop(gpu)? {
            println!(
                "{}",
                json!({"recipe": name, "step ms": whole * 1e3, "part": share.name, "count": share.count,
                       "ms": share.milliseconds})
            );
        }
    }
    seconds.sort_by(f64::total_cmp);
    let peak = memory::device_peak(0, true)?;
    let speed = |seconds: f64| count as f64 / seconds;
    let median = speed(seconds[seconds.len() / 2]);
    let operations = recipe.operations_per_token() as f64;
    Ok(json!({
        "recipe": name,
        "gpu": device.name,
        "rows": rows,
        "context": context,
        "activation checkpointing": checkpointing,
        "precision": format!("{precision:?}"),
        "resets": with_resets,
        "recorded": recorded,
        "kernels of this program": model.compute_path(need)?.path == ComputePath::FusedGpu,
        "tokens a second": median.round(),
        "least, most": [speed(seconds[seconds.len() - 1]).round(), speed(seconds[0]).round()],
        "repeats": repeats,
        "first step s": first,
        "model FLOP/s utilization": peak_operations(&device.name).map(|peak| median * operations / peak),
        "peak GiB": peak.allocated as f64 / f64::from(1 << 30),
        "reserved GiB": peak.reserved as f64 / f64::from(1 << 30),
        "plan GiB": memory_estimate(&recipe, rows * context, device)?.total() as f64 / f64::from(1 << 30),
    }))
}
