//! What a run told step by step: loss, learning rate, gradient norm, speed, waiting, memory; validations.

use std::collections::{BTreeMap, BTreeSet};

use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Band, Cell, Curves, Page, Series, Table, bytes, duration, percent};

use super::RunView;
use super::differences::groups;
use super::view::{loss_cell, loss_unit, median};
use crate::metrics::Line;

const TOKENS: &str = "training tokens";

/// The section on loss: curves and validations.
pub(super) fn write_loss(page: &mut Page, runs: &[RunView]) {
    page.section("loss", "Loss");
    let title = "Loss of training steps (lines) and validations (dots)";
    let mut plot = Curves::new(title, TOKENS, loss_unit(runs));
    let groups = groups(runs);
    if groups.iter().any(|(_, members)| members.len() > 1) {
        plot.title =
            format!("{title}; of several seeds their mean, and a band from the lowest to the highest");
        write_groups(&mut plot, runs, &groups);
        plot.height = 340.0;
        plot.draw(page);
        return validations(page, runs);
    }
    for (style, run) in runs.iter().enumerate() {
        let name = |what: &str| if runs.len() > 1 { format!("{} {what}", run.name) } else { what.to_owned() };
        let points = run.values(|line| line.loss);
        plot.series.push(Series { name: name("training"), points, dots: false, smoothed: true, style });
        let points = run.validations.values().filter_map(|line| Some((tokens(run, line), line.loss?)));
        let style = if runs.len() > 1 { style } else { style + 1 };
        let points = points.collect();
        plot.series.push(Series { name: name("validation"), points, dots: true, smoothed: false, style });
    }
    plot.height = 340.0;
    plot.draw(page);
    validations(page, runs);
}

/// One curve for each recipe: of one run its own, of several seeds their mean and band.
fn write_groups(plot: &mut Curves, runs: &[RunView], groups: &[(String, Vec<usize>)]) {
    for (style, (name, members)) in groups.iter().enumerate() {
        let name = match members.len() {
            1 => name.clone(),
            seeds => format!("{name}, {seeds} seeds"),
        };
        let training: Vec<_> = members.iter().map(|&run| runs[run].values(|line| line.loss)).collect();
        let measured = |run: &usize| {
            let lines = runs[*run].validations.values();
            lines.filter_map(|line| Some((tokens(&runs[*run], line), line.loss?))).collect::<Vec<_>>()
        };
        let measured: Vec<_> = members.iter().map(measured).collect();
        for (what, curves, dots) in [("training", training, false), ("validation", measured, true)] {
            let (mean, band) = mean_and_band(&curves);
            let (name, points) = (format!("{name}, {what}"), mean);
            plot.series.push(Series { name, points, dots, smoothed: !dots, style });
            if curves.len() > 1 {
                plot.bands.push(Band { points: band, style });
            }
        }
    }
}

type Points = Vec<(f64, f64)>;

/// The mean of curves, and its lowest and highest values, where all of them have a finite one.
fn mean_and_band(curves: &[Points]) -> (Points, Vec<(f64, f64, f64)>) {
    let mut by_x: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for &(x, y) in curves.iter().flatten().filter(|(_, y)| y.is_finite()) {
        // Numbers of tokens are whole.
        by_x.entry(x as u64).or_default().push(y);
    }
    by_x.retain(|_, values| values.len() == curves.len());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let ends = |values: &[f64]| {
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &y| (low.min(y), high.max(y)))
    };
    let means = by_x.iter().map(|(&x, values)| (x as f64, mean(values))).collect();
    let band = by_x.iter().map(|(&x, values)| {
        let (low, high) = ends(values);
        (x as f64, low, high)
    });
    (means, band.collect())
}

fn tokens(run: &RunView, line: &Line) -> f64 {
    (line.step * run.tokens_per_step()) as f64
}

fn validations(page: &mut Page, runs: &[RunView]) {
    let columns =
        ["Run", "#Step", "#Training tokens", "#Loss", "#Perplexity", "#Rows measured", "Checkpoint"];
    let mut table = Table::new(&format!("Validations; loss in {}", loss_unit(runs)), &columns).sortable();
    for (index, run) in runs.iter().enumerate() {
        for line in run.validations.values() {
            let rows = match (line.rows, line.rows_of_split) {
                (Some(rows), Some(of)) => Cell::number(rows as f64, &format!("{rows} of {of}")),
                _ => Cell::missing(),
            };
            let saved = run.checkpoint(line.step).is_some();
            let shown = run.figure().is_some_and(|figure| figure.step == line.step);
            let checkpoint = match (saved, shown) {
                (true, true) => Cell::text("kept, chain below").link(&super::chain::id(index)),
                (true, false) => Cell::text("kept"),
                (false, _) => Cell::text("not kept"),
            };
            table.cells(vec![
                Cell::text(&run.name),
                Cell::count(line.step),
                Cell::number(tokens(run, line), &label(tokens(run, line))),
                Cell::of(line.loss, loss_cell),
                Cell::of(line.perplexity, |perplexity| Cell::decimals(perplexity, 2)),
                rows,
                checkpoint,
            ]);
        }
    }
    match table.is_empty() {
        true => page.paragraph("There was no validation."),
        false => page.table(&table),
    }
}

