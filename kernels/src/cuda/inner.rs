//! An mLSTM block between its two big products, in one node of libtorch's graph.
//!
//! ```text
//! (a, z) = up          c = SiLU(conv(a))          q, k = Wq c, Wk c     v = Wv a      gates = Mc c + Ma a + bias
//! out = (norm(mLSTM(q, k, v, gates))(1 + w) + skip ⊙ c) ⊙ SiLU(z)
//! ```
//! Why one node: a, c and z have several readers, and libtorch would add up their gradients in passes of their own and
//! cut and join `up` by copying. Here each kernel of the backward pass adds what came before it, and the gradients of
//! a and z are written into the two halves of one tensor.
//!
//! The gates are linear in q, k and v, which are linear in c and a: M `(2, 2 H, D)`, the product of both weights, is
//! made by the caller in fp32, where libtorch differentiates it.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};

use super::launch::{
    Division, Gated, InnerUpstream, InnerWeights, NormTarget, inner_backward, inner_forward, norm_backward,
    norm_forward,
};
use super::mlstm::{Cell, Gates};
use crate::KernelError;
use crate::gates::GateWeights;
use crate::shape::{dimensions, expect_shape};

const NAME: &str = "mlstm_inner (CUDA)";

/// Arguments of [`mlstm_inner`]: `up_BTF` bf16, the parameters fp32.
#[derive(Debug, Clone, Copy)]
pub struct InnerInput<'a> {
    /// The up-projection, `(B, T, 2 D)`: a, then z.
    pub up_BTF: &'a Tensor,
    /// `(D, 1, 4)`.
    pub conv_weight_D1W: &'a Tensor,
    /// `(D)`.
    pub conv_bias_D: &'a Tensor,
    /// Blocks of queries, `(D / 4, 4, 4)`.
    pub query_NOI: &'a Tensor,
    /// Blocks of keys.
    pub key_NOI: &'a Tensor,
    /// Blocks of values.
    pub value_NOI: &'a Tensor,
    /// M: what input gates and forget gates read of c and of a, `(2, 2 H, D)`.
    pub gate_weight_2GD: &'a Tensor,
    /// `(2 H)`.
    pub gate_bias_G: &'a Tensor,
    /// Weight of the head-wise norm, `(D)`.
    pub norm_weight_D: &'a Tensor,
    /// `(D)`.
    pub skip_D: &'a Tensor,
    /// Whether the cell's states between chunks and scores stay for the backward pass, which computes them again
    /// otherwise.
    pub keep: bool,
}

/// M and the gates' biases from the weights of gates and projections, in fp32 and differentiable: with G the gates'
/// weights on q, k and v, `Mc = Gq Wq + Gk Wk` and `Ma = Gv Wv`.
///
/// # Errors
/// [`KernelError`] when a shape does not fit.
pub fn gate_weights(
    weights: &GateWeights<'_>,
    [query_NOI, key_NOI, value_NOI]: [&Tensor; 3],
) -> Result<(Tensor, Tensor), KernelError> {
    let all_GF = Tensor::f_cat(&[weights.input_weight, weights.forget_weight], 0)?;
    let bias_G = Tensor::f_cat(&[weights.input_bias, weights.forget_bias], 0)?;
    let [gates, triple] = dimensions(NAME, "weights of the gates", &all_GF)?;
    let [blocks, ..] = dimensions::<3>(NAME, "query_NOI", query_NOI)?;
    expect_shape(NAME, "query_NOI", query_NOI, &[triple / 12, 4, 4])?;
    let all_G3NO = all_GF.f_view([gates, 3, blocks, 4])?;
    let through = |index: i64, weight_NOI: &Tensor| -> Result<Tensor, KernelError> {
        let part_NGO = all_G3NO.f_select(1, index)?.f_transpose(0, 1)?;
        Ok(part_NGO.f_bmm(weight_NOI)?.f_transpose(0, 1)?.f_reshape([gates, 4 * blocks])?)
    };
    let conv_GD = through(0, query_NOI)? + through(1, key_NOI)?;
    Ok((Tensor::f_stack(&[conv_GD, through(2, value_NOI)?], 0)?, bias_G))
}

/// Whether [`mlstm_inner`] has kernels for a block of this width: heads of a multiple of 8 up to 1024, at most 4 of
/// them, 4 taps, blocks of 4.
pub fn inner_fits(width: i64, heads: i64, taps: i64, block: i64) -> bool {
    let head = width / heads.max(1);
    (1..=4).contains(&heads)
        && head * heads == width
        && head % 8 == 0
        && head <= 1024
        && taps == 4
        && block == 4
}

