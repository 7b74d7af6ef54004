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
/// Points from which on a curve is worth smoothing.
const MIN_SMOOTHED: usize = 20;
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
    /// Whether a line is smoothed, with the values as they are behind it. A short one is not.
    pub smoothed: bool,
    /// Its style: series of one run have the same one.
    pub style: usize,
}

impl Series {
    /// Half the window of the mean by which this line is smoothed, where it is.
    fn half_window(&self) -> Option<usize> {
        let enough = self.smoothed && !self.dots && self.points.len() >= MIN_SMOOTHED;
        enough.then(|| (self.points.len() / 50).max(2))
    }

    /// Each point with the mean of its neighbors: as many before as after it, so that the line does not lag, and fewer
    /// towards the ends.
    fn smooth(&self, half: usize) -> Vec<(f64, f64)> {
        let last = self.points.len().saturating_sub(1);
        let mean = |at: usize| {
            let reach = half.min(at).min(last - at);
            let window = &self.points[at - reach..=at + reach];
            window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64
        };
        self.points.iter().enumerate().map(|(at, point)| (point.0, mean(at))).collect()
    }
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
        page.push(&self.picture(&series));
        self.table(page, &series);
    }

    fn picture(&self, all: &[Series]) -> String {
        let series: Vec<Series> =
            all.iter().map(|one| Series { points: thin(&one.points), ..one.clone() }).collect();
        let averaged = all.iter().zip(&series).any(|(all, some)| all.points.len() > some.points.len());
        let smooth = |one: &Series| one.half_window().map(|half| thin(&one.smooth(half)));
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
        let mut svg = open(&self.title, &describe(&series), self.height);
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
        let mut path = |class: &str, style: usize, points: &[(f64, f64)]| {
            let path: Vec<String> =
                points.iter().map(|&(a, b)| format!("{:.1} {:.1}", 10.0 * x(a), y(b))).collect();
            let _ = write!(svg, "<path class=\"{class} s{}\" d=\"M{}\"/>", style % STYLES, path.join("L"));
        };
        let smoothed: Vec<_> = all.iter().map(smooth).collect();
        for (one, smoothed) in series.iter().zip(&smoothed).filter(|(one, _)| !one.dots) {
            match smoothed {
                Some(points) => {
                    path("raw", one.style, &one.points);
                    path("curve", one.style, points);
                }
                None => path("curve", one.style, &one.points),
            }
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
        let mut note = String::new();
        if let Some(half) = all.iter().filter_map(Series::half_window).max() {
            let _ = write!(
                note,
                ". Lines are means of {} neighboring values, which lie behind them",
                2 * half + 1
            );
        }
        if averaged {
            note.push_str(". Where steps lie closer than the picture resolves, a point is their mean");
        }
        format!(
            "<figure data-x=\"{}\" data-points=\"{}\">{}{svg}</svg><figcaption>{}{note}.</figcaption></figure>\n",
            escape(&self.x),
            escape(&data),
            legend(&series),
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

/// The names of the series above the plot, where they lie on nothing, each with a piece of its line or one of its dots.
fn legend(series: &[Series]) -> String {
    let mut html = "<p class=\"legend\">".to_owned();
    for one in series {
        let style = one.style % STYLES;
        let key = if one.dots {
            format!("<circle class=\"dot s{style}\" cx=\"14\" cy=\"5\" r=\"4\"/>")
        } else {
            format!("<path class=\"curve s{style}\" d=\"M0 5H28\"/>")
        };
        let _ = write!(
            html,
            "<span class=\"s{style}\"><svg width=\"28\" height=\"10\" aria-hidden=\"true\">{key}</svg> {}</span>",
            escape(&one.name)
        );
    }
    html.push_str("</p>");
    html
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
    fn a_smoothed_line_keeps_its_ends_and_has_the_values_behind_it() {
        let points: Vec<_> = (0..100).map(|i| (f64::from(i), f64::from(i) + f64::from(i % 2))).collect();
        let line = Series { points, smoothed: true, ..Series::default() };
        let half = line.half_window().unwrap();
        let smooth = line.smooth(half);
        assert_eq!((half, smooth[0], smooth[99]), (2, (0.0, 0.0), (99.0, 100.0)));
        // Of 48, 50, 50, 52, 52 at 50: a straight line stays where it is, without lag.
        assert!((smooth[50].1 - 50.4).abs() < 1e-12, "{:?}", smooth[50]);
        assert_eq!(Series { points: line.points[..19].to_vec(), ..line.clone() }.half_window(), None);
        let mut page = Page::new("x");
        Curves { series: vec![line], ..curve(vec![]) }.draw(&mut page);
        let text = page.render();
        assert!(text.contains("class=\"raw s0\"") && text.contains("class=\"curve s0\""), "{text}");
        assert!(text.contains("Lines are means of 5 neighboring values"), "{text}");
    }

    #[test]
    fn names_stand_above_the_plot_and_lie_on_nothing() {
        let mut page = Page::new("x");
        curve(vec![(0.0, 4.0), (10.0, 2.0)]).draw(&mut page);
        let text = page.render();
        let (legend, plot) = (text.find("class=\"legend\"").unwrap(), text.find("class=\"plot\"").unwrap());
        assert!(legend < plot && text[legend..plot].contains("a&lt;b"), "{text}");
        assert!(!text[plot..].split("</svg>").next().unwrap().contains(">a&lt;b<"), "{text}");
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
