//! Pointwise kernels as functions that libtorch can differentiate: for the sLSTM block in bf16, and for float32.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::{Named as _, Output};
use xlstm_bridge::{BoxError, named_tensors};

use super::launch::{self, Boundaries, ConvLayer, ConvTarget, ConvUpstream, Gated, NormTarget};
use super::layout;
use crate::KernelError;
use crate::conv::ConvInput;
use crate::gates::MlstmOutputInput;
use crate::shape::dimensions;

named_tensors! {
    struct ConvInputs<T> { x: T, weight: T, bias: T, window: T }

    struct ConvSaved {
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        window: Option<Tensor>,
        resets: Option<Tensor>,
    }

    struct NormInputs<T> { x: T, weight: T }

    struct NormSaved { x: Tensor, weight: Tensor, statistics: Tensor }

    struct GeluInputs<T> { projected: T }

    struct OutputInputs<T> { h: T, norm: T, skip: T, branch: T, gate: T }

    struct OutputSaved { inputs: OutputInputs<Tensor>, statistics: Tensor }

    struct ProjectionInputs<T> { c: T, a: T, query: T, key: T, value: T }

    struct Projected<T> { query: T, key: T, value: T }
}

/// A new tensor with the strides of another, which may be half of a wider one.
fn laid_out_as(like: &Tensor) -> Result<Tensor, BoxError> {
    Ok(Tensor::f_empty_strided(like.size(), like.stride(), (like.kind(), like.device()))?)
}

/// The gradient of the only output, dense and in the type of the activations.
fn gradient(upstream: Output<Option<Tensor>>, like: &Tensor) -> Result<Tensor, BoxError> {
    Ok(layout::dense(&upstream.gradient()?.f_to_kind(like.kind())?)?)
}

/// `SiLU(conv(x))` of `x_BTD` (bf16 or fp32), weight `(D, 1, 4)`, bias `(D)`, with what stands before the first token and resets.
/// Gradients flow to x, weight, bias and the inputs before.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn conv_silu(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    convolution(input, true)
}

/// As [`conv_silu`], without the SiLU.
///
/// # Errors
/// As [`conv_silu`].
pub(crate) fn conv(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    convolution(input, false)
}

fn convolution(input: &ConvInput<'_>, silu: bool) -> Result<Tensor, KernelError> {
    const NAME: &str = "conv_silu (CUDA)";
    let [batch, time, width] = dimensions(NAME, "x_BTD", input.x_BTD)?;
    let x_ND = layout::rows(input.x_BTD, width)?;
    let bias_D = match input.bias_D {
        Some(bias_D) => bias_D.shallow_clone(),
        None => Tensor::f_zeros([width], (Kind::Float, x_ND.device()))?,
    };
    let window = input.state.map(|state| layout::dense(&state.f_to_kind(x_ND.kind())?)).transpose()?;
    let resets = input.resets_BT.map(Tensor::contiguous);
    let inputs = ConvInputs {
        x: Some(&x_ND),
        weight: Some(input.weight_D1W),
        bias: Some(&bias_D),
        window: window.as_ref(),
    };
    let Output { y } = node(
        NAME,
        inputs,
        |_| {
            let boundaries = Boundaries { resets: resets.as_ref(), window: window.as_ref() };
            let layer = ConvLayer { x: &x_ND, weight: input.weight_D1W, bias: &bias_D, silu };
            let y = launch::conv_forward(layer, batch, boundaries)?;
            let saved = ConvSaved {
                x: x_ND.shallow_clone(),
                weight: input.weight_D1W.shallow_clone(),
                bias: bias_D.shallow_clone(),
                window: window.as_ref().map(Tensor::shallow_clone),
                resets: resets.as_ref().map(Tensor::shallow_clone),
            };
            Ok((Output { y }, saved))
        },
        move |saved: ConvSaved, upstream, _| {
            conv_backward(&saved, &gradient(upstream, &saved.x)?, batch, silu)
        },
    )?;
    Ok(y.f_view([batch, time, width])?)
}

