//! Loss curves of one or several runs as an SVG, with no library: axes, grid, a line for each run, a dot for each
//! validation.

use std::fmt::Write as _;
use std::path::Path;

use xlstm_manifests::printable;
use xlstm_manifests::run_manifest::METRICS_NAME;
use xlstm_pipeline::report::axis::{label, ticks};
use xlstm_pipeline::report::escape;

use crate::error::{Result, TrainError};
use crate::metrics::{Line, read_lines};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [64.0, 20.0, 24.0, 52.0];
/// Distinguishable also to color-blind readers (Okabe and Ito).
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// Points of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// The run's name.
    pub name: String,
    /// `(tokens, loss)` of training steps.
    pub train: Vec<(f64, f64)>,
    /// `(tokens, loss)` of validations.
    pub validation: Vec<(f64, f64)>,
    /// Whether the loss is a squared error, of numbers, and not nats a token.
    pub squared_error: bool,
}

/// Reads a run's metrics.
///
/// # Errors
/// When they cannot be read or hold no step.
pub fn curve(run: &Path) -> Result<Curve> {
    let path = if run.is_dir() { run.join(METRICS_NAME) } else { run.to_path_buf() };
    let lines = read_lines(&path)?;
    let name =
        run.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    // After a resume a step may appear twice: the last line counts.
    let mut steps = std::collections::BTreeMap::<u64, &Line>::new();
    let mut measured = std::collections::BTreeMap::<u64, &Line>::new();
    for line in &lines {
        match line.kind.as_str() {
            "train" => steps.insert(line.step, line),
            "validation" if line.is_validation() => measured.insert(line.step, line),
            _ => None,
        };
    }
    if steps.is_empty() && measured.is_empty() {
        let hint = "name the folder of a run that has done a step";
        return Err(TrainError::file(&path, "lines of kind `train` or `validation`", "none", hint));
    }
    // Of a step that no line of training tells: in proportion to the next one that does, or the last. Without any there
    // is no place on this axis but for the beginning.
    let told = |(&at, line): (&u64, &&Line)| Some(line.tokens? as f64 / at as f64).filter(|_| at > 0);
    let tokens_at = |step: u64| {
        let a_step = steps.range(step..).find_map(told).or_else(|| steps.range(..step).rev().find_map(told));
        if step == 0 { Some(0.0) } else { a_step.map(|tokens| tokens * step as f64) }
    };
    let points = |lines: &std::collections::BTreeMap<u64, &Line>| {
        lines
            .iter()
            .filter_map(|(&step, line)| Some((tokens_at(step)?, line.loss.filter(|loss| loss.is_finite())?)))
            .collect()
    };
    let squared_error = measured.values().any(|line| line.target_variance.is_some());
    let curve = Curve { name, train: points(&steps), validation: points(&measured), squared_error };
    if curve.train.is_empty() && curve.validation.is_empty() {
        let hint = "name the folder of a run whose losses are numbers";
        return Err(TrainError::file(&path, "a finite loss with its tokens", "none", hint));
    }
    Ok(curve)
}

/// The SVG of these curves.
#[must_use]
pub fn svg(curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|curve| curve.train.iter().chain(&curve.validation));
    let last = all().map(|point| point.0).fold(1.0, f64::max);
    let (low, high) =
        all().fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let (low, high) = if low < high { (low, high) } else { (low - 0.5, low + 0.5) };
    let [left, right, top, bottom] = MARGIN;
    let x = |tokens: f64| left + tokens / last * (WIDTH - left - right);
    let y = |loss: f64| top + (high - loss) / (high - low) * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tick in ticks(low, high, 6) {
        let (y, end) = (y(tick), WIDTH - right);
        let _ = writeln!(
            out,
            "<path d=\"M{left} {y:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            label(tick)
        );
    }
    for tick in ticks(0.0, last, 6) {
        let (x, end) = (x(tick), HEIGHT - bottom);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {top}V{end}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            end + 18.0,
            label(tick)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens</text>",
        (left + WIDTH - right) / 2.0,
        HEIGHT - 12.0
    );
    let middle = (top + HEIGHT - bottom) / 2.0;
    let unit = match curves.iter().filter(|curve| curve.squared_error).count() {
        0 => "loss (nats a token)",
        numbers if numbers == curves.len() => "mean squared error",
        _ => "loss (nats a token, or mean squared error)",
    };
    let _ = writeln!(
        out,
        "<text transform=\"translate(16 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{unit}</text>"
    );
    for (index, curve) in curves.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let path: Vec<String> =
            curve.train.iter().map(|&(t, l)| format!("{:.1} {:.1}", x(t), y(l))).collect();
        if !path.is_empty() {
            let _ = writeln!(
                out,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-opacity=\"0.7\"/>",
                path.join("L")
            );
        }
        for &(t, l) in &curve.validation {
            let _ =
                writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{color}\"/>", x(t), y(l));
        }
        let (row, end) = (top + 16.0 + 18.0 * index as f64, WIDTH - right - 12.0);
        let _ = writeln!(
            out,
            "<text x=\"{end}\" y=\"{row}\" text-anchor=\"end\" fill=\"{color}\">{} (line: training, dots: validation)</text>",
            escape(&printable::text(&curve.name))
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_the_picture() {
        let curve = Curve {
            squared_error: false,
            name: "a<b".into(),
            train: vec![(10.0, 5.0), (20.0, 3.0)],
            validation: vec![(20.0, 3.5)],
        };
        let text = svg(&[curve]);
        assert!(text.contains("M472.0 24.0L880.0 468.0"), "{text}");
        assert!(text.contains("a&lt;b") && text.matches("<circle").count() == 1);
    }
}
