//! The chunkwise mLSTM on the GPU, inside libtorch's autograd.
//!
//! Queries, keys and values are read as bf16 whatever they come as, gates as fp32; products have bf16 operands and fp32
//! sums. A sequence may begin anew at any token (`resets_BT`), may go on from a state and may leave one: states are fp32,
//! and gradients flow to the one and from the other. The maximum that a state is divided by is a number like any other to
//! the state that leaves (it has no gradient), and what that division means for the state that enters is in the gradient
//! of its maximum. Between the passes it keeps its inputs, its output and about 40 bytes a step and head.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::MlstmSizes;
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::mlstm::{Launch, MlstmParameters, MlstmPlan, MlstmTensors, StateAddresses, Strides};

use super::{Gpu, MAX_HEAD, address, expect, optional_address, scratch};
use crate::KernelError;
use crate::mlstm::{MlstmInput, MlstmOutput, MlstmState};
use crate::shape::{dimensions, expect_device, expect_resets, expect_shape};

const NAME: &str = "mlstm (CUDA)";

named_tensors! {
    struct Inputs<T> {
        query: T,
        key: T,
        value: T,
        input_gate: T,
        forget_gate: T,
        matrix: T,
        normalizer: T,
        maximum: T,
    }

    struct Outputs<T> { hidden: T, matrix: T, normalizer: T, maximum: T }

    struct Saved {
        query: Tensor,
        key: Tensor,
        value: Tensor,
        input_gate: Tensor,
        forget_gate: Tensor,
        hidden: Tensor,
        bytes: Tensor,
        resets: Option<Tensor>,
        matrix: Option<Tensor>,
        normalizer: Option<Tensor>,
        maximum: Option<Tensor>,
    }
}

impl Saved {
    /// The state before the first token.
    fn initial(&self) -> Option<MlstmState> {
        let [matrix, normalizer, maximum] = [&self.matrix, &self.normalizer, &self.maximum]
            .map(|tensor| tensor.as_ref().map(Tensor::shallow_clone));
        Some(MlstmState { matrix: matrix?, normalizer: normalizer?, maximum: maximum? })
    }
}

/// mLSTM over a whole sequence on the GPU: `h_BTHV`, in the type of `v_BTHV`, and the state after it, fp32. Gradients flow
/// to the five tensors and to the state before it.
///
/// # Errors
/// [`KernelError`] names the first argument that does not fit: shape, device, or head sizes that are no multiples of 8
/// up to 1280.
pub fn mlstm(input: &MlstmInput<'_>) -> Result<MlstmOutput, KernelError> {
    check(input)?;
    let half = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16).contiguous();
    let single = |tensor: &Tensor| tensor.to_kind(Kind::Float).contiguous();
    let (query, key, value) = (half(input.q_BTHK), half(input.k_BTHK), half(input.v_BTHV));
    let (input_gate, forget_gate) = (single(input.i_BTH), single(input.f_BTH));
    let resets = input.resets_BT.map(Tensor::contiguous);
    let initial = input.state.map(|state| MlstmState {
        matrix: single(&state.matrix),
        normalizer: single(&state.normalizer),
        maximum: single(&state.maximum),
    });
    let inputs = Inputs {
        query: Some(&query),
        key: Some(&key),
        value: Some(&value),
        input_gate: Some(&input_gate),
        forget_gate: Some(&forget_gate),
        matrix: initial.as_ref().map(|state| &state.matrix),
        normalizer: initial.as_ref().map(|state| &state.normalizer),
        maximum: initial.as_ref().map(|state| &state.maximum),
    };
    let Outputs { hidden, matrix, normalizer, maximum } = node(
        NAME,
        inputs,
        |_| {
            let saved = Saved {
                query: query.shallow_clone(),
                key: key.shallow_clone(),
                value: value.shallow_clone(),
                input_gate: input_gate.shallow_clone(),
                forget_gate: forget_gate.shallow_clone(),
                hidden: value.f_empty_like()?,
                bytes: Tensor::new(),
                resets: resets.as_ref().map(Tensor::shallow_clone),
                matrix: inputs.matrix.map(Tensor::shallow_clone),
                normalizer: inputs.normalizer.map(Tensor::shallow_clone),
                maximum: inputs.maximum.map(Tensor::shallow_clone),
            };
            let initial = initial.as_ref();
            let CellOutput { hidden, bytes, last } = cell(&saved, initial)?.forward(true)?;
            let last = last.ok_or("no state")?;
            let outputs = Outputs {
                hidden: hidden.shallow_clone(),
                matrix: last.matrix,
                normalizer: last.normalizer,
                maximum: last.maximum,
            };
            Ok((outputs, Saved { hidden, bytes, ..saved }))
        },
        |saved, upstream, _| backward(&saved, &upstream),
    )?;
    Ok(MlstmOutput {
        h_BTHV: hidden.to_kind(input.v_BTHV.kind()),
        state: MlstmState { matrix, normalizer, maximum: maximum.detach() },
    })
}

