//! An experiment that is a grid of small runs: the paper's figures beside ours, task by task.

use std::collections::BTreeSet;
use std::path::PathBuf;

use xlstm_pipeline::report::{Bar, Cell, Page, Table, bar_chart, count};

use super::super::committed::FoundSweep;
use super::super::experiments::Experiment;
use super::agreement::Agreement;
use super::ordering::identifier;
use super::{Context, Glance, seeds};
use crate::error::{Result, TrainError};
use crate::sweep::{self, Measured, SweepMeasure};

/// Figures agree where they differ by no more than this; where both spreads together reach farther, nothing is decided.
const CLOSE: f64 = 0.1;
/// What a run of a sweep leaves beside its recipe.
const MEASURED_NAME: &str = "sweep-accuracy.json";

/// Writes the section, where a sweep of the experiment was run.
pub(super) fn write(
    page: &mut Page,
    experiment: &'static Experiment,
    context: &Context<'_>,
) -> Result<Option<Glance>> {
    let all = &context.committed.sweeps;
    let of_experiment = |found: &&FoundSweep| experiment.sweeps.contains(&found.results.sweep.as_str());
    let (whole, small): (Vec<&FoundSweep>, Vec<&FoundSweep>) =
        all.iter().filter(of_experiment).partition(|found| found.results.small.is_none());
    if whole.is_empty() && small.is_empty() {
        return Ok(None);
    }
    let id = format!("sweep-{}", identifier(experiment.place));
    page.section(&id, &format!("{}: {}", experiment.place, experiment.what));
    let main = if whole.is_empty() { &small } else { &whole };
    if main.iter().any(|found| found.results.measure == SweepMeasure::ScaledAccuracy) {
        page.paragraph(
            "Scaled accuracy on the test split: 0 is a guess, 1 is perfect. The learning rate is the one that is best on the \
             validation split. Ours ± is the standard deviation over seeds; the paper does not say what its ± is. A figure agrees \
             here where it is within 0.1 of the paper's, and is undecided where only both spreads together reach so far.",
        );
    }
    let cells: Vec<&sweep::Cell> = main.iter().flat_map(|found| &found.results.best).collect();
    let outcome = outcome(&cells);
    page.paragraph(&outcome);
    let sources = whole.iter().chain(&small).filter_map(|found| sample(found)).collect();
    context.learned(page, &sources)?;
    for found in main {
        write_sweep(page, found, context)?;
    }
    if !whole.is_empty() && !small.is_empty() {
        let title = format!("Of smaller protocols: {} more sweeps", count(small.len() as u64));
        let mut wrong = Ok(());
        page.details(&title, |page| {
            wrong = small.iter().try_for_each(|found| write_sweep(page, found, context));
        });
        wrong?;
    }
    let tasks: BTreeSet<&String> = cells.iter().map(|cell| &cell.task).collect();
    let methods: BTreeSet<&String> = cells.iter().map(|cell| &cell.variant).collect();
    let compared = format!(
        "{} methods on {} tasks, {}",
        count(methods.len() as u64),
        count(tasks.len() as u64),
        seeds(cells.iter().map(|cell| cell.seeds))
    );
    let scale = if whole.is_empty() { "made small" } else { "the paper's protocol" }.to_owned();
    Ok(Some(Glance { id, place: experiment.place, scale, compared, outcome, sources }))
}

/// The folder of one of a sweep's runs, for all: `verify` recounts the tokens of each of its steps.
fn sample(found: &FoundSweep) -> Option<PathBuf> {
    let mut folders = found.results.runs.iter().map(|run| found.folder.join("runs").join(&run.name));
    folders.find(|folder| folder.is_dir())
}

/// A figure of the paper's: `.86 ± .01`.
fn printed(figure: &str) -> Option<(f64, f64)> {
    let (value, spread) = figure.split_once(" ± ").unwrap_or((figure, "0"));
    Some((value.parse().ok()?, spread.parse().ok()?))
}

/// Whether a figure is the paper's; `None` where that has none.
fn agreement(cell: &sweep::Cell) -> Option<Agreement> {
    let (paper, spread) = sweep::paper_figure(&cell.task, &cell.variant).and_then(printed)?;
    let own = cell.test_half_width.or(cell.test_deviation).unwrap_or(0.0);
    let apart = (cell.test - paper).abs();
    Some(match apart {
        _ if apart <= CLOSE => Agreement::Agrees,
        _ if apart <= spread + own => Agreement::Undecided,
        _ => Agreement::Contradicts,
    })
}

/// How many figures are the paper's, and which are not.
fn outcome(cells: &[&sweep::Cell]) -> String {
    let of = |wanted| -> Vec<String> {
        let found = cells.iter().filter(|cell| agreement(cell) == Some(wanted));
        found.map(|cell| format!("{} on {}", sweep::paper_method(&cell.variant), cell.task)).collect()
    };
    let [agree, undecided, against] =
        [Agreement::Agrees, Agreement::Undecided, Agreement::Contradicts].map(of);
    let all = agree.len() + undecided.len() + against.len();
    if all == 0 {
        return "The paper prints no figure to compare with.".into();
    }
    let mut outcome = format!("{} of {all} figures agree with the paper's", agree.len());
    for (what, which) in [("undecided", undecided), ("not", against)] {
        if !which.is_empty() {
            outcome.push_str(&format!("; {what}: {}", which.join(", ")));
        }
    }
    outcome.push('.');
    outcome
}

