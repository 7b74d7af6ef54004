//! One Rust function for each kernel around the cells: tensors in, tensors out, no autograd.
//!
//! What [`super::mlstm_inner`] and the others are put together from, and what the selfcheck compares with float64.
//! N = B·T tokens; activations bf16 `(N, D)`, parameters fp32. An `x` with a stride may be half of a wider tensor.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialisation;
use xlstm_cuda::layers::{
    ColumnParameters, ConvParameters, CrossEntropyParameters, GeluParameters, LayerLaunch, NormParameters,
    ProjectionParameters, StreamParameters,
};

use super::{Card, address, expect, make, optional_address};

fn int(value: i64) -> Result<i32, BoxError> {
    Ok(i32::try_from(value)?)
}

/// Rows and columns of a matrix of bf16, and the stride of its rows.
fn matrix(name: &str, tensor: &Tensor) -> Result<([i64; 2], i64), BoxError> {
    expect(name, tensor, Kind::BFloat16)?;
    let size = tensor.size();
    let shape = <[i64; 2]>::try_from(size.as_slice())
        .map_err(|_| format!("{name}: expected two dimensions, found {size:?}"))?;
    let stride = tensor.stride()[0];
    if stride % 8 != 0 && shape[0] > 1 {
        return Err(format!("{name}: expected rows of a multiple of 8, found a stride of {stride}").into());
    }
    Ok((shape, stride))
}

/// As [`matrix`], dense.
fn dense(name: &str, tensor: &Tensor) -> Result<[i64; 2], BoxError> {
    let (shape, _) = matrix(name, tensor)?;
    if tensor.is_contiguous() { Ok(shape) } else { Err(format!("{name}: expected a dense tensor").into()) }
}

/// Adds up the rows of partial sums, in a fixed order.
fn sum_columns(card: &Card, partial: &Tensor) -> Result<Tensor, BoxError> {
    let [rows, columns] = <[i64; 2]>::try_from(partial.size().as_slice())?;
    let sums = make(&[columns], Kind::Float, partial)?;
    let parameters = ColumnParameters {
        rows: int(rows)?,
        columns: int(columns)?,
        values: address(partial),
        sums: address(&sums),
    };
    let launch = ColumnParameters::launch(u32::try_from(columns)?);
    // SAFETY: `partial` has rows × columns numbers, `sums` one for each column.
    unsafe { card.launch(Specialisation::sums(card.architecture()), launch, &parameters)? };
    Ok(sums)
}

/// The pointwise kernels that do not depend on a head's size.
fn any_head(card: &Card) -> Specialisation {
    Specialisation::pointwise(card.architecture(), 64)
}

/// Room for a launch's partial sums.
fn partial_sums(launch: &LayerLaunch, columns: i64, like: &Tensor) -> Result<Tensor, BoxError> {
    make(&[i64::from(launch.parts), columns], Kind::Float, like)
}

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

