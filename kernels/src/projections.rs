//! Queries, keys, values and gates of an mLSTM block with pre up-projection (paper fig. 11), all from two branches:
//! `q = W_q c`, `k = W_k c`, `v = W_v a` with block-diagonal maps, and `i~, f~ = W [q; k; v] + b`.
//!
//! On the CPU one pass over the rows computes all of it, and another all gradients (`cpu/projections.h`), where the
//! sizes allow; elsewhere it is [`block_linear`] and [`mlstm_gates`], one after the other.

use crate::KernelError;
use crate::cpu::{QkvGatesGradients, QkvGatesProblem, address, call, empty, evenly_spaced};
use crate::gates::{GateWeights, block_linear, by_input, mlstm_gates, of_blocks};
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, named_tensors};

/// Arguments of [`mlstm_projections`]. N blocks of O outputs and I inputs each, N·O = D.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionsInput<'a> {
    /// What the convolution gave, `(B, T, D)`: queries and keys are made of it.
    pub c_BTD: &'a Tensor,
    /// What went into the convolution, `(B, T, D)`: values are made of it.
    pub a_BTD: &'a Tensor,
    /// Weights of queries, keys and values, `(N, O, I)` each.
    pub blocks_NOI: [&'a Tensor; 3],
    /// Weights of the gates.
    pub gates: GateWeights<'a>,
}

/// Result of [`mlstm_projections`].
#[derive(Debug)]
pub struct Projections {
    /// Queries, keys and values, `(B, T, D)` each, in the type of the inputs.
    pub qkv_BTD: [Tensor; 3],
    /// Pre-activations of the input gate, `(B, T, H)`, in the computing type.
    pub i_BTH: Tensor,
    /// Pre-activations of the forget gate, likewise.
    pub f_BTH: Tensor,
}

/// Queries, keys, values and gates. Gradients flow to all inputs.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn mlstm_projections(input: &ProjectionsInput<'_>) -> Result<Projections, KernelError> {
    const NAME: &str = "mlstm_projections";
    let [batch, time, width] = dimensions(NAME, "c_BTD", input.c_BTD)?;
    expect_shape(NAME, "a_BTD", input.a_BTD, &[batch, time, width])?;
    expect_device(NAME, "a_BTD", input.a_BTD, input.c_BTD)?;
    if fits(input, width) {
        return fused(input, width);
    }
    let of_four = input.blocks_NOI.iter().all(|blocks| blocks.size() == [width / 4, 4, 4]);
    if of_four && crate::cuda::float32_fits(&[input.c_BTD, input.a_BTD, input.gates.input_weight], width) {
        return on_gpu(input, width);
    }
    let [query, key, value] = input.blocks_NOI;
    let q_BTD = block_linear(input.c_BTD, query)?;
    let k_BTD = block_linear(input.c_BTD, key)?;
    let v_BTD = block_linear(input.a_BTD, value)?;
    let (i_BTH, f_BTH) = mlstm_gates(&q_BTD, &k_BTD, &v_BTD, &input.gates)?;
    Ok(Projections { qkv_BTD: [q_BTD, k_BTD, v_BTD], i_BTH, f_BTH })
}

/// In float32 on a GPU: the maps in one pass, the gates from c and a, with both weights multiplied first.
fn on_gpu(input: &ProjectionsInput<'_>, width: i64) -> Result<Projections, KernelError> {
    let qkv_BTD = crate::cuda::block_projections([input.c_BTD, input.a_BTD], input.blocks_NOI)?;
    let (weight_2GD, bias_G) = crate::cuda::gate_weights(&input.gates, input.blocks_NOI)?;
    let [batch, time, _] = dimensions::<3>("mlstm_projections", "c_BTD", input.c_BTD)?;
    let [_, gates, _] = dimensions::<3>("mlstm_projections", "gate weights", &weight_2GD)?;
    let rows = |x_BTD: &Tensor| x_BTD.f_reshape([batch * time, width]);
    let by_c = rows(input.c_BTD)?.f_linear(&weight_2GD.f_select(0, 0)?, Some(&bias_G))?;
    let by_a = rows(input.a_BTD)?.f_linear(&weight_2GD.f_select(0, 1)?, None::<&Tensor>)?;
    let sums_BTG = by_c.f_add(&by_a)?.f_view([batch, time, gates])?;
    let half = |index: i64| sums_BTG.f_narrow(-1, index * gates / 2, gates / 2);
    Ok(Projections { qkv_BTD, i_BTH: half(0)?, f_BTH: half(1)? })
}

