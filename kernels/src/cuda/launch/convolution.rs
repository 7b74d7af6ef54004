//! The causal convolution.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::layers::ConvParameters;

use super::super::{Card, address, expect, make, optional_address};
use super::{any_head, dense, int, matrix, partial_sums, sum_columns};

/// `SiLU(conv(x))` of `x` `(B·T, D)`, weight `(D, 1, 4)`, bias `(D)`; B sequences.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn conv_forward(x: &Tensor, weight: &Tensor, bias: &Tensor, batch: i64) -> Result<Tensor, BoxError> {
    let card = Card::of(x)?;
    let ([rows, width], stride) = matrix("conv: x", x)?;
    let y = make(&[rows, width], Kind::BFloat16, x)?;
    let mut parameters = conv_parameters(x, weight, bias, batch)?;
    parameters.input_stride = stride;
    parameters.output = address(&y);
    let [b, t, d] = [batch, rows / batch, width].map(u32::try_from);
    let launch = ConvParameters::launch(b?, t?, d?, false);
    // SAFETY: checked above; `y` is dense.
    unsafe { card.launch(any_head(card), launch, &parameters)? };
    Ok(y)
}

fn conv_parameters(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    batch: i64,
) -> Result<ConvParameters, BoxError> {
    let ([rows, width], stride) = matrix("conv: x", x)?;
    expect("conv: weight", weight, Kind::Float)?;
    expect("conv: bias", bias, Kind::Float)?;
    if weight.numel() as i64 != 4 * width
        || bias.numel() as i64 != width
        || rows % batch.max(1) != 0
        || width % 8 != 0
    {
        return Err(format!(
            "conv: expected 4 taps for {width} channels, a multiple of 8, found {:?}",
            weight.size()
        )
        .into());
    }
    Ok(ConvParameters {
        batch: int(batch)?,
        tokens: int(rows / batch)?,
        width: int(width)?,
        input_stride: stride,
        input: address(x),
        weight: address(weight),
        bias: address(bias),
        ..ConvParameters::default()
    })
}

/// Gradients of weight `(D, 4)` and bias `(D)`; that of `x`, plus `added`, goes to `x_gradient`, laid out as `x`.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn conv_backward(
    (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    batch: i64,
    y_gradient: &Tensor,
    added: Option<&Tensor>,
    x_gradient: &Tensor,
) -> Result<(Tensor, Tensor), BoxError> {
    let card = Card::of(x)?;
    let ([rows, width], stride) = matrix("conv: x", x)?;
    let same = dense("conv: gradient", y_gradient)? == [rows, width]
        && matrix("conv: gradient of x", x_gradient)? == ([rows, width], stride)
        && added
            .map(|added| dense("conv: added", added))
            .transpose()?
            .is_none_or(|shape| shape == [rows, width]);
    if !same {
        return Err("conv: gradients of other shapes than what they belong to".into());
    }
    let [b, t, d] = [batch, rows / batch, width].map(u32::try_from);
    let launch = ConvParameters::launch(b?, t?, d?, true);
    let partial = partial_sums(&launch, width * i64::from(ConvParameters::PARTIAL), x)?;
    let parameters = ConvParameters {
        output_gradient: address(y_gradient),
        added: optional_address(added),
        input_gradient: address(x_gradient),
        partial: address(&partial),
        ..conv_parameters(x, weight, bias, batch)?
    };
    // SAFETY: checked above.
    unsafe { card.launch(any_head(card), launch, &parameters)? };
    let sums = sum_columns(card, &partial)?.f_view([width, 5])?;
    Ok((sums.f_narrow(1, 0, 4)?, sums.f_select(1, 4)?))
}
