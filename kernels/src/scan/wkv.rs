//! RWKV-4's wkv: a weighted mean of values, the weights exponentials of keys that decay with distance.
//!
//! ```text
//! y_t = ( Σ_{s<t} exp(k_s − (t−1−s) ω) v_s + exp(u + k_t) v_t ) / ( the same with v = 1 )        ω = exp(w)
//! ```
//!
//! Numerator and denominator are kept divided by exp(m), m the largest exponent so far, so keys of any size are fine;
//! m only scales and has no gradient. `cpu/scan.h` has the recurrence.

use super::{LinearScanInput, ScanKernel, beside, linear_scan, saved_every};
use crate::cpu::{WkvGradients, WkvProblem, address, call, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use crate::{KernelError, cuda};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::scan::{Scan, ScanParameters};

/// m of a state that remembers nothing.
const NOTHING: f64 = -1e38;

/// What wkv remembers of the past; each `(B, D)`.
#[derive(Debug)]
pub struct WkvState {
    /// a: weighted sum of values, divided by exp(m).
    pub numerator: Tensor,
    /// b: sum of weights, divided by exp(m).
    pub denominator: Tensor,
    /// m: the largest exponent so far, −1e38 where nothing is remembered. It has no gradient.
    pub maximum: Tensor,
}

impl WkvState {
    /// A state that remembers nothing.
    pub fn empty(batch: i64, width: i64, kind: Kind, device: Device) -> Self {
        let zeros = || Tensor::zeros([batch, width], (kind, device));
        let maximum = Tensor::full([batch, width], NOTHING, (kind, device));
        Self { numerator: zeros(), denominator: zeros(), maximum }
    }

    fn map(&self, function: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            numerator: function(&self.numerator),
            denominator: function(&self.denominator),
            maximum: function(&self.maximum),
        }
    }
}

/// Arguments of [`wkv`].
#[derive(Debug, Clone, Copy)]
pub struct WkvInput<'a> {
    /// w, `(D)`: a step takes exp(w) off a weight's exponent.
    pub decay_D: &'a Tensor,
    /// u, `(D)`: what the current step's exponent has more.
    pub bonus_D: &'a Tensor,
    /// Keys, `(B, T, D)`.
    pub k_BTD: &'a Tensor,
    /// Values, `(B, T, D)`.
    pub v_BTD: &'a Tensor,
    /// State before the first step; `None` is the empty one.
    pub state: Option<&'a WkvState>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// Result of [`wkv`].
#[derive(Debug)]
pub struct WkvOutput {
    /// `(B, T, D)`, in the computing type.
    pub y_BTD: Tensor,
    /// State after the last step, in the computing type.
    pub state: WkvState,
}

/// wkv over a whole sequence, or one step. Gradients flow to every floating-point argument but the state's maximum.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn wkv(input: &WkvInput<'_>, kernel: ScanKernel) -> Result<WkvOutput, KernelError> {
    const NAME: &str = "wkv";
    let kind = check(input)?;
    let convert = |tensor: &Tensor| tensor.to_kind(kind);
    let (omega_D, bonus_D) = (convert(input.decay_D).exp(), convert(input.bonus_D));
    let (k_BTD, v_BTD) = (convert(input.k_BTD), convert(input.v_BTD));
    let size = k_BTD.size();
    let state = match input.state {
        Some(state) => state.map(convert),
        None => WkvState::empty(size[0], size[2], kind, k_BTD.device()),
    };
    let converted = WkvInput {
        decay_D: &omega_D,
        bonus_D: &bonus_D,
        k_BTD: &k_BTD,
        v_BTD: &v_BTD,
        state: Some(&state),
        resets_BT: input.resets_BT,
    };
    match kernel.of(cuda::scan_fits(&k_BTD), &k_BTD, NAME, "k_BTD")? {
        ScanKernel::Reference => Ok(reference(&converted, &state)),
        ScanKernel::Composed => composed(&converted, &state),
        ScanKernel::Auto | ScanKernel::Fused => fused(&converted, &state),
    }
}

