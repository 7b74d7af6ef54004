//! `docs/reproduce.md`: every table and figure of the paper, what reproduces it here, and what came out.
//!
//! The text is printed by `xlstm-eval reproduce` from the built-in recipes and from the evaluation reports and results of
//! sweeps under a folder of results; nothing in it is typed by hand but the list of the paper's experiments below. A recipe whose run
//! has no report gets its cost: operations a token (`xlstm_manifests::recipe::Architecture`) × tokens ÷ a
//! published rate.

mod committed;
mod experiments;
mod page;
mod paper;
mod twin;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use xlstm_manifests::recipe::{self, Builtin, ModelSize, Recipe, builtins};

use committed::{Committed, FoundSweep};
use experiments::{EXPERIMENTS, Experiment};
pub use page::results_page;
use twin::write_twin;

use crate::error::Result;
use crate::evaluation::results::{Report, Results};
use crate::sweep;

/// Operations a second of one GPU that costs are computed with: what the authors' own code for this architecture
/// reached on an H100, 28,130 tokens a second of the 400M model (xLSTM-7B paper, arXiv 2503.13427, table 2,
/// "previous" block), times the operations of a token of our 350M xLSTM[7:1].
const RATE: Rate = Rate { tokens_per_second: 28_130.0, recipe: "table1-15b/7to1" };

/// A speed with the recipe whose operations it counts.
struct Rate {
    tokens_per_second: f64,
    recipe: &'static str,
}

impl Rate {
    fn operations_per_second(&self) -> Result<f64> {
        let recipe = recipe::load(self.recipe, &[])?;
        Ok(self.tokens_per_second * recipe.operations_per_token() as f64)
    }
}

/// Which commands an evaluation comes from.
fn kind_of(results: &Results) -> &'static str {
    match results {
        Results::Perplexity(_) => "perplexity",
        Results::Paloma(_) => "paloma",
        Results::Extrapolation(_) => "extrapolation",
        Results::Throughput(_) => "throughput",
        Results::Accuracy(_) => "accuracy",
        Results::SquaredError(_) => "squared-error",
    }
}

/// The document: reports are looked for in `results` and its subfolders, if there is such a folder.
///
/// # Errors
/// When a recipe does not resolve, or a report cannot be read.
pub fn reproduce(results: &Path) -> Result<String> {
    let committed = Committed::read(results)?;
    let rate = RATE.operations_per_second()?;
    let mut out = String::from(
        "# Every table and figure of the paper\n\n\
         The paper is Beck et al., \"xLSTM: Extended Long Short-Term Memory\", NeurIPS 2024, arXiv 2405.04517v2. This page is the \
         output of `xlstm-eval reproduce`; a test compares it.\n\n\
         A figure of ours comes from an evaluation report under `docs/results`, which names checkpoint, run and data by digest \
         (`xlstm-eval verify` follows them). Where there is none, the page gives the cost of training: operations a token \
         (forward and backward; `xlstm-train --recipe NAME --dry-run` prints number and formula) times tokens, over ",
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:.1} TFLOP/s for each GPU: what the authors' own code reached on an H100, {} tokens a second of the 400M model \
         with this architecture's block (xLSTM-7B paper, arXiv 2503.13427, table 2, \"previous\"), counted with the operations of \
         `{}`. A GPU-day is a day of one such GPU.\n",
        rate / 1e12,
        RATE.tokens_per_second,
        RATE.recipe
    );
    out.push_str(
        "`RUN` stands for the folder that `xlstm-train --recipe NAME --manifest DATA/train --out RUN` was given. The data's root is \
         printed by `xlstm-data prepare` and stands in every report.\n",
    );
    for experiment in EXPERIMENTS {
        write_experiment(&mut out, experiment, &committed, rate)?;
    }
    write_total(&mut out, rate)?;
    Ok(out)
}

