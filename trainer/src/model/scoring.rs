//! Log-likelihoods of single tokens, for evaluation: no gradients, and the projection onto the vocabulary only for
//! positions whose target counts.

mod alternatives;

use tch::{Kind, Tensor};

use super::{IGNORE_TARGET, Model, ModelState, Need, Pass, TargetCount, signed};
use crate::error::Result;

pub use alternatives::TokenScores;

/// Losses that were launched and are not waited for.
#[derive(Debug)]
pub struct PendingLosses {
    /// `(M,)`, on the device; `None` where no target counts.
    losses_M: Option<Tensor>,
}

impl PendingLosses {
    /// Waits for them.
    ///
    /// # Errors
    /// When the device failed.
    pub fn take(self) -> Result<Vec<f64>> {
        let Some(losses_M) = self.losses_M else { return Ok(Vec::new()) };
        let losses_M = losses_M.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?;
        Ok(Vec::<f64>::try_from(losses_M)?)
    }
}

/// Logits that are held at once: 256 MiB in float32.
const MAX_LOGITS: u64 = 1 << 26;

impl Model {
    /// Negative log-likelihood, in nats, or of a model of numbers squared error, of each target of `targets_BT` that is not [`IGNORE_TARGET`], row by row, and
    /// the state after the last token. Both arguments are `(B, T)` (Int64).
    ///
    /// # Errors
    /// When shapes do not fit, or libtorch fails.
    pub fn token_losses(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        state: Option<&ModelState>,
        resets_BT: Option<&Tensor>,
    ) -> Result<(Vec<f64>, ModelState)> {
        tch::no_grad(|| {
            let (hidden_BTC, state) = self.forward(tokens_BT, state, resets_BT)?;
            Ok((self.losses_of(&hidden_BTC, targets_BT)?, state))
        })
    }

    /// As [`token_losses`](Self::token_losses) from a fresh state, of which nothing is kept: the states of all blocks
    /// together are many times larger than what one block needs. It is computed by what computes
    /// [`loss`](Self::loss) in training and validation.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses).
    pub fn sequence_losses(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
    ) -> Result<Vec<f64>> {
        tch::no_grad(|| {
            let hidden_BTC = self.hidden_of_sequences(tokens_BT, resets_BT)?;
            self.losses_of(&hidden_BTC, targets_BT)
        })
    }

    /// As [`sequence_losses`](Self::sequence_losses) of the targets whose places in `(B·T)` are `counting_M` (Int64), in
    /// that order, without waiting for the device.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses).
    pub fn launch_losses(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        counting_M: &Tensor,
        resets_BT: Option<&Tensor>,
    ) -> Result<PendingLosses> {
        tch::no_grad(|| {
            let hidden_BTC = self.hidden_of_sequences(tokens_BT, resets_BT)?;
            match self.at_places(&hidden_BTC, &targets_BT.f_reshape([-1])?, counting_M)? {
                Some((hidden_MC, targets_M)) => self.pending_losses(&hidden_MC, &targets_M),
                None => Ok(PendingLosses { losses_M: None }),
            }
        })
    }

    /// Hidden values `(B, T, C)` by what computes [`loss`](Self::loss), from a fresh state of which nothing is kept.
    fn hidden_of_sequences(&self, tokens_BT: &Tensor, resets_BT: Option<&Tensor>) -> Result<Tensor> {
        let path = self.compute_path(Need { resets: resets_BT.is_some(), ..Need::default() })?.path;
        let pass =
            Pass { dropout: None, path, checkpointed: false, keep_state: false, state: None, resets_BT };
        Ok(self.hidden(tokens_BT, &pass)?.0)
    }

    /// As [`sequence_losses`](Self::sequence_losses), and for each of the same targets whether it came out first: its
    /// logit is the largest of the vocabulary. The losses are the same to the last bit, computed by the same kernels.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses).
    pub fn sequence_scores(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
    ) -> Result<(Vec<f64>, Vec<bool>)> {
        tch::no_grad(|| {
            let hidden_BTC = self.hidden_of_sequences(tokens_BT, resets_BT)?;
            let Some((hidden_MC, targets_M)) = self.counting(&hidden_BTC, targets_BT)? else {
                return Ok((Vec::new(), Vec::new()));
            };
            let losses = self.losses_of_counting(&hidden_MC, &targets_M)?;
            Ok((losses, self.first_of_all(&hidden_MC, &targets_M)?))
        })
    }

