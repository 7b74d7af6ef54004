//! From sums over documents to figures with confidence intervals.
//!
//! Loss and bits per byte are ratios of two sums over documents, `R = Σ yᵢ / Σ xᵢ`. Documents are taken as drawn
//! independently. The variance of the ratio is the jackknife's, `(n-1)/n · Σ (R₋ᵢ - R̄)²` with `R₋ᵢ` the ratio without
//! document i and `R̄` their mean, and the interval is `R ± t √variance`. Student's t has `n_eff - 1` degrees of freedom,
//! where `n_eff = (Σ x)² / Σ x²` is Kish's effective number of documents: the number of equally long ones that would tell
//! as much. With `n - 1` instead, a few long documents among many short ones give intervals that are too narrow (88 to
//! 92 % coverage where 95 % are promised, see the test below). Below [`MIN_DOCUMENTS`] documents, or an effective number
//! of [`MIN_EFFECTIVE`], there is no interval. The interval of the perplexity is the exponential of the loss's. Tokens of
//! a document are *not* independent: an interval over tokens would be several times too narrow.

use super::results::{Interval, MAX_PERPLEXITY, Position, Statistics};
use crate::evaluation::corpus::{Corpus, positions_of};
use crate::evaluation::score::Scores;

/// Fewest documents that an interval is computed from.
pub const MIN_DOCUMENTS: usize = 5;

/// Fewest documents, in Kish's sense, that an interval is computed from: below it one or two long ones decide alone.
pub const MIN_EFFECTIVE: f64 = 3.0;

