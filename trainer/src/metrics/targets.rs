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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};
    use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};

    use super::*;
    use crate::model::{IGNORE_TARGET, Placement};

    /// Perplexity, validation and accuracy of one checkpoint are of the same digits.
    #[test]
    fn losses_are_those_of_perplexity_to_the_last_bit_and_right_is_the_largest_logit() {
        let config = XlstmConfig {
            vocabulary_size: 64,
            embedding_dim: 16,
            blocks: 2,
            slstm_at: vec![1],
            ..XlstmConfig::default()
        };
        for precision in [Precision::Float32, Precision::Bfloat16] {
            let placement = Placement::new(Device::Cpu, precision, false);
            let model = Model::new(&ModelConfig::Xlstm(config.clone()), placement, 7).unwrap();
            tch::manual_seed(1);
            let inputs = Tensor::randint(64, [3, 16], (Kind::Int64, Device::Cpu));
            let drawn = Tensor::randint(64, [3, 16], (Kind::Int64, Device::Cpu));
            // Half of the targets are right by construction, every fifth counts for nothing.
            let (hidden, _) = model.forward(&inputs, None, None).unwrap();
            let best = tch::no_grad(|| model.logits(&hidden).unwrap().argmax(-1, false));
            let index = Tensor::arange(48, (Kind::Int64, Device::Cpu)).reshape([3, 16]);
            let targets = best.where_self(&index.remainder(2).eq(0), &drawn);
            let targets = targets.masked_fill(&index.remainder(5).eq(0), IGNORE_TARGET);
            let scores = score_targets(&model, &inputs, &targets, None).unwrap();
            let losses = model.sequence_losses(&inputs, &targets, None).unwrap();
            assert_eq!(scores.losses, losses, "{precision:?}");
            let counted = targets.ne(IGNORE_TARGET);
            let expected = Vec::<bool>::try_from(best.eq_tensor(&targets).masked_select(&counted)).unwrap();
            assert_eq!(scores.correct, expected, "{precision:?}");
            assert!(scores.correct_count() > 10 && scores.correct_count() < losses.len() as u64);
        }
        let none = Tensor::full([1, 4], IGNORE_TARGET, (Kind::Int64, Device::Cpu));
        let placement = Placement::new(Device::Cpu, Precision::Float32, false);
        let model = Model::new(&ModelConfig::Xlstm(config), placement, 7).unwrap();
        assert_eq!(score_targets(&model, &none.zeros_like(), &none, None).unwrap(), TargetScores::default());
    }
}
