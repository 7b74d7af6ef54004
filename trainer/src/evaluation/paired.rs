//! Is the difference between two recipes real? The same documents, scored by models of each, from one or several seeds.
//!
//! The difference of two losses is `D = Σ (aᵢ - bᵢ) / Σ xᵢ` over documents, with `aᵢ` the nats of document i in the mean over
//! the first recipe's seeds. Two things make it uncertain, and each has an interval of its own:
//!
//! - *documents*: others would have been as good. What is paired is the document, so its difficulty, which both recipes
//!   share, cancels. Jackknife and Student's t as in module [`statistics`](super::statistics);
//! - *seeds*: other initial values and another order of the data would have been as good. Welch's interval of the
//!   difference of two means, from two seeds of each on.
//!
//! Together they are one interval, whose variance is the sum of both and whose degrees of freedom are Satterthwaite's. With
//! one seed each nothing is known of seeds: then a difference may be theirs, and [`Verdict::OneSeed`] says so.

use super::results::Interval;
use super::statistics::{half_width, ratio_and_error, student_quantile};

/// The nats of each document, for each seed of a recipe.
pub type Seeds = Vec<Vec<f64>>;

/// A difference of two losses, the first minus the second, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Documents that both scored.
    pub documents: usize,
    /// Seeds of each.
    pub seeds: [usize; 2],
    /// Loss of each, in the mean over its seeds.
    pub losses: [f64; 2],
    /// The first minus the second.
    pub value: f64,
    /// Its 95 % interval over documents; absent where they are too few.
    pub over_documents: Option<Interval>,
    /// Its 95 % interval over seeds; absent below two of each.
    pub over_seeds: Option<Interval>,
    /// Its 95 % interval over both; absent where one of them is.
    pub over_both: Option<Interval>,
}

/// What can be said of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The interval over documents and seeds excludes zero: the first is lower.
    FirstIsLower,
    /// Likewise, the second.
    SecondIsLower,
    /// An interval holds zero.
    CannotBeToldApart,
    /// They differ on these documents, but from one seed of either the seed may be why.
    OneSeed,
    /// There are too few documents for an interval.
    TooFewDocuments,
}

impl Difference {
    /// What can be said of it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let holds_zero = |interval: Interval| interval.low <= 0.0 && interval.high >= 0.0;
        match (self.over_both, self.over_documents) {
            (_, None) => Verdict::TooFewDocuments,
            (Some(both), _) if holds_zero(both) => Verdict::CannotBeToldApart,
            (Some(_), _) if self.value < 0.0 => Verdict::FirstIsLower,
            (Some(_), _) => Verdict::SecondIsLower,
            (None, Some(documents)) if holds_zero(documents) => Verdict::CannotBeToldApart,
            (None, Some(_)) => Verdict::OneSeed,
        }
    }
}

/// The difference between two recipes over documents with these numbers of scored tokens; `None` where no token was scored
/// or a recipe has no seed. All seeds of both have one value for each document.
#[must_use]
pub fn difference(tokens: &[f64], first: &Seeds, second: &Seeds) -> Option<Difference> {
    let means = [mean_of_seeds(first, tokens.len())?, mean_of_seeds(second, tokens.len())?];
    let pairs: Vec<(f64, f64)> =
        tokens.iter().zip(means[0].iter().zip(&means[1])).map(|(&x, (a, b))| (a - b, x)).collect();
    let (value, error) = ratio_and_error(&pairs)?;
    let total: f64 = tokens.iter().sum();
    let squares: f64 = tokens.iter().map(|x| x * x).sum();
    // The width belongs to so many degrees of freedom.
    let documents = half_width(tokens.len(), total, squares).map(|width| Spread {
        variance: error * error,
        degrees: total * total / squares - 1.0,
        width,
    });
    let seeds = over_seeds(total, first, second);
    let around = |spread: Spread| {
        let half = spread.width * spread.variance.sqrt();
        Interval { low: value - half, high: value + half }
    };
    Some(Difference {
        documents: tokens.len(),
        seeds: [first.len(), second.len()],
        losses: means.map(|mean| mean.iter().sum::<f64>() / total),
        value,
        over_documents: documents.map(around),
        over_seeds: seeds.map(around),
        over_both: documents.zip(seeds).map(|(documents, seeds)| around(together(documents, seeds))),
    })
}

/// A variance with its degrees of freedom, and Student's quantile for them.
#[derive(Debug, Clone, Copy)]
struct Spread {
    variance: f64,
    degrees: f64,
    width: f64,
}

/// Of the sum of two independent ones (Satterthwaite).
fn together(one: Spread, other: Spread) -> Spread {
    let variance = one.variance + other.variance;
    let parts = one.variance.powi(2) / one.degrees + other.variance.powi(2) / other.degrees;
    // Without any variance the width decides nothing.
    let degrees = if parts > 0.0 { variance.powi(2) / parts } else { one.degrees };
    Spread { variance, degrees, width: student_quantile(degrees) }
}

/// Of the difference of two means over seeds (Welch).
fn over_seeds(total: f64, first: &Seeds, second: &Seeds) -> Option<Spread> {
    let of = |seeds: &Seeds| {
        let losses: Vec<f64> = seeds.iter().map(|nll| nll.iter().sum::<f64>() / total).collect();
        let count = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / count;
        let squares: f64 = losses.iter().map(|loss| (loss - mean).powi(2)).sum();
        (losses.len() >= 2).then(|| {
            let (variance, degrees) = (squares / (count - 1.0) / count, count - 1.0);
            Spread { variance, degrees, width: student_quantile(degrees) }
        })
    };
    Some(together(of(first)?, of(second)?))
}

