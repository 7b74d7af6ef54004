//! Norms: of heads, with skip and gate or without, and of the residual.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::{NormParameters, ResidualForm, ResidualParameters};

use super::super::{Gpu, MAX_HEAD, address, expect, make, optional_address};
use super::{dense, expect_same, float32, int, matrix, partial_sums, sum_columns};

/// What stands beside the norm in an mLSTM block.
#[derive(Debug, Clone, Copy)]
pub struct Gated<'a> {
    /// `(D)`, fp32.
    pub skip: &'a Tensor,
    /// c, `(N, D)`, dense.
    pub branch: &'a Tensor,
    /// z, `(N, D)`, any stride.
    pub gate: &'a Tensor,
}

/// `norm(h)(1 + w)`, or `(norm(h)(1 + w) + skip ⊙ c) ⊙ SiLU(z)`, of `h` `(N, H, E)`; with the statistics for the
/// backward pass, `(N, H, 2)`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn norm_forward(
    h: &Tensor,
    weight: &Tensor,
    gated: Option<Gated<'_>>,
    epsilon: f64,
) -> Result<(Tensor, Tensor), BoxError> {
    let gpu = Gpu::of(h)?;
    let (mut parameters, specialization, [rows, heads, width]) =
        norm_parameters(gpu, h, weight, gated, epsilon)?;
    let y = make(&[rows, heads * width], h.kind(), h)?;
    let statistics = make(&[rows, heads, 2], Kind::Float, h)?;
    parameters.output = address(&y);
    parameters.statistics = address(&statistics);
    let launch = NormParameters::launch(u64::try_from(rows)?, u32::try_from(heads)?, false);
    // SAFETY: checked in `norm_parameters`.
    unsafe { gpu.launch(specialization, launch, &parameters)? };
    Ok((y, statistics))
}

fn norm_parameters(
    gpu: &Gpu,
    h: &Tensor,
    weight: &Tensor,
    gated: Option<Gated<'_>>,
    epsilon: f64,
) -> Result<(NormParameters, Specialization, [i64; 3]), BoxError> {
    expect("head norm: h", h, if float32(h) { Kind::Float } else { Kind::BFloat16 })?;
    expect("head norm: weight", weight, Kind::Float)?;
    let [rows, heads, width] = <[i64; 3]>::try_from(h.size().as_slice())?;
    let fits =
        h.is_contiguous() && weight.numel() as i64 == heads * width && width % 8 == 0 && width <= MAX_HEAD;
    if !fits {
        return Err(format!(
            "head norm: expected heads of a multiple of 8 up to {MAX_HEAD}, found {:?}",
            h.size()
        )
        .into());
    }
    let mut parameters = NormParameters {
        heads: int(heads)?,
        tokens_per_warp: i32::try_from(NormParameters::tokens_per_warp(
            u64::try_from(rows)?,
            u32::try_from(heads)?,
        ))?,
        tokens: rows,
        epsilon: epsilon as f32,
        input: address(h),
        weight: address(weight),
        ..NormParameters::default()
    };
    if let Some(Gated { skip, branch, gate }) = gated {
        expect("head norm: skip", skip, Kind::Float)?;
        let (shape, stride) = matrix("head norm: gate", gate)?;
        expect_same("head norm", &[Some(h), Some(branch), Some(gate)])?;
        if dense("head norm: branch", branch)? != shape || shape != [rows, heads * width] {
            return Err("head norm: branch and gate of other shapes than h".into());
        }
        parameters.gate_stride = stride;
        parameters.skip = address(skip);
        parameters.branch = address(branch);
        parameters.gate = address(gate);
    }
    Ok((
        parameters,
        Specialization::pointwise(gpu.architecture(), u32::try_from(width)?, float32(h)),
        [rows, heads, width],
    ))
}

/// Gradients of [`norm_forward`].
#[derive(Debug)]
pub struct NormGradients {
    /// Of h, divided where [`NormTarget::division`] asks for it.
    pub h: Tensor,
    /// Of the weight, `(D)`.
    pub weight: Tensor,
    /// Of the skip, `(D)`, and of the branch, where there are any.
    pub skip_and_branch: Option<(Tensor, Tensor)>,
    /// `h · dh / den` of every token and head, `(N, H)`, fp32, where [`NormTarget::division`] was given.
    pub dots: Option<Tensor>,
}

/// What else [`norm_backward`] reads and writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NormTarget<'a> {
    /// Where the gate's gradient goes, laid out as the gate.
    pub gate: Option<&'a Tensor>,
    /// Asks for what an mLSTM's backward pass begins with.
    pub division: Option<Division<'a>>,
}

/// What an mLSTM's forward pass left: its backward pass takes dh / den, divided before it is rounded, and `h · dh / den` of
/// the unrounded h.
#[derive(Debug, Clone, Copy)]
pub struct Division<'a> {
    /// What rounding took from h, a byte for each element.
    pub rest: &'a Tensor,
    /// 1 / den, `(N, H)`, fp32.
    pub inverse_denominator: &'a Tensor,
}

