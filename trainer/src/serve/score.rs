//! Log-likelihoods of token sequences under a model.
//!
//! Shapes: B sequences, T tokens, C width, V vocabulary.
#![expect(non_snake_case, reason = "tensor names end in their shape")]

use tch::{Kind, Tensor};

use crate::error::{Result, TrainError};
use crate::model::{Model, PIECE};

/// Positions whose logits exist at a time: at 50,304 tokens, 100 MB.
const POSITIONS: i64 = 512;
/// Logits that exist at a time, where the vocabulary is larger.
const LOGITS: i64 = 1 << 26;

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
            for (row, (ids, score)) in sequences.iter().zip(&mut scores).enumerate() {
                score_piece(model, &hidden_BTC.f_get(signed(row))?, ids, start, likely, score)?;
            }
        }
        Ok(scores)
    })
}

/// Adds what hidden values of the places from `piece` on say of the tokens after them.
fn score_piece(
    model: &Model,
    hidden_TC: &Tensor,
    ids: &[i64],
    piece: usize,
    likely: usize,
    score: &mut Score,
) -> Result<()> {
    let vocabulary = signed(usize::try_from(model.config().vocabulary_size()).unwrap_or(1));
    let likely = signed(likely.max(1)).min(vocabulary);
    let positions = (LOGITS / vocabulary).clamp(1, POSITIONS);
    let length = signed(ids.len().saturating_sub(piece)).min(hidden_TC.size()[0]);
    let mut start = 0;
    while start < length {
        let size = positions.min(length - start);
        let logits_TV = model.logits(&hidden_TC.f_narrow(0, start, size)?)?.f_to_kind(Kind::Float)?;
        let logs_TV = logits_TV.f_log_softmax(-1, Kind::Float)?;
        // By logits: rounding makes equal logarithms of unequal logits.
        let (_, indices) = logits_TV.f_topk(likely, -1, true, true)?;
        let values = logs_TV.f_gather(-1, &indices, false)?;
        let best_T1 = logits_TV.f_argmax(-1, true)?;
        let best_log_T1 = logs_TV.f_gather(-1, &best_T1, false)?;
        score.best.extend(numbers::<i64>(&best_T1)?);
        score.best_log.extend(numbers::<f32>(&best_log_T1)?);
        let (values, indices) = (numbers::<f32>(&values)?, numbers::<i64>(&indices)?);
        let width = usize::try_from(likely).unwrap_or(1);
        for (values, indices) in values.chunks(width).zip(indices.chunks(width)) {
            score.likely.push(indices.iter().copied().zip(values.iter().copied()).collect());
        }
        // The place at t predicts the token at t + 1; after the last one nothing follows.
        let first = piece + usize::try_from(start).unwrap_or(0);
        let targets: Vec<i64> =
            ids.iter().skip(first + 1).take(usize::try_from(size).unwrap_or(0)).copied().collect();
        if !targets.is_empty() {
            let targets_T1 = Tensor::f_from_slice(&targets)?.f_unsqueeze(1)?.f_to_device(logs_TV.device())?;
            let picked = logs_TV.f_narrow(0, 0, signed(targets.len()))?.f_gather(1, &targets_T1, false)?;
            score.tokens.extend(numbers::<f32>(&picked)?);
        }
        start += size;
    }
    Ok(())
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
