//! The sweep's page: the paper's figures beside ours, every run, and accuracy over learning rates.

use xlstm_pipeline::report::{Cell, Curves, Page, Series, Table};

use super::{Data, Results, Sweep, SweepMeasure, paper};

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
    let measure = results.measure;
    page.section("best", &format!("{}, paper and ours", measure.name()));
    page.paragraph(match measure {
        SweepMeasure::ScaledAccuracy => {
            "Scaled accuracy is (accuracy − chance) / (1 − chance), over all scored tokens of the test split: 0 is a guess, 1 \
         is perfect. The learning rate of each row is the one with the highest mean on the validation split. Ours ± is the \
         standard deviation over seeds; the paper does not say what its ± is."
        }
        SweepMeasure::SquaredError => {
            "Mean squared error over all scored positions of the test split; a constant has the variance of the targets, 1/12. \
             The learning rate of each row is the one with the lowest mean on the validation split. Ours ± is half the width \
             of the mean's 99 % interval over seeds (Student's t), as in the paper's figure, which prints no numbers."
        }
    });
    let columns = ["Task", "Model", "Paper", "#Ours", "±", "#Seeds", "#Learning rate", "#Validation"];
    let mut table = Table::new(&format!("{} on the test split", measure.name()), &columns).sortable();
    for cell in &results.best {
        table.cells(vec![
            Cell::text(&cell.task),
            Cell::text(&paper::method(&cell.variant)),
            Cell::of(paper::figure(&cell.task, &cell.variant), Cell::text),
            figure(measure, cell.test),
            Cell::of(cell.test_half_width.or(cell.test_deviation), |spread| figure(measure, spread)),
            Cell::count(cell.seeds),
            Cell::number(cell.learning_rate, &format!("{:e}", cell.learning_rate)),
            figure(measure, cell.validation),
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

fn figure(measure: SweepMeasure, figure: f64) -> Cell {
    Cell::number(figure, &measure.shown(figure))
}

/// What the same runs have on data that they were not trained on.
fn write_also(page: &mut Page, results: &Results) {
    let columns =
        ["Trained on", "Model", "Measured on", &format!("#{}", results.measure.name()), "#Learning rate"];
    let mut table =
        Table::new("The same runs on other data: longer than what they were trained on", &columns);
    for cell in &results.best {
        for (label, accuracy) in &cell.also {
            table.cells(vec![
                Cell::text(&cell.task),
                Cell::text(&paper::method(&cell.variant)),
                Cell::text(label),
                figure(results.measure, *accuracy),
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
        let title = format!("{}: {} on the validation split", data.label(), results.measure.name());
        let mut plot = Curves::new(&title, "Learning rate, power of ten", results.measure.name());
        plot.logarithmic = results.measure == SweepMeasure::SquaredError;
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
    let title = match results.measure {
        SweepMeasure::ScaledAccuracy => {
            "Every finished run; scaled accuracies, and the share of right tokens"
        }
        SweepMeasure::SquaredError => "Every finished run; mean squared errors",
    };
    let mut table = Table::new(title, &columns).filterable(Some(1));
    for run in &results.runs {
        table.cells(vec![
            Cell::code(&run.name),
            Cell::text(&paper::method(&run.variant)),
            Cell::number(run.learning_rate, &format!("{:e}", run.learning_rate)),
            Cell::count(run.seed),
            Cell::count(run.step),
            figure(results.measure, run.validation),
            figure(results.measure, run.test),
            Cell::of(run.test_accuracy, |accuracy| Cell::decimals(accuracy, 4)),
        ]);
    }
    if table.is_empty() {
        page.paragraph("None yet.");
    } else {
        page.table(&table);
    }
}
