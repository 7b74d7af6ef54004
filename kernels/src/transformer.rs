//! What stands between the products of Llama and of those with its shell: rotary positions and SwiGLU.
//!
//! On a GPU, in fp32 or bf16, one kernel each way (`cuda/transformer.cu`), computed in fp32; elsewhere libtorch's operations.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::transformer::{RotaryParameters, SwigluParameters};
use xlstm_cuda::{Architecture, Specialization};

use crate::cuda::layout;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use crate::{KernelError, cuda};

/// Whether kernels take activations like this one.
fn fits(tensor: &Tensor) -> bool {
    let known = matches!(tensor.kind(), Kind::Float | Kind::BFloat16);
    known && tensor.numel() > 0 && cuda::enabled(tensor.device())
}

/// What is compiled for activations like this one.
fn specialization(like: &Tensor) -> impl FnOnce(Architecture) -> Specialization {
    let float32 = like.kind() == Kind::Float;
    move |gpu| Specialization::transformer(gpu, float32)
}

/// Turns each head's halves (a, b) by the angles of its token, `(a cos − b sin, b cos + a sin)`: `x_BTHE` in its own type, the
/// cosines and sines `(B, T, E/2)`, or `(1, T, E/2)` for all sequences, in the computing type, without gradients.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn rotary(x_BTHE: &Tensor, cosine_BTJ: &Tensor, sine_BTJ: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "rotary";
    let [batch, time, _, width] = dimensions(NAME, "x_BTHE", x_BTHE)?;
    for (argument, angles) in [("cosine_BTJ", cosine_BTJ), ("sine_BTJ", sine_BTJ)] {
        let shape = if angles.size().first() == Some(&1) { 1 } else { batch };
        expect_shape(NAME, argument, angles, &[shape, time, width / 2])?;
        expect_device(NAME, argument, angles, x_BTHE)?;
    }
    computing_kind(NAME, "x_BTHE", x_BTHE)?;
    expect_shape(NAME, "sine_BTJ", sine_BTJ, &cosine_BTJ.size())?;
    if sine_BTJ.kind() != cosine_BTJ.kind() {
        let (expected, found) = ("the type of the cosines", sine_BTJ.kind());
        return Err(KernelError::Kind { function: NAME, argument: "sine_BTJ", expected, found });
    }
    if !fits(x_BTHE) || width % 8 != 0 || cosine_BTJ.kind() != Kind::Float {
        return composed_rotary(x_BTHE, cosine_BTJ, sine_BTJ);
    }
    let (cosine, sine) = (layout::dense(cosine_BTJ)?, layout::dense(sine_BTJ)?);
    let kind = x_BTHE.kind();
    let Output { y } = node(
        NAME,
        Output { y: Some(x_BTHE) },
        |_| {
            let angles = Angles { cosine_BTJ: cosine, sine_BTJ: sine };
            Ok((Output { y: turn(x_BTHE, &angles, 1.0)? }, angles))
        },
        move |angles: Angles, upstream: Output<Option<Tensor>>, _| {
            let upstream = upstream.gradient()?.f_to_kind(kind)?;
            Ok(Output { y: Some(turn(&upstream, &angles, -1.0)?) })
        },
    )?;
    Ok(y)
}

/// One way (1) or back (−1).
fn turn(x_BTHE: &Tensor, angles: &Angles, direction: f32) -> Result<Tensor, BoxError> {
    let [batch, time, heads, width] = dimensions("rotary", "x_BTHE", x_BTHE)?;
    let x_BTHE = layout::dense(x_BTHE)?;
    let output = x_BTHE.f_empty_like()?;
    let parameters = RotaryParameters {
        tokens: batch * time,
        heads: i32::try_from(heads)?,
        width: i32::try_from(width)?,
        angles: angles.cosine_BTJ.size()[0] * time,
        direction,
        input: cuda::address(&x_BTHE),
        cosine: cuda::address(&angles.cosine_BTJ),
        sine: cuda::address(&angles.sine_BTJ),
        output: cuda::address(&output),
        ..RotaryParameters::default()
    };
    let [tokens, heads, width] = [batch * time, heads, width].map(u64::try_from);
    let launch = RotaryParameters::launch(tokens?, heads?, width?);
    // SAFETY: dense tensors of the sizes that the structure states, activations of one type.
    unsafe { cuda::launch_on(&x_BTHE, specialization(&x_BTHE), launch, &parameters)? };
    Ok(output)
}

