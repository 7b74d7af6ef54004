//! Speed of generation (paper, Figure 9): time against generated tokens at batch size 1, tokens a second against batch
//! size. A recurrent model's time is linear in the length and its memory constant: the state is all it remembers.

use std::time::Instant;

use super::results::{BatchSpeed, GenerationTime, Throughput, rate};
use crate::error::{Result, TrainError};
use crate::model::{Generation, Model, Sampling};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThroughputOptions {
    /// Tokens of each prompt.
    pub prefill: usize,
    /// Numbers of generated tokens at which the time is taken, ascending.
    pub lengths: Vec<usize>,
    /// Batch sizes.
    pub batches: Vec<usize>,
    /// Tokens generated for each sequence of a batch.
    pub batch_tokens: usize,
    /// Repetitions of each measurement, of which the median counts.
    pub repetitions: usize,
}

/// Tokens that are generated before anything is measured.
const WARM_UP: usize = 4;

/// Measures; `tell` is told how far it is. The most likely token is always taken, so that all repetitions generate the same.
///
/// # Errors
/// When the options ask for nothing, or libtorch fails (no memory for a batch).
pub fn measure(model: &Model, options: &ThroughputOptions, tell: &mut dyn FnMut(&str)) -> Result<Throughput> {
    let longest = options.lengths.last().copied().unwrap_or(0);
    let ascend = options.lengths.windows(2).all(|pair| pair[0] < pair[1]);
    let counts = [options.prefill, options.batch_tokens, options.repetitions];
    if !ascend || counts.contains(&0) || options.batches.contains(&0) || options.lengths.contains(&0) {
        return Err(TrainError::Usage(format!(
            "expected ascending lengths and counts above zero, found {options:?}"
        )));
    }
    // Once for what is done only once: threads, memory, kernels that are compiled and recorded.
    run(model, 1, options.prefill, &[WARM_UP])?;
    let short = run(model, 1, options.prefill, &[WARM_UP])?;
    let seconds = short[0] / WARM_UP as f64 * (longest * options.repetitions) as f64;
    tell(&format!("batch 1: at most {seconds:.0} s for {} times {longest} tokens", options.repetitions));
    let mut runs = Vec::with_capacity(options.repetitions);
    for _ in 0..options.repetitions {
        runs.push(run(model, 1, options.prefill, &options.lengths)?);
    }
    debug_assert!(runs.iter().all(|times| times.len() == options.lengths.len()) && longest > 0);
    let generation = options.lengths.iter().enumerate().map(|(index, &tokens)| GenerationTime {
        tokens: tokens as u64,
        seconds: median(runs.iter().map(|times| times[index]).collect()),
    });
    let generation = generation.collect();
    let mut batches = Vec::with_capacity(options.batches.len());
    for &batch in &options.batches {
        run(model, batch, options.prefill, &[WARM_UP])?;
        let mut seconds = Vec::with_capacity(options.repetitions);
        for _ in 0..options.repetitions {
            seconds.extend(run(model, batch, options.prefill, &[options.batch_tokens])?);
        }
        let tokens = options.batch_tokens as u64;
        let tokens_per_second =
            rate((batch * options.batch_tokens) as f64, median(seconds)).ok_or_else(|| {
                TrainError::Usage(
                    "expected batches that take some time, found none that did: raise --tokens".into(),
                )
            })?;
        tell(&format!("batch {batch}: {tokens_per_second:.0} tokens/s"));
        batches.push(BatchSpeed { batch: batch as u64, tokens, tokens_per_second });
    }
    Ok(Throughput { prefill: options.prefill as u64, generation, batches })
}

/// Seconds since the prompts were handed over, at each of these numbers of generated tokens.
fn run(model: &Model, batch: usize, prefill: usize, lengths: &[usize]) -> Result<Vec<f64>> {
    let vocabulary = i64::try_from(model.config().vocabulary_size()).unwrap_or(i64::MAX);
    let prompt = |row: usize| (0..prefill).map(|index| (row * 31 + index * 7) as i64 % vocabulary).collect();
    let prompts: Vec<Vec<i64>> = (0..batch).map(prompt).collect();
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let begin = Instant::now();
    let mut generation = Generation::new(model, &prompts, greedy)?;
    let (mut times, mut generated) = (Vec::with_capacity(lengths.len()), 0);
    for &length in lengths {
        while generated < length {
            generation.next_tokens()?;
            generated += 1;
        }
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(times)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
