//! The mLSTM cell in bf16.

use tch::Device;

use super::inputs::{half, normal};
use super::{Check, ROUNDING, Subject, plain};
use crate::{KernelError, cuda};

/// batch, tokens, heads, key, value, kind of gates. Where gates are extreme a few steps decide the error, in every
/// implementation: many sequences, so that it is not one step's luck.
pub(super) const CASES: [(i64, i64, i64, i64, i64, &str); 9] = [
    (1, 1, 1, 64, 64, "low"),
    (1, 3, 2, 64, 64, "plain"),
    (2, 300, 3, 64, 128, "plain"),
    (1, 700, 2, 128, 256, "plain"),
    (8, 391, 4, 192, 192, "extreme"),
    (1, 513, 4, 384, 384, "plain"),
    (1, 700, 2, 512, 512, "closed"),
    (1, 600, 2, 768, 768, "plain"),
    (1, 520, 2, 1024, 1024, "plain"),
];

/// The mLSTM cell.
pub(super) fn mlstm(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for case in CASES {
        take(Check::over_draws(|| mlstm_case(device, case))?);
    }
    Ok(())
}

fn mlstm_case(
    device: Device,
    (batch, time, heads, key, value, kind): (i64, i64, i64, i64, i64, &str),
) -> Result<Check, KernelError> {
    let (q, k) = (half(&[batch, time, heads, key], device), half(&[batch, time, heads, key], device));
    let (i_scale, f_scale, f_shift) = match kind {
        "extreme" => (20.0, 20.0, 0.0),
        "closed" => (3.0, 1.0, -12.0),
        _ => (1.0, 1.0, 3.0),
    };
    let shift = if kind == "low" { -60.0 } else { 0.0 };
    let i = normal(&[batch, time, heads], device) * i_scale + shift;
    let f = normal(&[batch, time, heads], device) * f_scale + f_shift;
    let mask = plain::well_conditioned(&q, &k, &i, &f);
    let subject = Subject {
        kernel: "mlstm",
        case: format!("{batch}x{time}x{heads}, {key} by {value}, {kind} gates"),
        inputs: vec![
            ("q", q),
            ("k", k),
            ("v", half(&[batch, time, heads, value], device)),
            ("i", i),
            ("f", f),
        ],
        outputs: &["h"],
        ours: &|x| {
            let input = crate::mlstm::MlstmInput {
                q_BTHK: &x[0],
                k_BTHK: &x[1],
                v_BTHV: &x[2],
                i_BTH: &x[3],
                f_BTH: &x[4],
                state: None,
                resets_BT: None,
            };
            Ok(vec![cuda::mlstm(&input)?.h_BTHV])
        },
        libtorch: &|x| Ok(vec![plain::mlstm([&x[0], &x[1], &x[2], &x[3], &x[4]])]),
        rounding: ROUNDING,
        mask: Some(mask),
    };
    subject.check()
}
