//! The page of one run or of several side by side.

use xlstm_manifests::printable;
use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Cell, Page, Table, count, duration};

use super::differences::{self, Comparison};
use super::view::{loss_cell, loss_unit};
use super::{EvaluationView, RunView, chain, curves, data, environment, evaluation, recipe};
use crate::error::Result;

/// The page of these runs, of evaluations of their checkpoints and of what those compare, complete HTML.
///
/// # Errors
/// When a recipe has no TOML form; none has.
pub fn runs_page(
    runs: &[RunView],
    evaluations: &[EvaluationView],
    comparisons: &[Comparison],
) -> Result<String> {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = match names.as_slice() {
        [name] => format!("Run {name}"),
        names => format!("Comparison of runs: {}", names.join(", ")),
    };
    let mut page = Page::new(&title);
    head(&mut page, runs);
    recipe::write(&mut page, runs)?;
    curves::write_loss(&mut page, runs);
    curves::write_optimizer(&mut page, runs);
    curves::write_speed(&mut page, runs);
    differences::write(&mut page, comparisons);
    evaluation::write(&mut page, evaluations);
    data::write(&mut page, runs);
    chain::write(&mut page, runs);
    environment::write(&mut page, runs);
    Ok(printable::lines(&page.render()))
}

fn head(page: &mut Page, runs: &[RunView]) {
    for run in runs {
        verdict(page, runs.len() > 1, run);
        run.notes.iter().for_each(|note| page.warning(note));
    }
    let columns = [
        "Run",
        "Recipe",
        "Model",
        "#Parameters",
        "#Operations a token",
        "#Steps",
        "#Tokens",
        "#Validation loss",
        "#Perplexity",
        "#Time",
        "Training root",
    ];
    let mut table = Table::new(&format!("At a glance; loss in {}", loss_unit(runs)), &columns);
    table = if runs.len() > 1 { table.sortable() } else { table };
    for (index, run) in runs.iter().enumerate() {
        let figure = run.figure();
        let loss = figure.and_then(|line| line.loss);
        let tokens = (run.last_step() * run.tokens_per_step()) as f64;
        let operations = run.recipe.operations_per_token() as f64;
        let linked = |cell: Cell| cell.link(&chain::id(index));
        let root = run.manifest.train.root.to_string();
        table.cells(vec![
            Cell::text(&run.name),
            Cell::text(&run.recipe.name),
            Cell::text(&run.recipe.model.label()),
            Cell::count(run.manifest.parameters),
            Cell::number(operations, &label(operations)),
            Cell::count(run.last_step()),
            Cell::number(tokens, &label(tokens)),
            Cell::of(loss, |loss| linked(loss_cell(loss))),
            Cell::of(loss.filter(|_| !run.is_of_numbers()), |loss| linked(Cell::decimals(loss.exp(), 2))),
            Cell::of(run.seconds, |seconds| Cell::number(seconds, &duration(seconds))),
            Cell::code(&format!("{}…", &root[..12])),
        ]);
    }
    page.table(&table);
    let roots: std::collections::BTreeSet<_> =
        runs.iter().filter_map(|run| run.manifest.validation.as_ref().map(|data| data.root)).collect();
    if roots.len() > 1 {
        page.warning("These runs were validated on different data: their losses do not compare.");
    }
    let rows: std::collections::BTreeSet<_> =
        runs.iter().filter_map(|run| run.figure().and_then(|line| line.rows)).collect();
    if rows.len() > 1 {
        page.warning(
            "These runs were validated on prefixes of different length: their losses do not compare.",
        );
    }
}

fn verdict(page: &mut Page, several: bool, run: &RunView) {
    let (done, planned) = (run.last_step(), run.recipe.training.steps);
    let mut sentence = match run.figure().and_then(|line| Some((line, line.loss?))) {
        Some((line, loss)) if run.is_of_numbers() => format!(
            "Validation {} after step {}, {} positions.",
            run.loss_in_words(loss),
            count(line.step),
            count(line.step * run.tokens_per_step())
        ),
        Some((line, loss)) => format!(
            "Validation perplexity {:.2} ({loss:.4} nats a token) after step {}, {} tokens.",
            loss.exp(),
            count(line.step),
            count(line.step * run.tokens_per_step())
        ),
        None => "There is no validation figure.".to_owned(),
    };
    let rows = run.figure().and_then(|line| line.rows.zip(line.rows_of_split));
    if let Some((rows, of)) = rows.filter(|(rows, of)| rows < of) {
        sentence.push_str(&format!(" Measured on the first {} of {} rows.", count(rows), count(of)));
    }
    let name = if several { format!("{}: ", run.name) } else { String::new() };
    let word = if done >= planned {
        format!("{name}finished.")
    } else {
        format!("{name}stopped after step {} of {}.", count(done), count(planned))
    };
    page.verdict(done >= planned, &word, &sentence);
}