fn check(input: &WkvInput<'_>) -> Result<Kind, KernelError> {
    const NAME: &str = "wkv";
    let [batch, time, width] = dimensions(NAME, "k_BTD", input.k_BTD)?;
    expect_shape(NAME, "v_BTD", input.v_BTD, &[batch, time, width])?;
    expect_shape(NAME, "decay_D", input.decay_D, &[width])?;
    expect_shape(NAME, "bonus_D", input.bonus_D, &[width])?;
    if let Some(state) = input.state {
        let parts = [
            ("state.numerator", &state.numerator),
            ("state.denominator", &state.denominator),
            ("state.maximum", &state.maximum),
        ];
        for (argument, tensor) in parts {
            expect_shape(NAME, argument, tensor, &[batch, width])?;
            expect_device(NAME, argument, tensor, input.k_BTD)?;
        }
    }
    expect_resets(NAME, input.resets_BT, input.k_BTD, [batch, time])?;
    if batch * time * width == 0 {
        let (found, expected) = (input.k_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "k_BTD", expected, found });
    }
    let mut kind = computing_kind(NAME, "k_BTD", input.k_BTD)?;
    let others = [("v_BTD", input.v_BTD), ("decay_D", input.decay_D), ("bonus_D", input.bonus_D)];
    for (argument, tensor) in others {
        expect_device(NAME, argument, tensor, input.k_BTD)?;
        if computing_kind(NAME, argument, tensor)? == Kind::Double {
            kind = Kind::Double;
        }
    }
    Ok(kind)
}

/// Weighted mean of what a state holds and the current value.
fn mean(state: &WkvState, bonus_D: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let exponent = bonus_D + k;
    let top = state.maximum.maximum(&exponent.detach());
    let (past, current) = ((&state.maximum - &top).exp(), (exponent - top).exp());
    (&past * &state.numerator + &current * v) / (past * &state.denominator + current)
}

/// `decay_D` holds ω here and below.
fn reference(input: &WkvInput<'_>, initial: &WkvState) -> WkvOutput {
    let mut outputs = Vec::new();
    let mut state = initial.map(Tensor::shallow_clone);
    state.maximum = state.maximum.detach();
    for time in 0..input.k_BTD.size()[1] {
        if let Some(resets_BT) = input.resets_BT {
            let resets_B1 = resets_BT.select(1, time).unsqueeze(-1);
            state.numerator = state.numerator.masked_fill(&resets_B1, 0.0);
            state.denominator = state.denominator.masked_fill(&resets_B1, 0.0);
            state.maximum = state.maximum.masked_fill(&resets_B1, NOTHING);
        }
        let (k, v) = (input.k_BTD.select(1, time), input.v_BTD.select(1, time));
        outputs.push(mean(&state, input.bonus_D, &k, &v));
        let past = &state.maximum - input.decay_D;
        let maximum = past.detach().maximum(&k.detach());
        let (left, added) = ((past - &maximum).exp(), (k - &maximum).exp());
        state = WkvState {
            numerator: &left * state.numerator + &added * v,
            denominator: left * state.denominator + added,
            maximum,
        };
    }
    WkvOutput { y_BTD: Tensor::stack(&outputs, 1), state }
}

/// The maxima of all steps by doubling, then two plain scans.
fn composed(input: &WkvInput<'_>, state: &WkvState) -> Result<WkvOutput, KernelError> {
    let time = input.k_BTD.size()[1];
    let resets_BT1 = input.resets_BT.map(|resets_BT| resets_BT.unsqueeze(-1));
    let first_B1D = state.maximum.detach().f_unsqueeze(1)?;
    let maximum_BTD = maxima(input, &first_B1D, resets_BT1.as_ref())?;
    let shifted = |first: &Tensor, rest: &Tensor| Tensor::f_cat(&[first, &rest.f_narrow(1, 0, time - 1)?], 1);
    let mut before_BTD = shifted(&first_B1D, &maximum_BTD)?;
    if let Some(resets_BT1) = &resets_BT1 {
        before_BTD = before_BTD.f_masked_fill(resets_BT1, NOTHING)?;
    }
    let left_BTD = (&before_BTD - input.decay_D - &maximum_BTD).f_exp()?;
    let added_BTD = (input.k_BTD - &maximum_BTD).f_exp()?;
    let scan = |x_BTD: &Tensor, initial: &Tensor| {
        let (state_BD, resets_BT) = (Some(initial), input.resets_BT);
        linear_scan(
            &LinearScanInput { decay_BTD: &left_BTD, x_BTD, state_BD, resets_BT },
            ScanKernel::Composed,
        )
    };
    let numerator = scan(&(&added_BTD * input.v_BTD), &state.numerator)?;
    let denominator = scan(&added_BTD, &state.denominator)?;
    let past = |first: &Tensor, all: &Tensor| -> Result<Tensor, KernelError> {
        let past = shifted(&first.f_unsqueeze(1)?, all)?;
        Ok(match &resets_BT1 {
            Some(resets_BT1) => past.f_masked_fill(resets_BT1, 0.0)?,
            None => past,
        })
    };
    let before = WkvState {
        numerator: past(&state.numerator, &numerator.h_BTD)?,
        denominator: past(&state.denominator, &denominator.h_BTD)?,
        maximum: before_BTD,
    };
    let y_BTD = mean(&before, input.bonus_D, input.k_BTD, input.v_BTD);
    let state = WkvState {
        numerator: numerator.state_BD,
        denominator: denominator.state_BD,
        maximum: maximum_BTD.f_select(1, time - 1)?,
    };
    Ok(WkvOutput { y_BTD, state })
}