fn conv_parameters(x: &Tensor, weight: &Tensor, bias: &Tensor, batch: i64) -> Result<ConvParameters, BoxError> {
    let ([rows, width], stride) = matrix("conv: x", x)?;
    expect("conv: weight", weight, Kind::Float)?;
    expect("conv: bias", bias, Kind::Float)?;
    if weight.numel() as i64 != 4 * width || bias.numel() as i64 != width || rows % batch.max(1) != 0 || width % 8 != 0 {
        return Err(format!("conv: expected 4 taps for {width} channels, a multiple of 8, found {:?}", weight.size()).into());
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
        && added.map(|added| dense("conv: added", added)).transpose()?.is_none_or(|shape| shape == [rows, width]);
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
/// When a tensor does not fit, or the card fails.
pub fn norm_forward(
    h: &Tensor,
    weight: &Tensor,
    gated: Option<Gated<'_>>,
    epsilon: f64,
) -> Result<(Tensor, Tensor), BoxError> {
    let card = Card::of(h)?;
    let (mut parameters, specialisation, [rows, heads, width]) = norm_parameters(card, h, weight, gated, epsilon)?;
    let y = make(&[rows, heads * width], Kind::BFloat16, h)?;
    let statistics = make(&[rows, heads, 2], Kind::Float, h)?;
    parameters.output = address(&y);
    parameters.statistics = address(&statistics);
    let launch = NormParameters::launch(u64::try_from(rows)?, u32::try_from(heads)?, false);
    // SAFETY: checked in `norm_parameters`.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok((y, statistics))
}

fn norm_parameters(
    card: &Card,
    h: &Tensor,
    weight: &Tensor,
    gated: Option<Gated<'_>>,
    epsilon: f64,
) -> Result<(NormParameters, Specialisation, [i64; 3]), BoxError> {
    expect("head norm: h", h, Kind::BFloat16)?;
    expect("head norm: weight", weight, Kind::Float)?;
    let [rows, heads, width] = <[i64; 3]>::try_from(h.size().as_slice())?;
    let fits = h.is_contiguous() && weight.numel() as i64 == heads * width && width % 8 == 0 && width <= 1024;
    if !fits {
        return Err(format!("head norm: expected heads of a multiple of 8 up to 1024, found {:?}", h.size()).into());
    }
    let mut parameters = NormParameters {
        heads: int(heads)?,
        tokens_per_warp: i32::try_from(NormParameters::tokens_per_warp(u64::try_from(rows)?, u32::try_from(heads)?))?,
        tokens: rows,
        epsilon: epsilon as f32,
        input: address(h),
        weight: address(weight),
        ..NormParameters::default()
    };
    if let Some(Gated { skip, branch, gate }) = gated {
        expect("head norm: skip", skip, Kind::Float)?;
        let (shape, stride) = matrix("head norm: gate", gate)?;
        if dense("head norm: branch", branch)? != shape || shape != [rows, heads * width] {
            return Err("head norm: branch and gate of other shapes than h".into());
        }
        parameters.gate_stride = stride;
        parameters.skip = address(skip);
        parameters.branch = address(branch);
        parameters.gate = address(gate);
    }
    Ok((parameters, Specialisation::pointwise(card.architecture(), u32::try_from(width)?), [rows, heads, width]))
}

/// Gradients of [`norm_forward`].
#[derive(Debug)]
pub struct NormGradients {
    /// Of h.
    pub h: Tensor,
    /// Of the weight, `(D)`.
    pub weight: Tensor,
    /// Of the skip, `(D)`, and of the branch, where there are any.
    pub skip_and_branch: Option<(Tensor, Tensor)>,
}

/// Backward of [`norm_forward`]; the gate's gradient goes to `gate_gradient`, laid out as the gate.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn norm_backward(
    (h, weight, statistics): (&Tensor, &Tensor, &Tensor),
    gated: Option<(Gated<'_>, &Tensor)>,
    y_gradient: &Tensor,
) -> Result<NormGradients, BoxError> {
    let card = Card::of(h)?;
    let (parameters, specialisation, [rows, heads, width]) =
        norm_parameters(card, h, weight, gated.map(|(gated, _)| gated), 0.0)?;
    if dense("head norm: gradient", y_gradient)? != [rows, heads * width] {
        return Err("head norm: a gradient of another shape than the output".into());
    }
    let h_gradient = make(&[rows, heads, width], Kind::BFloat16, h)?;
    let branch_gradient =
        gated.map(|_| make(&[rows, heads * width], Kind::BFloat16, h)).transpose()?;
    if let Some((gated, gate_gradient)) = gated
        && matrix("head norm: gradient of the gate", gate_gradient)? != matrix("head norm: gate", gated.gate)?
    {
        return Err("head norm: a gradient of another shape than the gate".into());
    }
    let launch = NormParameters::launch(u64::try_from(rows)?, u32::try_from(heads)?, true);
    let partial = partial_sums(&launch, 2 * heads * width, h)?;
    let parameters = NormParameters {
        statistics: address(statistics),
        output_gradient: address(y_gradient),
        input_gradient: address(&h_gradient),
        branch_gradient: optional_address(branch_gradient.as_ref()),
        gate_gradient: gated.map_or(0, |(_, gradient)| address(gradient)),
        partial: address(&partial),
        ..parameters
    };
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    let sums = sum_columns(card, &partial)?;
    let half = |index: i64| sums.f_narrow(0, index * heads * width, heads * width);
    let skip_and_branch = match branch_gradient {
        Some(branch) => Some((half(1)?, branch)),
        None => None,
    };
    Ok(NormGradients { h: h_gradient, weight: half(0)?, skip_and_branch })
}

/// The three block-diagonal weights of an mLSTM block, each `(D / 4, 4, 4)`, fp32.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// Of queries.
    pub query: &'a Tensor,
    /// Of keys.
    pub key: &'a Tensor,
    /// Of values.
    pub value: &'a Tensor,
}

fn projection_parameters(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
) -> Result<(ProjectionParameters, [i64; 2]), BoxError> {
    let shape = dense("projections: c", conv)?;
    let (other, stride) = matrix("projections: a", input)?;
    for weight in [weights.query, weights.key, weights.value] {
        expect("projections: weight", weight, Kind::Float)?;
        if weight.size() != [shape[1] / 4, 4, 4] || !weight.is_contiguous() {
            return Err(format!("projections: expected blocks of 4 by 4, found {:?}", weight.size()).into());
        }
    }
    if other != shape {
        return Err(format!("projections: c is {shape:?}, a {other:?}").into());
    }
    let parameters = ProjectionParameters {
        tokens: shape[0],
        width: int(shape[1])?,
        input_stride: stride,
        conv: address(conv),
        input: address(input),
        query_weight: address(weights.query),
        key_weight: address(weights.key),
        value_weight: address(weights.value),
        ..ProjectionParameters::default()
    };
    Ok((parameters, shape))
}

/// `q = Wq c`, `k = Wk c`, `v = Wv a`.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn projections_forward(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
) -> Result<[Tensor; 3], BoxError> {
    let card = Card::of(conv)?;
    let (parameters, shape) = projection_parameters(conv, input, weights)?;
    let made = [
        make(&shape, Kind::BFloat16, conv)?,
        make(&shape, Kind::BFloat16, conv)?,
        make(&shape, Kind::BFloat16, conv)?,
    ];
    let (tokens, width) = (u64::try_from(shape[0])?, u32::try_from(shape[1])?);
    let parameters = ProjectionParameters {
        run: i32::try_from(ProjectionParameters::run(tokens, width, false))?,
        query: address(&made[0]),
        key: address(&made[1]),
        value: address(&made[2]),
        ..parameters
    };
    // The forward kernel knows no gates: any number will do.
    let specialisation = Specialisation::projections(card.architecture(), 8);
    let launch = ProjectionParameters::launch(tokens, width, false);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok(made)
}

