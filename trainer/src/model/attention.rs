//! Causal attention over everything that came before in the same document, with a key-value cache, and rotary positions.
//!
//! ```text
//! o_t = Σ_{s ≤ t, same document} softmax_s(q_t · k_s / √E) v_s
//! cache  keys, values (B, S, H, E)    seen (B, S): which entries the next token may see
//! ```
//! The cache grows by a token's key and value with each token. Entries that may not be seen are padding, where prompts of a
//! batch differ in length, or belong to a document before. Padding stands in front, so that the newest token is the last
//! entry of every row. Products and softmax are libtorch's `scaled_dot_product_attention`, which keeps no T × T scores
//! where its kernels know the sizes.

use tch::{Kind, Tensor};
use xlstm_kernels::transformer::rotary;

use super::block::{BlockCall, BlockState};
use crate::error::Result;

/// Names of the cache.
const KEYS: &str = "attention.keys";
const VALUES: &str = "attention.values";
const SEEN: &str = "attention.seen";

/// Attention of `q` over `k` and `v`, `(B, T, H, E)` each and of one type, and over the state's; the new state holds both.
pub(super) fn attend(
    q_BTHE: &Tensor,
    k_BTHE: &Tensor,
    v_BTHE: &Tensor,
    call: &BlockCall<'_>,
) -> Result<(Tensor, BlockState)> {
    let Visible { keys_BSHE, values_BSHE, mask_B1TS, seen_BS } = Visible::new(k_BTHE, v_BTHE, call)?;
    let by_head = |tensor: &Tensor| tensor.f_transpose(1, 2);
    let causal = mask_B1TS.is_none();
    let output_BHTE = Tensor::f_scaled_dot_product_attention(
        &by_head(q_BTHE)?,
        &by_head(&keys_BSHE)?,
        &by_head(&values_BSHE)?,
        mask_B1TS.as_ref(),
        0.0,
        causal,
        None,
        false,
    )?;
    let state = BlockState::new([(KEYS, keys_BSHE), (VALUES, values_BSHE), (SEEN, seen_BS)]);
    Ok((output_BHTE.f_transpose(1, 2)?, state))
}

/// What a call's tokens can attend to.
struct Visible {
    keys_BSHE: Tensor,
    values_BSHE: Tensor,
    /// `None` where it is plain causality.
    mask_B1TS: Option<Tensor>,
    /// What the token after these may see.
    seen_BS: Tensor,
}

impl Visible {
    fn new(k_BTHE: &Tensor, v_BTHE: &Tensor, call: &BlockCall<'_>) -> Result<Self> {
        let size = k_BTHE.size();
        let (batch, time) = (size[0], size[1]);
        let (kind, device) = (Kind::Bool, k_BTHE.device());
        if call.state.is_none() && call.resets_BT.is_none() {
            return Ok(Self {
                keys_BSHE: k_BTHE.shallow_clone(),
                values_BSHE: v_BTHE.shallow_clone(),
                mask_B1TS: None,
                seen_BS: Tensor::f_ones([batch, time], (kind, device))?,
            });
        }
        // The number of a token's document among those of this call: 0 is the one that goes on from the state.
        let document_BT = match call.resets_BT {
            Some(resets_BT) => resets_BT.f_cumsum(1, Kind::Int64)?,
            None => Tensor::f_zeros([batch, time], (Kind::Int64, device))?,
        };
        let (row_BT1, column_B1T) = (document_BT.f_unsqueeze(2)?, document_BT.f_unsqueeze(1)?);
        let causal_TT = Tensor::f_ones([time, time], (kind, device))?.f_tril(0)?;
        let own_BTT = row_BT1.f_eq_tensor(&column_B1T)?.f_logical_and(&causal_TT)?;
        let own_seen_BT = document_BT.f_eq_tensor(&document_BT.f_narrow(1, time - 1, 1)?)?;
        let Some(state) = call.state else {
            return Ok(Self {
                keys_BSHE: k_BTHE.shallow_clone(),
                values_BSHE: v_BTHE.shallow_clone(),
                mask_B1TS: Some(own_BTT.f_unsqueeze(1)?),
                seen_BS: own_seen_BT,
            });
        };
        let seen_BP = state.need(SEEN)?;
        let going_on_BT = document_BT.f_eq(0)?;
        let before_BTP = seen_BP.f_unsqueeze(1)?.f_logical_and(&going_on_BT.f_unsqueeze(2)?)?;
        let still_seen_BP = seen_BP.f_logical_and(&going_on_BT.f_narrow(1, time - 1, 1)?)?;
        Ok(Self {
            keys_BSHE: Tensor::f_cat(&[&state.need(KEYS)?, k_BTHE], 1)?,
            values_BSHE: Tensor::f_cat(&[&state.need(VALUES)?, v_BTHE], 1)?,
            mask_B1TS: Some(Tensor::f_cat(&[before_BTP, own_BTT], 2)?.f_unsqueeze(1)?),
            seen_BS: Tensor::f_cat(&[still_seen_BP, own_seen_BT], 1)?,
        })
    }
}

