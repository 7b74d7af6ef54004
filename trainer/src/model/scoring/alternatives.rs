//! Beside each target's log-likelihood, what the model would rather have said.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::model::{Model, signed};

/// Losses of targets, and the likeliest tokens in the place of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// Negative log-likelihood of each target, nats.
    pub losses: Vec<f64>,
    /// The likeliest ids in the place of each target, as many for each, likeliest first.
    pub tokens: Vec<i64>,
    /// Their negative log-likelihoods, nats.
    pub token_losses: Vec<f64>,
}

impl Model {
    /// As [`sequence_losses`](Self::sequence_losses), and for each of the same targets the `top` likeliest ids. The losses
    /// are the same to the last bit, computed by the same kernels; those of the ids come from the projection's own product.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses).
    pub fn sequence_alternatives(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
        top: usize,
    ) -> Result<TokenScores> {
        tch::no_grad(|| {
            let hidden_BTC = self.hidden_of_sequences(tokens_BT, resets_BT)?;
            let Some((hidden_MC, targets_M)) = self.counting(&hidden_BTC, targets_BT)? else {
                return Ok(TokenScores::default());
            };
            let losses = self.losses_of_counting(&hidden_MC, &targets_M)?;
            let mut scores = TokenScores { losses, ..TokenScores::default() };
            if top > 0 {
                self.likeliest(&hidden_MC, top, &mut scores)?;
            }
            Ok(scores)
        })
    }

    fn likeliest(&self, hidden_MC: &Tensor, top: usize, scores: &mut TokenScores) -> Result<()> {
        let top = signed(top as u64);
        self.each_logits(hidden_MC, |_, logits_MV| {
            let kind = if logits_MV.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            let (values_MK, ids_MK) = logits_MV.f_log_softmax(-1, kind)?.f_topk(top, -1, true, true)?;
            let losses_MK = values_MK.f_neg()?.f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?;
            scores.token_losses.extend(Vec::<f64>::try_from(losses_MK.f_reshape([-1])?)?);
            scores
                .tokens
                .extend(Vec::<i64>::try_from(ids_MK.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?);
            Ok(())
        })
    }
}