/// What arrives at q, k, v, at the gates and, by the skip branch, at c.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionUpstream<'a> {
    /// Gradients of q, k, v, `(N, D)`.
    pub projected: [&'a Tensor; 3],
    /// M, `(2, G, D)`, fp32: the gates' weights on c and on a.
    pub gate_weight: &'a Tensor,
    /// Gradient of the gates, `(N, G)`, fp32.
    pub gates: &'a Tensor,
    /// Added to c's gradient, `(N, D)`.
    pub added: &'a Tensor,
}

/// Gradients of c, of a, and of the three weights in one tensor `(3, D / 4, 4, 4)`.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn projections_backward(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
    upstream: ProjectionUpstream<'_>,
) -> Result<[Tensor; 3], BoxError> {
    let card = Card::of(conv)?;
    let (parameters, shape) = projection_parameters(conv, input, weights)?;
    for gradient in upstream.projected.into_iter().chain([upstream.added]) {
        if dense("projections: gradient", gradient)? != shape {
            return Err("projections: a gradient of another shape than c".into());
        }
    }
    let gates = upstream.gates.size().get(1).copied().unwrap_or(0);
    expect("projections: gate weight", upstream.gate_weight, Kind::Float)?;
    expect("projections: gradient of the gates", upstream.gates, Kind::Float)?;
    if upstream.gate_weight.size() != [2, gates, shape[1]]
        || upstream.gates.size() != [shape[0], gates]
        || !upstream.gate_weight.is_contiguous()
        || !upstream.gates.is_contiguous()
    {
        return Err(format!("projections: {gates} gates of {:?}", upstream.gate_weight.size()).into());
    }
    let made = [make(&shape, Kind::BFloat16, conv)?, make(&shape, Kind::BFloat16, conv)?];
    let (tokens, width) = (u64::try_from(shape[0])?, u32::try_from(shape[1])?);
    let launch = ProjectionParameters::launch(tokens, width, true);
    let partial = partial_sums(&launch, shape[1] * i64::from(ProjectionParameters::PARTIAL), conv)?;
    let parameters = ProjectionParameters {
        run: i32::try_from(ProjectionParameters::run(tokens, width, true))?,
        query_gradient: address(upstream.projected[0]),
        key_gradient: address(upstream.projected[1]),
        value_gradient: address(upstream.projected[2]),
        gate_weight: address(upstream.gate_weight),
        gate_gradient: address(upstream.gates),
        added: address(upstream.added),
        conv_gradient: address(&made[0]),
        input_gradient: address(&made[1]),
        partial: address(&partial),
        ..parameters
    };
    let specialisation = Specialisation::projections(card.architecture(), u32::try_from(gates)?);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    let weights = sum_columns(card, &partial)?.f_view([3, shape[1] / 4, 4, 4])?;
    let [conv_gradient, input_gradient] = made;
    Ok([conv_gradient, input_gradient, weights])
}

