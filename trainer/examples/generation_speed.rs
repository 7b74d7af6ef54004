//! Speed of generation at batch 1 on a CPU beside what memory allows, in turn.
//!
//! `generation_speed RECIPE TOKENS PAIRS` prints one JSON line for each pair: bytes a second that all threads together read of
//! a gigabyte, as a sum; then tokens a second, greedily, of a model with drawn parameters, by the clock and by processor time of all
//! threads. A token reads every parameter but the embedding's other rows, and reads and writes the state: the share is the bytes of
//! both times the tokens a second, over the bytes a second.

use std::time::Instant;

use xlstm_bridge::runtime;
use xlstm_manifests::recipe::Precision;
use xlstm_trainer::command_line::print;
use xlstm_trainer::model::{Generation, Model, Placement, Sampling};

/// What is read to know the memory's speed: more than any cache.
const READ_BYTES: usize = 1 << 30;
/// Sums side by side, so that the compiler takes vectors.
const LANES: usize = 64;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, tokens, pairs] = arguments.as_slice() else {
        anyhow::bail!("expected RECIPE TOKENS PAIRS");
    };
    let (tokens, pairs): (usize, usize) = (tokens.parse()?, pairs.parse()?);
    let threads = runtime::initialize(None)?.threads;
    let recipe = xlstm_manifests::recipe::load(recipe, &[])?;
    let mut model =
        Model::new(&recipe.model, Placement::new(tch::Device::Cpu, Precision::Float32, false), 0)?;
    model.freeze()?;
    let memory = vec![1.0_f32; READ_BYTES / 4];
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut generation = Generation::new(&model, &[vec![1, 2, 3]], greedy)?;
    let numbers = |tensor: &tch::Tensor| tensor.numel() as u64 * 4;
    let weights: u64 = model.parameters().iter().map(|parameter| numbers(&parameter.tensor)).sum();
    let embedding = recipe.model.vocabulary_size() * recipe.model.embedding_dim() * 4;
    let tied = weights < 2 * embedding;
    let weights = if tied { weights } else { weights - embedding };
    let state: u64 = generation.state().tensors().iter().map(|(_, tensor)| numbers(tensor)).sum();
    for pair in 0..=pairs {
        let bytes_per_second = read(&memory, threads);
        let (begin, processor) = (Instant::now(), processor_seconds()?);
        for _ in 0..tokens {
            generation.next_tokens()?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let processor = processor_seconds()? - processor;
        let rate = tokens as f64 / seconds;
        let bytes = (weights + 2 * state) as f64;
        // The first pair warms up threads and memory.
        if pair > 0 {
            let line = serde_json::json!({
                "recipe": recipe.name, "threads": threads, "pair": pair, "weight_bytes": weights, "state_bytes": state,
                "read_gigabytes_per_second": bytes_per_second / 1e9, "tokens_per_second": rate,
                "processor_seconds_per_token": processor / tokens as f64,
                "share_of_memory_speed": bytes * rate / bytes_per_second,
            });
            print(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// Bytes a second, the best of three.
fn read(memory: &[f32], threads: usize) -> f64 {
    let part = memory.len().div_ceil(threads.max(1));
    let once = || {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(part) {
                scope.spawn(|| {
                    let mut sums = [0.0_f32; LANES];
                    for chunk in part.chunks_exact(LANES) {
                        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
                    }
                    std::hint::black_box(sums);
                });
            }
        });
        std::mem::size_of_val(memory) as f64 / begin.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

/// Processor time of this process so far, all threads.
fn processor_seconds() -> anyhow::Result<f64> {
    let text = fs_err::read_to_string("/proc/self/stat")?;
    // The name before may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (user, system) =
        ticks(11).zip(ticks(12)).ok_or_else(|| anyhow::anyhow!("/proc/self/stat is not as expected"))?;
    // Ticks of a hundredth on Linux, by convention of its interface to programs.
    Ok((user + system) / 100.0)
}
