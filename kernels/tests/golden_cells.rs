//! Parity with the official package over the cells' golden vectors, in both precisions.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

mod common;

use common::{Golden, assert_close, golden_files, leaf};
use tch::{Kind, Tensor};
use xlstm_kernels::mlstm::{MlstmInput, MlstmKernel, MlstmOptions, mlstm};
use xlstm_kernels::slstm::{
    SlstmInput, SlstmKernel, SlstmLayout, SlstmOptions, canonical_bias, canonical_recurrent, slstm,
};

fn check_mlstm(name: &str, golden: &Golden, options: &MlstmOptions, kind: Kind, tolerance: f64) {
    // Golden tensors have heads before time, and a dimension of one behind the gates.
    let [q, k, v, i, f] = ["q", "k", "v", "i", "f"].map(|key| leaf(&golden[key].to_kind(kind)));
    let sequence = |tensor: &Tensor| tensor.transpose(1, 2);
    let gate = |tensor: &Tensor| tensor.squeeze_dim(-1).transpose(1, 2);
    let output = mlstm(
        &MlstmInput {
            q_BTHK: &sequence(&q),
            k_BTHK: &sequence(&k),
            v_BTHV: &sequence(&v),
            i_BTH: &gate(&i),
            f_BTH: &gate(&f),
            state: None,
            resets_BT: None,
        },
        options,
    )
    .unwrap();
    let h = sequence(&output.h_BTHV);
    (&h * golden["dh"].to_kind(kind)).sum(kind).backward();
    assert_close(&format!("{name} {options:?} {kind:?} h"), &h, &golden["h"], tolerance);
    for (key, tensor) in [("dq", &q), ("dk", &k), ("dv", &v), ("di", &i), ("df", &f)] {
        assert_close(&format!("{name} {options:?} {kind:?} {key}"), &tensor.grad(), &golden[key], tolerance);
    }
}

#[test]
fn golden_mlstm_cells() {
    for (name, golden) in golden_files("mlstm_cell") {
        for kernel in [MlstmKernel::Reference, MlstmKernel::Auto] {
            let options = MlstmOptions { kernel, ..MlstmOptions::default() };
            // The stored vectors agree with the formula to about 1e-6: their gates went through fp32 on the way.
            check_mlstm(&name, &golden, &options, Kind::Double, 5e-6);
            check_mlstm(&name, &golden, &options, Kind::Float, 1e-4);
        }
    }
}

fn check_slstm(name: &str, golden: &Golden, options: &SlstmOptions, kind: Kind, tolerance: f64) {
    let x = leaf(&golden["x"].to_kind(kind));
    let recurrent = leaf(&golden["param._recurrent_kernel_"].to_kind(kind));
    let bias = leaf(&golden["param._bias_"].to_kind(kind));
    let [batch, time, _] = <[i64; 3]>::try_from(x.size()).unwrap();
    let [heads, _, width] = <[i64; 3]>::try_from(recurrent.size()).unwrap();
    let output = slstm(
        &SlstmInput {
            x_BTGHE: &x.view([batch, time, 4, heads, width]),
            recurrent_HEGE: &canonical_recurrent(&recurrent, SlstmLayout::Vanilla).unwrap(),
            bias_GHE: &canonical_bias(&bias.view([-1]), heads, SlstmLayout::Vanilla).unwrap(),
            state: None,
            resets_BT: None,
        },
        options,
    )
    .unwrap();
    let y = output.y_BTHE.transpose(1, 2);
    (&y * golden["dy"].to_kind(kind)).sum(kind).backward();
    let what = |part: &str| format!("{name} {options:?} {kind:?} {part}");
    assert_close(&what("y"), &y, &golden["y"], tolerance);
    let state = &output.state;
    let parts = [&state.hidden, &state.cell, &state.normalizer, &state.maximum];
    let found = Tensor::stack(&parts, 0).reshape(golden["state"].size());
    assert_close(&what("state"), &found, &golden["state"], tolerance);
    assert_close(&what("dx"), &x.grad(), &golden["dx"], tolerance);
    let gradients = [("_recurrent_kernel_", &recurrent), ("_bias_", &bias)];
    for (parameter, tensor) in gradients {
        assert_close(&what(parameter), &tensor.grad(), &golden[&format!("grad.{parameter}")], tolerance);
    }
}

#[test]
fn golden_slstm_cells() {
    for (name, golden) in golden_files("slstm_cell") {
        for kernel in [SlstmKernel::Reference, SlstmKernel::Auto] {
            let options = SlstmOptions { kernel, ..SlstmOptions::default() };
            // The vectors themselves were computed in fp32 where they are stored so.
            let exact = if golden["y"].kind() == Kind::Double { 1e-9 } else { 1e-5 };
            check_slstm(&name, &golden, &options, Kind::Double, exact);
            check_slstm(&name, &golden, &options, Kind::Float, 1e-4);
        }
    }
}