/// Figures of sweeps: the best learning rate of each task and model, beside the paper's.
fn write_sweeps(out: &mut String, experiment: &Experiment, sweeps: &[FoundSweep]) {
    let results = sweeps.iter().map(|found| &found.results);
    for results in results.filter(|results| experiment.sweeps.contains(&results.sweep.as_str())) {
        let (done, planned) = (results.runs.len(), results.planned);
        let _ = write!(out, "\nSweep `{}` of `{}`, {done} of {planned} runs.", results.sweep, results.recipe);
        if let Some(small) = &results.small {
            let _ = write!(out, " **A small twin, whose figures do not compare with the paper's:** {small}");
        }
        let measure = results.measure;
        let _ = write!(
            out,
            "\n\n| task | model | paper | ours, {} on the test split | seeds | learning rate | steps | data root |\n\
             |---|---|---|---|---:|---:|---:|---|\n",
            measure.name().to_lowercase()
        );
        for cell in &results.best {
            let ours = match cell.test_half_width.or(cell.test_deviation) {
                Some(spread) => format!("{} ± {}", measure.shown(cell.test), measure.shown(spread)),
                None => measure.shown(cell.test),
            };
            let root = results.roots.get(&cell.task).map_or_else(|| "–".into(), |root| format!("`{root}`"));
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {ours} | {} | {:e} | {} | {root} |",
                cell.task,
                sweep::paper_method(&cell.variant),
                sweep::paper_figure(&cell.task, &cell.variant).unwrap_or("–"),
                cell.seeds,
                cell.learning_rate,
                cell.steps
            );
        }
    }
}

fn variants(prefixes: &[&str]) -> Result<Vec<Recipe>> {
    let names = builtins().iter().flat_map(Builtin::full_names);
    let wanted = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    wanted.map(|name| Ok(recipe::load(&name, &[])?)).collect()
}

fn write_experiment(
    out: &mut String,
    experiment: &Experiment,
    committed: &Committed,
    rate: f64,
) -> Result<()> {
    let _ = write!(out, "\n## {}: {}\n\n", experiment.place, experiment.what);
    if !experiment.without.is_empty() {
        let _ = writeln!(out, "Not here: {}.\n", experiment.without);
    }
    let recipes = variants(experiment.recipes)?;
    if recipes.is_empty() {
        out.push_str("No recipe yet.\n");
        return Ok(());
    }
    if !experiment.commands.is_empty() {
        let _ = writeln!(out, "```sh\n{}\n```\n", experiment.commands.join("\n"));
    }
    out.push_str(
        "| recipe | parameters | tokens | paper | ours | data root |\n|---|---:|---:|---|---|---|\n",
    );
    for recipe in &recipes {
        let size = ModelSize::of(&recipe.model);
        let tokens = tokens(recipe);
        let (ours, root) = ours(experiment, recipe, &committed.reports, days(recipe, rate));
        let _ = writeln!(
            out,
            "| `{}` | {:.1}M | {:.1}B | {} | {ours} | {root} |",
            recipe.name,
            size.parameters as f64 / 1e6,
            tokens / 1e9,
            recipe.paper
        );
    }
    if let Some(twin) = &experiment.twin {
        write_twin(out, twin, &committed.reports)?;
    }
    write_sweeps(out, experiment, &committed.sweeps);
    Ok(())
}

fn ours(
    experiment: &Experiment,
    recipe: &Recipe,
    reports: &BTreeMap<PathBuf, Report>,
    days: f64,
) -> (String, String) {
    let of_recipe = |report: &&Report| {
        let run = report.run.as_ref();
        run.is_some_and(|run| run.recipe.name == recipe.name) && kind_of(&report.results) == experiment.kind
    };
    let Some(report) = reports.values().rfind(of_recipe) else {
        return (format!("not run: needs {} GPU-days", shown(days)), "–".into());
    };
    let figure =
        report.headline().map_or_else(|| "see the report".to_owned(), |figure| format!("{figure:.2}"));
    let step = report.model.step.map(|step| format!(" after step {step} of {}", recipe.training.steps));
    let marks = reservations(report);
    let root = report.run.as_ref().map_or_else(|| "–".to_owned(), |run| format!("`{}`", run.train.root));
    (format!("{figure}{}{marks}", step.unwrap_or_default()), root)
}

