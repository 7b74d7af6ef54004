//! From sums over documents to figures with confidence intervals.
//!
//! Loss and bits per byte are ratios of two sums over documents, `R = Σ yᵢ / Σ xᵢ`. Documents are taken as drawn
//! independently; the variance of the ratio is that of the delta method, `n/(n-1) · Σ (yᵢ - R xᵢ)² / (Σ xᵢ)²`, and the
//! interval `R ± 1.96 √variance`. That of the perplexity is its exponential. Tokens of a document are *not* independent:
//! an interval over tokens would be several times too narrow.

use super::results::{Interval, LARGEST_PERPLEXITY, Position, Statistics};
use crate::evaluation::corpus::{Corpus, positions_of};
use crate::evaluation::score::Scores;

/// Half the width of a 95 % interval, in standard deviations.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// What is known of one document after scoring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DocumentScore {
    /// Index of its set.
    pub set: Option<u32>,
    /// Index of the manifest's input that it came from.
    pub input: u32,
    /// Scored tokens.
    pub tokens: u64,
    /// Their negative log-likelihood in nats.
    pub nll: f64,
    /// Bytes of its text, where all its tokens were scored.
    pub bytes: Option<u64>,
}

/// Each document's parts put together, in stream order.
#[must_use]
pub fn documents(corpus: &Corpus, scores: &Scores) -> Vec<DocumentScore> {
    let mut documents: Vec<DocumentScore> = corpus
        .documents
        .iter()
        .map(|info| DocumentScore { set: info.set, input: info.input, tokens: 0, nll: 0.0, bytes: None })
        .collect();
    for (part, nll) in corpus.parts.iter().zip(&scores.parts) {
        let document = &mut documents[part.document as usize];
        document.tokens += u64::from(part.tokens);
        document.nll += nll;
    }
    for (document, info) in documents.iter_mut().zip(&corpus.documents) {
        document.bytes = (document.tokens == info.tokens).then_some(info.bytes);
    }
    documents
}

/// `exp(loss)`, at most [`LARGEST_PERPLEXITY`].
#[must_use]
pub fn perplexity(loss: f64) -> f64 {
    loss.exp().min(LARGEST_PERPLEXITY)
}

/// The statistics of these documents; `None` when no token was scored.
#[must_use]
pub fn statistics<'a>(documents: impl Iterator<Item = &'a DocumentScore>) -> Option<Statistics> {
    let scored: Vec<&DocumentScore> = documents.filter(|document| document.tokens > 0).collect();
    let by_token: Vec<(f64, f64)> =
        scored.iter().map(|document| (document.nll, document.tokens as f64)).collect();
    let by_byte: Vec<(f64, f64)> = scored
        .iter()
        .filter_map(|document| Some((document.nll / std::f64::consts::LN_2, document.bytes? as f64)))
        .collect();
    let tokens = scored.iter().map(|document| document.tokens).sum();
    let (loss, loss_interval) = ratio(&by_token)?;
    let bits = ratio(&by_byte);
    Some(Statistics {
        documents: scored.len() as u64,
        tokens,
        bytes: scored.iter().filter_map(|document| document.bytes).sum(),
        nll: scored.iter().map(|document| document.nll).sum(),
        loss,
        loss_interval,
        perplexity: perplexity(loss),
        perplexity_interval: loss_interval.map(exponential),
        bits_per_byte: bits.map(|(ratio, _)| ratio),
        bits_per_byte_interval: bits.and_then(|(_, interval)| interval),
    })
}

/// `exp` of both ends.
pub(super) fn exponential(interval: Interval) -> Interval {
    Interval { low: perplexity(interval.low), high: perplexity(interval.high) }
}

/// `Σ y / Σ x` of pairs `(y, x)` with its interval; `None` when the denominator is zero.
pub(super) fn ratio(pairs: &[(f64, f64)]) -> Option<(f64, Option<Interval>)> {
    let numerator: f64 = pairs.iter().map(|(y, _)| y).sum();
    let denominator: f64 = pairs.iter().map(|(_, x)| x).sum();
    if denominator <= 0.0 {
        return None;
    }
    let ratio = numerator / denominator;
    let count = pairs.len() as f64;
    let interval = (pairs.len() > 1).then(|| {
        let squares: f64 = pairs.iter().map(|(y, x)| (y - ratio * x).powi(2)).sum();
        let half = QUANTILE * (count / (count - 1.0) * squares).sqrt() / denominator;
        Interval { low: ratio - half, high: ratio + half }
    });
    Some((ratio, interval))
}

/// As [`ratio`], of sums over `count` pairs: of `y`, of `x`, and of `y²`, `xy`, `x²`.
pub(super) fn ratio_of_sums(
    count: f64,
    numerator: f64,
    denominator: f64,
    (yy, xy, xx): (f64, f64, f64),
) -> Option<(f64, Option<Interval>)> {
    if denominator <= 0.0 {
        return None;
    }
    let ratio = numerator / denominator;
    let interval = (count > 1.0).then(|| {
        // Below zero only by rounding.
        let squares = (yy - 2.0 * ratio * xy + ratio * ratio * xx).max(0.0);
        let half = QUANTILE * (count / (count - 1.0) * squares).sqrt() / denominator;
        Interval { low: ratio - half, high: ratio + half }
    });
    Some((ratio, interval))
}

/// Figures by position in the context; groups without a target are left out.
#[must_use]
pub fn positions(scores: &Scores) -> Vec<Position> {
    let groups = scores.positions.iter().enumerate().filter(|(_, (_, tokens))| *tokens > 0);
    groups
        .map(|(group, &(nll, tokens))| {
            let range = positions_of(group);
            let perplexity = perplexity(nll / tokens as f64);
            Position { first: range.start, last: range.end - 1, tokens, nll, perplexity }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_a_ratio_worked_by_hand() {
        // R = 9/6; deviations 0.5, -1, 0.5; variance 3/2 · 1.5 / 36 = 0.0625.
        let (ratio, interval) = ratio(&[(2.0, 1.0), (2.0, 2.0), (5.0, 3.0)]).unwrap();
        let interval = interval.unwrap();
        assert!((ratio - 1.5).abs() < 1e-15);
        assert!((interval.high - (1.5 + 1.959_963_984_540_054 * 0.25)).abs() < 1e-12);
        assert!((interval.low + interval.high - 3.0).abs() < 1e-12);
        assert_eq!(super::ratio(&[(2.0, 1.0)]), Some((2.0, None)));
        assert_eq!(super::ratio(&[]), None);
    }

    #[test]
    fn documents_that_were_cut_have_no_bits_per_byte() {
        let document = |nll, tokens, bytes| DocumentScore { set: None, input: 0, tokens, nll, bytes };
        let ln_2 = std::f64::consts::LN_2;
        let documents = [document(8.0 * ln_2, 2, Some(4)), document(100.0, 8, None), document(0.0, 0, None)];
        let found = statistics(documents.iter()).unwrap();
        assert_eq!((found.documents, found.tokens, found.bytes), (2, 10, 4));
        assert!((found.bits_per_byte.unwrap() - 2.0).abs() < 1e-15);
        assert!((found.loss - (8.0 * ln_2 + 100.0) / 10.0).abs() < 1e-12);
        assert!(statistics(documents[2..].iter()).is_none());
        assert_eq!(perplexity(1e6), LARGEST_PERPLEXITY);
    }
}