/// What enters the down-projection, `(B, T, D)`, bf16. Gradients flow to all arguments.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the card fails.
pub fn mlstm_inner(input: &InnerInput<'_>, epsilon: f64) -> Result<Tensor, KernelError> {
    let [batch, time, double] = dimensions(NAME, "up_BTF", input.up_BTF)?;
    let width = double / 2;
    let [_, gates, _] = dimensions(NAME, "gate_weight_2GD", input.gate_weight_2GD)?;
    expect_shape(NAME, "gate_weight_2GD", input.gate_weight_2GD, &[2, gates, width])?;
    expect_shape(NAME, "gate_bias_G", input.gate_bias_G, &[gates])?;
    expect_shape(NAME, "skip_D", input.skip_D, &[width])?;
    let sizes = Sizes { batch, time, width, heads: gates / 2, epsilon, keep: input.keep };
    let up_NF = input.up_BTF.f_reshape([batch * time, double])?;
    let gate_weight = input.gate_weight_2GD.contiguous();
    let inputs = [
        &up_NF,
        input.conv_weight_D1W,
        input.conv_bias_D,
        input.query_NOI,
        input.key_NOI,
        input.value_NOI,
        &gate_weight,
        input.gate_bias_G,
        input.norm_weight_D,
        input.skip_D,
    ];
    let mut outputs = custom_function(
        NAME,
        &inputs.map(Some),
        |_| forward(&inputs, sizes),
        move |context| backward(context, sizes),
    )?;
    Ok(outputs.swap_remove(0).f_view([batch, time, width])?)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: i64,
    time: i64,
    width: i64,
    heads: i64,
    epsilon: f64,
    keep: bool,
}

impl Sizes {
    /// The halves of the up-projection, or of its gradient.
    fn halves(self, up_NF: &Tensor) -> Result<(Tensor, Tensor), BoxError> {
        Ok((up_NF.f_narrow(1, 0, self.width)?, up_NF.f_narrow(1, self.width, self.width)?))
    }

    fn by_head(self, tensor: &Tensor) -> Result<Tensor, BoxError> {
        Ok(tensor.f_view([self.batch, self.time, self.heads, self.width / self.heads])?)
    }

    fn cell<'a>(self, [query, key, value]: [&'a Tensor; 3], gates_NG: &Tensor) -> Result<Cell<'a>, BoxError> {
        let gates = Gates::together(gates_NG, self.time)?;
        Ok(Cell { query, key, value, gates, keep: self.keep })
    }

    fn rows_by_head(self, tensor: &Tensor) -> Result<Tensor, BoxError> {
        Ok(tensor.f_view([self.batch * self.time, self.heads, self.width / self.heads])?)
    }
}

/// The parameters among the arguments, in their order after `up`.
fn weights<'a>(conv: &'a Tensor, conv_bias: &'a Tensor, rest: [&'a Tensor; 5]) -> InnerWeights<'a> {
    let [query, key, value, gates, gate_bias] = rest;
    InnerWeights { conv, conv_bias, blocks: [query, key, value], gates, gate_bias }
}

fn forward(inputs: &[&Tensor; 10], sizes: Sizes) -> Result<Forward, BoxError> {
    let [up_NF, conv, conv_bias, query, key, value, gate_weight, gate_bias, norm_weight, skip] = *inputs;
    let (a_ND, z_ND) = sizes.halves(up_NF)?;
    let weights = weights(conv, conv_bias, [query, key, value, gate_weight, gate_bias]);
    let made = inner_forward(&a_ND, weights, sizes.batch)?;
    let (q, k, v) = (sizes.by_head(&made.query)?, sizes.by_head(&made.key)?, sizes.by_head(&made.value)?);
    let cell = sizes.cell([&q, &k, &v], &made.gates)?;
    let (h, kept) = cell.forward()?;
    let gated = Gated { skip, branch: &made.conv, gate: &z_ND };
    let (out_ND, statistics) =
        norm_forward(&sizes.rows_by_head(&h)?, norm_weight, Some(gated), sizes.epsilon)?;
    let mut saved: Vec<Tensor> = inputs.iter().map(|tensor| tensor.shallow_clone()).collect();
    saved.extend([made.conv, q, k, v, made.gates, h, kept, statistics]);
    Ok(Forward { outputs: vec![out_ND], saved })
}

