//! States in and out and documents that begin anew, in bf16 and in float32, with the other checks of float32.

use tch::{Device, Tensor};

use super::inputs::{drawn_resets, half, normal};
use super::single::{SHORT, float32_block_case, mlstm_short_case};
use super::{Check, PRECISE, ROUNDING, Subject, plain};
use crate::conv::ConvInput;
use crate::{KernelError, cuda};

/// batch, tokens, heads, head, where sequences begin anew. Chunks of these sizes are 128 (64) and 256 tokens.
const BOUNDARIES: [(i64, i64, i64, i64, &str); 6] = [
    (2, 300, 2, 64, "nowhere"),
    (2, 300, 2, 64, "everywhere"),
    (3, 300, 2, 64, "at the edges of chunks"),
    (4, 300, 2, 64, "anywhere"),
    (2, 700, 2, 384, "at the edges of chunks"),
    (2, 700, 2, 384, "anywhere"),
];

/// The same for the cell in float32.
const FLOAT32: [(i64, i64, i64, i64, &str); 7] = [
    (2, 1, 1, 8, "nowhere"),
    (3, 16, 4, 32, "anywhere"),
    (2, 300, 2, 64, "everywhere"),
    (3, 300, 2, 72, "at the edges of chunks"),
    (2, 700, 2, 384, "anywhere"),
    (1, 512, 1, 384, "nowhere"),
    (1, 130, 1, 1280, "anywhere"),
];

/// The cell and the convolution with resets and states in and out, against every document by itself.
pub(super) fn boundaries(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for case in BOUNDARIES {
        take(Check::over_draws(|| mlstm_boundary_case(device, case, false))?);
    }
    for sizes in [(2, 130, 4, 8), (1, 300, 2, 384), (3, 1, 1, 64), (1, 33, 4, 1280)] {
        take(float32_block_case(device, sizes)?);
    }
    for case in FLOAT32 {
        take(Check::over_draws(|| mlstm_boundary_case(device, case, true))?);
    }
    for case in SHORT {
        take(Check::over_draws(|| mlstm_short_case(device, case))?);
    }
    for (batch, time, width, kind) in
        [(3, 130, 384, "anywhere"), (2, 67, 64, "everywhere"), (2, 2, 8, "nowhere")]
    {
        take(conv_boundary_case(device, (batch, time, width), kind)?);
    }
    Ok(())
}

fn mlstm_boundary_case(
    device: Device,
    (batch, time, heads, head, kind): (i64, i64, i64, i64, &str),
    float32: bool,
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let half = |shape: &[i64], device| if float32 { normal(shape, device) } else { half(shape, device) };
    // Sums of scores that do not cancel: every row's denominator is one that bf16 determines.
    let positive = || half(&[batch, time, heads, head], device).abs();
    let inputs = vec![
        ("q", positive()),
        ("k", positive()),
        ("v", half(&[batch, time, heads, head], device)),
        ("i", normal(&[batch, time, heads], device)),
        ("f", normal(&[batch, time, heads], device) + 3.0),
        ("matrix", normal(&[batch, heads, head, head], device) * 0.2),
        ("normalizer", normal(&[batch, heads, head], device).abs()),
    ];
    let maximum = normal(&[batch, heads], device);
    let after = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let state = crate::mlstm::MlstmState {
            matrix: x[5].shallow_clone(),
            normalizer: x[6].shallow_clone(),
            maximum: maximum.shallow_clone(),
        };
        let input = crate::mlstm::MlstmInput {
            q_BTHK: &x[0],
            k_BTHK: &x[1],
            v_BTHV: &x[2],
            i_BTH: &x[3],
            f_BTH: &x[4],
            state: Some(&state),
            resets_BT: Some(&resets),
        };
        let output = if float32 {
            crate::mlstm::mlstm(&input, &crate::mlstm::MlstmOptions::default())?
        } else {
            cuda::mlstm(&input)?
        };
        Ok(vec![output.h_BTHV, output.state.matrix, output.state.normalizer])
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let state = [&x[5], &x[6], &maximum.to_kind(x[5].kind())];
        let [h, matrix, normalizer, _] =
            plain::mlstm_by_documents([&x[0], &x[1], &x[2], &x[3], &x[4]], Some(state), &flags);
        Ok(vec![h, matrix, normalizer])
    };
    let subject = Subject {
        kernel: if float32 { "mlstm float32" } else { "mlstm" },
        case: format!("{batch}x{time}x{heads}, heads of {head} after a state, anew {kind}"),
        inputs,
        outputs: &["h", "matrix", "normalizer"],
        ours: &after,
        libtorch: &libtorch,
        rounding: if float32 { PRECISE } else { ROUNDING },
        mask: None,
    };
    subject.check()
}

fn conv_boundary_case(
    device: Device,
    (batch, time, width): (i64, i64, i64),
    kind: &str,
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let subject = Subject {
        kernel: "conv_silu",
        case: format!("{batch}x{time}x{width} after a window, anew {kind}"),
        inputs: vec![
            ("x", half(&[batch, time, width], device)),
            ("weight", normal(&[width, 1, 4], device)),
            ("bias", normal(&[width], device)),
            ("window", half(&[batch, 3, width], device)),
        ],
        outputs: &["y"],
        ours: &|x| {
            let (weight_D1W, bias_D, state) = (&x[1], Some(&x[2]), Some(&x[3]));
            let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state, resets_BT: Some(&resets) };
            Ok(vec![cuda::conv_silu(&input)?])
        },
        libtorch: &|x| Ok(vec![plain::conv_silu_by_documents([&x[0], &x[1], &x[2], &x[3]], &flags)]),
        rounding: ROUNDING,
        mask: None,
    };
    subject.check()
}
