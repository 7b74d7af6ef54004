//! The pointwise and block-wise operations between the big products of a block (paper fig. 10 and 11).
//!
//! | function | computes | where |
//! |---|---|---|
//! | [`block_linear`] | y = W x, W block-diagonal | gates of sLSTM (one block a head); mLSTM, see [`crate::projections`] |
//! | [`mlstm_gates`] | i~, f~ = W [q; k; v] + b | mLSTM |
//! | [`mlstm_output`] | (norm(h)·(1+w) + skip ⊙ c) ⊙ SiLU(z) | mLSTM, before the down-projection |
//! | [`gelu_gate`] | GELU(g) ⊙ u | the feed-forward part of an sLSTM block |

use crate::KernelError;
use crate::cpu::{
    BlocksGradients, BlocksProblem, OutputGradients, OutputProblem, Precision, address, call, empty,
    evenly_spaced,
};
use crate::linear::linear;
use crate::norm::head_norm;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::{Named, Output};
use xlstm_bridge::{BoxError, named_tensors};

/// Block-diagonal linear map without bias: `x_BTD` is cut into N blocks, `weight_NOI` holds each block's matrix
/// (out by in), the result is `(B, T, N·O)`.
///
/// # Errors
/// [`KernelError`] when the weight does not fit.
pub fn block_linear(x_BTD: &Tensor, weight_NOI: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "block_linear";
    let [batch, time, _] = dimensions(NAME, "x_BTD", x_BTD)?;
    let [blocks, outputs, inputs] = dimensions(NAME, "weight_NOI", weight_NOI)?;
    expect_shape(NAME, "x_BTD", x_BTD, &[batch, time, blocks * inputs])?;
    expect_device(NAME, "weight_NOI", weight_NOI, x_BTD)?;
    let kind = computing_kind(NAME, "x_BTD", x_BTD)?;
    if x_BTD.device() == Device::Cpu && (outputs, inputs) == (4, 4) {
        let (x, weight_NOI) = (x_BTD.to_kind(kind), weight_NOI.to_kind(kind));
        return Ok(blocks_of_four(&x, &weight_NOI)?.to_kind(x_BTD.kind()));
    }
    if matches!(x_BTD.device(), Device::Cuda(_)) && blocks * outputs.max(inputs) <= WIDEST_DENSE {
        let x_RD = x_BTD.to_kind(kind).f_reshape([batch * time, blocks * inputs])?;
        let y_RD = blocks_on_gpu(&x_RD, &weight_NOI.to_kind(kind))?;
        return Ok(y_RD.f_view([batch, time, blocks * outputs])?.to_kind(x_BTD.kind()));
    }
    let x_NRI = x_BTD.to_kind(kind).view([batch * time, blocks, inputs]).transpose(0, 1);
    let y_NRO = x_NRI.matmul(&weight_NOI.to_kind(kind).transpose(1, 2));
    let y_BTD = y_NRO.transpose(0, 1).reshape([batch, time, blocks * outputs]);
    Ok(y_BTD.to_kind(x_BTD.kind()))
}

/// Up to this width several block-diagonal maps of one input are one dense product on a GPU.
const WIDEST_JOINT: i64 = 256;

/// Several block-diagonal matrices of one input, `(N, O, I)` each, as one dense matrix `(G·N·O, N·I)`, zeros outside the
/// blocks, where one product with it costs less than one for each block: for small matrices on a GPU, `None` elsewhere.
/// Gradients flow through.
///
/// # Errors
/// [`KernelError`] when the shapes differ.
pub fn joined_blocks(weights_NOI: &[&Tensor]) -> Result<Option<Tensor>, KernelError> {
    const NAME: &str = "joined_blocks";
    let Some(first) = weights_NOI.first() else { return Ok(None) };
    let [blocks, outputs, inputs] = dimensions(NAME, "weight_NOI", first)?;
    for weight_NOI in weights_NOI {
        expect_shape(NAME, "weight_NOI", weight_NOI, &[blocks, outputs, inputs])?;
    }
    let small = blocks * outputs.max(inputs) <= WIDEST_JOINT;
    if !small || !matches!(first.device(), Device::Cuda(_)) {
        return Ok(None);
    }
    let all_GOIN = Tensor::f_stack(weights_NOI, 0)?.f_permute([0, 2, 3, 1])?;
    let count = weights_NOI.len() as i64;
    Ok(Some(all_GOIN.f_diag_embed(0, 1, 3)?.f_reshape([count * blocks * outputs, blocks * inputs])?))
}

