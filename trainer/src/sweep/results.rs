//! What came out of a sweep's runs, and which learning rate is the best of each task and variant.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::tasks::Split;

use super::{Data, Planned, Sweep, data, measure};
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
    /// Scaled accuracy on the validation split after it.
    pub validation: f64,
    /// Scaled accuracy on the test split.
    pub test: f64,
    /// Share of the test split's targets that came out first.
    pub test_accuracy: f64,
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
    /// The learning rate with the highest mean on the validation split.
    pub learning_rate: f64,
    /// Seeds at it.
    pub seeds: u64,
    /// Most steps of its runs; one that ended early has fewer than the recipe.
    pub steps: u64,
    /// Mean over them of the scaled accuracy on the validation split.
    pub validation: f64,
    /// The same on the test split: what is reported.
    pub test: f64,
    /// Its standard deviation (n − 1); none of a single seed.
    pub test_deviation: Option<f64>,
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

/// Reads what is finished in `out`.
///
/// # Errors
/// When the sweep's tasks cannot be made.
pub fn collect(sweep: &Sweep, out: &Path) -> Result<Results> {
    let mut runs = Vec::new();
    for data in &sweep.data {
        let (right, of) = data.generator()?.random_accuracy();
        let chance = f64::from(right) / f64::from(of);
        let planned = sweep.runs().into_iter().filter(|run| run.task == data.label());
        runs.extend(planned.filter_map(|run| finished(&run, out, chance)));
    }
    let mut best = Vec::new();
    for data in &sweep.data {
        for variant in sweep.variants_or_recipe() {
            let of_cell = |run: &&Finished| run.task == data.label() && run.variant == variant;
            let of_cell: Vec<&Finished> = runs.iter().filter(of_cell).collect();
            let cells = sweep.rates(data).iter().filter_map(|&rate| cell(&of_cell, rate));
            best.extend(cells.max_by(|a, b| a.validation.total_cmp(&b.validation)));
        }
    }
    Ok(Results {
        format: SWEEP_FORMAT.into(),
        sweep: sweep.name.clone(),
        recipe: sweep.recipe.clone(),
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
fn finished(run: &Planned, out: &Path, chance: f64) -> Option<Finished> {
    let measured = measure::load(&run.folder(out))?;
    let scaled = |accuracy: f64| (accuracy - chance) / (1.0 - chance);
    Some(Finished {
        name: run.name(),
        task: run.task.clone(),
        variant: run.variant.clone(),
        learning_rate: run.learning_rate,
        seed: run.seed,
        step: measured.step,
        validation: scaled(measured.validation),
        test: scaled(measured.test),
        test_accuracy: measured.test,
        also: measured.also.iter().map(|(label, accuracy)| (label.clone(), scaled(*accuracy))).collect(),
    })
}

/// Mean and spread over the seeds at one learning rate; none where no run is finished.
fn cell(runs: &[&Finished], learning_rate: f64) -> Option<Cell> {
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
    Some(Cell {
        task: first.task.clone(),
        variant: first.variant.clone(),
        learning_rate,
        seeds: at_rate.len() as u64,
        steps: at_rate.iter().map(|run| run.step).max().unwrap_or_default(),
        validation: mean(|run| run.validation),
        test,
        test_deviation: (at_rate.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
        also,
    })
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
}
