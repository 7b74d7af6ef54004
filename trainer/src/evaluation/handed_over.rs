//! Scores of a batch on their way from the rank that computed them to all others, to the last bit.
//!
//! Ranks have sums of float64 alone. The rank that has a score puts it there, all others put zeros. A whole number below 2^53
//! comes through such a sum as it is; a float may not (-0 + 0 is 0), so its bits go as two whole numbers of 32 bits each.

use crate::communicator::Communicator;
use crate::error::{Result, TrainError};
use crate::model::TokenScores;

/// Hands the scores of `targets` tokens, with `top` alternatives each, to every rank: one rank brings them, the others `None`.
///
/// # Errors
/// When a rank is gone, or the scores are not as many as the batch has.
pub(super) fn hand_over(
    scores: Option<TokenScores>,
    (targets, top): (usize, usize),
    communicator: &dyn Communicator,
) -> Result<TokenScores> {
    if let Some(scores) = &scores {
        let lengths = [scores.losses.len(), scores.tokens.len(), scores.token_losses.len()];
        let expected = [targets, targets * top, targets * top];
        if lengths != expected {
            return Err(TrainError::Internal(format!("expected {expected:?} scores, found {lengths:?}")));
        }
    }
    match (communicator.world_size(), scores) {
        (1, Some(scores)) => Ok(scores),
        (_, scores) => {
            let mut values = match &scores {
                Some(scores) => to_values(scores),
                None => vec![0.0; targets * (2 + 3 * top)],
            };
            communicator.sum(&mut values)?;
            Ok(scores.unwrap_or_else(|| from_values(&values, targets, top)))
        }
    }
}

fn to_values(scores: &TokenScores) -> Vec<f64> {
    let halves = |value: &f64| {
        let bits = value.to_bits();
        [(bits >> 32) as f64, (bits & u64::from(u32::MAX)) as f64]
    };
    let tokens = scores.tokens.iter().map(|&token| token as f64);
    scores.losses.iter().chain(&scores.token_losses).flat_map(halves).chain(tokens).collect()
}

fn from_values(values: &[f64], targets: usize, top: usize) -> TokenScores {
    let (floats, tokens) = values.split_at((2 * targets * (1 + top)).min(values.len()));
    let joined = |[high, low]: &[f64; 2]| f64::from_bits((*high as u64) << 32 | *low as u64);
    let mut losses: Vec<f64> = floats.as_chunks::<2>().0.iter().map(joined).collect();
    let token_losses = losses.split_off(targets.min(losses.len()));
    TokenScores { losses, tokens: tokens.iter().map(|&token| token as i64).collect(), token_losses }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_comes_through() {
        let odd = [-0.0, 0.0, f64::MIN_POSITIVE / 8.0, 0.1 + 0.2, f64::MAX, f64::INFINITY, 1e-300, 17.0];
        let scores = TokenScores {
            losses: odd[..2].to_vec(),
            tokens: vec![0, 50_303, 65_535, 7, 1, 2],
            token_losses: odd[2..].to_vec(),
        };
        let mut values = to_values(&scores);
        // As a sum over ranks leaves them.
        values.iter_mut().for_each(|value| *value = 0.0 + *value + 0.0);
        let found = from_values(&values, 2, 3);
        let bits = |scores: &TokenScores| -> Vec<u64> {
            scores.losses.iter().chain(&scores.token_losses).map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits(&found), bits(&scores));
        assert_eq!(found.tokens, scores.tokens);
        assert!(from_values(&[], 0, 3).losses.is_empty());
    }
}
