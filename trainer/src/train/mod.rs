//! Training: from arguments to a run, and through its steps.
//!
//! ```text
//! options     what is asked for, and the recipe that it means
//! plan        parameters, memory, time, who computes
//! setup       splits, model, run folder, checkpoint; refuses what contradicts itself
//! trainer     steps: micro-batches, gradients, clipping, update; checkpoints; validation by cadence
//! validate    token-weighted negative log-likelihood over a split
//! early       whether what was measured ends a run before its last step
//! report      metrics, events, progress
//! ```

mod early;
mod options;
mod plan;
mod report;
mod setup;
mod trainer;
mod validate;

pub use options::{TrainOptions, resolve_recipe};
pub use plan::{compute_path, describe, memory_estimate, micro_batch_rows};
pub use setup::setup;
pub use trainer::{Outcome, Trainer};
pub use validate::{Measurement, measure};
