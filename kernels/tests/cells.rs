//! The cells of the methods that xLSTM is compared with: golden vectors, versions against each other in fp64 and fp32,
//! states split anywhere, resets, odd lengths, fast decays and extreme keys.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

mod common;

use common::cells::{Cell, compare, resets};
use common::{Golden, assert_close, golden_files, leaf, random};
use tch::{Device, Kind, Tensor};
use xlstm_kernels::linear_attention::{
    LinearAttentionInput, LinearAttentionKernel, LinearAttentionOptions, LogDecay, linear_attention,
};
use xlstm_kernels::long_convolution::{LongConvolutionInput, long_convolution};
use xlstm_kernels::scan::{
    LinearScanInput, ScanKernel, SelectiveScanInput, WkvInput, WkvState, linear_scan, selective_scan, wkv,
};

const SCANS: [ScanKernel; 3] = [ScanKernel::Reference, ScanKernel::Composed, ScanKernel::Fused];

fn linear_attention_versions() -> Vec<LinearAttentionOptions> {
    let composed = [1, 8, 64, 256]
        .map(|chunk| LinearAttentionOptions { kernel: LinearAttentionKernel::Composed, chunk: Some(chunk) });
    let others = [LinearAttentionKernel::Fused, LinearAttentionKernel::Reference];
    let others = others.map(|kernel| LinearAttentionOptions { kernel, chunk: None });
    others.into_iter().chain(composed).collect()
}

// --- gated linear attention ----------------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Debug)]
enum Decays {
    Head,
    Key,
    Token,
}

/// q, k, v, log decay, state, and perhaps a bonus, in this order.
fn attend(
    leaves: &[Tensor],
    decays: Decays,
    scale: f64,
    resets_BT: Option<&Tensor>,
    options: &LinearAttentionOptions,
) -> Vec<Tensor> {
    let log_decay = match decays {
        Decays::Head => LogDecay::Head(&leaves[3]),
        Decays::Key => LogDecay::Key(&leaves[3]),
        Decays::Token => LogDecay::Token(&leaves[3]),
    };
    let input = LinearAttentionInput {
        q_BTHK: &leaves[0],
        k_BTHK: &leaves[1],
        v_BTHV: &leaves[2],
        log_decay,
        bonus_HK: leaves.get(5),
        scale,
        state_BHKV: leaves.get(4),
        resets_BT,
    };
    let output = linear_attention(&input, options).unwrap();
    vec![output.o_BTHV, output.state_BHKV]
}

/// Values of a size, with log decays of about `speed`.
fn attention_values(
    seed: i64,
    [batch, time, heads, key, value]: [i64; 5],
    decays: Decays,
    speed: f64,
) -> Vec<Tensor> {
    let values = |index: i64, size: &[i64]| random(seed * 10 + index, size, Kind::Double);
    let decay_size: Vec<i64> = match decays {
        Decays::Head => vec![heads],
        Decays::Key => vec![heads, key],
        Decays::Token => vec![batch, time, heads, key],
    };
    vec![
        values(0, &[batch, time, heads, key]),
        values(1, &[batch, time, heads, key]),
        values(2, &[batch, time, heads, value]),
        -(values(3, &decay_size) * 2.0).exp() * speed,
        values(4, &[batch, heads, key, value]),
        values(5, &[heads, key]),
    ]
}

