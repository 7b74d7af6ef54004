//! Plots of values against values: curves and clouds of points, as inline SVG.
//!
//! The drawing stretches with the page while letters keep their size: positions along x are percentages, those along
//! y are pixels, and paths lie in an inner picture whose stroke does not scale. The values stand in a table under
//! the plot, and a small script (`page.js`) reads them out under the pointer.

use std::fmt::Write as _;

use super::axis::{Scale, label};
use super::html::{Table, escape};
use super::{Cell, Page};

/// Pixels above the highest and below the lowest value.
const TOP: f64 = 26.0;
const BOTTOM: f64 = 44.0;
/// Part of the width that is left to the labels of y, in percent.
const LEFT: f64 = 9.0;
const RIGHT: f64 = 1.0;
/// Points of a curve that are drawn: more would only be ink.
const MAX_POINTS: usize = 300;
/// Rows of the table under a curve.
const TABLE_ROWS: usize = 16;
/// Styles of series in `style.css`.
const STYLES: usize = 7;

/// One curve or one set of dots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name, which stands beside it.
    pub name: String,
    /// Its points, ascending in x.
    pub points: Vec<(f64, f64)>,
    /// Dots instead of a line.
    pub dots: bool,
    /// Its style: series of one run have the same one.
    pub style: usize,
}

/// What lies between two curves: the lowest and the highest of several.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Band {
    /// `(x, low, high)`, ascending in x.
    pub points: Vec<(f64, f64, f64)>,
    /// Its style: that of the series whose band it is.
    pub style: usize,
}

/// A plot of one or more series.
#[derive(Debug, Clone, PartialEq)]
pub struct Curves {
    /// What it shows; the caption.
    pub title: String,
    /// What x is, with its unit.
    pub x: String,
    /// What y is, with its unit.
    pub y: String,
    /// Its series.
    pub series: Vec<Series>,
    /// Bands behind them; their values stand in no table.
    pub bands: Vec<Band>,
    /// Whether y is logarithmic.
    pub logarithmic: bool,
    /// Whether y begins at 0.
    pub from_zero: bool,
    /// Pixels.
    pub height: f64,
}