named_tensors! {
    /// What [`block_linear`] takes, and saves.
    struct Blocks<T> { x_BTD: T, weight_NOI: T }
}

/// Up to this width the gradient of a block-diagonal weight is cut out of the dense one, on a GPU.
const WIDEST_DENSE: i64 = 1024;

/// [`block_linear`] on a GPU. The weight's gradient is one product over all rows for each block, a small result of a very
/// long sum, which libtorch's batched product gives one thread block each; the dense product is cut along its sum.
fn blocks_on_gpu(x_RD: &Tensor, weight_NOI: &Tensor) -> Result<Tensor, KernelError> {
    let output = node(
        "block_linear",
        Blocks { x_BTD: Some(x_RD), weight_NOI: Some(weight_NOI) },
        |_| {
            let [blocks, outputs, inputs] = dimensions("block_linear", "weight_NOI", weight_NOI)?;
            let rows = x_RD.size()[0];
            let y_RD = Tensor::f_empty([rows, blocks * outputs], (x_RD.kind(), x_RD.device()))?;
            let by_block = |tensor: &Tensor, width: i64| -> Result<Tensor, BoxError> {
                Ok(tensor.f_view([rows, blocks, width])?.f_transpose(0, 1)?)
            };
            let x_RD = x_RD.f_contiguous()?;
            let y_NRO = by_block(&y_RD, outputs)?;
            let _ = by_block(&x_RD, inputs)?.f_bmm_out(&y_NRO, &weight_NOI.f_transpose(1, 2)?)?;
            Ok((Output { y: y_RD }, Blocks { x_BTD: x_RD, weight_NOI: weight_NOI.shallow_clone() }))
        },
        |Blocks { x_BTD: x_RD, weight_NOI }: Blocks<Tensor>,
         upstream: Output<Option<Tensor>>,
         wanted: Blocks<bool>| {
            let [blocks, outputs, inputs] = dimensions("block_linear", "weight_NOI", &weight_NOI)?;
            let rows = x_RD.size()[0];
            let upstream_RD = upstream.gradient()?.f_contiguous()?;
            let x_BTD = if wanted.x_BTD {
                let gradient = x_RD.f_empty_like()?;
                let upstream_NRO = upstream_RD.f_view([rows, blocks, outputs])?.f_transpose(0, 1)?;
                let gradient_NRI = gradient.f_view([rows, blocks, inputs])?.f_transpose(0, 1)?;
                let _ = upstream_NRO.f_bmm_out(&gradient_NRI, &weight_NOI)?;
                Some(gradient)
            } else {
                None
            };
            let dense = upstream_RD.f_tr()?.f_mm(&x_RD)?.f_view([blocks, outputs, blocks, inputs])?;
            let weight_NOI = dense.f_diagonal(0, 0, 2)?.f_permute([2, 0, 1])?.f_contiguous()?;
            Ok(Blocks { x_BTD, weight_NOI: Some(weight_NOI) })
        },
    )?;
    Ok(output.y)
}

/// Blocks of 4 by 4, one pass over the rows, with a backward pass by hand (`cpu/pointwise.h`).
fn blocks_of_four(x_BTD: &Tensor, weight_NOI: &Tensor) -> Result<Tensor, KernelError> {
    let kind = x_BTD.kind();
    let output = node(
        "block_linear",
        Blocks { x_BTD: Some(x_BTD), weight_NOI: Some(weight_NOI) },
        |_| {
            let (x_BTD, _) = evenly_spaced(x_BTD);
            let y_BTD = empty(&x_BTD.size(), kind);
            let weight_ID = by_input(&weight_NOI.transpose(1, 2));
            call!(
                kind,
                blocks_forward_f32,
                blocks_forward_f64,
                &blocks_problem(&x_BTD, &weight_ID, Some(&y_BTD))
            );
            Ok((Output { y: y_BTD }, Blocks { x_BTD, weight_NOI: weight_NOI.shallow_clone() }))
        },
        blocks_backward,
    )?;
    Ok(output.y)
}

