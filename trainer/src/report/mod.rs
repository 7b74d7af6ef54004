//! Pages about runs: one self-contained file that a person opens at the end.
//!
//! ```text
//! RUN/run.json, recipe.toml, metrics.jsonl, checkpoints/ ─► RunView ─┐
//! dataset manifests, where they are still at hand ───────────────────┼─► page: recipe, curves, speed, data, chain
//! evaluation reports ────────────────────────────────────────────────┘
//! ```
//! Nothing is computed here that decides a figure: a page shows what stands in those files, with the digests that lead
//! from each figure to its bytes. What is missing is said on the page, never filled in.

mod chain;
mod curves;
mod data;
mod differences;
mod environment;
mod evaluation;
mod figures;
mod paloma;
mod recipe;
mod run_page;
mod view;

pub use differences::{Comparison, comparisons, groups};
pub use evaluation::{EvaluationView, evaluation_page, evaluations_of, load_overlap};
pub use run_page::runs_page;
pub use view::RunView;
pub(crate) use view::median;