impl Curves {
    /// A plot without series, y linear.
    #[must_use]
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            title: title.into(),
            x: x.into(),
            y: y.into(),
            series: Vec::new(),
            bands: Vec::new(),
            logarithmic: false,
            from_zero: false,
            height: 280.0,
        }
    }

    /// Draws it onto the page with its table; nothing where no series has a point.
    pub fn draw(&self, page: &mut Page) {
        let finite = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (!self.logarithmic || y > 0.0);
        let series: Vec<Series> = self
            .series
            .iter()
            .map(|one| Series { points: one.points.iter().copied().filter(finite).collect(), ..one.clone() })
            .filter(|one| !one.points.is_empty())
            .collect();
        if series.is_empty() {
            return;
        }
        let thinned: Vec<Series> =
            series.iter().map(|one| Series { points: thin(&one.points), ..one.clone() }).collect();
        let averaged = series.iter().zip(&thinned).any(|(all, some)| all.points.len() > some.points.len());
        page.push(&self.picture(&thinned, averaged));
        self.table(page, &series);
    }

    fn picture(&self, series: &[Series], averaged: bool) -> String {
        let usable = |&&(x, low, high): &&(f64, f64, f64)| {
            x.is_finite() && low.is_finite() && high.is_finite() && (!self.logarithmic || low > 0.0)
        };
        let drawn =
            |band: &Band| Band { points: band.points.iter().filter(usable).copied().collect(), ..*band };
        let bands: Vec<Band> = self.bands.iter().map(drawn).collect();
        let ends = || bands.iter().flat_map(|band| &band.points).flat_map(|&(x, a, b)| [(x, a), (x, b)]);
        let points = || series.iter().flat_map(|one| one.points.iter().copied()).chain(ends());
        let x_scale = Scale::over(points().map(|point| point.0), false);
        let y_scale = Scale::over(points().map(|point| point.1), self.logarithmic);
        let y_scale = if self.from_zero { y_scale.from_zero() } else { y_scale.padded() };
        let inner = self.height - TOP - BOTTOM;
        let x = |value: f64| LEFT + x_scale.at(value) * (100.0 - LEFT - RIGHT);
        let y = |value: f64| TOP + (1.0 - y_scale.at(value)) * inner;
        let mut svg = open(&self.title, &describe(series), self.height);
        write_y_axis(&mut svg, &y_scale.ticks(5), y, &self.y);
        write_x_axis(&mut svg, &x_scale.ticks(5), x, TOP + inner, &self.x);
        let _ = write!(
            svg,
            "\n<line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
            TOP + inner
        );
        // One picture of a thousand units across, stretched to the page's width.
        let _ = write!(
            svg,
            "<svg x=\"0\" y=\"0\" width=\"100%\" height=\"{0}\" viewBox=\"0 0 1000 {0}\" preserveAspectRatio=\"none\">",
            self.height
        );
        for Band { points, style } in bands.iter().filter(|band| band.points.len() > 1) {
            let upper = points.iter().map(|&(a, _, high)| (a, high));
            let lower = points.iter().rev().map(|&(a, low, _)| (a, low));
            let path: Vec<String> =
                upper.chain(lower).map(|(a, b)| format!("{:.1} {:.1}", 10.0 * x(a), y(b))).collect();
            let _ = write!(svg, "<path class=\"band s{}\" d=\"M{}Z\"/>", style % STYLES, path.join("L"));
        }
        for one in series.iter().filter(|one| !one.dots) {
            let path: Vec<String> =
                one.points.iter().map(|&(a, b)| format!("{:.1} {:.1}", 10.0 * x(a), y(b))).collect();
            let _ = write!(svg, "<path class=\"curve s{}\" d=\"M{}\"/>", one.style % STYLES, path.join("L"));
        }
        svg.push_str("</svg>\n");
        for one in series.iter().filter(|one| one.dots) {
            for &(a, b) in &one.points {
                let _ = write!(
                    svg,
                    "<circle class=\"dot s{}\" cx=\"{:.2}%\" cy=\"{:.1}\" r=\"4\"/>",
                    one.style % STYLES,
                    x(a),
                    y(b)
                );
            }
        }
        write_names(&mut svg, series, (&x, &y), self.height - BOTTOM);
        let read: Vec<_> = series
            .iter()
            .map(|one| {
                let points: Vec<_> = one
                    .points
                    .iter()
                    .map(|&(a, b)| ((x(a) * 100.0).round() / 100.0, label(a), shown(b)))
                    .collect();
                serde_json::json!({"n": one.name, "p": points})
            })
            .collect();
        let data = serde_json::Value::from(read).to_string();
        let note = if averaged {
            ". Where steps lie closer than the picture resolves, a point is their mean"
        } else {
            ""
        };
        format!(
            "<figure data-x=\"{}\" data-points=\"{}\">{svg}</svg><figcaption>{}{note}.</figcaption></figure>\n",
            escape(&self.x),
            escape(&data),
            escape(&self.title)
        )
    }

    fn table(&self, page: &mut Page, series: &[Series]) {
        let columns = ["Series".to_owned(), format!("#{}", self.x), format!("#{}", self.y)];
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut table = Table::new(&format!("Values of “{}”", self.title), &columns);
        let mut left_out = false;
        for one in series {
            let stride = one.points.len().div_ceil(TABLE_ROWS).max(1);
            left_out |= stride > 1;
            let last = one.points.len() - 1;
            for (index, &(a, b)) in one.points.iter().enumerate() {
                if index % stride == 0 || index == last {
                    let cells =
                        [Cell::text(&one.name), Cell::number(a, &label(a)), Cell::number(b, &shown(b))];
                    table.cells(cells.into());
                }
            }
        }
        let every = if left_out { "Some of the values as a table" } else { "The values as a table" };
        page.details(every, |page| page.table(&table));
    }
}

