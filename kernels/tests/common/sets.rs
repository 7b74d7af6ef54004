//! All kernels once, with the instruction set limited: the versions that this machine would not choose.

use super::mlstm::{Case, Shape, chunkwise, compare, reference};
use super::projections;
use super::{assert_close, leaf, random, random_classes};
use tch::{Kind, Tensor};
use xlstm_kernels::conv::{ConvInput, causal_conv_silu};
use xlstm_kernels::cpu::{InstructionSet, instruction_set, limit_instruction_set};
use xlstm_kernels::cross_entropy::{CrossEntropyOptions, projected_cross_entropy};
use xlstm_kernels::gates::block_linear;
use xlstm_kernels::linear::linear;
use xlstm_kernels::linear_attention::{
    LinearAttentionInput, LinearAttentionKernel, LinearAttentionOptions, LogDecay, linear_attention,
};
use xlstm_kernels::scan::{
    LinearScanInput, ScanKernel, SelectiveScanInput, WkvInput, linear_scan, selective_scan, wkv,
};
use xlstm_kernels::slstm::{SlstmInput, SlstmKernel, SlstmOptions, slstm};

/// Keep to `set`, check that no `forbidden` one is chosen, and compare every kernel with plain libtorch.
pub fn check(set: InstructionSet, forbidden: &str) {
    assert!(limit_instruction_set(set));
    assert!(!instruction_set().starts_with(forbidden), "{}", instruction_set());
    let shape = Shape { batch: 2, time: 75, heads: 2, key: 20, value: 12 };
    let case = Case::new(1, shape, 1.0, true).with_resets(0.05, 2);
    let expected = case.run(reference(), Kind::Double);
    compare("mlstm fp64", &case.run(chunkwise(32), Kind::Double), &expected, 1e-10);
    compare("mlstm fp32", &case.run(chunkwise(32), Kind::Float), &expected, 1e-4);
    slstm_agrees();
    products_agree();
    pointwise_agrees();
    projections::agree(3, [2, 37], 80, 4);
    other_cells_agree();
}

fn other_cells_agree() {
    let [q, k, v, g] = [1, 2, 3, 4].map(|seed| random(seed, &[2, 21, 2, 19], Kind::Float));
    let (decay, log_decay) = (g.sigmoid(), g.log_sigmoid());
    let attend = |kernel| {
        let input = LinearAttentionInput {
            q_BTHK: &q,
            k_BTHK: &k,
            v_BTHV: &v,
            log_decay: LogDecay::Token(&log_decay),
            bonus_HK: None,
            scale: 1.0,
            state_BHKV: None,
            resets_BT: None,
        };
        let options = LinearAttentionOptions { kernel, chunk: None };
        linear_attention(&input, &options).unwrap().o_BTHV
    };
    let expected = attend(LinearAttentionKernel::Reference);
    assert_close("linear attention", &attend(LinearAttentionKernel::Fused), &expected, 1e-5);
    let flat = |tensor: &Tensor| tensor.view([2, 21, 38]);
    let (a, x, k, v) = (flat(&decay), flat(&q), flat(&k), flat(&v));
    let (a_DN, w) = (-random(5, &[38, 3], Kind::Float).exp(), random(6, &[38], Kind::Float));
    let [b, c] = [7, 8].map(|seed| random(seed, &[2, 21, 3], Kind::Float));
    let scans = |kernel: ScanKernel| {
        let (state_BD, state_BDN, resets_BT) = (None, None, None);
        let linear = LinearScanInput { decay_BTD: &a, x_BTD: &x, state_BD, resets_BT };
        let selective = SelectiveScanInput {
            u_BTD: &x,
            step_BTD: &a,
            a_DN: &a_DN,
            write_BTN: &b,
            read_BTN: &c,
            state_BDN,
            resets_BT,
        };
        let mean = WkvInput { decay_D: &w, bonus_D: &w, k_BTD: &k, v_BTD: &v, state: None, resets_BT };
        [
            linear_scan(&linear, kernel).unwrap().h_BTD,
            selective_scan(&selective, kernel).unwrap().y_BTD,
            wkv(&mean, kernel).unwrap().y_BTD,
        ]
    };
    for (found, expected) in scans(ScanKernel::Fused).iter().zip(&scans(ScanKernel::Reference)) {
        assert_close("scan", found, expected, 1e-5);
    }
}

fn slstm_agrees() {
    let x = random(1, &[3, 20, 4, 2, 19], Kind::Float);
    let r = random(2, &[2, 19, 4, 19], Kind::Float) * 0.2;
    let b = random(3, &[4, 2, 19], Kind::Float);
    let run = |kernel: SlstmKernel, kind: Kind| {
        let leaves: Vec<Tensor> = [&x, &r, &b].map(|tensor| leaf(&tensor.to_kind(kind))).into();
        let input = SlstmInput {
            x_BTGHE: &leaves[0],
            recurrent_HEGE: &leaves[1],
            bias_GHE: &leaves[2],
            state: None,
            resets_BT: None,
        };
        let output = slstm(&input, &SlstmOptions { kernel, ..SlstmOptions::default() }).unwrap();
        output.y_BTHE.sin().sum(kind).backward();
        (output.y_BTHE, leaves)
    };
    let (expected, exact) = run(SlstmKernel::Reference, Kind::Double);
    let (found, leaves) = run(SlstmKernel::Fused, Kind::Float);
    assert_close("slstm y", &found, &expected, 1e-5);
    for (found, expected) in leaves.iter().zip(&exact) {
        assert_close("slstm gradient", &found.grad(), &expected.grad(), 1e-4);
    }
}

fn products_agree() {
    let (x, w) = (leaf(&random(4, &[70, 50], Kind::Float)), leaf(&random(5, &[45, 50], Kind::Float)));
    let y = linear(&x, &w, None).unwrap();
    assert_close("linear", &y, &x.matmul(&w.tr()), 3e-6);
    let targets = random_classes(6, 70, 45);
    let options = CrossEntropyOptions { chunk_rows: Some(32), ..CrossEntropyOptions::default() };
    projected_cross_entropy(&x, &w, &targets, &options).unwrap().loss.backward();
    let (x0, w0) = (leaf(&x), leaf(&w));
    x0.matmul(&w0.tr()).cross_entropy_for_logits(&targets).backward();
    assert_close("cross-entropy, hidden", &x.grad(), &x0.grad(), 1e-5);
    assert_close("cross-entropy, weight", &w.grad(), &w0.grad(), 1e-5);
}

fn pointwise_agrees() {
    let x = random(7, &[2, 11, 36], Kind::Float);
    let (w, b) = (random(8, &[36, 1, 4], Kind::Float), random(9, &[36], Kind::Float));
    let input = ConvInput { x_BTD: &x, weight_D1W: &w, bias_D: Some(&b), state: None, resets_BT: None };
    let y = causal_conv_silu(&input).unwrap().y_BTD;
    let plain = x.transpose(1, 2).conv1d(&w, Some(&b), 1, 3, 1, 36).narrow(2, 0, 11).transpose(1, 2).silu();
    assert_close("convolution", &y, &plain, 1e-5);
    let blocks = random(10, &[9, 4, 4], Kind::Float);
    let plain =
        Tensor::einsum("btni,noi->btno", &[x.view([2, 11, 9, 4]), blocks.shallow_clone()], None::<i64>);
    assert_close("blocks", &block_linear(&x, &blocks).unwrap(), &plain.reshape([2, 11, 36]), 1e-5);
}
