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
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::{Named as _, Output};
use xlstm_bridge::{BoxError, named_tensors};

use super::MAX_HEAD;
use super::launch::{
    Boundaries, Division, Gated, InnerTarget, InnerUpstream, InnerWeights, NormTarget, inner_backward,
    inner_forward, norm_backward, norm_forward,
};
use super::mlstm::{Cell, CellOutput, CellUpstream, Gates};
use crate::KernelError;
use crate::gates::GateWeights;
use crate::mlstm::MlstmState;
use crate::shape::{dimensions, expect_resets, expect_shape};

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
    /// Tokens before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
    /// What stands before the first token.
    pub state: Option<&'a InnerState>,
    /// Whether the state after the last token is wanted.
    pub with_state: bool,
}

/// What an mLSTM block remembers.
#[derive(Debug)]
pub struct InnerState {
    /// The last three inputs of the convolution, oldest first, `(B, 3, D)`, bf16.
    pub window: Tensor,
    /// The cell's, fp32.
    pub cell: MlstmState,
}

/// Of [`mlstm_inner`].
#[derive(Debug)]
pub struct InnerOutput {
    /// What enters the down-projection, `(B, T, D)`, bf16.
    pub y_BTD: Tensor,
    /// The state after the last token, where it was asked for. No gradient flows back from it.
    pub state: Option<InnerState>,
}

named_tensors! {
    struct Inputs<T> {
        up: T,
        conv: T,
        conv_bias: T,
        query: T,
        key: T,
        value: T,
        gates: T,
        gate_bias: T,
        norm: T,
        skip: T,
    }

    struct Saved {
        inputs: Inputs<Tensor>,
        branch: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        hidden: Tensor,
        bytes: Tensor,
        statistics: Tensor,
        resets: Option<Tensor>,
        window: Option<Tensor>,
        matrix: Option<Tensor>,
        normalizer: Option<Tensor>,
        maximum: Option<Tensor>,
    }
}

impl Saved {
    fn initial(&self) -> Option<MlstmState> {
        let [matrix, normalizer, maximum] = [&self.matrix, &self.normalizer, &self.maximum]
            .map(|tensor| tensor.as_ref().map(Tensor::shallow_clone));
        Some(MlstmState { matrix: matrix?, normalizer: normalizer?, maximum: maximum? })
    }

    fn boundaries(&self) -> Boundaries<'_> {
        Boundaries { resets: self.resets.as_ref(), window: self.window.as_ref() }
    }
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

/// Whether [`mlstm_inner`] has kernels for a block of this width: heads of a multiple of 8 up to 1280, at most 4 of
/// them, 4 taps, blocks of 4.
pub fn inner_fits(width: i64, heads: i64, taps: i64, block: i64) -> bool {
    let head = width / heads.max(1);
    (1..=4).contains(&heads)
        && head * heads == width
        && head % 8 == 0
        && head <= MAX_HEAD
        && taps == 4
        && block == 4
}

/// What enters the down-projection. Gradients flow to all tensors but the states: what stands before the first token is a
/// number to this pass, as in truncated backpropagation.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, or the GPU fails.
pub fn mlstm_inner(input: &InnerInput<'_>, epsilon: f64) -> Result<InnerOutput, KernelError> {
    let [batch, time, double] = dimensions(NAME, "up_BTF", input.up_BTF)?;
    let width = double / 2;
    let [_, gates, _] = dimensions(NAME, "gate_weight_2GD", input.gate_weight_2GD)?;
    expect_shape(NAME, "gate_weight_2GD", input.gate_weight_2GD, &[2, gates, width])?;
    expect_shape(NAME, "gate_bias_G", input.gate_bias_G, &[gates])?;
    expect_shape(NAME, "skip_D", input.skip_D, &[width])?;
    expect_resets(NAME, input.resets_BT, input.up_BTF, [batch, time])?;
    let sizes = Sizes { batch, time, width, heads: gates / 2, epsilon, keep: input.keep };
    let up_NF = input.up_BTF.f_reshape([batch * time, double])?;
    let gate_weight = input.gate_weight_2GD.contiguous();
    let past = Past::of(input, sizes)?;
    let inputs = Inputs {
        up: &up_NF,
        conv: input.conv_weight_D1W,
        conv_bias: input.conv_bias_D,
        query: input.query_NOI,
        key: input.key_NOI,
        value: input.value_NOI,
        gates: &gate_weight,
        gate_bias: input.gate_bias_G,
        norm: input.norm_weight_D,
        skip: input.skip_D,
    };
    let mut last = None;
    let Output { y } = node(
        NAME,
        inputs.map(Some),
        |_| {
            let (y, state, saved) = forward(inputs, past, sizes, input.with_state)?;
            last = state;
            Ok((Output { y }, saved))
        },
        move |saved, upstream: Output<Option<Tensor>>, _| backward(&saved, &upstream.gradient()?, sizes),
    )?;
    let state = match last {
        Some(cell) => Some(InnerState { window: next_window(input, sizes)?, cell }),
        None => None,
    };
    Ok(InnerOutput { y_BTD: y.f_view([batch, time, width])?, state })
}

