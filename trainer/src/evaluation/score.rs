//! Scoring a corpus: batches by length, each sequence's sums at a place of its own.
//!
//! Sequences are sorted by length and batched up to a number of tokens, so that little is padded; padding stands at the
//! end, where a causal model cannot see it from the targets. Batches go to ranks in turn. While a GPU computes a batch, the
//! next one is read and launched. Token losses are summed in
//! float64 within each part, and everything else is summed after all is there, in document order.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

use std::path::Path;
use std::time::{Duration, Instant};

use tch::Tensor;
use xlstm_manifests::token_counts::FREQUENCY_BUCKETS;
use xlstm_manifests::{Sha256Digest, printable};

use super::corpus::{Corpus, Sequence, SequenceTokens, position_group};
use super::journal::{self, Journal, Scored};
use super::progress::EvaluationProgress;
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::model::{IGNORE_TARGET, Model, PendingLosses};
use crate::signals::Signals;

/// Sequences in a batch at most: a block's state takes as much memory for a short one as for a long one.
pub(super) const MAX_SEQUENCES: usize = 128;

/// How to score.
pub struct ScoreOptions<'a> {
    /// Tokens in a batch at most, padding included (one sequence always fits).
    pub batch_tokens: usize,
    /// Where finished batches are noted.
    pub work: &'a Path,
    /// What the figures belong to: batches of another plan count for nothing.
    pub plan: Sha256Digest,
}

/// Sums of a scored corpus, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of each part.
    pub parts: Vec<f64>,
    /// Of each group of positions, with the number of its targets.
    pub positions: Vec<(f64, u64)>,
    /// Of each bucket of frequency, with the number of its targets; none where the corpus has no buckets.
    pub frequencies: Vec<(f64, u64)>,
    /// Time for all finished batches, of all ranks and sessions.
    pub time: Duration,
}

/// Where each sequence's values lie: its parts, then its groups of positions, then its buckets of frequency, the sum and the
/// number of targets of each.
struct Places {
    starts: Vec<usize>,
}

impl Places {
    fn new(corpus: &Corpus) -> Self {
        let mut starts = vec![0];
        for sequence in &corpus.sequences {
            starts.push(
                starts.last().copied().unwrap_or(0)
                    + sequence.parts.len()
                    + sequence.groups()
                    + bucket_values(corpus),
            );
        }
        Self { starts }
    }

    fn of(&self, sequence: usize) -> std::ops::Range<usize> {
        self.starts[sequence]..self.starts[sequence + 1]
    }
}

/// Values of a sequence by frequency.
fn bucket_values(corpus: &Corpus) -> usize {
    if corpus.buckets.is_some() { 2 * FREQUENCY_BUCKETS } else { 0 }
}