/// A cloud of points, both axes logarithmic with the same range, and the diagonal on which both agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud {
    /// What it shows; the caption.
    pub title: String,
    /// What x is, with its unit.
    pub x: String,
    /// What y is, with its unit.
    pub y: String,
    /// Points with their names.
    pub points: Vec<(String, f64, f64)>,
}

impl Cloud {
    /// The picture. Its values belong into a table beside it.
    #[must_use]
    pub fn render(&self) -> String {
        let usable =
            |point: &&(String, f64, f64)| [point.1, point.2].iter().all(|v| *v > 0.0 && v.is_finite());
        let points: Vec<_> = self.points.iter().filter(usable).collect();
        let scale = Scale::over(points.iter().flat_map(|point| [point.1, point.2]), true);
        let (height, inner) = (420.0, 420.0 - TOP - BOTTOM);
        let x = |value: f64| LEFT + scale.at(value) * (100.0 - LEFT - RIGHT);
        let y = |value: f64| TOP + (1.0 - scale.at(value)) * inner;
        let above = points.iter().filter(|point| point.2 > point.1).count();
        let words = format!("{} points; {above} lie above the diagonal", points.len());
        let mut svg = open(&self.title, &words, height);
        let ticks = scale.ticks(6);
        write_y_axis(&mut svg, &ticks, y, &self.y);
        write_x_axis(&mut svg, &ticks, x, TOP + inner, &self.x);
        let _ = write!(
            svg,
            "<line class=\"diagonal\" x1=\"{LEFT}%\" y1=\"{:.1}\" x2=\"{}%\" y2=\"{TOP}\"/>",
            TOP + inner,
            100.0 - RIGHT
        );
        for (name, a, b) in points {
            let style = usize::from(b > a);
            let _ = write!(
                svg,
                "<circle class=\"point s{style}\" cx=\"{:.2}%\" cy=\"{:.1}\" r=\"3\"><title>{}: {} against {}</title></circle>",
                x(*a),
                y(*b),
                escape(name),
                shown(*b),
                shown(*a)
            );
        }
        format!("<figure>{svg}</svg><figcaption>{}.</figcaption></figure>\n", escape(&self.title))
    }
}

fn open(title: &str, description: &str, height: f64) -> String {
    format!(
        "<svg class=\"plot\" role=\"img\" aria-label=\"{title}\" width=\"100%\" height=\"{height}\"><title>{title}</title><desc>{}</desc>\n",
        escape(description),
        title = escape(title)
    )
}

fn write_y_axis(svg: &mut String, ticks: &[f64], y: impl Fn(f64) -> f64, name: &str) {
    // Writing to a String cannot fail.
    let _ = write!(svg, "<text class=\"quiet\" x=\"0\" y=\"12\">{}</text>", escape(name));
    for &tick in ticks {
        let y = y(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}%\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"quiet\" x=\"0\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            label(tick)
        );
    }
}

