//! In float32: what stands around the cell, and the cell over sequences of a single block.

use tch::{Device, Tensor};

use super::inputs::{EPSILON, drawn_resets, normal};
use super::{Check, PRECISE, Subject, plain};
use crate::conv::{ConvInput, causal_conv_silu};
use crate::{KernelError, cuda, gates};

/// What stands around the cell in float32: convolution, projections with gates, norm with skip and gate, in one chain.
pub(super) fn float32_block_case(
    device: Device,
    (batch, time, heads, head): (i64, i64, i64, i64),
) -> Result<Check, KernelError> {
    let width = heads * head;
    let chain = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let halves = x[0].f_chunk(2, -1)?;
        let (a, z) = (&halves[0], &halves[1]);
        let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
        let input = ConvInput { x_BTD: a, weight_D1W, bias_D, state: None, resets_BT: None };
        let c = causal_conv_silu(&input)?.y_BTD;
        let projections = crate::projections::mlstm_projections(&crate::projections::ProjectionsInput {
            c_BTD: &c,
            a_BTD: a,
            blocks_NOI: [&x[3], &x[4], &x[5]],
            gates: gates::GateWeights {
                input_weight: &x[6],
                input_bias: &x[7],
                forget_weight: &x[8],
                forget_bias: &x[9],
            },
        })?;
        let [q, k, v] = projections.qkv_BTD;
        let h = (q * k + v).f_view([batch, time, heads, head])?;
        let y = gates::mlstm_output(
            &gates::MlstmOutputInput {
                h_BTHE: &h,
                norm_weight_D: &x[10],
                skip_D: &x[11],
                conv_BTD: &c,
                z_BTD: z,
            },
            EPSILON,
        )?;
        Ok(vec![y, projections.i_BTH, projections.f_BTH])
    };
    let block = || normal(&[width / 4, 4, 4], device) * 0.5;
    let gate = || normal(&[heads, 3 * width], device) * 0.05;
    let bias = || normal(&[heads], device);
    let subject = Subject {
        kernel: "around the cell float32",
        case: format!("{batch}x{time}x{heads}x{head}"),
        inputs: vec![
            ("up", normal(&[batch, time, 2 * width], device)),
            ("taps", normal(&[width, 1, 4], device) * 0.5),
            ("bias", normal(&[width], device) * 0.5),
            ("query blocks", block()),
            ("key blocks", block()),
            ("value blocks", block()),
            ("input gate weight", gate()),
            ("input gate bias", bias()),
            ("forget gate weight", gate()),
            ("forget gate bias", bias()),
            ("norm weight", normal(&[width], device) * 0.3),
            ("skip", normal(&[width], device)),
        ],
        outputs: &["y", "i", "f"],
        ours: &chain,
        libtorch: &|x| {
            // The same functions: in float64 there is no kernel, and float32 is asked of libtorch.
            let before = !cuda::enabled(device);
            cuda::use_only_libtorch(true);
            let result = chain(x);
            cuda::use_only_libtorch(before);
            result
        },
        rounding: PRECISE,
        mask: None,
    };
    subject.check()
}

/// Sequences of a single block of the short kernel, in float32: batch, tokens, heads, widths of keys and values.
pub(super) const SHORT: [(i64, i64, i64, [i64; 2], &str); 6] = [
    (3, 40, 4, [64, 64], "nowhere"),
    (5, 37, 4, [64, 32], "anywhere"),
    (2, 64, 2, [64, 64], "everywhere"),
    (2, 64, 1, [128, 128], "nowhere"),
    (2, 1, 1, [8, 16], "nowhere"),
    (64, 40, 4, [64, 64], "anywhere"),
];

pub(super) fn mlstm_short_case(
    device: Device,
    (batch, time, heads, [key, value], kind): (i64, i64, i64, [i64; 2], &str),
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let draw = |shape: &[i64]| normal(shape, device);
    let inputs = vec![
        ("q", draw(&[batch, time, heads, key]).abs()),
        ("k", draw(&[batch, time, heads, key]).abs()),
        ("v", draw(&[batch, time, heads, value])),
        ("i", draw(&[batch, time, heads])),
        ("f", draw(&[batch, time, heads]) + 3.0),
    ];
    let subject = Subject {
        kernel: "mlstm short",
        case: format!("{batch}x{time}x{heads}, {key} by {value}, anew {kind}"),
        inputs,
        outputs: &["h"],
        ours: &|x| {
            let input = crate::mlstm::MlstmInput {
                q_BTHK: &x[0],
                k_BTHK: &x[1],
                v_BTHV: &x[2],
                i_BTH: &x[3],
                f_BTH: &x[4],
                state: None,
                resets_BT: (kind != "nowhere").then_some(&resets),
            };
            Ok(vec![crate::mlstm::mlstm_hidden(&input, &crate::mlstm::MlstmOptions::default())?])
        },
        libtorch: &|x| {
            let [h, ..] = plain::mlstm_by_documents([&x[0], &x[1], &x[2], &x[3], &x[4]], None, &flags);
            Ok(vec![h])
        },
        rounding: PRECISE,
        mask: None,
    };
    subject.check()
}