fn check(input: &MlstmInput<'_>) -> Result<(), KernelError> {
    let [batch, tokens, heads, key] = dimensions(NAME, "q_BTHK", input.q_BTHK)?;
    let [.., value] = dimensions::<4>(NAME, "v_BTHV", input.v_BTHV)?;
    expect_shape(NAME, "k_BTHK", input.k_BTHK, &[batch, tokens, heads, key])?;
    expect_shape(NAME, "v_BTHV", input.v_BTHV, &[batch, tokens, heads, value])?;
    for (argument, gate) in [("i_BTH", input.i_BTH), ("f_BTH", input.f_BTH)] {
        expect_shape(NAME, argument, gate, &[batch, tokens, heads])?;
        expect_device(NAME, argument, gate, input.q_BTHK)?;
    }
    expect_device(NAME, "k_BTHK", input.k_BTHK, input.q_BTHK)?;
    expect_device(NAME, "v_BTHV", input.v_BTHV, input.q_BTHK)?;
    expect_resets(NAME, input.resets_BT, input.q_BTHK, [batch, tokens])?;
    if let Some(resets_BT) = input.resets_BT {
        expect_device(NAME, "resets_BT", resets_BT, input.q_BTHK)?;
    }
    if let Some(state) = input.state {
        expect_shape(NAME, "state.matrix", &state.matrix, &[batch, heads, key, value])?;
        expect_shape(NAME, "state.normalizer", &state.normalizer, &[batch, heads, key])?;
        expect_shape(NAME, "state.maximum", &state.maximum, &[batch, heads])?;
        expect_device(NAME, "state.matrix", &state.matrix, input.q_BTHK)?;
    }
    let found = input.q_BTHK.device();
    if !matches!(found, Device::Cuda(_)) {
        let expected = "a CUDA device".to_owned();
        return Err(KernelError::Device { function: NAME, argument: "q_BTHK", expected, found });
    }
    for size in [key, value] {
        if size % 8 != 0 || !(8..=MAX_HEAD).contains(&size) {
            let expected = "a multiple of 8 up to 1280";
            return Err(KernelError::Option {
                function: NAME,
                option: "head size",
                expected,
                found: size.to_string(),
            });
        }
    }
    Ok(())
}

fn cell<'a>(saved: &'a Saved, initial: Option<&'a MlstmState>) -> Result<Cell<'a>, BoxError> {
    Ok(Cell {
        query: &saved.query,
        key: &saved.key,
        value: &saved.value,
        gates: Gates::apart(&saved.input_gate, &saved.forget_gate)?,
        keep: false,
        resets: saved.resets.as_ref(),
        initial,
    })
}

fn backward(saved: &Saved, upstream: &Outputs<Option<Tensor>>) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let hidden = match &upstream.hidden {
        Some(gradient) => gradient.f_to_kind(Kind::BFloat16)?.f_contiguous()?,
        None => saved.hidden.f_zeros_like()?,
    };
    let gates = (saved.input_gate.f_empty_like()?, saved.forget_gate.f_empty_like()?);
    let initial = saved.initial();
    let cell = cell(saved, initial.as_ref())?;
    let gradients = cell.backward(&CellUpstream {
        output: &saved.hidden,
        bytes: &saved.bytes,
        hidden: &hidden,
        dots: None,
        last: [upstream.matrix.as_ref(), upstream.normalizer.as_ref()],
        gates: Gates::apart(&gates.0, &gates.1)?,
    })?;
    let (matrix, normalizer, maximum) = match gradients.initial {
        Some(MlstmState { matrix, normalizer, maximum }) => (Some(matrix), Some(normalizer), Some(maximum)),
        None => (None, None, None),
    };
    Ok(Inputs {
        query: Some(gradients.query),
        key: Some(gradients.key),
        value: Some(gradients.value),
        input_gate: Some(gates.0),
        forget_gate: Some(gates.1),
        matrix,
        normalizer,
        maximum,
    })
}