/// `(N, I, O)` to `(I, N·O)`, the layout of `cpu/pointwise.h`.
pub(crate) fn by_input(weight_NIO: &Tensor) -> Tensor {
    weight_NIO.transpose(0, 1).contiguous().view([4, -1])
}

/// The layout of `cpu/pointwise.h`, `(I, N·O)`, back to `(N, O, I)`; a view.
pub(crate) fn of_blocks(weight_ID: &Tensor) -> Tensor {
    weight_ID.view([4, -1, 4]).permute([1, 2, 0])
}

fn blocks_problem<T>(x_BTD: &Tensor, weight_ID: &Tensor, y_BTD: Option<&Tensor>) -> BlocksProblem<T> {
    let size = x_BTD.size();
    BlocksProblem {
        rows: size[0] * size[1],
        width: size[2],
        x_row: evenly_spaced(x_BTD).1,
        x: x_BTD.data_ptr().cast::<T>().cast_const(),
        weight: address::<T>(weight_ID).cast_const(),
        y: crate::cpu::optional_address(y_BTD),
    }
}

fn blocks_backward(
    Blocks { x_BTD, weight_NOI }: Blocks<Tensor>,
    upstream: Output<Option<Tensor>>,
    _: Blocks<bool>,
) -> Result<Blocks<Option<Tensor>>, BoxError> {
    let kind = x_BTD.kind();
    let upstream_BTD = upstream.gradient()?.contiguous();
    let (x_gradient, weight_gradient) =
        (empty(&x_BTD.size(), kind), empty(&[4, weight_NOI.numel() as i64 / 4], kind));
    let (weight_ID, transposed) = (by_input(&weight_NOI.transpose(1, 2)), by_input(&weight_NOI));
    call!(
        kind,
        blocks_backward_f32,
        blocks_backward_f64,
        &blocks_problem(&x_BTD, &weight_ID, None),
        &blocks_gradients(&upstream_BTD, &transposed, &x_gradient, &weight_gradient)
    );
    Ok(Blocks { x_BTD: Some(x_gradient), weight_NOI: Some(of_blocks(&weight_gradient)) })
}

fn blocks_gradients<T>(y: &Tensor, transposed: &Tensor, x: &Tensor, weight: &Tensor) -> BlocksGradients<T> {
    BlocksGradients {
        y: address::<T>(y).cast_const(),
        transposed: address::<T>(transposed).cast_const(),
        x: address(x),
        weight: address(weight),
    }
}

/// Weights of the gates of mLSTM, as the official package stores them: `(H, 3·D)` over `[q; k; v]`, and `(H)`.
#[derive(Debug, Clone, Copy)]
pub struct GateWeights<'a> {
    /// `igate.weight`, `(H, 3·D)`.
    pub input_weight: &'a Tensor,
    /// `igate.bias`, `(H)`.
    pub input_bias: &'a Tensor,
    /// `fgate.weight`, `(H, 3·D)`.
    pub forget_weight: &'a Tensor,
    /// `fgate.bias`, `(H)`.
    pub forget_bias: &'a Tensor,
}

/// Pre-activations of mLSTM's gates, `(i_BTH, f_BTH)`, in the computing type: they are exponents, and deserve it.
///
/// # Errors
/// [`KernelError`] when a weight does not fit.
pub fn mlstm_gates(
    q_BTD: &Tensor,
    k_BTD: &Tensor,
    v_BTD: &Tensor,
    weights: &GateWeights<'_>,
) -> Result<(Tensor, Tensor), KernelError> {
    const NAME: &str = "mlstm_gates";
    let [batch, time, width] = dimensions(NAME, "q_BTD", q_BTD)?;
    expect_shape(NAME, "k_BTD", k_BTD, &[batch, time, width])?;
    expect_shape(NAME, "v_BTD", v_BTD, &[batch, time, width])?;
    let [heads] = dimensions(NAME, "input_bias", weights.input_bias)?;
    expect_shape(NAME, "input_weight", weights.input_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_weight", weights.forget_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_bias", weights.forget_bias, &[heads])?;
    let kind = computing_kind(NAME, "q_BTD", q_BTD)?;
    // Both gates in one product for each of q, k and v; nothing is concatenated along time.
    let weight_GF = Tensor::cat(&[weights.input_weight, weights.forget_weight], 0).to_kind(kind);
    let bias_G = Tensor::cat(&[weights.input_bias, weights.forget_bias], 0).to_kind(kind);
    let sum_BTG =
        [q_BTD, k_BTD, v_BTD].into_iter().enumerate().try_fold(bias_G, |sum, (index, part_BTD)| {
            let part_GD = weight_GF.narrow(1, width * index as i64, width);
            Ok::<_, KernelError>(sum + linear(&part_BTD.to_kind(kind), &part_GD, None)?)
        })?;
    Ok((sum_BTG.narrow(-1, 0, heads), sum_BTG.narrow(-1, heads, heads)))
}

