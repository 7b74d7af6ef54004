//! The sLSTM on the card, inside libtorch's autograd (`slstm.cu`).
//!
//! For training: the state before the first step is empty, the one after the last is not computed, no resets, no
//! clamped gradients. It keeps five bf16 and two fp32 numbers a unit and step.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::slstm::{Direction, SlstmPlan, SlstmTensors};
use xlstm_cuda::{Architecture, SlstmSizes};

use super::{Card, address, expect, scratch};
use crate::KernelError;
use crate::shape::{dimensions, expect_shape};

const NAME: &str = "slstm (CUDA)";

/// Whether the card in use has a kernel for heads of this many units: it needs clusters (compute capability 9.0).
///
/// # Errors
/// When the card cannot be opened.
pub fn slstm_fits(units: i64, tensor: &Tensor) -> Result<bool, KernelError> {
    if !matches!(tensor.device(), Device::Cuda(_)) {
        return Ok(false);
    }
    let opened =
        Card::of(tensor).map_err(|source| xlstm_bridge::BridgeError::Forward { name: NAME, source })?;
    let known =
        u32::try_from(units).is_ok_and(|units| SlstmSizes::fastest(units, 1, Direction::Forward).is_some());
    Ok(known && opened.architecture() == Architecture::Sm90a)
}

/// `y_BTHE` from `x_BTGHE`, the gates' inputs with their biases, and R `(H, E in, G, E out)`; bf16. Gradients flow to
/// both.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the card fails.
pub fn slstm(x_BTGHE: &Tensor, recurrent_HEGE: &Tensor) -> Result<Tensor, KernelError> {
    let [batch, tokens, _, heads, units] = dimensions(NAME, "x_BTGHE", x_BTGHE)?;
    expect_shape(NAME, "x_BTGHE", x_BTGHE, &[batch, tokens, 4, heads, units])?;
    expect_shape(NAME, "recurrent_HEGE", recurrent_HEGE, &[heads, units, 4, units])?;
    let input = x_BTGHE.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    // The kernels' order, which is also that of the vanilla layout.
    let recurrent = recurrent_HEGE.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let mut outputs = custom_function(
        NAME,
        &[Some(&input), Some(&recurrent)],
        |recorded| forward(&input, &recurrent, recorded),
        backward,
    )?;
    Ok(outputs.swap_remove(0))
}

fn plan(input: &Tensor, direction: Direction) -> Result<SlstmPlan, BoxError> {
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", input)?;
    let (batch, units) = (u32::try_from(batch)?, u32::try_from(units)?);
    let sizes = SlstmSizes::fastest(units, batch, direction)
        .ok_or_else(|| format!("{NAME}: no kernel for heads of {units} units"))?;
    Ok(SlstmPlan { sizes, batch, tokens: u32::try_from(tokens)?, heads: u32::try_from(heads)? })
}

fn run(card: &Card, plan: &SlstmPlan, direction: Direction, tensors: &SlstmTensors) -> Result<(), BoxError> {
    if card.architecture() != SlstmPlan::ARCHITECTURE {
        return Err(format!(
            "{NAME}: expected a card of compute capability 9.0, found {}",
            card.architecture()
        )
        .into());
    }
    let (kernel, shape) = plan.launch(direction);
    let launch = LayerLaunch { kernel, shape, parts: 0 };
    // SAFETY: the tensors have the sizes that the plan states.
    unsafe { card.launch(plan.specialisation(), launch, &plan.parameters(tensors)) }
}

fn forward(input: &Tensor, recurrent: &Tensor, recorded: bool) -> Result<Forward, BoxError> {
    expect("slstm: x", input, Kind::BFloat16)?;
    expect("slstm: R", recurrent, Kind::BFloat16)?;
    let card = Card::of(input)?;
    let plan = plan(input, Direction::Forward)?;
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", input)?;
    let output = super::make(&[batch, tokens, heads, units], Kind::BFloat16, input)?;
    let (gate_bytes, state_bytes) = if recorded { plan.saved_bytes() } else { (0, 0) };
    let (gates, states) = (scratch(gate_bytes, input.device())?, scratch(state_bytes, input.device())?);
    let tensors = SlstmTensors {
        input: address(input),
        recurrent: address(recurrent),
        output: address(&output),
        gates: if recorded { address(&gates) } else { 0 },
        states: if recorded { address(&states) } else { 0 },
        ..SlstmTensors::default()
    };
    run(card, &plan, Direction::Forward, &tensors)?;
    let saved = vec![input.shallow_clone(), recurrent.shallow_clone(), output.shallow_clone(), gates, states];
    Ok(Forward { outputs: vec![output], saved })
}

fn backward(context: &Backward) -> Result<Vec<Option<Tensor>>, BoxError> {
    let [input, recurrent, output, gates, states] = context.saved.as_slice() else {
        return Err(format!("{} saved tensors, expected 5", context.saved.len()).into());
    };
    let gradient = context.gradients.first().and_then(Option::as_ref).ok_or("no gradient")?;
    let gradient = gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let card = Card::of(input)?;
    let plan = plan(input, Direction::Backward)?;
    let input_gradient = input.f_empty_like()?;
    let tensors = SlstmTensors {
        input: address(input),
        recurrent: address(recurrent),
        output: address(output),
        gates: address(gates),
        states: address(states),
        output_gradient: address(&gradient),
        input_gradient: address(&input_gradient),
    };
    run(card, &plan, Direction::Backward, &tensors)?;
    Ok(vec![Some(input_gradient.shallow_clone()), Some(recurrent_gradient(&input_gradient, output)?)])
}

/// `dR_HGEE = Σ_t dx_t y_{t-1}ᵀ`: products over all steps, by libtorch.
fn recurrent_gradient(input_gradient: &Tensor, output: &Tensor) -> Result<Tensor, BoxError> {
    let [batch, tokens, gates, heads, units] = dimensions::<5>(NAME, "x_BTGHE", input_gradient)?;
    // y of the step before: zeros before the first.
    let before = output.f_narrow(1, 0, tokens - 1)?.f_constant_pad_nd([0, 0, 0, 0, 1, 0])?;
    let before_HNE = before.f_view([batch * tokens, heads, units])?.f_permute([1, 0, 2])?;
    let rows = input_gradient.f_view([batch * tokens, gates, heads, units])?;
    let mut parts = Vec::with_capacity(4);
    for gate in 0..gates {
        let gradient_HEN = rows.f_select(1, gate)?.f_permute([1, 2, 0])?;
        parts.push(gradient_HEN.f_bmm(&before_HNE)?);
    }
    Ok(Tensor::f_stack(&parts, 1)?)
}
