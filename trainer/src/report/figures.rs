//! The figures of evaluations as tables and plots: perplexity, length extrapolation, generation speed.

use xlstm_pipeline::report::{Cell, Curves, Page, Series, Table, count};

use crate::evaluation::paper::{DOMAIN_MODELS, EXTRAPOLATION_16384};
use crate::evaluation::results::{
    Accuracy, AccuracyFigures, ErrorFigures, Extrapolation, Frequency, Interval, Named, Perplexity, Position,
    SquaredError, Statistics, Throughput,
};

/// A perplexity, with its 95 % interval where there is one.
pub(super) fn perplexity_cell(statistics: &Statistics) -> Cell {
    let cell = Cell::decimals(statistics.perplexity, 3);
    statistics.perplexity_interval.map_or(cell.clone(), |interval| cell.note(&range(interval, 3)))
}

fn range(interval: Interval, decimals: usize) -> String {
    format!("{:.decimals$} to {:.decimals$}", interval.low, interval.high)
}

/// A row: name, documents, tokens, loss, perplexity, bits a byte.
pub(super) fn statistics_cells(name: &str, statistics: &Statistics) -> Vec<Cell> {
    vec![
        Cell::text(name),
        Cell::count(statistics.documents),
        Cell::count(statistics.tokens),
        Cell::decimals(statistics.loss, 4),
        perplexity_cell(statistics),
        Cell::of(statistics.bits_per_byte, |bits| Cell::decimals(bits, 4)),
    ]
}

/// The section on perplexity over everything, by set and by place.
pub(super) fn perplexity(page: &mut Page, results: &Perplexity) {
    page.section("figures", "Figures");
    let columns = ["Set", "#Documents", "#Tokens", "#Loss", "#Perplexity, 95 % interval", "#Bits a byte"];
    let mut table = Table::new("Loss in nats a token; intervals over documents", &columns).sortable();
    table.cells(statistics_cells("everything", &results.total));
    for Named { name, statistics } in &results.sets {
        table.cells(statistics_cells(name, statistics));
    }
    page.table(&table);
    positions(page, &results.positions);
    frequencies(page, &results.frequencies);
}

fn frequencies(page: &mut Page, frequencies: &[Frequency]) {
    if frequencies.is_empty() {
        return;
    }
    page.section("frequencies", "By frequency in the training split");
    let title = "Perplexity by how often the target occurs in the training split";
    let mut plot = Curves::new(title, "decimal digits of the count", "perplexity");
    plot.logarithmic = true;
    let points = frequencies.iter().enumerate();
    let points = points.filter_map(|(digits, one)| Some((digits as f64, one.perplexity?)));
    plot.series.push(Series { name: "perplexity".into(), points: points.collect(), ..Series::default() });
    plot.draw(page);
    let columns = ["#Times in the training split", "#Types", "#Targets", "#Perplexity"];
    let mut table = Table::new("Types are tokens of the vocabulary that occur so often", &columns).sortable();
    for one in frequencies {
        table.cells(vec![
            Cell::number(one.first as f64, &one.name()),
            Cell::count(one.types),
            Cell::count(one.tokens),
            Cell::of(one.perplexity, |perplexity| Cell::decimals(perplexity, 3)),
        ]);
    }
    page.table(&table);
}

fn positions(page: &mut Page, positions: &[Position]) {
    if positions.is_empty() {
        return;
    }
    page.section("positions", "By place in the context");
    let mut plot = Curves::new(
        "Perplexity by the number of tokens before the target",
        "doublings of tokens before",
        "perplexity",
    );
    let points = positions.iter().enumerate().map(|(index, position)| (index as f64, position.perplexity));
    plot.series.push(Series { name: "perplexity".into(), points: points.collect(), ..Series::default() });
    plot.draw(page);
    let mut table =
        Table::new("Perplexity by place in the context", &["#Tokens before", "#Targets", "#Perplexity"])
            .sortable();
    for position in positions {
        let shown = format!("{} to {}", count(position.first), count(position.last));
        table.cells(vec![
            Cell::number(position.first as f64, &shown),
            Cell::count(position.tokens),
            Cell::decimals(position.perplexity, 3),
        ]);
    }
    page.table(&table);
}

