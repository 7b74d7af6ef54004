//! Log-likelihoods of single tokens, for evaluation: no gradients, and the projection onto the vocabulary only for
//! positions whose target counts.

use tch::{Kind, Tensor};
use xlstm_manifests::recipe::ComputePath;

use super::{IGNORE_TARGET, Model, ModelState, Need, Pass, signed};
use crate::error::Result;

impl Model {
    /// Negative log-likelihood, in nats, of each target of `targets_BT` that is not [`IGNORE_TARGET`], row by row, and
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
            let path = self.compute_path(Need { resets: resets_BT.is_some(), states: true })?.path;
            let pass = Pass { path, checkpointed: false, keep_state: true, state, resets_BT };
            let (hidden_BTC, state) = self.hidden(tokens_BT, &pass)?;
            Ok((self.losses_of(&hidden_BTC, targets_BT, path)?, state))
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
            let path = self.compute_path(Need { resets: resets_BT.is_some(), states: false })?.path;
            let pass = Pass { path, checkpointed: false, keep_state: false, state: None, resets_BT };
            let (hidden_BTC, _) = self.hidden(tokens_BT, &pass)?;
            self.losses_of(&hidden_BTC, targets_BT, path)
        })
    }

    fn losses_of(&self, hidden_BTC: &Tensor, targets_BT: &Tensor, path: ComputePath) -> Result<Vec<f64>> {
        let targets_N = targets_BT.f_reshape([-1])?;
        let counting_M = targets_N.f_ne(IGNORE_TARGET)?.f_nonzero()?.f_squeeze_dim(1)?;
        let count = counting_M.size()[0];
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut hidden_NC = hidden_BTC.f_view([-1, signed(self.config.embedding_dim())])?;
        let mut targets_M = targets_N;
        if count < targets_M.size()[0] {
            hidden_NC = hidden_NC.f_index_select(0, &counting_M)?;
            targets_M = targets_M.f_index_select(0, &counting_M)?;
        }
        let losses = self.cross_entropy(&hidden_NC, &targets_M, Some(count), path)?;
        let losses_M = losses.token_losses_N.f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?;
        Ok(Vec::<f64>::try_from(losses_M)?)
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
