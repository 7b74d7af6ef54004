//! The residual on the GPU: what a block gave is added, and the sum normed, in one pass each way.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::layers::ResidualForm;

use super::enabled;
use super::launch::{ResidualGradients, ResidualNorm, residual_backward, residual_forward};
use super::layout;
use crate::KernelError;
use crate::shape::{expect_device, expect_shape};

const NAME: &str = "add_layer_norm (CUDA)";
const NORM: &str = "norm of the residual (CUDA)";

/// Whether [`add_layer_norm`] has a kernel for a residual of this width.
pub fn residual_fits(width: i64) -> bool {
    width % 8 == 0 && (8..=4096).contains(&width)
}

/// Whether [`residual_norm`] has a kernel for `x_D` and a norm with this weight: both fp32 on a GPU, and no one asked for libtorch alone.
pub fn residual_norm_fits(x_D: &Tensor, weight_D: &Tensor) -> bool {
    let in_float = x_D.kind() == Kind::Float && weight_D.kind() == Kind::Float;
    in_float && x_D.size().last().is_some_and(|&width| residual_fits(width)) && enabled(x_D.device())
}

/// The norm of `x_D` (fp32) over its last axis, for products in bf16. Gradients flow to x and the norm's parameters.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the GPU fails.
pub fn residual_norm(x_D: &Tensor, norm: ResidualNorm<'_>, epsilon: f64) -> Result<Tensor, KernelError> {
    let size = x_D.size();
    let width = size.last().copied().unwrap_or(0);
    for (name, parameter) in [("weight", Some(norm.weight())), ("bias", norm.bias())] {
        if let Some(parameter) = parameter {
            expect_shape(NORM, name, parameter, &[width])?;
            expect_device(NORM, name, parameter, x_D)?;
        }
    }
    let x_ND = layout::dense(&x_D.f_reshape([-1, width])?)?;
    let inputs = NormInputs { x: Some(&x_ND), weight: Some(norm.weight()), bias: norm.bias() };
    let form = norm.form();
    let Output { y } = node(
        NORM,
        inputs,
        |_| {
            let normed = residual_forward(&x_ND, None, norm, epsilon)?;
            let saved = NormSaved {
                x: x_ND.shallow_clone(),
                weight: norm.weight().shallow_clone(),
                bias: norm.bias().map(Tensor::shallow_clone),
                statistics: normed.statistics,
            };
            Ok((Output { y: normed.output }, saved))
        },
        move |saved: NormSaved, upstream: Output<Option<Tensor>>, _| {
            let upstream = layout::dense(&upstream.gradient()?.f_to_kind(Kind::BFloat16)?)?;
            let (weight, bias) = (&saved.weight, saved.bias.as_ref());
            let norm = match form {
                ResidualForm::ScaleLessOne => ResidualNorm::ScaleLessOne(weight),
                ResidualForm::Layer => ResidualNorm::Layer { weight, bias },
                ResidualForm::Rms => ResidualNorm::Rms(weight),
            };
            let gradients = residual_backward((&saved.x, norm, &saved.statistics), &upstream, None, false)?;
            let ResidualGradients { x, weight, bias, .. } = gradients;
            Ok(NormInputs { x: Some(x), weight: Some(weight), bias: saved.bias.and(bias) })
        },
    )?;
    Ok(y.f_view(size.as_slice())?)
}

/// `s = x + d` (fp32) and the layer norm of s (bf16), for any dimensions before the last; without `delta_D`, s is x.
/// Gradients flow to x, d and the weight, which is the scale less one.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the GPU fails.
pub fn add_layer_norm(
    x_D: &Tensor,
    delta_D: Option<&Tensor>,
    weight_D: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor), KernelError> {
    let norm = ResidualNorm::ScaleLessOne(weight_D);
    let Some(delta_D) = delta_D else {
        return Ok((x_D.shallow_clone(), residual_norm(x_D, norm, epsilon)?));
    };
    let size = x_D.size();
    let width = size.last().copied().unwrap_or(0);
    expect_shape(NAME, "delta_D", delta_D, &size)?;
    expect_device(NAME, "delta_D", delta_D, x_D)?;
    expect_shape(NAME, "weight_D", weight_D, &[width])?;
    expect_device(NAME, "weight_D", weight_D, x_D)?;
    let rows = |tensor: &Tensor| tensor.f_reshape([-1, width]);
    let (x_ND, delta_ND) = (rows(x_D)?, rows(delta_D)?);
    let inputs = Inputs { x: Some(&x_ND), delta: Some(&delta_ND), weight: Some(weight_D) };
    let weight = weight_D.shallow_clone();
    let Outputs { output, sum } = node(
        NAME,
        inputs,
        |_| {
            let normed = residual_forward(&x_ND, Some(&delta_ND), norm, epsilon)?;
            let sum = normed.sum.ok_or("no sum")?;
            let saved = Saved { sum: sum.shallow_clone(), weight, statistics: normed.statistics };
            Ok((Outputs { output: normed.output, sum }, saved))
        },
        |saved, upstream, _| backward(&saved, upstream),
    )?;
    Ok((sum.f_view(size.as_slice())?, output.f_view(size.as_slice())?))
}

named_tensors! {
    struct NormInputs<T> { x: T, weight: T, bias: T }

    struct NormSaved { x: Tensor, weight: Tensor, bias: Option<Tensor>, statistics: Tensor }

    struct Inputs<T> { x: T, delta: T, weight: T }

    struct Outputs<T> { output: T, sum: T }

    struct Saved { sum: Tensor, weight: Tensor, statistics: Tensor }
}

fn backward(saved: &Saved, upstream: Outputs<Option<Tensor>>) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let sum_gradient = upstream.sum.map(|gradient| gradient.f_contiguous()).transpose()?;
    let Some(output_gradient) = upstream.output else {
        let delta = sum_gradient.as_ref().map(|gradient| gradient.f_to_kind(Kind::BFloat16)).transpose()?;
        return Ok(Inputs { x: sum_gradient, delta, weight: None });
    };
    let output_gradient = output_gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let normed = (&saved.sum, ResidualNorm::ScaleLessOne(&saved.weight), &saved.statistics);
    let ResidualGradients { x, delta, weight, .. } =
        residual_backward(normed, &output_gradient, sum_gradient.as_ref(), true)?;
    Ok(Inputs { x: Some(x), delta, weight: Some(weight) })
}
