//! Queries, keys, values and gates of an mLSTM block, fused and composed, against their definition.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::projections::{agree, computed};
use common::{leaf, random};
use tch::{Kind, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::gates::GateWeights;
use xlstm_kernels::projections::{ProjectionsInput, mlstm_projections};

#[test]
fn they_equal_their_definition_at_sizes_that_have_a_kernel() {
    for (seed, (steps, width, heads)) in [
        ([1, 1], 16, 1),
        ([1, 15], 48, 2),
        ([3, 37], 64, 4),
        ([2, 16], 80, 4),
        ([1, 129], 208, 2),
        ([5, 7], 16, 4),
    ]
    .into_iter()
    .enumerate()
    {
        agree(seed as i64, steps, width, heads);
    }
}

#[test]
fn they_equal_their_definition_at_sizes_that_have_none() {
    for (seed, (steps, width, heads)) in
        [([2, 9], 20, 4), ([1, 33], 48, 3), ([2, 5], 96, 8)].into_iter().enumerate()
    {
        agree(50 + seed as i64, steps, width, heads);
    }
}

#[test]
fn results_that_nobody_uses_have_no_gradient_to_give() {
    let sizes: [&[i64]; 9] =
        [&[1, 8, 64], &[8, 4, 4], &[8, 4, 4], &[8, 4, 4], &[1, 8, 32], &[2, 96], &[2], &[2, 96], &[2]];
    let leaves: Vec<Tensor> = sizes
        .iter()
        .enumerate()
        .map(|(index, size)| leaf(&random(index as i64, size, Kind::Float)))
        .collect();
    let made = computed(&leaves);
    made[1].sum(Kind::Float).backward();
    assert!(leaves[2].grad().abs().max().double_value(&[]) > 0.0);
    for unused in [0, 1, 3, 5, 7] {
        assert_eq!(leaves[unused].grad().abs().max().double_value(&[]), 0.0, "{unused}");
    }
}

#[test]
fn wrong_shapes_are_named() {
    let x = random(1, &[1, 4, 32], Kind::Float);
    let blocks = random(2, &[8, 4, 4], Kind::Float);
    let (weight, bias) = (random(3, &[2, 90], Kind::Float), random(4, &[2], Kind::Float));
    let gates =
        GateWeights { input_weight: &weight, input_bias: &bias, forget_weight: &weight, forget_bias: &bias };
    let input = ProjectionsInput { c_BTD: &x, a_BTD: &x, blocks_NOI: [&blocks; 3], gates };
    let error = mlstm_projections(&input).unwrap_err();
    assert!(matches!(error, KernelError::Shape { argument: "input_weight", .. }), "{error}");
    let short = x.narrow(1, 0, 3);
    let error = mlstm_projections(&ProjectionsInput { a_BTD: &short, ..input }).unwrap_err();
    assert!(matches!(error, KernelError::Shape { argument: "a_BTD", .. }), "{error}");
}
