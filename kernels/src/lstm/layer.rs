//! A whole layer of LSTM by libtorch's own: input map, both biases and the recurrence in one call; cuDNN's on a GPU.
//!
//! What a loop or a kernel of one head cannot do there: a dense recurrent matrix of many units is read in every step, and
//! one product over all sequences reads it once. Parameters are PyTorch's, gates in the order input, forget, cell, output,
//! as they lie in checkpoints. Everything is computed in one type, the state included; documents that begin within a
//! sequence are not known there.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::runtime::allow_tf32_in_cudnn;

use super::{LstmOutput, LstmState};
use crate::shape::{dimensions, expect_device, expect_shape};
use crate::{KernelError, cuda};

const NAME: &str = "lstm_layer";

/// Dense heads of more units than this are left to cuDNN on a GPU; up to here this project's kernel computes them, in
/// float32, a block of threads for a few sequences.
pub const KERNEL_UNITS: i64 = 256;

/// Whether [`lstm_layer`] is what should compute a layer with `heads` recurrent matrices of `units` on this device.
pub fn layer_fits(device: Device, heads: i64, units: i64, resets: bool) -> bool {
    heads == 1 && !resets && units > KERNEL_UNITS && cuda::enabled(device)
}

/// Arguments of [`lstm_layer`]; E units, C inputs, F = 4E gate inputs.
#[derive(Debug, Clone, Copy)]
pub struct LstmLayer<'a> {
    /// Inputs, `(B, T, C)`.
    pub x_BTC: &'a Tensor,
    /// Input weights, `(F, C)`.
    pub weight_ih_FC: &'a Tensor,
    /// Recurrent weights, `(F, E)`.
    pub weight_hh_FE: &'a Tensor,
    /// Biases of the input map, `(F)`.
    pub bias_ih_F: &'a Tensor,
    /// Biases of the recurrent map, `(F)`.
    pub bias_hh_F: &'a Tensor,
    /// State before the first step, with one head; `None` is zeros.
    pub state: Option<&'a LstmState>,
}

impl<'a> LstmLayer<'a> {
    /// Of inputs, input and recurrent weights, and both biases, in this order.
    #[must_use]
    pub fn of([x_BTC, weight_ih_FC, weight_hh_FE, bias_ih_F, bias_hh_F]: [&'a Tensor; 5]) -> Self {
        Self { x_BTC, weight_ih_FC, weight_hh_FE, bias_ih_F, bias_hh_F, state: None }
    }

    /// With a state before the first step.
    #[must_use]
    pub fn from_state(self, state: Option<&'a LstmState>) -> Self {
        Self { state, ..self }
    }
}

/// Outputs `(B, T, 1, E)` and the state after the last step, `(B, 1, E)`, in `kind`, which everything is computed in.
/// `rounded`: on a GPU products may round their operands to TF32, as where a model's other products are in bf16; states and sums are of `kind`
/// all the same. Gradients flow to every argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape or device does not fit, or has libtorch's complaint.
pub fn lstm_layer(layer: &LstmLayer<'_>, kind: Kind, rounded: bool) -> Result<LstmOutput, KernelError> {
    let LstmLayer { x_BTC, weight_ih_FC, weight_hh_FE, bias_ih_F, bias_hh_F, state } = *layer;
    let [batch, time, inputs] = dimensions(NAME, "x_BTC", x_BTC)?;
    let [gates, units] = dimensions(NAME, "weight_hh_FE", weight_hh_FE)?;
    if batch * time * inputs * units == 0 {
        let (found, expected) = (x_BTC.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "x_BTC", expected, found });
    }
    expect_shape(NAME, "weight_hh_FE", weight_hh_FE, &[4 * units, units])?;
    expect_shape(NAME, "weight_ih_FC", weight_ih_FC, &[gates, inputs])?;
    let weights = [
        ("weight_ih_FC", weight_ih_FC),
        ("weight_hh_FE", weight_hh_FE),
        ("bias_ih_F", bias_ih_F),
        ("bias_hh_F", bias_hh_F),
    ];
    for (argument, bias) in &weights[2..] {
        expect_shape(NAME, argument, bias, &[gates])?;
    }
    let states = state.map(|state| [("state.hidden", &state.hidden), ("state.cell", &state.cell)]);
    for (argument, tensor) in states.into_iter().flatten() {
        expect_shape(NAME, argument, tensor, &[batch, 1, units])?;
        expect_device(NAME, argument, tensor, x_BTC)?;
    }
    for (argument, tensor) in weights {
        expect_device(NAME, argument, tensor, x_BTC)?;
    }

    let x_BTC = x_BTC.f_to_kind(kind)?;
    let parameters = parameters(weights.map(|(_, tensor)| tensor), kind)?;
    let before = |tensor: Option<&Tensor>| -> Result<Tensor, KernelError> {
        let shape_1BE = [1, batch, units];
        Ok(match tensor {
            Some(tensor) => tensor.f_to_kind(kind)?.f_reshape(shape_1BE)?.f_contiguous()?,
            None => Tensor::f_zeros(shape_1BE, (kind, x_BTC.device()))?,
        })
    };
    let before = [before(state.map(|state| &state.hidden))?, before(state.map(|state| &state.cell))?];
    // What the backward pass needs is kept only where there will be one.
    let train = [&x_BTC].into_iter().chain(&parameters).chain(&before).any(Tensor::requires_grad);
    // For the process, and the backward pass runs under what was set last: models of different precision do not train in turns in one
    // process. Nothing else here is cuDNN's.
    allow_tf32_in_cudnn(rounded)?;
    let (biases, layers, dropout, bidirectional, batch_first) = (true, 1, 0.0, false, true);
    let (h_BTE, hidden_1BE, cell_1BE) =
        x_BTC.f_lstm(&before, &parameters, biases, layers, dropout, train, bidirectional, batch_first)?;
    let after = |tensor: &Tensor| -> Result<Tensor, KernelError> { Ok(tensor.f_reshape([batch, 1, units])?) };
    Ok(LstmOutput {
        // cuDNN has time first.
        h_BTHE: h_BTE.f_contiguous()?.f_unsqueeze(2)?,
        state: LstmState { hidden: after(&hidden_1BE)?, cell: after(&cell_1BE)? },
    })
}

/// All parameters in `kind`, on a GPU one behind the other in one piece of memory, as cuDNN reads them: it would copy them
/// there otherwise, and complain at every call.
fn parameters(weights: [&Tensor; 4], kind: Kind) -> Result<[Tensor; 4], KernelError> {
    if weights[0].device() == Device::Cpu {
        let [input, recurrent, bias_ih, bias_hh] = weights;
        let converted = |tensor: &Tensor| tensor.f_to_kind(kind);
        return Ok([converted(input)?, converted(recurrent)?, converted(bias_ih)?, converted(bias_hh)?]);
    }
    let flat = weights.iter().map(|tensor| tensor.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
    let sizes: Vec<i64> = flat.iter().map(|tensor| tensor.size()[0]).collect();
    let parts = Tensor::f_cat(&flat, 0)?.f_to_kind(kind)?.f_split_with_sizes(sizes, 0)?;
    let shaped = |index: usize| parts[index].f_view(weights[index].size().as_slice());
    Ok([shaped(0)?, shaped(1)?, shaped(2)?, shaped(3)?])
}
