//! Speed of evaluation beside that of training's forward pass, on the same rows, in turn.
//!
//! `evaluation_speed SPLIT RECIPE ROWS PAIRS` prints one JSON line for each pair: tokens a second of the forward pass
//! of training (loss, graph recorded), of the trainer's validation (loss, no graph), and of `evaluation::score`.

use std::path::Path;
use std::time::Instant;

use xlstm_bridge::runtime;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::recipe::Precision;
use xlstm_manifests::{Dataset, Sha256Digest};
use xlstm_trainer::command_line::print;
use xlstm_trainer::communicator::SingleProcess;
use xlstm_trainer::evaluation::corpus::{Corpus, Cut};
use xlstm_trainer::evaluation::results::Protocol;
use xlstm_trainer::evaluation::score::{ScoreOptions, score};
use xlstm_trainer::loader::{BatchShape, MicroBatch};
use xlstm_trainer::model::{Model, Placement};
use xlstm_trainer::signals::Signals;

/// Rows in a batch of every kind.
const BATCH_ROWS: usize = 4;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [split, recipe, rows, pairs] = arguments.as_slice() else {
        anyhow::bail!("expected SPLIT RECIPE ROWS PAIRS");
    };
    let (rows, pairs): (u64, usize) = (rows.parse()?, pairs.parse()?);
    let threads = runtime::initialize(None)?.threads;
    let recipe = xlstm_manifests::recipe::load(recipe, &[])?;
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    let model = Model::new(&recipe.model, placement, 0)?;
    let dataset = Dataset::open(Path::new(split))?;
    let context = dataset.manifest().packing.row_length as usize;
    let shape = BatchShape { rows: BATCH_ROWS, context, resets: false };
    let cut = Cut { protocol: Protocol::PackedRows, context_length: None, first: Some(rows), resets: false };
    let corpus = Corpus::open(Path::new(split), cut)?;
    let signals = Signals::default();
    for pair in 0..=pairs {
        let forward = forward(&model, &dataset, rows, shape)?;
        let validation = tch::no_grad(|| self::forward(&model, &dataset, rows, shape))?;
        let work = std::env::temp_dir().join(format!("evaluation-speed-{}-{pair}", std::process::id()));
        let plan = Sha256Digest::of(b"speed");
        let options = ScoreOptions { batch_tokens: BATCH_ROWS * context, work: &work, plan };
        let begin = Instant::now();
        let scores = score(&model, &corpus, &options, &SingleProcess, &signals)?;
        let tokens: u64 = corpus.parts.iter().map(|part| u64::from(part.tokens)).sum();
        let evaluation = tokens as f64 / begin.elapsed().as_secs_f64();
        anyhow::ensure!(scores.is_some(), "a signal came");
        fs_err::remove_dir_all(&work)?;
        // The first pair warms up threads, memory and the map of the shards.
        if pair > 0 {
            let line = serde_json::json!({
                "recipe": recipe.name, "rows": rows, "threads": threads, "pair": pair,
                "training_forward": forward, "validation_forward": validation, "evaluation": evaluation,
                "evaluation_over_training_forward": evaluation / forward,
            });
            print(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// Tokens a second of the loss of these rows.
fn forward(model: &Model, dataset: &Dataset, rows: u64, shape: BatchShape) -> anyhow::Result<f64> {
    let rows: Vec<StepRow> = (0..rows).map(|row| StepRow { epoch: 0, row }).collect();
    let begin = Instant::now();
    let mut tokens = 0;
    for rows in rows.chunks(shape.rows) {
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, targets, resets) = batch.tensors(tch::Device::Cpu)?;
        let loss = model.loss(&inputs, &targets, resets.as_ref())?.loss;
        anyhow::ensure!(f64::try_from(loss)?.is_finite(), "the loss is not finite");
        tokens += batch.tokens;
    }
    Ok(tokens as f64 / begin.elapsed().as_secs_f64())
}
