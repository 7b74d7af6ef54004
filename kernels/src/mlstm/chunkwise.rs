//! mLSTM in chunks, on the CPU (`cpu/mlstm.h`), with a backward pass by hand.
//!
//! Inside a chunk of L steps all pairs are taken at once, as in the reference; between chunks the state carries what
//! is left (paper eq. 19–27 for many steps at a time). With b the running sum of log σ(f~) inside a chunk:
//!
//! ```text
//! D_ij = b_i − b_j + i~_j − m_i                    S_ij = (q_i·k_j / √K) exp(D_ij)          j ≤ i
//! e_i  = exp(b_i + m_before − m_i)                 a_j = exp(b_L − b_j + i~_j − m_L) / √K
//! s_i  = e_i q_i·n + Σ_j S_ij                      h_i = (e_i Cᵀ q_i + Σ_j S_ij v_j) / (max(|s_i|, exp(−m_i)) + 1e-6)
//! C'   = exp(b_L + m_before − m_L) C + Σ_j a_j k_j v_jᵀ
//! ```
//!
//! Why it is faster than the reference: time and memory grow linearly with length; what lies between the products
//! is done while it is in the cache; and the products are our own, for operands that fit there (`cpu/gemm.h`). What
//! is kept for the backward pass: the inputs, h, one number a step, and the states at the chunks' borders.

use super::{MlstmInput, MlstmOutput, MlstmState, Sizes};
use crate::KernelError;
use crate::cpu::{self, MlstmGradients, MlstmProblem, address, empty, optional_address};
use std::ffi::c_void;
use tch::{Kind, Tensor};
use xlstm_bridge::autograd::{Backward, Forward, custom_function};
use xlstm_bridge::{BoxError, BridgeError};

/// Steps in a chunk: below it the small products lose speed, above it pairs cost more than states.
const CHUNK: usize = 128;

/// Saved tensors, in this order; the optional ones last.
const SAVED: usize = 12;

pub(super) fn mlstm(
    input: &MlstmInput<'_>,
    sizes: Sizes,
    chunk: Option<usize>,
) -> Result<MlstmOutput, KernelError> {
    let longest = usize::try_from(sizes.time).unwrap_or(usize::MAX);
    let chunk = i64::try_from(chunk.unwrap_or(CHUNK).clamp(1, longest)).unwrap_or(sizes.time);
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let state = input.state;
    let inputs = [
        Some(input.q_BTHK),
        Some(input.k_BTHK),
        Some(input.v_BTHV),
        Some(input.i_BTH),
        Some(input.f_BTH),
        state.map(|state| &state.matrix),
        state.map(|state| &state.normalizer),
        state.map(|state| &state.maximum),
    ];
    let mut outputs = custom_function(
        "mlstm_chunkwise",
        &inputs,
        |_| Ok(forward(&inputs, resets_BT, sizes, chunk)),
        move |context| backward(context, sizes, chunk),
    )?
    .into_iter();
    let mut next = || {
        outputs.next().ok_or_else(|| BridgeError::Contract {
            name: "mlstm_chunkwise",
            expected: "4 outputs".into(),
            found: "fewer".into(),
        })
    };
    let h_BTHV = next()?;
    let state = MlstmState { matrix: next()?, normalizer: next()?, maximum: next()? };
    Ok(MlstmOutput { h_BTHV, state })
}

/// How many chunks the kernel will make: every reset begins a segment, and segments are cut into equal parts.
/// Mirrors `for_each_chunk` in `cpu/mlstm.h`.
fn count_chunks(resets_BT: Option<&Tensor>, sizes: Sizes, chunk: i64) -> i64 {
    let of_segment = |length: i64| {
        let parts = (length + chunk - 1) / chunk;
        let part = (((length + parts - 1) / parts + 7) / 8 * 8).min(chunk);
        (length + part - 1) / part
    };
    let Some(resets_BT) = resets_BT else { return sizes.batch * of_segment(sizes.time) };
    let flags: Vec<bool> = Vec::try_from(resets_BT.reshape([-1])).unwrap_or_default();
    let rows = flags.chunks(usize::try_from(sizes.time).unwrap_or(1));
    rows.map(|row| {
        let mut borders: Vec<usize> = (1..row.len()).filter(|&time| row[time]).collect();
        borders.push(row.len());
        let mut start = 0;
        let mut count = 0;
        for end in borders {
            count += of_segment((end - start) as i64);
            start = end;
        }
        count
    })
    .sum()
}

fn forward(inputs: &[Option<&Tensor>; 8], resets_BT: Option<Tensor>, sizes: Sizes, chunk: i64) -> Forward {
    let Sizes { batch, time, heads, key, value } = sizes;
    let dense = inputs.map(|input| input.map(Tensor::contiguous));
    let kind = inputs[0].map_or(Kind::Float, Tensor::kind);
    let chunks = count_chunks(resets_BT.as_ref(), sizes, chunk);
    let made = [
        empty(&[batch, time, heads, value], kind),
        empty(&[batch, heads, key, value], kind),
        empty(&[batch, heads, key], kind),
        empty(&[batch, heads], kind),
        empty(&[batch, time, heads], kind),
        empty(&[chunks, heads, key, value], kind),
        empty(&[chunks, heads, key], kind),
    ];
    let table = cpu::table();
    // SAFETY: every address is that of a dense tensor of the size that cpu/abi.h states, alive during the call.
    unsafe {
        if kind == Kind::Double {
            (table.mlstm_forward_f64)(&problem(&dense, resets_BT.as_ref(), &made, sizes, chunk));
        } else {
            (table.mlstm_forward_f32)(&problem(&dense, resets_BT.as_ref(), &made, sizes, chunk));
        }
    }
    let outputs = made[..4].iter().map(Tensor::shallow_clone).collect();
    // The inputs themselves are saved, where they are dense, so that a change in place is noticed.
    let inputs = inputs.iter().zip(dense).filter_map(|(&input, dense)| match input {
        Some(input) if input.is_contiguous() => Some(input.shallow_clone()),
        _ => dense,
    });
    let mut saved: Vec<Tensor> = made.into_iter().chain(inputs).collect();
    saved.extend(resets_BT);
    Forward { outputs, saved }
}