/// `GELU(g) ⊙ u` of `(g, u)` side by side, `(N, 2 F)`; with a gradient of the result, its gradient instead.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn gelu(projected: &Tensor, y_gradient: Option<&Tensor>) -> Result<Tensor, BoxError> {
    let card = Card::of(projected)?;
    let [rows, double] = dense("gelu: projected", projected)?;
    let width = double / 2;
    if double % 16 != 0 {
        return Err(format!("gelu: expected halves of a multiple of 8, found {double} for both").into());
    }
    let mut parameters = GeluParameters {
        rows,
        width: int(width)?,
        projected: address(projected),
        ..GeluParameters::default()
    };
    let made = match y_gradient {
        None => make(&[rows, width], Kind::BFloat16, projected)?,
        Some(gradient) if dense("gelu: gradient", gradient)? == [rows, width] => {
            parameters.output_gradient = address(gradient);
            make(&[rows, double], Kind::BFloat16, projected)?
        }
        Some(gradient) => return Err(format!("gelu: a gradient of shape {:?}", gradient.size()).into()),
    };
    match y_gradient {
        None => parameters.output = address(&made),
        Some(_) => parameters.projected_gradient = address(&made),
    }
    let launch = GeluParameters::launch(u64::try_from(rows)?, u32::try_from(width)?, y_gradient.is_some());
    // SAFETY: checked above.
    unsafe { card.launch(any_head(card), launch, &parameters)? };
    Ok(made)
}

/// Of [`stream_forward`].
#[derive(Debug)]
pub struct Normed {
    /// `x + d`, fp32; `None` where there was no d.
    pub sum: Option<Tensor>,
    /// The norm, bf16.
    pub output: Tensor,
    /// `(N, 2)`.
    pub statistics: Tensor,
}

fn stream_parameters(
    card: &Card,
    x: &Tensor,
    weight: &Tensor,
) -> Result<(StreamParameters, Specialisation, [i64; 2]), BoxError> {
    expect("layer norm: x", x, Kind::Float)?;
    expect("layer norm: weight", weight, Kind::Float)?;
    let [rows, width] = <[i64; 2]>::try_from(x.size().as_slice())?;
    if !x.is_contiguous() || weight.numel() as i64 != width || width % 4 != 0 || width > 4096 {
        return Err(format!("layer norm: expected a width of a multiple of 4 up to 4096, found {:?}", x.size()).into());
    }
    let parameters = StreamParameters {
        tokens: rows,
        rows_per_block: i32::try_from(StreamParameters::rows_per_block(u64::try_from(rows)?))?,
        stream: address(x),
        weight: address(weight),
        ..StreamParameters::default()
    };
    Ok((parameters, Specialisation::stream(card.architecture(), u32::try_from(width)?), [rows, width]))
}

