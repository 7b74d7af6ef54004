//! Reports in the folder that belong to no section: nothing that was committed is left out in silence.

use std::collections::BTreeSet;
use std::path::PathBuf;

use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Cell, Page, Table};

use super::super::kind_of;
use super::Context;
use crate::evaluation::results::{Report, Results};

/// Writes the table of reports that are not among those `shown`.
pub(super) fn write(page: &mut Page, context: &Context<'_>, shown: &BTreeSet<&PathBuf>) {
    let columns = ["Model", "Recipe", "Measured", "On", "#Figure", "#Parameters", "Report"];
    let mut table = Table::new("Reports of no table or figure above", &columns).sortable();
    for (path, report) in context.committed.reports.iter().filter(|(path, _)| !shown.contains(path)) {
        let architecture = report.model.architecture.split(", ").next().unwrap_or_default();
        let parameters = report.model.parameters as f64;
        table.cells(vec![
            Cell::text(architecture),
            Cell::of(report.run.as_ref(), |run| Cell::text(&run.recipe.name)),
            Cell::text(kind_of(&report.results)),
            Cell::of(report.dataset.as_ref(), |data| {
                Cell::text(&format!("{}, {}", data.profile, data.split))
            }),
            figure(report),
            Cell::number(parameters, &label(parameters)),
            context.links.cell(path, Cell::text("report")),
        ]);
    }
    if !table.is_empty() {
        page.section("rest", "Also measured");
        page.table(&table);
    }
}

fn figure(report: &Report) -> Cell {
    match &report.results {
        Results::Accuracy(found) => Cell::decimals(found.total.accuracy, 4),
        Results::SquaredError(found) => {
            let figure = found.total.mean_squared_error;
            Cell::number(figure, &format!("{figure:.3e}"))
        }
        Results::Throughput(found) => {
            let best = found.batches.iter().map(|batch| batch.tokens_per_second).fold(0.0, f64::max);
            Cell::number(best, &format!("{} tokens/s", label(best)))
        }
        _ => Cell::of(report.headline(), |figure| Cell::decimals(figure, 2)),
    }
}
