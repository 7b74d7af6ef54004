//! The float32 mLSTM over a sequence of at most 64 tokens that nothing stands before and nothing goes on after, in one node
//! of libtorch's graph (`mlstm_short.cu`).
//!
//! One kernel forward and one backward, where the chunkwise version (`precise.rs`) has some thirty: at the sizes of the
//! paper's synthetic tasks (section 4.1) that is what a step's time is made of. It keeps its inputs and two numbers a token
//! and head.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::{Named as _, Output};
use xlstm_bridge::{BoxError, BridgeError, named_tensors};
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::short::{ShortParameters, ShortSizes};

use super::{Gpu, address, contiguous, make, optional_address};
use crate::KernelError;
use crate::mlstm::{EPSILON, MlstmInput};
use crate::shape::dimensions;

const NAME: &str = "mlstm (CUDA, short)";

named_tensors! {
    struct Inputs<T> { query: T, key: T, value: T, input_gate: T, forget_gate: T }

    struct Saved {
        query: Tensor,
        key: Tensor,
        value: Tensor,
        input_gate: Tensor,
        forget_gate: Tensor,
        norm: Tensor,
        inverse_denominator: Tensor,
        resets: Option<Tensor>,
    }
}

/// Whether there is a kernel for this call: float32 without a state, and sizes that [`ShortSizes::new`] knows.
///
/// # Errors
/// When the GPU cannot be opened.
pub(crate) fn fits(input: &MlstmInput<'_>) -> Result<bool, KernelError> {
    if input.state.is_some() || input.q_BTHK.kind() != Kind::Float {
        return Ok(false);
    }
    let failed = |source| BridgeError::Forward { name: NAME, source };
    let gpu = Gpu::of(input.q_BTHK).map_err(failed)?;
    Ok(sizes(gpu, input.q_BTHK, input.v_BTHV).map_err(failed)?.is_some())
}

fn sizes(gpu: &Gpu, q_BTHK: &Tensor, v_BTHV: &Tensor) -> Result<Option<ShortSizes>, BoxError> {
    let [_, tokens, _, key] = dimensions::<4>(NAME, "q_BTHK", q_BTHK)?;
    let [.., value] = dimensions::<4>(NAME, "v_BTHV", v_BTHV)?;
    let (Ok(tokens), Ok(key), Ok(value)) = (u32::try_from(tokens), u32::try_from(key), u32::try_from(value))
    else {
        return Ok(None);
    };
    Ok(ShortSizes::new(gpu.architecture(), tokens, key, value))
}

/// h, `(B, T, H, V)`. All tensors are `Float` on one GPU, of shapes that the caller has checked, and [`fits`] says yes.
/// Gradients flow to all of them.
///
/// # Errors
/// [`KernelError`] when the GPU or its compiler fails.
pub(crate) fn mlstm(input: &MlstmInput<'_>) -> Result<Tensor, KernelError> {
    let inputs = Inputs {
        query: input.q_BTHK,
        key: input.k_BTHK,
        value: input.v_BTHV,
        input_gate: input.i_BTH,
        forget_gate: input.f_BTH,
    };
    let Output { y } = node(
        NAME,
        inputs.map(Some),
        |recorded| forward(inputs, input.resets_BT, recorded),
        |saved: Saved, upstream: Output<Option<Tensor>>, _| backward(&saved, &upstream.gradient()?),
    )?;
    Ok(y)
}

/// Dense and float32, as the kernels take it.
fn dense(name: &str, tensor: &Tensor) -> Result<Tensor, BoxError> {
    contiguous(NAME, name, tensor, Kind::Float)
}

impl Saved {
    fn parameters(&self) -> Result<ShortParameters, BoxError> {
        let [_, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", &self.query)?;
        Ok(ShortParameters {
            heads: i32::try_from(heads)?,
            tokens: i32::try_from(tokens)?,
            key_scale: (key as f64).powf(-0.5) as f32,
            epsilon: EPSILON as f32,
            query: address(&self.query),
            key: address(&self.key),
            value: address(&self.value),
            input_gate: address(&self.input_gate),
            forget_gate: address(&self.forget_gate),
            resets: optional_address(self.resets.as_ref()),
            ..ShortParameters::default()
        })
    }

    fn launch(&self, parameters: &ShortParameters, backward: bool) -> Result<(), BoxError> {
        let gpu = Gpu::of(&self.query)?;
        let [batch, _, heads, _] = dimensions::<4>(NAME, "q_BTHK", &self.query)?;
        let sizes = sizes(gpu, &self.query, &self.value)?
            .ok_or_else(|| format!("{NAME}: no kernel for queries of {:?}", self.query.size()))?;
        let launch: LayerLaunch = sizes.launch(u32::try_from(batch)?, u32::try_from(heads)?, backward);
        // SAFETY: the tensors are dense and have the sizes that the structure and the launch state.
        unsafe { gpu.launch(sizes.specialization(gpu.architecture()), launch, parameters) }
    }
}

fn forward(
    inputs: Inputs<&Tensor>,
    resets: Option<&Tensor>,
    recorded: bool,
) -> Result<(Output<Tensor>, Saved), BoxError> {
    let [batch, tokens, heads, _] = dimensions::<4>(NAME, "q_BTHK", inputs.query)?;
    let kept = if recorded { batch } else { 0 };
    let number = || make(&[kept, heads, tokens], Kind::Float, inputs.query);
    let saved = Saved {
        query: dense("queries", inputs.query)?,
        key: dense("keys", inputs.key)?,
        value: dense("values", inputs.value)?,
        input_gate: dense("input gates", inputs.input_gate)?,
        forget_gate: dense("forget gates", inputs.forget_gate)?,
        norm: number()?,
        inverse_denominator: number()?,
        resets: resets.map(Tensor::f_contiguous).transpose()?,
    };
    let y = saved.value.f_empty_like()?;
    let address_if_kept = |tensor: &Tensor| if recorded { address(tensor) } else { 0 };
    let parameters = ShortParameters {
        output: address(&y),
        norm: address_if_kept(&saved.norm),
        inverse_denominator: address_if_kept(&saved.inverse_denominator),
        ..saved.parameters()?
    };
    saved.launch(&parameters, false)?;
    Ok((Output { y }, saved))
}

fn backward(saved: &Saved, upstream: &Tensor) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let upstream = dense("gradient of h", upstream)?;
    let gradients = Inputs {
        query: saved.query.f_empty_like()?,
        key: saved.key.f_empty_like()?,
        value: saved.value.f_empty_like()?,
        input_gate: saved.input_gate.f_empty_like()?,
        forget_gate: saved.forget_gate.f_empty_like()?,
    };
    let parameters = ShortParameters {
        output_gradient: address(&upstream),
        norm: address(&saved.norm),
        inverse_denominator: address(&saved.inverse_denominator),
        query_gradient: address(&gradients.query),
        key_gradient: address(&gradients.key),
        value_gradient: address(&gradients.value),
        input_gate_gradient: address(&gradients.input_gate),
        forget_gate_gradient: address(&gradients.forget_gate),
        ..saved.parameters()?
    };
    saved.launch(&parameters, true)?;
    Ok(gradients.map(Some))
}
