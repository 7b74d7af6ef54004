//! sLSTM and LSTM in float32 on the GPU, on activations of float32 or bf16, inside libtorch's autograd (`recurrent.cu`).
//!
//! Everything that the CPU's fused kernel has: states in and out with their gradients, resets, a clamped gradient, the
//! exponential forget gate. Products are float32 whatever libtorch's larger ones are (TF32 or not). It keeps seven numbers a
//! unit and step. States travel as one tensor `(4, B, H, E)`: h, c, n, m; of an LSTM, n and m are unused.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::recurrent::{Cell, RecurrentPlan, RecurrentSizes, RecurrentTensors};

use super::{Gpu, address, contiguous, make, optional_address};
use crate::KernelError;
use crate::shape::{dimensions, expect_device, expect_resets, expect_shape};

const NAME: &str = "recurrent (CUDA)";

named_tensors! {
    struct Inputs<T> { x_BTGHE: T, recurrent_HEGE: T, bias_GHE: T, state_SBHE: T }

    struct Outputs<T> { y_BTHE: T, last_SBHE: T }

    struct Saved {
        x_BTGHE: Tensor,
        recurrent_HEGE: Tensor,
        bias_GHE: Tensor,
        state_SBHE: Option<Tensor>,
        resets_BT: Option<Tensor>,
        y_BTHE: Tensor,
        /// Gates and states of each step, `(B, T, H, 7, E)`.
        steps: Tensor,
    }
}

/// Arguments of [`recurrent`].
#[derive(Debug, Clone, Copy)]
pub struct RecurrentInput<'a> {
    /// Gate inputs W x, `(B, T, G, H, E)`, float32 or bf16, gates in the order input, forget, z (cell input), output.
    pub x_BTGHE: &'a Tensor,
    /// Recurrent weights, `(H, E in, G, E out)`, float32.
    pub recurrent_HEGE: &'a Tensor,
    /// Biases, `(G, H, E)`, float32.
    pub bias_GHE: &'a Tensor,
    /// h, c, n, m before the first step, `(4, B, H, E)`, float32; `None` for zeros.
    pub state_SBHE: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
    /// sLSTM or LSTM.
    pub cell: Cell,
    /// Forget by exp(f) instead of σ(f) (sLSTM alone; paper eq. 14).
    pub exponential_forget: bool,
    /// Clamp the gradient that flows back through R to this magnitude.
    pub gradient_clip: Option<f64>,
}

/// Whether this tensor lies on a GPU and there is a kernel for heads of so many units: [`RecurrentSizes::new`].
pub fn recurrent_fits(units: i64, tensor: &Tensor) -> bool {
    let known = u32::try_from(units).is_ok_and(|units| RecurrentSizes::new(units, Cell::Slstm).is_some());
    known && matches!(tensor.device(), Device::Cuda(_))
}

/// Outputs `(B, T, H, E)`, in the type of `x_BTGHE`, and the state after the last step, `(4, B, H, E)`, float32. Gradients
/// flow to every floating-point argument.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, there is no kernel for the size, or the GPU fails.
pub fn recurrent(input: &RecurrentInput<'_>) -> Result<(Tensor, Tensor), KernelError> {
    let [batch, tokens, _, heads, units] = dimensions(NAME, "x_BTGHE", input.x_BTGHE)?;
    expect_shape(NAME, "x_BTGHE", input.x_BTGHE, &[batch, tokens, 4, heads, units])?;
    expect_shape(NAME, "recurrent_HEGE", input.recurrent_HEGE, &[heads, units, 4, units])?;
    expect_shape(NAME, "bias_GHE", input.bias_GHE, &[4, heads, units])?;
    expect_resets(NAME, input.resets_BT, input.x_BTGHE, [batch, tokens])?;
    if let Some(state) = input.state_SBHE {
        expect_shape(NAME, "state_SBHE", state, &[4, batch, heads, units])?;
    }
    let others = [("recurrent_HEGE", input.recurrent_HEGE), ("bias_GHE", input.bias_GHE)];
    let optional = [("state_SBHE", input.state_SBHE), ("resets_BT", input.resets_BT)];
    let optional = optional.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
    for (argument, tensor) in others.into_iter().chain(optional) {
        expect_device(NAME, argument, tensor, input.x_BTGHE)?;
    }
    let options = Options {
        cell: input.cell,
        exponential_forget: input.exponential_forget,
        clip: input.gradient_clip.unwrap_or(0.0) as f32,
    };
    let inputs = Inputs {
        x_BTGHE: Some(input.x_BTGHE),
        recurrent_HEGE: Some(input.recurrent_HEGE),
        bias_GHE: Some(input.bias_GHE),
        state_SBHE: input.state_SBHE,
    };
    let Outputs { y_BTHE, last_SBHE } = node(
        NAME,
        inputs,
        |recorded| forward(input, options, recorded),
        move |saved: Saved, upstream, wanted| backward(&saved, upstream, wanted, options),
    )?;
    Ok((y_BTHE, last_SBHE))
}

#[derive(Clone, Copy)]
struct Options {
    cell: Cell,
    exponential_forget: bool,
    clip: f32,
}

