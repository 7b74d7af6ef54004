//! The sLSTM on the GPU in bf16, inside libtorch's autograd (`slstm.cu`).
//!
//! For heads of 192 to 640 units, and for others by way of float32 (`recurrent.cu`). It keeps five bf16 and two fp32 numbers a
//! unit and step. A state may be given and taken, as one fp32 tensor `(4, B, H, E)`: h, c, n, m; gradients end there, as in
//! truncated backpropagation. No clamped gradients, no exponential forget gate.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, BridgeError, named_tensors};
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::recurrent::Cell;
use xlstm_cuda::slstm::{Direction, SlstmPlan, SlstmTensors};
use xlstm_cuda::{Architecture, SlstmSizes};

use super::recurrent::{RecurrentInput, recurrent, recurrent_fits};
use super::{Gpu, address, expect, optional_address, scratch};
use crate::KernelError;
use crate::shape::{dimensions, expect_device, expect_resets, expect_shape};

const NAME: &str = "slstm (CUDA)";

named_tensors! {
    struct Inputs<T> { x_BTGHE: T, recurrent_HGEE: T }

    struct Outputs<T> { y_BTHE: T }

    struct Saved {
        x_BTGHE: Tensor,
        recurrent_HGEE: Tensor,
        resets_BT: Option<Tensor>,
        state_SBHE: Option<Tensor>,
        y_BTHE: Tensor,
        /// Gates of each step, five bf16 a unit.
        gates: Tensor,
        /// c and n of each step, fp32.
        states: Tensor,
    }
}

/// Whether there is a kernel for heads of this many units, on the GPU that holds the tensor.
///
/// # Errors
/// When the GPU cannot be opened.
pub fn slstm_fits(units: i64, tensor: &Tensor) -> Result<bool, KernelError> {
    Ok(slstm_rounds_weights(units, tensor)? || recurrent_fits(units, tensor))
}

/// Whether [`slstm_from`] computes heads of this many units by the bf16 kernel, which rounds R to bf16.
///
/// # Errors
/// When the GPU cannot be opened.
pub fn slstm_rounds_weights(units: i64, tensor: &Tensor) -> Result<bool, KernelError> {
    if !matches!(tensor.device(), Device::Cuda(_)) {
        return Ok(false);
    }
    let failed = |source| BridgeError::Forward { name: NAME, source };
    let architecture = Gpu::of(tensor).map_err(failed)?.architecture();
    Ok(sizes(architecture, units, 1, Direction::Forward).is_some())
}

fn sizes(architecture: Architecture, units: i64, batch: i64, direction: Direction) -> Option<SlstmSizes> {
    let (units, batch) = (u32::try_from(units).ok()?, u32::try_from(batch).ok()?);
    SlstmSizes::fastest(architecture, units, batch, direction)
}

/// Arguments of [`slstm_from`].
#[derive(Debug, Clone, Copy)]
pub struct SlstmSequence<'a> {
    /// The gates' inputs, `(B, T, G, H, E)`, bf16.
    pub x_BTGHE: &'a Tensor,
    /// The gates' biases, `(G, H, E)`, float32, where `x_BTGHE` is without them.
    pub bias_GHE: Option<&'a Tensor>,
    /// Recurrent weights, `(H, E in, G, E out)`.
    pub recurrent_HEGE: &'a Tensor,
    /// h, c, n, m before the first step, `(4, B, H, E)`; `None` for zeros. It gets no gradient.
    pub state_SBHE: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// `y_BTHE` from `x_BTGHE`, the gates' inputs with their biases, and R `(H, E in, G, E out)`; bf16. Gradients flow to
/// both.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn slstm(x_BTGHE: &Tensor, recurrent_HEGE: &Tensor) -> Result<Tensor, KernelError> {
    let input = SlstmSequence { x_BTGHE, bias_GHE: None, recurrent_HEGE, state_SBHE: None, resets_BT: None };
    Ok(slstm_from(&input)?.0)
}