#[test]
fn linear_attention_versions_agree() {
    let names = ["q", "k", "v", "log decay", "state", "bonus"];
    let reference = LinearAttentionOptions { kernel: LinearAttentionKernel::Reference, chunk: None };
    let sizes = [[2, 75, 2, 20, 36], [1, 1, 3, 5, 7], [3, 64, 1, 16, 8], [1, 130, 2, 40, 70]];
    let cases = [
        (Decays::Head, 0.05, false, true),
        (Decays::Key, 0.2, true, false),
        (Decays::Token, 0.1, false, false),
        (Decays::Token, 0.1, true, true),
        (Decays::Token, 30.0, false, true),
        (Decays::Token, 30.0, true, false),
    ];
    for (index, (decays, speed, bonus, with_resets)) in cases.into_iter().enumerate() {
        let size = sizes[index % sizes.len()];
        let mut values = attention_values(index as i64, size, decays, speed);
        values.truncate(if bonus { 6 } else { 5 });
        let borders = with_resets.then(|| resets(50 + index as i64, size[0], size[1]));
        let run = |options: LinearAttentionOptions, kind: Kind| {
            let run = |leaves: &[Tensor]| attend(leaves, decays, 0.3, borders.as_ref(), &options);
            Cell {
                names: &names[..values.len()],
                values: values.iter().map(Tensor::copy).collect(),
                run: &run,
            }
            .all(kind)
        };
        let expected = run(reference, Kind::Double);
        for options in linear_attention_versions() {
            let what = format!("{decays:?} {speed} bonus {bonus} {options:?}");
            compare(&what, &run(options, Kind::Double), &expected, 1e-9);
            compare(&what, &run(options, Kind::Float), &expected, 3e-4);
        }
    }
}

fn heads_last(tensor: &Tensor) -> Tensor {
    tensor.transpose(1, 2).contiguous()
}

/// A golden file of `(B, H, T, ·)` tensors, in fp32 by every version.
fn golden_attention(name: &str, golden: &Golden) {
    let bonus = golden.get("u").map(leaf);
    let retention = !golden.contains_key("g");
    let scale = if bonus.is_some() { 1.0 } else { 24_f64.powf(-0.5) };
    let constant = Tensor::from_slice(&[1.0 - 2f64.powi(-5), 1.0 - 2f64.powi(-6)]).log().to_kind(Kind::Float);
    let tolerance = if name.contains("fast") { 3e-4 } else { 1e-4 };
    for options in linear_attention_versions() {
        let mut leaves: Vec<Tensor> = ["q", "k", "v"].map(|key| leaf(&heads_last(&golden[key]))).into();
        leaves.push(if retention { constant.shallow_clone() } else { leaf(&heads_last(&golden["g"])) });
        let log_decay = if retention { LogDecay::Head(&leaves[3]) } else { LogDecay::Token(&leaves[3]) };
        let bonus = bonus.as_ref().map(leaf);
        let input = LinearAttentionInput {
            q_BTHK: &leaves[0],
            k_BTHK: &leaves[1],
            v_BTHV: &leaves[2],
            log_decay,
            bonus_HK: bonus.as_ref(),
            scale,
            state_BHKV: None,
            resets_BT: None,
        };
        let output = linear_attention(&input, &options).unwrap();
        let what = format!("{name} {options:?}");
        assert_close(&what, &heads_last(&output.o_BTHV), &golden["o"], 2e-5);
        assert_close(&what, &output.state_BHKV, &golden["state.S"], 2e-5);
        (output.o_BTHV * heads_last(&golden["do"])).sum(Kind::Float).backward();
        for (key, leaf) in ["dq", "dk", "dv", "dg"].iter().zip(&leaves) {
            if let Some(expected) = golden.get(*key) {
                assert_close(&format!("{what} {key}"), &heads_last(&leaf.grad()), expected, tolerance);
            }
        }
        if let Some(bonus) = bonus {
            assert_close(&format!("{what} du"), &bonus.grad(), &golden["du"], tolerance);
        }
    }
}

#[test]
fn golden_cells() {
    let mut seen = 0;
    for (name, golden) in golden_files("cell_") {
        seen += 1;
        match name.trim_end_matches(".safetensors").trim_start_matches("cell_") {
            "gla" | "gla_fast_decay" | "rwkv6" | "rwkv6_fast_decay" | "retention" => {
                golden_attention(&name, &golden);
            }
            "hgrn_scan" => golden_scan(&golden),
            "selective_scan" => golden_selective_scan(&golden),
            "wkv4" | "wkv4_extreme" => golden_wkv(&name, &golden),
            "long_conv" => golden_long_convolution(&golden),
            other => panic!("no test reads cell_{other}"),
        }
    }
    assert!(seen >= 5, "{seen} files");
}

