//! Convolution, queries, keys, values and gates of an mLSTM block.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::InnerParameters;

use super::super::{Gpu, address, expect, make, optional_address};
use super::{Boundaries, dense, int, matrix, partial_sums, sum_columns};

/// Everything between the up-projection and the cell that is learned, fp32.
#[derive(Debug, Clone, Copy)]
pub struct InnerWeights<'a> {
    /// `(D, 1, 4)`.
    pub conv: &'a Tensor,
    /// `(D)`.
    pub conv_bias: &'a Tensor,
    /// Blocks of queries, keys and values, each `(D / 4, 4, 4)`.
    pub blocks: [&'a Tensor; 3],
    /// M, `(2, G, D)`: the gates' weights on c and on a.
    pub gates: &'a Tensor,
    /// `(G)`.
    pub gate_bias: &'a Tensor,
}

/// What goes into the cell, and c: activations bf16 `(N, D)`.
#[derive(Debug)]
pub struct InnerOutputs {
    /// `SiLU(conv(a))`.
    pub conv: Tensor,
    /// `Wq c`.
    pub query: Tensor,
    /// `Wk c`.
    pub key: Tensor,
    /// `Wv a`.
    pub value: Tensor,
    /// `Mc c + Ma a + bias`, `(N, G)`, fp32.
    pub gates: Tensor,
}

/// What the kernels take on trust, checked.
struct Checked {
    parameters: InnerParameters,
    specialization: Specialization,
    shape: [i64; 2],
    batch: u32,
    tokens: u32,
    width: u32,
    gates: u32,
}

fn checked(
    gpu: &Gpu,
    input: &Tensor,
    weights: InnerWeights<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
) -> Result<Checked, BoxError> {
    let (shape, stride) = matrix("inner: a", input)?;
    let [rows, width] = shape;
    let gates = weights.gate_bias.size().first().copied().unwrap_or(0);
    let block = [width / 4, 4, 4];
    let wanted: [(&str, &Tensor, &[i64]); 7] = [
        ("taps", weights.conv, &[width, 1, 4]),
        ("bias", weights.conv_bias, &[width]),
        ("query blocks", weights.blocks[0], &block),
        ("key blocks", weights.blocks[1], &block),
        ("value blocks", weights.blocks[2], &block),
        ("gate weight", weights.gates, &[2, gates, width]),
        ("gate bias", weights.gate_bias, &[gates]),
    ];
    for (name, tensor, size) in wanted {
        expect(name, tensor, Kind::Float)?;
        if tensor.size() != size || !tensor.is_contiguous() {
            return Err(format!("inner: {name}: expected {size:?}, dense, found {:?}", tensor.size()).into());
        }
    }
    if width % 8 != 0 || rows % batch.max(1) != 0 || !(2..=8).contains(&gates) || gates % 2 != 0 {
        return Err(format!(
            "inner: no kernel for {rows} tokens of {width} channels in {batch} sequences, {gates} gates"
        )
        .into());
    }
    expect("inner: a", input, Kind::BFloat16)?;
    boundaries.check("inner", Kind::BFloat16, [batch, rows / batch, width])?;
    let parameters = InnerParameters {
        batch: int(batch)?,
        tokens: int(rows / batch)?,
        width: int(width)?,
        input_stride: stride,
        input: address(input),
        conv_weight: address(weights.conv),
        conv_bias: address(weights.conv_bias),
        query_weight: address(weights.blocks[0]),
        key_weight: address(weights.blocks[1]),
        value_weight: address(weights.blocks[2]),
        gate_weight: address(weights.gates),
        gate_bias: address(weights.gate_bias),
        resets: optional_address(boundaries.resets),
        window: optional_address(boundaries.window),
        ..InnerParameters::default()
    };
    let [batch, tokens, width, gates] = [batch, rows / batch, width, gates].map(u32::try_from);
    let gates = gates?;
    let specialization = Specialization::inner(gpu.architecture(), gates, boundaries.any());
    Ok(Checked { parameters, specialization, shape, batch: batch?, tokens: tokens?, width: width?, gates })
}