/// As [`slstm`], from a state and with resets: outputs, and the state after the last step, `(4, B, H, E)`, fp32, which no
/// gradient flows back from.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, or the GPU fails.
pub fn slstm_from(input: &SlstmSequence<'_>) -> Result<(Tensor, Tensor), KernelError> {
    let [batch, tokens, _, heads, units] = dimensions(NAME, "x_BTGHE", input.x_BTGHE)?;
    expect_shape(NAME, "x_BTGHE", input.x_BTGHE, &[batch, tokens, 4, heads, units])?;
    expect_shape(NAME, "recurrent_HEGE", input.recurrent_HEGE, &[heads, units, 4, units])?;
    expect_resets(NAME, input.resets_BT, input.x_BTGHE, [batch, tokens])?;
    if let Some(state) = input.state_SBHE {
        expect_shape(NAME, "state_SBHE", state, &[4, batch, heads, units])?;
        expect_device(NAME, "state_SBHE", state, input.x_BTGHE)?;
    }
    let failed = |source| BridgeError::Forward { name: NAME, source };
    let gpu = Gpu::of(input.x_BTGHE).map_err(failed)?;
    if sizes(gpu.architecture(), units, batch, Direction::Forward).is_none() {
        return by_float(input, [heads, units]);
    }
    let x_BTGHE = match input.bias_GHE {
        // Added in fp32, and the sum rounded once.
        Some(bias_GHE) => input.x_BTGHE.f_add(bias_GHE)?,
        None => input.x_BTGHE.shallow_clone(),
    };
    let x_BTGHE = x_BTGHE.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    // The kernels' order, which is also that of the vanilla layout.
    let recurrent_HGEE =
        input.recurrent_HEGE.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let state_SBHE =
        input.state_SBHE.map(|state| state.detach().f_to_kind(Kind::Float)?.f_contiguous()).transpose()?;
    let resets_BT = input.resets_BT.map(Tensor::f_contiguous).transpose()?;
    let last_SBHE = Tensor::f_empty([4, batch, heads, units], (Kind::Float, x_BTGHE.device()))?;
    let Outputs { y_BTHE } = node(
        NAME,
        Inputs { x_BTGHE: Some(&x_BTGHE), recurrent_HGEE: Some(&recurrent_HGEE) },
        |recorded| forward(&x_BTGHE, &recurrent_HGEE, state_SBHE, resets_BT, &last_SBHE, recorded),
        |saved: Saved, upstream, _| backward(&saved, upstream),
    )?;
    Ok((y_BTHE, last_SBHE))
}

/// Heads of other sizes: the float32 kernels on bf16 activations.
fn by_float(input: &SlstmSequence<'_>, [heads, units]: [i64; 2]) -> Result<(Tensor, Tensor), KernelError> {
    let float = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
    let bias_GHE = match input.bias_GHE {
        Some(bias_GHE) => float(bias_GHE)?,
        None => Tensor::f_zeros([4, heads, units], (Kind::Float, input.x_BTGHE.device()))?,
    };
    let state_SBHE = input.state_SBHE.map(|state| float(&state.detach())).transpose()?;
    let (y_BTHE, last_SBHE) = recurrent(&RecurrentInput {
        x_BTGHE: &input.x_BTGHE.f_to_kind(Kind::BFloat16)?,
        recurrent_HEGE: &float(input.recurrent_HEGE)?,
        bias_GHE: &bias_GHE,
        state_SBHE: state_SBHE.as_ref(),
        resets_BT: input.resets_BT,
        cell: Cell::Slstm,
        exponential_forget: false,
        gradient_clip: None,
    })?;
    Ok((y_BTHE, last_SBHE.detach()))
}

fn plan(gpu: &Gpu, x_BTGHE: &Tensor, direction: Direction) -> Result<SlstmPlan, BoxError> {
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", x_BTGHE)?;
    let architecture = gpu.architecture();
    let sizes = sizes(architecture, units, batch, direction)
        .ok_or_else(|| format!("{NAME}: no kernel for heads of {units} units"))?;
    let (batch, tokens) = (u32::try_from(batch)?, u32::try_from(tokens)?);
    Ok(SlstmPlan { sizes, architecture, batch, tokens, heads: u32::try_from(heads)? })
}

fn run(
    gpu: &Gpu,
    plan: &SlstmPlan,
    direction: Direction,
    tensors: SlstmTensors,
    device: Device,
) -> Result<(), BoxError> {
    let messages = scratch(plan.exchange_bytes(), device)?;
    let sent = Tensor::f_zeros([i64::from(plan.groups())], (Kind::Int, device))?;
    let tensors = SlstmTensors { messages: address(&messages), sent: address(&sent), ..tensors };
    let (kernel, launches) = plan.launches(direction, gpu.driver().multiprocessors());
    for (first, shape) in launches {
        let launch = LayerLaunch { kernel, shape, parts: 0 };
        let parameters = plan.parameters(&tensors, first);
        // SAFETY: the tensors have the sizes that the plan states.
        unsafe {
            if plan.sizes.clustered {
                gpu.launch(plan.specialization(), launch, &parameters)?;
            } else {
                gpu.launch_cooperative(plan.specialization(), launch, &parameters)?;
            }
        }
    }
    Ok(())
}

