//! Mamba's selective scan with all that stands between the products around it.
//!
//! ```text
//! Δ = softplus(raw + bias)     y = scan(u, Δ, A, B, C)     output = (y + D ⊙ u) ⊙ SiLU(gate)
//! ```
//! On a GPU one kernel each way (`cuda/selective_scan.cu`), on inputs of fp32 or bf16; elsewhere libtorch's operations around
//! [`selective_scan`]. As `mamba_ssm` does, with `delta_softplus` and `z`.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::selective_scan::{SelectiveScanForm, SelectiveScanParameters};

use super::{ScanKernel, SelectiveScanInput, SelectiveScanOutput, beside, saved_every, selective_scan};
use crate::cuda::layout;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use crate::{KernelError, cuda};

const NAME: &str = "gated_selective_scan";

/// Arguments of [`gated_selective_scan`].
#[derive(Debug, Clone, Copy)]
pub struct GatedScanInput<'a> {
    /// Input, `(B, T, D)`.
    pub u_BTD: &'a Tensor,
    /// Step sizes before bias and softplus, `(B, T, D)`.
    pub raw_step_BTD: &'a Tensor,
    /// Their bias, `(D)`.
    pub step_bias_D: &'a Tensor,
    /// A, negative, `(D, N)`.
    pub a_DN: &'a Tensor,
    /// B, how the input is written, `(B, T, N)`.
    pub write_BTN: &'a Tensor,
    /// C, how the state is read, `(B, T, N)`.
    pub read_BTN: &'a Tensor,
    /// D, how much of the input passes by the state, `(D)`.
    pub skip_D: &'a Tensor,
    /// The gate before its SiLU, `(B, T, D)`.
    pub gate_BTD: &'a Tensor,
    /// S before the first step, `(B, D, N)`; `None` is zeros.
    pub state_BDN: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// The gated selective scan over a whole sequence, or one step; the output is in the type of `u_BTD`. Gradients flow to every
/// floating-point argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn gated_selective_scan(
    input: &GatedScanInput<'_>,
    kernel: ScanKernel,
) -> Result<SelectiveScanOutput, KernelError> {
    let kind = check(input)?;
    let [u, raw, gate] = [input.u_BTD, input.raw_step_BTD, input.gate_BTD];
    let alike = u.kind() == raw.kind() && u.kind() == gate.kind();
    let form = cuda::selective_scan_form(u, input.a_DN.size()[1], true);
    match (kernel, form) {
        (ScanKernel::Auto | ScanKernel::Fused, Some(form)) if alike => fused(input, form),
        (ScanKernel::Fused, _) if u.device() != Device::Cpu => Err(KernelError::Device {
            function: NAME,
            argument: "u_BTD",
            expected: "the CPU, or 8 or 16 states, all of float32 or all of bfloat16, on a GPU".to_owned(),
            found: u.device(),
        }),
        _ => composed(input, kind, kernel),
    }
}

