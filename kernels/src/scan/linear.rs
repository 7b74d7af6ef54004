//! The plain scan: `h_t = a_t ⊙ h_{t-1} + x_t`.

use super::{ScanKernel, beside};
use crate::cpu::{LinearScanGradients, LinearScanProblem, address, call, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use crate::{KernelError, cuda};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::scan::{Scan, ScanParameters};

/// Arguments of [`linear_scan`].
#[derive(Debug, Clone, Copy)]
pub struct LinearScanInput<'a> {
    /// What is left of the state, between 0 and 1, `(B, T, D)`.
    pub decay_BTD: &'a Tensor,
    /// What is added, `(B, T, D)`.
    pub x_BTD: &'a Tensor,
    /// h before the first step, `(B, D)`; `None` is zeros.
    pub state_BD: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`linear_scan`].
#[derive(Debug)]
pub struct LinearScanOutput {
    /// h, `(B, T, D)`, in the computing type.
    pub h_BTD: Tensor,
    /// h after the last step, `(B, D)`, in the computing type.
    pub state_BD: Tensor,
}

/// `h_t = a_t ⊙ h_{t-1} + x_t` over a whole sequence. Gradients flow to every floating-point argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn linear_scan(input: &LinearScanInput<'_>, kernel: ScanKernel) -> Result<LinearScanOutput, KernelError> {
    const NAME: &str = "linear_scan";
    let [batch, time, width] = dimensions(NAME, "x_BTD", input.x_BTD)?;
    expect_shape(NAME, "decay_BTD", input.decay_BTD, &[batch, time, width])?;
    expect_device(NAME, "decay_BTD", input.decay_BTD, input.x_BTD)?;
    if let Some(state_BD) = input.state_BD {
        expect_shape(NAME, "state_BD", state_BD, &[batch, width])?;
        expect_device(NAME, "state_BD", state_BD, input.x_BTD)?;
    }
    expect_resets(NAME, input.resets_BT, input.x_BTD, [batch, time])?;
    if batch * time * width == 0 {
        let (found, expected) = (input.x_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "x_BTD", expected, found });
    }
    let mut kind = computing_kind(NAME, "x_BTD", input.x_BTD)?;
    if computing_kind(NAME, "decay_BTD", input.decay_BTD)? == Kind::Double {
        kind = Kind::Double;
    }
    let (decay_BTD, x_BTD) = (input.decay_BTD.to_kind(kind), input.x_BTD.to_kind(kind));
    let state_BD = input.state_BD.map(|state| state.to_kind(kind));
    let h_BTD = match kernel.of(cuda::scan_fits(&x_BTD), &x_BTD, NAME, "x_BTD")? {
        ScanKernel::Reference => reference(&decay_BTD, &x_BTD, state_BD.as_ref(), input.resets_BT),
        kernel => {
            let inputs =
                Inputs { decay_BTD: Some(&decay_BTD), x_BTD: Some(&x_BTD), initial_BD: state_BD.as_ref() };
            recorded(inputs, input.resets_BT, kernel == ScanKernel::Fused)?
        }
    };
    let state_BD = h_BTD.select(1, time - 1);
    Ok(LinearScanOutput { h_BTD, state_BD })
}

fn reference(
    decay_BTD: &Tensor,
    x_BTD: &Tensor,
    state_BD: Option<&Tensor>,
    resets_BT: Option<&Tensor>,
) -> Tensor {
    let size = x_BTD.size();
    let mut state = state_BD.map_or_else(|| x_BTD.select(1, 0).zeros_like(), Tensor::shallow_clone);
    let mut all = Vec::new();
    for time in 0..size[1] {
        if let Some(resets_BT) = resets_BT {
            state = resets_BT.select(1, time).logical_not().unsqueeze(-1).to_kind(x_BTD.kind()) * &state;
        }
        state = state * decay_BTD.select(1, time) + x_BTD.select(1, time);
        all.push(state.shallow_clone());
    }
    Tensor::stack(&all, 1)
}

named_tensors! {
    struct Inputs<T> { decay_BTD: T, x_BTD: T, initial_BD: T }

    struct Saved {
        decay_BTD: Tensor,
        h_BTD: Tensor,
        initial_BD: Option<Tensor>,
        resets_BT: Option<Tensor>,
    }
}