/// Arguments of [`mlstm_output`].
#[derive(Debug, Clone, Copy)]
pub struct MlstmOutputInput<'a> {
    /// Hidden values of mLSTM, `(B, T, H, E)`.
    pub h_BTHE: &'a Tensor,
    /// Weight of the head-wise norm, `(D)`, D = H·E.
    pub norm_weight_D: &'a Tensor,
    /// Learnable skip, `(D)`.
    pub skip_D: &'a Tensor,
    /// What the convolution gave, `(B, T, D)`.
    pub conv_BTD: &'a Tensor,
    /// The branch that gates, `(B, T, D)`.
    pub z_BTD: &'a Tensor,
}

/// What mLSTM sends to the down-projection: `(norm(h)·(1+w) + skip ⊙ c) ⊙ SiLU(z)`, `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when a shape does not fit.
pub fn mlstm_output(input: &MlstmOutputInput<'_>, epsilon: f64) -> Result<Tensor, KernelError> {
    const NAME: &str = "mlstm_output";
    let [batch, time, heads, width] = dimensions(NAME, "h_BTHE", input.h_BTHE)?;
    expect_shape(NAME, "skip_D", input.skip_D, &[heads * width])?;
    expect_shape(NAME, "conv_BTD", input.conv_BTD, &[batch, time, heads * width])?;
    expect_shape(NAME, "z_BTD", input.z_BTD, &[batch, time, heads * width])?;
    let kind = computing_kind(NAME, "h_BTHE", input.h_BTHE)?;
    if input.h_BTHE.device() == Device::Cpu {
        expect_shape(NAME, "norm_weight_D", input.norm_weight_D, &[heads * width])?;
        return Ok(fused_output(input, epsilon, kind)?.to_kind(input.h_BTHE.kind()));
    }
    let activations = [input.h_BTHE, input.conv_BTD, input.z_BTD];
    if crate::cuda::float32_fits(&activations, width) && width <= crate::cuda::MAX_HEAD {
        return crate::cuda::mlstm_output(input, epsilon);
    }
    let normal_BTD = head_norm(input.h_BTHE, input.norm_weight_D, epsilon)?;
    Ok((normal_BTD + input.skip_D * input.conv_BTD) * input.z_BTD.silu())
}

named_tensors! {
    /// What [`mlstm_output`] takes, and saves.
    struct Gated<T> { h_BTHE: T, norm_D: T, skip_D: T, conv_BTD: T, z_BTD: T }
}

/// One pass over the rows, with a backward pass by hand (`cpu/pointwise.h`).
fn fused_output(input: &MlstmOutputInput<'_>, epsilon: f64, kind: Kind) -> Result<Tensor, KernelError> {
    let convert = |tensor: &Tensor| tensor.to_kind(kind);
    let (h_BTHE, norm_D, skip_D) =
        (convert(input.h_BTHE), convert(input.norm_weight_D), convert(input.skip_D));
    let (conv_BTD, z_BTD) = (convert(input.conv_BTD), convert(input.z_BTD));
    let inputs =
        Gated { h_BTHE: &h_BTHE, norm_D: &norm_D, skip_D: &skip_D, conv_BTD: &conv_BTD, z_BTD: &z_BTD };
    let output = node(
        "mlstm_output",
        inputs.map(Some),
        |_| {
            let y_BTD = empty(&z_BTD.size(), kind);
            let saved = Gated {
                h_BTHE: h_BTHE.contiguous(),
                norm_D: norm_D.contiguous(),
                skip_D: skip_D.contiguous(),
                conv_BTD: conv_BTD.contiguous(),
                z_BTD: evenly_spaced(&z_BTD).0,
            };
            call!(
                kind,
                output_forward_f32,
                output_forward_f64,
                &output_problem(&saved, epsilon, Some(&y_BTD))
            );
            Ok((Output { y: y_BTD }, saved))
        },
        move |saved, upstream, _| output_backward(&saved, &upstream.gradient()?, epsilon),
    )?;
    Ok(output.y)
}

