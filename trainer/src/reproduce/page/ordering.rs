//! An experiment of perplexities, at the paper's protocol or made small: the paper's order beside ours.

use std::collections::BTreeSet;

use xlstm_manifests::recipe::{self, ModelSize, Recipe};
use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Cell, Page, Ranged, Ranked, Table, count, intervals, rankings};

use super::super::experiments::Experiment;
use super::super::paper::{PaperRow, variant};
use super::super::variants;
use super::agreement::{kendall, places};
use super::found::{Found, perplexity};
use super::pairs::{Pair, between, counts, over_seeds, pairs, shown};
use super::{Context, Glance, pairs as all_pairs, seeds};
use crate::error::Result;
use crate::report::{RunView, comparisons, groups, median};

/// Places by which a method may move before its line is broken.
const FAR: usize = 3;

/// A row of the paper's table with the recipes that stand for it.
struct Row {
    paper: PaperRow,
    recipe: Recipe,
    /// Names of recipes whose runs are this row's.
    ours: BTreeSet<String>,
}

/// A row with its runs, which differ in nothing but the seed.
struct Method<'a> {
    label: String,
    row: &'a Row,
    /// The name of its group of runs.
    group: String,
    runs: Vec<&'a Found>,
    /// Mean loss on the validation split.
    loss: f64,
}

/// How long runs of an experiment are: as long as their recipe says, or of so many steps in place of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Length {
    OfRecipe,
    Steps(u64),
}

impl Length {
    fn of(found: &Found) -> Self {
        let trained = &found.run.recipe;
        let steps = trained.training.steps;
        match recipe::load(&trained.name, &[]) {
            Ok(recipe) if recipe.training.steps != steps => Self::Steps(steps),
            // A recipe of the user's own is as long as it is.
            _ => Self::OfRecipe,
        }
    }
}

/// The lengths that runs of an experiment have: each is a comparison of its own, since more steps are another protocol, not another
/// seed.
pub(super) fn lengths(experiment: &Experiment, context: &Context<'_>) -> Result<BTreeSet<Length>> {
    if experiment.kind != "perplexity" {
        return Ok(BTreeSet::new());
    }
    let rows = rows(experiment)?;
    Ok(found(&rows, context).into_iter().map(Length::of).collect())
}

/// Writes the section of the runs of one length, where there are two methods to compare.
pub(super) fn write(
    page: &mut Page,
    experiment: &'static Experiment,
    context: &Context<'_>,
    length: Length,
) -> Result<Option<Glance>> {
    let rows = rows(experiment)?;
    let methods = methods(&rows, context, length);
    if methods.len() < 2 {
        return Ok(None);
    }
    let twin = experiment.twin.as_ref();
    let small = methods.iter().any(|method| method.row.recipe.name != method.runs[0].run.recipe.name);
    let scale = if small { "made small" } else { "the paper's protocol" };
    let (suffix, scale) = match length {
        Length::OfRecipe => (String::new(), scale.to_owned()),
        Length::Steps(steps) => (format!("-{steps}-steps"), format!("{scale}, {} steps", count(steps))),
    };
    let id = format!("order-{}{suffix}", identifier(experiment.place));
    let of_scale = if small || length != Length::OfRecipe { format!(", {scale}") } else { String::new() };
    page.section(&id, &format!("{}: {}{of_scale}", experiment.place, experiment.what));
    if let Some(twin) = twin.filter(|_| small && length == Length::OfRecipe) {
        page.paragraph(&format!("A small twin, {}: {}.", twin.recipe, twin.differs.replace('`', "")));
    }
    let mut sources = BTreeSet::new();
    for found in methods.iter().flat_map(|method| &method.runs) {
        sources.extend(found.validation().into_iter().chain(found.test()).map(|view| view.path.clone()));
    }
    let runs: Vec<&RunView> =
        methods.iter().flat_map(|method| &method.runs).map(|found| &found.run).collect();
    let evaluations: Vec<_> = methods
        .iter()
        .flat_map(|method| &method.runs)
        .filter_map(|found| found.validation())
        .cloned()
        .collect();
    let compared = comparisons(&runs, &evaluations)?;
    let names: Vec<String> = methods.iter().map(|method| method.group.clone()).collect();
    let paper: Vec<f64> = methods.iter().map(|method| method.row.paper.perplexity).collect();
    let pairs = pairs(&names, &paper, &compared);
    let losses: Vec<f64> = methods.iter().map(|method| method.loss).collect();
    let outcome = outcome(&pairs, kendall(&paper, &losses));
    page.paragraph(&outcome);
    context.learned(page, &sources)?;
    if !over_seeds(&pairs) {
        page.paragraph(
            "Intervals are over documents of the validation split, paired, so that hard documents do not count twice. Where each \
             method has one seed, the seed may be why two of them differ; the paper has one figure of each and no interval.",
        );
    }
    write_orders(page, &methods, &paper, &losses, small);
    write_differences(page, &methods, &pairs, &paper);
    write_table(page, &methods, &pairs, context);
    let labels: Vec<String> = methods.iter().map(|method| method.label.clone()).collect();
    let figures: Vec<String> = methods.iter().map(|method| method.row.paper.shown()).collect();
    all_pairs::write(page, &pairs, &labels, &figures);
    write_protocol(page, &methods);
    let missing: Vec<&str> = rows
        .iter()
        // Several recipes may stand for one row of the paper.
        .filter(|row| methods.iter().all(|method| method.row.paper != row.paper))
        .map(|row| row.paper.label.as_str())
        .collect();
    if !missing.is_empty() && length == Length::OfRecipe {
        page.paragraph(&format!("Not run: {}.", missing.join(", ")));
    }
    let compared = format!(
        "{} methods, {}",
        count(methods.len() as u64),
        seeds(methods.iter().map(|method| method.runs.len() as u64))
    );
    Ok(Some(Glance { id, place: experiment.place, scale, compared, outcome, sources }))
}