#[test]
fn linear_attention_may_be_split_anywhere() {
    let values = attention_values(9, [2, 41, 2, 12, 10], Decays::Token, 0.5);
    let borders = resets(3, 2, 41);
    for options in linear_attention_versions() {
        let part = |start: i64, length: i64, state: &Tensor| {
            let at = |index: usize| values[index].narrow(1, start, length);
            let leaves = [at(0), at(1), at(2), at(3), state.shallow_clone(), values[5].shallow_clone()];
            attend(&leaves, Decays::Token, 1.0, Some(&borders.narrow(1, start, length)), &options)
        };
        let whole = part(0, 41, &values[4]);
        for split in [1, 7, 40] {
            let first = part(0, split, &values[4]);
            let second = part(split, 41 - split, &first[1]);
            let joined = Tensor::cat(&[&first[0], &second[0]], 1);
            assert_close(&format!("split at {split}, {options:?}"), &joined, &whole[0], 1e-11);
            assert_close("state", &second[1], &whole[1], 1e-11);
        }
    }
}

#[test]
fn bf16_is_computed_in_fp32_and_rounded_once() {
    let values = attention_values(4, [1, 33, 2, 16, 16], Decays::Token, 0.1);
    let bf16: Vec<Tensor> = values.iter().map(|value| value.to_kind(Kind::BFloat16)).collect();
    let rounded: Vec<Tensor> = bf16.iter().map(|value| value.to_kind(Kind::Float)).collect();
    let options = LinearAttentionOptions::default();
    let found = attend(&bf16, Decays::Token, 1.0, None, &options);
    let expected = attend(&rounded, Decays::Token, 1.0, None, &options);
    assert_eq!(found[0].kind(), Kind::BFloat16);
    assert!(found[0].equal(&expected[0].to_kind(Kind::BFloat16)));
    assert!(found[1].equal(&expected[1]));
}

// --- scans ---------------------------------------------------------------------------------------------------------

fn scan(leaves: &[Tensor], resets_BT: Option<&Tensor>, kernel: ScanKernel) -> Vec<Tensor> {
    let input = LinearScanInput {
        decay_BTD: &leaves[0].sigmoid(),
        x_BTD: &leaves[1],
        state_BD: leaves.get(2),
        resets_BT,
    };
    let output = linear_scan(&input, kernel).unwrap();
    vec![output.h_BTD, output.state_BD]
}

fn selective(leaves: &[Tensor], resets_BT: Option<&Tensor>, kernel: ScanKernel) -> Vec<Tensor> {
    let input = SelectiveScanInput {
        u_BTD: &leaves[0],
        step_BTD: &leaves[1].softplus(),
        a_DN: &-leaves[2].exp(),
        write_BTN: &leaves[3],
        read_BTN: &leaves[4],
        state_BDN: leaves.get(5),
        resets_BT,
    };
    let output = selective_scan(&input, kernel).unwrap();
    vec![output.y_BTD, output.state_BDN]
}

fn weighted_mean(leaves: &[Tensor], resets_BT: Option<&Tensor>, kernel: ScanKernel) -> Vec<Tensor> {
    let state = leaves.get(4).map(|numerator| WkvState {
        numerator: numerator.shallow_clone(),
        denominator: leaves[5].exp(),
        maximum: Tensor::full(numerator.size(), 0.5, (numerator.kind(), Device::Cpu)),
    });
    let input = WkvInput {
        decay_D: &leaves[0],
        bonus_D: &leaves[1],
        k_BTD: &leaves[2],
        v_BTD: &leaves[3],
        state: state.as_ref(),
        resets_BT,
    };
    let output = wkv(&input, kernel).unwrap();
    vec![output.y_BTD, output.state.numerator, output.state.denominator, output.state.maximum]
}

