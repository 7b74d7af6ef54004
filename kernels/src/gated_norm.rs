//! The norm of each head and the gate after it: what follows the recurrence in GLA, HGRN, RetNet, RWKV-5 and RWKV-6.
//!
//! ```text
//! (norm(o) ⊙ w + b) ⊙ SiLU(gate)
//! ```
//! On a GPU one kernel each way (`cuda/gated_norm.cu`); elsewhere libtorch's operations.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::gated_norm::{GatedNormForm, GatedNormParameters};

use crate::cuda::layout;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use crate::{KernelError, cuda};

const NAME: &str = "gated_norm";

/// How a head is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorm {
    /// `(x − mean) / sqrt(variance + ε)`.
    Layer,
    /// `x / sqrt(mean(x²) + ε)`.
    Rms,
}

/// Arguments of [`gated_norm`]. H heads of width E, D = H·E.
#[derive(Debug, Clone, Copy)]
pub struct GatedNormInput<'a> {
    /// What is normed, `(B, T, H, E)`.
    pub o_BTHE: &'a Tensor,
    /// w, `(D)`, or `(E)` for all heads alike.
    pub weight: &'a Tensor,
    /// b, `(D)`.
    pub bias_D: Option<&'a Tensor>,
    /// The gate before its SiLU, `(B, T, D)`.
    pub gate_BTD: &'a Tensor,
    /// How a head is normed.
    pub norm: HeadNorm,
    /// ε.
    pub epsilon: f64,
}

/// The gated norm, `(B, T, D)` in the type of the gate. Gradients flow to every argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn gated_norm(input: &GatedNormInput<'_>) -> Result<Tensor, KernelError> {
    let [batch, time, heads, width] = dimensions(NAME, "o_BTHE", input.o_BTHE)?;
    let whole = heads * width;
    let shared = input.weight.size() == [width];
    if !shared {
        expect_shape(NAME, "weight", input.weight, &[whole])?;
    }
    expect_shape(NAME, "gate_BTD", input.gate_BTD, &[batch, time, whole])?;
    if let Some(bias_D) = input.bias_D {
        expect_shape(NAME, "bias_D", bias_D, &[whole])?;
        expect_device(NAME, "bias_D", bias_D, input.o_BTHE)?;
    }
    for (argument, tensor) in [("weight", input.weight), ("gate_BTD", input.gate_BTD)] {
        expect_device(NAME, argument, tensor, input.o_BTHE)?;
        computing_kind(NAME, argument, tensor)?;
    }
    computing_kind(NAME, "o_BTHE", input.o_BTHE)?;
    match form(input, width) {
        Some(form) => fused(input, form, [batch, time, heads, width], shared),
        None => composed(input),
    }
}

/// Where there is a kernel: fp32 or bf16 on a GPU, parameters in fp32, heads of a power of two from 16 to 1024.
fn form(input: &GatedNormInput<'_>, width: i64) -> Option<GatedNormForm> {
    let float32 = |tensor: &Tensor| match tensor.kind() {
        Kind::Float => Some(true),
        Kind::BFloat16 => Some(false),
        _ => None,
    };
    let parameters =
        input.weight.kind() == Kind::Float && input.bias_D.is_none_or(|bias_D| bias_D.kind() == Kind::Float);
    if !parameters || input.o_BTHE.numel() == 0 || !cuda::enabled(input.o_BTHE.device()) {
        return None;
    }
    let types = [float32(input.gate_BTD)?, float32(input.o_BTHE)?];
    GatedNormForm::new(u32::try_from(width).ok()?, input.norm == HeadNorm::Rms, types)
}

/// libtorch's operations, on any device; the arguments have been checked.
fn composed(input: &GatedNormInput<'_>) -> Result<Tensor, KernelError> {
    let kind = match (input.o_BTHE.kind(), input.weight.kind()) {
        (Kind::Double, _) | (_, Kind::Double) => Kind::Double,
        _ => Kind::Float,
    };
    let o_BTHE = input.o_BTHE.f_to_kind(kind)?;
    let width = [o_BTHE.size()[3]];
    let none = None::<&Tensor>;
    let normal_BTHE = match input.norm {
        HeadNorm::Layer => o_BTHE.f_layer_norm(width, none, none, input.epsilon, true)?,
        HeadNorm::Rms => o_BTHE.f_rms_norm(width, none, input.epsilon)?,
    };
    let scaled_BTD = if input.weight.size() == width {
        (normal_BTHE * input.weight).f_flatten(2, 3)?
    } else {
        normal_BTHE.f_flatten(2, 3)? * input.weight
    };
    let y_BTD = match input.bias_D {
        Some(bias_D) => scaled_BTD + bias_D,
        None => scaled_BTD,
    };
    Ok((y_BTD * input.gate_BTD.f_to_kind(kind)?.f_silu()?).f_to_kind(input.gate_BTD.kind())?)
}

named_tensors! {
    struct Inputs<T> { o_NHE: T, weight: T, bias_D: T, gate_ND: T }

    struct Saved { inputs: Inputs<Option<Tensor>> }
}

/// What does not change from forward to backward.
#[derive(Debug, Clone, Copy)]
struct Settings {
    form: GatedNormForm,
    rows: i64,
    heads: i64,
    width: i64,
    /// Whether all heads have the same weights.
    shared: bool,
    epsilon: f64,
}