fn output_problem<T: Precision>(
    saved: &Gated<Tensor>,
    epsilon: f64,
    y_BTD: Option<&Tensor>,
) -> OutputProblem<T> {
    let size = saved.h_BTHE.size();
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    OutputProblem {
        rows: size[0] * size[1],
        heads: size[2],
        width: size[3],
        z_row: evenly_spaced(&saved.z_BTD).1,
        epsilon: T::from_f64(epsilon),
        h: input(&saved.h_BTHE),
        norm: input(&saved.norm_D),
        skip: input(&saved.skip_D),
        conv: input(&saved.conv_BTD),
        // Rows of `z` may lie further apart than they are wide.
        z: saved.z_BTD.data_ptr().cast::<T>().cast_const(),
        y: crate::cpu::optional_address(y_BTD),
    }
}

fn output_backward(
    saved: &Gated<Tensor>,
    upstream_BTD: &Tensor,
    epsilon: f64,
) -> Result<Gated<Option<Tensor>>, BoxError> {
    let kind = saved.h_BTHE.kind();
    let upstream_BTD = upstream_BTD.contiguous();
    let like = |tensor: &Tensor| empty(&tensor.size(), kind);
    let gradients = Gated {
        h_BTHE: like(&saved.h_BTHE),
        norm_D: like(&saved.norm_D),
        skip_D: like(&saved.skip_D),
        conv_BTD: like(&saved.conv_BTD),
        z_BTD: like(&saved.z_BTD),
    };
    call!(
        kind,
        output_backward_f32,
        output_backward_f64,
        &output_problem(saved, epsilon, None),
        &output_gradients(&upstream_BTD, &gradients)
    );
    Ok(gradients.map(Some))
}

fn output_gradients<T>(y: &Tensor, gradients: &Gated<Tensor>) -> OutputGradients<T> {
    OutputGradients {
        y: address::<T>(y).cast_const(),
        h: address(&gradients.h_BTHE),
        norm: address(&gradients.norm_D),
        skip: address(&gradients.skip_D),
        conv: address(&gradients.conv_BTD),
        z: address(&gradients.z_BTD),
    }
}

/// `GELU(gate) ⊙ up`, with the error function, both halves of `projected_BTF = (gate, up)` in one tensor whose last
/// dimension is twice the result's.
///
/// # Errors
/// [`KernelError`] when the last dimension is odd.
pub fn gelu_gate(projected_F: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "gelu_gate";
    let width = projected_F.size().last().copied().unwrap_or(0);
    if width == 0 || width % 2 != 0 {
        let (found, expected) = (projected_F.size(), "an even last dimension".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "projected_F", expected, found });
    }
    // `chunk` has one backward pass for both halves.
    let halves = projected_F.f_chunk(2, -1)?;
    Ok(halves[0].gelu("none") * &halves[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_linear_is_a_block_diagonal_matrix() {
        let x = Tensor::randn([2, 3, 8], (Kind::Double, Device::Cpu));
        let w = Tensor::randn([2, 5, 4], (Kind::Double, Device::Cpu));
        let dense = Tensor::zeros([10, 8], (Kind::Double, Device::Cpu));
        dense.narrow(0, 0, 5).narrow(1, 0, 4).copy_(&w.select(0, 0));
        dense.narrow(0, 5, 5).narrow(1, 4, 4).copy_(&w.select(0, 1));
        let difference = block_linear(&x, &w).unwrap() - x.matmul(&dense.tr());
        assert!(difference.abs().max().double_value(&[]) < 1e-12);
    }
}