/// Where the gates (or their gradients) lie: fp32 `(B, T, H)`, in one tensor or in two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gates {
    input: u64,
    forget: u64,
    strides: Strides,
}

impl Gates {
    /// Two dense tensors `(B, T, H)`.
    fn apart(input: &Tensor, forget: &Tensor) -> Result<Self, BoxError> {
        let [_, tokens, heads] = dimensions::<3>(NAME, "i_BTH", input)?;
        Ok(Self {
            input: address(input),
            forget: address(forget),
            strides: Strides::token_major(tokens, heads, 1),
        })
    }

    /// One dense tensor `(B·T, 2 H)`: input gates, then forget gates.
    pub(super) fn together(gates: &Tensor, tokens: i64) -> Result<Self, BoxError> {
        let [_, double] = dimensions::<2>(NAME, "gates", gates)?;
        let strides = Strides { batch: tokens * double, head: 1, token: double };
        Ok(Self { input: address(gates), forget: address(gates) + 2 * u64::try_from(double)?, strides })
    }
}

/// The cell on dense bf16 tensors `(B, T, H, K)` and `(B, T, H, V)`, without autograd.
pub(super) struct Cell<'a> {
    pub(super) query: &'a Tensor,
    pub(super) key: &'a Tensor,
    pub(super) value: &'a Tensor,
    pub(super) gates: Gates,
    /// Whether states between chunks and scores stay for the backward pass.
    pub(super) keep: bool,
    /// `(B, T)`, boolean and dense.
    pub(super) resets: Option<&'a Tensor>,
    /// The state before the first token, fp32 and dense.
    pub(super) initial: Option<&'a MlstmState>,
}

/// Of [`Cell::forward`].
pub(super) struct CellOutput {
    pub(super) hidden: Tensor,
    /// What the backward pass needs besides.
    pub(super) bytes: Tensor,
    pub(super) last: Option<MlstmState>,
}

/// What [`Cell::backward`] is given.
pub(super) struct CellUpstream<'a> {
    /// h, as the forward pass left it.
    pub(super) output: &'a Tensor,
    pub(super) bytes: &'a Tensor,
    /// Gradient of h; with `dots` it comes divided by den, and they are its products with the unrounded h, `(B·T, H)`.
    pub(super) hidden: &'a Tensor,
    pub(super) dots: Option<&'a Tensor>,
    /// Gradients of the last state's matrix and normalizer.
    pub(super) last: [Option<&'a Tensor>; 2],
    /// Where the gradients of the gates go, laid out as these.
    pub(super) gates: Gates,
}

/// Of [`Cell::backward`].
pub(super) struct CellGradients {
    pub(super) query: Tensor,
    pub(super) key: Tensor,
    pub(super) value: Tensor,
    pub(super) initial: Option<MlstmState>,
}

