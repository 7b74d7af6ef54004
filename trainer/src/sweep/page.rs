//! The sweep's page: the paper's figures beside ours, every run, and accuracy over learning rates.

use xlstm_pipeline::report::{Cell, Curves, Page, Series, Table};

use super::{Data, Results, Sweep, paper};

/// The page of `results`, complete HTML.
#[must_use]
pub fn page(sweep: &Sweep, results: &Results) -> String {
    let mut page = Page::new(&format!("Sweep {}", sweep.name));
    let (done, planned) = (results.runs.len() as u64, results.planned);
    let sentence = format!("{done} of {planned} runs are finished. {}", sweep.description);
    page.verdict(done == planned, if done == planned { "finished." } else { "not finished." }, &sentence);
    if let Some(small) = &sweep.small {
        page.warning(&format!("A small twin, whose figures do not compare with the paper's: {small}"));
    }
    page.facts(&[("Paper", sweep.paper.clone()), ("Recipe", sweep.recipe.clone())]);
    write_best(&mut page, sweep, results);
    write_rates(&mut page, sweep, results);
    write_runs(&mut page, results);
    page.render()
}

fn write_best(page: &mut Page, sweep: &Sweep, results: &Results) {
    page.section("best", "Scaled accuracy, paper and ours");
    page.paragraph(
        "Scaled accuracy is (accuracy − chance) / (1 − chance), over all scored tokens of the test split: 0 is a guess, 1 \
         is perfect. The learning rate of each row is the one with the highest mean on the validation split. Ours ± is the \
         standard deviation over seeds; the paper does not say what its ± is.",
    );
    let columns = ["Task", "Model", "Paper", "#Ours", "±", "#Seeds", "#Learning rate", "#Validation"];
    let mut table = Table::new("Scaled accuracy on the test split", &columns).sortable();
    for cell in &results.best {
        table.cells(vec![
            Cell::text(&cell.task),
            Cell::text(&paper::method(&cell.variant)),
            Cell::of(paper::figure(&cell.task, &cell.variant), Cell::text),
            Cell::decimals(cell.test, 3),
            Cell::of(cell.test_deviation, |deviation| Cell::decimals(deviation, 3)),
            Cell::count(cell.seeds),
            Cell::number(cell.learning_rate, &format!("{:e}", cell.learning_rate)),
            Cell::decimals(cell.validation, 3),
        ]);
    }
    if table.is_empty() {
        page.paragraph("No run is finished.");
    } else {
        page.table(&table);
    }
    write_also(page, results);
    if sweep.data.iter().any(|data| data.task.starts_with("mod_arithmetic_brackets")) {
        page.paragraph(
            "The paper's bracket task may be with or without products: with them a constant answer has 0.13, more than some \
             of its models. Both are run; both stand beside the same figure.",
        );
    }
}

/// What the same runs have on data that they were not trained on.
fn write_also(page: &mut Page, results: &Results) {
    let columns = ["Trained on", "Model", "Measured on", "#Scaled accuracy", "#Learning rate"];
    let mut table =
        Table::new("The same runs on other data: longer than what they were trained on", &columns);
    for cell in &results.best {
        for (label, accuracy) in &cell.also {
            table.cells(vec![
                Cell::text(&cell.task),
                Cell::text(&paper::method(&cell.variant)),
                Cell::text(label),
                Cell::decimals(*accuracy, 3),
                Cell::number(cell.learning_rate, &format!("{:e}", cell.learning_rate)),
            ]);
        }
    }
    if !table.is_empty() {
        page.table(&table);
    }
}

fn write_rates(page: &mut Page, sweep: &Sweep, results: &Results) {
    let with_several = |data: &&Data| sweep.rates(data).len() > 1;
    if !sweep.data.iter().any(|data| with_several(&data)) {
        return;
    }
    page.section("rates", "Learning rates");
    for data in sweep.data.iter().filter(with_several) {
        let title = format!("{}: scaled accuracy on the validation split", data.label());
        let mut plot = Curves::new(&title, "Learning rate, power of ten", "Scaled accuracy");
        for (style, variant) in sweep.variants_or_recipe().into_iter().enumerate() {
            let of_curve =
                results.runs.iter().filter(|run| run.task == data.label() && run.variant == variant);
            let mut points: Vec<(f64, f64)> =
                of_curve.map(|run| (run.learning_rate.log10(), run.validation)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let name = paper::method(&variant);
            plot.series.push(Series { name, points, dots: true, smoothed: false, style });
        }
        plot.draw(page);
    }
}

fn write_runs(page: &mut Page, results: &Results) {
    page.section("runs", "Every run");
    let columns =
        ["Run", "Model", "#Learning rate", "#Seed", "#Steps", "#Validation", "#Test", "#Test accuracy"];
    let mut table =
        Table::new("Every finished run; scaled accuracies, and the share of right tokens", &columns)
            .filterable(Some(1));
    for run in &results.runs {
        table.cells(vec![
            Cell::code(&run.name),
            Cell::text(&paper::method(&run.variant)),
            Cell::number(run.learning_rate, &format!("{:e}", run.learning_rate)),
            Cell::count(run.seed),
            Cell::count(run.step),
            Cell::decimals(run.validation, 3),
            Cell::decimals(run.test, 3),
            Cell::decimals(run.test_accuracy, 4),
        ]);
    }
    if table.is_empty() {
        page.paragraph("None yet.");
    } else {
        page.table(&table);
    }
}
