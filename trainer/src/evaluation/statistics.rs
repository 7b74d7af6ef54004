//! From sums over documents to figures with confidence intervals.
//!
//! Loss and bits per byte are ratios of two sums over documents, `R = Σ yᵢ / Σ xᵢ`. Documents are taken as drawn
//! independently. The variance of the ratio is the jackknife's, `(n-1)/n · Σ (R₋ᵢ - R̄)²` with `R₋ᵢ` the ratio without
//! document i and `R̄` their mean, and the interval is `R ± t √variance` with Student's t of n - 1 degrees of freedom: from
//! few documents of very different lengths the normal distribution and the delta method give intervals that are much too
//! narrow. Below [`MIN_DOCUMENTS`] there is none. The interval of the perplexity is the exponential of the loss's. Tokens
//! of a document are *not* independent: an interval over tokens would be several times too narrow.

use super::results::{Interval, LARGEST_PERPLEXITY, Position, Statistics};
use crate::evaluation::corpus::{Corpus, positions_of};
use crate::evaluation::score::Scores;

/// Fewest documents that an interval is computed from.
pub const MIN_DOCUMENTS: usize = 5;

/// Half the width of a 95 % interval of Student's t, in standard deviations, for at least 4 degrees of freedom: the normal
/// quantile and the first four terms of its expansion in 1/ν (Abramowitz and Stegun, 26.7.5); 0.001 too low at most.
fn student_quantile(degrees: f64) -> f64 {
    let z = 1.959_963_984_540_054_f64;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z)
            / 92160.0,
    ];
    let powers = std::iter::successors(Some(degrees), |power| Some(power * degrees));
    z + terms.iter().zip(powers).map(|(term, power)| term / power).sum::<f64>()
}

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
    // A single pair that holds the whole denominator leaves no ratio without it.
    let spread = pairs.len() >= MIN_DOCUMENTS && pairs.iter().all(|(_, x)| *x < denominator);
    let interval = spread.then(|| {
        let without: Vec<f64> = pairs.iter().map(|(y, x)| (numerator - y) / (denominator - x)).collect();
        let mean = without.iter().sum::<f64>() / count;
        let squares: f64 = without.iter().map(|ratio| (ratio - mean).powi(2)).sum();
        let half = student_quantile(count - 1.0) * ((count - 1.0) / count * squares).sqrt();
        Interval { low: ratio - half, high: ratio + half }
    });
    Some((ratio, interval))
}

/// As [`ratio`], with the delta method's variance, of sums over `count` pairs: of `y`, of `x`, and of `y²`, `xy`, `x²`.
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
    let interval = (count >= MIN_DOCUMENTS as f64).then(|| {
        // Below zero only by rounding.
        let squares = (yy - 2.0 * ratio * xy + ratio * ratio * xx).max(0.0);
        let half = student_quantile(count - 1.0) * (count / (count - 1.0) * squares).sqrt() / denominator;
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
    fn the_quantile_is_students() {
        // Tables of the distribution: 2.776445 at 4 degrees of freedom, 2.262157 at 9, 2.042272 at 30, 1.983972 at 100.
        for (degrees, expected) in [(4.0, 2.776_445), (9.0, 2.262_157), (30.0, 2.042_272), (100.0, 1.983_972)]
        {
            let found = student_quantile(degrees);
            assert!((found - expected).abs() < 1e-3, "{degrees}: {found}");
        }
        assert!((student_quantile(1e9) - 1.959_963_98).abs() < 1e-7);
    }

    #[test]
    fn the_interval_is_that_of_a_ratio_worked_by_hand() {
        // Equal denominators: the ratio is the mean of y and the jackknife the usual variance of a mean, here
        // (4 + 1 + 0 + 1 + 4) / 4 / 5 = 0.5; t of 4 degrees of freedom is 2.7764.
        let pairs = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (5.0, 1.0)];
        let (ratio, interval) = ratio(&pairs).unwrap();
        let interval = interval.unwrap();
        assert!((ratio - 3.0).abs() < 1e-12);
        assert!((interval.high - (3.0 + 2.7764 * 0.5_f64.sqrt())).abs() < 1e-3, "{interval:?}");
        assert!((interval.low + interval.high - 6.0).abs() < 1e-12);
        // From four there is none, and none where one document has all the bytes.
        assert!(super::ratio(&pairs[..4]).unwrap().1.is_none());
        let one = [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0), (5.0, 7.0)];
        assert!(super::ratio(&one).unwrap().1.is_none());
        assert_eq!(super::ratio(&[]), None);
    }

    #[test]
    fn intervals_from_few_documents_cover_what_they_promise_better_than_the_normal_ones() {
        // Documents of lognormal lengths with a loss of their own; the true ratio from many of them.
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let mut document = || {
            let (length, loss) = (normal().exp() * 300.0, 4.0 + 0.5 * normal());
            (loss * length, length)
        };
        let many: Vec<(f64, f64)> = (0..100_000).map(|_| document()).collect();
        let truth = ratio(&many).unwrap().0;
        for count in [5, 18, 32, 100] {
            let covered = (0..1000).filter(|_| {
                let drawn: Vec<(f64, f64)> = (0..count).map(|_| document()).collect();
                let interval = ratio(&drawn).unwrap().1.unwrap();
                (interval.low..=interval.high).contains(&truth)
            });
            let covered = covered.count();
            assert!((915..=985).contains(&covered), "{covered} of 1000 at {count} documents");
        }
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