/// Half the width of a 95 % interval of Student's t, in standard deviations, for at least one degree of freedom, whole or
/// not: G. W. Hill, Algorithm 396, Communications of the ACM 13 (1970); 0.04 % too high at two, exact from three on. Below
/// two, where that is not close, between the exact values at one and two; 3 % too high at most.
pub(crate) fn student_quantile(degrees: f64) -> f64 {
    /// At one and two degrees of freedom.
    const SMALL: [f64; 2] = [12.706_204_736, 4.302_652_730];
    if degrees < 2.0 {
        let place = 2.0 / degrees.max(1.0) - 1.0;
        return SMALL[1] * (SMALL[0] / SMALL[1]).powf(place);
    }
    const OUTSIDE: f64 = 0.05;
    const NORMAL: f64 = 1.959_963_984_540_054;
    let a = 1.0 / (degrees - 0.5);
    let b = 48.0 / (a * a);
    let c = ((20_700.0 * a / b - 98.0) * a - 16.0) * a + 96.36;
    let d = ((94.5 / (b + c) - 3.0) / b + 1.0) * (a * std::f64::consts::FRAC_PI_2).sqrt() * degrees;
    let x = d * OUTSIDE;
    let y = x.powf(2.0 / degrees);
    let square = if y > 0.05 + a {
        let x = -NORMAL;
        let y = x * x;
        let c = if degrees < 5.0 { c + 0.3 * (degrees - 4.5) * (x + 0.6) } else { c };
        let c = (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b + c;
        let y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x;
        (a * y * y).exp_m1()
    } else {
        let inner = ((degrees + 6.0) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2.0) * 3.0;
        ((1.0 / inner + 0.5 / (degrees + 4.0)) * y - 1.0) * (degrees + 1.0) / (degrees + 2.0) + 1.0 / y
    };
    (degrees * square).sqrt()
}

/// Half of an interval's width over its standard error, for `count` documents whose lengths have this sum and sum of
/// squares; `None` where they are too few.
pub(super) fn half_width(count: usize, sum: f64, squares: f64) -> Option<f64> {
    let effective = sum * sum / squares;
    let enough = count >= MIN_DOCUMENTS && effective >= MIN_EFFECTIVE;
    enough.then(|| student_quantile(effective - 1.0))
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

/// `exp(loss)`, at most [`MAX_PERPLEXITY`].
#[must_use]
pub fn perplexity(loss: f64) -> f64 {
    loss.exp().min(MAX_PERPLEXITY)
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
    let denominator: f64 = pairs.iter().map(|(_, x)| x).sum();
    let squares: f64 = pairs.iter().map(|(_, x)| x * x).sum();
    let (ratio, error) = ratio_and_error(pairs)?;
    let interval = half_width(pairs.len(), denominator, squares)
        .map(|width| Interval { low: ratio - width * error, high: ratio + width * error });
    Some((ratio, interval))
}

/// `Σ y / Σ x` of pairs `(y, x)` with the jackknife's standard error, which means something only where [`half_width`] has a
/// value; `None` when the denominator is zero.
pub(super) fn ratio_and_error(pairs: &[(f64, f64)]) -> Option<(f64, f64)> {
    let numerator: f64 = pairs.iter().map(|(y, _)| y).sum();
    let denominator: f64 = pairs.iter().map(|(_, x)| x).sum();
    if denominator <= 0.0 {
        return None;
    }
    let count = pairs.len() as f64;
    // A document that is the whole denominator would leave none; the effective number is then 1.
    let without: Vec<f64> = pairs.iter().map(|(y, x)| (numerator - y) / (denominator - x)).collect();
    let mean = without.iter().sum::<f64>() / count;
    let squares: f64 = without.iter().map(|ratio| (ratio - mean).powi(2)).sum();
    Some((numerator / denominator, ((count - 1.0) / count * squares).sqrt()))
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
    let interval = half_width(count as usize, denominator, xx).map(|width| {
        // Below zero only by rounding.
        let squares = (yy - 2.0 * ratio * xy + ratio * ratio * xx).max(0.0);
        let half = width * (count / (count - 1.0) * squares).sqrt() / denominator;
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
        // Tables of the distribution.
        for (degrees, expected) in [
            (1.0, 12.706_205),
            (2.0, 4.302_653),
            (3.0, 3.182_446),
            (4.0, 2.776_445),
            (9.0, 2.262_157),
            (30.0, 2.042_272),
            (100.0, 1.983_972),
        ] {
            let found = student_quantile(degrees);
            assert!((found / expected - 1.0).abs() < 1e-3, "{degrees}: {found}");
        }
        assert!((student_quantile(1e9) - 1.959_963_98).abs() < 1e-7);
        // Between whole numbers it falls steadily; it is asked for any.
        let steps: Vec<f64> = (0..=400).map(|step| student_quantile(1.0 + f64::from(step) / 100.0)).collect();
        assert!(steps.windows(2).all(|pair| pair[0] > pair[1]), "{steps:?}");
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

    /// The share of intervals that cover the true ratio.
    fn coverage(count: usize, spread: f64, slope: f64) -> f64 {
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let mut document = || {
            let size = normal();
            let (length, loss) = ((spread * size).exp() * 300.0, 4.0 + slope * size + 0.5 * normal());
            (loss * length, length)
        };
        let many: Vec<(f64, f64)> = (0..400_000).map(|_| document()).collect();
        let truth = ratio(&many).unwrap().0;
        let intervals = (0..4000).filter_map(|_| {
            let drawn: Vec<(f64, f64)> = (0..count).map(|_| document()).collect();
            ratio(&drawn).unwrap().1
        });
        let (covered, all) = intervals.fold((0.0, 0.0), |(covered, all), interval| {
            let holds = (interval.low..=interval.high).contains(&truth);
            (covered + f64::from(u8::from(holds)), all + 1.0)
        });
        assert!(all > 1000.0, "too few samples have an interval");
        covered / all
    }

    #[test]
    fn intervals_from_few_documents_cover_what_they_promise() {
        // Documents of lognormal lengths with a loss of their own. With n - 1 degrees of freedom these are 0.89 to 0.93.
        for spread in [0.7, 1.0, 1.5] {
            for count in [5, 10, 18, 32, 100] {
                let covered = coverage(count, spread, 0.0);
                assert!((0.93..=0.98).contains(&covered), "{covered} at {count} documents, spread {spread}");
            }
        }
        // What `text::INTERVALS` says of losses that go with length.
        for count in [18, 32, 100] {
            let covered = coverage(count, 1.0, -0.4);
            assert!((0.86..=0.93).contains(&covered), "{covered} at {count} documents");
        }
    }

    #[test]
    fn one_long_document_among_short_ones_gives_no_interval() {
        let mut pairs = vec![(4.0, 1.0); 20];
        assert!(ratio(&pairs).unwrap().1.is_some());
        pairs.push((4e6, 1e6));
        assert!(ratio(&pairs).unwrap().1.is_none());
        let sums = (1.6e13 + 320.0, 4e12 + 80.0, 1e12 + 20.0);
        assert!(ratio_of_sums(21.0, 4e6 + 80.0, 1e6 + 20.0, sums).unwrap().1.is_none());
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
        assert_eq!(perplexity(1e6), MAX_PERPLEXITY);
    }
}
