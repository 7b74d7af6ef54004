//! Gated linear attention in one call, on the CPU (`cpu/linear_attention.h`), with a backward pass by hand.
//!
//! What is saved is the inputs, exp(g) and the final state: the states in between are computed again.

use super::{Inputs, LinearAttentionInput, LinearAttentionOutput, LogDecay, Outputs, Sizes};
use crate::KernelError;
use crate::cpu::{
    LinearAttentionGradients, LinearAttentionProblem, Precision, address, call, empty, optional_address,
};
use std::ffi::c_void;
use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};

named_tensors! {
    struct Saved {
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        decay: Tensor,
        bonus_HK: Option<Tensor>,
        initial_BHKV: Option<Tensor>,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
    }
}

/// What does not change from forward to backward.
#[derive(Debug, Clone, Copy)]
struct Settings {
    sizes: Sizes,
    scale: f64,
    decay: DecayLayout,
}

#[derive(Debug, Clone, Copy)]
enum DecayLayout {
    Head,
    Key,
    Token,
}

pub(super) fn linear_attention(
    input: &LinearAttentionInput<'_>,
    sizes: Sizes,
) -> Result<LinearAttentionOutput, KernelError> {
    let decay = match input.log_decay {
        LogDecay::Head(_) => DecayLayout::Head,
        LogDecay::Key(_) => DecayLayout::Key,
        LogDecay::Token(_) => DecayLayout::Token,
    };
    let settings = Settings { sizes, scale: input.scale, decay };
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let Outputs { o_BTHV, state_BHKV } = node(
        "linear_attention",
        Inputs::of(input, input.log_decay.tensor()),
        |_| Ok(forward(input, resets_BT, settings)),
        move |saved, upstream, wanted| backward(&saved, upstream, wanted, settings),
    )?;
    Ok(LinearAttentionOutput { o_BTHV, state_BHKV })
}

fn forward(
    input: &LinearAttentionInput<'_>,
    resets_BT: Option<Tensor>,
    settings: Settings,
) -> (Outputs<Tensor>, Saved) {
    let Sizes { batch, time, heads, key, value } = settings.sizes;
    let kind = input.q_BTHK.kind();
    let o_BTHV = empty(&[batch, time, heads, value], kind);
    let state_BHKV = empty(&[batch, heads, key, value], kind);
    let saved = Saved {
        q_BTHK: input.q_BTHK.contiguous(),
        k_BTHK: input.k_BTHK.contiguous(),
        v_BTHV: input.v_BTHV.contiguous(),
        decay: input.log_decay.tensor().exp().contiguous(),
        bonus_HK: input.bonus_HK.map(Tensor::contiguous),
        initial_BHKV: input.state_BHKV.map(Tensor::contiguous),
        resets_BT,
        outputs: Outputs { o_BTHV: o_BTHV.shallow_clone(), state_BHKV: state_BHKV.shallow_clone() },
    };
    call!(kind, linear_attention_forward_f32, linear_attention_forward_f64, &problem(&saved, settings));
    (Outputs { o_BTHV, state_BHKV }, saved)
}

fn problem<T: Precision>(saved: &Saved, settings: Settings) -> LinearAttentionProblem<T> {
    let Sizes { batch, time, heads, key, value } = settings.sizes;
    let [decay_batch, decay_time, decay_head, decay_key] = match settings.decay {
        DecayLayout::Head => [0, 0, 1, 0],
        DecayLayout::Key => [0, 0, key, 1],
        DecayLayout::Token => [time * heads * key, heads * key, key, 1],
    };
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    let optional = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    LinearAttentionProblem {
        batch,
        time,
        heads,
        key,
        value,
        decay_batch,
        decay_time,
        decay_head,
        decay_key,
        scale: T::from_f64(settings.scale),
        q: input(&saved.q_BTHK),
        k: input(&saved.k_BTHK),
        v: input(&saved.v_BTHV),
        decay: input(&saved.decay),
        bonus: optional(&saved.bonus_HK),
        resets: optional_address::<c_void>(saved.resets_BT.as_ref()).cast(),
        initial: optional(&saved.initial_BHKV),
        o: address(&saved.outputs.o_BTHV),
        last: address(&saved.outputs.state_BHKV),
    }
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    wanted: Inputs<bool>,
    settings: Settings,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let Sizes { batch, heads, key, .. } = settings.sizes;
    let kind = saved.q_BTHK.kind();
    let dense = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.contiguous());
    let output_gradient = dense(upstream.o_BTHV).unwrap_or_else(|| saved.outputs.o_BTHV.zeros_like());
    let last_gradient = dense(upstream.state_BHKV);
    let like = |tensor: &Tensor| empty(&tensor.size(), kind);
    let (q, k, v) = (like(&saved.q_BTHK), like(&saved.k_BTHK), like(&saved.v_BTHV));
    let decay = wanted.log_decay.then(|| like(&saved.k_BTHK));
    let bonus = saved.bonus_HK.as_ref().map(|_| empty(&[batch, heads, key], kind));
    let initial = saved.initial_BHKV.as_ref().map(like);
    let gradients = Addresses {
        o: &output_gradient,
        last: last_gradient.as_ref(),
        q: &q,
        k: &k,
        v: &v,
        decay: decay.as_ref(),
        bonus: bonus.as_ref(),
        initial: initial.as_ref(),
    };
    call!(
        kind,
        linear_attention_backward_f32,
        linear_attention_backward_f64,
        &problem(saved, settings),
        &gradients.of()
    );
    Ok(Inputs {
        q_BTHK: Some(q),
        k_BTHK: Some(k),
        v_BTHV: Some(v),
        log_decay: decay.map(|decay| reduced(&decay, settings.decay, kind)),
        bonus_HK: bonus.map(|bonus| bonus.sum_dim_intlist(0, false, kind)),
        state_BHKV: initial,
    })
}

/// Gradients of decays by token, `(B, T, H, K)`, summed over what shares one decay.
fn reduced(gradient_BTHK: &Tensor, layout: DecayLayout, kind: Kind) -> Tensor {
    match layout {
        DecayLayout::Head => gradient_BTHK.sum_dim_intlist([0_i64, 1, 3].as_slice(), false, kind),
        DecayLayout::Key => gradient_BTHK.sum_dim_intlist([0_i64, 1].as_slice(), false, kind),
        DecayLayout::Token => gradient_BTHK.shallow_clone(),
    }
}

struct Addresses<'a> {
    o: &'a Tensor,
    last: Option<&'a Tensor>,
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    decay: Option<&'a Tensor>,
    bonus: Option<&'a Tensor>,
    initial: Option<&'a Tensor>,
}

impl Addresses<'_> {
    fn of<T>(&self) -> LinearAttentionGradients<T> {
        LinearAttentionGradients {
            o: address::<T>(self.o).cast_const(),
            last: optional_address::<T>(self.last).cast_const(),
            q: address(self.q),
            k: address(self.k),
            v: address(self.v),
            decay: optional_address(self.decay),
            bonus: optional_address(self.bonus),
            initial: optional_address(self.initial),
        }
    }
}
