//! Log-likelihoods of token sequences under a model.
//!
//! Shapes: B sequences, T tokens, C width, V vocabulary.
#![expect(non_snake_case, reason = "tensor names end in their shape")]

use tch::{Kind, Tensor};

use crate::error::{Result, TrainError};
use crate::model::{Model, PIECE};

/// Positions whose logits exist at a time: at 50,304 tokens, 100 MB.
const POSITIONS: usize = 512;
/// Logits that exist at a time, where the vocabulary is larger.
const LOGITS: usize = 1 << 26;

/// What the model makes of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// Log-probability (nats) of each token but the first, given all before it.
    pub tokens: Vec<f32>,
    /// The most likely tokens at each place from the second on, and after the last: id and log-probability, best first.
    pub likely: Vec<Vec<(i64, f32)>>,
    /// The most likely token at each of these places; of several, the one with the smallest id, as in generation.
    pub best: Vec<i64>,
    /// Log-probability of each of them.
    pub best_log: Vec<f32>,
}

/// Tokens of a forward pass, padding counted: what a request takes in memory beside its states does not grow with it.
const TOKENS: usize = 2 * PIECE;

/// Scores sequences, several at a time, padded at their ends (a causal model does not see what comes later), with the
/// `likely` most likely tokens at each place (at least 1). A sequence longer than a piece goes on from its state.
///
/// # Errors
/// When libtorch fails; [`TrainError::GivenUp`] when `wanted`, which is asked before each piece, says no.
pub fn score(
    model: &Model,
    sequences: &[Vec<i64>],
    likely: usize,
    wanted: &dyn Fn() -> bool,
) -> Result<Vec<Score>> {
    let mut scores = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while let Some(first) = rest.first() {
        // As many as fit with their padding, and at least one.
        let (mut count, mut longest) = (1, first.len());
        while let Some(next) = rest.get(count) {
            let padded = longest.max(next.len());
            if padded * (count + 1) > TOKENS {
                break;
            }
            (count, longest) = (count + 1, padded);
        }
        let (together, later) = rest.split_at(count);
        scores.extend(score_together(model, together, longest, likely, wanted)?);
        rest = later;
    }
    Ok(scores)
}

fn score_together(
    model: &Model,
    sequences: &[Vec<i64>],
    longest: usize,
    likely: usize,
    wanted: &dyn Fn() -> bool,
) -> Result<Vec<Score>> {
    let mut scores: Vec<Score> = sequences.iter().map(|_| Score::default()).collect();
    tch::no_grad(|| {
        let mut state = None;
        for start in (0..longest).step_by(PIECE) {
            if !wanted() {
                return Err(TrainError::GivenUp);
            }
            let end = (start + PIECE).min(longest);
            let padded: Vec<i64> = sequences
                .iter()
                .flat_map(|ids| (start..end).map(|at| ids.get(at).copied().unwrap_or(0)))
                .collect();
            let shape = [signed(sequences.len()), signed(end - start)];
            let tokens_BT =
                Tensor::f_from_slice(&padded)?.f_view(shape)?.f_to_device(model.placement().device)?;
            let (hidden_BTC, next) = model.forward(&tokens_BT, state.as_ref(), None)?;
            state = (end < longest).then_some(next);
            score_piece(model, &hidden_BTC, sequences, start, likely, &mut scores)?;
        }
        Ok(scores)
    })
}

/// Adds what hidden values `(B, T, C)` of the places from `piece` on say of the tokens after them. The places of all sequences are
/// projected together, without the padding: what the product does with the weights first, it does once.
fn score_piece(
    model: &Model,
    hidden_BTC: &Tensor,
    sequences: &[Vec<i64>],
    piece: usize,
    likely: usize,
    scores: &mut [Score],
) -> Result<()> {
    let time = usize::try_from(hidden_BTC.size()[1]).unwrap_or(0);
    let own = |ids: &Vec<i64>| ids.len().saturating_sub(piece).min(time);
    // Sequence and place in the piece.
    let places: Vec<(usize, usize)> =
        sequences.iter().enumerate().flat_map(|(row, ids)| (0..own(ids)).map(move |at| (row, at))).collect();
    let index: Vec<i64> = places.iter().map(|&(row, at)| signed(row * time + at)).collect();
    let device = model.placement().device;
    let hidden_NC = hidden_BTC.f_reshape([-1, *hidden_BTC.size().last().unwrap_or(&0)])?;
    let vocabulary = usize::try_from(model.config().vocabulary_size()).unwrap_or(1);
    let likely = likely.clamp(1, vocabulary);
    let most = (LOGITS / vocabulary).clamp(1, POSITIONS);
    // Parts of one size, as few as can be.
    let size = places.len().div_ceil(places.len().div_ceil(most).max(1)).max(1);
    for (places, index) in places.chunks(size).zip(index.chunks(size)) {
        let hidden_MC = hidden_NC.f_index_select(0, &Tensor::f_from_slice(index)?.f_to_device(device)?)?;
        // The place at t predicts the token at t + 1; after the last one nothing follows.
        let next = |&(row, at): &(usize, usize)| sequences[row].get(piece + at + 1).copied();
        let targets: Vec<i64> = places.iter().map(|place| next(place).unwrap_or(0)).collect();
        let targets_M1 = Tensor::f_from_slice(&targets)?.f_unsqueeze(1)?.f_to_device(device)?;
        let found = Likeliest::of(&model.logits(&hidden_MC)?.f_to_kind(Kind::Float)?, &targets_M1, likely)?;
        for (at, place) in places.iter().enumerate() {
            let score = &mut scores[place.0];
            score.best.push(found.best[at]);
            score.best_log.push(found.best_log[at]);
            let some = at * likely..(at + 1) * likely;
            score.likely.push(
                found.ids[some.clone()].iter().copied().zip(found.logs[some].iter().copied()).collect(),
            );
            if next(place).is_some() {
                score.tokens.push(found.targets[at]);
            }
        }
    }
    Ok(())
}