    fn losses_of(&self, hidden_BTC: &Tensor, targets_BT: &Tensor) -> Result<Vec<f64>> {
        match self.counting(hidden_BTC, targets_BT)? {
            Some((hidden_MC, targets_M)) => self.losses_of_counting(&hidden_MC, &targets_M),
            None => Ok(Vec::new()),
        }
    }

    /// Hidden values and targets of the positions whose target counts; `None` where none does.
    fn counting(&self, hidden_BTC: &Tensor, targets_BT: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let targets_N = targets_BT.f_reshape([-1])?;
        let counts_N = if self.config.input_width() > 0 {
            targets_N.f_isnan()?.f_logical_not()?
        } else {
            targets_N.f_ne(IGNORE_TARGET)?
        };
        self.at_places(hidden_BTC, &targets_N, &counts_N.f_nonzero()?.f_squeeze_dim(1)?)
    }

    /// Hidden values and targets at these places of `(B·T)`, in their order; `None` where there are none.
    fn at_places(
        &self,
        hidden_BTC: &Tensor,
        targets_N: &Tensor,
        places_M: &Tensor,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let count = places_M.size()[0];
        if count == 0 {
            return Ok(None);
        }
        let hidden_NC = hidden_BTC.f_reshape([-1, signed(self.config.embedding_dim())])?;
        if count == targets_N.size()[0] {
            return Ok(Some((hidden_NC, targets_N.shallow_clone())));
        }
        Ok(Some((hidden_NC.f_index_select(0, places_M)?, targets_N.f_index_select(0, places_M)?)))
    }

    fn losses_of_counting(&self, hidden_MC: &Tensor, targets_M: &Tensor) -> Result<Vec<f64>> {
        self.pending_losses(hidden_MC, targets_M)?.take()
    }

    fn pending_losses(&self, hidden_MC: &Tensor, targets_M: &Tensor) -> Result<PendingLosses> {
        let count = TargetCount::Known(targets_M.size()[0]);
        let losses_M = self.loss_of(hidden_MC, targets_M, count)?.token_losses_N;
        Ok(PendingLosses { losses_M: Some(losses_M) })
    }

    /// Logits of hidden values, as many rows at once as fit, each with the number of its first row.
    fn each_logits(&self, hidden_MC: &Tensor, mut each: impl FnMut(i64, Tensor) -> Result<()>) -> Result<()> {
        let at_once = signed((MAX_LOGITS / self.config.vocabulary_size().max(1)).max(1));
        let count = hidden_MC.size()[0];
        let mut first = 0;
        while first < count {
            let size = at_once.min(count - first);
            each(first, self.logits(&hidden_MC.f_narrow(0, first, size)?)?)?;
            first += size;
        }
        Ok(())
    }

    /// Whether each target's logit is the largest, by the projection's own product.
    fn first_of_all(&self, hidden_MC: &Tensor, targets_M: &Tensor) -> Result<Vec<bool>> {
        let mut correct = Vec::new();
        self.each_logits(hidden_MC, |first, logits_MV| {
            let targets_M = targets_M.f_narrow(0, first, logits_MV.size()[0])?;
            let correct_M = logits_MV.f_argmax(-1, false)?.f_eq_tensor(&targets_M)?;
            correct.extend(Vec::<bool>::try_from(correct_M.f_to_device(tch::Device::Cpu)?)?);
            Ok(())
        })?;
        Ok(correct)
    }

    /// The name of the first parameter that holds NaN, or an infinity where it is trained (a forget gate that is not
    /// may never forget: its bias is infinite).
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn first_not_finite(&self) -> Result<Option<&str>> {
        for parameter in self.parameters() {
            let values = parameter.tensor.detach();
            let bad =
                if parameter.trainable { values.f_isfinite()?.f_logical_not()? } else { values.f_isnan()? };
            if i64::try_from(bad.f_any()?)? != 0 {
                return Ok(Some(&parameter.name));
            }
        }
        Ok(None)
    }
}