impl Cell<'_> {
    fn plan(&self, gpu: &Gpu) -> Result<MlstmPlan, BoxError> {
        let [batch, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", self.query)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", self.value)?;
        let (tokens, [batch, heads]) = (u32::try_from(tokens)?, [batch, heads].map(u32::try_from));
        Ok(MlstmPlan {
            sizes: MlstmSizes::fastest(u32::try_from(key)?, u32::try_from(value)?, tokens),
            architecture: gpu.architecture(),
            batch: batch?,
            heads: heads?,
            tokens,
            keep: self.keep,
            divided: true,
            resets: self.resets.is_some(),
        })
    }

    fn tensors(&self) -> Result<MlstmTensors, BoxError> {
        if let Some(resets) = self.resets {
            expect("mlstm: resets", resets, Kind::Bool)?;
        }
        Ok(MlstmTensors {
            query: address(self.query),
            key: address(self.key),
            value: address(self.value),
            input_gate: self.gates.input,
            forget_gate: self.gates.forget,
            resets: optional_address(self.resets),
            initial: self.initial.map(state_addresses).transpose()?.unwrap_or_default(),
            ..MlstmTensors::default()
        })
    }

    fn strides(&self, plan: &MlstmPlan) -> [Strides; 3] {
        let dense = |width: u32| Strides::token_major(plan.tokens.into(), plan.heads.into(), width.into());
        [dense(plan.sizes.key), dense(plan.sizes.value), self.gates.strides]
    }

    /// A state of this cell's sizes, not yet written.
    fn new_state(&self) -> Result<MlstmState, BoxError> {
        let [batch, _, heads, key] = dimensions::<4>(NAME, "q_BTHK", self.query)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", self.value)?;
        let new = |shape: &[i64]| super::make(shape, Kind::Float, self.query);
        Ok(MlstmState {
            matrix: new(&[batch, heads, key, value])?,
            normalizer: new(&[batch, heads, key])?,
            maximum: new(&[batch, heads])?,
        })
    }

    /// h, the bytes that the backward pass needs, and, where asked for, the state after the last token.
    pub(super) fn forward(&self, with_state: bool) -> Result<CellOutput, BoxError> {
        let gpu = Gpu::of(self.query)?;
        let plan = self.plan(gpu)?;
        let (saved_bytes, scratch_bytes) = plan.bytes();
        let device = self.query.device();
        let (bytes, scratch) = (scratch(saved_bytes, device)?, scratch(scratch_bytes, device)?);
        let hidden = self.value.f_empty_like()?;
        let last = with_state.then(|| self.new_state()).transpose()?;
        let tensors = MlstmTensors {
            output: address(&hidden),
            last: last.as_ref().map(state_addresses).transpose()?.unwrap_or_default(),
            ..self.tensors()?
        };
        let parameters = plan.parameters(&tensors, self.strides(&plan), address(&bytes), address(&scratch));
        launch(gpu, &plan, &plan.forward(), &parameters)?;
        Ok(CellOutput { hidden, bytes, last })
    }

    /// What rounding took from h, in the bytes that [`Cell::forward`] left.
    pub(super) fn rest(&self, bytes: &Tensor) -> Result<Tensor, BoxError> {
        let offset = self.plan(Gpu::of(self.query)?)?.rest_offset();
        Ok(bytes.f_narrow(0, i64::try_from(offset)?, i64::try_from(self.value.numel())?)?)
    }

    /// 1 / den of every token and head, `(B·T, H)` fp32, in the bytes that [`Cell::forward`] left.
    pub(super) fn inverse_denominator(&self, bytes: &Tensor) -> Result<Tensor, BoxError> {
        let offset = self.plan(Gpu::of(self.query)?)?.inverse_denominator_offset();
        let [batch, tokens, heads, _] = dimensions::<4>(NAME, "q_BTHK", self.query)?;
        let part = bytes.f_narrow(0, i64::try_from(offset)?, 4 * batch * tokens * heads)?;
        Ok(part.f_view_dtype(Kind::Float)?.f_view([batch * tokens, heads])?)
    }

    /// Gradients of queries, keys, values and of the state before the first token; those of the gates go where `upstream`
    /// says.
    pub(super) fn backward(&self, upstream: &CellUpstream<'_>) -> Result<CellGradients, BoxError> {
        let gpu = Gpu::of(self.query)?;
        let plan = MlstmPlan { divided: upstream.dots.is_some(), ..self.plan(gpu)? };
        let scratch = scratch(plan.bytes().1, self.query.device())?;
        let (query, key) = (self.query.f_empty_like()?, self.key.f_empty_like()?);
        let value = self.value.f_empty_like()?;
        let last = self.last_gradient(upstream.last)?;
        let initial = self.initial.map(|_| self.new_state()).transpose()?;
        let gradient_addresses = |state: &MlstmState| StateAddresses {
            matrix: address(&state.matrix),
            normalizer: address(&state.normalizer),
            maximum: 0,
        };
        let tensors = MlstmTensors {
            output: address(upstream.output),
            output_gradient: address(upstream.hidden),
            query_gradient: address(&query),
            key_gradient: address(&key),
            value_gradient: address(&value),
            input_gate_gradient: upstream.gates.input,
            forget_gate_gradient: upstream.gates.forget,
            output_dot: optional_address(upstream.dots),
            last_gradient: last.as_ref().map(gradient_addresses).unwrap_or_default(),
            initial_gradient: initial.as_ref().map(gradient_addresses).unwrap_or_default(),
            ..self.tensors()?
        };
        let bytes = address(upstream.bytes);
        let parameters = plan.parameters(&tensors, self.strides(&plan), bytes, address(&scratch));
        launch(gpu, &plan, &plan.backward(), &parameters)?;
        let initial = self.initial.zip(initial).map(|(state, gradient)| state_gradient(state, gradient));
        Ok(CellGradients { query, key, value, initial: initial.transpose()? })
    }

    /// Both gradients of the last state, dense and fp32, zeros for one that nothing depends on; none without either.
    fn last_gradient(
        &self,
        [matrix, normalizer]: [Option<&Tensor>; 2],
    ) -> Result<Option<MlstmState>, BoxError> {
        if matrix.is_none() && normalizer.is_none() {
            return Ok(None);
        }
        let empty = self.new_state()?;
        let or_zeros = |gradient: Option<&Tensor>, like: &Tensor| match gradient {
            Some(gradient) => gradient.f_to_kind(Kind::Float)?.f_contiguous(),
            None => like.f_zeros_like(),
        };
        Ok(Some(MlstmState {
            matrix: or_zeros(matrix, &empty.matrix)?,
            normalizer: or_zeros(normalizer, &empty.normalizer)?,
            maximum: empty.maximum,
        }))
    }
}

