//! What came out of a sweep's runs, and which learning rate is the best of each task and variant.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::tasks::Split;

use super::{Data, Planned, Sweep, SweepMeasure, data, measure};
use crate::error::Result;

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Its folder's name.
    pub name: String,
    /// The data's label.
    pub task: String,
    /// The recipe's variant.
    pub variant: String,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed.
    pub seed: u64,
    /// Last step.
    pub step: u64,
    /// Scaled accuracy, or mean squared error, on the validation split after it.
    pub validation: f64,
    /// The same on the test split.
    pub test: f64,
    /// Share of the test split's targets that came out first, where they are tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// The same, scaled, of other data that the sweep measures runs on, by its label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
}

/// A task and a variant at the best of its learning rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The data's label.
    pub task: String,
    /// The recipe's variant.
    pub variant: String,
    /// The learning rate with the best mean on the validation split.
    pub learning_rate: f64,
    /// Seeds at it.
    pub seeds: u64,
    /// Most steps of its runs; one that ended early has fewer than the recipe.
    pub steps: u64,
    /// Mean over them of the scaled accuracy, or mean squared error, on the validation split.
    pub validation: f64,
    /// The same on the test split: what is reported.
    pub test: f64,
    /// Its standard deviation (n − 1); none of a single seed.
    pub test_deviation: Option<f64>,
    /// Of squared errors half the width of the mean's 99 % interval over seeds, as the paper's Figure 2 has it (Student's t).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_half_width: Option<f64>,
    /// Means over the seeds on other data that the sweep measures runs on, by its label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
}

/// The value of `format` in `results.json`.
pub const SWEEP_FORMAT: &str = "xlstm-sweep";

/// All that came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Always [`SWEEP_FORMAT`].
    pub format: String,
    /// The sweep.
    pub sweep: String,
    /// Its recipe, without the variant.
    pub recipe: String,
    /// What runs are measured by.
    #[serde(default, skip_serializing_if = "is_accuracy")]
    pub measure: SweepMeasure,
    /// Root of each task's training split, by the data's label.
    pub roots: BTreeMap<String, Sha256Digest>,
    /// What is not the paper's, of a small twin.
    pub small: Option<String>,
    /// Runs that the sweep has.
    pub planned: u64,
    /// Those that are finished, in the sweep's order.
    pub runs: Vec<Finished>,
    /// Tasks and variants with a finished run.
    pub best: Vec<Cell>,
}

/// What reports from before there was another say by saying nothing.
fn is_accuracy(measure: &SweepMeasure) -> bool {
    *measure == SweepMeasure::ScaledAccuracy
}

/// Reads what is finished in `out`.
///
/// # Errors
/// When the sweep's tasks cannot be made.
pub fn collect(sweep: &Sweep, out: &Path) -> Result<Results> {
    let measure = sweep.measure()?;
    let mut runs = Vec::new();
    for data in &sweep.data {
        let (right, of) = data.generator()?.random_accuracy();
        let chance = (measure == SweepMeasure::ScaledAccuracy).then(|| f64::from(right) / f64::from(of));
        let planned = sweep.runs().into_iter().filter(|run| run.task == data.label());
        runs.extend(planned.filter_map(|run| finished(&run, out, chance)));
    }
    let mut best = Vec::new();
    for data in &sweep.data {
        for variant in sweep.variants_or_recipe() {
            let of_cell = |run: &&Finished| run.task == data.label() && run.variant == variant;
            let of_cell: Vec<&Finished> = runs.iter().filter(of_cell).collect();
            let cells = sweep.rates(data).iter().filter_map(|&rate| cell(&of_cell, rate, measure));
            let best_of = |best: Cell, cell: Cell| {
                // Of equals the later rate, which is the smaller one in the paper's lists.
                if measure.is_better(best.validation, cell.validation) { best } else { cell }
            };
            best.extend(cells.reduce(best_of));
        }
    }
    Ok(Results {
        format: SWEEP_FORMAT.into(),
        sweep: sweep.name.clone(),
        recipe: sweep.recipe.clone(),
        measure,
        roots: sweep
            .data
            .iter()
            .filter_map(|data| Some((data.label().to_owned(), root(out, data)?)))
            .collect(),
        small: sweep.small.clone(),
        planned: sweep.runs().len() as u64,
        runs,
        best,
    })
}

