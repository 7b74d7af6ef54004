//! Does an order agree with another one? Pair by pair, and Kendall's τ.

use std::cmp::Ordering;

use crate::evaluation::paired::Verdict;

/// What two methods of ours say to the paper's order of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    /// The same one is better, and the interval of the difference leaves out zero.
    Agrees,
    /// The other one is better, likewise.
    Contradicts,
    /// The interval holds zero, or there is none.
    Undecided,
}

impl Agreement {
    /// Of the paper's figures and of ours, the lower the better, with what can be said of the difference of ours.
    /// `None` where the paper has no order of the two.
    pub(super) fn of(paper: [f64; 2], difference: f64, verdict: Verdict) -> Option<Self> {
        let before = order(paper[0], paper[1]);
        let ours = order(difference, 0.0);
        Some(match (before, verdict) {
            (Ordering::Equal, _) => return None,
            (_, Verdict::CannotBeToldApart | Verdict::TooFewDocuments) => Self::Undecided,
            (before, _) if before == ours => Self::Agrees,
            _ => Self::Contradicts,
        })
    }

    /// In a word, with a sign that needs no color.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Agrees => "✓ agrees",
            Self::Contradicts => "✗ contradicts",
            Self::Undecided => "· undecided",
        }
    }
}

/// Kendall's τ-b of two lists of figures of the same things: 1 where they order all pairs alike, −1 where all the other way, and
/// ties in either count for neither. `None` where one of the lists orders nothing.
pub(super) fn kendall(one: &[f64], other: &[f64]) -> Option<f64> {
    let (mut alike, mut unlike, mut in_one, mut in_other) = (0_u32, 0_u32, 0_u32, 0_u32);
    for at in 0..one.len().min(other.len()) {
        for before in 0..at {
            let (a, b) = (order(one[at], one[before]), order(other[at], other[before]));
            in_one += u32::from(a != Ordering::Equal);
            in_other += u32::from(b != Ordering::Equal);
            match (a, b) {
                (Ordering::Equal, _) | (_, Ordering::Equal) => {}
                (a, b) if a == b => alike += 1,
                _ => unlike += 1,
            }
        }
    }
    let of = (f64::from(in_one) * f64::from(in_other)).sqrt();
    (of > 0.0).then(|| (f64::from(alike) - f64::from(unlike)) / of)
}

/// Places from 0 by ascending figures; equal ones keep their order.
pub(super) fn places(figures: &[f64]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..figures.len()).collect();
    sorted.sort_by(|&a, &b| figures[a].total_cmp(&figures[b]));
    let mut places = vec![0; figures.len()];
    for (place, index) in sorted.into_iter().enumerate() {
        places[index] = place;
    }
    places
}

fn order(one: f64, other: f64) -> Ordering {
    one.partial_cmp(&other).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kendall_counts_pairs() {
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), Some(1.0));
        assert_eq!(kendall(&[1.0, 2.0, f64::INFINITY], &[3.0, 2.0, 1.0]), Some(-1.0));
        assert!((kendall(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]).unwrap() - 4.0 / 6.0).abs() < 1e-12);
        // A tie in one list: two of three pairs, over the root of 2 × 3.
        assert!((kendall(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap() - 2.0 / 6.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(places(&[3.0, 1.0, 2.0, 1.0]), [3, 0, 2, 1]);
    }

    #[test]
    fn only_intervals_without_zero_decide() {
        let of = |paper, difference, verdict| Agreement::of(paper, difference, verdict);
        assert_eq!(of([13.0, 14.0], -0.1, Verdict::OneSeed), Some(Agreement::Agrees));
        assert_eq!(of([13.0, 14.0], 0.1, Verdict::SecondIsLower), Some(Agreement::Contradicts));
        assert_eq!(of([13.0, f64::INFINITY], -0.1, Verdict::FirstIsLower), Some(Agreement::Agrees));
        assert_eq!(of([13.0, 14.0], 0.1, Verdict::CannotBeToldApart), Some(Agreement::Undecided));
        assert_eq!(of([14.0, 14.0], 0.1, Verdict::FirstIsLower), None);
    }
}