fn check(input: &GatedScanInput<'_>) -> Result<Kind, KernelError> {
    let size = dimensions::<3>(NAME, "u_BTD", input.u_BTD)?;
    let [_, states] = dimensions(NAME, "a_DN", input.a_DN)?;
    let [batch, time, width] = size;
    let by_state = [batch, time, states];
    let expected: [(&'static str, &Tensor, &[i64]); 7] = [
        ("raw_step_BTD", input.raw_step_BTD, &size),
        ("step_bias_D", input.step_bias_D, &[width]),
        ("a_DN", input.a_DN, &[width, states]),
        ("write_BTN", input.write_BTN, &by_state),
        ("read_BTN", input.read_BTN, &by_state),
        ("skip_D", input.skip_D, &[width]),
        ("gate_BTD", input.gate_BTD, &size),
    ];
    for (argument, tensor, shape) in expected {
        expect_shape(NAME, argument, tensor, shape)?;
        expect_device(NAME, argument, tensor, input.u_BTD)?;
        computing_kind(NAME, argument, tensor)?;
    }
    if let Some(state_BDN) = input.state_BDN {
        expect_shape(NAME, "state_BDN", state_BDN, &[batch, width, states])?;
        expect_device(NAME, "state_BDN", state_BDN, input.u_BTD)?;
    }
    expect_resets(NAME, input.resets_BT, input.u_BTD, [batch, time])?;
    if batch * time * width * states == 0 {
        let (found, expected) = (size.to_vec(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "u_BTD", expected, found });
    }
    computing_kind(NAME, "u_BTD", input.u_BTD)
}

/// libtorch's operations around the scan.
fn composed(
    input: &GatedScanInput<'_>,
    kind: Kind,
    kernel: ScanKernel,
) -> Result<SelectiveScanOutput, KernelError> {
    let u_BTD = input.u_BTD.f_to_kind(kind)?;
    let step_BTD = (input.raw_step_BTD.f_to_kind(kind)? + input.step_bias_D).f_softplus()?;
    let scan = SelectiveScanInput {
        u_BTD: &u_BTD,
        step_BTD: &step_BTD,
        a_DN: input.a_DN,
        write_BTN: input.write_BTN,
        read_BTN: input.read_BTN,
        state_BDN: input.state_BDN,
        resets_BT: input.resets_BT,
    };
    let SelectiveScanOutput { y_BTD, state_BDN } = selective_scan(&scan, kernel)?;
    let y_BTD = (y_BTD + u_BTD * input.skip_D) * input.gate_BTD.f_to_kind(kind)?.f_silu()?;
    Ok(SelectiveScanOutput { y_BTD: y_BTD.f_to_kind(input.u_BTD.kind())?, state_BDN })
}

named_tensors! {
    struct Inputs<T> {
        u_BTD: T,
        raw_step_BTD: T,
        step_bias_D: T,
        a_DN: T,
        write_BTN: T,
        read_BTN: T,
        skip_D: T,
        gate_BTD: T,
        state_BDN: T,
    }

    struct Outputs<T> { y_BTD: T, state_BDN: T }

    struct Saved {
        inputs: Inputs<Option<Tensor>>,
        resets_BT: Option<Tensor>,
        state_BDN: Tensor,
        /// S every `saved_every` steps, `(B, chunks, N, D)`; none where nothing is recorded.
        states_BCND: Option<Tensor>,
    }
}

fn fused(input: &GatedScanInput<'_>, form: SelectiveScanForm) -> Result<SelectiveScanOutput, KernelError> {
    let float = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
    let (a_DN, write_BTN, read_BTN) = (float(input.a_DN)?, float(input.write_BTN)?, float(input.read_BTN)?);
    let (step_bias_D, skip_D) = (float(input.step_bias_D)?, float(input.skip_D)?);
    let state_BDN = input.state_BDN.map(float).transpose()?;
    let inputs = Inputs {
        u_BTD: Some(input.u_BTD),
        raw_step_BTD: Some(input.raw_step_BTD),
        step_bias_D: Some(&step_bias_D),
        a_DN: Some(&a_DN),
        write_BTN: Some(&write_BTN),
        read_BTN: Some(&read_BTN),
        skip_D: Some(&skip_D),
        gate_BTD: Some(input.gate_BTD),
        state_BDN: state_BDN.as_ref(),
    };
    let resets_BT = input.resets_BT.map(Tensor::f_contiguous).transpose()?;
    let Outputs { y_BTD, state_BDN } = node(
        NAME,
        inputs,
        |recorded| forward(input, inputs, resets_BT, form, recorded),
        move |saved, upstream, _| backward(&saved, upstream, form),
    )?;
    Ok(SelectiveScanOutput { y_BTD, state_BDN })
}

fn forward(
    input: &GatedScanInput<'_>,
    inputs: Inputs<Option<&Tensor>>,
    resets_BT: Option<Tensor>,
    form: SelectiveScanForm,
    recorded: bool,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let [batch, time, width] = dimensions(NAME, "u_BTD", input.u_BTD)?;
    let [_, states] = dimensions(NAME, "a_DN", input.a_DN)?;
    let float = |size: &[i64]| Tensor::f_empty(size, (Kind::Float, input.u_BTD.device()));
    let (y_BTD, state_BDN) = (beside(input.u_BTD, &[batch, time, width]), float(&[batch, width, states])?);
    let every = saved_every(input.u_BTD.device());
    let chunks = (time + every - 1) / every;
    let dense = |tensor: Option<&Tensor>| tensor.map(layout::dense).transpose();
    let saved = Saved {
        inputs: Inputs {
            u_BTD: dense(inputs.u_BTD)?,
            raw_step_BTD: dense(inputs.raw_step_BTD)?,
            step_bias_D: dense(inputs.step_bias_D)?,
            a_DN: dense(inputs.a_DN)?,
            write_BTN: dense(inputs.write_BTN)?,
            read_BTN: dense(inputs.read_BTN)?,
            skip_D: dense(inputs.skip_D)?,
            // Rows of D; they may be halves of wider ones.
            gate_BTD: inputs.gate_BTD.map(|gate_BTD| layout::rows(gate_BTD, width)).transpose()?,
            state_BDN: dense(inputs.state_BDN)?,
        },
        resets_BT,
        state_BDN: state_BDN.shallow_clone(),
        states_BCND: recorded.then(|| float(&[batch, chunks, states, width])).transpose()?,
    };
    let parameters = SelectiveScanParameters { output: cuda::address(&y_BTD), ..parameters(&saved)? };
    // SAFETY: `y_BTD` and what is saved are dense, but for the gates, whose spacing is said; types are those of `form`, sizes
    // were checked.
    unsafe { cuda::selective_scan(form, &y_BTD, parameters, false)? };
    Ok((Outputs { y_BTD, state_BDN }, saved))
}

fn parameters(saved: &Saved) -> Result<SelectiveScanParameters, BoxError> {
    let to = |tensor: &Option<Tensor>| cuda::optional_address(tensor.as_ref());
    let inputs = &saved.inputs;
    let spacing = inputs.gate_BTD.as_ref().map_or(0, |gate| gate.stride()[0]);
    Ok(SelectiveScanParameters {
        gate_stride: i32::try_from(spacing)?,
        resets: to(&saved.resets_BT),
        u: to(&inputs.u_BTD),
        step: to(&inputs.raw_step_BTD),
        a: to(&inputs.a_DN),
        write: to(&inputs.write_BTN),
        read: to(&inputs.read_BTN),
        initial: to(&inputs.state_BDN),
        last: cuda::address(&saved.state_BDN),
        saved: to(&saved.states_BCND),
        bias: to(&inputs.step_bias_D),
        skip: to(&inputs.skip_D),
        gate: to(&inputs.gate_BTD),
        ..SelectiveScanParameters::default()
    })
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    form: SelectiveScanForm,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let u_BTD = saved.inputs.u_BTD.as_ref().ok_or("no input")?;
    let [batch, time, width] = dimensions(NAME, "u_BTD", u_BTD)?;
    let [_, _, states] = dimensions(NAME, "state_BDN", &saved.state_BDN)?;
    let y_gradient = match upstream.y_BTD {
        Some(gradient) => layout::dense(&gradient.f_to_kind(u_BTD.kind())?)?,
        None => u_BTD.f_zeros_like()?,
    };
    let last_gradient = upstream.state_BDN.map(|gradient| layout::dense(&gradient)).transpose()?;
    let parts = i64::from(form.launch(u32::try_from(batch)?, u32::try_from(width)?, true).parts);
    let like = || beside(u_BTD, &[batch, time, width]);
    let float = |size: &[i64]| Tensor::f_empty(size, (Kind::Float, u_BTD.device()));
    let by_state = [batch, parts, time, states];
    let results = Inputs {
        u_BTD: like(),
        raw_step_BTD: like(),
        step_bias_D: float(&[batch, width])?,
        a_DN: float(&[batch, width, states])?,
        write_BTN: float(&by_state)?,
        read_BTN: float(&by_state)?,
        skip_D: float(&[batch, width])?,
        gate_BTD: like(),
        state_BDN: float(&[batch, width, states])?,
    };
    let parameters = SelectiveScanParameters {
        output_gradient: cuda::address(&y_gradient),
        last_gradient: cuda::optional_address(last_gradient.as_ref()),
        u_gradient: cuda::address(&results.u_BTD),
        step_gradient: cuda::address(&results.raw_step_BTD),
        a_gradient: cuda::address(&results.a_DN),
        write_gradient: cuda::address(&results.write_BTN),
        read_gradient: cuda::address(&results.read_BTN),
        initial_gradient: cuda::address(&results.state_BDN),
        bias_gradient: cuda::address(&results.step_bias_D),
        skip_gradient: cuda::address(&results.skip_D),
        gate_gradient: cuda::address(&results.gate_BTD),
        ..parameters(saved)?
    };
    // SAFETY: as in `forward`; gradients are dense and have the shapes that `selective_scan.cu` states.
    unsafe { cuda::selective_scan(form, u_BTD, parameters, true)? };
    let total = |sums: &Tensor, dimension: i64| sums.f_sum_dim_intlist(dimension, false, Kind::Float);
    Ok(Inputs {
        step_bias_D: Some(total(&results.step_bias_D, 0)?),
        a_DN: Some(total(&results.a_DN, 0)?),
        write_BTN: Some(total(&results.write_BTN, 1)?),
        read_BTN: Some(total(&results.read_BTN, 1)?),
        skip_D: Some(total(&results.skip_D, 0)?),
        u_BTD: Some(results.u_BTD),
        raw_step_BTD: Some(results.raw_step_BTD),
        gate_BTD: Some(results.gate_BTD),
        state_BDN: saved.inputs.state_BDN.as_ref().map(|_| results.state_BDN),
    })
}
