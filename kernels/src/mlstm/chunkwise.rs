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
use crate::cpu::{MlstmGradients, MlstmProblem, address, call, empty, optional_address};
use std::ffi::c_void;
use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, named_tensors};

/// Steps in a chunk: below it the small products lose speed, above it pairs cost more than states.
const CHUNK: usize = 128;

named_tensors! {
    struct Inputs<T> {
        q_BTHK: T,
        k_BTHK: T,
        v_BTHV: T,
        i_BTH: T,
        f_BTH: T,
        initial_matrix: T,
        initial_normalizer: T,
        initial_maximum: T,
    }

    struct Outputs<T> { h_BTHV: T, matrix: T, normalizer: T, maximum: T }

    /// What the backward pass reads; N is the number of chunks.
    struct Saved {
        inputs: Inputs<Option<Tensor>>,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
        /// n·q of each step.
        read_BTH: Tensor,
        /// C before each chunk.
        states_NHKV: Tensor,
        /// n before each chunk.
        normalizers_NHK: Tensor,
    }
}

/// With the state after the last step, or, where nobody wants it, with tensors of no numbers in its place.
pub(super) fn mlstm(
    input: &MlstmInput<'_>,
    sizes: Sizes,
    chunk: Option<usize>,
    with_state: bool,
) -> Result<MlstmOutput, KernelError> {
    let longest = usize::try_from(sizes.time).unwrap_or(usize::MAX);
    let chunk = i64::try_from(chunk.unwrap_or(CHUNK).clamp(1, longest)).unwrap_or(sizes.time);
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let chunks = count_chunks(resets_BT.as_ref(), sizes, chunk)?;
    let state = input.state;
    let inputs = Inputs {
        q_BTHK: Some(input.q_BTHK),
        k_BTHK: Some(input.k_BTHK),
        v_BTHV: Some(input.v_BTHV),
        i_BTH: Some(input.i_BTH),
        f_BTH: Some(input.f_BTH),
        initial_matrix: state.map(|state| &state.matrix),
        initial_normalizer: state.map(|state| &state.normalizer),
        initial_maximum: state.map(|state| &state.maximum),
    };
    let Outputs { h_BTHV, matrix, normalizer, maximum } = node(
        "mlstm_chunkwise",
        inputs,
        |_| Ok(forward(inputs, resets_BT, sizes, (chunk, chunks), with_state)),
        move |saved, upstream, _| backward(&saved, upstream, sizes, chunk),
    )?;
    Ok(MlstmOutput { h_BTHV, state: MlstmState { matrix, normalizer, maximum } })
}

