//! Times whole training steps of a model on the CPU, one for each line on standard input, so that a peer can be timed
//! in turns with them, and tells how much memory they took.
//!
//! Usage: bench_model RECIPE CONTEXT [--batch N] [--threads N] [--set KEY=VALUE]… [--share-memory]
//!
//! `--share-memory` is for a peer that needs the machine's memory to itself: freed memory is given back after each step,
//! and before each step comes another that is not timed, so that what is timed is a step in the midst of training.
//!
//! One sequence (`--batch`: N) of CONTEXT random tokens a step: forward, backward, gradient norm, clipping, AdamW, by the same code as
//! `xlstm-train`. First one JSON object that says what runs where, with the rates of float32 matrix products that this
//! machine reaches now; then, for every line read, the seconds of each part and the largest resident size; at the end
//! the rate again, since other work on the machine may have fallen into the first. Without a peer: `yes | head -3 | bench_model small-cpu 2048`.
#![allow(clippy::print_stdout, reason = "results are data")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::{autograd, runtime};
use xlstm_kernels::linear::linear;
use xlstm_manifests::recipe::{self, ComputePath, MemoryEstimate, ModelSize};
use xlstm_trainer::model::{Model, Placement};
use xlstm_trainer::optimizer::AdamW;

type AnyError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let (mut words, mut names, mut overrides, mut threads, mut share, mut batch) =
        (std::env::args().skip(1), Vec::new(), Vec::new(), None, false, 1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--threads" => threads = words.next().map(|word| word.parse()).transpose()?,
            "--batch" => batch = words.next().ok_or("expected a number after --batch")?.parse()?,
            "--set" => overrides.extend(words.next()),
            "--share-memory" => share = true,
            _ => names.push(word),
        }
    }
    let [name, context] = names.as_slice() else { return Err("expected RECIPE CONTEXT".into()) };
    let context: i64 = context.parse()?;
    overrides.push(format!("training.context_length={context}"));
    let recipe = recipe::load(name, &overrides)?;
    let threads = runtime::initialize(threads)?.threads;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let training = &recipe.training;
    let placement = Placement::new(Device::Cpu, training.precision, training.activation_checkpointing);
    let model = Model::new(&recipe.model, placement, training.initialization_seed())?;
    let mut optimizer = AdamW::new(&model, &recipe.optimizer)?;
    let vocabulary = i64::try_from(recipe.model.vocabulary_size())?;
    let tokens = || Tensor::randint(vocabulary, [batch, context], (Kind::Int64, Device::Cpu));
    let (inputs, targets) = (tokens(), tokens());
    let size = ModelSize::of(&recipe.model);
    println!(
        "{}",
        json!({
            "recipe": recipe.name,
            "overrides": overrides,
            "parameters": size.parameters,
            "operations_per_token": recipe.operations_per_token(),
            "memory_estimate": MemoryEstimate::of(&recipe, context.cast_unsigned(), ComputePath::CpuKernels).total(),
            "threads": threads,
            "instruction_set": xlstm_kernels::cpu::instruction_set(),
            "libtorch": runtime::LIBTORCH_VERSION,
            "product_rate": rate(|a, b| Ok(linear(a, b, None)?))?,
            "product_rate_libtorch": rate(|a, b| Ok(a.f_linear(b, None::<Tensor>)?))?,
        })
    );
    let mut step = || -> Result<Value, AnyError> {
        let begin = Instant::now();
        let loss = model.loss(&inputs, &targets, None)?.loss;
        let forward = begin.elapsed().as_secs_f64();
        optimizer.begin_step(false)?;
        autograd::backward(&[&loss], &[None], false)?;
        let both = begin.elapsed().as_secs_f64();
        let norm = optimizer.gradient_norm()?;
        optimizer.update(recipe.learning_rate(1), (recipe.optimizer.clip_norm / (norm + 1e-6)).min(1.0))?;
        let all = begin.elapsed().as_secs_f64();
        let (loss, memory) = (f64::try_from(loss)?, runtime::memory().peak_resident);
        Ok(json!({"forward": forward, "backward": both - forward, "update": all - both, "loss": loss,
                  "gradient_norm": norm, "peak_resident": memory}))
    };
    for line in std::io::stdin().lock().lines() {
        line?;
        if share {
            step()?;
        }
        println!("{}", step()?);
        std::io::stdout().flush()?;
        if share {
            runtime::release_memory();
        }
    }
    println!("{}", json!({"product_rate": rate(|a, b| Ok(linear(a, b, None)?))?}));
    Ok(())
}

/// Operations a second of `x Wᵀ` with 2048 rows of 1536 and 3072 outputs: the best of five.
fn rate(product: impl Fn(&Tensor, &Tensor) -> Result<Tensor, AnyError>) -> Result<f64, AnyError> {
    let matrix = |rows: i64| Tensor::rand([rows, 1536], (Kind::Float, Device::Cpu));
    let (x, weight) = (matrix(2048), matrix(3072));
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let begin = Instant::now();
        drop(product(&x, &weight)?);
        best = best.max(2.0 * 2048.0 * 1536.0 * 3072.0 / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