fn plan(gpu: &Gpu, x_BTGHE: &Tensor, options: Options) -> Result<RecurrentPlan, BoxError> {
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", x_BTGHE)?;
    if batch * tokens >= 1 << 31 {
        return Err(
            format!("{NAME}: expected fewer than 2^31 steps in a call, found {batch} x {tokens}").into()
        );
    }
    let sizes = RecurrentSizes::new(u32::try_from(units)?, options.cell)
        .ok_or_else(|| format!("{NAME}: expected heads of a multiple of 8 units up to 128, of 16 up to 256 or of 32 up to 640, found {units}"))?;
    let half = x_BTGHE.kind() == Kind::BFloat16;
    Ok(RecurrentPlan {
        sizes: if half { sizes.on_half() } else { sizes },
        architecture: gpu.architecture(),
        batch: u32::try_from(batch)?,
        tokens: u32::try_from(tokens)?,
        heads: u32::try_from(heads)?,
        exponential_forget: options.exponential_forget,
        clip: options.clip,
    })
}

/// Dense and float32, as the kernels take it.
fn dense(name: &str, tensor: &Tensor) -> Result<Tensor, BoxError> {
    contiguous(NAME, name, tensor, Kind::Float)
}

fn forward(
    input: &RecurrentInput<'_>,
    options: Options,
    recorded: bool,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let [batch, tokens, _, heads, units] = dimensions::<5>(NAME, "x_BTGHE", input.x_BTGHE)?;
    let like = input.x_BTGHE;
    let gpu = Gpu::of(like)?;
    let plan = plan(gpu, like, options)?;
    let float = |shape: &[i64]| make(shape, Kind::Float, like);
    let kind = if like.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
    let steps = if recorded { batch } else { 0 };
    let saved = Saved {
        x_BTGHE: contiguous(NAME, "x", input.x_BTGHE, kind)?,
        recurrent_HEGE: dense("R", input.recurrent_HEGE)?,
        bias_GHE: dense("b", input.bias_GHE)?,
        state_SBHE: input.state_SBHE.map(|state| dense("state", state)).transpose()?,
        resets_BT: input.resets_BT.map(Tensor::f_contiguous).transpose()?,
        y_BTHE: make(&[batch, tokens, heads, units], kind, like)?,
        steps: float(&[steps, tokens, heads, RecurrentPlan::saved_values(), units])?,
    };
    let last_SBHE = float(&[4, batch, heads, units])?;
    let tensors = RecurrentTensors { last: address(&last_SBHE), ..saved.tensors(recorded) };
    // SAFETY: the tensors are dense and have the sizes that the plan states.
    unsafe { gpu.launch(plan.specialization(), plan.forward(), &plan.parameters(&tensors))? };
    Ok((Outputs { y_BTHE: saved.y_BTHE.shallow_clone(), last_SBHE }, saved))
}

impl Saved {
    fn tensors(&self, recorded: bool) -> RecurrentTensors {
        RecurrentTensors {
            input: address(&self.x_BTGHE),
            recurrent: address(&self.recurrent_HEGE),
            bias: address(&self.bias_GHE),
            resets: optional_address(self.resets_BT.as_ref()),
            state: optional_address(self.state_SBHE.as_ref()),
            output: address(&self.y_BTHE),
            saved: if recorded { address(&self.steps) } else { 0 },
            ..RecurrentTensors::default()
        }
    }
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    wanted: Inputs<bool>,
    options: Options,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let gpu = Gpu::of(&saved.x_BTGHE)?;
    let plan = plan(gpu, &saved.x_BTGHE, options)?;
    let y_gradient = match upstream.y_BTHE {
        Some(gradient) => contiguous(NAME, "gradient of y", &gradient, saved.y_BTHE.kind())?,
        None => saved.y_BTHE.f_zeros_like()?,
    };
    let last_gradient =
        upstream.last_SBHE.map(|gradient| dense("gradient of the state", &gradient)).transpose()?;
    let x_gradient = saved.x_BTGHE.f_empty_like()?;
    let state_gradient = match &saved.state_SBHE {
        Some(state) if wanted.state_SBHE => Some(state.f_empty_like()?),
        _ => None,
    };
    let weights = plan.weights();
    let parts = |like: &Tensor| {
        make(&[&[i64::from(weights.parts)], like.size().as_slice()].concat(), Kind::Float, like)
    };
    let (recurrent_parts, bias_parts) = (parts(&saved.recurrent_HEGE)?, parts(&saved.bias_GHE)?);
    let tensors = RecurrentTensors {
        output_gradient: address(&y_gradient),
        last_gradient: optional_address(last_gradient.as_ref()),
        input_gradient: address(&x_gradient),
        state_gradient: optional_address(state_gradient.as_ref()),
        recurrent_gradient: address(&recurrent_parts),
        bias_gradient: address(&bias_parts),
        ..saved.tensors(true)
    };
    let parameters = plan.parameters(&tensors);
    // SAFETY: the tensors are dense and have the sizes that the plan states; `steps` was filled by the forward pass.
    unsafe {
        gpu.launch(plan.specialization(), plan.backward(), &parameters)?;
        gpu.launch(plan.specialization(), weights, &parameters)?;
    }
    let sum = |parts: &Tensor, like: &Tensor| -> Result<Tensor, BoxError> {
        let rows = parts.f_view([i64::from(weights.parts), -1])?;
        Ok(super::launch::sum_columns(gpu, &rows)?.f_view(like.size().as_slice())?)
    };
    Ok(Inputs {
        x_BTGHE: Some(x_gradient),
        recurrent_HEGE: Some(sum(&recurrent_parts, &saved.recurrent_HEGE)?),
        bias_GHE: Some(sum(&bias_parts, &saved.bias_GHE)?),
        state_SBHE: state_gradient,
    })
}