/// The section on perplexity by context length; figures link to the id `chain`.
pub(super) fn extrapolation(page: &mut Page, results: &Extrapolation, chain: &str) {
    page.section("figures", "Perplexity by context length");
    let mut plot = Curves::new("Perplexity by context length", "tokens of context", "perplexity");
    let points = results.lengths.iter().map(|length| (length.length as f64, length.perplexity)).collect();
    plot.series.push(Series { name: "this model".into(), points, ..Series::default() });
    plot.draw(page);
    if let Some(trained) = results.trained_length {
        page.paragraph(&format!("The model was trained with a context of {} tokens.", count(trained)));
    }
    let columns = ["#Context", "#Stretches", "#Scored tokens", "#Perplexity", "#95 % interval"];
    let mut table = Table::new("Perplexity by context length", &columns);
    for length in &results.lengths {
        table.cells(vec![
            Cell::count(length.length),
            Cell::count(length.contexts),
            Cell::count(length.tokens),
            Cell::decimals(length.perplexity, 3).link(chain),
            Cell::of(length.perplexity_interval, |interval| Cell::text(&range(interval, 3))),
        ]);
    }
    page.table(&table);
    let mut table = Table::new(
        "The paper's 1.3B models at 16,384 tokens (Figure 7), trained with 2,048",
        &["Model", "#Perplexity"],
    );
    for (model, perplexity) in DOMAIN_MODELS.iter().zip(EXTRAPOLATION_16384) {
        table.cells(vec![Cell::text(model), Cell::decimals(perplexity, 2)]);
    }
    page.table(&table);
    positions(page, &results.positions);
}

/// The section on accuracy by length; the figure over everything links to the id `chain`.
pub(super) fn accuracy(page: &mut Page, results: &Accuracy, chain: &str) {
    page.section("figures", "Figures");
    if results.lengths.len() > 1 {
        let mut plot = Curves::new("Accuracy by length", "positions of an example that count", "accuracy");
        plot.from_zero = true;
        let points = results.lengths.iter().map(|length| (length.first as f64, length.figures.accuracy));
        plot.series.push(Series { name: "this model".into(), points: points.collect(), ..Series::default() });
        plot.draw(page);
    }
    let columns = ["Length", "#Examples", "#Targets", "#Right", "#Accuracy, 95 % interval", "#Loss"];
    let mut table = Table::new(
        "Share of targets that came out first, pooled over targets; intervals over examples",
        &columns,
    )
    .sortable();
    let cells = |name: Cell, figures: &AccuracyFigures| {
        let accuracy = Cell::decimals(figures.accuracy, 4);
        vec![
            name,
            Cell::count(figures.examples),
            Cell::count(figures.targets),
            Cell::count(figures.correct),
            figures.accuracy_interval.map_or(accuracy.clone(), |interval| accuracy.note(&range(interval, 4))),
            Cell::decimals(figures.loss, 4),
        ]
    };
    table.cells(cells(Cell::text("everything").link(chain), &results.total));
    for length in &results.lengths {
        table.cells(cells(Cell::number(length.first as f64, &length.name()), &length.figures));
    }
    page.table(&table);
    if let Some(scaled) = results.scaled {
        page.paragraph(&format!(
            "Scaled accuracy {:.4}: a guess among the possible answers is right with {:.4}, which is 0, and 1 is perfect.",
            scaled.total, scaled.chance
        ));
    }
    accuracy_positions(page, results);
}

