//! What a run writes about itself: JSON lines, TensorBoard events, a progress bar.

mod flops;
mod lines;
mod progress;
mod rows;
mod targets;
mod tensorboard;

pub use flops::peak_operations;
pub use lines::{Line, Lines, read_lines};
pub use progress::TrainingProgress;
pub(crate) use rows::RowLog;
pub use rows::TakenRows;
pub use targets::{TargetScores, score_targets};
pub use tensorboard::EventWriter;