/// `s = x + d` and the layer norm of s; x `(N, C)` fp32, d `(N, C)` bf16.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn stream_forward(
    x: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    epsilon: f64,
) -> Result<Normed, BoxError> {
    let card = Card::of(x)?;
    let (parameters, specialisation, [rows, width]) = stream_parameters(card, x, weight)?;
    if let Some(delta) = delta
        && dense("layer norm: d", delta)? != [rows, width]
    {
        return Err("layer norm: x and d of different shapes".into());
    }
    let sum = delta.map(|_| make(&[rows, width], Kind::Float, x)).transpose()?;
    let output = make(&[rows, width], Kind::BFloat16, x)?;
    let statistics = make(&[rows, 2], Kind::Float, x)?;
    let parameters = StreamParameters {
        epsilon: epsilon as f32,
        delta: optional_address(delta),
        sum: optional_address(sum.as_ref()),
        output: address(&output),
        statistics: address(&statistics),
        ..parameters
    };
    let launch = StreamParameters::launch(u64::try_from(rows)?, false);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok(Normed { sum, output, statistics })
}

/// Gradients of x (fp32), of d (bf16, where `with_delta`), and of the weight, from those of the norm and of the sum.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn stream_backward(
    (sum, weight, statistics): (&Tensor, &Tensor, &Tensor),
    output_gradient: &Tensor,
    sum_gradient: Option<&Tensor>,
    with_delta: bool,
) -> Result<(Tensor, Option<Tensor>, Tensor), BoxError> {
    let card = Card::of(sum)?;
    let (parameters, specialisation, [rows, width]) = stream_parameters(card, sum, weight)?;
    if dense("layer norm: gradient", output_gradient)? != [rows, width] {
        return Err("layer norm: a gradient of another shape than the output".into());
    }
    if let Some(gradient) = sum_gradient {
        expect("layer norm: gradient of the sum", gradient, Kind::Float)?;
        if gradient.size() != [rows, width] || !gradient.is_contiguous() {
            return Err("layer norm: a gradient of another shape than the sum".into());
        }
    }
    let stream_gradient = make(&[rows, width], Kind::Float, sum)?;
    let delta_gradient = with_delta.then(|| make(&[rows, width], Kind::BFloat16, sum)).transpose()?;
    let launch = StreamParameters::launch(u64::try_from(rows)?, true);
    let partial = partial_sums(&launch, width, sum)?;
    let parameters = StreamParameters {
        statistics: address(statistics),
        output_gradient: address(output_gradient),
        sum_gradient: optional_address(sum_gradient),
        stream_gradient: address(&stream_gradient),
        delta_gradient: optional_address(delta_gradient.as_ref()),
        partial: address(&partial),
        ..parameters
    };
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok((stream_gradient, delta_gradient, sum_columns(card, &partial)?))
}

/// Losses `(R)` of rows of logits. bf16 logits are overwritten by their gradients, times `scale`; fp32 logits are read.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    losses: &Tensor,
    (ignore, scale): (i64, f64),
) -> Result<(), BoxError> {
    let card = Card::of(logits)?;
    let gradients = logits.kind() == Kind::BFloat16;
    expect("cross-entropy: logits", logits, if gradients { Kind::BFloat16 } else { Kind::Float })?;
    let [rows, vocabulary] = <[i64; 2]>::try_from(logits.size().as_slice())?;
    let fits = targets.kind() == Kind::Int64
        && losses.kind() == Kind::Float
        && [targets.size(), losses.size()].iter().all(|size| *size == [rows])
        && [logits, targets, losses].iter().all(|tensor| tensor.is_contiguous())
        && vocabulary % 8 == 0;
    if !fits {
        return Err(format!("cross-entropy: expected a vocabulary of a multiple of 8, a target and a loss for each row, found {:?}", logits.size()).into());
    }
    let mut parameters = CrossEntropyParameters {
        rows: int(rows)?,
        scale: scale as f32,
        ignore,
        targets: address(targets),
        losses: address(losses),
        ..CrossEntropyParameters::default()
    };
    if gradients {
        parameters.logits = address(logits);
    } else {
        parameters.wide_logits = address(logits);
    }
    let specialisation = Specialisation::cross_entropy(card.architecture(), u32::try_from(vocabulary)?);
    let launch = CrossEntropyParameters::launch(u32::try_from(rows)?, gradients);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok(())
}