fn conv_backward(
    saved: &ConvSaved,
    upstream: &Tensor,
    batch: i64,
    silu: bool,
) -> Result<ConvInputs<Option<Tensor>>, BoxError> {
    let x_gradient = laid_out_as(&saved.x)?;
    let window_gradient = saved.window.as_ref().map(Tensor::f_empty_like).transpose()?;
    let (weight, bias) = launch::conv_backward(
        ConvLayer { x: &saved.x, weight: &saved.weight, bias: &saved.bias, silu },
        batch,
        Boundaries { resets: saved.resets.as_ref(), window: saved.window.as_ref() },
        ConvUpstream { y: upstream, added: None },
        ConvTarget { x: &x_gradient, window: window_gradient.as_ref() },
    )?;
    Ok(ConvInputs {
        x: Some(x_gradient),
        weight: Some(weight.f_unsqueeze(1)?),
        bias: Some(bias),
        window: window_gradient,
    })
}

/// Layer norm of each head of `x_BTHE` (bf16 or fp32) alone, weight `(D)`: `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn head_norm(x_BTHE: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor, KernelError> {
    let [batch, time, heads, width] = dimensions("head_norm (CUDA)", "x_BTHE", x_BTHE)?;
    let x_NHE = x_BTHE.f_reshape([batch * time, heads, width])?;
    let Output { y } = node(
        "head_norm (CUDA)",
        NormInputs { x: Some(&x_NHE), weight: Some(weight_D) },
        |_| {
            let (y, statistics) = launch::norm_forward(&x_NHE, weight_D, None, epsilon)?;
            let saved = NormSaved { x: x_NHE.shallow_clone(), weight: weight_D.shallow_clone(), statistics };
            Ok((Output { y }, saved))
        },
        |saved: NormSaved, upstream, _| {
            let NormSaved { x, weight, statistics } = &saved;
            let upstream = gradient(upstream, x)?;
            let gradients =
                launch::norm_backward((x, weight, statistics), None, &upstream, NormTarget::default())?;
            Ok(NormInputs { x: Some(gradients.h), weight: Some(gradients.weight) })
        },
    )?;
    Ok(y.f_view([batch, time, heads * width])?)
}

/// `GELU(gate) ⊙ up` of both halves of `projected_F` (bf16 or fp32), side by side.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn gelu_gate(projected_F: &Tensor) -> Result<Tensor, KernelError> {
    let mut size = projected_F.size();
    let double = size.last().copied().unwrap_or(0);
    let projected_NF = projected_F.f_reshape([-1, double])?;
    let Output { y } = node(
        "gelu_gate (CUDA)",
        GeluInputs { projected: Some(&projected_NF) },
        |_| Ok((Output { y: launch::gelu(&projected_NF, None)? }, projected_NF.shallow_clone())),
        |projected: Tensor, upstream, _| {
            let upstream = gradient(upstream, &projected)?;
            let projected = launch::gelu(&projected, Some(&upstream))?;
            Ok(GeluInputs { projected: Some(projected) })
        },
    )?;
    if let Some(last) = size.last_mut() {
        *last = double / 2;
    }
    Ok(y.f_view(size.as_slice())?)
}

