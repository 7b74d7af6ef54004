//! Plots as inline SVG: horizontal bars, and histograms over powers of two.
//!
//! A plot is an image to a screen reader (`role="img"` with title and description); what it shows stands in
//! a table beside it. Colors come from the page's styles, so that they follow dark, light and print.

use std::fmt::Write as _;

use super::html::escape;

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// Its length, not negative.
    pub value: f64,
    /// The value as text.
    pub shown: String,
    /// A value to compare with, drawn as a mark.
    pub mark: Option<f64>,
}

/// Pixels that a bar with its label takes.
const ROW: usize = 40;

/// Horizontal bars from a common zero, each labeled above so that long names fit a narrow screen.
#[must_use]
pub fn bar_chart(title: &str, bars: &[Bar]) -> String {
    let longest =
        bars.iter().flat_map(|bar| [bar.value, bar.mark.unwrap_or(0.0)]).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = open(title, &describe(bars), ROW * bars.len() + 6);
    for (index, bar) in bars.iter().enumerate() {
        let top = ROW * index;
        let (label, shown) = (escape(&shorten(&bar.label, 40)), escape(&bar.shown));
        let width = (100.0 * bar.value / longest).max(if bar.value > 0.0 { 0.2 } else { 0.0 });
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{text}\">{label}</text><text class=\"quiet\" x=\"100%\" y=\"{text}\" text-anchor=\"end\">{shown}</text>\
             <rect class=\"bar\" x=\"0\" y=\"{bar_top}\" width=\"{width:.2}%\" height=\"14\"/>",
            text = top + 15,
            bar_top = top + 20,
        );
        if let Some(mark) = bar.mark {
            let x = 100.0 * mark / longest;
            let (from, to) = (top + 17, top + 37);
            let _ =
                write!(svg, "<line class=\"mark\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"{from}\" y2=\"{to}\"/>");
        }
        svg.push('\n');
    }
    close(svg, title)
}

/// Counts by power of two: bucket k covers `[2^k, 2^(k+1))` of `unit`.
#[must_use]
pub fn histogram(title: &str, unit: &str, buckets: &[u64]) -> String {
    let (height, floor) = (200, 170.0);
    let highest = buckets.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = 100.0 / buckets.len().max(1) as f64;
    let described = buckets
        .iter()
        .enumerate()
        .filter(|&(_, &n)| n > 0)
        .map(|(k, n)| format!("{} to {} {unit}: {n}", power(k), power(k + 1)))
        .collect::<Vec<_>>()
        .join("; ");
    let mut svg = open(title, &described, height);
    for (k, &n) in buckets.iter().enumerate() {
        let bar = ((floor - 10.0) * n as f64 / highest).max(if n > 0 { 1.0 } else { 0.0 });
        let x = step * k as f64;
        let (top, width) = (floor - bar, step * 0.94);
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{x:.2}%\" y=\"{top:.1}\" width=\"{width:.2}%\" height=\"{bar:.1}\"/>"
        );
        // Labels under every bar would run into each other on a narrow screen.
        if k.is_multiple_of(buckets.len().div_ceil(8).max(1)) {
            let label = power(k);
            let _ =
                write!(svg, "<text class=\"quiet\" x=\"{x:.2}%\" y=\"{:.0}\">{label}</text>", floor + 18.0);
        }
        svg.push('\n');
    }
    let _ = write!(svg, "<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"{floor}\" y2=\"{floor}\"/>");
    close(svg, title)
}

/// 2^k in binary thousands, as lengths of documents are read.
fn power(k: usize) -> String {
    match k {
        0..10 => (1u64 << k).to_string(),
        10..20 => format!("{}k", 1u64 << (k - 10)),
        20..30 => format!("{}M", 1u64 << (k - 20)),
        30..40 => format!("{}G", 1u64 << (k - 30)),
        _ => format!("2^{k}"),
    }
}

pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn describe(bars: &[Bar]) -> String {
    bars.iter().map(|bar| format!("{}: {}", bar.label, bar.shown)).collect::<Vec<_>>().join("; ")
}

pub(super) fn open(title: &str, description: &str, height: usize) -> String {
    // No view box: bars stretch with the page, letters keep their size on a telephone.
    format!(
        "<figure><svg role=\"img\" aria-label=\"{title}\" width=\"100%\" height=\"{height}\">\
         <title>{title}</title><desc>{}</desc>\n",
        escape(description),
        title = escape(title),
    )
}

pub(super) fn close(mut svg: String, title: &str) -> String {
    let _ = writeln!(svg, "</svg><figcaption>{}</figcaption></figure>", escape(title));
    svg
}