/// The same by libtorch's operations, on any device; the arguments have been checked.
fn composed_rotary(x_BTHE: &Tensor, cosine_BTJ: &Tensor, sine_BTJ: &Tensor) -> Result<Tensor, KernelError> {
    let wide_BTHE = x_BTHE.f_to_kind(cosine_BTJ.kind())?;
    let halves = wide_BTHE.f_chunk(2, -1)?;
    let crossed_BTHE = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
    let both = |angles: &Tensor| Tensor::f_cat(&[angles, angles], -1)?.f_unsqueeze(2);
    let turned_BTHE = wide_BTHE * both(cosine_BTJ)? + crossed_BTHE * both(sine_BTJ)?;
    Ok(turned_BTHE.f_to_kind(x_BTHE.kind())?)
}

named_tensors! {
    struct Angles { cosine_BTJ: Tensor, sine_BTJ: Tensor }

    struct Branches<T> { gate: T, up: T }

    struct Both<T> { both: T }
}

/// `SiLU(gate) ⊙ up`, `(…, F)`, in their type. Gradients flow to both.
///
/// # Errors
/// [`KernelError`] when shape, type or device do not fit.
pub fn swiglu(gate_F: &Tensor, up_F: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "swiglu";
    let size = gate_F.size();
    let width = size.last().copied().unwrap_or(0);
    expect_shape(NAME, "up_F", up_F, &size)?;
    expect_device(NAME, "up_F", up_F, gate_F)?;
    computing_kind(NAME, "gate_F", gate_F)?;
    if !fits(gate_F) || width % 4 != 0 || up_F.kind() != gate_F.kind() {
        return composed_swiglu(gate_F, up_F);
    }
    let (gate, up) = (layout::rows(gate_F, width)?, layout::rows(up_F, width)?);
    let Output { y } = node(
        NAME,
        Branches { gate: Some(gate_F), up: Some(up_F) },
        |_| {
            let y = forward(&gate, &up)?.f_view(size.as_slice())?;
            Ok((Output { y }, Branches { gate: gate.shallow_clone(), up: up.shallow_clone() }))
        },
        |saved: Branches<Tensor>, upstream: Output<Option<Tensor>>, _| {
            let upstream = upstream.gradient()?;
            let (gate, up) = (layout::dense(&saved.gate)?, layout::dense(&saved.up)?);
            let gradients = Branches { gate: gate.f_empty_like()?, up: up.f_empty_like()? };
            backward([&gate, &up], &upstream, [&gradients.gate, &gradients.up])?;
            let shaped = |gradient: Tensor| gradient.f_view(upstream.size().as_slice());
            Ok(Branches { gate: Some(shaped(gradients.gate)?), up: Some(shaped(gradients.up)?) })
        },
    )?;
    Ok(y)
}

/// The same by libtorch's operations, rounded once.
fn composed_swiglu(gate_F: &Tensor, up_F: &Tensor) -> Result<Tensor, KernelError> {
    let kind = computing_kind("swiglu", "gate_F", gate_F)?;
    let y_F = gate_F.f_to_kind(kind)?.f_silu()? * up_F.f_to_kind(kind)?;
    Ok(y_F.f_to_kind(gate_F.kind())?)
}