/// Backward of [`norm_forward`].
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn norm_backward(
    (h, weight, statistics): (&Tensor, &Tensor, &Tensor),
    gated: Option<Gated<'_>>,
    y_gradient: &Tensor,
    target: NormTarget<'_>,
) -> Result<NormGradients, BoxError> {
    let gpu = Gpu::of(h)?;
    let (parameters, specialization, [rows, heads, width]) = norm_parameters(gpu, h, weight, gated, 0.0)?;
    if dense("head norm: gradient", y_gradient)? != [rows, heads * width] {
        return Err("head norm: a gradient of another shape than the output".into());
    }
    expect_same("head norm", &[Some(h), Some(y_gradient), target.gate])?;
    if float32(h) && target.division.is_some() {
        return Err("head norm: a division is for bf16 alone".into());
    }
    let h_gradient = make(&[rows, heads, width], h.kind(), h)?;
    let branch_gradient = gated.map(|_| make(&[rows, heads * width], h.kind(), h)).transpose()?;
    let shape_of = |gate: &Tensor| matrix("head norm: gate", gate);
    if target.gate.map(shape_of).transpose()? != gated.map(|gated| shape_of(gated.gate)).transpose()? {
        return Err("head norm: a gradient of another shape than the gate".into());
    }
    if let Some(Division { rest, inverse_denominator }) = target.division {
        expect("head norm: rest", rest, Kind::Uint8)?;
        if !rest.is_contiguous() || rest.numel() != h.numel() {
            return Err("head norm: expected a byte for each element of h".into());
        }
        expect("head norm: inverse denominator", inverse_denominator, Kind::Float)?;
        if !inverse_denominator.is_contiguous() || inverse_denominator.size() != [rows, heads] {
            return Err("head norm: expected a denominator for each row and head".into());
        }
    }
    let dots = target.division.map(|_| make(&[rows, heads], Kind::Float, h)).transpose()?;
    let launch = NormParameters::launch(u64::try_from(rows)?, u32::try_from(heads)?, true);
    let partial = partial_sums(&launch, 2 * heads * width, h)?;
    let parameters = NormParameters {
        statistics: address(statistics),
        output_gradient: address(y_gradient),
        input_gradient: address(&h_gradient),
        branch_gradient: optional_address(branch_gradient.as_ref()),
        gate_gradient: optional_address(target.gate),
        partial: address(&partial),
        rest: optional_address(target.division.map(|division| division.rest)),
        inverse_denominator: optional_address(target.division.map(|division| division.inverse_denominator)),
        dots: optional_address(dots.as_ref()),
        ..parameters
    };
    // SAFETY: checked above.
    unsafe { gpu.launch(specialization, launch, &parameters)? };
    let sums = sum_columns(gpu, &partial)?;
    let half = |index: i64| sums.f_narrow(0, index * heads * width, heads * width);
    let skip_and_branch = match branch_gradient {
        Some(branch) => Some((half(1)?, branch)),
        None => None,
    };
    Ok(NormGradients { h: h_gradient, weight: half(0)?, skip_and_branch, dots })
}

/// Of [`residual_forward`].
#[derive(Debug)]
pub struct Normed {
    /// `x + d`, fp32; `None` where there was no d.
    pub sum: Option<Tensor>,
    /// The norm, bf16.
    pub output: Tensor,
    /// `(N, 2)`.
    pub statistics: Tensor,
}

/// How the residual is normed: parameters `(C)` in fp32.
#[derive(Debug, Clone, Copy)]
pub enum ResidualNorm<'a> {
    /// A layer norm with the scale `1 + weight`.
    ScaleLessOne(&'a Tensor),
    /// A layer norm with scale and bias.
    Layer {
        /// The scale.
        weight: &'a Tensor,
        /// Added after it.
        bias: Option<&'a Tensor>,
    },
    /// By the root of the mean square, with this scale.
    Rms(&'a Tensor),
}

impl<'a> ResidualNorm<'a> {
    pub(crate) fn form(self) -> ResidualForm {
        match self {
            Self::ScaleLessOne(_) => ResidualForm::ScaleLessOne,
            Self::Layer { .. } => ResidualForm::Layer,
            Self::Rms(_) => ResidualForm::Rms,
        }
    }

    /// Its weight.
    pub fn weight(self) -> &'a Tensor {
        match self {
            Self::ScaleLessOne(weight) | Self::Layer { weight, .. } | Self::Rms(weight) => weight,
        }
    }

    pub(crate) fn bias(self) -> Option<&'a Tensor> {
        if let Self::Layer { bias, .. } = self { bias } else { None }
    }
}

