//! Layer norm over the residual, and over each head alone (the papers' "group norm").
//!
//! Weights are stored as in the official package: as what is added to one, so that zeros mean no scaling. There is
//! no bias. libtorch's fused layer norm does the work, in float32 on a GPU a kernel of this program (`cuda/pointwise.cu`);
//! with the output gate of mLSTM around it the norm is part of [`crate::gates::mlstm_output`]. `y = (x − mean) / sqrt(variance + ε) · (1 + w)`, the variance divided by the count.

use crate::KernelError;
use crate::cuda;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::Tensor;

/// ε of every norm in the paper's models.
pub const EPSILON: f64 = 1e-5;

/// Layer norm of the last dimension of `x_D` (any dimensions before it) with the weight `weight_D`.
///
/// # Errors
/// [`KernelError`] when the weight does not fit.
pub fn layer_norm(x_D: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor, KernelError> {
    const NAME: &str = "layer_norm";
    let width = x_D.size().last().copied().unwrap_or(0);
    expect_shape(NAME, "weight_D", weight_D, &[width])?;
    expect_device(NAME, "weight_D", weight_D, x_D)?;
    let kind = computing_kind(NAME, "x_D", x_D)?;
    if cuda::norm_fits(x_D, width) {
        let x_ND = x_D.contiguous().view([1, -1, 1, width]);
        return Ok(cuda::head_norm(&x_ND, weight_D, epsilon)?.view_as(x_D));
    }
    let scale_D = weight_D.to_kind(kind) + 1.0;
    let normal_D = x_D.to_kind(kind).f_layer_norm([width], Some(&scale_D), None::<&Tensor>, epsilon, true)?;
    Ok(normal_D.to_kind(x_D.kind()))
}

/// Layer norm of each head of `x_BTHE` alone, with the weight `weight_D` (D = H·E); the result is `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when the weight does not fit.
pub fn head_norm(x_BTHE: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor, KernelError> {
    const NAME: &str = "head_norm";
    let [batch, time, heads, width] = dimensions(NAME, "x_BTHE", x_BTHE)?;
    expect_shape(NAME, "weight_D", weight_D, &[heads * width])?;
    expect_device(NAME, "weight_D", weight_D, x_BTHE)?;
    let kind = computing_kind(NAME, "x_BTHE", x_BTHE)?;
    if cuda::norm_fits(x_BTHE, width) {
        return cuda::head_norm(&x_BTHE.contiguous(), weight_D, epsilon);
    }
    let x = x_BTHE.to_kind(kind);
    let normal_BTHE = x.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, epsilon, true)?;
    let y_BTD = normal_BTHE.reshape([batch, time, heads * width]) * (weight_D.to_kind(kind) + 1.0);
    Ok(y_BTD.to_kind(x_BTHE.kind()))
}