fn forward(
    x_BTGHE: &Tensor,
    recurrent_HGEE: &Tensor,
    state_SBHE: Option<Tensor>,
    resets_BT: Option<Tensor>,
    last_SBHE: &Tensor,
    recorded: bool,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    expect("slstm: x", x_BTGHE, Kind::BFloat16)?;
    expect("slstm: R", recurrent_HGEE, Kind::BFloat16)?;
    let gpu = Gpu::of(x_BTGHE)?;
    let plan = plan(gpu, x_BTGHE, Direction::Forward)?;
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", x_BTGHE)?;
    let device = x_BTGHE.device();
    let (gate_bytes, state_bytes) = if recorded { plan.saved_bytes() } else { (0, 0) };
    let saved = Saved {
        x_BTGHE: x_BTGHE.shallow_clone(),
        recurrent_HGEE: recurrent_HGEE.shallow_clone(),
        resets_BT,
        state_SBHE,
        y_BTHE: super::make(&[batch, tokens, heads, units], Kind::BFloat16, x_BTGHE)?,
        gates: scratch(gate_bytes, device)?,
        states: scratch(state_bytes, device)?,
    };
    let tensors = SlstmTensors { last: address(last_SBHE), ..saved.tensors(recorded) };
    run(gpu, &plan, Direction::Forward, tensors, device)?;
    Ok((Outputs { y_BTHE: saved.y_BTHE.shallow_clone() }, saved))
}

impl Saved {
    fn tensors(&self, recorded: bool) -> SlstmTensors {
        SlstmTensors {
            input: address(&self.x_BTGHE),
            recurrent: address(&self.recurrent_HGEE),
            output: address(&self.y_BTHE),
            gates: if recorded { address(&self.gates) } else { 0 },
            states: if recorded { address(&self.states) } else { 0 },
            resets: optional_address(self.resets_BT.as_ref()),
            state: optional_address(self.state_SBHE.as_ref()),
            ..SlstmTensors::default()
        }
    }
}

fn backward(saved: &Saved, upstream: Outputs<Option<Tensor>>) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let gradient = upstream.y_BTHE.ok_or("the output has no gradient")?;
    let gradient = gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let gpu = Gpu::of(&saved.x_BTGHE)?;
    let plan = plan(gpu, &saved.x_BTGHE, Direction::Backward)?;
    let x_gradient = saved.x_BTGHE.f_empty_like()?;
    let tensors = SlstmTensors {
        output_gradient: address(&gradient),
        input_gradient: address(&x_gradient),
        ..saved.tensors(true)
    };
    run(gpu, &plan, Direction::Backward, tensors, saved.x_BTGHE.device())?;
    let recurrent_gradient = recurrent_gradient(&x_gradient, saved)?;
    Ok(Inputs { x_BTGHE: Some(x_gradient), recurrent_HGEE: Some(recurrent_gradient) })
}

/// `dR_HGEE = Σ_t dx_t y_{t-1}ᵀ`: products over all steps, by libtorch.
fn recurrent_gradient(x_gradient: &Tensor, saved: &Saved) -> Result<Tensor, BoxError> {
    let [batch, tokens, gates, heads, units] = dimensions::<5>(NAME, "x_BTGHE", x_gradient)?;
    let earlier = saved.y_BTHE.f_narrow(1, 0, tokens - 1)?;
    // y of the step before: that of the state, or zeros.
    let mut before = match &saved.state_SBHE {
        None => earlier.f_constant_pad_nd([0, 0, 0, 0, 1, 0])?,
        Some(state) => {
            let first = state.f_select(0, 0)?.f_to_kind(Kind::BFloat16)?.f_unsqueeze(1)?;
            Tensor::f_cat(&[first, earlier], 1)?
        }
    };
    if let Some(resets) = &saved.resets_BT {
        let _ = before.f_masked_fill_(&resets.f_view([batch, tokens, 1, 1])?, 0.0)?;
    }
    let before_HNE = before.f_view([batch * tokens, heads, units])?.f_permute([1, 0, 2])?;
    let rows = x_gradient.f_view([batch * tokens, gates, heads, units])?;
    let mut parts = Vec::with_capacity(4);
    for gate in 0..gates {
        let gradient_HEN = rows.f_select(1, gate)?.f_permute([1, 2, 0])?;
        parts.push(gradient_HEN.f_bmm(&before_HNE)?);
    }
    Ok(Tensor::f_stack(&parts, 1)?)
}