/// `m_t = max(m_{t-1} − ω, k_t)` for all steps, without history.
fn maxima(
    input: &WkvInput<'_>,
    first_B1D: &Tensor,
    resets_BT1: Option<&Tensor>,
) -> Result<Tensor, KernelError> {
    let k_BTD = input.k_BTD.detach();
    let time = k_BTD.size()[1];
    let mut less = (-input.decay_D.detach()).f_expand(k_BTD.size(), false)?;
    if let Some(resets_BT1) = resets_BT1 {
        less = less.f_masked_fill(resets_BT1, NOTHING)?;
    }
    let from_state = first_B1D + less.f_narrow(1, 0, 1)?;
    let first = k_BTD.f_narrow(1, 0, 1)?.f_maximum(&from_state)?;
    let mut maximum = Tensor::f_cat(&[first, k_BTD.f_narrow(1, 1, time - 1)?], 1)?;
    let mut step = 1;
    while step < time {
        let later = time - step;
        let late = less.f_narrow(1, step, later)?;
        let moved = maximum.f_narrow(1, 0, later)? + &late;
        let larger = maximum.f_narrow(1, step, later)?.f_maximum(&moved)?;
        maximum = Tensor::f_cat(&[maximum.f_narrow(1, 0, step)?, larger], 1)?;
        let sum = late + less.f_narrow(1, 0, later)?;
        less = Tensor::f_cat(&[less.f_narrow(1, 0, step)?, sum], 1)?;
        step *= 2;
    }
    Ok(maximum)
}

named_tensors! {
    struct Inputs<T> { omega_D: T, bonus_D: T, k_BTD: T, v_BTD: T, numerator_BD: T, denominator_BD: T }

    struct Outputs<T> { y_BTD: T, numerator_BD: T, denominator_BD: T, maximum_BD: T }

    /// Numerator, denominator and maximum every `saved_every` steps, `(B, chunks, D)` each.
    struct States { numerator: Tensor, denominator: Tensor, maximum: Tensor }

    struct Saved {
        inputs: Inputs<Tensor>,
        maximum_BD: Tensor,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
        states: States,
    }
}

fn fused(input: &WkvInput<'_>, state: &WkvState) -> Result<WkvOutput, KernelError> {
    let inputs = Inputs {
        omega_D: input.decay_D,
        bonus_D: input.bonus_D,
        k_BTD: input.k_BTD,
        v_BTD: input.v_BTD,
        numerator_BD: &state.numerator,
        denominator_BD: &state.denominator,
    };
    let maximum_BD = state.maximum.detach().contiguous();
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let outputs = node(
        "wkv",
        inputs.map(Some),
        |_| forward(inputs, maximum_BD, resets_BT),
        |saved, upstream, _| backward(&saved, upstream),
    )?;
    let Outputs { y_BTD, numerator_BD, denominator_BD, maximum_BD } = outputs;
    let state =
        WkvState { numerator: numerator_BD, denominator: denominator_BD, maximum: maximum_BD.detach() };
    Ok(WkvOutput { y_BTD, state })
}

fn forward(
    inputs: Inputs<&Tensor>,
    maximum_BD: Tensor,
    resets_BT: Option<Tensor>,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let size = inputs.k_BTD.size();
    let (kind, device) = (inputs.k_BTD.kind(), inputs.k_BTD.device());
    let state = || beside(inputs.k_BTD, &[size[0], size[2]]);
    let every = saved_every(device);
    let chunks = (size[1] + every - 1) / every;
    let states = || beside(inputs.k_BTD, &[size[0], chunks, size[2]]);
    let outputs = Outputs {
        y_BTD: beside(inputs.k_BTD, &size),
        numerator_BD: state(),
        denominator_BD: state(),
        maximum_BD: state(),
    };
    let Outputs { y_BTD, numerator_BD, denominator_BD, maximum_BD: last_BD } = &outputs;
    let again = Outputs { y_BTD, numerator_BD, denominator_BD, maximum_BD: last_BD };
    let saved = Saved {
        inputs: inputs.map(Tensor::contiguous),
        maximum_BD,
        resets_BT,
        outputs: again.map(Tensor::shallow_clone),
        states: States { numerator: states(), denominator: states(), maximum: states() },
    };
    if device == Device::Cpu {
        call!(kind, wkv_forward_f32, wkv_forward_f64, &problem(&saved));
    } else {
        // SAFETY: dense tensors on one GPU, of the sizes that `scan.cu` states.
        unsafe { cuda::scan(Scan::Wkv, &saved.inputs.k_BTD, parameters(&saved), false)? };
    }
    Ok((outputs, saved))
}

