//! Gated linear attention on the GPU, inside libtorch's autograd: in chunks whose products are in bf16 ([`chunks`]), or step by step in
//! float32 ([`steps`]). Here is which of the two computes a call, and what they have in common.

mod chunks;
mod steps;

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Saved;

use super::layout::MAX_GRID;
use super::{contiguous, enabled, make};
use crate::KernelError;
use crate::linear_attention::{Inputs, LinearAttentionInput, LinearAttentionOutput, LogDecay, Outputs};

/// Whether there is a kernel for this call: queries, keys and values all float32 or all bf16, on a GPU, keys and values of a head powers
/// of two from 16 to 512, and no one asked for libtorch alone. All else is to be float32.
pub(crate) fn linear_attention_fits(input: &LinearAttentionInput<'_>) -> bool {
    let kind = input.q_BTHK.kind();
    let alike = kind == input.k_BTHK.kind() && kind == input.v_BTHV.kind();
    let [batch, tokens, heads, _] = input.q_BTHK.size()[..] else { return false };
    // Where sequences are cut there are few of them: `ENOUGH_THREADS` keeps the segments of all far below the limit.
    let within = batch <= MAX_GRID && heads <= MAX_GRID && i32::try_from(tokens).is_ok();
    let types = alike && matches!(kind, Kind::Float | Kind::BFloat16);
    within && types && steps::knows(input) && enabled(input.q_BTHK.device())
}

/// As [`crate::linear_attention::linear_attention`], of shapes that the caller has checked and where [`linear_attention_fits`] says
/// yes; the output is in the type of the values.
///
/// # Errors
/// [`KernelError`] when the GPU or its compiler fails.
pub(crate) fn linear_attention(
    input: &LinearAttentionInput<'_>,
) -> Result<LinearAttentionOutput, KernelError> {
    if chunks::fits(input) {
        differentiable(chunks::NAME, input, chunks::forward, chunks::backward)
    } else {
        differentiable(steps::NAME, input, steps::forward, steps::backward)
    }
}

/// Outputs and what the backward pass needs, from the log decays of each key.
type Forward<S> = fn(&LinearAttentionInput<'_>, &Tensor) -> Result<(Outputs<Tensor>, S), BoxError>;

/// Gradients that kernels have left, from those of the outputs: those of decays that are not by token and of the bonus in parts,
/// `(B, N, H, K)`, still to be summed.
type Backward<S> =
    fn(&S, Outputs<Option<Tensor>>, &Inputs<bool>, f64) -> Result<Inputs<Option<Tensor>>, BoxError>;

/// Runs a pair of passes as one function of libtorch's graph. Kernels read a log decay for each key.
fn differentiable<S: Saved + 'static>(
    name: &'static str,
    input: &LinearAttentionInput<'_>,
    forward: Forward<S>,
    backward: Backward<S>,
) -> Result<LinearAttentionOutput, KernelError> {
    let scale = input.scale;
    let log_decay = match input.log_decay {
        LogDecay::Head(decay_H) => {
            let keys = input.q_BTHK.size()[3];
            decay_H.f_unsqueeze(-1)?.f_expand([decay_H.size()[0], keys], false)?
        }
        LogDecay::Key(tensor) | LogDecay::Token(tensor) => tensor.shallow_clone(),
    };
    let by_token = is_by_token(&log_decay);
    let summed = |parts: Tensor| parts.f_sum_dim_intlist([0_i64, 1].as_slice(), false, Kind::Float);
    let Outputs { o_BTHV, state_BHKV } = node(
        name,
        Inputs::of(input, &log_decay),
        |_| forward(input, &log_decay),
        move |saved: S, upstream, wanted| {
            let mut gradients = backward(&saved, upstream, &wanted, scale)?;
            if !by_token {
                gradients.log_decay = gradients.log_decay.map(summed).transpose()?;
            }
            gradients.bonus_HK = gradients.bonus_HK.map(summed).transpose()?;
            Ok(gradients)
        },
    )?;
    Ok(LinearAttentionOutput { o_BTHV, state_BHKV })
}

/// Whether decays are `(B, T, H, K)`, and not `(H, K)`.
fn is_by_token(decay: &Tensor) -> bool {
    decay.dim() == 4
}

/// Dense and float32, as the kernels take decays and states.
fn dense(name: &'static str, argument: &str, tensor: &Tensor) -> Result<Tensor, BoxError> {
    contiguous(name, argument, tensor, Kind::Float)
}

fn dense_if_any(
    name: &'static str,
    argument: &str,
    tensor: Option<&Tensor>,
) -> Result<Option<Tensor>, BoxError> {
    tensor.map(|tensor| dense(name, argument, tensor)).transpose()
}

/// Room for what is as large as `tensor`, and of its type.
fn like(tensor: &Tensor) -> Result<Tensor, BoxError> {
    make(&tensor.size(), tensor.kind(), tensor)
}

/// Room for the gradient of the log decays, if it is wanted: by token, or in `parts`.
fn decay_room(
    wanted: bool,
    decay: &Tensor,
    parts: impl Fn() -> Result<Tensor, BoxError>,
) -> Result<Option<Tensor>, BoxError> {
    match (wanted, is_by_token(decay)) {
        (false, _) => Ok(None),
        (true, true) => like(decay).map(Some),
        (true, false) => parts().map(Some),
    }
}
