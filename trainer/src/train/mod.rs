//! Training: from arguments to a run, and through its steps.
//!
//! ```text
//! setup       recipe, datasets, model, run folder; refuses what contradicts itself
//! trainer     steps: micro-batches, gradients, clipping, update; checkpoints; validation by cadence
//! validate    token-weighted negative log-likelihood over a split
//! report      metrics, events, progress
//! ```

mod plan;
mod report;
mod setup;
mod trainer;
mod validate;

pub use plan::{compute_path, describe, memory_estimate, micro_batch_rows};
pub use setup::{TrainOptions, resolve_recipe, setup};
pub use trainer::{Outcome, Trainer};
pub use validate::{Measurement, measure};
