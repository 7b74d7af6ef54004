//! Figure 7: perplexity against the length of the context, of models that were trained at one length.

use std::collections::BTreeSet;
use std::path::PathBuf;

use xlstm_pipeline::report::{Cell, Curves, Page, Series, Table, count};

use super::super::experiments::Experiment;
use super::super::paper::{AT_16384, variant};
use super::agreement::kendall;
use super::ordering::{method_and_size, range};
use super::{Context, Glance};
use crate::error::Result;
use crate::evaluation::results::{Extrapolation, Report, Results};

/// The length that the paper's figures are known at.
const LENGTH: u64 = 16_384;

/// A model's figures.
struct Curve<'a> {
    /// Its method, as the paper names it.
    method: String,
    /// The same with what tells it from the others.
    name: String,
    path: &'a PathBuf,
    report: &'a Report,
    figures: &'a Extrapolation,
}

impl Curve<'_> {
    fn at(&self, length: u64) -> Option<f64> {
        self.figures.lengths.iter().find(|one| one.length == length).map(|one| one.perplexity)
    }

    fn paper(&self) -> Option<f64> {
        AT_16384.iter().find(|(name, _)| *name == self.method).map(|(_, figure)| *figure)
    }
}

/// Writes the section, where a model was evaluated on longer contexts.
pub(super) fn write(
    page: &mut Page,
    experiment: &'static Experiment,
    context: &Context<'_>,
) -> Result<Option<Glance>> {
    if experiment.kind != "extrapolation" {
        return Ok(None);
    }
    let curves = curves(context);
    if curves.is_empty() {
        return Ok(None);
    }
    let id = "longer".to_owned();
    page.section(&id, &format!("{}: {}", experiment.place, experiment.what));
    let lengths: BTreeSet<u64> =
        curves.iter().flat_map(|curve| &curve.figures.lengths).map(|one| one.length).collect();
    page.paragraph(&format!(
        "Perplexity of the same tokens with longer and longer contexts. The paper has models of 1.3B parameters, trained on 300B \
         tokens of contexts of 2048; these have {}. Its text and tables print no perplexity of this figure: those at 16,384 \
         tokens below are from public notes on it.",
        range(curves.iter().map(|curve| curve.report.model.parameters as f64))
    ));
    let sources: BTreeSet<PathBuf> = curves.iter().map(|curve| curve.path.clone()).collect();
    context.learned(page, &sources)?;
    let data: BTreeSet<_> =
        curves.iter().filter_map(|curve| curve.report.dataset.as_ref()).map(|data| data.root).collect();
    if data.len() > 1 {
        page.warning("These reports are of different text: their figures do not compare.");
    }
    let mut plot = Curves::new("Perplexity against context length", "Context, power of two", "Perplexity");
    plot.logarithmic = true;
    for (style, curve) in curves.iter().enumerate() {
        let points = curve.figures.lengths.iter().map(|one| ((one.length as f64).log2(), one.perplexity));
        let (name, points) = (curve.name.clone(), points.collect());
        plot.series.push(Series { name, points, dots: false, smoothed: false, style });
    }
    plot.draw(page);
    write_table(page, &curves, &lengths, context);
    let outcome = outcome(&curves);
    page.paragraph(&outcome);
    let compared = format!(
        "{} models, contexts of {} to {} tokens",
        count(curves.len() as u64),
        count(*lengths.first().unwrap_or(&0)),
        count(*lengths.last().unwrap_or(&0))
    );
    Ok(Some(Glance { id, place: experiment.place, scale: "made small".into(), compared, outcome, sources }))
}

fn curves<'a>(context: &Context<'a>) -> Vec<Curve<'a>> {
    let mut curves: Vec<Curve<'_>> = Vec::new();
    for (path, report) in &context.committed.reports {
        let Results::Extrapolation(figures) = &report.results else { continue };
        let (method, size) = match &report.run {
            Some(run) => method_and_size(variant(&run.recipe.name)),
            None => (report.model.architecture.clone(), None),
        };
        let name = size.map_or_else(|| method.clone(), |size| format!("{method} {size}"));
        curves.push(Curve { method, name, path, report, figures });
    }
    let names: Vec<String> = curves.iter().map(|curve| curve.name.clone()).collect();
    for curve in &mut curves {
        if names.iter().filter(|name| **name == curve.name).count() > 1 {
            // Seeds, or recipes, of one method: the folder tells them apart.
            let folder = context.links.name(curve.path);
            curve.name = format!("{} ({})", curve.name, folder.trim_end_matches("/report.json"));
        }
    }
    curves
}

fn write_table(page: &mut Page, curves: &[Curve<'_>], lengths: &BTreeSet<u64>, context: &Context<'_>) {
    let mut columns = vec!["Model".to_owned()];
    columns.extend(lengths.iter().map(|length| format!("#{}", count(*length))));
    columns.extend(["#Longest over trained".to_owned(), "#Paper, 1.3B, at 16,384".into(), "Report".into()]);
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("Perplexity by tokens of context", &columns).sortable();
    for curve in curves {
        let mut cells = vec![Cell::text(&curve.name)];
        cells.extend(lengths.iter().map(|&length| Cell::of(curve.at(length), |one| Cell::decimals(one, 2))));
        cells.push(Cell::of(growth(curve), |ratio| Cell::decimals(ratio, 2)));
        cells.push(Cell::of(curve.paper(), |figure| Cell::decimals(figure, 2)));
        cells.push(context.links.cell(curve.path, Cell::text("report")));
        table.cells(cells);
    }
    page.table(&table);
}

/// The perplexity at the longest context over that at the trained one.
fn growth(curve: &Curve<'_>) -> Option<f64> {
    let trained = curve.at(curve.figures.trained_length?)?;
    Some(curve.figures.lengths.last()?.perplexity / trained)
}

fn outcome(curves: &[Curve<'_>]) -> String {
    let grows: Vec<String> =
        curves.iter().filter_map(|curve| Some(format!("{} {:.2}", curve.name, growth(curve)?))).collect();
    let both: Vec<(f64, f64)> =
        curves.iter().filter_map(|curve| Some((curve.paper()?, curve.at(LENGTH)?))).collect();
    let (paper, ours): (Vec<f64>, Vec<f64>) = both.into_iter().unzip();
    let tau = kendall(&paper, &ours).map_or_else(String::new, |tau| {
        format!(" Kendall's τ of the orders at 16,384 tokens, ours and the paper's, is {tau:.2}.")
    });
    format!("Perplexity at the longest context over that at the trained one: {}.{tau}", grows.join(", "))
}