/// With a backward pass by hand.
fn recorded(
    inputs: Inputs<Option<&Tensor>>,
    resets_BT: Option<&Tensor>,
    fused: bool,
) -> Result<Tensor, KernelError> {
    let output = node(
        "linear_scan",
        inputs,
        |_| {
            let (Some(decay_BTD), Some(x_BTD)) = (inputs.decay_BTD, inputs.x_BTD) else {
                return Err("no decay or no input".into());
            };
            let x_BTD = x_BTD.contiguous();
            let mut saved = Saved {
                decay_BTD: decay_BTD.contiguous(),
                h_BTD: x_BTD.shallow_clone(),
                initial_BD: inputs.initial_BD.map(Tensor::contiguous),
                resets_BT: resets_BT.map(Tensor::contiguous),
            };
            saved.h_BTD = if fused { forward(&saved, &x_BTD)? } else { doubled_from(&saved, &x_BTD)? };
            Ok((Output { y: saved.h_BTD.shallow_clone() }, saved))
        },
        move |saved, upstream, _| {
            let upstream_BTD = upstream.gradient()?.contiguous();
            if fused { backward(&saved, &upstream_BTD) } else { composed_backward(&saved, &upstream_BTD) }
        },
    )?;
    Ok(output.y)
}

fn forward(saved: &Saved, x_BTD: &Tensor) -> Result<Tensor, BoxError> {
    let h_BTD = beside(x_BTD, &x_BTD.size());
    if x_BTD.device() == Device::Cpu {
        call!(x_BTD.kind(), linear_scan_forward_f32, linear_scan_forward_f64, &problem(saved, x_BTD, &h_BTD));
    } else {
        let parameters = parameters(saved, x_BTD, &h_BTD);
        // SAFETY: dense tensors of the same shape on one GPU; the state is one of their steps.
        unsafe { cuda::scan(Scan::Linear, x_BTD, parameters, false)? };
    }
    Ok(h_BTD)
}

/// What the GPU's kernels are given.
fn parameters(saved: &Saved, x_BTD: &Tensor, h_BTD: &Tensor) -> ScanParameters {
    ScanParameters {
        resets: cuda::optional_address(saved.resets_BT.as_ref()),
        inputs: [cuda::optional_address(Some(&saved.decay_BTD)), cuda::optional_address(Some(x_BTD)), 0, 0],
        initial: [cuda::optional_address(saved.initial_BD.as_ref()), 0, 0],
        output: cuda::optional_address(Some(h_BTD)),
        ..ScanParameters::default()
    }
}

fn problem<T>(saved: &Saved, x_BTD: &Tensor, h_BTD: &Tensor) -> LinearScanProblem<T> {
    let size = x_BTD.size();
    LinearScanProblem {
        batch: size[0],
        time: size[1],
        width: size[2],
        a: address::<T>(&saved.decay_BTD).cast_const(),
        x: address::<T>(x_BTD).cast_const(),
        initial: optional_address::<T>(saved.initial_BD.as_ref()).cast_const(),
        resets: optional_address::<c_void>(saved.resets_BT.as_ref()).cast(),
        h: address(h_BTD),
    }
}

fn backward(saved: &Saved, upstream_BTD: &Tensor) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let kind = saved.h_BTD.kind();
    let like = |tensor: &Tensor| beside(tensor, &tensor.size());
    let (decay_BTD, x_BTD) = (like(&saved.decay_BTD), like(&saved.h_BTD));
    let initial_BD = saved.initial_BD.as_ref().map(like);
    let gradients = Inputs { decay_BTD: Some(decay_BTD), x_BTD: Some(x_BTD), initial_BD };
    // x itself is not read by the backward pass; h stands in for its address.
    if saved.h_BTD.device() == Device::Cpu {
        call!(
            kind,
            linear_scan_backward_f32,
            linear_scan_backward_f64,
            &problem(saved, &saved.h_BTD, &saved.h_BTD),
            &addresses(upstream_BTD, &gradients)
        );
    } else {
        let Inputs { decay_BTD, x_BTD, initial_BD } = &gradients;
        let parameters = ScanParameters {
            output_gradient: cuda::optional_address(Some(upstream_BTD)),
            gradients: [
                cuda::optional_address(decay_BTD.as_ref()),
                cuda::optional_address(x_BTD.as_ref()),
                0,
                0,
            ],
            initial_gradient: [cuda::optional_address(initial_BD.as_ref()), 0],
            ..parameters(saved, &saved.h_BTD, &saved.h_BTD)
        };
        // SAFETY: as in `forward`; gradients have the shapes of what they belong to.
        unsafe { cuda::scan(Scan::Linear, &saved.h_BTD, parameters, true)? };
    }
    Ok(gradients)
}