/// The rows of the paper's table that print a perplexity.
fn rows(experiment: &Experiment) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for recipe in variants(experiment.recipes)? {
        let Some(paper) = PaperRow::of(&recipe) else { continue };
        let own = variant(&recipe.name);
        let mut ours = BTreeSet::from([recipe.name.clone()]);
        if let Some(twin) = &experiment.twin {
            if twin.variants.is_empty() || twin.variants.contains(&own) {
                ours.insert(format!("{}/{own}", twin.recipe));
            }
            let shared = twin.shared.iter().filter(|(_, of)| *of == own);
            ours.extend(shared.map(|(name, _)| (*name).to_owned()));
        }
        rows.push(Row { paper, recipe, ours });
    }
    Ok(rows)
}

/// Runs of the rows' recipes that have a report on the validation split.
fn found<'a>(rows: &[Row], context: &Context<'a>) -> Vec<&'a Found> {
    let wanted = |found: &&Found| {
        let name = &found.run.recipe.name;
        found.validation().is_some() && rows.iter().any(|row| row.ours.contains(name))
    };
    context.runs.iter().filter(wanted).collect()
}

/// Rows that have runs of this length, those with the lowest loss first. Of a row with runs of several recipes each is a method of its
/// own.
fn methods<'a>(rows: &'a [Row], context: &Context<'a>, length: Length) -> Vec<Method<'a>> {
    let mut found = found(rows, context);
    found.retain(|found| Length::of(found) == length);
    let views: Vec<&RunView> = found.iter().map(|found| &found.run).collect();
    let mut methods: Vec<Method<'_>> = Vec::new();
    for (group, members) in groups(&views) {
        let runs: Vec<&Found> = members.iter().map(|&index| found[index]).collect();
        let name = &runs[0].run.recipe.name;
        let Some(row) = rows.iter().find(|row| row.ours.contains(name)) else { continue };
        let losses: Vec<f64> = runs.iter().filter_map(|run| loss(run)).collect();
        let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        methods.push(Method { label: row.paper.label.clone(), row, group, runs, loss });
    }
    methods.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    let labels: Vec<String> = methods.iter().map(|method| method.label.clone()).collect();
    for method in &mut methods {
        if labels.iter().filter(|label| **label == method.label).count() > 1 {
            method.label = format!("{} ({})", method.label, method.runs[0].run.recipe.name);
        }
    }
    methods
}

fn loss(found: &Found) -> Option<f64> {
    found.validation().and_then(perplexity).map(|figures| figures.total.loss)
}

fn outcome(pairs: &[Pair], tau: Option<f64>) -> String {
    let [agree, contradict, undecided] = counts(pairs.iter());
    let all = agree + contradict + undecided;
    let tau = tau.map_or_else(String::new, |tau| {
        format!(" Kendall's τ of the two orders is {tau:.2} (1: the same, 0: none, −1: reversed).")
    });
    if all == 1 {
        let how = match (agree, contradict) {
            (1, _) => "come out as in the paper",
            (_, 1) => "come out the other way",
            _ => "cannot be told apart",
        };
        return format!("Two methods, which {how}.");
    }
    format!(
        "Of {all} pairs that the paper orders, {agree} come out as there, {contradict} the other way, {undecided} cannot be told \
         apart.{tau}"
    )
}