/// The root of a task's training split, where it was made.
fn root(out: &Path, data: &Data) -> Option<Sha256Digest> {
    let folder = data::folder(out, data).join(Split::Train.name());
    Manifest::load(&folder).ok().map(|manifest| manifest.root)
}

/// The run, if it was measured.
fn finished(run: &Planned, out: &Path, chance: Option<f64>) -> Option<Finished> {
    let measured = measure::load(&run.folder(out))?;
    let scaled = |found: f64| chance.map_or(found, |chance| (found - chance) / (1.0 - chance));
    Some(Finished {
        name: run.name(),
        task: run.task.clone(),
        variant: run.variant.clone(),
        learning_rate: run.learning_rate,
        seed: run.seed,
        step: measured.step,
        validation: scaled(measured.validation),
        test: scaled(measured.test),
        test_accuracy: chance.map(|_| measured.test),
        also: measured.also.iter().map(|(label, accuracy)| (label.clone(), scaled(*accuracy))).collect(),
    })
}

/// Mean and spread over the seeds at one learning rate; none where no run is finished.
fn cell(runs: &[&Finished], learning_rate: f64, measure: SweepMeasure) -> Option<Cell> {
    let at_rate: Vec<&&Finished> = runs.iter().filter(|run| run.learning_rate == learning_rate).collect();
    let first = at_rate.first()?;
    let n = at_rate.len() as f64;
    let mean = |value: fn(&Finished) -> f64| at_rate.iter().map(|run| value(run)).sum::<f64>() / n;
    let test = mean(|run| run.test);
    let also = first.also.keys().filter_map(|label| {
        let values = at_rate.iter().map(|run| run.also.get(label).copied());
        Some((label.clone(), values.sum::<Option<f64>>()? / n))
    });
    let also = also.collect();
    let squares: f64 = at_rate.iter().map(|run| (run.test - test).powi(2)).sum();
    let deviation = (at_rate.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
    let half_width = deviation.map(|deviation| student_99(at_rate.len() - 1) * deviation / n.sqrt());
    Some(Cell {
        task: first.task.clone(),
        variant: first.variant.clone(),
        learning_rate,
        seeds: at_rate.len() as u64,
        steps: at_rate.iter().map(|run| run.step).max().unwrap_or_default(),
        validation: mean(|run| run.validation),
        test,
        test_deviation: deviation,
        test_half_width: half_width.filter(|_| measure == SweepMeasure::SquaredError),
        also,
    })
}

/// Student's t at 99.5 %, for a two-sided interval of 99 %: exact to six decimals up to twenty degrees of freedom, from there
/// on by the expansion around the normal quantile (Abramowitz and Stegun 26.7.5), to 1e-5.
fn student_99(degrees: usize) -> f64 {
    const EXACT: [f64; 20] = [
        63.656_741, 9.924_843, 5.840_909, 4.604_095, 4.032_143, 3.707_428, 3.499_483, 3.355_387, 3.249_836,
        3.169_273, 3.105_807, 3.054_540, 3.012_276, 2.976_843, 2.946_713, 2.920_782, 2.898_231, 2.878_440,
        2.860_935, 2.845_340,
    ];
    const NORMAL: f64 = 2.575_829_303_5;
    match EXACT.get(degrees.saturating_sub(1)) {
        Some(&exact) => exact,
        None => {
            let (z, n) = (NORMAL, degrees as f64);
            let second = 5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z;
            let third = 3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z;
            let fourth =
                79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z;
            z + (z.powi(3) + z) / (4.0 * n)
                + second / (96.0 * n.powi(2))
                + third / (384.0 * n.powi(3))
                + fourth / (92_160.0 * n.powi(4))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_is_chosen_by_validation_and_reported_on_the_test_split() {
        let sweep = Sweep::load("parity-small").unwrap();
        let sweep = Sweep { learning_rates: vec![1e-2, 1e-3], seeds: vec![0, 1], ..sweep };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let finish = |run: &Planned, validation: f64, test: f64| {
            let folder = run.folder(out);
            fs_err::create_dir_all(&folder).unwrap();
            let measured =
                measure::Measured { step: 9, validation, test, also: [("longer".into(), test)].into() };
            let text = serde_json::to_vec(&measured).unwrap();
            fs_err::write(folder.join(measure::ACCURACY_NAME), text).unwrap();
        };
        assert!(collect(&sweep, out).unwrap().best.is_empty());
        let runs: Vec<Planned> =
            sweep.runs().into_iter().filter(|run| run.variant == sweep.variants[0]).collect();
        for run in &runs {
            // The other rate is better on the test split, which must not matter.
            let (validation, test) = if run.learning_rate == 1e-2 { (0.9, 0.8) } else { (0.7, 1.0) };
            finish(run, validation, test + 0.1 * run.seed as f64);
        }
        let results = collect(&sweep, out).unwrap();
        assert_eq!(results.runs.len(), 4);
        let [best] = &results.best[..] else { panic!("{:?}", results.best) };
        assert_eq!((best.learning_rate, best.seeds), (1e-2, 2));
        // Scaled: (0.8 − 0.5)/0.5 and (0.9 − 0.5)/0.5.
        assert!((best.test - 0.7).abs() < 1e-12 && (best.validation - 0.8).abs() < 1e-12);
        assert!((best.also["longer"] - best.test).abs() < 1e-12);
        assert!((best.test_deviation.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn of_squared_errors_the_lowest_is_the_best_and_the_interval_is_students() {
        let sweep = Sweep::load("nearest-neighbor-small").unwrap();
        let variant = sweep.variants[0].clone();
        let sweep = Sweep {
            learning_rates: vec![1e-2, 1e-3],
            seeds: vec![0, 1, 2, 3, 4],
            variants: vec![variant],
            ..sweep
        };
        let folder = tempfile::tempdir().unwrap();
        for run in sweep.runs() {
            let folder = run.folder(folder.path());
            fs_err::create_dir_all(&folder).unwrap();
            let validation = if run.learning_rate == 1e-3 { 0.01 } else { 0.02 };
            let test = 0.01 + 0.001 * run.seed as f64;
            let measured = measure::Measured { step: 9, validation, test, also: BTreeMap::new() };
            let text = serde_json::to_vec(&measured).unwrap();
            fs_err::write(folder.join(measure::ACCURACY_NAME), text).unwrap();
        }
        let results = collect(&sweep, folder.path()).unwrap();
        let [best] = &results.best[..] else { panic!("{:?}", results.best) };
        assert_eq!((results.measure, best.learning_rate, best.seeds), (SweepMeasure::SquaredError, 1e-3, 5));
        assert!((best.test - 0.012).abs() < 1e-15);
        // Five values 0.001 apart: variance 2.5e-6, four degrees of freedom.
        let half = 4.604_095 * (2.5e-6f64 / 5.0).sqrt();
        assert!((best.test_half_width.unwrap() - half).abs() < 1e-12);
        assert!(results.runs[0].test_accuracy.is_none());
    }

    #[test]
    fn the_expansion_goes_on_where_the_table_ends() {
        // Published: 2.831360 at 21, 2.749996 at 30, 2.617421 at 120.
        for (degrees, published) in [(21, 2.831_360), (30, 2.749_996), (120, 2.617_421)] {
            assert!((student_99(degrees) - published).abs() < 1e-5, "{degrees}: {}", student_99(degrees));
        }
    }
}