/// The same of both halves of `both_F`, `(…, 2F)`, the gate first.
///
/// # Errors
/// [`KernelError`] when shape or type do not fit.
pub fn swiglu_of_halves(both_F: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "swiglu_of_halves";
    let mut size = both_F.size();
    let whole = size.last().copied().unwrap_or(0);
    computing_kind(NAME, "both_F", both_F)?;
    if whole % 2 != 0 || whole == 0 {
        let expected = "an even last axis".to_owned();
        return Err(KernelError::Shape { function: NAME, argument: "both_F", expected, found: size });
    }
    if !fits(both_F) || whole % 8 != 0 {
        let halves = both_F.f_chunk(2, -1)?;
        return composed_swiglu(&halves[0], &halves[1]);
    }
    if let Some(last) = size.last_mut() {
        *last = whole / 2;
    }
    let Output { y } = node(
        NAME,
        Both { both: Some(both_F) },
        |_| {
            let both = layout::dense(&both_F.f_reshape([-1, whole])?)?;
            let [gate, up] = halves(&both)?;
            Ok((Output { y: forward(&gate, &up)?.f_view(size.as_slice())? }, Both { both }))
        },
        move |saved: Both<Tensor>, upstream: Output<Option<Tensor>>, _| {
            let upstream = upstream.gradient()?;
            let gradient = saved.both.f_empty_like()?;
            let ([gate, up], [of_gate, of_up]) = (halves(&saved.both)?, halves(&gradient)?);
            backward([&gate, &up], &upstream, [&of_gate, &of_up])?;
            let mut size = upstream.size();
            if let Some(last) = size.last_mut() {
                *last = whole;
            }
            Ok(Both { both: Some(gradient.f_view(size.as_slice())?) })
        },
    )?;
    Ok(y)
}

fn halves(both: &Tensor) -> Result<[Tensor; 2], BoxError> {
    let half = both.size()[1] / 2;
    Ok([both.f_narrow(1, 0, half)?, both.f_narrow(1, half, half)?])
}

fn parameters([gate, up]: [&Tensor; 2]) -> Result<SwigluParameters, BoxError> {
    let [tokens, width] = <[i64; 2]>::try_from(gate.size().as_slice())?;
    Ok(SwigluParameters {
        tokens,
        width: i32::try_from(width)?,
        gate_stride: gate.stride()[0],
        up_stride: up.stride()[0],
        gate: cuda::address(gate),
        up: cuda::address(up),
        ..SwigluParameters::default()
    })
}

fn swiglu_launch(parameters: &SwigluParameters, backward: bool) -> Result<LayerLaunch, BoxError> {
    let (tokens, width) = (u64::try_from(parameters.tokens)?, u64::try_from(parameters.width)?);
    Ok(SwigluParameters::launch(tokens, width, backward))
}

fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor, BoxError> {
    let output = Tensor::f_empty(gate.size(), (gate.kind(), gate.device()))?;
    let parameters = SwigluParameters { output: cuda::address(&output), ..parameters([gate, up])? };
    // SAFETY: rows of one type, dense each, spaced as the structure says.
    unsafe { cuda::launch_on(gate, specialization(gate), swiglu_launch(&parameters, false)?, &parameters)? };
    Ok(output)
}

/// Gradients are written where `of` lies, spaced as what they belong to.
fn backward(branches: [&Tensor; 2], upstream: &Tensor, of: [&Tensor; 2]) -> Result<(), BoxError> {
    let [gate, _] = branches;
    let upstream = layout::dense(&upstream.f_to_kind(gate.kind())?)?;
    let parameters = SwigluParameters {
        output_gradient: cuda::address(&upstream),
        gate_gradient: cuda::address(of[0]),
        up_gradient: cuda::address(of[1]),
        ..parameters(branches)?
    };
    // SAFETY: as in `forward`; gradients have the shapes and strides of what they belong to.
    unsafe { cuda::launch_on(gate, specialization(gate), swiglu_launch(&parameters, true)?, &parameters)? };
    Ok(())
}