fn write_orders(page: &mut Page, methods: &[Method<'_>], paper: &[f64], losses: &[f64], small: bool) {
    let (before, after) = (places(paper), places(losses));
    let mut rows: Vec<Ranked> = methods
        .iter()
        .enumerate()
        .map(|(index, method)| Ranked {
            label: method.label.clone(),
            places: [before[index], after[index]],
            shown: [method.row.paper.shown(), format!("{:.2}", method.loss.exp())],
        })
        .collect();
    rows.sort_by_key(|row| row.places[0]);
    let title = format!(
        "The paper's order and ours by validation perplexity, best first. A broken line: moved by more than {FAR} places"
    );
    page.push(&rankings(&title, ["paper", if small { "here, small" } else { "here" }], &rows, FAR));
}

/// Differences to the paper's best method, with their intervals.
fn write_differences(page: &mut Page, methods: &[Method<'_>], pairs: &[Pair], paper: &[f64]) {
    let Some(best) = places(paper).iter().position(|&place| place == 0) else { return };
    let rows: Vec<Ranged> = (0..methods.len())
        .filter(|&index| index != best)
        .filter_map(|index| {
            let (value, interval) = between(pairs, index, best)?;
            let label = methods[index].label.clone();
            Some(Ranged { label, value, interval, shown: shown(value, interval) })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let title = format!(
        "Validation loss less that of {}, the paper's best, in nats a token, with the 95 % interval; left of the line is better",
        methods[best].label
    );
    page.push(&intervals(&title, &rows));
}

fn write_table(page: &mut Page, methods: &[Method<'_>], pairs: &[Pair], context: &Context<'_>) {
    let several = methods.iter().any(|method| method.runs.len() > 1);
    let validation =
        if several { "#Validation perplexity (each seed)" } else { "#Validation perplexity (95 %)" };
    let columns = [
        "Method",
        "#Paper",
        "#Rank there",
        "#Rank here",
        validation,
        "#Test",
        "#Pairs against the paper",
        "#Parameters",
        "#Tokens a second in training",
        "Reports",
    ];
    let mut table =
        Table::new("Perplexities, paper and ours, with the reports that they come from", &columns).sortable();
    let paper: Vec<f64> = methods.iter().map(|method| method.row.paper.perplexity).collect();
    let ranks = places(&paper);
    for (index, method) in methods.iter().enumerate() {
        let [agree, contradict, undecided] =
            counts(pairs.iter().filter(|pair| pair.methods.contains(&index)));
        let mut by_seed: Vec<String> = Vec::new();
        let (mut test, mut tests) = (0.0, 0);
        let mut reports: Option<Cell> = None;
        for found in &method.runs {
            by_seed.extend(loss(found).map(|loss| format!("{:.2}", loss.exp())));
            if let Some(figures) = found.test().and_then(perplexity) {
                (test, tests) = (test + figures.total.loss, tests + 1);
            }
            for view in found.validation().into_iter().chain(found.test()) {
                let split = view.report.dataset.as_ref().map_or("report", |data| &data.split);
                let seed = found.run.recipe.training.initialization_seed();
                let name = if method.runs.len() > 1 { format!("{split} {seed}") } else { split.to_owned() };
                let link = context.links.cell(&view.path, Cell::text(&name));
                reports = Some(match reports {
                    Some(before) => before.and(link),
                    None => link,
                });
            }
        }
        let one = method.runs[0];
        let total = one.validation().and_then(perplexity).map(|figures| figures.total);
        let interval = total.and_then(|total| total.perplexity_interval).filter(|_| !several);
        let mean = method.loss.exp();
        let shown = match interval {
            Some(interval) => format!("{mean:.2} ({:.1} to {:.1})", interval.low, interval.high),
            None if method.runs.len() > 1 => format!("{mean:.2} ({})", by_seed.join(", ")),
            None => format!("{mean:.2}"),
        };
        let speed = median(one.run.steps.values().filter_map(|line| line.tokens_per_second));
        table.cells(vec![
            Cell::text(&method.label),
            Cell::number(paper[index], &method.row.paper.shown()),
            Cell::count(ranks[index] as u64 + 1),
            Cell::count(index as u64 + 1),
            Cell::number(mean, &shown),
            Cell::of((tests > 0).then(|| (test / f64::from(tests)).exp()), |test| Cell::decimals(test, 2)),
            Cell::number(contradict as f64, &format!("{contradict} of {}", agree + contradict + undecided)),
            Cell::number(one.run.manifest.parameters as f64, &label(one.run.manifest.parameters as f64)),
            Cell::of(speed, |speed| Cell::number(speed, &label(speed))),
            reports.unwrap_or_else(Cell::missing),
        ]);
    }
    page.table(&table);
}

/// What is not the paper's, in numbers.
fn write_protocol(page: &mut Page, methods: &[Method<'_>]) {
    let paper: Vec<&Recipe> = methods.iter().map(|method| &method.row.recipe).collect();
    let runs: Vec<&Found> = methods.iter().flat_map(|method| method.runs.iter().copied()).collect();
    let ours: Vec<&Recipe> = runs.iter().map(|found| &found.run.recipe).collect();
    let parameters = |recipe: &Recipe| ModelSize::of(&recipe.model).parameters as f64;
    let tokens = |recipe: &Recipe| (recipe.training.steps * recipe.training.tokens_per_step) as f64;
    let mut table = Table::new("What differs from the paper's protocol", &["", "Paper", "Here"]);
    let mut row = |name: &str, value: &dyn Fn(&Recipe) -> f64| {
        let range = |recipes: &[&Recipe]| range(recipes.iter().map(|recipe| value(recipe)));
        table.row(&[name, &range(&paper), &range(&ours)]);
    };
    row("Parameters", &parameters);
    row("Tokens of training", &tokens);
    row("Tokens a parameter", &|recipe| tokens(recipe) / parameters(recipe));
    row("Context, tokens", &|recipe| recipe.training.context_length as f64);
    row("Tokens a step", &|recipe| recipe.training.tokens_per_step as f64);
    row("Steps", &|recipe| recipe.training.steps as f64);
    row("Peak learning rate", &|recipe| recipe.optimizer.learning_rate);
    let trained: BTreeSet<String> = runs
        .iter()
        .map(|found| {
            let train = &found.run.manifest.train;
            let root = train.root.to_string();
            format!("{} tokens ({}), root {}…", label(train.tokens as f64), train.profile, &root[..12])
        })
        .collect();
    table.row(&["Text of training", "SlimPajama", &trained.iter().cloned().collect::<Vec<_>>().join("; ")]);
    if trained.len() > 1 {
        page.warning(
            "These runs were not trained on the same text: the differences are also those of the text.",
        );
    }
    let devices: BTreeSet<&str> =
        runs.iter().flat_map(|found| found.run.sessions()).map(|session| session.device.as_str()).collect();
    table.row(&["Device", "A100", &devices.into_iter().collect::<Vec<_>>().join(", ")]);
    page.table(&table);
}

/// A value, or the range of several.
pub(super) fn range(values: impl Iterator<Item = f64>) -> String {
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let shown = |value: f64| match value {
        v if v < 0.01 => format!("{v:e}"),
        v if v.fract() == 0.0 && v < 1e6 => count(v as u64),
        v => label(v),
    };
    if shown(low) == shown(high) { shown(low) } else { format!("{} to {}", shown(low), shown(high)) }
}

/// A place in the paper as a part of an id.
pub(super) fn identifier(place: &str) -> String {
    let parts: Vec<String> = place
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .map(str::to_lowercase)
        .collect();
    parts.join("-")
}

/// The paper's name of the method that a variant is, and its size where the variant says one: `25m-7to1` is xLSTM[7:1] of 25M. The
/// variant where Table 1 has no such method.
pub(super) fn method_and_size(variant: &str) -> (String, Option<String>) {
    let is_size = |part: &&str| {
        let digits = part.trim_end_matches(['m', 'b']);
        digits.len() < part.len() && digits.parse::<f64>().is_ok()
    };
    let (sizes, method): (Vec<&str>, Vec<&str>) = variant.split('-').partition(is_size);
    let method = method.join("-");
    let recipe = recipe::load(&format!("table1-15b/{method}"), &[]).ok();
    let name = recipe.and_then(|recipe| PaperRow::of(&recipe)).map_or(method, |row| row.label);
    (name, sizes.first().map(|size| size.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_a_method_and_a_size() {
        let size = |text: &str| Some(text.to_owned());
        assert_eq!(method_and_size("25m-7to1"), ("xLSTM[7:1]".into(), size("25M")));
        assert_eq!(method_and_size("1.3b-mamba"), ("Mamba".into(), size("1.3B")));
        assert_eq!(method_and_size("rwkv4"), ("RWKV-4".into(), None));
        assert_eq!(method_and_size("other-form"), ("other-form".into(), None));
        assert_eq!(identifier("Table 3, perplexity, and Figure 8"), "table-3-perplexity-and-figure-8");
        assert_eq!(range([2048.0, 2048.0].into_iter()), "2,048");
        assert_eq!(range([0.001, 0.0015].into_iter()), "1e-3 to 1.5e-3");
    }
}
