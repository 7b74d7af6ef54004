//! Causal depthwise convolution, with SiLU after it (paper fig. 10 and 11; kernel of 4 taps there) or without (Hyena's, of 3).
//!
//! Each channel is filtered alone: `y_t = b + Σ_k w_k x_{t-W+1+k}`, tap W−1 being the current step, as PyTorch's
//! `Conv1d` with `groups = D` lays its weight out. Before the first step stand the last W−1 inputs of the text so
//! far, or zeros; a reset makes everything before it zero. The state to carry on with is the last W−1 inputs.

use crate::KernelError;
use crate::cpu::{ConvGradients, ConvProblem, address, call, empty, evenly_spaced, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};

/// Arguments of [`causal_conv_silu`] and [`causal_conv`]. W is the number of taps.
#[derive(Debug, Clone, Copy)]
pub struct ConvInput<'a> {
    /// Input, `(B, T, D)`.
    pub x_BTD: &'a Tensor,
    /// Weight, `(D, 1, W)`; the last tap meets the current step.
    pub weight_D1W: &'a Tensor,
    /// Bias, `(D)`.
    pub bias_D: Option<&'a Tensor>,
    /// The W−1 inputs before the first step, oldest first, `(B, W-1, D)`; `None` is zeros.
    pub state: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`causal_conv_silu`].
#[derive(Debug)]
pub struct ConvOutput {
    /// `SiLU(conv(x))`, `(B, T, D)`, in the type of `x_BTD`.
    pub y_BTD: Tensor,
    /// The last W−1 inputs, `(B, W-1, D)`, in the type of `x_BTD`, without history: the state for the next call.
    pub state: Tensor,
}

/// Causal depthwise convolution and SiLU. Gradients flow to `x_BTD`, `weight_D1W`, `bias_D` and `state`.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn causal_conv_silu(input: &ConvInput<'_>) -> Result<ConvOutput, KernelError> {
    let taps = check(input)?;
    let kind = computing_kind("causal_conv_silu", "x_BTD", input.x_BTD)?;
    let differentiated_state = input.state.is_some_and(Tensor::requires_grad);
    let y_BTD = if input.x_BTD.device() == Device::Cpu && !differentiated_state {
        fused(input, taps, kind)?
    } else if taps == 4 && has_kernel(input) {
        crate::cuda::conv_silu(input)?
    } else {
        reference(input, taps, kind)
    };
    let state = next_state(input, taps);
    Ok(ConvOutput { y_BTD: y_BTD.to_kind(input.x_BTD.kind()), state })
}

/// The convolution without SiLU and state, `(B, T, D)` in the type of `x_BTD`. On a GPU up to four taps are a kernel.
///
/// # Errors
/// As [`causal_conv_silu`].
pub fn causal_conv(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    let taps = check(input)?;
    let kind = computing_kind("causal_conv", "x_BTD", input.x_BTD)?;
    if taps <= 4 && has_kernel(input) {
        // Missing taps are zeros before the others, missing inputs before the first step likewise.
        let missing = 4 - taps;
        let weight_D1W = input.weight_D1W.f_constant_pad_nd([missing, 0])?;
        let state = input.state.map(|state| state.f_constant_pad_nd([0, 0, missing, 0])).transpose()?;
        return crate::cuda::conv(&ConvInput { weight_D1W: &weight_D1W, state: state.as_ref(), ..*input });
    }
    Ok(sum_of_taps(input, taps, kind).to_kind(input.x_BTD.kind()))
}

/// The state alone: the last W−1 inputs, zeros before a reset.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape does not fit.
pub fn last_inputs(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    let taps = check(input)?;
    Ok(next_state(input, taps))
}

/// Whether there is a GPU's kernel: for parameters in fp32, up to four taps.
fn has_kernel(input: &ConvInput<'_>) -> bool {
    let parameters = [Some(input.weight_D1W), input.bias_D];
    let floats = parameters.into_iter().flatten().all(|parameter| parameter.kind() == Kind::Float);
    floats && crate::cuda::conv_fits(input.x_BTD)
}

