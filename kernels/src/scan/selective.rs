//! Mamba's selective scan: N states for each channel, decays and inputs chosen by the token.
//!
//! ```text
//! S_t = exp(Δ_t A) ⊙ S_{t-1} + Δ_t u_t B_tᵀ        y_t = S_t C_t
//! ```
//!
//! Δ is given after its softplus, A is negative; D ⊙ u and the gate are the caller's. N is written N, the state
//! `(B, D, N)`, as in the reference code (mamba_ssm, `ops/selective_scan_interface.py`).

use super::{LinearScanInput, ScanKernel, beside, linear_scan, saved_every};
use crate::cpu::{SelectiveScanGradients, SelectiveScanProblem, address, call, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use crate::{KernelError, cuda};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::{checkpoint, node};
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, BridgeError, named_tensors};
use xlstm_cuda::selective_scan::{SelectiveScanForm, SelectiveScanParameters};

/// Steps at a time of the composed version, whose memory is N times that of its input.
const COMPOSED_CHUNK: i64 = 128;

/// Channels are shared out into at most this many groups, whatever the number of threads; see `cpu/scan.h`.
const MAX_GROUPS: i64 = 8;

/// Arguments of [`selective_scan`].
#[derive(Debug, Clone, Copy)]
pub struct SelectiveScanInput<'a> {
    /// Input, `(B, T, D)`.
    pub u_BTD: &'a Tensor,
    /// Δ, positive, `(B, T, D)`.
    pub step_BTD: &'a Tensor,
    /// A, negative, `(D, N)`.
    pub a_DN: &'a Tensor,
    /// B, how the input is written, `(B, T, N)`.
    pub write_BTN: &'a Tensor,
    /// C, how the state is read, `(B, T, N)`.
    pub read_BTN: &'a Tensor,
    /// S before the first step, `(B, D, N)`; `None` is zeros.
    pub state_BDN: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`selective_scan`].
#[derive(Debug)]
pub struct SelectiveScanOutput {
    /// `(B, T, D)`, in the computing type ([`gated_selective_scan`](super::gated_selective_scan): in that of its input).
    pub y_BTD: Tensor,
    /// S after the last step, `(B, D, N)`, in the computing type.
    pub state_BDN: Tensor,
}

/// The selective scan over a whole sequence, or one step. Gradients flow to every floating-point argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn selective_scan(
    input: &SelectiveScanInput<'_>,
    kernel: ScanKernel,
) -> Result<SelectiveScanOutput, KernelError> {
    const NAME: &str = "selective_scan";
    let kind = check(input)?;
    let convert = |tensor: &Tensor| tensor.to_kind(kind);
    let (u_BTD, step_BTD, a_DN) = (convert(input.u_BTD), convert(input.step_BTD), convert(input.a_DN));
    let (write_BTN, read_BTN) = (convert(input.write_BTN), convert(input.read_BTN));
    let state_BDN = input.state_BDN.map(convert);
    let converted = SelectiveScanInput {
        u_BTD: &u_BTD,
        step_BTD: &step_BTD,
        a_DN: &a_DN,
        write_BTN: &write_BTN,
        read_BTN: &read_BTN,
        state_BDN: state_BDN.as_ref(),
        resets_BT: input.resets_BT,
    };
    let on_gpu = cuda::selective_scan_form(&u_BTD, a_DN.size()[1], false).is_some();
    match kernel.of(on_gpu, &u_BTD, NAME, "u_BTD")? {
        ScanKernel::Reference => Ok(reference(&converted)),
        ScanKernel::Composed => composed(&converted),
        ScanKernel::Auto | ScanKernel::Fused => fused(&converted),
    }
}

fn check(input: &SelectiveScanInput<'_>) -> Result<Kind, KernelError> {
    const NAME: &str = "selective_scan";
    let [batch, time, width] = dimensions(NAME, "u_BTD", input.u_BTD)?;
    let [_, states] = dimensions(NAME, "a_DN", input.a_DN)?;
    expect_shape(NAME, "step_BTD", input.step_BTD, &[batch, time, width])?;
    expect_shape(NAME, "a_DN", input.a_DN, &[width, states])?;
    expect_shape(NAME, "write_BTN", input.write_BTN, &[batch, time, states])?;
    expect_shape(NAME, "read_BTN", input.read_BTN, &[batch, time, states])?;
    if let Some(state_BDN) = input.state_BDN {
        expect_shape(NAME, "state_BDN", state_BDN, &[batch, width, states])?;
        expect_device(NAME, "state_BDN", state_BDN, input.u_BTD)?;
    }
    expect_resets(NAME, input.resets_BT, input.u_BTD, [batch, time])?;
    if batch * time * width * states == 0 {
        let (found, expected) = (input.u_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "u_BTD", expected, found });
    }
    let mut kind = computing_kind(NAME, "u_BTD", input.u_BTD)?;
    let others = [
        ("step_BTD", input.step_BTD),
        ("a_DN", input.a_DN),
        ("write_BTN", input.write_BTN),
        ("read_BTN", input.read_BTN),
    ];
    for (argument, tensor) in others {
        expect_device(NAME, argument, tensor, input.u_BTD)?;
        if computing_kind(NAME, argument, tensor)? == Kind::Double {
            kind = Kind::Double;
        }
    }
    Ok(kind)
}

