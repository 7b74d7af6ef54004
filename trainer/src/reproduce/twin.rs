//! An experiment made small: the table of its reports, below the paper's own recipes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use xlstm_manifests::recipe::{ModelSize, Recipe};

use super::experiments::Twin;
use super::{kind_of, reservations, variants};
use crate::error::{Result, TrainError};
use crate::evaluation::results::{Report, Results};

/// The reports of a small twin, the best on the validation split first, and its recipes that have none.
pub(super) fn write_twin(out: &mut String, twin: &Twin, reports: &BTreeMap<PathBuf, Report>) -> Result<()> {
    let _ = write!(
        out,
        "\n**A small twin, `{}`, whose figures do not compare with the paper's, only their order:** {}.\n",
        twin.recipe, twin.differs
    );
    let recipes = variants(&[twin.recipe])?;
    let recipes = recipes.into_iter().filter(|recipe| {
        let variant = recipe.name.rsplit('/').next().unwrap_or_default();
        twin.variants.is_empty() || twin.variants.contains(&variant)
    });
    let shared: Vec<&str> = twin.shared.iter().map(|(name, _)| *name).collect();
    let shared = if shared.is_empty() { Vec::new() } else { variants(&shared)? };
    let recipes = recipes.map(|recipe| (recipe, true));
    let shared = shared.into_iter().filter(|recipe| twin.shared.iter().any(|(name, _)| *name == recipe.name));
    let (mut lines, mut others, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (recipe, own) in recipes.chain(shared.map(|recipe| (recipe, false))) {
        let mut found = runs_of(&recipe, reports)?;
        let longer = found.extract_if(.., |run| run.step().is_some_and(|step| step > recipe.training.steps));
        // Another twin's longer runs are no row of this experiment.
        others.extend(longer.filter(|_| own).map(|run| run.line(&recipe)));
        if found.is_empty() {
            missing.push(format!("`{}`", recipe.name));
        }
        lines.extend(found.into_iter().map(|run| run.line(&recipe)));
    }
    write_lines(out, lines);
    if !others.is_empty() {
        out.push_str("\nTrained for more steps than the recipe has:\n");
        write_lines(out, others);
    }
    if !missing.is_empty() {
        let _ = writeln!(out, "\nNot run: {}.", missing.join(", "));
    }
    Ok(())
}

/// The table of these lines, the lowest perplexity first.
fn write_lines(out: &mut String, mut lines: Vec<(f64, String)>) {
    lines.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    if !lines.is_empty() {
        out.push_str(
            "\n| recipe | parameters | validation perplexity (95 %) | test perplexity (95 %) | steps | data root |\n\
             |---|---:|---|---|---:|---|\n",
        );
    }
    lines.iter().for_each(|(_, line)| out.push_str(line));
}

/// A run of a small twin: its reports by split.
struct TwinRun<'a> {
    splits: BTreeMap<&'a str, &'a Report>,
}

impl TwinRun<'_> {
    /// The step whose checkpoint was evaluated.
    fn step(&self) -> Option<u64> {
        self.splits.values().next()?.model.step
    }

    /// The perplexity on the validation split, and the run's line.
    fn line(&self, recipe: &Recipe) -> (f64, String) {
        let perplexity = |split: &str| match self.splits.get(split) {
            Some(report) => match &report.results {
                Results::Perplexity(found) => Some((&found.total, reservations(report))),
                _ => None,
            },
            None => None,
        };
        let shown = |split: &str| match perplexity(split) {
            Some((total, marks)) => match &total.perplexity_interval {
                Some(interval) => {
                    format!("{:.2} ({:.1} to {:.1}){marks}", total.perplexity, interval.low, interval.high)
                }
                None => format!("{:.2}{marks}", total.perplexity),
            },
            None => "–".to_owned(),
        };
        let any = self.splits.values().next();
        let step = self.step().map_or_else(
            || "–".to_owned(),
            |step| match recipe.training.steps {
                steps if step > steps => format!("{step} (the recipe has {steps})"),
                steps => format!("{step} of {steps}"),
            },
        );
        let root = any.and_then(|report| report.run.as_ref()).map(|run| run.train.root.to_string());
        let line = format!(
            "| `{}` | {:.1}M | {} | {} | {step} | `{}` |\n",
            recipe.name,
            ModelSize::of(&recipe.model).parameters as f64 / 1e6,
            shown("validation"),
            shown("test"),
            root.unwrap_or_else(|| "–".to_owned()),
        );
        (perplexity("validation").map_or(f64::INFINITY, |(total, _)| total.perplexity), line)
    }
}

/// All runs of a recipe that have a report of perplexity, told apart by their run manifests.
///
/// # Errors
/// When two reports are of the same run and split: which of them counts, nothing says.
fn runs_of<'a>(recipe: &Recipe, reports: &'a BTreeMap<PathBuf, Report>) -> Result<Vec<TwinRun<'a>>> {
    let mut runs: BTreeMap<String, TwinRun<'a>> = BTreeMap::new();
    for (path, report) in reports {
        let (Some(run), Some(dataset)) = (&report.run, &report.dataset) else { continue };
        // Perplexity by frequency is of another text than the training's own, and is told where it was measured.
        let by_frequency = report.setting.counts.is_some();
        if run.recipe.name != recipe.name || kind_of(&report.results) != "perplexity" || by_frequency {
            continue;
        }
        let empty = || TwinRun { splits: BTreeMap::new() };
        let found = runs.entry(run.manifest_sha256.to_string()).or_insert_with(empty);
        if found.splits.insert(&dataset.split, report).is_some() {
            let what = format!("another report of the same run on the split {}", dataset.split);
            return Err(TrainError::file(path, "one report of a run and split", what, "keep one of the two"));
        }
    }
    Ok(runs.into_values().collect())
}
