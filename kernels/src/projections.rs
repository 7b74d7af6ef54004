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
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};

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
    let [query, key, value] = input.blocks_NOI;
    let q_BTD = block_linear(input.c_BTD, query)?;
    let k_BTD = block_linear(input.c_BTD, key)?;
    let v_BTD = block_linear(input.a_BTD, value)?;
    let (i_BTH, f_BTH) = mlstm_gates(&q_BTD, &k_BTD, &v_BTD, &input.gates)?;
    Ok(Projections { qkv_BTD: [q_BTD, k_BTD, v_BTD], i_BTH, f_BTH })
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
    let mut outputs = custom_function(
        NAME,
        &[input.c_BTD, input.a_BTD, query, key, value, &gate_weight_GF, &gate_bias_G].map(Some),
        |_| {
            let size = input.c_BTD.size();
            let made = [&size[..], &size[..], &size[..], &[size[0], size[1], 2 * heads]]
                .map(|size| empty(size, kind));
            let mut saved = vec![input.c_BTD.contiguous(), evenly_spaced(input.a_BTD).0];
            saved.extend(input.blocks_NOI.iter().map(|blocks_NOI| by_input(&blocks_NOI.transpose(1, 2))));
            saved.extend([gate_weight_GF.contiguous(), gate_bias_G.contiguous()]);
            saved.extend(made.iter().map(Tensor::shallow_clone));
            call!(kind, qkv_gates_forward_f32, qkv_gates_forward_f64, &problem(&saved));
            Ok(Forward { outputs: made.into(), saved })
        },
        backward,
    )?;
    let sums_BTG = outputs.pop().ok_or_else(|| incomplete(&outputs))?;
    let qkv_BTD = outputs.try_into().map_err(|outputs: Vec<Tensor>| incomplete(&outputs))?;
    let (i_BTH, f_BTH) = (sums_BTG.narrow(-1, 0, heads), sums_BTG.narrow(-1, heads, heads));
    Ok(Projections { qkv_BTD, i_BTH, f_BTH })
}

fn incomplete(outputs: &[Tensor]) -> xlstm_bridge::BridgeError {
    xlstm_bridge::BridgeError::Contract {
        name: "mlstm_projections",
        expected: "4 outputs".into(),
        found: outputs.len().to_string(),
    }
}

/// `saved`: c, a, three blocks in the kernels' layout, weight and bias of the gates, q, k, v, sums of the gates.
fn problem<T>(saved: &[Tensor]) -> QkvGatesProblem<T> {
    let size = saved[0].size();
    let input = |index: usize| saved[index].data_ptr().cast::<T>().cast_const();
    QkvGatesProblem {
        rows: size[0] * size[1],
        width: size[2],
        gates: saved[6].size()[0],
        a_row: evenly_spaced(&saved[1]).1,
        c: input(0),
        a: input(1),
        blocks: [input(2), input(3), input(4)],
        gate_weight: input(5),
        gate_bias: input(6),
        qkv: [7, 8, 9].map(|index| address(&saved[index])),
        sums: address(&saved[10]),
    }
}

fn backward(context: &Backward) -> Result<Vec<Option<Tensor>>, BoxError> {
    let saved = &context.saved;
    if saved.len() != 11 || context.gradients.len() != 4 {
        let (tensors, gradients) = (saved.len(), context.gradients.len());
        return Err(format!("{tensors} saved tensors and {gradients} gradients, expected 11 and 4").into());
    }
    let kind = saved[0].kind();
    let arriving: Vec<Tensor> = context
        .gradients
        .iter()
        .zip(&saved[7..])
        .map(|(gradient, output)| gradient.as_ref().map_or_else(|| output.zeros_like(), Tensor::contiguous))
        .collect();
    // The transpose of each block, from the kernels' layout and back to it.
    let turned: Vec<Tensor> = saved[2..5].iter().map(|blocks| by_input(&of_blocks(blocks))).collect();
    let (c_gradient, a_gradient) = (empty(&saved[0].size(), kind), empty(&saved[1].size(), kind));
    let weights: Vec<Tensor> = saved[2..6].iter().map(|tensor| empty(&tensor.size(), kind)).collect();
    call!(
        kind,
        qkv_gates_backward_f32,
        qkv_gates_backward_f64,
        &problem(saved),
        &gradients(&arriving, &turned, [&c_gradient, &a_gradient], &weights)
    );
    let mut made = vec![Some(c_gradient), Some(a_gradient)];
    made.extend(weights[..3].iter().map(|blocks| Some(of_blocks(blocks))));
    let bias_G = arriving[3].sum_dim_intlist([0_i64, 1].as_slice(), false, kind);
    made.extend([Some(weights[3].shallow_clone()), Some(bias_G)]);
    Ok(made)
}

fn gradients<T>(
    arriving: &[Tensor],
    turned: &[Tensor],
    [c, a]: [&Tensor; 2],
    weights: &[Tensor],
) -> QkvGatesGradients<T> {
    let three = |tensors: &[Tensor]| [0, 1, 2].map(|index| address::<T>(&tensors[index]));
    QkvGatesGradients {
        qkv: three(arriving).map(<*mut T>::cast_const),
        sums: address::<T>(&arriving[3]).cast_const(),
        turned: three(turned).map(<*mut T>::cast_const),
        c: address(c),
        a: address(a),
        blocks: three(weights),
        gate_weight: address(&weights[3]),
    }
}