/// The last three inputs of the convolution, zeros before a reset: the state for the next call.
fn next_window(input: &InnerInput<'_>, sizes: Sizes) -> Result<Tensor, KernelError> {
    let a_BTD = input.up_BTF.detach().f_narrow(2, 0, sizes.width)?;
    Ok(crate::conv::last_inputs(&crate::conv::ConvInput {
        x_BTD: &a_BTD,
        weight_D1W: input.conv_weight_D1W,
        bias_D: None,
        state: input.state.map(|state| &state.window),
        resets_BT: input.resets_BT,
    })?
    .f_contiguous()?)
}

/// What stands before the tokens, dense and checked.
struct Past {
    resets: Option<Tensor>,
    window: Option<Tensor>,
    cell: Option<MlstmState>,
}

impl Past {
    fn of(input: &InnerInput<'_>, sizes: Sizes) -> Result<Self, KernelError> {
        let Sizes { batch, width, heads, .. } = sizes;
        let head = width / heads.max(1);
        let resets = input.resets_BT.map(Tensor::contiguous);
        let Some(InnerState { window, cell }) = input.state else {
            return Ok(Self { resets, window: None, cell: None });
        };
        expect_shape(NAME, "state.window", window, &[batch, 3, width])?;
        expect_shape(NAME, "state.cell.matrix", &cell.matrix, &[batch, heads, head, head])?;
        expect_shape(NAME, "state.cell.normalizer", &cell.normalizer, &[batch, heads, head])?;
        expect_shape(NAME, "state.cell.maximum", &cell.maximum, &[batch, heads])?;
        let dense = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float).contiguous();
        Ok(Self {
            resets,
            window: Some(window.detach().to_kind(Kind::BFloat16).contiguous()),
            cell: Some(MlstmState {
                matrix: dense(&cell.matrix),
                normalizer: dense(&cell.normalizer),
                maximum: dense(&cell.maximum),
            }),
        })
    }
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

    fn rows_by_head(self, tensor: &Tensor) -> Result<Tensor, BoxError> {
        Ok(tensor.f_view([self.batch * self.time, self.heads, self.width / self.heads])?)
    }
}

fn weights<'a>(inputs: &Inputs<&'a Tensor>) -> InnerWeights<'a> {
    InnerWeights {
        conv: inputs.conv,
        conv_bias: inputs.conv_bias,
        blocks: [inputs.query, inputs.key, inputs.value],
        gates: inputs.gates,
        gate_bias: inputs.gate_bias,
    }
}