/// The gradient of a state whose maximum is a variable too: C and n are the state divided by exp(m), and nothing depends on
/// m but through their products with exp(m).
fn state_gradient(state: &MlstmState, gradient: MlstmState) -> Result<MlstmState, BoxError> {
    let MlstmState { matrix, normalizer, .. } = gradient;
    let by_matrix = (&matrix * &state.matrix).f_sum_dim_intlist([2, 3].as_slice(), false, None::<Kind>)?;
    let by_normalizer = (&normalizer * &state.normalizer).f_sum_dim_intlist(2, false, None::<Kind>)?;
    Ok(MlstmState { matrix, normalizer, maximum: by_matrix.f_add(&by_normalizer)? })
}

fn state_addresses(state: &MlstmState) -> Result<StateAddresses, BoxError> {
    for tensor in [&state.matrix, &state.normalizer, &state.maximum] {
        if tensor.kind() != Kind::Float || !tensor.is_contiguous() {
            return Err(format!("{NAME}: expected a dense state of Float, found {:?}", tensor.kind()).into());
        }
    }
    Ok(StateAddresses {
        matrix: address(&state.matrix),
        normalizer: address(&state.normalizer),
        maximum: address(&state.maximum),
    })
}

fn launch(
    gpu: &Gpu,
    plan: &MlstmPlan,
    launches: &[Launch],
    parameters: &MlstmParameters,
) -> Result<(), BoxError> {
    let arguments = plan.arguments(gpu.driver(), *parameters)?;
    for step in launches {
        let launch = LayerLaunch { kernel: step.kernel, shape: step.shape, parts: 0 };
        // SAFETY: the parameters are these kernels' own; every address is a tensor of the size that the plan states.
        unsafe { gpu.launch(plan.specialization(step.source), launch, &arguments)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_the_cpu_are_refused_by_name() {
        let tensor = |sizes: &[i64]| Tensor::zeros(sizes, (Kind::Float, Device::Cpu));
        let (q_BTHK, v_BTHV, gate_BTH) = (tensor(&[1, 3, 2, 8]), tensor(&[1, 3, 2, 16]), tensor(&[1, 3, 2]));
        let input = MlstmInput {
            q_BTHK: &q_BTHK,
            k_BTHK: &q_BTHK,
            v_BTHV: &v_BTHV,
            i_BTH: &gate_BTH,
            f_BTH: &gate_BTH,
            state: None,
            resets_BT: None,
        };
        let error = mlstm(&input).expect_err("there is no GPU in the tensors");
        assert!(error.to_string().contains("q_BTHK is on Cpu, expected a CUDA device"), "{error}");
    }
}