/// That a figure has marks, which its report says.
fn reservations(report: &Report) -> &'static str {
    if report.marks.is_empty() { "" } else { ", with reservations" }
}

fn tokens(recipe: &Recipe) -> f64 {
    (recipe.training.steps * recipe.training.tokens_per_step) as f64
}

fn days(recipe: &Recipe, rate: f64) -> f64 {
    recipe.operations_per_token() as f64 * tokens(recipe) / rate / 86_400.0
}

/// Two digits, or whole days.
fn shown(days: f64) -> String {
    if days < 10.0 { format!("{days:.1}") } else { format!("{days:.0}") }
}

/// Whether a recipe is no experiment of the paper, but one made small.
fn is_twin(name: &str) -> bool {
    name.split('/').next().is_some_and(|recipe| recipe.ends_with("-small") || recipe.ends_with("-cpu"))
}

fn write_total(out: &mut String, rate: f64) -> Result<()> {
    let mut all = variants(&["table", "figure"])?;
    all.retain(|recipe| !is_twin(&recipe.name));
    let days: f64 = all.iter().map(|recipe| days(recipe, rate)).sum();
    let _ = write!(
        out,
        "\n## All together\n\n{} runs, {} GPU-days, if each recipe is run once (some models of different tables are the same).\n",
        all.len(),
        shown(days)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_paper_has_its_place() {
        for name in builtins().iter().flat_map(Builtin::full_names) {
            let placed = EXPERIMENTS
                .iter()
                .any(|experiment| experiment.recipes.iter().any(|prefix| name.starts_with(prefix)));
            let own = name == "demo" || name == "small-cpu" || is_twin(&name);
            assert!(placed || own, "{name} makes no table or figure: name it in EXPERIMENTS");
        }
    }

    #[test]
    fn costs_follow_from_operations_and_tokens() {
        // At the speed that the rate was measured at, 15B tokens of the same model take tokens ÷ speed.
        let recipe = recipe::load(RATE.recipe, &[]).unwrap();
        let expected = tokens(&recipe) / RATE.tokens_per_second / 86_400.0;
        let found = days(&recipe, RATE.operations_per_second().unwrap());
        assert!((found - expected).abs() < 1e-9 && (6.0..6.2).contains(&found), "{found}");
    }

    #[test]
    fn sweeps_stand_below_their_recipes_and_small_twins_are_marked() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("sweeps/parity");
        fs_err::create_dir_all(&inside).unwrap();
        let text = r#"{"format": "xlstm-sweep", "sweep": "parity-small", "recipe": "tasks-small", "roots": {},
            "small": "width 64.", "planned": 4, "runs": [], "best": [{"task": "parity", "variant": "0to1",
            "learning_rate": 0.01, "seeds": 2, "steps": 100, "validation": 1.0, "test": 0.9876,
            "test_deviation": 0.004}]}"#;
        fs_err::write(inside.join("results.json"), text).unwrap();
        // What lies beside figures is no report.
        fs_err::write(inside.join("run.json"), r#"{"format": "xlstm-run"}"#).unwrap();
        let page = reproduce(folder.path()).unwrap();
        let line = "| `parity` | xLSTM[0:1] | 1.0 | 0.988 ± 0.004 | 2 | 1e-2 | 100 | – |";
        assert!(page.contains(line), "{page}");
        assert!(
            page.contains("Sweep `parity-small` of `tasks-small`, 0 of 4 runs. **A small twin"),
            "{page}"
        );
        fs_err::write(inside.join("results.json"), text.replace("\"seeds\": 2,", "")).unwrap();
        let error = reproduce(folder.path()).unwrap_err().to_string();
        assert!(error.contains("results.json") && error.contains("seeds"), "{error}");
    }

    #[test]
    fn the_committed_page_is_the_one_that_is_printed() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let printed = reproduce(&docs.join("results")).unwrap();
        let path = docs.join("reproduce.md");
        let committed = fs_err::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == printed,
            "docs/reproduce.md differs: write it anew with `xlstm-eval reproduce > docs/reproduce.md`"
        );
    }
}