/// Returns the number of taps.
fn check(input: &ConvInput<'_>) -> Result<i64, KernelError> {
    const NAME: &str = "causal_conv_silu";
    let [batch, time, width] = dimensions(NAME, "x_BTD", input.x_BTD)?;
    let [_, _, taps] = dimensions(NAME, "weight_D1W", input.weight_D1W)?;
    expect_shape(NAME, "weight_D1W", input.weight_D1W, &[width, 1, taps])?;
    expect_device(NAME, "weight_D1W", input.weight_D1W, input.x_BTD)?;
    if let Some(bias_D) = input.bias_D {
        expect_shape(NAME, "bias_D", bias_D, &[width])?;
        expect_device(NAME, "bias_D", bias_D, input.x_BTD)?;
    }
    if let Some(state) = input.state {
        expect_shape(NAME, "state", state, &[batch, taps - 1, width])?;
        expect_device(NAME, "state", state, input.x_BTD)?;
    }
    expect_resets(NAME, input.resets_BT, input.x_BTD, [batch, time])?;
    if batch * time * width * taps == 0 {
        let (found, expected) = (input.x_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "x_BTD", expected, found });
    }
    Ok(taps)
}

/// The input with the W−1 steps before it, `(B, W-1+T, D)`.
fn padded(input: &ConvInput<'_>, taps: i64) -> Tensor {
    match input.state {
        Some(state) => Tensor::cat(&[&state.to_kind(input.x_BTD.kind()), input.x_BTD], 1),
        None => input.x_BTD.constant_pad_nd([0, 0, taps - 1, 0]),
    }
}

/// How many resets happened up to and including each step, over the padded time: `(B, W-1+T)`.
fn segments(resets_BT: &Tensor, taps: i64) -> Tensor {
    resets_BT.to_kind(Kind::Int64).constant_pad_nd([taps - 1, 0]).cumsum(1, None)
}

/// `SiLU(conv(x))` by libtorch's operations whatever the device, in the type of `x_BTD`.
///
/// # Errors
/// As [`causal_conv_silu`].
pub(crate) fn composed(input: &ConvInput<'_>) -> Result<Tensor, KernelError> {
    let taps = check(input)?;
    let kind = computing_kind("causal_conv_silu", "x_BTD", input.x_BTD)?;
    Ok(reference(input, taps, kind).to_kind(input.x_BTD.kind()))
}

/// One shifted product for each tap, differentiated by libtorch.
pub(crate) fn reference(input: &ConvInput<'_>, taps: i64, kind: Kind) -> Tensor {
    sum_of_taps(input, taps, kind).silu()
}

/// The same without SiLU.
fn sum_of_taps(input: &ConvInput<'_>, taps: i64, kind: Kind) -> Tensor {
    let time = input.x_BTD.size()[1];
    let padded_BPD = padded(input, taps).to_kind(kind);
    let segments_BP = input.resets_BT.map(|resets_BT| segments(resets_BT, taps));
    let mut sum_BTD = input.bias_D.map(|bias_D| bias_D.to_kind(kind));
    for tap in 0..taps {
        let shifted_BTD = padded_BPD.narrow(1, tap, time);
        let shifted_BTD = match &segments_BP {
            None => shifted_BTD,
            Some(segments_BP) => {
                let current_BT = segments_BP.narrow(1, taps - 1, time);
                let same_BT = segments_BP.narrow(1, tap, time).eq_tensor(&current_BT);
                shifted_BTD * same_BT.unsqueeze(-1).to_kind(kind)
            }
        };
        let product_BTD = shifted_BTD * input.weight_D1W.select(2, tap).squeeze_dim(1).to_kind(kind);
        sum_BTD = Some(match sum_BTD {
            Some(sum_BTD) => sum_BTD + product_BTD,
            None => product_BTD,
        });
    }
    sum_BTD.unwrap_or(padded_BPD)
}

