//! What is checked of sLSTM and LSTM: bf16 and float32, with document boundaries and states, at every size of the paper.

use tch::{Device, Kind, Tensor};
use xlstm_cuda::recurrent::{Cell, RecurrentSizes};
use xlstm_cuda::slstm::Direction;
use xlstm_cuda::{Architecture, SlstmSizes, Specialization};

use super::super as cuda;
use super::inputs::normal;
use super::{Check, PRECISE, ROUNDING, Subject, plain};
use crate::KernelError;
use crate::lstm::{LstmLayer, LstmOutput, LstmState, lstm_layer};
use crate::slstm::{SlstmInput, SlstmKernel, SlstmOptions, SlstmState, slstm as slstm_cell};

/// Units of a head in bf16; 64 goes by way of float32.
const HALF: [i64; 6] = [64, 192, 256, 384, 512, 640];
/// Batch, tokens, heads and units in float32, what is computed, and whether there are document boundaries and a state.
const SINGLE: [(i64, i64, i64, i64, Computed, bool); 12] = [
    (33, 40, 4, 8, Computed::Slstm, true),
    (5, 17, 3, 24, Computed::Slstm, false),
    (16, 65, 4, 32, Computed::Slstm, false),
    (16, 65, 4, 32, Computed::Slstm, true),
    (16, 65, 4, 32, Computed::Exponential, true),
    (16, 65, 4, 32, Computed::Clipped, true),
    (40, 20, 8, 64, Computed::Slstm, true),
    (7, 33, 4, 128, Computed::Slstm, true),
    (3, 20, 4, 192, Computed::Slstm, true),
    (16, 40, 4, 32, Computed::Lstm, true),
    (40, 40, 1, 128, Computed::Lstm, true),
    (5, 17, 1, 512, Computed::Lstm, false),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Computed {
    Slstm,
    /// Forgetting by exp(f).
    Exponential,
    /// With a clamped gradient through R.
    Clipped,
    Lstm,
}

/// Every tenth step begins a document.
fn boundaries(batch: i64, tokens: i64, device: Device) -> Tensor {
    Tensor::rand([batch, tokens], (Kind::Float, device)).lt(0.1)
}

/// h, c, n, m that a sequence may have left.
fn state(batch: i64, heads: i64, units: i64, device: Device) -> Tensor {
    let state = normal(&[4, batch, heads, units], device);
    let mut normalizer = state.select(0, 2);
    let positive = normalizer.abs() + 1.0;
    normalizer.copy_(&positive);
    state
}

/// What the checks use of these sources.
pub(super) fn specializations(architecture: Architecture) -> Vec<Specialization> {
    let mut wanted = Vec::new();
    for (units, direction, batch) in HALF.into_iter().flat_map(|units| {
        [Direction::Forward, Direction::Backward]
            .into_iter()
            .flat_map(move |direction| [5, 40].map(|batch| (units, direction, batch)))
    }) {
        let sizes = SlstmSizes::fastest(architecture, units as u32, batch, direction);
        wanted.extend(sizes.map(|sizes| Specialization::slstm(architecture, sizes)));
    }
    let single = SINGLE.into_iter().map(|(_, _, _, units, computed, _)| (units, computed == Computed::Lstm));
    for (units, lstm) in single.chain([(64, false)]) {
        let cell = if lstm { Cell::Lstm } else { Cell::Slstm };
        let sizes = RecurrentSizes::new(units as u32, cell);
        wanted.extend(sizes.map(|sizes| Specialization::recurrent(architecture, sizes)));
    }
    wanted
}

/// The sLSTM cell in bf16.
pub(super) fn half(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    let sizes = [
        (16, 65, 1.0, false),
        (5, 33, 15.0, false),
        (20, 1, 1.0, false),
        (40, 40, 1.0, false),
        (20, 50, 1.0, true),
    ];
    for (units, (batch, tokens, scale, bounded)) in
        HALF.into_iter().flat_map(|units| sizes.map(|size| (units, size)))
    {
        let heads = 4;
        let x = normal(&[batch, tokens, 4, heads, units], device);
        let _ = x.narrow(2, 0, 2).g_mul_scalar_(scale);
        let _ = x.narrow(2, 1, 1).g_add_scalar_(2.0);
        let share = if scale > 1.0 { 0.3 } else { 0.7 };
        let recurrent = normal(&[heads, units, 4, units], device) * ((units as f64).powf(-0.5) * share);
        let resets = bounded.then(|| boundaries(batch, tokens, device));
        // h as bf16 holds it, which is what the kernels multiply.
        let before =
            bounded.then(|| state(batch, heads, units, device).to_kind(Kind::BFloat16).to_kind(Kind::Float));
        let words = if bounded { ", resets and a state" } else { "" };
        let subject = Subject {
            kernel: "slstm",
            case: format!("{batch}x{tokens}x{heads}x{units}, gates times {scale}{words}"),
            inputs: vec![("x", x.to_kind(Kind::BFloat16)), ("R", recurrent.to_kind(Kind::BFloat16))],
            outputs: &["y"],
            ours: &|x| {
                let input = cuda::SlstmSequence {
                    bias_GHE: None,
                    x_BTGHE: &x[0],
                    recurrent_HEGE: &x[1],
                    state_SBHE: before.as_ref(),
                    resets_BT: resets.as_ref(),
                };
                Ok(vec![cuda::slstm_from(&input)?.0])
            },
            libtorch: &|x| Ok(vec![plain::slstm(&x[0], &x[1], before.as_ref(), resets.as_ref())]),
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}

/// sLSTM and LSTM cells in float32, the last state included.
pub(super) fn single(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, tokens, heads, units, computed, bounded) in SINGLE {
        let lstm = computed == Computed::Lstm;
        // Of an LSTM's state only h and c count.
        let parts = if lstm { 2 } else { 4 };
        let resets = bounded.then(|| boundaries(batch, tokens, device));
        let clip = (computed == Computed::Clipped).then_some(0.05);
        let exponential = computed == Computed::Exponential;
        let whole = |x: &Tensor| Tensor::cat(&[x.shallow_clone(), x.zeros_like()], 0).narrow(0, 0, 4);
        let mut inputs = vec![
            ("x", normal(&[batch, tokens, 4, heads, units], device)),
            ("R", normal(&[heads, units, 4, units], device) * ((units as f64).powf(-0.5) * 0.7)),
            ("b", normal(&[4, heads, units], device)),
        ];
        if bounded {
            inputs.push(("state", state(batch, heads, units, device).narrow(0, 0, parts)));
        }
        let subject = Subject {
            kernel: "recurrent",
            case: format!(
                "{computed:?} {batch}x{tokens}x{heads}x{units}{}",
                if bounded { ", resets and a state" } else { "" }
            ),
            inputs,
            outputs: &["y", "last state"],
            ours: &|x| {
                let before = x.get(3).map(whole);
                let (y, last) = cuda::recurrent(&cuda::RecurrentInput {
                    x_BTGHE: &x[0],
                    recurrent_HEGE: &x[1],
                    bias_GHE: &x[2],
                    state_SBHE: before.as_ref(),
                    resets_BT: resets.as_ref(),
                    cell: if lstm { Cell::Lstm } else { Cell::Slstm },
                    exponential_forget: exponential,
                    gradient_clip: clip,
                })?;
                Ok(vec![y, last.narrow(0, 0, parts)])
            },
            libtorch: &|x| {
                if lstm {
                    return Ok(plain::lstm(x, resets.as_ref()).into());
                }
                let options = SlstmOptions {
                    kernel: SlstmKernel::Reference,
                    gradient_clip: clip,
                    exponential_forget: exponential,
                };
                reference(x, resets.as_ref(), &options)
            },
            rounding: PRECISE / 8.0,
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}

/// Batch, tokens, inputs and units of a layer, and whether there is a state.
const LAYERS: [(i64, i64, i64, i64, bool); 6] = [
    (4, 65, 512, 512, true),
    (5, 33, 264, 264, true),
    (16, 40, 1024, 1024, false),
    (3, 20, 1536, 1536, true),
    (7, 1, 512, 512, true),
    (8, 512, 512, 512, false),
];

/// Layers by libtorch's own LSTM, that is cuDNN's, against a product and a loop of libtorch's operations.
pub(super) fn layers(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    let runs = LAYERS.into_iter().flat_map(|sizes| [false, true].map(|rounded| (sizes, rounded)));
    for ((batch, tokens, width, units, bounded), rounded) in runs {
        let scale = (units as f64).powf(-0.5);
        let mut inputs = vec![
            ("x", normal(&[batch, tokens, width], device)),
            ("W", normal(&[4 * units, width], device) * scale),
            ("R", normal(&[4 * units, units], device) * scale),
            ("input bias", normal(&[4 * units], device) * 0.3),
            ("recurrent bias", normal(&[4 * units], device) * 0.3),
        ];
        if bounded {
            inputs.push(("state", normal(&[2, batch, 1, units], device) * 0.5));
        }
        let subject = Subject {
            kernel: "lstm layer (cuDNN)",
            case: format!(
                "{batch}x{tokens}x{width}x{units}{}{}",
                if rounded { ", TF32" } else { "" },
                if bounded { ", a state" } else { "" }
            ),
            inputs,
            outputs: &["y", "last state"],
            ours: &|x| {
                let state =
                    x.get(5).map(|state| LstmState { hidden: state.select(0, 0), cell: state.select(0, 1) });
                let layer =
                    LstmLayer::of([0, 1, 2, 3, 4].map(|index: usize| &x[index])).from_state(state.as_ref());
                let LstmOutput { h_BTHE, state } = lstm_layer(&layer, x[0].kind(), rounded)?;
                Ok(vec![h_BTHE, Tensor::stack(&[state.hidden, state.cell], 0)])
            },
            libtorch: &|x| Ok(plain::lstm_layer(x).into()),
            rounding: if rounded { ROUNDING } else { PRECISE },
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}

/// By the loop of libtorch's operations: outputs and the last state, `(4, B, H, E)`.
fn reference(
    x: &[Tensor],
    resets_BT: Option<&Tensor>,
    options: &SlstmOptions,
) -> Result<Vec<Tensor>, KernelError> {
    let state = x.get(3).map(|state| SlstmState {
        hidden: state.select(0, 0),
        cell: state.select(0, 1),
        normalizer: state.select(0, 2),
        maximum: state.select(0, 3),
    });
    let input = SlstmInput {
        x_BTGHE: &x[0],
        recurrent_HEGE: &x[1],
        bias_GHE: &x[2],
        state: state.as_ref(),
        resets_BT,
    };
    let output = slstm_cell(&input, options)?;
    let SlstmState { hidden, cell, normalizer, maximum } = output.state;
    Ok(vec![output.y_BTHE, Tensor::stack(&[hidden, cell, normalizer, maximum], 0)])
}
