//! The causal convolution.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::layers::ConvParameters;

use super::super::{Gpu, address, expect, make, optional_address};
use super::{Boundaries, any_head, dense, expect_same, int, matrix, partial_sums, sum_columns};

/// A convolution's input and parameters.
#[derive(Debug, Clone, Copy)]
pub struct ConvLayer<'a> {
    /// `(B·T, D)`.
    pub x: &'a Tensor,
    /// `(D, 1, 4)`.
    pub weight: &'a Tensor,
    /// `(D)`.
    pub bias: &'a Tensor,
    /// Whether a SiLU comes after it.
    pub silu: bool,
}

/// `SiLU(conv(x))`, or conv(x) alone; B sequences.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn conv_forward(
    layer: ConvLayer<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
) -> Result<Tensor, BoxError> {
    let x = layer.x;
    let gpu = Gpu::of(x)?;
    let ([rows, width], stride) = matrix("conv: x", x)?;
    let y = make(&[rows, width], x.kind(), x)?;
    let mut parameters = conv_parameters(layer, batch, boundaries)?;
    parameters.input_stride = stride;
    parameters.output = address(&y);
    let [b, t, d] = [batch, rows / batch, width].map(u32::try_from);
    let launch = ConvParameters::launch(b?, t?, d?, false);
    // SAFETY: checked above; `y` is dense.
    unsafe { gpu.launch(any_head(gpu, x), launch, &parameters)? };
    Ok(y)
}

fn conv_parameters(
    layer: ConvLayer<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
) -> Result<ConvParameters, BoxError> {
    let ConvLayer { x, weight, bias, silu } = layer;
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
    boundaries.check("conv", x.kind(), [batch, rows / batch, width])?;
    let [b, t, d] = [batch, rows / batch, width].map(u32::try_from);
    Ok(ConvParameters {
        batch: int(batch)?,
        tokens: int(rows / batch)?,
        width: int(width)?,
        run: i32::try_from(ConvParameters::run(b?, t?, d?))?,
        input_stride: stride,
        input: address(x),
        weight: address(weight),
        bias: address(bias),
        resets: optional_address(boundaries.resets),
        window: optional_address(boundaries.window),
        linear: (!silu).into(),
        ..ConvParameters::default()
    })
}

/// What [`conv_backward`] is given.
#[derive(Debug, Clone, Copy)]
pub struct ConvUpstream<'a> {
    /// Gradient of y, `(B·T, D)`.
    pub y: &'a Tensor,
    /// Added to x's gradient, `(B·T, D)`.
    pub added: Option<&'a Tensor>,
}

/// Where [`conv_backward`] writes gradients.
#[derive(Debug, Clone, Copy)]
pub struct ConvTarget<'a> {
    /// Of x, laid out as x.
    pub x: &'a Tensor,
    /// Of the window, `(B, 3, D)`.
    pub window: Option<&'a Tensor>,
}

/// Gradients of weight `(D, 4)` and bias `(D)`; those of x and of the window go to `target`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn conv_backward(
    layer: ConvLayer<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
    upstream: ConvUpstream<'_>,
    target: ConvTarget<'_>,
) -> Result<(Tensor, Tensor), BoxError> {
    let x = layer.x;
    let gpu = Gpu::of(x)?;
    let ([rows, width], stride) = matrix("conv: x", x)?;
    let same = dense("conv: gradient", upstream.y)? == [rows, width]
        && matrix("conv: gradient of x", target.x)? == ([rows, width], stride)
        && upstream
            .added
            .map(|added| dense("conv: added", added))
            .transpose()?
            .is_none_or(|shape| shape == [rows, width]);
    if !same {
        return Err("conv: gradients of other shapes than what they belong to".into());
    }
    Boundaries { resets: None, window: target.window }.check(
        "conv: gradient",
        x.kind(),
        [batch, 0, width],
    )?;
    expect_same("conv", &[Some(x), Some(upstream.y), upstream.added, Some(target.x)])?;
    let [b, t, d] = [batch, rows / batch, width].map(u32::try_from);
    let launch = ConvParameters::launch(b?, t?, d?, true);
    let partial = partial_sums(&launch, width * i64::from(ConvParameters::PARTIAL), x)?;
    let parameters = ConvParameters {
        output_gradient: address(upstream.y),
        added: optional_address(upstream.added),
        input_gradient: address(target.x),
        window_gradient: optional_address(target.window),
        partial: address(&partial),
        ..conv_parameters(layer, batch, boundaries)?
    };
    // SAFETY: checked above.
    unsafe { gpu.launch(any_head(gpu, x), launch, &parameters)? };
    let sums = sum_columns(gpu, &partial)?.f_view([width, 5])?;
    Ok((sums.f_narrow(1, 0, 4)?, sums.f_select(1, 4)?))
}
