//! Sweeps: an experiment as a grid of runs, `xlstm-train sweep NAME`.
//!
//! ```text
//! sweep file (TOML) ─► tasks × variants × learning rates × seeds
//!    OUT/data/TASK      generated once, found again by its manifest
//!    OUT/runs/RUN       one run of `xlstm-train` each, several at once; finished ones are left alone, others go on
//!    OUT/results.json   every run; the best learning rate of each task and variant, by validation; mean and spread
//!    OUT/report.html    the same as a page, with the paper's figures beside ours
//! ```
//! A learning rate is chosen by the mean over its seeds of the accuracy on the validation split, and what is reported is
//! the test split's. The paper does not say how it chose, nor what its ± is (two seeds): ours is the standard deviation. `--task I/N` does a share of the runs, for an array of a cluster; the last one, or a call without
//! it, makes the table.

mod data;
mod file;
mod launch;
mod measure;
mod page;
mod paper;
mod results;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use file::{Also, Data, Sweep, names};
pub use launch::{Options, run};
pub use measure::{Measured, measure_run};
pub use page::page;
pub use paper::{figure as paper_figure, method as paper_method};
pub use results::{Cell, Finished, Results, SWEEP_FORMAT, collect};

/// What the runs of a sweep are measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweepMeasure {
    /// (accuracy − chance) / (1 − chance): the higher the better.
    #[default]
    ScaledAccuracy,
    /// Mean squared error of numbers: the lower the better.
    SquaredError,
}

impl SweepMeasure {
    /// Its name, with a capital.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaledAccuracy => "Scaled accuracy",
            Self::SquaredError => "Mean squared error",
        }
    }

    /// Whether the first is the better of two.
    #[must_use]
    pub fn is_better(self, one: f64, other: f64) -> bool {
        match self {
            Self::ScaledAccuracy => one > other,
            Self::SquaredError => one < other,
        }
    }

    /// A figure for people.
    #[must_use]
    pub fn shown(self, figure: f64) -> String {
        match self {
            Self::ScaledAccuracy => format!("{figure:.3}"),
            Self::SquaredError => format!("{figure:.3e}"),
        }
    }
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The data's label.
    pub task: String,
    /// The recipe's variant.
    pub variant: String,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of initial values and order of rows.
    pub seed: u64,
}

impl Planned {
    /// Its name, which is also its folder's.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}_{}_lr{:e}_seed{}", self.task, self.variant, self.learning_rate, self.seed)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self, out: &Path) -> PathBuf {
        out.join("runs").join(self.name())
    }
}