/// Whether `cpu/projections.h` has a kernel for these sizes and types.
fn fits(input: &ProjectionsInput<'_>, width: i64) -> bool {
    let kind = input.c_BTD.kind();
    let weights = input.gates;
    let all =
        [input.a_BTD, weights.input_weight, weights.input_bias, weights.forget_weight, weights.forget_bias];
    input.c_BTD.device() == Device::Cpu
        && matches!(kind, Kind::Float | Kind::Double)
        && all.into_iter().chain(input.blocks_NOI).all(|tensor| tensor.kind() == kind)
        && input.blocks_NOI.iter().all(|blocks| blocks.size() == [width / 4, 4, 4])
        && width % 16 == 0
        && matches!(weights.input_bias.numel(), 1 | 2 | 4)
}

named_tensors! {
    struct Inputs<T> { c_BTD: T, a_BTD: T, query: T, key: T, value: T, gate_weight_GF: T, gate_bias_G: T }

    struct Outputs<T> { query: T, key: T, value: T, sums_BTG: T }

    /// The inputs with their blocks in the layout of the kernels ([`by_input`]), and the outputs.
    struct Saved { inputs: Inputs<Tensor>, outputs: Outputs<Tensor> }
}

fn fused(input: &ProjectionsInput<'_>, width: i64) -> Result<Projections, KernelError> {
    const NAME: &str = "mlstm_projections";
    let kind = computing_kind(NAME, "c_BTD", input.c_BTD)?;
    let weights = input.gates;
    let [heads] = dimensions(NAME, "input_bias", weights.input_bias)?;
    expect_shape(NAME, "input_weight", weights.input_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_weight", weights.forget_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_bias", weights.forget_bias, &[heads])?;
    for blocks_NOI in input.blocks_NOI {
        expect_device(NAME, "blocks_NOI", blocks_NOI, input.c_BTD)?;
    }
    let gate_weight_GF = Tensor::cat(&[weights.input_weight, weights.forget_weight], 0);
    let gate_bias_G = Tensor::cat(&[weights.input_bias, weights.forget_bias], 0);
    let [query, key, value] = input.blocks_NOI;
    let inputs = Inputs {
        c_BTD: input.c_BTD,
        a_BTD: input.a_BTD,
        query,
        key,
        value,
        gate_weight_GF: &gate_weight_GF,
        gate_bias_G: &gate_bias_G,
    };
    let outputs = node(NAME, inputs.map(Some), |_| Ok(forward(inputs, kind)), backward)?;
    let Outputs { query, key, value, sums_BTG } = outputs;
    let (i_BTH, f_BTH) = (sums_BTG.narrow(-1, 0, heads), sums_BTG.narrow(-1, heads, heads));
    Ok(Projections { qkv_BTD: [query, key, value], i_BTH, f_BTH })
}

fn forward(inputs: Inputs<&Tensor>, kind: Kind) -> (Outputs<Tensor>, Saved) {
    let size = inputs.c_BTD.size();
    let projected = || empty(&size, kind);
    let sums_BTG = empty(&[size[0], size[1], inputs.gate_bias_G.numel() as i64], kind);
    let outputs = Outputs { query: projected(), key: projected(), value: projected(), sums_BTG };
    let blocks = |weight_NOI: &Tensor| by_input(&weight_NOI.transpose(1, 2));
    let inputs = Inputs {
        c_BTD: inputs.c_BTD.contiguous(),
        a_BTD: evenly_spaced(inputs.a_BTD).0,
        query: blocks(inputs.query),
        key: blocks(inputs.key),
        value: blocks(inputs.value),
        gate_weight_GF: inputs.gate_weight_GF.contiguous(),
        gate_bias_G: inputs.gate_bias_G.contiguous(),
    };
    let saved = Saved { inputs, outputs: outputs.shallow_clone() };
    call!(kind, qkv_gates_forward_f32, qkv_gates_forward_f64, &problem(&saved));
    (outputs, saved)
}

