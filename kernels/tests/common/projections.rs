//! Queries, keys, values and gates against their definition.

use super::{assert_close, leaf, random};
use tch::{Kind, Tensor};
use xlstm_kernels::gates::GateWeights;
use xlstm_kernels::projections::{ProjectionsInput, mlstm_projections};

const NAMES: [&str; 9] = ["up", "query", "key", "value", "c", "i weight", "i bias", "f weight", "f bias"];

/// All results and all gradients, in fp64 and fp32, of `[batch, time]` steps; values come from half of a projection.
pub fn agree(seed: i64, [batch, time]: [i64; 2], width: i64, heads: i64) {
    let sizes: [&[i64]; 9] = [
        &[batch, time, 2 * width],
        &[width / 4, 4, 4],
        &[width / 4, 4, 4],
        &[width / 4, 4, 4],
        &[batch, time, width],
        &[heads, 3 * width],
        &[heads],
        &[heads, 3 * width],
        &[heads],
    ];
    let values: Vec<Tensor> = sizes
        .iter()
        .enumerate()
        .map(|(index, size)| random(seed * 16 + index as i64, size, Kind::Double))
        .collect();
    let weights: Vec<Tensor> = [width, width, width, heads, heads]
        .iter()
        .enumerate()
        .map(|(index, &width)| random(seed * 16 + 9 + index as i64, &[batch, time, width], Kind::Double))
        .collect();
    let exact: Vec<Tensor> = values.iter().map(leaf).collect();
    let expected = defined(&exact);
    total(&expected, &weights).backward();
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 3e-6)] {
        let leaves: Vec<Tensor> = values.iter().map(|tensor| leaf(&tensor.to_kind(kind))).collect();
        let found = computed(&leaves);
        total(&found, &weights).backward();
        let what = format!("{batch} x {time} x {width}, {heads} heads, {kind:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(&what, found, expected, tolerance);
        }
        for ((name, found), expected) in NAMES.iter().zip(&leaves).zip(&exact) {
            assert_close(&format!("{what}: gradient of {name}"), &found.grad(), &expected.grad(), tolerance);
        }
    }
}

/// By the function in question.
pub fn computed(leaves: &[Tensor]) -> Vec<Tensor> {
    let [up, query, key, value, c, input_weight, input_bias, forget_weight, forget_bias] = leaves else {
        panic!("9 tensors")
    };
    let halves = up.chunk(2, -1);
    let gates = GateWeights { input_weight, input_bias, forget_weight, forget_bias };
    let input = ProjectionsInput { c_BTD: c, a_BTD: &halves[0], blocks_NOI: [query, key, value], gates };
    let made = mlstm_projections(&input).unwrap();
    made.qkv_BTD.into_iter().chain([made.i_BTH, made.f_BTH]).collect()
}

fn defined(leaves: &[Tensor]) -> Vec<Tensor> {
    let a = &leaves[0].chunk(2, -1)[0];
    let blocks = |x: &Tensor, weight: &Tensor| {
        let (size, count) = (x.size(), weight.size()[0]);
        let parts = [x.reshape([size[0], size[1], count, 4]), weight.shallow_clone()];
        Tensor::einsum("btni,noi->btno", &parts, None::<i64>).reshape(size.as_slice())
    };
    let c = &leaves[4];
    let qkv = [blocks(c, &leaves[1]), blocks(c, &leaves[2]), blocks(a, &leaves[3])];
    let joined = Tensor::cat(&qkv, -1);
    let i = joined.linear(&leaves[5], Some(&leaves[6]));
    let f = joined.linear(&leaves[7], Some(&leaves[8]));
    qkv.into_iter().chain([i, f]).collect()
}

fn total(results: &[Tensor], weights: &[Tensor]) -> Tensor {
    let parts = results.iter().zip(weights).map(|(result, weight)| (result * weight).sum(Kind::Double));
    parts.reduce(|a, b| a + b).unwrap()
}
