//! Pointwise kernels as functions that libtorch can differentiate, for the sLSTM block.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};

use super::launch::{self, NormTarget};
use crate::KernelError;
use crate::shape::dimensions;

fn upstream(context: &Backward) -> Result<Tensor, BoxError> {
    let gradient = context.gradients.first().and_then(Option::as_ref).ok_or("no gradient")?;
    Ok(gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?)
}

/// `SiLU(conv(x))` of `x_BTD` (bf16), weight `(D, 1, 4)`, bias `(D)`, from zeros.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the card fails.
pub fn conv_silu(x_BTD: &Tensor, weight_D1W: &Tensor, bias_D: &Tensor) -> Result<Tensor, KernelError> {
    let [batch, time, width] = dimensions("conv_silu (CUDA)", "x_BTD", x_BTD)?;
    let x_ND = x_BTD.f_reshape([batch * time, width])?;
    let inputs = [&x_ND, weight_D1W, bias_D];
    let mut outputs = custom_function(
        "conv_silu (CUDA)",
        &inputs.map(Some),
        |_| {
            let y_ND = launch::conv_forward(&x_ND, weight_D1W, bias_D, batch)?;
            Ok(Forward { outputs: vec![y_ND], saved: inputs.map(Tensor::shallow_clone).into() })
        },
        move |context| {
            let [x, weight, bias] = context.saved.as_slice() else {
                return Err(format!("{} saved tensors, expected 3", context.saved.len()).into());
            };
            let x_gradient = x.f_empty_like()?;
            let (weight, bias) =
                launch::conv_backward((x, weight, bias), batch, &upstream(context)?, None, &x_gradient)?;
            Ok(vec![Some(x_gradient), Some(weight.f_unsqueeze(1)?), Some(bias)])
        },
    )?;
    Ok(outputs.swap_remove(0).f_view([batch, time, width])?)
}

/// Layer norm of each head of `x_BTHE` (bf16) alone, weight `(D)`: `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the card fails.
pub fn head_norm(x_BTHE: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor, KernelError> {
    let [batch, time, heads, width] = dimensions("head_norm (CUDA)", "x_BTHE", x_BTHE)?;
    let x_NHE = x_BTHE.f_reshape([batch * time, heads, width])?;
    let mut outputs = custom_function(
        "head_norm (CUDA)",
        &[Some(&x_NHE), Some(weight_D)],
        |_| {
            let (y, statistics) = launch::norm_forward(&x_NHE, weight_D, None, epsilon)?;
            let saved = vec![x_NHE.shallow_clone(), weight_D.shallow_clone(), statistics];
            Ok(Forward { outputs: vec![y], saved })
        },
        |context| {
            let [x, weight, statistics] = context.saved.as_slice() else {
                return Err(format!("{} saved tensors, expected 3", context.saved.len()).into());
            };
            let made = launch::norm_backward(
                (x, weight, statistics),
                None,
                &upstream(context)?,
                NormTarget::default(),
            )?;
            Ok(vec![Some(made.h), Some(made.weight)])
        },
    )?;
    Ok(outputs.swap_remove(0).f_view([batch, time, heads * width])?)
}

/// `GELU(gate) ⊙ up` of both halves of `projected_F` (bf16), side by side.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the card fails.
pub fn gelu_gate(projected_F: &Tensor) -> Result<Tensor, KernelError> {
    let mut size = projected_F.size();
    let double = size.last().copied().unwrap_or(0);
    let projected_NF = projected_F.f_reshape([-1, double])?;
    let mut outputs = custom_function(
        "gelu_gate (CUDA)",
        &[Some(&projected_NF)],
        |_| {
            let y = launch::gelu(&projected_NF, None)?;
            Ok(Forward { outputs: vec![y], saved: vec![projected_NF.shallow_clone()] })
        },
        |context| {
            let projected = context.saved.first().ok_or("no saved tensor")?;
            Ok(vec![Some(launch::gelu(projected, Some(&upstream(context)?))?)])
        },
    )?;
    if let Some(last) = size.last_mut() {
        *last = double / 2;
    }
    Ok(outputs.swap_remove(0).f_view(size.as_slice())?)
}