fn mean_of_seeds(seeds: &Seeds, documents: usize) -> Option<Vec<f64>> {
    if seeds.is_empty() || seeds.iter().any(|nll| nll.len() != documents) {
        return None;
    }
    let count = seeds.len() as f64;
    Some((0..documents).map(|at| seeds.iter().map(|nll| nll[at]).sum::<f64>() / count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from a seed: uniform, then normal by Box and Muller.
    struct Draws(u64);

    impl Draws {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }

        /// Documents of lognormal lengths whose difficulty both recipes share; recipe and document have a part of their own, so
        /// has each seed, and each seed with each document.
        fn experiment(
            &mut self,
            documents: usize,
            seeds: [usize; 2],
            gap: f64,
            of_seed: f64,
        ) -> Option<Difference> {
            let tokens: Vec<f64> = (0..documents).map(|_| (300.0 * self.normal().exp()).ceil()).collect();
            let hard: Vec<f64> = (0..documents).map(|_| 3.5 + 0.6 * self.normal()).collect();
            let mut recipe = |count: usize, gap: f64| -> Seeds {
                let own: Vec<f64> = (0..documents).map(|_| 0.03 * self.normal()).collect();
                let seeds: Vec<f64> = (0..count).map(|_| of_seed * self.normal()).collect();
                seeds
                    .iter()
                    .map(|seed| {
                        let loss = |at: usize, noise: f64| hard[at] + gap + own[at] + seed + 0.02 * noise;
                        (0..documents).map(|at| tokens[at] * loss(at, self.normal())).collect()
                    })
                    .collect()
            };
            let (first, second) = (recipe(seeds[0], gap), recipe(seeds[1], 0.0));
            difference(&tokens, &first, &second)
        }
    }

    #[test]
    fn intervals_cover_the_true_difference_as_often_as_they_promise() {
        let mut draws = Draws(11);
        for (documents, seeds) in [(60, [3, 3]), (200, [5, 3]), (60, [2, 4])] {
            let gap = -0.05;
            let all = 3000;
            let covered = (0..all).filter(|_| {
                let found = draws.experiment(documents, seeds, gap, 0.02).unwrap().over_both.unwrap();
                (found.low..=found.high).contains(&gap)
            });
            let share = covered.count() as f64 / f64::from(all);
            assert!(
                (0.93..=0.985).contains(&share),
                "{share} with {documents} documents and {seeds:?} seeds"
            );
        }
    }

    #[test]
    fn seeds_alone_are_not_called_a_difference_and_one_seed_is_said() {
        let mut draws = Draws(5);
        let called = (0..1000).filter(|_| {
            let verdict = draws.experiment(80, [3, 3], 0.0, 0.05).unwrap().verdict();
            matches!(verdict, Verdict::FirstIsLower | Verdict::SecondIsLower)
        });
        let called = called.count();
        assert!(called <= 70, "{called} of 1000");
        // Over documents alone most of them would be: that is what one seed each cannot tell.
        let verdicts: Vec<Verdict> =
            (0..200).map(|_| draws.experiment(80, [1, 1], 0.0, 0.05).unwrap().verdict()).collect();
        assert!(verdicts.iter().filter(|&&verdict| verdict == Verdict::OneSeed).count() > 100);
        assert!(
            verdicts.iter().all(|verdict| matches!(verdict, Verdict::OneSeed | Verdict::CannotBeToldApart))
        );
    }

    #[test]
    fn a_difference_worked_by_hand() {
        let tokens = [10.0; 5];
        let one = |values: [f64; 5]| values.map(|value| 10.0 * value).to_vec();
        let first = vec![one([1.0, 2.0, 3.0, 4.0, 5.0]), one([1.2, 2.2, 3.2, 4.2, 5.2])];
        let second = vec![one([2.0, 3.0, 4.0, 5.0, 6.0]), one([2.0, 3.0, 4.0, 5.0, 6.0])];
        let found = difference(&tokens, &first, &second).unwrap();
        assert!((found.value + 0.9).abs() < 1e-12 && (found.losses[0] - 3.1).abs() < 1e-12);
        // Every document has the same difference; the seeds have 3.0, 3.2 and 4.0, 4.0: variance 0.02/2, Welch's degrees 1.
        let documents = found.over_documents.unwrap();
        assert!((documents.high - documents.low).abs() < 1e-9, "{documents:?}");
        let seeds = found.over_seeds.unwrap();
        assert!(((seeds.high - seeds.low) / 2.0 - 12.7062 * 0.1).abs() < 1e-3, "{seeds:?}");
        assert_eq!(found.verdict(), Verdict::CannotBeToldApart);
        let few = difference(&tokens[..4], &vec![vec![1.0; 4]], &vec![vec![2.0; 4]]).unwrap();
        assert_eq!(few.verdict(), Verdict::TooFewDocuments);
        assert_eq!(difference(&tokens, &vec![], &second), None);
        assert_eq!(difference(&tokens, &vec![vec![1.0; 3]], &second), None);
    }
}
