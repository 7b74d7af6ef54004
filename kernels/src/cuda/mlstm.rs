//! The chunkwise mLSTM on the card, inside libtorch's autograd.
//!
//! For training: the state before the first step is empty, the one after the last is not computed, and there are no
//! resets. Queries, keys and values are read as bf16 whatever they come as, gates as fp32; products have bf16 operands
//! and fp32 sums. Between the passes it keeps its inputs, its output and about 40 bytes a step and head.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::{Backward, Forward, custom_function};
use xlstm_cuda::MlstmSizes;
use xlstm_cuda::mlstm::{Launch, MlstmParameters, MlstmPlan, MlstmTensors, Strides};

use super::{Card, address, room};
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
    let mut outputs = custom_function(NAME, &inputs.each_ref().map(Some), |_| forward(&inputs), backward)?;
    Ok(outputs.swap_remove(0).to_kind(input.v_BTHV.kind()))
}

/// The plan for tensors of these sizes. A chunk of 256 was the fastest from 384 on, 128 below (docs/benchmarks).
fn plan(card: &Card, query: &Tensor, value: &Tensor) -> Result<MlstmPlan, BoxError> {
    let [batch, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", query)?;
    let [.., value] = dimensions::<4>(NAME, "v_BTHV", value)?;
    let chunk = if tokens > 128 && key * value >= 128 * 256 { 256 } else { 128 };
    let sizes = MlstmSizes { key: u32::try_from(key)?, value: u32::try_from(value)?, chunk };
    let [batch, heads, tokens] = [batch, heads, tokens].map(u32::try_from);
    Ok(MlstmPlan {
        sizes,
        architecture: card.driver.architecture(),
        batch: batch?,
        heads: heads?,
        tokens: tokens?,
    })
}

/// Strides of the contiguous tensors above.
fn strides(plan: &MlstmPlan) -> [Strides; 3] {
    [plan.sizes.key, plan.sizes.value, 1]
        .map(|width| Strides::token_major(plan.tokens.into(), plan.heads.into(), width.into()))
}

fn launch(
    card: &Card,
    plan: &MlstmPlan,
    launches: &[Launch],
    parameters: &MlstmParameters,
) -> Result<(), BoxError> {
    for step in launches {
        let wanted = plan.specialisation(step.source);
        let kernel = card.kernel(wanted, step.kernel, step.shape.shared_bytes)?;
        // SAFETY: the parameters are these kernels' own; every address is a tensor of the size that the plan states,
        // which libtorch's allocator gives to no later work of this stream before these launches have run.
        unsafe { card.driver.launch(kernel, step.shape, parameters, std::ptr::null_mut())? };
    }
    Ok(())
}

fn forward(inputs: &[Tensor; 5]) -> Result<Forward, BoxError> {
    let card = Card::get()?;
    let [query, key, value, input_gate, forget_gate] = inputs;
    let plan = plan(card, query, value)?;
    let (saved_bytes, scratch_bytes) = plan.bytes();
    let device = query.device();
    let (saved, scratch) = (room(saved_bytes, device)?, room(scratch_bytes, device)?);
    let output = value.f_empty_like()?;
    let tensors = MlstmTensors {
        query: address(query),
        key: address(key),
        value: address(value),
        input_gate: address(input_gate),
        forget_gate: address(forget_gate),
        output: address(&output),
        ..MlstmTensors::default()
    };
    let parameters = plan.parameters(&tensors, strides(&plan), address(&saved), address(&scratch));
    launch(card, &plan, &plan.forward(), &parameters)?;
    let mut kept: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    kept.extend([output.shallow_clone(), saved]);
    Ok(Forward { outputs: vec![output], saved: kept })
}

fn backward(context: &Backward) -> Result<Vec<Option<Tensor>>, BoxError> {
    let [query, key, value, input_gate, forget_gate, output, saved] = context.saved.as_slice() else {
        return Err(format!("{} saved tensors, expected 7", context.saved.len()).into());
    };
    let Some(Some(gradient)) = context.gradients.first() else {
        return Ok((0..5).map(|_| None).collect());
    };
    let card = Card::get()?;
    let plan = plan(card, query, value)?;
    let gradient = gradient.to_kind(Kind::BFloat16).contiguous();
    let scratch = room(plan.bytes().1, query.device())?;
    let made: Vec<Tensor> = [query, key, value, input_gate, forget_gate]
        .into_iter()
        .map(Tensor::f_empty_like)
        .collect::<Result<_, _>>()?;
    let tensors = MlstmTensors {
        query: address(query),
        key: address(key),
        value: address(value),
        input_gate: address(input_gate),
        forget_gate: address(forget_gate),
        output: address(output),
        output_gradient: address(&gradient),
        query_gradient: address(&made[0]),
        key_gradient: address(&made[1]),
        value_gradient: address(&made[2]),
        input_gate_gradient: address(&made[3]),
        forget_gate_gradient: address(&made[4]),
    };
    let parameters = plan.parameters(&tensors, strides(&plan), address(saved), address(&scratch));
    launch(card, &plan, &plan.backward(), &parameters)?;
    Ok(made.into_iter().map(Some).collect())
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