/// What some rows of logits say.
struct Likeliest {
    /// The first of the largest of each row, and its logarithm.
    best: Vec<i64>,
    best_log: Vec<f32>,
    /// So many of the largest of each row, row by row.
    ids: Vec<i64>,
    logs: Vec<f32>,
    /// The logarithm of each row's target.
    targets: Vec<f32>,
}

impl Likeliest {
    fn of(logits_MV: &Tensor, targets_M1: &Tensor, likely: usize) -> Result<Self> {
        let logs_MV = logits_MV.f_log_softmax(-1, Kind::Float)?;
        let best_M1 = first_of_the_largest(logits_MV)?;
        let best_log_M1 = logs_MV.f_gather(-1, &best_M1, false)?;
        let (best, best_log) = (numbers::<i64>(&best_M1)?, numbers::<f32>(&best_log_M1)?);
        let (ids, logs) = if likely == 1 {
            (best.clone(), best_log.clone())
        } else {
            // By logits: rounding makes equal logarithms of unequal logits.
            let (_, ids_MK) = logits_MV.f_topk(signed(likely), -1, true, true)?;
            (numbers(&ids_MK)?, numbers(&logs_MV.f_gather(-1, &ids_MK, false)?)?)
        };
        let targets = numbers(&logs_MV.f_gather(-1, targets_M1, false)?)?;
        Ok(Self { best, best_log, ids, logs, targets })
    }
}

/// Numbers of a run, of which the largest is looked for first.
const RUN: i64 = 64;

/// The place `(M, 1)` of the largest number of each row, of several the first. Over runs first: libtorch has vector operations for
/// the largest number, and none for its place.
fn first_of_the_largest(logits_MV: &Tensor) -> Result<Tensor> {
    let (rows, vocabulary) = (logits_MV.size()[0], logits_MV.size()[1]);
    if vocabulary % RUN != 0 || logits_MV.device() != tch::Device::Cpu {
        return Ok(logits_MV.f_argmax(-1, true)?);
    }
    let runs_MRK = logits_MV.f_view([rows, vocabulary / RUN, RUN])?;
    let run_M1 = runs_MRK.f_amax([-1], false)?.f_argmax(-1, true)?;
    let index_M1K = run_M1.f_unsqueeze(2)?.f_expand([rows, 1, RUN], false)?;
    let place_M1 = runs_MRK.f_gather(1, &index_M1K, false)?.f_view([rows, RUN])?.f_argmax(-1, true)?;
    Ok(run_M1.f_mul_scalar(RUN)?.f_add(&place_M1)?)
}

/// All numbers of a tensor, row by row.
fn numbers<T>(tensor: &Tensor) -> Result<Vec<T>>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    Ok(Vec::<T>::try_from(tensor.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?)
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_found_in_runs() {
        tch::manual_seed(3);
        for vocabulary in [64, 640, 100] {
            let random = Tensor::randn([50, vocabulary], (Kind::Float, tch::Device::Cpu));
            // Rounded, so that there are ties; and the largest at either end.
            let rounded = (&random * 4.0).round();
            let (first, last) = (random.copy(), random.copy());
            let _ = first.narrow(1, 0, 1).fill_(9.0);
            let _ = last.narrow(1, vocabulary - 1, 1).fill_(9.0);
            for logits_MV in [random, rounded, first, last] {
                let rows = logits_MV.size()[0];
                let found = numbers::<i64>(&first_of_the_largest(&logits_MV).unwrap()).unwrap();
                for row in 0..rows {
                    let values = numbers::<f32>(&logits_MV.get(row)).unwrap();
                    let largest = values.iter().copied().fold(f32::MIN, f32::max);
                    let first = values.iter().position(|&value| value == largest).unwrap();
                    assert_eq!(found[usize::try_from(row).unwrap()], signed(first), "{vocabulary}");
                }
            }
        }
    }
}