/// Caches of single sequences as one, with padding in front of the shorter ones.
pub(super) fn join(states: &[&BlockState]) -> Result<BlockState> {
    let lengths = states.iter().map(|state| Ok(state.need(SEEN)?.size()[1])).collect::<Result<Vec<_>>>()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut padded = Vec::with_capacity(states.len());
    for (state, length) in states.iter().zip(lengths) {
        let missing = longest - length;
        // From the last axis to the first: before and after each.
        let cache = [0, 0, 0, 0, missing, 0];
        padded.push(BlockState::new([
            (KEYS, state.need(KEYS)?.f_constant_pad_nd(cache)?),
            (VALUES, state.need(VALUES)?.f_constant_pad_nd(cache)?),
            (SEEN, state.need(SEEN)?.f_constant_pad_nd([missing, 0])?),
        ]));
    }
    BlockState::concatenate(&padded.iter().collect::<Vec<_>>())
}

/// Rotary angles by position: pairs `(j, j + E/2)` of a head turn by `position · base^(-2j/E)`.
#[derive(Debug)]
pub(super) struct Rotary {
    cosine_BTJ: Tensor,
    sine_BTJ: Tensor,
}

impl Rotary {
    /// The angles of positions `(1 or B, T)` for heads of `width`, in float32, or float64 where `kind` is.
    pub(super) fn new(positions_BT: &Tensor, width: i64, base: f64, kind: Kind) -> Result<Self> {
        let options = (Kind::Double, positions_BT.device());
        let exponent_J = Tensor::f_arange(width / 2, options)?.f_mul_scalar(-2.0 / width as f64)?;
        let frequency_J = exponent_J.f_mul_scalar(base.ln())?.f_exp()?;
        let angle_BTJ = positions_BT.f_to_kind(Kind::Double)?.f_unsqueeze(2)?.f_mul(&frequency_J)?;
        let kind = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(Self {
            cosine_BTJ: angle_BTJ.f_cos()?.f_to_kind(kind)?,
            sine_BTJ: angle_BTJ.f_sin()?.f_to_kind(kind)?,
        })
    }

    /// Turns queries or keys, `(B, T, H, E)`, and gives them in their own type.
    pub(super) fn turn(&self, x_BTHE: &Tensor) -> Result<Tensor> {
        Ok(rotary(x_BTHE, &self.cosine_BTJ, &self.sine_BTJ)?)
    }
}

/// `(B, T, H·E)` as `(B, T, H, E)`.
pub(super) fn by_head(x_BTC: &Tensor, heads: i64) -> Result<Tensor> {
    let size = x_BTC.size();
    Ok(x_BTC.f_view([size[0], size[1], heads, size[2] / heads])?)
}
