//! Pointwise kernels as functions that libtorch can differentiate, for the sLSTM block.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};

use super::launch::{self, Boundaries, ConvTarget, ConvUpstream, NormTarget};
use crate::KernelError;
use crate::conv::ConvInput;
use crate::shape::dimensions;

named_tensors! {
    struct ConvInputs<T> { x: T, weight: T, bias: T, window: T }

    struct ConvSaved {
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        window: Option<Tensor>,
        resets: Option<Tensor>,
    }

    struct NormInputs<T> { x: T, weight: T }

    struct NormSaved { x: Tensor, weight: Tensor, statistics: Tensor }

    struct GeluInputs<T> { projected: T }
}

fn gradient(upstream: Output<Option<Tensor>>) -> Result<Tensor, BoxError> {
    Ok(upstream.gradient()?.f_to_kind(Kind::BFloat16)?.f_contiguous()?)
}

/// `SiLU(conv(x))` of `x_BTD` (bf16), weight `(D, 1, 4)`, bias `(D)`, with what stands before the first token and resets.
/// Gradients flow to x, weight, bias and the inputs before.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn conv_silu(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    const NAME: &str = "conv_silu (CUDA)";
    let [batch, time, width] = dimensions(NAME, "x_BTD", input.x_BTD)?;
    let x_ND = input.x_BTD.f_reshape([batch * time, width])?;
    let bias_D = match input.bias_D {
        Some(bias_D) => bias_D.shallow_clone(),
        None => Tensor::f_zeros([width], (Kind::Float, x_ND.device()))?,
    };
    let window = input.state.map(|state| state.to_kind(Kind::BFloat16).contiguous());
    let resets = input.resets_BT.map(Tensor::contiguous);
    let inputs = ConvInputs {
        x: Some(&x_ND),
        weight: Some(input.weight_D1W),
        bias: Some(&bias_D),
        window: window.as_ref(),
    };
    let Output { y } = node(
        NAME,
        inputs,
        |_| {
            let boundaries = Boundaries { resets: resets.as_ref(), window: window.as_ref() };
            let y = launch::conv_forward((&x_ND, input.weight_D1W, &bias_D), batch, boundaries)?;
            let saved = ConvSaved {
                x: x_ND.shallow_clone(),
                weight: input.weight_D1W.shallow_clone(),
                bias: bias_D.shallow_clone(),
                window: window.as_ref().map(Tensor::shallow_clone),
                resets: resets.as_ref().map(Tensor::shallow_clone),
            };
            Ok((Output { y }, saved))
        },
        move |saved, upstream, _| conv_backward(&saved, &gradient(upstream)?, batch),
    )?;
    Ok(y.f_view([batch, time, width])?)
}

fn conv_backward(
    saved: &ConvSaved,
    upstream: &Tensor,
    batch: i64,
) -> Result<ConvInputs<Option<Tensor>>, BoxError> {
    let x_gradient = saved.x.f_empty_like()?;
    let window_gradient = saved.window.as_ref().map(Tensor::f_empty_like).transpose()?;
    let (weight, bias) = launch::conv_backward(
        (&saved.x, &saved.weight, &saved.bias),
        batch,
        Boundaries { resets: saved.resets.as_ref(), window: saved.window.as_ref() },
        ConvUpstream { y: upstream, added: None },
        ConvTarget { x: &x_gradient, window: window_gradient.as_ref() },
    )?;
    Ok(ConvInputs {
        x: Some(x_gradient),
        weight: Some(weight.f_unsqueeze(1)?),
        bias: Some(bias),
        window: window_gradient,
    })
}

/// Layer norm of each head of `x_BTHE` (bf16) alone, weight `(D)`: `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn head_norm(x_BTHE: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor, KernelError> {
    let [batch, time, heads, width] = dimensions("head_norm (CUDA)", "x_BTHE", x_BTHE)?;
    let x_NHE = x_BTHE.f_reshape([batch * time, heads, width])?;
    let Output { y } = node(
        "head_norm (CUDA)",
        NormInputs { x: Some(&x_NHE), weight: Some(weight_D) },
        |_| {
            let (y, statistics) = launch::norm_forward(&x_NHE, weight_D, None, epsilon)?;
            let saved = NormSaved { x: x_NHE.shallow_clone(), weight: weight_D.shallow_clone(), statistics };
            Ok((Output { y }, saved))
        },
        |saved: NormSaved, upstream, _| {
            let NormSaved { x, weight, statistics } = &saved;
            let upstream = gradient(upstream)?;
            let gradients =
                launch::norm_backward((x, weight, statistics), None, &upstream, NormTarget::default())?;
            Ok(NormInputs { x: Some(gradients.h), weight: Some(gradients.weight) })
        },
    )?;
    Ok(y.f_view([batch, time, heads * width])?)
}

/// `GELU(gate) ⊙ up` of both halves of `projected_F` (bf16), side by side.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn gelu_gate(projected_F: &Tensor) -> Result<Tensor, KernelError> {
    let mut size = projected_F.size();
    let double = size.last().copied().unwrap_or(0);
    let projected_NF = projected_F.f_reshape([-1, double])?;
    let Output { y } = node(
        "gelu_gate (CUDA)",
        GeluInputs { projected: Some(&projected_NF) },
        |_| Ok((Output { y: launch::gelu(&projected_NF, None)? }, projected_NF.shallow_clone())),
        |projected: Tensor, upstream, _| {
            let projected = launch::gelu(&projected, Some(&gradient(upstream)?))?;
            Ok(GeluInputs { projected: Some(projected) })
        },
    )?;
    if let Some(last) = size.last_mut() {
        *last = double / 2;
    }
    Ok(y.f_view(size.as_slice())?)
}
