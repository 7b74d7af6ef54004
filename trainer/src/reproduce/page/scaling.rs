//! Loss against size: methods that were trained at several sizes on the same tokens, and the exponent of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Cell, Curves, Page, Series, Table, count};

use super::super::experiments::Experiment;
use super::super::paper::variant;
use super::found::{Found, perplexity};
use super::ordering::method_and_size;
use super::{Context, Glance, seeds};
use crate::error::Result;
use crate::evaluation::statistics::student_quantile;

/// The experiment of the paper that this is.
const PLACE: &str = "Figure 6 and Table 7";
/// Whose recipes begin so.
const PREFIXES: [&str; 3] = ["figure6-scaling", "scaling-small", "figure6-small"];

/// A model of one size.
struct Size<'a> {
    parameters: u64,
    runs: Vec<&'a Found>,
    loss: f64,
}

/// The line that fits logarithms of perplexities to logarithms of sizes.
struct Fit {
    exponent: f64,
    /// Half the width of its 95 % interval; absent of fewer than three sizes.
    half: Option<f64>,
    /// Loss where the logarithm of the size is 0.
    intercept: f64,
}

/// Writes the section, where two sizes of a method were trained.
pub(super) fn write(
    page: &mut Page,
    experiment: &'static Experiment,
    context: &Context<'_>,
) -> Result<Option<Glance>> {
    if experiment.place != PLACE {
        return Ok(None);
    }
    let methods = methods(context);
    if methods.is_empty() {
        return Ok(None);
    }
    let id = "scaling".to_owned();
    page.section(&id, &format!("{}: {}", experiment.place, experiment.what));
    let scaled = methods.values().flatten().flat_map(|size| &size.runs);
    let sources: BTreeSet<PathBuf> =
        scaled.clone().filter_map(|found| found.validation()).map(|view| view.path.clone()).collect();
    let tokens: BTreeSet<u64> = scaled
        .clone()
        .map(|found| found.run.recipe.training.steps * found.run.recipe.training.tokens_per_step)
        .collect();
    context.learned(page, &sources)?;
    let roots: BTreeSet<_> = scaled.map(|found| found.run.manifest.train.root).collect();
    let trained: Vec<String> = tokens.iter().map(|&tokens| label(tokens as f64)).collect();
    page.paragraph(&format!(
        "Each method at several sizes, all on {} tokens (the paper: 15B of SlimPajama, 125M to 2.7B parameters, values in the figure \
         only). Perplexity falls as a power of the size; the exponent is the slope of a line through logarithms, its interval \
         Student's t over the sizes.",
        trained.join(" or ")
    ));
    if roots.len() > 1 {
        page.warning(
            "These runs were not trained on the same text: the differences are also those of the text.",
        );
    }
    let mut plot =
        Curves::new("Validation perplexity against size", "Parameters, power of ten", "Perplexity");
    plot.logarithmic = true;
    let columns = ["Method", "#Parameters", "#Validation perplexity", "#Seeds", "Reports"];
    let mut sizes_table = Table::new("Every size, with its reports", &columns);
    let columns = ["Method", "#Sizes", "#Exponent (95 %)", "#Exponent by parameters in products (95 %)"];
    let mut fits = Table::new("Perplexity ∝ parameters to the power of the exponent", &columns).sortable();
    for (style, (name, sizes)) in methods.iter().enumerate() {
        let logs = |value: &dyn Fn(&Size<'_>) -> f64| -> Vec<(f64, f64)> {
            sizes.iter().map(|size| (value(size).ln(), size.loss)).collect()
        };
        let all = fit(&logs(&|size| size.parameters as f64));
        let products = fit(&logs(&|size| {
            let model = &size.runs[0].run.recipe.model;
            xlstm_manifests::recipe::ModelSize::of(model).product_parameters as f64
        }));
        let place = |size: &Size<'_>| (size.parameters as f64).log10();
        let points = sizes.iter().map(|size| (place(size), size.loss.exp())).collect();
        plot.series.push(Series { name: name.clone(), points, dots: true, smoothed: false, style });
        if let Some(fit) = &all {
            let line = |size: &Size<'_>| {
                let at = size.parameters as f64;
                (at.log10(), (fit.intercept + fit.exponent * at.ln()).exp())
            };
            let points = sizes.iter().map(line).collect();
            let name = format!("{name}, fitted");
            plot.series.push(Series { name, points, dots: false, smoothed: false, style });
        }
        for size in sizes {
            sizes_table.cells(vec![
                Cell::text(name),
                Cell::number(size.parameters as f64, &label(size.parameters as f64)),
                Cell::decimals(size.loss.exp(), 2),
                Cell::count(size.runs.len() as u64),
                reports(size, context),
            ]);
        }
        fits.cells(vec![
            Cell::text(name),
            Cell::count(sizes.len() as u64),
            Cell::text(&name_of(&all)),
            Cell::text(&name_of(&products)),
        ]);
    }
    plot.draw(page);
    page.table(&fits);
    page.table(&sizes_table);
    let outcome = outcome(&methods);
    page.paragraph(&outcome);
    let compared = format!(
        "{} methods, up to {} sizes, {}",
        count(methods.len() as u64),
        count(methods.values().map(Vec::len).max().unwrap_or(0) as u64),
        seeds(methods.values().flatten().map(|size| size.runs.len() as u64))
    );
    Ok(Some(Glance { id, place: experiment.place, scale: "made small".into(), compared, outcome, sources }))
}