/// `(norm(h)(1 + w) + skip ⊙ c) ⊙ SiLU(z)` in fp32: [`crate::gates::mlstm_output`] on a GPU. z may be half of a wider tensor.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub(crate) fn mlstm_output(input: &MlstmOutputInput<'_>, epsilon: f64) -> Result<Tensor, KernelError> {
    let [batch, time, heads, head] = dimensions("mlstm_output (CUDA)", "h_BTHE", input.h_BTHE)?;
    let (rows, width) = (batch * time, heads * head);
    let h = input.h_BTHE.f_reshape([rows, heads, head])?.f_contiguous()?;
    let branch = input.conv_BTD.f_reshape([rows, width])?.f_contiguous()?;
    let gate = input.z_BTD.f_reshape([rows, width])?;
    let inputs =
        OutputInputs { h: &h, norm: input.norm_weight_D, skip: input.skip_D, branch: &branch, gate: &gate };
    let Output { y } = node(
        "mlstm_output (CUDA)",
        inputs.map(Some),
        |_| {
            let gated = Gated { skip: inputs.skip, branch: inputs.branch, gate: inputs.gate };
            let (y, statistics) = launch::norm_forward(inputs.h, inputs.norm, Some(gated), epsilon)?;
            Ok((Output { y }, OutputSaved { inputs: inputs.map(Tensor::shallow_clone), statistics }))
        },
        |saved: OutputSaved, upstream, _| {
            let OutputSaved { inputs, statistics } = &saved;
            let upstream = gradient(upstream, &inputs.h)?;
            let gate = laid_out_as(&inputs.gate)?;
            let gated = Gated { skip: &inputs.skip, branch: &inputs.branch, gate: &inputs.gate };
            let target = NormTarget { gate: Some(&gate), division: None };
            let norm =
                launch::norm_backward((&inputs.h, &inputs.norm, statistics), Some(gated), &upstream, target)?;
            let (skip, branch) = norm.skip_and_branch.ok_or("no gradient of the skip")?;
            let (h, norm) = (Some(norm.h), Some(norm.weight));
            Ok(OutputInputs { h, norm, skip: Some(skip), branch: Some(branch), gate: Some(gate) })
        },
    )?;
    Ok(y.f_view([batch, time, width])?)
}

/// `Wq c`, `Wk c` and `Wv a` in fp32, `(B, T, D)` each, blocks of four. Gradients flow to all.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub(crate) fn block_projections(
    [c_BTD, a_BTD]: [&Tensor; 2],
    blocks_NOI: [&Tensor; 3],
) -> Result<[Tensor; 3], KernelError> {
    let [batch, time, width] = dimensions("block_projections (CUDA)", "c_BTD", c_BTD)?;
    let c = c_BTD.f_reshape([batch * time, width])?.f_contiguous()?;
    let a = a_BTD.f_reshape([batch * time, width])?;
    let blocks = blocks_NOI.map(Tensor::contiguous);
    let [query, key, value] = blocks.each_ref();
    let inputs = ProjectionInputs { c: &c, a: &a, query, key, value };
    let Projected { query, key, value } = node(
        "block_projections (CUDA)",
        inputs.map(Some),
        |_| {
            let blocks = [inputs.query, inputs.key, inputs.value];
            let [query, key, value] = launch::projections_forward((inputs.c, inputs.a), blocks)?;
            Ok((Projected { query, key, value }, inputs.map(Tensor::shallow_clone)))
        },
        projections_backward,
    )?;
    let shape = [batch, time, width];
    Ok([query.f_view(shape)?, key.f_view(shape)?, value.f_view(shape)?])
}

fn projections_backward(
    saved: ProjectionInputs<Tensor>,
    upstream: Projected<Option<Tensor>>,
    _: ProjectionInputs<bool>,
) -> Result<ProjectionInputs<Option<Tensor>>, BoxError> {
    let dense = |gradient: Option<Tensor>| -> Result<Tensor, BoxError> {
        Ok(match gradient {
            Some(gradient) => gradient.f_contiguous()?,
            None => saved.c.f_zeros_like()?,
        })
    };
    let (query, key, value) = (dense(upstream.query)?, dense(upstream.key)?, dense(upstream.value)?);
    let gradients = launch::projections_backward(
        (&saved.c, &saved.a),
        [&saved.query, &saved.key, &saved.value],
        [&query, &key, &value],
    )?;
    let block = |index: i64| gradients.blocks.f_select(0, index);
    Ok(ProjectionInputs {
        query: Some(block(0)?),
        key: Some(block(1)?),
        value: Some(block(2)?),
        c: Some(gradients.c),
        a: Some(gradients.a),
    })
}
