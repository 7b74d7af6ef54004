//! Figures of `xlstm-eval accuracy`: how many stored targets come out first.
//!
//! By length, the positions of an example that count, and by the position at which a target stands: the paper's
//! formal-language tasks ask whether a model goes on beyond the lengths it was trained on. Of a generated task the accuracy
//! is also given scaled, as in Figure 4.

use xlstm_manifests::Manifest;
use xlstm_pipeline::tasks;

use super::results::{
    Accuracy, AccuracyFigures, AccuracyLengths, AccuracyPositions, Interval, ScaledAccuracy,
};
use super::stored::{Counted, Place, Sums, ranges, together_of};

/// The accuracy of a guess, of a split that this program can make again.
pub(super) fn chance(manifest: &Manifest) -> Option<f64> {
    let task = tasks::from_spec(manifest.source.generator.as_ref()?).ok()?;
    let (right, of) = task.random_accuracy();
    Some(f64::from(right) / f64::from(of))
}

/// The figures; `None` where no target was scored.
fn figures(sums: &Sums) -> Option<AccuracyFigures> {
    let (accuracy, interval) = sums.ratio()?;
    Some(AccuracyFigures {
        examples: sums.examples as u64,
        targets: sums.targets as u64,
        correct: sums.value as u64,
        accuracy,
        accuracy_interval: interval
            .map(|Interval { low, high }| Interval { low: low.max(0.0), high: high.min(1.0) }),
        nll: sums.nll,
        loss: sums.nll / sums.targets,
    })
}

pub(super) fn results(counted: &Counted, chance: Option<f64>) -> Option<Accuracy> {
    let total = figures(&together_of(&counted.lengths))?;
    let lengths = ranges(&counted.lengths).filter_map(|(first, last, sums)| {
        Some(AccuracyLengths { first, last, figures: figures(&together_of(sums))? })
    });
    Some(Accuracy {
        total,
        lengths: lengths.collect(),
        positions: positions(&counted.positions),
        scaled: chance.map(|chance| ScaledAccuracy::of(total.accuracy, chance)),
    })
}

fn positions(places: &[Place]) -> Vec<AccuracyPositions> {
    let ranges = ranges(places).filter_map(|(first, last, places)| {
        let sum = |number: usize| places.iter().map(|place| place[number]).sum::<f64>();
        let (targets, correct, nll) = (sum(0), sum(1), sum(2));
        (targets > 0.0).then(|| AccuracyPositions {
            first,
            last,
            targets: targets as u64,
            correct: correct as u64,
            accuracy: correct / targets,
            nll,
        })
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_weigh_alike_and_the_interval_is_over_examples() {
        let mut by_length = vec![Sums::default(); 4];
        by_length[2].add(1, 1.0, 0.5, 1.0);
        by_length[2].add(2, 0.0, 3.0, 0.0);
        by_length[3].add(3, 3.0, 1.0, 1.0);
        let positions = vec![[0.0; 3], [4.0, 1.0, 3.5], [2.0, 2.0, 1.0]];
        let counted = Counted { lengths: by_length, positions, ..Counted::default() };
        let found = results(&counted, Some(0.5)).unwrap();
        let scaled = found.scaled.unwrap();
        assert!((scaled.total - 1.0 / 3.0).abs() < 1e-15 && scaled.chance == 0.5, "{scaled:?}");
        let places: Vec<_> = found.positions.iter().map(|p| (p.first, p.targets, p.correct)).collect();
        assert_eq!(places, [(1, 4, 1), (2, 2, 2)]);
        let total = found.total;
        assert_eq!((total.examples, total.targets, total.correct), (3, 6, 4));
        assert!((total.accuracy - 4.0 / 6.0).abs() < 1e-15 && (total.loss - 0.75).abs() < 1e-15);
        // An interval takes five examples. Of six: R = 1/2; squares of deviations 6/4; t of 5 degrees of freedom 2.570582.
        assert!(total.accuracy_interval.is_none());
        let mut six = vec![Sums::default(); 2];
        (0..6).for_each(|index| six[1].add(1, f64::from(index % 2), 1.0, 0.0));
        let six = Counted { lengths: six, ..Counted::default() };
        let interval = results(&six, None).unwrap().total.accuracy_interval.unwrap();
        let half = 2.570_582 * (6.0 / 5.0 * 1.5 / 36.0_f64).sqrt();
        assert!((interval.high - (0.5 + half).min(1.0)).abs() < 1e-3, "{interval:?}");
        let lengths: Vec<_> = found.lengths.iter().map(|l| (l.first, l.last, l.figures.correct)).collect();
        assert_eq!(lengths, [(2, 2, 1), (3, 3, 3)]);
        let nothing = Counted { lengths: vec![Sums::default()], ..Counted::default() };
        assert!(results(&nothing, None).is_none(), "no figure stands on nothing");
    }
}
