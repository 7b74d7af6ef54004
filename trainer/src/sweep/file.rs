//! The sweep file, and those that come with the program.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use xlstm_pipeline::tasks::{self, Parameters, Task};

use super::{Planned, SweepMeasure};
use crate::error::{Result, TrainError};

macro_rules! include_sweeps {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("builtin/", $name, ".toml")))),*]
    };
}

/// Sweeps that come with the program: name and text.
const BUILTIN: &[(&str, &str)] = include_sweeps!(
    "parity",
    "parity-small",
    "parity-half-small",
    "cycle-navigation",
    "even-pairs",
    "modular-arithmetic",
    "state-tracking-one-rate",
    "formal-languages",
    "formal-languages-small",
    "mqar-1",
    "mqar-2",
    "mqar-3",
    "mqar-small",
    "listops",
    "nearest-neighbor",
    "nearest-neighbor-small",
    "nearest-neighbor-two-rates"
);

/// Names of the built-in sweeps.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

/// An experiment as a grid of runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// One sentence.
    pub description: String,
    /// The place in the paper.
    pub paper: String,
    /// Set where sizes, lengths or steps are not the paper's: what differs. Its figures do not compare with the paper's.
    #[serde(default)]
    pub small: Option<String>,
    /// Scaled accuracy on the test split that every task and variant should reach, or mean squared error that none should
    /// exceed; the sweep fails where one does not.
    #[serde(default)]
    pub expected: Option<f64>,
    /// The recipe, without its variant.
    pub recipe: String,
    /// The recipe's variants; empty: the recipe by itself.
    pub variants: Vec<String>,
    /// Peak learning rates.
    pub learning_rates: Vec<f64>,
    /// Where the cosine ends; the same for all peaks.
    pub final_learning_rate: f64,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// More overrides of the recipe, as `--set` takes them.
    #[serde(default)]
    pub set: Vec<String>,
    /// The tasks.
    pub data: Vec<Data>,
}

/// A task of a sweep.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The generator's name.
    pub task: String,
    /// What the sweep calls it, where one generator makes several data sets [default: the generator's name].
    #[serde(default)]
    pub label: Option<String>,
    /// Seed of the generator.
    #[serde(default)]
    pub seed: u64,
    /// Samples of each split: `train`, `validation`, `test` [default: the paper's].
    #[serde(default)]
    pub examples: BTreeMap<String, u64>,
    /// The generator's parameters.
    #[serde(default)]
    pub parameters: Parameters,
    /// Overrides of the recipe for this task, as `--set` takes them: its context, batch and steps.
    #[serde(default)]
    pub set: Vec<String>,
    /// Peak learning rates of this task [default: the sweep's].
    #[serde(default)]
    pub learning_rates: Vec<f64>,
    /// Other data of the same generator, on whose test split finished runs are measured too: other lengths than trained.
    #[serde(default)]
    pub also: Vec<Also>,
}

/// Data that runs are measured on and not trained on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// What the sweep calls it.
    pub label: String,
    /// Examples of its test split [default: the paper's].
    #[serde(default)]
    pub examples: Option<u64>,
    /// The generator's parameters.
    #[serde(default)]
    pub parameters: Parameters,
}

impl Data {
    /// Its name in the sweep.
    #[must_use]
    pub fn label(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.task)
    }

    /// The generator.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot have these parameters.
    pub fn generator(&self) -> Result<Box<dyn Task>> {
        self.generator_with(&self.parameters)
    }

    /// The generator of other data.
    ///
    /// # Errors
    /// As [`generator`](Self::generator).
    pub fn generator_with(&self, parameters: &Parameters) -> Result<Box<dyn Task>> {
        let task = tasks::by_name(&self.task, self.seed, parameters);
        task.map_err(|error| TrainError::Usage(error.to_string()))
    }
}

impl Sweep {
    /// A built-in sweep or a file.
    ///
    /// # Errors
    /// When there is none of this name, or its text does not hold.
    pub fn load(name: &str) -> Result<Self> {
        let path = Path::new(name);
        let (stem, text) = if path.is_file() {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            (stem.unwrap_or_default(), fs_err::read_to_string(path)?)
        } else {
            let found = BUILTIN.iter().find(|(builtin, _)| *builtin == name).ok_or_else(|| {
                let known: Vec<&str> = names().collect();
                TrainError::Usage(format!(
                    "sweep `{name}`: no file and no built-in sweep of this name; there are {}",
                    known.join(", ")
                ))
            })?;
            (name.to_owned(), found.1.to_owned())
        };
        let sweep: Self = toml::from_str(&text)
            .map_err(|error| TrainError::Usage(format!("sweep `{name}`: {}", error.message())))?;
        let sweep = Self { name: stem, ..sweep };
        sweep.check()?;
        Ok(sweep)
    }

    fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(TrainError::Usage(format!("sweep `{}`: {what}", self.name)));
        if self.learning_rates.is_empty() || self.seeds.is_empty() || self.data.is_empty() {
            return fail("expected at least one of `learning_rates`, `seeds` and `data` each");
        }
        let mut rates =
            self.learning_rates.iter().chain(self.data.iter().flat_map(|data| &data.learning_rates));
        if rates.any(|&rate| !(rate > 0.0 && self.final_learning_rate <= rate)) {
            return fail("expected `learning_rates` above 0 and not below `final_learning_rate`");
        }
        let measure = self.measure()?;
        let mut labels: Vec<&str> = Vec::new();
        for data in &self.data {
            let of_numbers = data.generator()?.input_width().is_some();
            if of_numbers != (measure == SweepMeasure::SquaredError) {
                return fail(
                    "expected tasks of tokens or tasks of numbers, found both: make two sweeps of them",
                );
            }
            for also in &data.also {
                data.generator_with(&also.parameters)?;
            }
            // Folders of data have these names.
            for label in std::iter::once(data.label()).chain(data.also.iter().map(|also| also.label.as_str()))
            {
                if labels.contains(&label) {
                    return fail(&format!("two of its tasks are called `{label}`: give each a `label`"));
                }
                labels.push(label);
            }
            if let Some(split) = data.examples.keys().find(|name| name.parse::<tasks::Split>().is_err()) {
                return fail(&format!("`examples` of {}: no split is named `{split}`", data.label()));
            }
        }
        Ok(())
    }

    /// What its runs are measured by.
    ///
    /// # Errors
    /// When a task cannot be made.
    pub fn measure(&self) -> Result<SweepMeasure> {
        match self.data.first() {
            Some(data) if data.generator()?.input_width().is_some() => Ok(SweepMeasure::SquaredError),
            _ => Ok(SweepMeasure::ScaledAccuracy),
        }
    }

    /// All runs: task by task, variant by variant, seed by seed, learning rate by learning rate.
    #[must_use]
    pub fn runs(&self) -> Vec<Planned> {
        let mut runs = Vec::new();
        for data in &self.data {
            for variant in self.variants_or_recipe() {
                for &seed in &self.seeds {
                    runs.extend(self.rates(data).iter().map(|&learning_rate| Planned {
                        task: data.label().to_owned(),
                        variant: variant.clone(),
                        learning_rate,
                        seed,
                    }));
                }
            }
        }
        runs
    }

    /// The peak learning rates of a task.
    #[must_use]
    pub fn rates<'a>(&'a self, data: &'a Data) -> &'a [f64] {
        if data.learning_rates.is_empty() { &self.learning_rates } else { &data.learning_rates }
    }

    /// The variants; the recipe's own name where it has none.
    #[must_use]
    pub fn variants_or_recipe(&self) -> Vec<String> {
        if self.variants.is_empty() { vec![self.recipe.clone()] } else { self.variants.clone() }
    }

    /// The recipe of a variant, as `--recipe` takes it.
    #[must_use]
    pub fn recipe_of(&self, variant: &str) -> String {
        if self.variants.is_empty() { self.recipe.clone() } else { format!("{}/{variant}", self.recipe) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_sweep_holds_and_its_recipes_resolve() {
        for name in names() {
            let sweep = Sweep::load(name).unwrap();
            let less = ["-small", "-one-rate", "-two-rates"].iter().any(|end| name.ends_with(end));
            assert!(less == sweep.small.is_some(), "{name}: what is not the paper's says so");
            let runs = sweep.runs();
            let folders: std::collections::HashSet<_> = runs.iter().map(Planned::name).collect();
            assert_eq!(folders.len(), runs.len(), "{name}");
            for variant in sweep.variants_or_recipe() {
                for data in &sweep.data {
                    let set = [sweep.set.clone(), data.set.clone()].concat();
                    let recipe = xlstm_manifests::recipe::load(&sweep.recipe_of(&variant), &set).unwrap();
                    let row_length = u64::from(data.generator().unwrap().row_length());
                    recipe.rows_per_step(row_length).unwrap();
                    assert_eq!(recipe.training.context_length, row_length, "{name}: an example is never cut");
                }
            }
        }
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        assert!(Sweep::load("no-such-sweep").unwrap_err().to_string().contains("parity-small"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let text = "description = 'x'\npaper = 'x'\nrecipe = 'tasks-small'\nvariants = ['0to1']\n\
                    learning_rates = [1e-3]\nfinal_learning_rate = 1e-5\nseeds = [0]\n[[data]]\ntask = 'parity'\n";
        let said = |text: &str| {
            fs_err::write(&path, text).unwrap();
            Sweep::load(&path.display().to_string()).map(|_| ()).unwrap_err().to_string()
        };
        assert!(said(&text.replace("= [0]", "= []")).contains("at least one of"));
        assert!(said(&text.replace("1e-5", "1e-2")).contains("not below"));
        assert!(said(&text.replace("'parity'", "'parrots'")).contains("no task is named"));
        assert!(said(&format!("{text}[[data]]\ntask = 'parity'\n")).contains("give each a `label`"));
        assert!(said(&format!("{text}examples = {{ dev = 5 }}\n")).contains("no split is named `dev`"));
        assert!(said(&format!("{text}lenght = 3\n")).contains("lenght"));
    }
}
