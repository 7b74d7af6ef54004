//! Plots of an order: two rankings side by side, and values with their intervals.
//!
//! As in module `plot`: an image to a screen reader, whose content stands in a table beside it; positions along x are
//! percentages, so that letters keep their size on a telephone.

use std::fmt::Write as _;

use super::html::escape;
use super::plot::{close, open, shorten};

/// Pixels that a row of a ranking takes.
const RANK: usize = 24;
/// Characters up to which names stand on both sides on a narrow screen.
const SHORT: usize = 13;
/// Pixels that a value with its label takes.
const ROW: usize = 40;

/// One row of two rankings.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// What it stands for.
    pub label: String,
    /// Its places from 0, on the left and on the right.
    pub places: [usize; 2],
    /// Its figures as text.
    pub shown: [String; 2],
}

impl Ranked {
    /// Places that it has moved; of the style of its line.
    fn moved(&self) -> usize {
        self.places[0].abs_diff(self.places[1])
    }
}

/// Two rankings side by side, a line from each place on the left to that on the right. What moved by more than `far` places
/// has a broken line.
#[must_use]
pub fn rankings(title: &str, heads: [&str; 2], rows: &[Ranked], far: usize) -> String {
    let longest = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    // Long names stand on the left alone.
    let (from, to) = if longest <= SHORT { (38.0, 62.0) } else { (64.0, 84.0) };
    let words: Vec<String> = rows
        .iter()
        .map(|row| format!("{}: {} and {}", row.label, row.places[0] + 1, row.places[1] + 1))
        .collect();
    let height = RANK * (rows.len() + 1) + 6;
    let mut svg = open(title, &words.join("; "), height);
    let y = |place: usize| RANK * (place + 1) + 16;
    let [left, right] = heads.map(escape);
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<text class=\"quiet\" x=\"0\" y=\"14\">{left}</text>\
         <text class=\"quiet\" x=\"100%\" y=\"14\" text-anchor=\"end\">{right}</text>"
    );
    for row in rows {
        let [before, after] = row.places;
        let style = if row.moved() > far { "rank far" } else { "rank" };
        let label = escape(&shorten(&row.label, 34));
        let [left, right] = row.shown.each_ref().map(|shown| escape(shown));
        let end = if longest <= SHORT { format!("{label} {right}") } else { right };
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{}\">{}. {label} {left}</text>\
             <line class=\"{style}\" x1=\"{from}%\" y1=\"{}\" x2=\"{to}%\" y2=\"{}\"/>\
             <text x=\"100%\" y=\"{}\" text-anchor=\"end\">{}. {end}</text>",
            y(before),
            before + 1,
            y(before) - 5,
            y(after) - 5,
            y(after),
            after + 1,
        );
    }
    close(svg, title)
}

/// A value with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranged {
    /// What it stands for.
    pub label: String,
    /// The value.
    pub value: f64,
    /// Its interval, where it has one.
    pub interval: Option<(f64, f64)>,
    /// Both as text.
    pub shown: String,
}

/// Values with their intervals around a line at zero, each labeled above.
#[must_use]
pub fn intervals(title: &str, rows: &[Ranged]) -> String {
    let ends = rows.iter().flat_map(|row| {
        let (low, high) = row.interval.unwrap_or((row.value, row.value));
        [low, high, row.value]
    });
    let (low, high) = ends
        .chain([0.0])
        .filter(|value| value.is_finite())
        .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let width = (high - low).max(f64::MIN_POSITIVE);
    // Dots at the ends stay inside.
    let x = |value: f64| 1.5 + 97.0 * (value - low) / width;
    let words: Vec<String> = rows.iter().map(|row| format!("{}: {}", row.label, row.shown)).collect();
    let height = ROW * rows.len() + 6;
    let mut svg = open(title, &words.join("; "), height);
    for (index, row) in rows.iter().enumerate() {
        let top = ROW * index;
        // Beside the dots alone: across the whole height it would run through labels.
        let (begin, end) = (top + 20, top + 36);
        let _ = write!(
            svg,
            "<line class=\"zero\" x1=\"{0:.2}%\" x2=\"{0:.2}%\" y1=\"{begin}\" y2=\"{end}\"/>",
            x(0.0)
        );
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{0}\">{1}</text><text class=\"quiet\" x=\"100%\" y=\"{0}\" text-anchor=\"end\">{2}</text>",
            top + 15,
            escape(&shorten(&row.label, 34)),
            escape(&row.shown),
        );
        let y = top + 28;
        if let Some((low, high)) = row.interval {
            let _ = write!(
                svg,
                "<line class=\"range\" x1=\"{:.2}%\" x2=\"{:.2}%\" y1=\"{y}\" y2=\"{y}\"/>",
                x(low),
                x(high)
            );
        }
        let _ = writeln!(svg, "<circle class=\"dot s0\" cx=\"{:.2}%\" cy=\"{y}\" r=\"4.5\"/>", x(row.value));
    }
    close(svg, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leads_from_place_to_place_and_far_ones_are_broken() {
        let row = |label: &str, places| Ranked {
            label: label.into(),
            places,
            shown: ["13.4".into(), "79.2".into()],
        };
        let rows = [row("a<b", [0, 2]), row("c", [1, 0]), row("d", [2, 1])];
        let svg = rankings("Order", ["paper", "ours"], &rows, 1);
        assert!(
            svg.contains("<line class=\"rank far\" x1=\"38%\" y1=\"35\" x2=\"62%\" y2=\"83\"/>"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"rank\"").count(), 2);
        assert!(svg.contains("1. a&lt;b 13.4") && svg.contains("3. a&lt;b 79.2"), "{svg}");
        assert!(svg.contains("a&lt;b: 1 and 3; c: 2 and 1"), "{svg}");
        // Long names do not fit twice into the width of a telephone.
        let svg = rankings("Order", ["paper", "ours"], &[row("forget gate and input gate", [0, 0])], 1);
        assert!(svg.contains("1. forget gate and input gate 13.4") && svg.contains("\">1. 79.2<"), "{svg}");
    }

    #[test]
    fn intervals_lie_around_zero() {
        let row = |value, interval| Ranged { label: "m".into(), value, interval, shown: "x".into() };
        let svg = intervals("D", &[row(-1.0, Some((-2.0, 0.0))), row(2.0, None)]);
        for ends in ["y1=\"20\" y2=\"36\"", "y1=\"60\" y2=\"76\""] {
            let zero = format!("<line class=\"zero\" x1=\"50.00%\" x2=\"50.00%\" {ends}/>");
            assert!(svg.contains(&zero), "{svg}");
        }
        assert!(svg.contains("<line class=\"range\" x1=\"1.50%\" x2=\"50.00%\" y1=\"28\""), "{svg}");
        assert!(svg.contains("cx=\"98.50%\" cy=\"68\""), "{svg}");
        assert!(!intervals("D", &[]).contains("NaN"));
    }
}