fn write_x_axis(svg: &mut String, ticks: &[f64], x: impl Fn(f64) -> f64, floor: f64, name: &str) {
    let _ =
        write!(svg, "<line class=\"axis\" x1=\"{LEFT}%\" x2=\"100%\" y1=\"{floor:.1}\" y2=\"{floor:.1}\"/>");
    for &tick in ticks {
        let at = x(tick);
        let anchor = if at > 95.0 { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"{floor:.1}\" y2=\"{:.1}\"/><text class=\"quiet\" x=\"{at:.2}%\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            floor + 4.0,
            floor + 18.0,
            label(tick)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"quiet\" x=\"100%\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        floor + 38.0,
        escape(name)
    );
}

/// The name of each series beside its last point, moved apart where they would overlap.
fn write_names(
    svg: &mut String,
    series: &[Series],
    (x, y): (&dyn Fn(f64) -> f64, &dyn Fn(f64) -> f64),
    floor: f64,
) {
    let place = |one: &Series| one.points.last().map(|&(a, b)| (y(b) - 9.0, x(a)));
    let mut names: Vec<((f64, f64), &Series)> =
        series.iter().filter_map(|one| Some((place(one)?, one))).collect();
    names.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
    let mut lowest = TOP - 4.0;
    for ((at, _), _) in &mut names {
        *at = at.max(lowest);
        lowest = *at + 16.0;
    }
    // Back up from the floor, if the last ones were pushed below it.
    let mut highest = floor - 4.0;
    for ((at, end), one) in names.into_iter().rev() {
        let at = at.min(highest);
        highest = at - 16.0;
        let (style, anchor) = (one.style % STYLES, if end > 50.0 { "end" } else { "start" });
        let _ = write!(
            svg,
            "<text class=\"name s{style}\" x=\"{end:.2}%\" y=\"{at:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(&one.name)
        );
    }
}

fn describe(series: &[Series]) -> String {
    let one = |one: &Series| {
        let (first, last) = (one.points.first()?, one.points.last()?);
        let low = one.points.iter().map(|point| point.1).fold(f64::MAX, f64::min);
        let (first, last, low) = (shown(first.1), shown(last.1), shown(low));
        Some(format!("{}: from {first} to {last}, lowest {low}", one.name))
    };
    series.iter().filter_map(one).collect::<Vec<_>>().join("; ")
}

/// A value for reading: four digits, thousands in units.
fn shown(value: f64) -> String {
    match value.abs() {
        v if v >= 1e4 => label(value),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.3}"),
        0.0 => "0".into(),
        v if v >= 1e-3 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// At most [`MAX_POINTS`] points, each the mean of its neighbors; first and last stay.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let inner = &points[1..points.len() - 1];
    let size = inner.len().div_ceil(MAX_POINTS - 2);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    let (first, last) = (points[0], points[points.len() - 1]);
    std::iter::once(first).chain(inner.chunks(size).map(mean)).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: Vec<(f64, f64)>) -> Curves {
        let series = vec![Series { name: "a<b".into(), points, ..Series::default() }];
        Curves { series, ..Curves::new("Loss", "tokens", "loss (nats a token)") }
    }

    #[test]
    fn a_curve_is_drawn_labeled_and_tabled() {
        let mut page = Page::new("x");
        curve(vec![(0.0, 4.0), (10.0, 2.0), (20.0, f64::NAN)]).draw(&mut page);
        let text = page.render();
        assert!(text.contains("M90.0 35.5L990.0 226.5"), "{text}");
        assert!(text.contains("a&lt;b: from 4.000 to 2.000, lowest 2.000"), "{text}");
        assert!(text.contains("The values as a table") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let mut page = Page::new("x");
        curve(vec![(1.0, f64::INFINITY)]).draw(&mut page);
        assert!(!page.render().contains("<figure"));
    }

    #[test]
    fn long_curves_keep_their_ends_and_mean() {
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let some = thin(&points);
        assert!(some.len() <= MAX_POINTS, "{}", some.len());
        assert_eq!((some[0], some[some.len() - 1]), (points[0], points[9999]));
        assert!(some[1..some.len() - 1].iter().all(|point| (point.1 - 0.5).abs() < 0.05));
    }

    #[test]
    fn a_cloud_counts_what_lies_above() {
        let point = |name: &str, x, y| (name.to_owned(), x, y);
        let points = vec![point("a", 10.0, 12.0), point("b", 20.0, 5.0), point("c", 0.0, 5.0)];
        let (x, y) = ("theirs".into(), "ours".into());
        let text = Cloud { title: "t".into(), x, y, points }.render();
        assert!(text.contains("2 points; 1 lie above") && text.matches("<circle").count() == 2, "{text}");
    }
}