/// What leaves, the cell's last state where it is wanted, and what the backward pass needs.
fn forward(
    inputs: Inputs<&Tensor>,
    past: Past,
    sizes: Sizes,
    with_state: bool,
) -> Result<(Tensor, Option<MlstmState>, Saved), BoxError> {
    let (a_ND, z_ND) = sizes.halves(inputs.up)?;
    let boundaries = Boundaries { resets: past.resets.as_ref(), window: past.window.as_ref() };
    let outputs = inner_forward(&a_ND, weights(&inputs), sizes.batch, boundaries)?;
    let (q, k) = (sizes.by_head(&outputs.query)?, sizes.by_head(&outputs.key)?);
    let v = sizes.by_head(&outputs.value)?;
    let cell = Cell {
        query: &q,
        key: &k,
        value: &v,
        gates: Gates::together(&outputs.gates, sizes.time)?,
        keep: sizes.keep,
        resets: past.resets.as_ref(),
        initial: past.cell.as_ref(),
    };
    let CellOutput { hidden, bytes, last } = cell.forward(with_state)?;
    let gated = Gated { skip: inputs.skip, branch: &outputs.conv, gate: &z_ND };
    let (out_ND, statistics) =
        norm_forward(&sizes.rows_by_head(&hidden)?, inputs.norm, Some(gated), sizes.epsilon)?;
    let (matrix, normalizer, maximum) = match past.cell {
        Some(MlstmState { matrix, normalizer, maximum }) => (Some(matrix), Some(normalizer), Some(maximum)),
        None => (None, None, None),
    };
    let saved = Saved {
        inputs: inputs.map(Tensor::shallow_clone),
        branch: outputs.conv,
        q,
        k,
        v,
        gates: outputs.gates,
        hidden,
        bytes,
        statistics,
        resets: past.resets,
        window: past.window,
        matrix,
        normalizer,
        maximum,
    };
    Ok((out_ND, last, saved))
}

fn backward(saved: &Saved, upstream_ND: &Tensor, sizes: Sizes) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let inputs = references(&saved.inputs);
    let upstream_ND = upstream_ND.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let (a_ND, z_ND) = sizes.halves(inputs.up)?;
    let up_gradient = inputs.up.f_empty_like()?;
    let (a_gradient, z_gradient) = sizes.halves(&up_gradient)?;

    let initial = saved.initial();
    let cell = Cell {
        query: &saved.q,
        key: &saved.k,
        value: &saved.v,
        gates: Gates::together(&saved.gates, sizes.time)?,
        keep: sizes.keep,
        resets: saved.resets.as_ref(),
        initial: initial.as_ref(),
    };
    let gated = Gated { skip: inputs.skip, branch: &saved.branch, gate: &z_ND };
    let rows = sizes.rows_by_head(&saved.hidden)?;
    let (rest, inverse_denominator) = (cell.rest(&saved.bytes)?, cell.inverse_denominator(&saved.bytes)?);
    let division = Division { rest: &rest, inverse_denominator: &inverse_denominator };
    let target = NormTarget { gate: Some(&z_gradient), division: Some(division) };
    let norm = norm_backward((&rows, inputs.norm, &saved.statistics), Some(gated), &upstream_ND, target)?;
    let (skip_gradient, by_skip_ND) = norm.skip_and_branch.ok_or("no gradient of the skip")?;

    let gate_gradient = saved.gates.f_empty_like()?;
    let gradients = cell.backward(&CellUpstream {
        output: &saved.hidden,
        bytes: &saved.bytes,
        hidden: &norm.h,
        dots: norm.dots.as_ref(),
        last: [None, None],
        gates: Gates::together(&gate_gradient, sizes.time)?,
    })?;
    let flat = |tensor: &Tensor| tensor.f_view([sizes.batch * sizes.time, sizes.width]);
    let (dq, dk, dv) = (flat(&gradients.query)?, flat(&gradients.key)?, flat(&gradients.value)?);
    let upstream = InnerUpstream { projected: [&dq, &dk, &dv], gates: &gate_gradient, added: &by_skip_ND };
    let target = InnerTarget { input: &a_gradient, window: None };
    let inner = inner_backward(&a_ND, weights(&inputs), sizes.batch, saved.boundaries(), upstream, target)?;
    let block = |index: i64| inner.blocks.f_select(0, index);
    Ok(Inputs {
        up: up_gradient,
        conv: inner.conv.shallow_clone(),
        conv_bias: inner.conv_bias.shallow_clone(),
        query: block(0)?,
        key: block(1)?,
        value: block(2)?,
        gates: inner.gates.shallow_clone(),
        gate_bias: gate_gradient.f_sum_dim_intlist(0, false, None::<Kind>)?,
        norm: norm.weight,
        skip: skip_gradient,
    }
    .map(Some))
}

fn references(inputs: &Inputs<Tensor>) -> Inputs<&Tensor> {
    let Inputs { up, conv, conv_bias, query, key, value, gates, gate_bias, norm, skip } = inputs;
    Inputs { up, conv, conv_bias, query, key, value, gates, gate_bias, norm, skip }
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