fn backward(context: &Backward, sizes: Sizes) -> Result<Vec<Option<Tensor>>, BoxError> {
    let [up_NF, conv, conv_bias, query, key, value, gate_weight, gate_bias, norm_weight, skip, rest @ ..] =
        context.saved.as_slice()
    else {
        return Err(format!("{} saved tensors, expected 18", context.saved.len()).into());
    };
    let [conv_ND, q, k, v, gates_NG, h, kept, statistics] = rest else {
        return Err(format!("{} saved tensors, expected 18", context.saved.len()).into());
    };
    let Some(Some(gradient_ND)) = context.gradients.first() else {
        return Ok((0..10).map(|_| None).collect());
    };
    let gradient_ND = gradient_ND.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let (a_ND, z_ND) = sizes.halves(up_NF)?;
    let up_gradient = up_NF.f_empty_like()?;
    let (a_gradient, z_gradient) = sizes.halves(&up_gradient)?;

    let cell = sizes.cell([q, k, v], gates_NG)?;
    let gated = Gated { skip, branch: conv_ND, gate: &z_ND };
    let rows = sizes.rows_by_head(h)?;
    let (rest, inverse_denominator) = (cell.rest(kept)?, cell.inverse_denominator(kept)?);
    let division = Division { rest: &rest, inverse_denominator: &inverse_denominator };
    let target = NormTarget { gate: Some(&z_gradient), division: Some(division) };
    let norm = norm_backward((&rows, norm_weight, statistics), Some(gated), &gradient_ND, target)?;
    let (skip_gradient, by_skip_ND) = norm.skip_and_branch.ok_or("no gradient of the skip")?;

    let gate_gradient = gates_NG.f_empty_like()?;
    let targets = Gates::together(&gate_gradient, sizes.time)?;
    let [dq, dk, dv] = cell.backward(h, kept, &norm.h, norm.dots.as_ref(), targets)?;
    let flat = |tensor: &Tensor| tensor.f_view([sizes.batch * sizes.time, sizes.width]);
    let (dq, dk, dv) = (flat(&dq)?, flat(&dk)?, flat(&dv)?);
    let upstream = InnerUpstream { projected: [&dq, &dk, &dv], gates: &gate_gradient, added: &by_skip_ND };
    let weights = weights(conv, conv_bias, [query, key, value, gate_weight, gate_bias]);
    let inner = inner_backward(&a_ND, weights, sizes.batch, upstream, &a_gradient)?;
    let gate_bias_gradient = gate_gradient.f_sum_dim_intlist(0, false, None::<Kind>)?;
    let block = |index: i64| inner.blocks.f_select(0, index);
    Ok([
        up_gradient,
        inner.conv.shallow_clone(),
        inner.conv_bias.shallow_clone(),
        block(0)?,
        block(1)?,
        block(2)?,
        inner.gates.shallow_clone(),
        gate_bias_gradient,
        norm.weight,
        skip_gradient,
    ]
    .into_iter()
    .map(Some)
    .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    #[test]
    fn gates_of_c_and_a_are_those_of_q_k_and_v() {
        let (heads, width) = (2, 12);
        let blocks = [random(&[3, 4, 4]), random(&[3, 4, 4]), random(&[3, 4, 4])];
        let [input_weight, forget_weight] = [random(&[heads, 3 * width]), random(&[heads, 3 * width])];
        let [input_bias, forget_bias] = [random(&[heads]), random(&[heads])];
        let weights = GateWeights {
            input_weight: &input_weight,
            input_bias: &input_bias,
            forget_weight: &forget_weight,
            forget_bias: &forget_bias,
        };
        let (c, a) = (random(&[1, 5, width]), random(&[1, 5, width]));
        let project = |x: &Tensor, index: usize| crate::gates::block_linear(x, &blocks[index]).unwrap();
        let (q, k, v) = (project(&c, 0), project(&c, 1), project(&a, 2));
        let (i, f) = crate::gates::mlstm_gates(&q, &k, &v, &weights).unwrap();
        let (m, bias) = gate_weights(&weights, blocks.each_ref()).unwrap();
        let ours = c.matmul(&m.select(0, 0).tr()) + a.matmul(&m.select(0, 1).tr()) + bias;
        let difference = ours - Tensor::cat(&[i, f], -1);
        assert!(difference.abs().max().double_value(&[]) < 1e-10);
    }
}