/// `c = SiLU(conv(a))`, `q = Wq c`, `k = Wk c`, `v = Wv a` and the gates, of B sequences `a` `(B·T, D)`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn inner_forward(
    input: &Tensor,
    weights: InnerWeights<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
) -> Result<InnerOutputs, BoxError> {
    let gpu = Gpu::of(input)?;
    let all = checked(gpu, input, weights, batch, boundaries)?;
    let activation = || make(&all.shape, Kind::BFloat16, input);
    let outputs = InnerOutputs {
        conv: activation()?,
        query: activation()?,
        key: activation()?,
        value: activation()?,
        gates: make(&[all.shape[0], i64::from(all.gates)], Kind::Float, input)?,
    };
    let parameters = InnerParameters {
        run: i32::try_from(InnerParameters::run(all.batch, all.tokens, false))?,
        conv: address(&outputs.conv),
        query: address(&outputs.query),
        key: address(&outputs.key),
        value: address(&outputs.value),
        gates: address(&outputs.gates),
        ..all.parameters
    };
    let launch = InnerParameters::launch(all.batch, all.tokens, all.width, false);
    // SAFETY: checked above; what is written was allocated above.
    unsafe { gpu.launch(all.specialization, launch, &parameters)? };
    Ok(outputs)
}

/// What arrives at q, k, v, at the gates and, by the skip branch, at c.
#[derive(Debug, Clone, Copy)]
pub struct InnerUpstream<'a> {
    /// Gradients of q, k, v, `(N, D)`.
    pub projected: [&'a Tensor; 3],
    /// Gradient of the gates, `(N, G)`, fp32.
    pub gates: &'a Tensor,
    /// Added to c's gradient, `(N, D)`.
    pub added: &'a Tensor,
}

/// Gradients of [`InnerWeights`], parts of one tensor.
#[derive(Debug)]
pub struct InnerGradients {
    /// Of the taps, `(D, 1, 4)`.
    pub conv: Tensor,
    /// `(D)`.
    pub conv_bias: Tensor,
    /// `(3, D / 4, 4, 4)`.
    pub blocks: Tensor,
    /// Of M.
    pub gates: Tensor,
}

/// Where [`inner_backward`] writes gradients.
#[derive(Debug, Clone, Copy)]
pub struct InnerTarget<'a> {
    /// Of a, laid out as a.
    pub input: &'a Tensor,
    /// Of the window, `(B, 3, D)`, bf16.
    pub window: Option<&'a Tensor>,
}

/// Backward of [`inner_forward`]; the gradients of a and of the window go to `target`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn inner_backward(
    input: &Tensor,
    weights: InnerWeights<'_>,
    batch: i64,
    boundaries: Boundaries<'_>,
    upstream: InnerUpstream<'_>,
    target: InnerTarget<'_>,
) -> Result<InnerGradients, BoxError> {
    let gpu = Gpu::of(input)?;
    let all = checked(gpu, input, weights, batch, boundaries)?;
    Boundaries { resets: None, window: target.window }.check(
        "inner: gradient",
        Kind::BFloat16,
        [batch, 0, all.shape[1]],
    )?;
    for gradient in upstream.projected.into_iter().chain([upstream.added]) {
        expect("inner: gradient", gradient, Kind::BFloat16)?;
        if dense("inner: gradient", gradient)? != all.shape {
            return Err("inner: a gradient of another shape than a".into());
        }
    }
    let [rows, width] = all.shape;
    let gates = i64::from(all.gates);
    expect("inner: gradient of the gates", upstream.gates, Kind::Float)?;
    if upstream.gates.size() != [rows, gates]
        || !upstream.gates.is_contiguous()
        || matrix("inner: gradient of a", target.input)? != (all.shape, all.parameters.input_stride)
    {
        return Err("inner: gradients of other shapes than what they belong to".into());
    }
    let launch = InnerParameters::launch(all.batch, all.tokens, all.width, true);
    let columns = width * i64::from(InnerParameters::partial(all.gates));
    let partial = partial_sums(&launch, columns, input)?;
    let parameters = InnerParameters {
        run: i32::try_from(InnerParameters::run(all.batch, all.tokens, true))?,
        query_gradient: address(upstream.projected[0]),
        key_gradient: address(upstream.projected[1]),
        value_gradient: address(upstream.projected[2]),
        added: address(upstream.added),
        gate_gradient: address(upstream.gates),
        input_gradient: address(target.input),
        window_gradient: optional_address(target.window),
        partial: address(&partial),
        ..all.parameters
    };
    // SAFETY: checked above.
    unsafe { gpu.launch(all.specialization, launch, &parameters)? };
    let sums = sum_columns(gpu, &partial)?;
    let taps = sums.f_narrow(0, (12 + 2 * gates) * width, 5 * width)?.f_view([width, 5])?;
    Ok(InnerGradients {
        conv: taps.f_narrow(1, 0, 4)?.f_unsqueeze(1)?,
        conv_bias: taps.f_select(1, 4)?,
        blocks: sums.f_narrow(0, 0, 12 * width)?.f_view([3, width / 4, 4, 4])?,
        gates: sums.f_narrow(0, 12 * width, 2 * gates * width)?.f_view([2, gates, width])?,
    })
}