/// The last W−1 inputs; those before the last reset are zero.
fn next_state(input: &ConvInput<'_>, taps: i64) -> Tensor {
    let time = input.x_BTD.size()[1];
    let recent = input.x_BTD.detach().narrow(1, (time - taps + 1).max(0), time.min(taps - 1));
    let older = taps - 1 - time.min(taps - 1);
    let tail = match input.state {
        Some(state) if older > 0 => {
            let state = state.detach().to_kind(recent.kind());
            Tensor::cat(&[&state.narrow(1, taps - 1 - older, older), &recent], 1)
        }
        _ => recent.constant_pad_nd([0, 0, older, 0]),
    };
    let Some(resets_BT) = input.resets_BT else { return tail };
    let segments_BP = segments(resets_BT, taps);
    let last_B1 = segments_BP.narrow(1, time + taps - 2, 1);
    let same = segments_BP.narrow(1, time, taps - 1).eq_tensor(&last_B1);
    &tail * same.unsqueeze(-1).to_kind(tail.kind())
}

named_tensors! {
    struct Inputs<T> { x_BTD: T, weight_D1W: T, bias_D: T }

    struct Saved {
        x_BTD: Tensor,
        weight_WD: Tensor,
        bias_D: Option<Tensor>,
        state: Option<Tensor>,
        resets_BT: Option<Tensor>,
    }
}

/// One pass over the input, with a backward pass by hand (`cpu/pointwise.h`).
fn fused(input: &ConvInput<'_>, taps: i64, kind: Kind) -> Result<Tensor, KernelError> {
    let x_BTD = input.x_BTD.to_kind(kind);
    let weight_D1W = input.weight_D1W.to_kind(kind);
    let bias_D = input.bias_D.map(|bias_D| bias_D.to_kind(kind).contiguous());
    let state = input.state.map(|state| state.to_kind(kind).contiguous());
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let bias_clone = bias_D.as_ref().map(Tensor::shallow_clone);
    let output = node(
        "causal_conv_silu",
        Inputs { x_BTD: Some(&x_BTD), weight_D1W: Some(&weight_D1W), bias_D: bias_D.as_ref() },
        |_| {
            let (x_BTD, _) = evenly_spaced(&x_BTD);
            let weight_WD = weight_D1W.squeeze_dim(1).tr().contiguous();
            let y_BTD = empty(&x_BTD.size(), kind);
            let saved = Saved { x_BTD, weight_WD, bias_D: bias_clone, state, resets_BT };
            call!(kind, conv_forward_f32, conv_forward_f64, &problem(&saved, taps, Some(&y_BTD)));
            Ok((Output { y: y_BTD }, saved))
        },
        move |saved, upstream, _| fused_backward(&saved, &upstream.gradient()?, taps),
    )?;
    Ok(output.y)
}

fn problem<T>(saved: &Saved, taps: i64, y_BTD: Option<&Tensor>) -> ConvProblem<T> {
    let size = saved.x_BTD.size();
    ConvProblem {
        batch: size[0],
        time: size[1],
        width: size[2],
        taps,
        x_row: evenly_spaced(&saved.x_BTD).1,
        x: saved.x_BTD.data_ptr().cast::<T>().cast_const(),
        weight: address::<T>(&saved.weight_WD).cast_const(),
        bias: optional_address::<T>(saved.bias_D.as_ref()).cast_const(),
        state: optional_address::<T>(saved.state.as_ref()).cast_const(),
        resets: optional_address::<c_void>(saved.resets_BT.as_ref()).cast(),
        y: optional_address(y_BTD),
    }
}

fn fused_backward(
    saved: &Saved,
    upstream_BTD: &Tensor,
    taps: i64,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let kind = saved.x_BTD.kind();
    let upstream_BTD = upstream_BTD.contiguous();
    let x_gradient = empty(&saved.x_BTD.size(), kind);
    let weight_gradient = empty(&saved.weight_WD.size(), kind);
    let bias_gradient = saved.bias_D.as_ref().map(|bias_D| empty(&bias_D.size(), kind));
    call!(
        kind,
        conv_backward_f32,
        conv_backward_f64,
        &problem(saved, taps, None),
        &gradients(&upstream_BTD, &x_gradient, &weight_gradient, bias_gradient.as_ref())
    );
    let weight_gradient = weight_gradient.tr().unsqueeze(1);
    Ok(Inputs { x_BTD: Some(x_gradient), weight_D1W: Some(weight_gradient), bias_D: bias_gradient })
}

fn gradients<T>(y: &Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> ConvGradients<T> {
    ConvGradients {
        y: address::<T>(y).cast_const(),
        x: address(x),
        weight: address(weight),
        bias: optional_address(bias),
    }
}