/// What the GPU's kernels are given.
fn parameters(saved: &Saved) -> ScanParameters {
    let Saved { inputs, maximum_BD, resets_BT, outputs, states } = saved;
    let all = |tensors: [&Tensor; 3]| tensors.map(|tensor| cuda::optional_address(Some(tensor)));
    let [omega, bonus, k, v] = [&inputs.omega_D, &inputs.bonus_D, &inputs.k_BTD, &inputs.v_BTD]
        .map(|tensor| cuda::optional_address(Some(tensor)));
    ScanParameters {
        resets: cuda::optional_address(resets_BT.as_ref()),
        inputs: [omega, bonus, k, v],
        initial: all([&inputs.numerator_BD, &inputs.denominator_BD, maximum_BD]),
        output: cuda::optional_address(Some(&outputs.y_BTD)),
        last: all([&outputs.numerator_BD, &outputs.denominator_BD, &outputs.maximum_BD]),
        saved: all([&states.numerator, &states.denominator, &states.maximum]),
        ..ScanParameters::default()
    }
}

fn problem<T>(saved: &Saved) -> WkvProblem<T> {
    let Saved { inputs, maximum_BD, resets_BT, outputs, states } = saved;
    let size = inputs.k_BTD.size();
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    WkvProblem {
        batch: size[0],
        time: size[1],
        width: size[2],
        omega: input(&inputs.omega_D),
        bonus: input(&inputs.bonus_D),
        k: input(&inputs.k_BTD),
        v: input(&inputs.v_BTD),
        initial: [&inputs.numerator_BD, &inputs.denominator_BD, maximum_BD].map(input),
        resets: optional_address::<c_void>(resets_BT.as_ref()).cast(),
        y: address(&outputs.y_BTD),
        last: [&outputs.numerator_BD, &outputs.denominator_BD, &outputs.maximum_BD].map(address),
        saved: [&states.numerator, &states.denominator, &states.maximum].map(address),
    }
}

fn backward(saved: &Saved, upstream: Outputs<Option<Tensor>>) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let kind = saved.outputs.y_BTD.kind();
    let dense = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.contiguous());
    let y_gradient = dense(upstream.y_BTD).unwrap_or_else(|| saved.outputs.y_BTD.zeros_like());
    let last = [dense(upstream.numerator_BD), dense(upstream.denominator_BD)];
    let like = |tensor: &Tensor| beside(tensor, &tensor.size());
    let state_BD = &saved.inputs.numerator_BD;
    let results = Inputs {
        omega_D: like(state_BD),
        bonus_D: like(state_BD),
        k_BTD: like(&saved.inputs.k_BTD),
        v_BTD: like(&saved.inputs.k_BTD),
        numerator_BD: like(state_BD),
        denominator_BD: like(state_BD),
    };
    if y_gradient.device() == Device::Cpu {
        call!(
            kind,
            wkv_backward_f32,
            wkv_backward_f64,
            &problem(saved),
            &gradients(&y_gradient, &last, &results)
        );
    } else {
        let Inputs { omega_D, bonus_D, k_BTD, v_BTD, numerator_BD, denominator_BD } = &results;
        let to = |tensor: &Tensor| cuda::optional_address(Some(tensor));
        let parameters = ScanParameters {
            output_gradient: to(&y_gradient),
            last_gradient: last.each_ref().map(|gradient| cuda::optional_address(gradient.as_ref())),
            gradients: [to(omega_D), to(bonus_D), to(k_BTD), to(v_BTD)],
            initial_gradient: [to(numerator_BD), to(denominator_BD)],
            ..parameters(saved)
        };
        // SAFETY: as in `forward`; gradients have the shapes that `scan.cu` states.
        unsafe { cuda::scan(Scan::Wkv, &saved.inputs.k_BTD, parameters, true)? };
    }
    let omega_D = results.omega_D.sum_dim_intlist(0, false, kind);
    let bonus_D = results.bonus_D.sum_dim_intlist(0, false, kind);
    Ok(Inputs { omega_D, bonus_D, ..results }.map(Some))
}

fn gradients<T>(
    y_gradient: &Tensor,
    [numerator, denominator]: &[Option<Tensor>; 2],
    results: &Inputs<Tensor>,
) -> WkvGradients<T> {
    let given = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    WkvGradients {
        y: address::<T>(y_gradient).cast_const(),
        last: [given(numerator), given(denominator)],
        omega: address(&results.omega_D),
        bonus: address(&results.bonus_D),
        k: address(&results.k_BTD),
        v: address(&results.v_BTD),
        initial: [address(&results.numerator_BD), address(&results.denominator_BD)],
    }
}
