//! The chunkwise mLSTM on the card, inside libtorch's autograd.
//!
//! For training: the state before the first step is empty, the one after the last is not computed, and there are no
//! resets. Queries, keys and values are read as bf16 whatever they come as, gates as fp32; products have bf16 operands
//! and fp32 sums. Between the passes it keeps its inputs, its output and about 40 bytes a step and head.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};
use xlstm_cuda::MlstmSizes;
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::mlstm::{Launch, MlstmParameters, MlstmPlan, MlstmTensors, Strides};

use super::{Card, address, optional_address, room};
use crate::KernelError;
use crate::mlstm::MlstmInput;
use crate::shape::{dimensions, expect_device, expect_shape};

const NAME: &str = "mlstm (CUDA)";

/// mLSTM over a whole sequence on the card: `h_BTHV`, in the type of `v_BTHV`. Gradients flow to the five tensors.
///
/// # Errors
/// [`KernelError`] names the first argument that does not fit: shape, device, or head sizes that are no multiples of 8
/// up to 1024; a state or resets, which this version does not know.
pub fn mlstm(input: &MlstmInput<'_>) -> Result<Tensor, KernelError> {
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
    let found = input.q_BTHK.device();
    if !matches!(found, Device::Cuda(_)) {
        let expected = "a CUDA device".to_owned();
        return Err(KernelError::Device { function: NAME, argument: "q_BTHK", expected, found });
    }
    if input.state.is_some() || input.resets_BT.is_some() {
        let (option, expected) =
            ("state or resets_BT", "none (this version starts empty and never forgets at a step)");
        return Err(KernelError::Option { function: NAME, option, expected, found: "some".to_owned() });
    }
    for size in [key, value] {
        if size % 8 != 0 || !(8..=1024).contains(&size) {
            let expected = "a multiple of 8 up to 1024";
            return Err(KernelError::Option {
                function: NAME,
                option: "head size",
                expected,
                found: size.to_string(),
            });
        }
    }
    let half = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16).contiguous();
    let single = |tensor: &Tensor| tensor.to_kind(Kind::Float).contiguous();
    let inputs = [
        half(input.q_BTHK),
        half(input.k_BTHK),
        half(input.v_BTHV),
        single(input.i_BTH),
        single(input.f_BTH),
    ];
    let mut outputs = custom_function(
        NAME,
        &inputs.each_ref().map(Some),
        |_| {
            let [query, key, value, input_gate, forget_gate] = inputs.each_ref();
            let cell = Cell { query, key, value, gates: Gates::apart(input_gate, forget_gate)?, keep: false };
            let (output, saved) = cell.forward()?;
            let mut kept: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
            kept.extend([output.shallow_clone(), saved]);
            Ok(Forward { outputs: vec![output], saved: kept })
        },
        backward,
    )?;
    Ok(outputs.swap_remove(0).to_kind(input.v_BTHV.kind()))
}

fn backward(context: &Backward) -> Result<Vec<Option<Tensor>>, BoxError> {
    let [query, key, value, input_gate, forget_gate, output, saved] = context.saved.as_slice() else {
        return Err(format!("{} saved tensors, expected 7", context.saved.len()).into());
    };
    let Some(Some(gradient)) = context.gradients.first() else {
        return Ok((0..5).map(|_| None).collect());
    };
    let gradient = gradient.to_kind(Kind::BFloat16).contiguous();
    let gate_gradients = [input_gate.f_empty_like()?, forget_gate.f_empty_like()?];
    let cell = Cell { query, key, value, gates: Gates::apart(input_gate, forget_gate)?, keep: false };
    let targets = Gates::apart(&gate_gradients[0], &gate_gradients[1])?;
    let made = cell.backward(output, saved, &gradient, None, targets)?;
    Ok(made.into_iter().chain(gate_gradients).map(Some).collect())
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
}