fn first_state(input: &SelectiveScanInput<'_>) -> Tensor {
    let (size, states) = (input.u_BTD.size(), input.a_DN.size()[1]);
    input.state_BDN.map_or_else(
        || Tensor::zeros([size[0], size[2], states], (input.u_BTD.kind(), input.u_BTD.device())),
        Tensor::shallow_clone,
    )
}

fn reference(input: &SelectiveScanInput<'_>) -> SelectiveScanOutput {
    let mut state = first_state(input);
    let mut outputs = Vec::new();
    for time in 0..input.u_BTD.size()[1] {
        if let Some(resets_BT) = input.resets_BT {
            let left = resets_BT.select(1, time).logical_not().unsqueeze(-1).unsqueeze(-1);
            state = left.to_kind(input.u_BTD.kind()) * &state;
        }
        let at = |tensor: &Tensor| tensor.select(1, time);
        let step = at(input.step_BTD).unsqueeze(-1);
        let written = &step * at(input.u_BTD).unsqueeze(-1) * at(input.write_BTN).unsqueeze(1);
        state = (step * input.a_DN).exp() * state + written;
        outputs.push((&state * at(input.read_BTN).unsqueeze(1)).sum_dim_intlist(-1, false, None::<Kind>));
    }
    SelectiveScanOutput { y_BTD: Tensor::stack(&outputs, 1), state_BDN: state }
}

/// Some steps at a time, each piece computed again in the backward pass: its states would be N times the input.
fn composed(input: &SelectiveScanInput<'_>) -> Result<SelectiveScanOutput, KernelError> {
    let time = input.u_BTD.size()[1];
    let mut state = first_state(input);
    let mut outputs = Vec::new();
    let mut start = 0;
    while start < time {
        let length = COMPOSED_CHUNK.min(time - start);
        let part = |tensor: &Tensor| tensor.narrow(1, start, length);
        let resets_BT = input.resets_BT.map(part);
        let tensors = [
            &part(input.u_BTD),
            &part(input.step_BTD),
            input.a_DN,
            &part(input.write_BTN),
            &part(input.read_BTN),
            &state,
        ];
        let results = checkpoint("selective_scan", &tensors, move |tensors| {
            composed_chunk(tensors, resets_BT.as_ref())
        })?;
        let [y_BTD, next] = two(results)?;
        outputs.push(y_BTD);
        state = next;
        start += length;
    }
    Ok(SelectiveScanOutput { y_BTD: Tensor::f_cat(&outputs, 1)?, state_BDN: state })
}

fn two(tensors: Vec<Tensor>) -> Result<[Tensor; 2], BridgeError> {
    let found = tensors.len().to_string();
    tensors.try_into().map_err(|_| BridgeError::Contract {
        name: "selective_scan",
        expected: "2 outputs".into(),
        found,
    })
}

fn composed_chunk(tensors: &[Tensor], resets_BT: Option<&Tensor>) -> Result<Vec<Tensor>, BoxError> {
    let [u_BTD, step_BTD, a_DN, write_BTN, read_BTN, state_BDN] = tensors else {
        return Err(format!("{} tensors, expected 6", tensors.len()).into());
    };
    let size = u_BTD.size();
    let flat = |tensor: &Tensor| tensor.f_reshape([size[0], size[1], -1]);
    let step_BTD1 = step_BTD.f_unsqueeze(-1)?;
    let decay = flat(&(&step_BTD1 * a_DN).f_exp()?)?;
    let x = flat(&(step_BTD1 * u_BTD.f_unsqueeze(-1)? * write_BTN.f_unsqueeze(2)?))?;
    let state = state_BDN.f_reshape([size[0], -1])?;
    let scan = LinearScanInput { decay_BTD: &decay, x_BTD: &x, state_BD: Some(&state), resets_BT };
    let scanned = linear_scan(&scan, ScanKernel::Composed)?;
    let states_BTDN = scanned.h_BTD.f_view([size[0], size[1], size[2], -1])?;
    let y_BTD = states_BTDN.f_matmul(&read_BTN.f_unsqueeze(-1)?)?.f_squeeze_dim(-1)?;
    Ok(vec![y_BTD, scanned.state_BD.f_reshape(state_BDN.size())?])
}

