//! Gated linear attention as it is defined: a loop over time, differentiated by libtorch. In `Double` the yardstick for
//! the other versions.

use super::{LinearAttentionInput, LinearAttentionOutput, Sizes};
use tch::Tensor;

pub(super) fn linear_attention(input: &LinearAttentionInput<'_>, sizes: Sizes) -> LinearAttentionOutput {
    let Sizes { batch, time, heads, key, value } = sizes;
    let kind = input.q_BTHK.kind();
    let mut state_BHKV = match input.state_BHKV {
        Some(state) => state.shallow_clone(),
        None => Tensor::zeros([batch, heads, key, value], (kind, input.q_BTHK.device())),
    };
    let decay = input.log_decay.broadcast().exp();
    let decay_BTHK = decay.expand([batch, time, heads, key], false);
    let mut outputs = Vec::with_capacity(usize::try_from(time).unwrap_or(0));
    for step in 0..time {
        if let Some(resets_BT) = input.resets_BT {
            let left = resets_BT.select(1, step).logical_not().view([batch, 1, 1, 1]).to_kind(kind);
            state_BHKV = left * &state_BHKV;
        }
        let at = |tensor: &Tensor| tensor.select(1, step).unsqueeze(-1);
        let written = at(input.k_BTHK) * input.v_BTHV.select(1, step).unsqueeze(-2);
        let next = &state_BHKV * at(&decay_BTHK) + &written;
        let seen = match input.bonus_HK {
            Some(bonus_HK) => &state_BHKV + bonus_HK.unsqueeze(-1) * written,
            None => next.shallow_clone(),
        };
        let q_BHK1 = at(input.q_BTHK) * input.scale;
        outputs.push((q_BHK1 * seen).sum_dim_intlist(-2, false, kind));
        state_BHKV = next;
    }
    LinearAttentionOutput { o_BTHV: Tensor::stack(&outputs, 1), state_BHKV }
}
