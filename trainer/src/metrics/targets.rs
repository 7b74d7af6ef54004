//! What a model says at stored targets: the loss of each, and whether it came out first.
//!
//! Training wants the loss alone and has it from `Model::loss`. Validation and `xlstm-eval accuracy` ask here, so both
//! have the same figures: a target is right when its logit is the largest of the whole vocabulary.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::model::{IGNORE_TARGET, Model};

/// Logits that are held at once: 256 MiB in float32.
const MAX_LOGITS: i64 = 1 << 26;

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

/// Scores the targets of `targets_BT` that are not [`IGNORE_TARGET`]; all arguments are `(B, T)`, Int64 (resets Bool).
///
/// # Errors
/// When shapes do not fit, or libtorch fails.
pub fn score_targets(
    model: &Model,
    inputs_BT: &Tensor,
    targets_BT: &Tensor,
    resets_BT: Option<&Tensor>,
) -> Result<TargetScores> {
    tch::no_grad(|| {
        let (hidden_BTC, _) = model.forward(inputs_BT, None, resets_BT)?;
        let targets_N = targets_BT.f_reshape([-1])?;
        let scored_M = targets_N.f_ne(IGNORE_TARGET)?.f_nonzero()?.f_squeeze_dim(1)?;
        let (count, width) = (scored_M.size()[0], hidden_BTC.size().last().copied().unwrap_or(1));
        let mut scores = TargetScores::default();
        if count == 0 {
            return Ok(scores);
        }
        let hidden_MC = hidden_BTC.f_reshape([-1, width])?.f_index_select(0, &scored_M)?;
        let targets_M = targets_N.f_index_select(0, &scored_M)?;
        let vocabulary = i64::try_from(model.config().vocabulary_size()).unwrap_or(MAX_LOGITS);
        let at_once = (MAX_LOGITS / vocabulary.max(1)).max(1);
        let mut first = 0;
        while first < count {
            let size = at_once.min(count - first);
            let logits_1MV = model.logits(&hidden_MC.f_narrow(0, first, size)?.f_unsqueeze(0)?)?;
            let logits_MV = logits_1MV.f_squeeze_dim(0)?;
            let targets_M = targets_M.f_narrow(0, first, size)?;
            let log_MV = logits_MV.f_log_softmax(-1, Kind::Double)?;
            let losses_M =
                log_MV.f_gather(1, &targets_M.f_unsqueeze(1)?, false)?.f_neg()?.f_squeeze_dim(1)?;
            let correct_M = logits_MV.f_argmax(-1, false)?.f_eq_tensor(&targets_M)?;
            scores.losses.extend(Vec::<f64>::try_from(losses_M.f_to_device(tch::Device::Cpu)?)?);
            scores.correct.extend(Vec::<bool>::try_from(correct_M.f_to_device(tch::Device::Cpu)?)?);
            first += size;
        }
        Ok(scores)
    })
}
