//! The residual on the GPU: what a block gave is added, and the sum normed, in one pass each way.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};

use super::launch::{residual_backward, residual_forward};
use crate::KernelError;
use crate::shape::expect_shape;

const NAME: &str = "add_layer_norm (CUDA)";

/// Whether [`add_layer_norm`] has a kernel for a residual of this width.
pub fn residual_fits(width: i64) -> bool {
    width % 8 == 0 && (8..=4096).contains(&width)
}

/// `s = x + d` (fp32) and the layer norm of s (bf16), for any dimensions before the last; without `delta_D`, s is x.
/// Gradients flow to x, d and the weight.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the GPU fails.
pub fn add_layer_norm(
    x_D: &Tensor,
    delta_D: Option<&Tensor>,
    weight_D: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor), KernelError> {
    let size = x_D.size();
    let width = size.last().copied().unwrap_or(0);
    if let Some(delta_D) = delta_D {
        expect_shape(NAME, "delta_D", delta_D, &size)?;
    }
    let rows = |tensor: &Tensor| tensor.f_reshape([-1, width]);
    let x_ND = rows(x_D)?;
    let delta_ND = delta_D.map(rows).transpose()?;
    let inputs = Inputs { x: Some(&x_ND), delta: delta_ND.as_ref(), weight: Some(weight_D) };
    let weight = weight_D.shallow_clone();
    let (sum, output) = if delta_ND.is_some() {
        let Outputs { output, sum } = node(
            NAME,
            inputs,
            |_| {
                let normed = residual_forward(&x_ND, delta_ND.as_ref(), weight_D, epsilon)?;
                let sum = normed.sum.ok_or("no sum")?;
                let saved = Saved { sum: sum.shallow_clone(), weight, statistics: normed.statistics };
                Ok((Outputs { output: normed.output, sum }, saved))
            },
            |saved, upstream, _| backward(&saved, upstream, true),
        )?;
        (sum, output)
    } else {
        let Output { y } = node(
            NAME,
            inputs,
            |_| {
                let normed = residual_forward(&x_ND, None, weight_D, epsilon)?;
                let saved = Saved { sum: x_ND.shallow_clone(), weight, statistics: normed.statistics };
                Ok((Output { y: normed.output }, saved))
            },
            |saved, upstream: Output<Option<Tensor>>, _| {
                backward(&saved, Outputs { output: upstream.y, sum: None }, false)
            },
        )?;
        (x_ND, y)
    };
    Ok((sum.f_view(size.as_slice())?, output.f_view(size.as_slice())?))
}

named_tensors! {
    struct Inputs<T> { x: T, delta: T, weight: T }

    struct Outputs<T> { output: T, sum: T }

    struct Saved { sum: Tensor, weight: Tensor, statistics: Tensor }
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    with_delta: bool,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let sum_gradient = upstream.sum.map(|gradient| gradient.f_contiguous()).transpose()?;
    let Some(output_gradient) = upstream.output else {
        let delta = sum_gradient.as_ref().map(|gradient| gradient.f_to_kind(Kind::BFloat16)).transpose()?;
        return Ok(Inputs { x: sum_gradient, delta, weight: None });
    };
    let output_gradient = output_gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let Saved { sum, weight, statistics } = saved;
    let (x, delta, weight) =
        residual_backward((sum, weight, statistics), &output_gradient, sum_gradient.as_ref(), with_delta)?;
    Ok(Inputs { x: Some(x), delta, weight: Some(weight) })
}