fn problem<T>(
    inputs: &[Option<Tensor>; 8],
    resets_BT: Option<&Tensor>,
    made: &[Tensor],
    sizes: Sizes,
    chunk: i64,
) -> MlstmProblem<T> {
    let input = |index: usize| optional_address::<T>(inputs[index].as_ref()).cast_const();
    MlstmProblem {
        batch: sizes.batch,
        time: sizes.time,
        heads: sizes.heads,
        key: sizes.key,
        value: sizes.value,
        chunk,
        q: input(0),
        k: input(1),
        v: input(2),
        i: input(3),
        f: input(4),
        resets: optional_address::<c_void>(resets_BT).cast(),
        initial_matrix: input(5),
        initial_normalizer: input(6),
        initial_maximum: input(7),
        h: address(&made[0]),
        final_matrix: address(&made[1]),
        final_normalizer: address(&made[2]),
        final_maximum: address(&made[3]),
        read: address(&made[4]),
        states: address(&made[5]),
        normalizers: address(&made[6]),
    }
}

fn backward(context: &Backward, sizes: Sizes, chunk: i64) -> Result<Vec<Option<Tensor>>, BoxError> {
    let saved = &context.saved;
    if saved.len() < SAVED {
        return Err(format!("{} saved tensors, expected at least {SAVED}", saved.len()).into());
    }
    let made = &saved[..7];
    let has_state = saved.len() >= SAVED + 3;
    let mut inputs: [Option<Tensor>; 8] = Default::default();
    let count = if has_state { 8 } else { 5 };
    for (slot, tensor) in inputs.iter_mut().zip(&saved[7..7 + count]) {
        *slot = Some(tensor.shallow_clone());
    }
    let resets_BT = saved.get(7 + count);
    let given: Vec<Option<Tensor>> =
        context.gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::contiguous)).collect();
    let h_gradient = given[0].as_ref().map_or_else(|| made[0].zeros_like(), Tensor::shallow_clone);
    let results: Vec<Tensor> =
        inputs.iter().flatten().map(|input| empty(&input.size(), input.kind())).collect();
    let room = [empty(&made[5].size(), made[5].kind()), empty(&made[6].size(), made[6].kind())];
    let finals = FinalGradients::new(&given, made);
    let table = cpu::table();
    // SAFETY: every address is that of a dense tensor of the size that cpu/abi.h states, alive during the call.
    unsafe {
        if made[0].kind() == Kind::Double {
            let problem = problem(&inputs, resets_BT, made, sizes, chunk);
            (table.mlstm_backward_f64)(&problem, &gradients(&h_gradient, &finals, &results, &room));
        } else {
            let problem = problem(&inputs, resets_BT, made, sizes, chunk);
            (table.mlstm_backward_f32)(&problem, &gradients(&h_gradient, &finals, &results, &room));
        }
    }
    let mut all: Vec<Option<Tensor>> = results.into_iter().map(Some).collect();
    all.resize_with(8, || None);
    Ok(all)
}

/// Gradients of the final state; when one of C and n has a gradient, the other's zeros are written out.
struct FinalGradients {
    matrix: Option<Tensor>,
    normalizer: Option<Tensor>,
    maximum: Option<Tensor>,
}

impl FinalGradients {
    fn new(given: &[Option<Tensor>], made: &[Tensor]) -> Self {
        let any = given[1].is_some() || given[2].is_some();
        let filled = |index: usize| {
            let given = given[index].as_ref().map(Tensor::shallow_clone);
            given.or_else(|| any.then(|| made[index].zeros_like()))
        };
        let maximum = given[3].as_ref().map(Tensor::shallow_clone);
        Self { matrix: filled(1), normalizer: filled(2), maximum }
    }
}

fn gradients<T>(
    h_gradient: &Tensor,
    finals: &FinalGradients,
    results: &[Tensor],
    room: &[Tensor; 2],
) -> MlstmGradients<T> {
    MlstmGradients {
        h: address::<T>(h_gradient).cast_const(),
        final_matrix: optional_address::<T>(finals.matrix.as_ref()).cast_const(),
        final_normalizer: optional_address::<T>(finals.normalizer.as_ref()).cast_const(),
        final_maximum: optional_address::<T>(finals.maximum.as_ref()).cast_const(),
        q: address(&results[0]),
        k: address(&results[1]),
        v: address(&results[2]),
        i: address(&results[3]),
        f: address(&results[4]),
        initial_matrix: optional_address(results.get(5)),
        initial_normalizer: optional_address(results.get(6)),
        initial_maximum: optional_address(results.get(7)),
        states: address(&room[0]),
        normalizers: address(&room[1]),
    }
}