impl Outputs<Tensor> {
    fn shallow_clone(&self) -> Self {
        let Self { query, key, value, sums_BTG } = self;
        Outputs { query, key, value, sums_BTG }.map(Tensor::shallow_clone)
    }
}

fn problem<T>(Saved { inputs, outputs }: &Saved) -> QkvGatesProblem<T> {
    let size = inputs.c_BTD.size();
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    QkvGatesProblem {
        rows: size[0] * size[1],
        width: size[2],
        gates: inputs.gate_bias_G.size()[0],
        a_row: evenly_spaced(&inputs.a_BTD).1,
        c: input(&inputs.c_BTD),
        // Rows of `a` may lie further apart than they are wide.
        a: inputs.a_BTD.data_ptr().cast::<T>().cast_const(),
        blocks: [&inputs.query, &inputs.key, &inputs.value].map(input),
        gate_weight: input(&inputs.gate_weight_GF),
        gate_bias: input(&inputs.gate_bias_G),
        qkv: [&outputs.query, &outputs.key, &outputs.value].map(address),
        sums: address(&outputs.sums_BTG),
    }
}

fn backward(
    saved: Saved,
    upstream: Outputs<Option<Tensor>>,
    _: Inputs<bool>,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let Saved { inputs, outputs } = &saved;
    let kind = inputs.c_BTD.kind();
    let dense = |gradient: Option<Tensor>, output: &Tensor| {
        gradient.map_or_else(|| output.zeros_like(), |gradient| gradient.contiguous())
    };
    let upstream = Outputs {
        query: dense(upstream.query, &outputs.query),
        key: dense(upstream.key, &outputs.key),
        value: dense(upstream.value, &outputs.value),
        sums_BTG: dense(upstream.sums_BTG, &outputs.sums_BTG),
    };
    // Each block transposed, from the kernels' layout and back to it.
    let transposed = [&inputs.query, &inputs.key, &inputs.value].map(|blocks| by_input(&of_blocks(blocks)));
    let like = |tensor: &Tensor| empty(&tensor.size(), kind);
    let results = Inputs {
        c_BTD: like(&inputs.c_BTD),
        a_BTD: like(&inputs.a_BTD),
        query: like(&inputs.query),
        key: like(&inputs.key),
        value: like(&inputs.value),
        gate_weight_GF: like(&inputs.gate_weight_GF),
        gate_bias_G: upstream.sums_BTG.sum_dim_intlist([0_i64, 1].as_slice(), false, kind),
    };
    call!(
        kind,
        qkv_gates_backward_f32,
        qkv_gates_backward_f64,
        &problem(&saved),
        &gradients(&upstream, &transposed, &results)
    );
    let [query, key, value] = [&results.query, &results.key, &results.value].map(of_blocks);
    Ok(Inputs { query, key, value, ..results }.map(Some))
}

fn gradients<T>(
    upstream: &Outputs<Tensor>,
    transposed: &[Tensor; 3],
    results: &Inputs<Tensor>,
) -> QkvGatesGradients<T> {
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    QkvGatesGradients {
        qkv: [&upstream.query, &upstream.key, &upstream.value].map(input),
        sums: input(&upstream.sums_BTG),
        transposed: transposed.each_ref().map(input),
        c: address(&results.c_BTD),
        a: address(&results.a_BTD),
        blocks: [&results.query, &results.key, &results.value].map(address),
        gate_weight: address(&results.gate_weight_GF),
    }
}