fn plot(
    page: &mut Page,
    runs: &[RunView],
    title: &str,
    y: &str,
    options: (bool, bool),
    value: impl Fn(&Line) -> Option<f64>,
) {
    let mut plot = Curves::new(title, TOKENS, y);
    (plot.from_zero, plot.logarithmic) = options;
    for (style, run) in runs.iter().enumerate() {
        let (name, points) = (run.name.clone(), run.values(&value));
        plot.series.push(Series { name, points, style, ..Series::default() });
    }
    plot.draw(page);
}

/// The section on the optimizer: learning rate and gradient norm.
pub(super) fn write_optimizer(page: &mut Page, runs: &[RunView]) {
    page.section("optimizer", "Learning rate and gradients");
    plot(page, runs, "Learning rate", "learning rate", (true, false), |line| line.learning_rate);
    plot(page, runs, "Norm of all gradients together, before clipping", "norm", (false, true), |line| {
        line.gradient_norm
    });
    for run in runs {
        let clip = run.recipe.optimizer.clip_norm;
        let (above, all) = run
            .steps
            .values()
            .filter_map(|line| line.gradient_norm)
            .fold((0u64, 0u64), |(above, all), norm| (above + u64::from(norm > clip), all + 1));
        if clip > 0.0 && all > 0 {
            let share = percent(100.0 * above as f64 / all as f64);
            page.paragraph(&format!(
                "{}: {above} of {all} logged steps ({share}) were clipped at norm {clip}.",
                run.name
            ));
        }
    }
}

/// The section on speed: tokens a second, use of the device's peak, waiting, memory.
pub(super) fn write_speed(page: &mut Page, runs: &[RunView]) {
    page.section("speed", "Speed and memory");
    let columns = [
        "Run",
        "#Tokens a second, median",
        "#Use of the peak, median",
        "#Waiting for data, median",
        "#Most memory",
        "#Time",
    ];
    let mut table = Table::new("Speed over all ranks", &columns);
    for run in runs {
        let middle = |value: fn(&Line) -> Option<f64>| median(run.steps.values().filter_map(value));
        let memory = run.steps.values().filter_map(|line| line.memory_peak_bytes).max();
        let share = |share: f64| Cell::number(share, &percent(100.0 * share));
        table.cells(vec![
            Cell::text(&run.name),
            Cell::of(middle(|line| line.tokens_per_second), |speed| Cell::number(speed, &label(speed))),
            Cell::of(middle(|line| line.flop_utilization), share),
            Cell::of(middle(|line| line.data_wait_share), share),
            Cell::of(memory, |memory| Cell::number(memory as f64, &bytes(memory))),
            Cell::of(run.seconds, |seconds| Cell::number(seconds, &duration(seconds))),
        ]);
    }
    page.table(&table);
    let formulas: BTreeSet<_> = runs.iter().map(|run| run.recipe.model.formula()).collect();
    let formulas = formulas.into_iter().collect::<Vec<_>>().join(" or ");
    if runs.iter().all(|run| run.steps.values().all(|line| line.flop_utilization.is_none())) {
        page.paragraph(&format!(
            "The use of the device's peak ({formulas} operations a token over the dense bfloat16 peak) is not given: \
             the peak of this device is not known."
        ));
    } else {
        page.paragraph(&format!(
            "Use of the peak: {formulas} operations a token, forward and backward, over the device's dense bfloat16 peak."
        ));
    }
    plot(page, runs, "Speed over all ranks", "tokens a second", (true, false), |line| line.tokens_per_second);
    plot(page, runs, "Use of the device's peak", "percent", (true, false), |line| {
        line.flop_utilization.map(|share| 100.0 * share)
    });
    plot(page, runs, "Share of the time that training waited for data", "percent", (true, false), |line| {
        line.data_wait_share.map(|share| 100.0 * share)
    });
    plot(page, runs, "Most memory of the process so far", "GB", (true, false), |line| {
        line.memory_peak_bytes.map(|bytes| bytes as f64 / 1e9)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_stands_where_every_seed_has_a_value() {
        let curves =
            [vec![(10.0, 4.0), (20.0, 3.0), (30.0, 2.0)], vec![(10.0, 5.0), (20.0, f64::NAN), (30.0, 1.0)]];
        let (mean, band) = mean_and_band(&curves);
        assert_eq!(mean, [(10.0, 4.5), (30.0, 1.5)]);
        assert_eq!(band, [(10.0, 4.0, 5.0), (30.0, 1.0, 2.0)]);
        assert_eq!(mean_and_band(&[]), (vec![], vec![]));
    }
}