fn addresses<T>(upstream_BTD: &Tensor, gradients: &Inputs<Option<Tensor>>) -> LinearScanGradients<T> {
    LinearScanGradients {
        h: address::<T>(upstream_BTD).cast_const(),
        a: optional_address(gradients.decay_BTD.as_ref()),
        x: optional_address(gradients.x_BTD.as_ref()),
        initial: optional_address(gradients.initial_BD.as_ref()),
    }
}

/// The decays with zeros where everything is forgotten.
fn effective(saved: &Saved) -> Result<Tensor, BoxError> {
    Ok(match &saved.resets_BT {
        Some(resets_BT) => saved.decay_BTD.f_masked_fill(&resets_BT.unsqueeze(-1), 0.0)?,
        None => saved.decay_BTD.shallow_clone(),
    })
}

fn doubled_from(saved: &Saved, x_BTD: &Tensor) -> Result<Tensor, BoxError> {
    let decay_BTD = effective(saved)?;
    let Some(initial_BD) = &saved.initial_BD else { return doubled(&decay_BTD, x_BTD) };
    let x_BTD = x_BTD.copy();
    let _ = x_BTD.f_select(1, 0)?.f_addcmul_(&decay_BTD.f_select(1, 0)?, initial_BD)?;
    doubled(&decay_BTD, &x_BTD)
}

/// All steps at once: step t takes in step t − s, for s = 1, 2, 4 …
fn doubled(decay_BTD: &Tensor, x_BTD: &Tensor) -> Result<Tensor, BoxError> {
    let time = x_BTD.size()[1];
    if time == 1 {
        // An output must be a tensor of its own.
        return Ok(x_BTD.copy());
    }
    let (mut left, mut h) = (decay_BTD.shallow_clone(), x_BTD.shallow_clone());
    let mut step = 1;
    while step < time {
        let (later, earlier) = (time - step, h.f_narrow(1, 0, time - step)?);
        let mixed = h.f_narrow(1, step, later)?.f_addcmul(&left.f_narrow(1, step, later)?, &earlier)?;
        h = Tensor::f_cat(&[h.f_narrow(1, 0, step)?, mixed], 1)?;
        let product = left.f_narrow(1, step, later)?.f_mul(&left.f_narrow(1, 0, later)?)?;
        left = Tensor::f_cat(&[left.f_narrow(1, 0, step)?, product], 1)?;
        step *= 2;
    }
    Ok(h)
}

/// The gradient of x is a scan from the end: `dx_t = dh_t + a_{t+1} dx_{t+1}`.
fn composed_backward(saved: &Saved, upstream_BTD: &Tensor) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let decay_BTD = effective(saved)?;
    let time = decay_BTD.size()[1];
    let first = decay_BTD.f_narrow(1, 0, 1)?;
    let next = Tensor::f_cat(&[decay_BTD.f_narrow(1, 1, time - 1)?, first.f_zeros_like()?], 1)?;
    let x_BTD = doubled(&next.f_flip([1])?, &upstream_BTD.f_flip([1])?)?.f_flip([1])?;
    let before = match &saved.initial_BD {
        Some(initial_BD) => initial_BD.f_unsqueeze(1)?,
        None => first.f_zeros_like()?,
    };
    let mut before = Tensor::f_cat(&[before, saved.h_BTD.f_narrow(1, 0, time - 1)?], 1)?;
    if let Some(resets_BT) = &saved.resets_BT {
        before = before.f_masked_fill(&resets_BT.f_unsqueeze(-1)?, 0.0)?;
    }
    let decay_gradient = &x_BTD * before;
    let initial_BD = match &saved.initial_BD {
        Some(_) => Some(x_BTD.f_select(1, 0)?.f_mul(&decay_BTD.f_select(1, 0)?)?),
        None => None,
    };
    Ok(Inputs { decay_BTD: Some(decay_gradient), x_BTD: Some(x_BTD), initial_BD })
}