fn accuracy_positions(page: &mut Page, results: &Accuracy) {
    if results.positions.len() < 2 {
        return;
    }
    let mut plot = Curves::new("Error by position", "position of a target, from 0", "share that is wrong");
    plot.from_zero = true;
    let points = results.positions.iter().map(|place| (place.first as f64, 1.0 - place.accuracy));
    plot.series.push(Series { name: "this model".into(), points: points.collect(), ..Series::default() });
    plot.draw(page);
    let columns = ["Position", "#Targets", "#Right", "#Accuracy", "#Loss"];
    let mut table = Table::new("The same by the position at which a target stands", &columns).sortable();
    for place in &results.positions {
        table.cells(vec![
            Cell::number(place.first as f64, &place.name()),
            Cell::count(place.targets),
            Cell::count(place.correct),
            Cell::decimals(place.accuracy, 4),
            Cell::decimals(place.nll / place.targets as f64, 4),
        ]);
    }
    page.table(&table);
}

/// The section on squared error by length and position; the figure over everything links to the id `chain`.
pub(super) fn squared_error(page: &mut Page, results: &SquaredError, chain: &str) {
    page.section("figures", "Figures");
    let mut plot =
        Curves::new("Mean squared error by position", "position of a target, from 0", "squared error");
    plot.logarithmic = true;
    let points = results.positions.iter().map(|place| (place.first as f64, place.mean_squared_error));
    plot.series.push(Series { name: "this model".into(), points: points.collect(), ..Series::default() });
    plot.draw(page);
    let number = |error: f64| Cell::number(error, &format!("{error:.4e}"));
    let error = |error: f64, interval: Option<Interval>| match interval {
        Some(Interval { low, high }) => number(error).note(&format!("{low:.3e}–{high:.3e}")),
        None => number(error),
    };
    let columns = ["Length", "#Examples", "#Targets", "#Mean squared error, 95 % interval"];
    let title = "Square of prediction less target, pooled over targets; intervals over examples";
    let mut table = Table::new(title, &columns).sortable();
    let mut line = |name: Cell, figures: &ErrorFigures| {
        let error = error(figures.mean_squared_error, figures.interval);
        table.cells(vec![name, Cell::count(figures.examples), Cell::count(figures.targets), error]);
    };
    line(Cell::text("everything").link(chain), &results.total);
    for length in &results.lengths {
        line(Cell::number(length.first as f64, &length.name()), &length.figures);
    }
    page.table(&table);
    let end = &results.at_end;
    page.paragraph(&format!(
        "At the last target of each of {} examples, where the whole sequence has been seen: {:.4e}. The best constant has \
         {:.4e}, the variance of the targets.",
        count(end.examples),
        end.mean_squared_error,
        results.target_variance
    ));
    let columns = ["Position", "#Targets", "#Mean squared error"];
    let mut table = Table::new("The same by the position at which a target stands", &columns).sortable();
    for place in &results.positions {
        let position = Cell::number(place.first as f64, &place.name());
        table.cells(vec![position, Cell::count(place.targets), number(place.mean_squared_error)]);
    }
    page.table(&table);
}

/// The section on time and speed of generation.
pub(super) fn throughput(page: &mut Page, results: &Throughput) {
    page.section("figures", "Generation");
    let mut plot = Curves::new("Time to generate at batch size 1", "tokens generated", "seconds");
    plot.from_zero = true;
    let points = results.generation.iter().map(|time| (time.tokens as f64, time.seconds)).collect();
    plot.series.push(Series { name: "this model".into(), points, ..Series::default() });
    plot.draw(page);
    let mut plot = Curves::new("Speed by batch size", "sequences at once", "tokens a second");
    plot.from_zero = true;
    let points = results.batches.iter().map(|batch| (batch.batch as f64, batch.tokens_per_second)).collect();
    plot.series.push(Series { name: "this model".into(), points, ..Series::default() });
    plot.draw(page);
    page.paragraph(&format!("Every sequence begins with a prompt of {} tokens.", count(results.prefill)));
}