fn residual_parameters(
    gpu: &Gpu,
    x: &Tensor,
    norm: ResidualNorm<'_>,
) -> Result<(ResidualParameters, Specialization, [i64; 2]), BoxError> {
    let weight = norm.weight();
    expect("norm of the residual: x", x, Kind::Float)?;
    expect("norm of the residual: weight", weight, Kind::Float)?;
    let [rows, width] = <[i64; 2]>::try_from(x.size().as_slice())?;
    if !x.is_contiguous() || weight.numel() as i64 != width || width % 4 != 0 || width > 4096 {
        return Err(format!(
            "norm of the residual: expected a width of a multiple of 4 up to 4096, found {:?}",
            x.size()
        )
        .into());
    }
    if let Some(bias) = norm.bias() {
        expect("norm of the residual: bias", bias, Kind::Float)?;
        if bias.numel() as i64 != width {
            return Err(
                format!("norm of the residual: expected a bias of {width}, found {:?}", bias.size()).into()
            );
        }
    }
    let parameters = ResidualParameters {
        tokens: rows,
        rows_per_block: i32::try_from(ResidualParameters::rows_per_block(u64::try_from(rows)?))?,
        residual: address(x),
        weight: address(weight),
        bias: optional_address(norm.bias()),
        ..ResidualParameters::default()
    };
    let wanted = Specialization::residual(gpu.architecture(), u32::try_from(width)?, norm.form());
    Ok((parameters, wanted, [rows, width]))
}

/// `s = x + d` and the norm of s; x `(N, C)` fp32, d `(N, C)` bf16.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn residual_forward(
    x: &Tensor,
    delta: Option<&Tensor>,
    norm: ResidualNorm<'_>,
    epsilon: f64,
) -> Result<Normed, BoxError> {
    let gpu = Gpu::of(x)?;
    let (parameters, specialization, [rows, width]) = residual_parameters(gpu, x, norm)?;
    if let Some(delta) = delta {
        expect("norm of the residual: d", delta, Kind::BFloat16)?;
    }
    if let Some(delta) = delta
        && dense("norm of the residual: d", delta)? != [rows, width]
    {
        return Err("norm of the residual: x and d of different shapes".into());
    }
    let sum = delta.map(|_| make(&[rows, width], Kind::Float, x)).transpose()?;
    let output = make(&[rows, width], Kind::BFloat16, x)?;
    let statistics = make(&[rows, 2], Kind::Float, x)?;
    let parameters = ResidualParameters {
        epsilon: epsilon as f32,
        delta: optional_address(delta),
        sum: optional_address(sum.as_ref()),
        output: address(&output),
        statistics: address(&statistics),
        ..parameters
    };
    let launch = ResidualParameters::launch(u64::try_from(rows)?, false);
    // SAFETY: checked above.
    unsafe { gpu.launch(specialization, launch, &parameters)? };
    Ok(Normed { sum, output, statistics })
}

/// Of [`residual_backward`].
#[derive(Debug)]
pub struct ResidualGradients {
    /// Of x, `(N, C)`, fp32.
    pub x: Tensor,
    /// Of d, `(N, C)`, bf16, where it was asked for.
    pub delta: Option<Tensor>,
    /// Of the weight, `(C)`, fp32.
    pub weight: Tensor,
    /// Of the bias, `(C)`, fp32, where there may be one.
    pub bias: Option<Tensor>,
}

/// Gradients from those of the norm and of the sum; that of d where `with_delta`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn residual_backward(
    (sum, norm, statistics): (&Tensor, ResidualNorm<'_>, &Tensor),
    output_gradient: &Tensor,
    sum_gradient: Option<&Tensor>,
    with_delta: bool,
) -> Result<ResidualGradients, BoxError> {
    let gpu = Gpu::of(sum)?;
    let (parameters, specialization, [rows, width]) = residual_parameters(gpu, sum, norm)?;
    expect("norm of the residual: gradient", output_gradient, Kind::BFloat16)?;
    if dense("norm of the residual: gradient", output_gradient)? != [rows, width] {
        return Err("norm of the residual: a gradient of another shape than the output".into());
    }
    if let Some(gradient) = sum_gradient {
        expect("norm of the residual: gradient of the sum", gradient, Kind::Float)?;
        if gradient.size() != [rows, width] || !gradient.is_contiguous() {
            return Err("norm of the residual: a gradient of another shape than the sum".into());
        }
    }
    let residual_gradient = make(&[rows, width], Kind::Float, sum)?;
    let delta_gradient = with_delta.then(|| make(&[rows, width], Kind::BFloat16, sum)).transpose()?;
    let launch = ResidualParameters::launch(u64::try_from(rows)?, true);
    let partial = partial_sums(&launch, norm.form().sums() * width, sum)?;
    let parameters = ResidualParameters {
        statistics: address(statistics),
        output_gradient: address(output_gradient),
        sum_gradient: optional_address(sum_gradient),
        residual_gradient: address(&residual_gradient),
        delta_gradient: optional_address(delta_gradient.as_ref()),
        partial: address(&partial),
        ..parameters
    };
    // SAFETY: checked above.
    unsafe { gpu.launch(specialization, launch, &parameters)? };
    let sums = sum_columns(gpu, &partial)?;
    let bias = (norm.form().sums() == 2).then(|| sums.f_narrow(0, width, width)).transpose()?;
    Ok(ResidualGradients {
        x: residual_gradient,
        delta: delta_gradient,
        weight: sums.f_narrow(0, 0, width)?,
        bias,
    })
}
