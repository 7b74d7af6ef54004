//! What lies around the cells.

use tch::{Device, Tensor};
use xlstm_bridge::autograd::{Forward, custom_function};

use super::inner::inner;
use super::inputs::{EPSILON, half, normal};
use super::{Check, ROUNDING, Subject};
use crate::conv::{self, ConvInput};
use crate::cuda::launch::{self, Gated, NormTarget, ResidualNorm};
use crate::{KernelError, cuda, gates, norm};

/// Around the cells.
pub(super) fn pointwise(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, time, width) in [(2, 130, 384), (3, 1, 64), (1, 67, 2056)] {
        let subject = Subject {
            kernel: "conv_silu",
            case: format!("{batch}x{time}x{width}"),
            inputs: vec![
                ("x", half(&[batch, time, width], device)),
                ("weight", normal(&[width, 1, 4], device)),
                ("bias", normal(&[width], device)),
            ],
            outputs: &["y"],
            ours: &|x| {
                let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
                let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state: None, resets_BT: None };
                Ok(vec![cuda::conv_silu(&input)?])
            },
            libtorch: &|x| {
                let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
                let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state: None, resets_BT: None };
                Ok(vec![conv::composed(&input)?])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (time, heads, width) in [(65, 4, 192), (1, 1, 64), (33, 2, 1024)] {
        let subject = Subject {
            kernel: "head_norm",
            case: format!("1x{time}x{heads}x{width}"),
            inputs: vec![
                ("x", half(&[1, time, heads, width], device) * 3.0 + 1.0),
                ("weight", normal(&[heads * width], device) * 0.3),
            ],
            outputs: &["y"],
            ours: &|x| Ok(vec![cuda::head_norm(&x[0], &x[1], EPSILON)?]),
            libtorch: &|x| Ok(vec![norm::head_norm(&x[0], &x[1], EPSILON)?]),
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
        take(head_norm_gate(device, time, heads, width)?);
    }
    for (rows, width) in [(33, 256), (5, 1000)] {
        let subject = Subject {
            kernel: "gelu_gate",
            case: format!("{rows}x{width}"),
            inputs: vec![("projected", half(&[1, rows, 2 * width], device) * 2.0)],
            outputs: &["y"],
            ours: &|x| Ok(vec![cuda::gelu_gate(&x[0])?]),
            libtorch: &|x| Ok(vec![gates::gelu_gate(&x[0])?]),
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (rows, width) in [(257, 768), (1, 136), (1100, 2048)] {
        let subject = Subject {
            kernel: "add_layer_norm",
            case: format!("{rows}x{width}"),
            inputs: vec![
                ("x", normal(&[rows, width], device) * 2.0 + 1.0),
                ("d", half(&[rows, width], device)),
                ("weight", normal(&[width], device) * 0.3),
            ],
            outputs: &["sum", "norm"],
            ours: &|x| {
                let (sum, norm) = cuda::add_layer_norm(&x[0], Some(&x[1]), &x[2], EPSILON)?;
                Ok(vec![sum, norm])
            },
            libtorch: &|x| {
                let sum = &x[0] + &x[1];
                let output = norm::layer_norm(&sum, &x[2], EPSILON)?.to_kind(x[1].kind());
                Ok(vec![sum, output])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (rows, width) in [(257, 768), (1, 136), (1100, 2048)] {
        take(residual_norm(device, rows, width, true)?);
        take(residual_norm(device, rows, width, false)?);
    }
    for (batch, time, width, gates) in [(2, 131, 384, 8), (3, 1, 8, 8), (1, 70, 2056, 8), (9, 300, 72, 4)] {
        take(inner(device, batch, time, width, gates)?);
    }
    Ok(())
}

/// The norms of the other methods' residual: layer norm with a bias, and by the root of the mean square.
fn residual_norm(device: Device, rows: i64, width: i64, layer: bool) -> Result<Check, KernelError> {
    let mut inputs = vec![
        ("x", normal(&[rows, width], device) * 2.0 + 1.0),
        ("weight", normal(&[width], device) * 0.3 + 1.0),
    ];
    if layer {
        inputs.push(("bias", normal(&[width], device)));
    }
    let ours = |x: &[Tensor]| {
        let (weight, bias) = (&x[1], x.get(2));
        let norm = if layer { ResidualNorm::Layer { weight, bias } } else { ResidualNorm::Rms(weight) };
        Ok(vec![cuda::residual_norm(&x[0], norm, EPSILON)?])
    };
    let libtorch = |x: &[Tensor]| {
        let y = if layer {
            x[0].f_layer_norm([width], Some(&x[1]), Some(&x[2]), EPSILON, true)?
        } else {
            x[0].f_rms_norm([width], Some(&x[1]), EPSILON)?
        };
        Ok(vec![y])
    };
    Subject {
        kernel: "residual_norm",
        case: format!("{} {rows}x{width}", if layer { "layer" } else { "RMS" }),
        inputs,
        outputs: &["norm"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: None,
    }
    .check()
}

/// Norm, skip and gate as in an mLSTM block, the gate half of a wider tensor.
fn head_norm_gate(device: Device, time: i64, heads: i64, width: i64) -> Result<Check, KernelError> {
    let whole = heads * width;
    let ours = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let inputs: Vec<Option<&Tensor>> = x.iter().map(Some).collect();
        let halves = move |up: &Tensor| up.f_narrow(1, whole, whole);
        let made = custom_function(
            "head_norm_gate",
            &inputs,
            |_| {
                let gate = halves(&x[4])?;
                let gated = Gated { skip: &x[2], branch: &x[3], gate: &gate };
                let (y, statistics) = launch::norm_forward(&x[0], &x[1], Some(gated), EPSILON)?;
                let mut saved: Vec<Tensor> = x.iter().map(Tensor::shallow_clone).collect();
                saved.push(statistics);
                Ok(Forward { outputs: vec![y], saved })
            },
            move |context| {
                let saved = &context.saved;
                let (gate, up) = (halves(&saved[4])?, saved[4].f_zeros_like()?);
                let gated = Gated { skip: &saved[2], branch: &saved[3], gate: &gate };
                let gradient = context.gradients[0].as_ref().ok_or("no gradient")?.contiguous();
                let tensors = (&saved[0], &saved[1], &saved[5]);
                let half = halves(&up)?;
                let target = NormTarget { gate: Some(&half), division: None };
                let made = launch::norm_backward(tensors, Some(gated), &gradient, target)?;
                let (skip, branch) = made.skip_and_branch.ok_or("no gradient of the skip")?;
                Ok(vec![Some(made.h), Some(made.weight), Some(skip), Some(branch), Some(up)])
            },
        )?;
        Ok(made)
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let gate = x[4].narrow(1, whole, whole);
        let normal = norm::head_norm(&x[0].unsqueeze(0), &x[1], EPSILON)?.squeeze_dim(0);
        Ok(vec![((normal + &x[2] * &x[3]) * gate.silu()).to_kind(x[0].kind())])
    };
    let subject = Subject {
        kernel: "head_norm_gate",
        case: format!("{time}x{heads}x{width}"),
        inputs: vec![
            ("h", half(&[time, heads, width], device) * 3.0 + 1.0),
            ("weight", normal(&[whole], device) * 0.3),
            ("skip", normal(&[whole], device)),
            ("branch", half(&[time, whole], device)),
            ("up", half(&[time, 2 * whole], device)),
        ],
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: None,
    };
    subject.check()
}