/// How many chunks the kernel will make: every reset begins a segment, and segments are cut into equal parts.
/// Mirrors `for_each_chunk` in `cpu/mlstm.h`.
fn count_chunks(resets_BT: Option<&Tensor>, sizes: Sizes, chunk: i64) -> Result<i64, KernelError> {
    let of_segment = |length: i64| {
        let parts = (length + chunk - 1) / chunk;
        let part = (((length + parts - 1) / parts + 7) / 8 * 8).min(chunk);
        (length + part - 1) / part
    };
    let Some(resets_BT) = resets_BT else { return Ok(sizes.batch * of_segment(sizes.time)) };
    let flags = Vec::<bool>::try_from(resets_BT.f_reshape([-1])?)?;
    let time = flags.len() / usize::try_from(sizes.batch).ok().filter(|&batch| batch > 0).unwrap_or(1);
    let rows = flags.chunks(time.max(1));
    Ok(rows
        .map(|row| {
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
        .sum())
}

fn forward(
    inputs: Inputs<Option<&Tensor>>,
    resets_BT: Option<Tensor>,
    sizes: Sizes,
    (chunk, chunks): (i64, i64),
    with_state: bool,
) -> (Outputs<Tensor>, Saved) {
    let Sizes { batch, time, heads, key, value } = sizes;
    let states = if with_state { batch } else { 0 };
    let kind = inputs.q_BTHK.map_or(Kind::Float, Tensor::kind);
    let outputs = Outputs {
        h_BTHV: empty(&[batch, time, heads, value], kind),
        matrix: empty(&[states, heads, key, value], kind),
        normalizer: empty(&[states, heads, key], kind),
        maximum: empty(&[states, heads], kind),
    };
    let saved = Saved {
        // A dense input is saved as it is, so that a change in place is noticed.
        inputs: inputs.map(|input| input.map(Tensor::contiguous)),
        resets_BT,
        outputs: outputs.shallow_clone(),
        read_BTH: empty(&[batch, time, heads], kind),
        states_NHKV: empty(&[chunks, heads, key, value], kind),
        normalizers_NHK: empty(&[chunks, heads, key], kind),
    };
    call!(kind, mlstm_forward_f32, mlstm_forward_f64, &problem(&saved, sizes, chunk));
    (outputs, saved)
}

impl Outputs<Tensor> {
    fn shallow_clone(&self) -> Self {
        let Self { h_BTHV, matrix, normalizer, maximum } = self;
        Outputs { h_BTHV, matrix, normalizer, maximum }.map(Tensor::shallow_clone)
    }
}

fn problem<T>(saved: &Saved, sizes: Sizes, chunk: i64) -> MlstmProblem<T> {
    let Saved { inputs, outputs, .. } = saved;
    let input = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    let last = |tensor: &Tensor| if tensor.numel() == 0 { std::ptr::null_mut() } else { address(tensor) };
    MlstmProblem {
        batch: sizes.batch,
        time: sizes.time,
        heads: sizes.heads,
        key: sizes.key,
        value: sizes.value,
        chunk,
        q: input(&inputs.q_BTHK),
        k: input(&inputs.k_BTHK),
        v: input(&inputs.v_BTHV),
        i: input(&inputs.i_BTH),
        f: input(&inputs.f_BTH),
        resets: optional_address::<c_void>(saved.resets_BT.as_ref()).cast(),
        initial_matrix: input(&inputs.initial_matrix),
        initial_normalizer: input(&inputs.initial_normalizer),
        initial_maximum: input(&inputs.initial_maximum),
        h: address(&outputs.h_BTHV),
        final_matrix: last(&outputs.matrix),
        final_normalizer: last(&outputs.normalizer),
        final_maximum: last(&outputs.maximum),
        read: address(&saved.read_BTH),
        states: address(&saved.states_NHKV),
        normalizers: address(&saved.normalizers_NHK),
    }
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    sizes: Sizes,
    chunk: i64,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let upstream = Upstream::new(upstream, &saved.outputs);
    let kind = saved.outputs.h_BTHV.kind();
    let Inputs { q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, initial_matrix, initial_normalizer, initial_maximum } =
        &saved.inputs;
    let results =
        Inputs { q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, initial_matrix, initial_normalizer, initial_maximum }
            .map(|input| input.as_ref().map(|input| empty(&input.size(), kind)));
    let scratch = Scratch {
        states_NHKV: empty(&saved.states_NHKV.size(), kind),
        normalizers_NHK: empty(&saved.normalizers_NHK.size(), kind),
    };
    call!(
        kind,
        mlstm_backward_f32,
        mlstm_backward_f64,
        &problem(saved, sizes, chunk),
        &gradients(&upstream, &results, &scratch)
    );
    Ok(results)
}

/// Gradients of the states before each chunk.
struct Scratch {
    states_NHKV: Tensor,
    normalizers_NHK: Tensor,
}

/// Gradients of the outputs, dense; when one of the final C and n has a gradient, the other's zeros are written out.
struct Upstream {
    h_BTHV: Tensor,
    matrix: Option<Tensor>,
    normalizer: Option<Tensor>,
    maximum: Option<Tensor>,
}

impl Upstream {
    fn new(given: Outputs<Option<Tensor>>, outputs: &Outputs<Tensor>) -> Self {
        let given = given.map(|gradient| gradient.map(|gradient| gradient.contiguous()));
        let any = given.matrix.is_some() || given.normalizer.is_some();
        let filled =
            |gradient: Option<Tensor>, output: &Tensor| gradient.or_else(|| any.then(|| output.zeros_like()));
        Self {
            h_BTHV: given.h_BTHV.unwrap_or_else(|| outputs.h_BTHV.zeros_like()),
            matrix: filled(given.matrix, &outputs.matrix),
            normalizer: filled(given.normalizer, &outputs.normalizer),
            maximum: given.maximum,
        }
    }
}

fn gradients<T>(
    upstream: &Upstream,
    results: &Inputs<Option<Tensor>>,
    scratch: &Scratch,
) -> MlstmGradients<T> {
    let given = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    let result = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref());
    MlstmGradients {
        h: address::<T>(&upstream.h_BTHV).cast_const(),
        final_matrix: given(&upstream.matrix),
        final_normalizer: given(&upstream.normalizer),
        final_maximum: given(&upstream.maximum),
        q: result(&results.q_BTHK),
        k: result(&results.k_BTHK),
        v: result(&results.v_BTHV),
        i: result(&results.i_BTH),
        f: result(&results.f_BTH),
        initial_matrix: result(&results.initial_matrix),
        initial_normalizer: result(&results.initial_normalizer),
        initial_maximum: result(&results.initial_maximum),
        states: address(&scratch.states_NHKV),
        normalizers: address(&scratch.normalizers_NHK),
    }
}
