//! What a model says at stored targets: the loss of each, and whether it came out first.
//!
//! Training wants the loss alone and has it from `Model::loss`. Validation and `xlstm-eval accuracy` ask here. The losses
//! are those of `Model::sequence_losses`, which perplexity has, by the same kernels: one checkpoint on one device gives the
//! same digits everywhere.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

use tch::Tensor;

use crate::error::Result;
use crate::model::Model;

/// One entry for each target that is scored, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TargetScores {
    /// Negative log-likelihood in nats.
    pub losses: Vec<f64>,
    /// Whether the target came out first.
    pub correct: Vec<bool>,
}

impl TargetScores {
    /// How many came out first.
    #[must_use]
    pub fn correct_count(&self) -> u64 {
        self.correct.iter().filter(|&&correct| correct).count() as u64
    }
}

/// Scores the targets of `targets_BT` that are not [`IGNORE_TARGET`](crate::model::IGNORE_TARGET); all arguments are `(B, T)`, Int64 (resets Bool).
///
/// # Errors
/// When shapes do not fit, or libtorch fails.
pub fn score_targets(
    model: &Model,
    inputs_BT: &Tensor,
    targets_BT: &Tensor,
    resets_BT: Option<&Tensor>,
) -> Result<TargetScores> {
    let (losses, correct) = model.sequence_scores(inputs_BT, targets_BT, resets_BT)?;
    Ok(TargetScores { losses, correct })
}