fn fused(
    input: &GatedNormInput<'_>,
    form: GatedNormForm,
    [batch, time, heads, width]: [i64; 4],
    shared: bool,
) -> Result<Tensor, KernelError> {
    let settings = Settings { form, rows: batch * time, heads, width, shared, epsilon: input.epsilon };
    let o_NHE = input.o_BTHE.f_reshape([settings.rows, heads, width])?;
    let gate_ND = input.gate_BTD.f_reshape([settings.rows, heads * width])?;
    let inputs = Inputs {
        o_NHE: Some(&o_NHE),
        weight: Some(input.weight),
        bias_D: input.bias_D,
        gate_ND: Some(&gate_ND),
    };
    let Output { y } = node(
        NAME,
        inputs,
        |_| forward(inputs, settings),
        move |saved: Saved, upstream: Output<Option<Tensor>>, _| {
            backward(&saved, &upstream.gradient()?, settings)
        },
    )?;
    Ok(y.f_view([batch, time, heads * width])?)
}

fn parameters(saved: &Saved, settings: Settings) -> Result<GatedNormParameters, BoxError> {
    let Settings { form, rows, heads, width, shared, epsilon } = settings;
    let Inputs { o_NHE, weight, bias_D, gate_ND } = &saved.inputs;
    let to = |tensor: &Option<Tensor>| cuda::optional_address(tensor.as_ref());
    let each = form.tokens_per_warp(u64::try_from(rows)?, u32::try_from(heads)?);
    Ok(GatedNormParameters {
        tokens: rows,
        heads: i32::try_from(heads)?,
        tokens_per_warp: i32::try_from(each)?,
        epsilon: epsilon as f32,
        weight_stride: if shared { 0 } else { i32::try_from(width)? },
        gate_stride: gate_ND.as_ref().map_or(0, |gate| gate.stride()[0]),
        input: to(o_NHE),
        weight: to(weight),
        bias: to(bias_D),
        gate: to(gate_ND),
        ..GatedNormParameters::default()
    })
}

fn forward(inputs: Inputs<Option<&Tensor>>, settings: Settings) -> Result<(Output<Tensor>, Saved), BoxError> {
    let Settings { form, rows, heads, width, .. } = settings;
    let dense = |tensor: Option<&Tensor>| tensor.map(layout::dense).transpose();
    let saved = Saved {
        inputs: Inputs {
            o_NHE: dense(inputs.o_NHE)?,
            weight: dense(inputs.weight)?,
            bias_D: dense(inputs.bias_D)?,
            gate_ND: inputs.gate_ND.map(|gate_ND| layout::rows(gate_ND, heads * width)).transpose()?,
        },
    };
    let gate = saved.inputs.gate_ND.as_ref().ok_or("no gate")?;
    let y = Tensor::f_empty([rows, heads * width], (gate.kind(), gate.device()))?;
    let launch = form.launch(u64::try_from(rows)?, u32::try_from(heads)?, false);
    let parameters = GatedNormParameters { output: cuda::address(&y), ..parameters(&saved, settings)? };
    // SAFETY: `y` and what is saved have the types of `form` and the sizes of `settings`, rows of gates the spacing that is said.
    unsafe { cuda::launch_on(&y, |gpu| form.specialization(gpu), launch, &parameters)? };
    Ok((Output { y }, saved))
}

fn backward(
    saved: &Saved,
    upstream: &Tensor,
    settings: Settings,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let Settings { form, rows, heads, width, shared, .. } = settings;
    let (Some(o_NHE), Some(gate_ND)) = (&saved.inputs.o_NHE, &saved.inputs.gate_ND) else {
        return Err("no input".into());
    };
    let upstream = layout::dense(&upstream.f_to_kind(gate_ND.kind())?)?;
    let input = o_NHE.f_empty_like()?;
    let gate = Tensor::f_empty([rows, heads * width], (gate_ND.kind(), gate_ND.device()))?;
    let launch = form.launch(u64::try_from(rows)?, u32::try_from(heads)?, true);
    let columns = 2 * heads * width;
    let partial = Tensor::f_empty([launch.parts.into(), columns], (Kind::Float, gate.device()))?;
    let parameters = GatedNormParameters {
        output_gradient: cuda::address(&upstream),
        input_gradient: cuda::address(&input),
        gate_gradient: cuda::address(&gate),
        partial: cuda::address(&partial),
        ..parameters(saved, settings)?
    };
    // SAFETY: as in `forward`; `partial` has the rows that the launch states.
    unsafe { cuda::launch_on(&gate, |gpu| form.specialization(gpu), launch, &parameters)? };
    let sums_2HE = cuda::launch::sum_of_rows(&partial)?.f_view([2, heads, width])?;
    let weight_HE = sums_2HE.f_select(0, 0)?;
    let weight = if shared {
        weight_HE.f_sum_dim_intlist(0, false, Kind::Float)?
    } else {
        weight_HE.f_flatten(0, 1)?
    };
    let bias_D =
        saved.inputs.bias_D.as_ref().map(|_| sums_2HE.f_select(0, 1)?.f_flatten(0, 1)).transpose()?;
    Ok(Inputs { o_NHE: Some(input), weight: Some(weight), bias_D, gate_ND: Some(gate) })
}
