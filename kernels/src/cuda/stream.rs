//! The residual stream on the card: what a block gave is added, and the sum normed, in one pass each way.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};

use super::launch::{stream_backward, stream_forward};
use crate::KernelError;
use crate::shape::expect_shape;

const NAME: &str = "add_layer_norm (CUDA)";

/// Whether [`add_layer_norm`] has a kernel for a stream of this width.
pub fn stream_fits(width: i64) -> bool {
    width % 8 == 0 && (8..=4096).contains(&width)
}

/// `s = x + d` (fp32) and the layer norm of s (bf16), for any dimensions before the last; without `delta_D`, s is x.
/// Gradients flow to x, d and the weight.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the card fails.
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
    let with_delta = delta_ND.is_some();
    let mut outputs = custom_function(
        NAME,
        &[Some(&x_ND), delta_ND.as_ref(), Some(weight_D)],
        |_| {
            let normed = stream_forward(&x_ND, delta_ND.as_ref(), weight_D, epsilon)?;
            let sum = normed.sum.as_ref().unwrap_or(&x_ND).shallow_clone();
            let saved = vec![sum, weight_D.shallow_clone(), normed.statistics];
            let outputs = [Some(normed.output), normed.sum].into_iter().flatten().collect();
            Ok(Forward { outputs, saved })
        },
        move |context| backward(context, with_delta),
    )?;
    let sum = if with_delta { outputs.pop().unwrap_or(x_ND) } else { x_ND };
    let output = outputs.swap_remove(0);
    Ok((sum.f_view(size.as_slice())?, output.f_view(size.as_slice())?))
}

fn backward(context: &Backward, with_delta: bool) -> Result<Vec<Option<Tensor>>, BoxError> {
    let [sum, weight, statistics] = context.saved.as_slice() else {
        return Err(format!("{} saved tensors, expected 3", context.saved.len()).into());
    };
    let gradient = |index: usize| context.gradients.get(index).and_then(Option::as_ref);
    let sum_gradient = gradient(1).map(Tensor::f_contiguous).transpose()?;
    let Some(output_gradient) = gradient(0) else {
        let delta = sum_gradient.as_ref().map(|gradient| gradient.f_to_kind(Kind::BFloat16)).transpose()?;
        return Ok(vec![sum_gradient, delta, None]);
    };
    let output_gradient = output_gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let (x, delta, weight) =
        stream_backward((sum, weight, statistics), &output_gradient, sum_gradient.as_ref(), with_delta)?;
    Ok(vec![Some(x), delta, Some(weight)])
}
