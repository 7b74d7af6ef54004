//! Figures of `xlstm-eval squared-error`: how far off the stored numbers are (paper, Figure 2, left).
//!
//! Pooled over all targets; by length; by the position of a target; and at each example's last target alone, where the
//! whole sequence has been seen. Beside them stands the variance of the targets, which is the squared error of the best
//! constant.

use super::results::{EndError, ErrorFigures, ErrorLengths, ErrorPositions, Interval, SquaredError};
use super::statistics::ratio_of_sums;
use super::stored::{Counted, Sums, ranges, together_of};

fn not_negative(interval: Option<Interval>) -> Option<Interval> {
    interval.map(|Interval { low, high }| Interval { low: low.max(0.0), high })
}

/// The figures; `None` where no target was scored.
fn figures(sums: &Sums) -> Option<ErrorFigures> {
    let (mean_squared_error, interval) = sums.ratio()?;
    Some(ErrorFigures {
        examples: sums.examples as u64,
        targets: sums.targets as u64,
        squared_error: sums.value,
        mean_squared_error,
        interval: not_negative(interval),
    })
}

pub(super) fn results(counted: &Counted) -> Option<SquaredError> {
    let all = together_of(&counted.lengths);
    let total = figures(&all)?;
    let lengths = ranges(&counted.lengths).filter_map(|(first, last, sums)| {
        Some(ErrorLengths { first, last, figures: figures(&together_of(sums))? })
    });
    let positions = ranges(&counted.positions).filter_map(|(first, last, places)| {
        let sum = |number: usize| places.iter().map(|place| place[number]).sum::<f64>();
        let (targets, squared_error) = (sum(0), sum(1));
        (targets > 0.0).then(|| ErrorPositions {
            first,
            last,
            targets: targets as u64,
            squared_error,
            mean_squared_error: squared_error / targets,
        })
    });
    let (mean, squares) = (counted.targets[0] / all.targets, counted.targets[1] / all.targets);
    // Every example has a target, so it has a last one.
    let count = all.examples;
    let (at_end, interval) = ratio_of_sums(count, all.end, count, (all.end_squared, all.end, count))?;
    Some(SquaredError {
        total,
        at_end: EndError {
            examples: all.examples as u64,
            squared_error: all.end,
            mean_squared_error: at_end,
            interval: not_negative(interval),
        },
        target_variance: (squares - mean * mean).max(0.0),
        lengths: lengths.collect(),
        positions: positions.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_weigh_alike_ends_stand_alone_and_the_interval_is_over_examples() {
        let mut lengths = vec![Sums::default(); 4];
        // Errors 0.1 and 0.3 of one example, then one of 0.5, four times.
        lengths[3].add(2, 0.4, 0.0, 0.3);
        (0..4).for_each(|_| lengths[2].add(1, 0.5, 0.0, 0.5));
        let positions = vec![[0.0; 3], [5.0, 2.1, 0.0], [1.0, 0.3, 0.0]];
        // Targets 0, 1, 0, 1, 0, 1.
        let found = results(&Counted { lengths, positions, targets: [3.0, 3.0] }).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
        assert_eq!((found.total.examples, found.total.targets), (5, 6));
        close(found.total.mean_squared_error, 2.4 / 6.0);
        close(found.at_end.mean_squared_error, 2.3 / 5.0);
        close(found.target_variance, 0.25);
        let lengths: Vec<_> = found.lengths.iter().map(|line| (line.first, line.figures.targets)).collect();
        assert_eq!(lengths, [(2, 4), (3, 2)]);
        let places: Vec<_> = found.positions.iter().map(|line| (line.first, line.targets)).collect();
        assert_eq!(places, [(1, 5), (2, 1)]);
        close(found.positions[0].mean_squared_error, 2.1 / 5.0);
        // Student's t of four degrees of freedom at 97.5 %, times the standard error of five ends.
        let deviation = (4.0 * 0.04f64.powi(2) + 0.16f64.powi(2)) / 4.0;
        let interval = found.at_end.interval.unwrap();
        assert!((interval.high - (0.46 + 2.776_445 * (deviation / 5.0).sqrt())).abs() < 1e-3, "{interval:?}");
        assert!(results(&Counted::default()).is_none(), "no figure stands on nothing");
    }
}
