//! Causal depthwise convolution, with SiLU after it (paper fig. 10 and 11; kernel of 4 taps there).
//!
//! Each channel is filtered alone: `y_t = b + Σ_k w_k x_{t-W+1+k}`, tap W−1 being the current step, as PyTorch's
//! `Conv1d` with `groups = D` lays its weight out. Before the first step stand the last W−1 inputs of the text so
//! far, or zeros; a reset makes everything before it zero. The state to carry on with is the last W−1 inputs.

use crate::KernelError;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use tch::{Kind, Tensor};

/// Arguments of [`causal_conv_silu`]. W is the number of taps.
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

/// Causal depthwise convolution and SiLU. Gradients flow to `x_BTD`, `weight_D1W` and `bias_D`.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn causal_conv_silu(input: &ConvInput<'_>) -> Result<ConvOutput, KernelError> {
    let [_, taps] = check(input)?;
    let kind = computing_kind("causal_conv_silu", "x_BTD", input.x_BTD)?;
    let padded_BPD = padded(input, taps);
    let y_BTD = reference(input, &padded_BPD, taps, kind);
    let state = next_state(input, &padded_BPD, taps);
    Ok(ConvOutput { y_BTD: y_BTD.to_kind(input.x_BTD.kind()), state })
}

/// Returns `[width, taps]`.
fn check(input: &ConvInput<'_>) -> Result<[i64; 2], KernelError> {
    const NAME: &str = "causal_conv_silu";
    let [batch, time, width] = dimensions(NAME, "x_BTD", input.x_BTD)?;
    let [_, _, taps] = dimensions(NAME, "weight_D1W", input.weight_D1W)?;
    expect_shape(NAME, "weight_D1W", input.weight_D1W, &[width, 1, taps])?;
    expect_device(NAME, "weight_D1W", input.weight_D1W, input.x_BTD)?;
    if let Some(bias_D) = input.bias_D {
        expect_shape(NAME, "bias_D", bias_D, &[width])?;
    }
    if let Some(state) = input.state {
        expect_shape(NAME, "state", state, &[batch, taps - 1, width])?;
    }
    expect_resets(NAME, input.resets_BT, batch, time)?;
    if batch * time * width * taps == 0 {
        let (found, expected) = (input.x_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "x_BTD", expected, found });
    }
    Ok([width, taps])
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

/// One shifted product for each tap, differentiated by libtorch.
fn reference(input: &ConvInput<'_>, padded_BPD: &Tensor, taps: i64, kind: Kind) -> Tensor {
    let time = input.x_BTD.size()[1];
    let padded_BPD = padded_BPD.to_kind(kind);
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
    sum_BTD.map_or_else(|| padded_BPD.shallow_clone(), |sum_BTD| sum_BTD.silu())
}

/// The last W−1 inputs; those before the last reset are zero.
fn next_state(input: &ConvInput<'_>, padded_BPD: &Tensor, taps: i64) -> Tensor {
    let time = input.x_BTD.size()[1];
    let tail = padded_BPD.detach().narrow(1, time, taps - 1);
    match input.resets_BT {
        None => tail.copy(),
        Some(resets_BT) => {
            let segments_BP = segments(resets_BT, taps);
            let last_B1 = segments_BP.narrow(1, time + taps - 2, 1);
            let same = segments_BP.narrow(1, time, taps - 1).eq_tensor(&last_B1);
            &tail * same.unsqueeze(-1).to_kind(tail.kind())
        }
    }
}