type Scan = fn(&[Tensor], Option<&Tensor>, ScanKernel) -> Vec<Tensor>;

/// A name, what computes it, the names of its inputs, and their shapes.
type ScanCase = (&'static str, Scan, &'static [&'static str], Vec<Vec<i64>>);

/// Every scan with the sizes of its arguments.
fn scans([batch, time, width]: [i64; 3]) -> [ScanCase; 3] {
    let sequence = vec![batch, time, width];
    let by_state = vec![batch, time, 5];
    [
        (
            "linear scan",
            scan,
            &["a", "x", "state"],
            vec![sequence.clone(), sequence.clone(), vec![batch, width]],
        ),
        (
            "selective scan",
            selective,
            &["u", "step", "A", "B", "C", "state"],
            vec![
                sequence.clone(),
                sequence.clone(),
                vec![width, 5],
                by_state.clone(),
                by_state,
                vec![batch, width, 5],
            ],
        ),
        (
            "wkv",
            weighted_mean,
            &["w", "u", "k", "v", "numerator", "denominator"],
            vec![
                vec![width],
                vec![width],
                sequence.clone(),
                sequence,
                vec![batch, width],
                vec![batch, width],
            ],
        ),
    ]
}

#[test]
fn scan_versions_agree() {
    let sizes = [[2, 131, 37], [1, 1, 3], [3, 64, 16], [1, 200, 65]];
    for (case, size) in sizes.into_iter().enumerate() {
        for (name, function, names, shapes) in scans(size) {
            for (spread, with_state, with_resets) in
                [(1.0, true, true), (1.0, false, false), (20.0, true, true)]
            {
                let seed = case as i64 * 100;
                let count =
                    if with_state { shapes.len() } else { shapes.len() - if name == "wkv" { 2 } else { 1 } };
                let mut values: Vec<Tensor> = (0..count)
                    .map(|index| random(seed + index as i64, &shapes[index], Kind::Double))
                    .collect();
                if name == "wkv" {
                    values[2] *= spread;
                }
                let borders = with_resets.then(|| resets(seed + 31, size[0], size[1]));
                let run = |kernel: ScanKernel, kind: Kind| {
                    let run = |leaves: &[Tensor]| function(leaves, borders.as_ref(), kernel);
                    let values = values.iter().map(Tensor::copy).collect();
                    Cell { names: &names[..count], values, run: &run }.all(kind)
                };
                let expected = run(ScanKernel::Reference, Kind::Double);
                for kernel in SCANS {
                    let what = format!("{name} {size:?} {spread} {kernel:?}");
                    compare(&what, &run(kernel, Kind::Double), &expected, 1e-9);
                    compare(&what, &run(kernel, Kind::Float), &expected, 3e-4);
                }
            }
        }
    }
}

#[test]
fn scans_may_be_split_anywhere() {
    for (name, function, _, shapes) in scans([2, 141, 21]) {
        let values: Vec<Tensor> =
            (0..).zip(&shapes).map(|(index, shape)| random(index, shape, Kind::Double)).collect();
        let borders = resets(3, 2, 141);
        for kernel in SCANS {
            let part = |start: i64, length: i64, states: &[Tensor]| {
                let stateless = shapes.len() - if name == "wkv" { 2 } else { 1 };
                let mut leaves: Vec<Tensor> = values[..stateless]
                    .iter()
                    .map(|value| if value.dim() == 3 { value.narrow(1, start, length) } else { value.copy() })
                    .collect();
                leaves.extend(states.iter().map(Tensor::shallow_clone));
                function(&leaves, Some(&borders.narrow(1, start, length)), kernel)
            };
            if name == "wkv" {
                continue;
            }
            let whole = part(0, 141, &[]);
            for split in [1, 64, 140] {
                let first = part(0, split, &[]);
                let second = part(split, 141 - split, &first[1..]);
                let joined = Tensor::cat(&[&first[0], &second[0]], 1);
                assert_close(&format!("{name} split at {split}, {kernel:?}"), &joined, &whole[0], 1e-11);
                assert_close("state", &second[1], &whole[1], 1e-11);
            }
        }
    }
}

#[test]
fn wkv_may_be_split_anywhere() {
    let (k, v) = (random(1, &[2, 141, 21], Kind::Double) * 30.0, random(2, &[2, 141, 21], Kind::Double));
    let (w, u) = (random(3, &[21], Kind::Double), random(4, &[21], Kind::Double));
    for kernel in SCANS {
        let part = |start: i64, length: i64, state: Option<&WkvState>| {
            let (k_BTD, v_BTD) = (&k.narrow(1, start, length), &v.narrow(1, start, length));
            wkv(&WkvInput { decay_D: &w, bonus_D: &u, k_BTD, v_BTD, state, resets_BT: None }, kernel).unwrap()
        };
        let whole = part(0, 141, None);
        for split in [1, 64, 140] {
            let first = part(0, split, None);
            let second = part(split, 141 - split, Some(&first.state));
            let joined = Tensor::cat(&[&first.y_BTD, &second.y_BTD], 1);
            assert_close(&format!("split at {split}, {kernel:?}"), &joined, &whole.y_BTD, 1e-11);
            assert_close("numerator", &second.state.numerator, &whole.state.numerator, 1e-11);
        }
    }
}

fn golden_scan(golden: &Golden) {
    for kernel in SCANS {
        let (f, x) = (leaf(&golden["f"]), leaf(&golden["x"]));
        let decay_BTD = f.exp();
        let input = LinearScanInput { decay_BTD: &decay_BTD, x_BTD: &x, state_BD: None, resets_BT: None };
        let output = linear_scan(&input, kernel).unwrap();
        assert_close("scan o", &output.h_BTD, &golden["o"], 2e-5);
        assert_close("scan state", &output.state_BD, &golden["state.S"], 2e-5);
        (output.h_BTD * &golden["do"]).sum(Kind::Float).backward();
        assert_close("scan df", &f.grad(), &golden["df"], 1e-4);
        assert_close("scan dx", &x.grad(), &golden["dx"], 1e-4);
    }
}

fn golden_selective_scan(golden: &Golden) {
    for kernel in SCANS {
        let keys = ["u", "delta", "A", "Bm", "Cm", "D", "delta_bias", "z"];
        let leaves = keys.map(|key| leaf(&golden[key]));
        let [u, delta, a, write, read, skip, bias, z] = &leaves;
        let input = SelectiveScanInput {
            u_BTD: u,
            step_BTD: &(delta + bias).softplus(),
            a_DN: a,
            write_BTN: write,
            read_BTN: read,
            state_BDN: None,
            resets_BT: None,
        };
        let output = selective_scan(&input, kernel).unwrap();
        let o = (output.y_BTD + u * skip) * z.silu();
        assert_close("selective scan o", &o, &golden["o"], 2e-5);
        assert_close("selective scan state", &output.state_BDN, &golden["state.S"], 2e-5);
        (o * &golden["do"]).sum(Kind::Float).backward();
        for (key, leaf) in keys.iter().zip(&leaves) {
            assert_close(&format!("{kernel:?} d{key}"), &leaf.grad(), &golden[&format!("d{key}")], 1e-4);
        }
    }
}

fn golden_wkv(name: &str, golden: &Golden) {
    // Keys of 100 are exponents that fp32 knows to 8e-6; the plain version is no better.
    let extreme = name.contains("extreme");
    let (output_tolerance, tolerance) = if extreme { (1e-4, 3e-4) } else { (2e-5, 1e-4) };
    // m has lost a little of its 8e-6 at every step.
    let state_tolerance = if extreme { 1e-3 } else { 1e-4 };
    for kernel in SCANS {
        let leaves = ["w", "u", "k", "v"].map(|key| leaf(&golden[key]));
        let [decay_D, bonus_D, k_BTD, v_BTD] = &leaves;
        let input = WkvInput { decay_D, bonus_D, k_BTD, v_BTD, state: None, resets_BT: None };
        let output = wkv(&input, kernel).unwrap();
        assert_close("wkv o", &output.y_BTD, &golden["o"], output_tolerance);
        // Any m with the same a·exp(m) is the same state.
        let to_theirs = (&output.state.maximum.to_kind(Kind::Double) - &golden["state.m"]).exp();
        assert_close("wkv a", &(output.state.numerator * &to_theirs), &golden["state.a"], state_tolerance);
        assert_close("wkv b", &(output.state.denominator * to_theirs), &golden["state.b"], state_tolerance);
        (output.y_BTD * &golden["do"]).sum(Kind::Float).backward();
        for (key, leaf) in ["dw", "du", "dk", "dv"].iter().zip(&leaves) {
            assert_close(&format!("{name} {kernel:?} {key}"), &leaf.grad(), &golden[*key], tolerance);
        }
    }
}

// --- long convolution ----------------------------------------------------------------------------------------------

fn golden_long_convolution(golden: &Golden) {
    let leaves = ["u", "k", "D"].map(|key| leaf(&golden[key]));
    let [u, filter_DL, skip] = &leaves;
    let input = LongConvolutionInput {
        u_BTD: &u.transpose(1, 2),
        filter_DL,
        skip_D: Some(skip),
        past_BPD: None,
        resets_BT: None,
    };
    let y = long_convolution(&input).unwrap().transpose(1, 2);
    assert_close("long convolution", &y, &golden["o"], 2e-5);
    (y * &golden["do"]).sum(Kind::Float).backward();
    for (key, leaf) in ["du", "dk", "dD"].iter().zip(&leaves) {
        assert_close(&format!("long convolution {key}"), &leaf.grad(), &golden[*key], 1e-4);
    }
}

#[test]
fn a_long_convolution_is_its_sum_with_inputs_before_and_borders_inside() {
    let (u, filter) = (random(1, &[2, 19, 3], Kind::Double), random(2, &[3, 30], Kind::Double));
    let (past, skip) = (random(3, &[2, 6, 3], Kind::Double), random(4, &[3], Kind::Double));
    let borders = resets(5, 2, 19);
    for (past_BPD, resets_BT) in
        [(None, None), (Some(&past), None), (None, Some(&borders)), (Some(&past), Some(&borders))]
    {
        let input =
            LongConvolutionInput { u_BTD: &u, filter_DL: &filter, skip_D: Some(&skip), past_BPD, resets_BT };
        let found = long_convolution(&input).unwrap();
        let before = past_BPD.map_or(0, |past| past.size()[1]);
        let all = past_BPD.map_or_else(|| u.copy(), |past| Tensor::cat(&[past, &u], 1));
        for (batch, time) in [(0, 0), (0, 18), (1, 7), (1, 18), (0, 11)] {
            let mut expected = u.get(batch).get(time) * &skip;
            for back in 0..=(time + before) {
                expected += all.get(batch).get(time + before - back) * filter.select(1, back);
                let at = time - back;
                if at >= 0 && resets_BT.is_some_and(|resets| resets.get(batch).int64_value(&[at]) != 0) {
                    break;
                }
            }
            assert_close(&format!("row {batch}, step {time}"), &found.get(batch).get(time), &expected, 1e-10);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (q, v) = (random(1, &[1, 3, 2, 4], Kind::Float), random(2, &[1, 3, 2, 6], Kind::Float));
    let short = random(3, &[2, 5], Kind::Float);
    let input = LinearAttentionInput {
        q_BTHK: &q,
        k_BTHK: &q,
        v_BTHV: &v,
        log_decay: LogDecay::Key(&short),
        bonus_HK: None,
        scale: 1.0,
        state_BHKV: None,
        resets_BT: None,
    };
    let error = linear_attention(&input, &LinearAttentionOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "linear_attention: log_decay has shape [2, 5], expected [2, 4]");
}