named_tensors! {
    struct Inputs<T> { u_BTD: T, step_BTD: T, a_DN: T, write_BTN: T, read_BTN: T, state_BDN: T }

    struct Outputs<T> { y_BTD: T, state_BDN: T }

    struct Saved {
        inputs: Inputs<Option<Tensor>>,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
        /// S every `saved_every` steps, `(B, chunks, N, D)`; none where nothing is recorded.
        states_BCND: Option<Tensor>,
    }
}

fn fused(input: &SelectiveScanInput<'_>) -> Result<SelectiveScanOutput, KernelError> {
    let inputs = Inputs {
        u_BTD: Some(input.u_BTD),
        step_BTD: Some(input.step_BTD),
        a_DN: Some(input.a_DN),
        write_BTN: Some(input.write_BTN),
        read_BTN: Some(input.read_BTN),
        state_BDN: input.state_BDN,
    };
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let size = input.u_BTD.size();
    let sizes = Sizes { batch: size[0], time: size[1], width: size[2], states: input.a_DN.size()[1] };
    let Outputs { y_BTD, state_BDN } = node(
        "selective_scan",
        inputs,
        |recorded| forward(input.u_BTD, inputs, resets_BT, sizes, recorded),
        move |saved, upstream, _| backward(&saved, upstream, sizes),
    )?;
    Ok(SelectiveScanOutput { y_BTD, state_BDN })
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: i64,
    time: i64,
    width: i64,
    states: i64,
}

impl Sizes {
    /// Blocks of channels that leave a sum of the gradients of B and C each.
    fn groups_on_gpu(self, form: SelectiveScanForm) -> Result<i64, BoxError> {
        let (batch, width) = (u32::try_from(self.batch)?, u32::try_from(self.width)?);
        Ok(i64::from(form.launch(batch, width, true).parts))
    }
}

fn forward(
    u_BTD: &Tensor,
    inputs: Inputs<Option<&Tensor>>,
    resets_BT: Option<Tensor>,
    sizes: Sizes,
    recorded: bool,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let Sizes { batch, time, width, states } = sizes;
    let (kind, device) = (u_BTD.kind(), u_BTD.device());
    let y_BTD = beside(u_BTD, &[batch, time, width]);
    let state_BDN = beside(u_BTD, &[batch, width, states]);
    let every = saved_every(device);
    let chunks = (time + every - 1) / every;
    let saved = Saved {
        inputs: inputs.map(|input| input.map(Tensor::contiguous)),
        resets_BT,
        outputs: Outputs { y_BTD: y_BTD.shallow_clone(), state_BDN: state_BDN.shallow_clone() },
        states_BCND: recorded.then(|| beside(u_BTD, &[batch, chunks, states, width])),
    };
    if device == Device::Cpu {
        call!(kind, selective_scan_forward_f32, selective_scan_forward_f64, &problem(&saved, sizes));
    } else {
        let form = form(&saved)?;
        // SAFETY: dense float32 tensors on one GPU, of the sizes that `sizes` states.
        unsafe { cuda::selective_scan(form, &saved.outputs.y_BTD, parameters(&saved), false)? };
    }
    Ok((Outputs { y_BTD, state_BDN }, saved))
}

/// What the GPU's kernels are compiled for; whoever chose them has asked before.
fn form(saved: &Saved) -> Result<SelectiveScanForm, BoxError> {
    let states = saved.outputs.state_BDN.size().last().copied().unwrap_or(0);
    let form = cuda::selective_scan_form(&saved.outputs.y_BTD, states, false);
    form.ok_or_else(|| format!("no kernel for {states} states").into())
}