/// Who is best at each size that all of them have, and the slopes.
fn outcome(methods: &BTreeMap<String, Vec<Size<'_>>>) -> String {
    let best = |at: &dyn Fn(&Vec<Size<'_>>) -> Option<f64>| {
        let found = methods.iter().filter_map(|(name, sizes)| Some((name, at(sizes)?)));
        found.min_by(|a, b| a.1.total_cmp(&b.1)).map_or("–", |(name, _)| name.as_str())
    };
    let slopes: Vec<String> = methods
        .iter()
        .filter_map(|(name, sizes)| {
            let points: Vec<(f64, f64)> =
                sizes.iter().map(|size| ((size.parameters as f64).ln(), size.loss)).collect();
            fit(&points).map(|fit| format!("{name} {}", name_of(&Some(fit))))
        })
        .collect();
    format!(
        "Best at the smallest size: {}; at the largest: {}. Exponents: {}.",
        best(&|sizes| sizes.first().map(|size| size.loss)),
        best(&|sizes| sizes.last().map(|size| size.loss)),
        slopes.join(", ")
    )
}

fn name_of(fit: &Option<Fit>) -> String {
    match fit {
        Some(Fit { exponent, half: Some(half), .. }) => {
            format!("{exponent:.3} ({:.3} to {:.3})", exponent - half, exponent + half)
        }
        Some(fit) => format!("{:.3}", fit.exponent),
        None => "–".into(),
    }
}

fn reports(size: &Size<'_>, context: &Context<'_>) -> Cell {
    let views = size.runs.iter().filter_map(|found| found.validation());
    let links = views.map(|view| context.links.cell(&view.path, Cell::text("validation")));
    links.reduce(Cell::and).unwrap_or_else(Cell::missing)
}

/// Methods with two sizes or more; sizes ascend. Runs of other experiments on the same tokens of the same text count too.
fn methods<'a>(context: &Context<'a>) -> BTreeMap<String, Vec<Size<'a>>> {
    let usable = |found: &&Found| found.validation().is_some();
    let all: Vec<&Found> = context.runs.iter().filter(usable).collect();
    let is_own = |found: &Found| PREFIXES.iter().any(|prefix| found.run.recipe.name.starts_with(prefix));
    let key = |found: &Found| {
        let (manifest, training) = (&found.run.manifest, &found.run.recipe.training);
        let validation = manifest.validation.as_ref().map(|data| data.root);
        (manifest.train.root, validation, training.steps * training.tokens_per_step)
    };
    let own: Vec<&Found> = all.iter().copied().filter(|found| is_own(found)).collect();
    let names: BTreeSet<String> = own.iter().map(|found| name(found)).collect();
    let joins = |found: &&Found| {
        is_own(found)
            || (found.run.recipe.name.starts_with("table1-small/")
                && names.contains(&name(found))
                && own.iter().any(|other| key(other) == key(found)))
    };
    let mut methods: BTreeMap<String, BTreeMap<u64, Vec<&Found>>> = BTreeMap::new();
    for found in all.into_iter().filter(joins) {
        let sizes = methods.entry(name(found)).or_default();
        sizes.entry(found.run.manifest.parameters).or_default().push(found);
    }
    methods.retain(|_, sizes| sizes.len() > 1);
    let size = |(parameters, runs): (u64, Vec<&'a Found>)| {
        let losses: Vec<f64> = runs
            .iter()
            .filter_map(|found| found.validation().and_then(perplexity))
            .map(|figures| figures.total.loss)
            .collect();
        let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Size { parameters, runs, loss }
    };
    methods.into_iter().map(|(name, sizes)| (name, sizes.into_iter().map(size).collect())).collect()
}

/// The method without its size.
fn name(found: &Found) -> String {
    method_and_size(variant(&found.run.recipe.name)).0
}

/// Least squares; `None` of fewer than two different sizes.
fn fit(points: &[(f64, f64)]) -> Option<Fit> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let squares: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.len() < 2 || squares <= 0.0 {
        return None;
    }
    let exponent = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / squares;
    let intercept = mean_y - exponent * mean_x;
    let left: f64 = points.iter().map(|(x, y)| (y - intercept - exponent * x).powi(2)).sum();
    let half =
        (points.len() > 2).then(|| student_quantile(count - 2.0) * (left / (count - 2.0) / squares).sqrt());
    Some(Fit { exponent, half, intercept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_the_slope_with_students_interval() {
        let found = fit(&[(1.0, 3.0), (2.0, 2.5), (3.0, 2.0)]).unwrap();
        assert!((found.exponent + 0.5).abs() < 1e-12 && (found.intercept - 3.5).abs() < 1e-12);
        assert!(found.half.unwrap() < 1e-6);
        // Residuals 0.1, −0.2, 0.1: variance 0.06 over one degree of freedom, Student's 12.7062.
        let found = fit(&[(1.0, 1.1), (2.0, 1.8), (3.0, 3.1)]).unwrap();
        assert!((found.half.unwrap() - 12.7062 * (0.06_f64 / 2.0).sqrt()).abs() < 1e-3);
        assert!(fit(&[(1.0, 1.0)]).is_none() && fit(&[(1.0, 1.0), (1.0, 2.0)]).is_none());
        assert!(fit(&[(1.0, 1.0), (2.0, 2.0)]).unwrap().half.is_none());
    }
}