/// Scores every sequence; `None` when a signal came in between (what is finished is noted).
///
/// # Errors
/// When a shard or the journal cannot be used, a figure is not a number, a rank is gone, or libtorch fails.
pub fn score(
    model: &Model,
    corpus: &Corpus,
    options: &ScoreOptions<'_>,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Option<Scores>> {
    let places = Places::new(corpus);
    let mut values = vec![0.0; places.starts.last().copied().unwrap_or(0)];
    let mut done = vec![0.0; corpus.sequences.len()];
    let mut nanoseconds = 0;
    let (rank, world) = (communicator.rank(), communicator.world_size());
    if rank == 0 {
        // The first rank speaks for all: what it found is what every rank takes as done.
        let (scored, time) = journal::read(options.work, options.plan)?;
        nanoseconds = time;
        for one in scored {
            let place = places.starts.get(one.sequence + 1).map(|_| places.of(one.sequence));
            if let Some(place) = place.filter(|place| place.len() == one.values.len()) {
                values[place].copy_from_slice(&one.values);
                done[one.sequence] = 1.0;
            }
        }
    }
    communicator.sum(&mut done)?;
    let batches = batches(corpus, &done, options.batch_tokens);
    let mut journal = Journal::open(options.work, rank, options.plan)?;
    let mut progress = EvaluationProgress::new(corpus, &done, rank == 0);
    let (own_rank, ranks) = (to_usize(rank), to_usize(world).max(1));
    let mut note = |launched: Launched<'_>, since: &mut Instant| -> Result<()> {
        let scored = launched.take(corpus)?;
        let time = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        *since = Instant::now();
        nanoseconds += time;
        journal.append(&scored, time)?;
        for one in scored {
            values[places.of(one.sequence)].copy_from_slice(&one.values);
        }
        Ok(())
    };
    let (mut before, mut since): (Option<Launched<'_>>, _) = (None, Instant::now());
    for round in 0..batches.len().div_ceil(ranks) {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        let stopped = communicator.any_flags(stop)? & flags::STOP != 0;
        let own = batches.get(round * ranks + own_rank).filter(|_| !stopped);
        let launched = own.map(|batch| launch(model, corpus, batch)).transpose()?;
        if let Some(before) = std::mem::replace(&mut before, launched) {
            note(before, &mut since)?;
        }
        if stopped {
            return Ok(None);
        }
        let finished = &batches[round * ranks..((round + 1) * ranks).min(batches.len())];
        progress.add(finished.iter().flatten().map(|&index| &corpus.sequences[index]));
    }
    if let Some(last) = before {
        note(last, &mut since)?;
    }
    progress.finish();
    // Each value is not zero on one rank at most, so this sum is exact.
    communicator.sum(&mut values)?;
    let mut time = [nanoseconds as f64];
    communicator.sum(&mut time)?;
    Ok(Some(collect(corpus, &places, &values, Duration::from_nanos(time[0] as u64))))
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Numbers of the sequences that are not done, longest first, as batches.
fn batches(corpus: &Corpus, done: &[f64], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..corpus.sequences.len()).filter(|&index| done[index] == 0.0).collect();
    // The sort is stable: equal lengths stay in stream order, near each other on disk.
    order.sort_by_key(|&index| std::cmp::Reverse(corpus.sequences[index].length));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for index in order {
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_SEQUENCES && (batch.len() + 1) * longest <= batch_tokens => {
                batch.push(index);
            }
            _ => {
                longest = corpus.sequences[index].length as usize;
                batches.push(vec![index]);
            }
        }
    }
    batches
}

/// Tokens in a batch where nobody says.
pub(super) fn batch_tokens(asked: Option<usize>, device: &DeviceInfo) -> usize {
    asked.unwrap_or(if device.device.is_cuda() { 65536 } else { 8192 })
}

/// Sequences of different lengths as one batch.
pub(super) struct Batch {
    pub(super) inputs_BT: Tensor,
    pub(super) targets_BT: Tensor,
    /// Places of the targets that count, row by row.
    counting_M: Tensor,
    pub(super) resets_BT: Option<Tensor>,
}

/// A batch on its way.
struct Launched<'a> {
    sequences: Vec<(usize, &'a Sequence, SequenceTokens)>,
    losses: PendingLosses,
}

pub(super) fn to_batch(model: &Model, sequences: &[(usize, &Sequence, SequenceTokens)]) -> Result<Batch> {
    let longest = sequences.iter().map(|(_, sequence, _)| sequence.length as usize).max().unwrap_or(0);
    let mut inputs = vec![0_i64; sequences.len() * longest];
    let mut targets = vec![IGNORE_TARGET; sequences.len() * longest];
    let mut resets = vec![false; sequences.len() * longest];
    let mut counting = Vec::with_capacity(targets.len());
    for (row, (_, sequence, tokens)) in sequences.iter().enumerate() {
        let start = row * longest;
        let first = (start + sequence.skipped as usize) as i64;
        counting.extend(first..first + tokens.targets.len() as i64);
        for (place, &id) in inputs[start..].iter_mut().zip(&tokens.inputs) {
            *place = id;
        }
        for (place, &id) in targets[start + sequence.skipped as usize..].iter_mut().zip(&tokens.targets) {
            *place = id;
        }
        for &index in &tokens.resets {
            resets[start + index] = true;
        }
    }
    let device = model.placement().device;
    let shape = [-1, i64::try_from(longest).unwrap_or(i64::MAX)];
    let tensor = |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_view(shape)?.f_to_device(device)?) };
    let any_reset = resets.contains(&true);
    Ok(Batch {
        inputs_BT: tensor(Tensor::f_from_slice(&inputs)?)?,
        targets_BT: tensor(Tensor::f_from_slice(&targets)?)?,
        counting_M: Tensor::f_from_slice(&counting)?.f_to_device(device)?,
        resets_BT: any_reset.then(|| tensor(Tensor::f_from_slice(&resets)?)).transpose()?,
    })
}