impl Cell<'_> {
    fn plan(&self, card: &Card) -> Result<MlstmPlan, BoxError> {
        let [batch, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", self.query)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", self.value)?;
        let (tokens, [batch, heads]) = (u32::try_from(tokens)?, [batch, heads].map(u32::try_from));
        Ok(MlstmPlan {
            sizes: MlstmSizes::fastest(u32::try_from(key)?, u32::try_from(value)?, tokens),
            architecture: card.architecture(),
            batch: batch?,
            heads: heads?,
            tokens,
            keep: self.keep,
            divided: true,
        })
    }

    fn tensors(&self) -> MlstmTensors {
        MlstmTensors {
            query: address(self.query),
            key: address(self.key),
            value: address(self.value),
            input_gate: self.gates.input,
            forget_gate: self.gates.forget,
            ..MlstmTensors::default()
        }
    }

    fn strides(&self, plan: &MlstmPlan) -> [Strides; 3] {
        let dense = |width: u32| Strides::token_major(plan.tokens.into(), plan.heads.into(), width.into());
        [dense(plan.sizes.key), dense(plan.sizes.value), self.gates.strides]
    }

    /// h, and the bytes that the backward pass needs.
    pub(super) fn forward(&self) -> Result<(Tensor, Tensor), BoxError> {
        let card = Card::of(self.query)?;
        let plan = self.plan(card)?;
        let (saved_bytes, scratch_bytes) = plan.bytes();
        let device = self.query.device();
        let (saved, scratch) = (room(saved_bytes, device)?, room(scratch_bytes, device)?);
        let output = self.value.f_empty_like()?;
        let tensors = MlstmTensors { output: address(&output), ..self.tensors() };
        let parameters = plan.parameters(&tensors, self.strides(&plan), address(&saved), address(&scratch));
        launch(card, &plan, &plan.forward(), &parameters)?;
        Ok((output, saved))
    }

    /// What rounding took from h, in the bytes that [`Cell::forward`] kept.
    pub(super) fn rest(&self, saved: &Tensor) -> Result<Tensor, BoxError> {
        let offset = self.plan(Card::of(self.query)?)?.rest_offset();
        Ok(saved.f_narrow(0, i64::try_from(offset)?, i64::try_from(self.value.numel())?)?)
    }

    /// 1 / den of every token and head, `(B·T, H)` fp32, in the bytes that [`Cell::forward`] kept.
    pub(super) fn inverse_denominator(&self, saved: &Tensor) -> Result<Tensor, BoxError> {
        let offset = self.plan(Card::of(self.query)?)?.inverse_denominator_offset();
        let [batch, tokens, heads, _] = dimensions::<4>(NAME, "q_BTHK", self.query)?;
        let bytes = saved.f_narrow(0, i64::try_from(offset)?, 4 * batch * tokens * heads)?;
        Ok(bytes.f_view_dtype(Kind::Float)?.f_view([batch * tokens, heads])?)
    }

    /// Gradients of queries, keys and values, from that of h; those of the gates go to `gate_gradients`, laid out as the
    /// gates. With `dots`, the gradient comes divided by den, and they are its products with the unrounded h, `(B·T, H)`.
    pub(super) fn backward(
        &self,
        output: &Tensor,
        saved: &Tensor,
        gradient: &Tensor,
        dots: Option<&Tensor>,
        gate_gradients: Gates,
    ) -> Result<[Tensor; 3], BoxError> {
        let card = Card::of(self.query)?;
        let plan = MlstmPlan { divided: dots.is_some(), ..self.plan(card)? };
        let scratch = room(plan.bytes().1, self.query.device())?;
        let made = [self.query.f_empty_like()?, self.key.f_empty_like()?, self.value.f_empty_like()?];
        let tensors = MlstmTensors {
            output: address(output),
            output_gradient: address(gradient),
            query_gradient: address(&made[0]),
            key_gradient: address(&made[1]),
            value_gradient: address(&made[2]),
            input_gate_gradient: gate_gradients.input,
            forget_gate_gradient: gate_gradients.forget,
            output_dot: optional_address(dots),
            ..self.tensors()
        };
        let parameters = plan.parameters(&tensors, self.strides(&plan), address(saved), address(&scratch));
        launch(card, &plan, &plan.backward(), &parameters)?;
        Ok(made)
    }
}

fn launch(
    card: &Card,
    plan: &MlstmPlan,
    launches: &[Launch],
    parameters: &MlstmParameters,
) -> Result<(), BoxError> {
    let arguments = plan.arguments(card.driver(), *parameters)?;
    for step in launches {
        let launch = LayerLaunch { kernel: step.kernel, shape: step.shape, parts: 0 };
        // SAFETY: the parameters are these kernels' own; every address is a tensor of the size that the plan states.
        unsafe { card.launch(plan.specialisation(step.source), launch, &arguments)? };
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
        let error = mlstm(&input).expect_err("there is no card in the tensors");
        assert!(error.to_string().contains("q_BTHK is on Cpu, expected a CUDA device"), "{error}");
    }
}
