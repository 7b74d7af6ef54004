//! Training: from arguments to a run, and through its steps.
//!
//! ```text
//! options     what is asked for, and the recipe that it means
//! data        the training splits with their weights, and the validation split
//! plan        parameters, memory, time, who computes
//! elsewhere   the same for GPUs that are not here
//! initial     parameters and moments that a new run begins with
//! setup       splits, model, run folder, checkpoint; refuses what contradicts itself
//! trainer     the loop: steps, checkpoints, validation by cadence
//! step        one step: micro-batches, gradients, clipping, update
//! recorded    a step of a small model on a GPU, recorded once and replayed
//! validate    token-weighted negative log-likelihood over a split
//! early       whether what was measured ends a run before its last step
//! selfcheck   recorded steps against launched ones
//! report      metrics, events, progress
//! ```

mod data;
mod early;
mod elsewhere;
mod initial;
mod options;
mod plan;
mod recorded;
mod report;
mod selfcheck;
mod setup;
mod step;
mod trainer;
mod validate;

pub use elsewhere::Elsewhere;
pub use options::{RecordSteps, TrainOptions, resolve_recipe};
pub use plan::{compute_path, describe, memory_estimate, micro_batch_rows};
pub use selfcheck::check_recorded_steps;
pub use setup::setup;
pub use trainer::{Outcome, Trainer};
pub use validate::{Measurement, measure};