fn write_sweep(page: &mut Page, found: &FoundSweep, context: &Context<'_>) -> Result<()> {
    let results = &found.results;
    let own = format!(
        "Sweep {} of {}: {} of {} runs.",
        results.sweep,
        results.recipe,
        count(results.runs.len() as u64),
        count(results.planned)
    );
    page.subheading(&own);
    if let Some(small) = &results.small {
        page.paragraph(&format!("Not the paper's protocol: {small}"));
    }
    let measure = results.measure;
    let tasks: BTreeSet<&String> = results.best.iter().map(|cell| &cell.task).collect();
    for task in tasks {
        let of_task: Vec<&sweep::Cell> = results.best.iter().filter(|cell| cell.task == *task).collect();
        let bars: Vec<Bar> = of_task.iter().map(|cell| bar(measure, cell)).collect();
        let marked =
            if bars.iter().any(|bar| bar.mark.is_some()) { "; the line is the paper's figure" } else { "" };
        page.push(&bar_chart(
            &format!("{task}: {} on the test split{marked}", measure.name().to_lowercase()),
            &bars,
        ));
    }
    let columns = ["Task", "Method", "#Paper", "#Here", "Agrees", "#Seeds", "#Learning rate", "#Steps"];
    let title = format!("{}, paper and ours ({})", measure.name(), results.sweep);
    let mut table = Table::new(&title, &columns).sortable();
    for cell in &results.best {
        let verdict = agreement(cell).map_or("–", Agreement::word);
        table.cells(vec![
            Cell::text(&cell.task),
            Cell::text(&sweep::paper_method(&cell.variant)),
            Cell::of(sweep::paper_figure(&cell.task, &cell.variant), Cell::text),
            Cell::number(cell.test, &with_spread(measure, cell)),
            Cell::text(verdict),
            Cell::count(cell.seeds),
            Cell::number(cell.learning_rate, &format!("{:e}", cell.learning_rate)),
            Cell::count(cell.steps),
        ]);
    }
    page.table(&table);
    write_check(page, found, context)
}

fn with_spread(measure: SweepMeasure, cell: &sweep::Cell) -> String {
    match cell.test_half_width.or(cell.test_deviation) {
        Some(spread) => format!("{} ± {}", measure.shown(cell.test), measure.shown(spread)),
        None => measure.shown(cell.test),
    }
}

fn bar(measure: SweepMeasure, cell: &sweep::Cell) -> Bar {
    let paper = sweep::paper_figure(&cell.task, &cell.variant);
    let ours = with_spread(measure, cell);
    Bar {
        label: sweep::paper_method(&cell.variant),
        // Worse than a guess is drawn as a guess; the number stands beside it.
        value: cell.test.max(0.0),
        shown: paper.map_or_else(|| ours.clone(), |paper| format!("{ours}, paper {paper}")),
        mark: paper.and_then(printed).map(|(value, _)| value),
    }
}

/// Whether the sweep's table says what its runs' own files say, here or in another sweep's folder.
fn write_check(page: &mut Page, found: &FoundSweep, context: &Context<'_>) -> Result<()> {
    let (mut same, mut missing) = (0_u64, 0_u64);
    let mut folders: Vec<&FoundSweep> = vec![found];
    folders.extend(&context.committed.sweeps);
    for run in &found.results.runs {
        let files = folders.iter().map(|sweep| sweep.folder.join("runs").join(&run.name).join(MEASURED_NAME));
        let Some(path) = files.into_iter().find(|path| path.is_file()) else {
            missing += 1;
            continue;
        };
        let damaged = |found: String| {
            let hint =
                "the run's file or the sweep's results.json was altered: make the table again with --report";
            TrainError::file(&path, format!("what results.json has of {}", run.name), found, hint)
        };
        let measured: Measured =
            serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| damaged(error.to_string()))?;
        let expected = run.test_accuracy.unwrap_or(run.test);
        if (measured.test - expected).abs() > 1e-9 || measured.step != run.step {
            return Err(damaged(format!("{} after step {}", measured.test, measured.step)));
        }
        same += 1;
    }
    let link = context.links.cell(&found.folder.join("results.json"), Cell::text("results.json"));
    let said = match missing {
        0 => format!("the figures of all {} runs are those of the runs' own files", count(same)),
        _ => format!(
            "the figures of {} runs are those of the runs' own files, those of {} are not kept",
            count(same),
            count(missing)
        ),
    };
    page.fact_cells(&[("Table", link.note(&said))]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_agrees_within_a_tenth_and_spreads_leave_it_open() {
        let cell = |variant: &str, test, deviation| sweep::Cell {
            task: "cycle_nav".into(),
            variant: variant.into(),
            learning_rate: 1e-3,
            seeds: 2,
            steps: 1,
            validation: test,
            test,
            test_deviation: deviation,
            test_half_width: None,
            also: Default::default(),
        };
        assert_eq!(printed(".86 ± .01"), Some((0.86, 0.01)));
        assert_eq!(printed("1.0"), Some((1.0, 0.0)));
        // The paper has .86 ± .01.
        let cells = [
            cell("1to0", 0.80, None),
            cell("1to0", 0.70, None),
            cell("1to0", 0.70, Some(0.2)),
            cell("llama", 0.70, None),
        ];
        let found = cells.each_ref().map(agreement);
        let expected = [Agreement::Agrees, Agreement::Contradicts, Agreement::Undecided].map(Some);
        assert_eq!(found, [expected[0], expected[1], expected[2], None]);
        let expected = "1 of 3 figures agree with the paper's; undecided: xLSTM[1:0] on cycle_nav; not: xLSTM[1:0] on cycle_nav.";
        assert_eq!(outcome(&cells.iter().collect::<Vec<_>>()), expected);
    }
}