fn launch<'a>(model: &Model, corpus: &'a Corpus, batch: &[usize]) -> Result<Launched<'a>> {
    let mut sequences = Vec::with_capacity(batch.len());
    for &index in batch {
        let sequence = &corpus.sequences[index];
        sequences.push((index, sequence, corpus.tokens(sequence)?));
    }
    let Batch { inputs_BT, targets_BT, counting_M, resets_BT } = to_batch(model, &sequences)?;
    let losses = model.launch_losses(&inputs_BT, &targets_BT, &counting_M, resets_BT.as_ref())?;
    Ok(Launched { sequences, losses })
}

impl Launched<'_> {
    /// Waits for the losses and sums them up.
    fn take(self, corpus: &Corpus) -> Result<Vec<Scored>> {
        let losses = self.losses.take()?;
        let mut rest = losses.as_slice();
        let mut scored = Vec::with_capacity(self.sequences.len());
        for (index, sequence, tokens) in &self.sequences {
            let (own, others) = rest.split_at(sequence.targets().min(rest.len()));
            rest = others;
            let mut values = sum_up(corpus, sequence, own)?;
            values.extend(by_frequency(corpus, &tokens.targets, own));
            scored.push(Scored { sequence: *index, values });
        }
        Ok(scored)
    }
}

/// Sums by part, then by group of positions.
fn sum_up(corpus: &Corpus, sequence: &Sequence, losses: &[f64]) -> Result<Vec<f64>> {
    let mut values = Vec::with_capacity(sequence.parts.len() + sequence.groups());
    let mut rest = losses;
    for part in &corpus.parts[sequence.parts.clone()] {
        let (own, others) = rest.split_at((part.tokens as usize).min(rest.len()));
        let sum: f64 = own.iter().sum();
        if !sum.is_finite() {
            return Err(not_finite(corpus, part.document, sum));
        }
        values.push(sum);
        rest = others;
    }
    let first = values.len();
    values.resize(first + sequence.groups(), 0.0);
    for (index, loss) in losses.iter().enumerate() {
        values[first + position_group(sequence.skipped as usize + index)] += loss;
    }
    Ok(values)
}

/// Sum and number of targets of each bucket of frequency.
fn by_frequency(corpus: &Corpus, targets: &[i64], losses: &[f64]) -> Vec<f64> {
    let Some(buckets) = &corpus.buckets else { return Vec::new() };
    let mut values = vec![0.0; bucket_values(corpus)];
    for (&target, loss) in targets.iter().zip(losses) {
        let bucket = usize::try_from(target).ok().and_then(|id| buckets.get(id)).copied().unwrap_or(0);
        let place = 2 * usize::from(bucket);
        values[place] += loss;
        values[place + 1] += 1.0;
    }
    values
}

pub(super) fn not_finite(corpus: &Corpus, document: u32, value: f64) -> TrainError {
    let info = &corpus.documents[document as usize];
    let input = corpus.manifest().inputs.get(info.input as usize);
    let input = input.map_or_else(|| info.input.to_string(), |input| input.path.to_string());
    let input = printable::text(&input);
    TrainError::Overflow { what: format!("document {document} (record {} of `{input}`)", info.record), value }
}

fn collect(corpus: &Corpus, places: &Places, values: &[f64], time: Duration) -> Scores {
    let mut parts = vec![0.0; corpus.parts.len()];
    let groups = corpus.sequences.iter().map(Sequence::groups).max().unwrap_or(0);
    let mut positions = vec![(0.0, 0); groups];
    let mut frequencies = vec![(0.0, 0); bucket_values(corpus) / 2];
    for (index, sequence) in corpus.sequences.iter().enumerate() {
        let (own_parts, rest) = values[places.of(index)].split_at(sequence.parts.len());
        let (own_groups, own_buckets) = rest.split_at(sequence.groups());
        for (sum, own) in frequencies.iter_mut().zip(own_buckets.as_chunks::<2>().0) {
            sum.0 += own[0];
            // Counts of targets are whole numbers.
            sum.1 += own[1] as u64;
        }
        parts[sequence.parts.clone()].copy_from_slice(own_parts);
        for (position, sum) in positions.iter_mut().zip(own_groups) {
            position.0 += sum;
        }
        for position in sequence.skipped..sequence.length {
            positions[position_group(position as usize)].1 += 1;
        }
    }
    Scores { parts, positions, frequencies, time }
}