/// What the GPU's kernels are given.
fn parameters(saved: &Saved) -> SelectiveScanParameters {
    let Inputs { u_BTD, step_BTD, a_DN, write_BTN, read_BTN, state_BDN } = &saved.inputs;
    let to = |tensor: &Option<Tensor>| cuda::optional_address(tensor.as_ref());
    SelectiveScanParameters {
        resets: to(&saved.resets_BT),
        u: to(u_BTD),
        step: to(step_BTD),
        a: to(a_DN),
        write: to(write_BTN),
        read: to(read_BTN),
        initial: to(state_BDN),
        output: cuda::address(&saved.outputs.y_BTD),
        last: cuda::address(&saved.outputs.state_BDN),
        saved: to(&saved.states_BCND),
        ..SelectiveScanParameters::default()
    }
}

fn problem<T>(saved: &Saved, sizes: Sizes) -> SelectiveScanProblem<T> {
    let Inputs { u_BTD, step_BTD, a_DN, write_BTN, read_BTN, state_BDN } = &saved.inputs;
    let input = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    SelectiveScanProblem {
        batch: sizes.batch,
        time: sizes.time,
        width: sizes.width,
        states: sizes.states,
        u: input(u_BTD),
        step: input(step_BTD),
        a: input(a_DN),
        write: input(write_BTN),
        read: input(read_BTN),
        initial: input(state_BDN),
        resets: optional_address::<c_void>(saved.resets_BT.as_ref()).cast(),
        y: address(&saved.outputs.y_BTD),
        last: address(&saved.outputs.state_BDN),
        saved: optional_address(saved.states_BCND.as_ref()),
    }
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    sizes: Sizes,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let Sizes { batch, time, width, states } = sizes;
    let kind = saved.outputs.y_BTD.kind();
    let dense = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.contiguous());
    let y_gradient = dense(upstream.y_BTD).unwrap_or_else(|| saved.outputs.y_BTD.zeros_like());
    let last_gradient = dense(upstream.state_BDN);
    let on_cpu = saved.outputs.y_BTD.device() == Device::Cpu;
    let groups = if on_cpu { width.min(MAX_GROUPS) } else { sizes.groups_on_gpu(form(saved)?)? };
    let sums = |size: &[i64]| beside(&saved.outputs.y_BTD, size);
    let results = Inputs {
        u_BTD: Some(sums(&[batch, time, width])),
        step_BTD: Some(sums(&[batch, time, width])),
        a_DN: Some(sums(&[batch, width, states])),
        write_BTN: Some(sums(&[batch, groups, time, states])),
        read_BTN: Some(sums(&[batch, groups, time, states])),
        state_BDN: saved.inputs.state_BDN.as_ref().map(|state| sums(&state.size())),
    };
    if on_cpu {
        call!(
            kind,
            selective_scan_backward_f32,
            selective_scan_backward_f64,
            &problem(saved, sizes),
            &gradients(&y_gradient, last_gradient.as_ref(), groups, &results)
        );
    } else {
        let Inputs { u_BTD, step_BTD, a_DN, write_BTN, read_BTN, state_BDN } = &results;
        let to = |tensor: &Option<Tensor>| cuda::optional_address(tensor.as_ref());
        let parameters = SelectiveScanParameters {
            output_gradient: cuda::address(&y_gradient),
            last_gradient: to(&last_gradient),
            u_gradient: to(u_BTD),
            step_gradient: to(step_BTD),
            a_gradient: to(a_DN),
            write_gradient: to(write_BTN),
            read_gradient: to(read_BTN),
            initial_gradient: to(state_BDN),
            ..parameters(saved)
        };
        // SAFETY: as in `forward`; gradients have the shapes that `selective_scan.cu` states.
        unsafe { cuda::selective_scan(form(saved)?, &saved.outputs.y_BTD, parameters, true)? };
    }
    let total =
        |sums: Option<Tensor>, dimension: i64| sums.map(|sums| sums.sum_dim_intlist(dimension, false, kind));
    Ok(Inputs {
        a_DN: total(results.a_DN, 0),
        write_BTN: total(results.write_BTN, 1),
        read_BTN: total(results.read_BTN, 1),
        ..results
    })
}

fn gradients<T>(
    y_gradient: &Tensor,
    last_gradient: Option<&Tensor>,
    groups: i64,
    results: &Inputs<Option<Tensor>>,
) -> SelectiveScanGradients<T> {
    let result = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref());
    SelectiveScanGradients {
        groups,
        y: address::<T>(y_gradient).cast_const(),
        last: optional_address::<T>(last_gradient).cast_const(),
        u: result(&results.u_BTD),
        step: result(&results.step_BTD),
        a: result(&results.a_DN),
        write: result(&results.write_BTN),
        read: result(&results.read_BTN),
        initial: result(&results.state_BDN),
    }
}
