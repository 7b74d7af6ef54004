//! Log-likelihoods of token sequences under a model.
//!
//! Shapes: B sequences, T tokens, C width, V vocabulary.
#![expect(non_snake_case, reason = "tensor names end in their shape")]

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::model::Model;

/// Positions whose logits exist at a time: at 50,304 tokens, 100 MB.
const POSITIONS: i64 = 512;

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

/// Scores sequences together, padded at their ends (a causal model does not see what comes later), with the `likely`
/// most likely tokens at each place (at least 1).
///
/// # Errors
/// When libtorch fails.
pub fn score(model: &Model, sequences: &[Vec<i64>], likely: usize) -> Result<Vec<Score>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    if longest == 0 {
        return Ok(sequences.iter().map(|_| Score::default()).collect());
    }
    let padded: Vec<i64> = sequences
        .iter()
        .flat_map(|ids| ids.iter().copied().chain(std::iter::repeat_n(0, longest - ids.len())))
        .collect();
    let shape = [signed(sequences.len()), signed(longest)];
    tch::no_grad(|| {
        let tokens_BT =
            Tensor::f_from_slice(&padded)?.f_view(shape)?.f_to_device(model.placement().device)?;
        let (hidden_BTC, _) = model.forward(&tokens_BT, None, None)?;
        let rows = sequences.iter().enumerate();
        rows.map(|(row, ids)| score_one(model, &hidden_BTC.f_get(signed(row))?, ids, likely)).collect()
    })
}

fn score_one(model: &Model, hidden_TC: &Tensor, ids: &[i64], likely: usize) -> Result<Score> {
    let mut score = Score::default();
    let likely =
        signed(likely.max(1)).min(signed(usize::try_from(model.config().vocabulary_size()).unwrap_or(1)));
    let length = signed(ids.len());
    let mut start = 0;
    while start < length {
        let size = POSITIONS.min(length - start);
        let logits_TV = model.logits(&hidden_TC.f_narrow(0, start, size)?)?.f_to_kind(Kind::Float)?;
        let logs_TV = logits_TV.f_log_softmax(-1, Kind::Float)?;
        // By logits: rounding makes equal logarithms of unequal logits.
        let (_, indices) = logits_TV.f_topk(likely, -1, true, true)?;
        let values = logs_TV.f_gather(-1, &indices, false)?;
        let best_T1 = logits_TV.f_argmax(-1, true)?;
        let best_log_T1 = logs_TV.f_gather(-1, &best_T1, false)?;
        score.best.extend(Vec::<i64>::try_from(best_T1.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?);
        score
            .best_log
            .extend(Vec::<f32>::try_from(best_log_T1.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?);
        let values = Vec::<f32>::try_from(values.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?;
        let indices = Vec::<i64>::try_from(indices.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?;
        let width = usize::try_from(likely).unwrap_or(1);
        for (values, indices) in values.chunks(width).zip(indices.chunks(width)) {
            score.likely.push(indices.iter().copied().zip(values.iter().copied()).collect());
        }
        // The place at t predicts the token at t + 1; after the last one nothing follows.
        let targets: Vec<i64> =
            (start..start + size).filter_map(|t| ids.get(usize::try_from(t).ok()? + 1).copied()).collect();
        let targets_T1 = Tensor::f_from_slice(&targets)?.f_unsqueeze(1)?.f_to_device(logs_TV.device())?;
        let picked = logs_TV.f_narrow(0, 0, signed(targets.len()))?.f_gather(1, &targets_T1, false)?;
        score.tokens.extend(Vec::<f32>::try_from(picked.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?);
        start += size;
    }
    Ok(score)
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
