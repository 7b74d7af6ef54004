//! The chunkwise mLSTM in float32 on the GPU: products by libtorch, everything between them by `mlstm_precise.cu`.
//!
//! For every head size and every GPU, with states in and out and resets, in one node of libtorch's graph. Products are
//! float32, or TF32 where libtorch's setting allows it. Inside, tensors are head-major and padded to whole chunks:
//! `(B·H·N, L, K or V)`, so that each product is one batch. `mlstm_precise.cu` has the equations.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::precise::{GateAddresses, GateSizes, PreciseParameters, by_row, by_state};

use super::{Gpu, address, make, optional_address};
use crate::KernelError;
use crate::mlstm::{EPSILON, MlstmInput, MlstmOutput, MlstmState};
use crate::shape::dimensions;

const NAME: &str = "mlstm (CUDA, float32)";

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
        hidden: Tensor,
        states: Tensor,
        norms: Tensor,
        scores: Tensor,
        query_norm: Tensor,
        inverse_denominator: Tensor,
        input_gate: Tensor,
        forget_gate: Tensor,
        of_token: Tensor,
        of_chunk: Tensor,
        segment_start: Option<Tensor>,
        resets: Option<Tensor>,
        matrix: Option<Tensor>,
        normalizer: Option<Tensor>,
        maximum: Option<Tensor>,
    }
}

/// Tokens of a chunk, in whole warps: longer ones have fewer states to write and read, and more scores. A short text is
/// one chunk.
fn chunk(tokens: i64, key: i64, value: i64) -> i64 {
    match tokens {
        ..=96 => (tokens + 31) / 32 * 32,
        97..=128 => 128,
        _ if key * value >= 256 * 256 => 256,
        _ => 128,
    }
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: i64,
    tokens: i64,
    heads: i64,
    key: i64,
    value: i64,
    length: i64,
    chunks: i64,
}

impl Sizes {
    fn of(input: &MlstmInput<'_>) -> Result<Self, KernelError> {
        let [batch, tokens, heads, key] = dimensions(NAME, "q_BTHK", input.q_BTHK)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", input.v_BTHV)?;
        let length = chunk(tokens, key, value);
        let chunks = (tokens + length - 1) / length;
        Ok(Self { batch, tokens, heads, key, value, length, chunks })
    }

    /// Chunks of all heads and sequences.
    fn slices(self) -> i64 {
        self.batch * self.heads * self.chunks
    }

    fn rows(self) -> i64 {
        self.slices() * self.length
    }

    /// `(B, T, H, E)` as `(B·H·N, L, E)`, zeros after the last token; never the memory of `x`.
    fn head_major(self, x: &Tensor) -> Result<Tensor, BoxError> {
        let [.., width] = dimensions::<4>(NAME, "x", x)?;
        let padding = self.chunks * self.length - self.tokens;
        let x_BHTE = x.f_transpose(1, 2)?;
        let dense = if padding > 0 {
            x_BHTE.f_constant_pad_nd([0, 0, 0, padding])?.f_contiguous()?
        } else {
            x_BHTE.f_contiguous()?
        };
        let dense = if dense.data_ptr() == x.data_ptr() { dense.copy() } else { dense };
        Ok(dense.f_view([self.slices(), self.length, width])?)
    }

    /// The way back, `(B, T, H, E)`.
    fn token_major(self, x: &Tensor) -> Result<Tensor, BoxError> {
        let [.., width] = dimensions::<3>(NAME, "x", x)?;
        let x_BHPE = x.f_view([self.batch, self.heads, self.chunks * self.length, width])?;
        Ok(x_BHPE.f_narrow(2, 0, self.tokens)?.f_transpose(1, 2)?.f_contiguous()?)
    }

    fn gates(self) -> Result<GateSizes, BoxError> {
        let [batch, heads, tokens, chunk] =
            [self.batch, self.heads, self.tokens, self.length].map(u32::try_from);
        Ok(GateSizes { batch: batch?, heads: heads?, tokens: tokens?, chunk: chunk? })
    }

    fn key_scale(self) -> f64 {
        (self.key as f64).powf(-0.5)
    }

    fn parameters(self, width: i64) -> Result<PreciseParameters, BoxError> {
        Ok(PreciseParameters {
            chunks: i32::try_from(self.chunks)?,
            length: i32::try_from(self.length)?,
            width: i32::try_from(width)?,
            rows: self.rows(),
            key_scale: self.key_scale() as f32,
            epsilon: EPSILON as f32,
            ..PreciseParameters::default()
        })
    }
}

/// What follows from the gates: numbers of every token `(6, B·H·N·L)` and of every chunk `(3, B·H·N)`.
struct Gates<'a> {
    of_token: &'a Tensor,
    of_chunk: &'a Tensor,
    segment_start: Option<&'a Tensor>,
}

impl Gates<'_> {
    fn token(&self, index: i64) -> Result<Tensor, BoxError> {
        Ok(self.of_token.f_select(0, index)?)
    }

    fn addresses(&self) -> Result<GateAddresses, BoxError> {
        let token = |index: i64| -> Result<u64, BoxError> { Ok(address(&self.token(index)?)) };
        let chunk = |index: i64| -> Result<u64, BoxError> { Ok(address(&self.of_chunk.f_select(0, index)?)) };
        Ok(GateAddresses {
            log_forget_sum: token(0)?,
            exponent: token(1)?,
            local_maximum: token(2)?,
            maximum: token(3)?,
            carry: token(4)?,
            keep: token(5)?,
            chunk_forget: chunk(0)?,
            chunk_maximum: chunk(1)?,
            decay: chunk(2)?,
            segment_start: optional_address(self.segment_start),
            ..GateAddresses::default()
        })
    }

    /// What the kernels of rows and states read of them.
    fn read_by(&self, parameters: PreciseParameters) -> Result<PreciseParameters, BoxError> {
        let all = self.addresses()?;
        Ok(PreciseParameters {
            log_forget_sum: all.log_forget_sum,
            exponent: all.exponent,
            maximum: all.maximum,
            decay: all.decay,
            segment_start: all.segment_start,
            ..parameters
        })
    }

    /// As factors of rows, `(B·H·N, L, 1)`: the entering state's weight with 1/√K, and a token's in the leaving state.
    fn factors(&self, sizes: Sizes) -> Result<(Tensor, Tensor), BoxError> {
        let shape = [sizes.slices(), sizes.length, 1];
        let carry = self.token(4)?.f_mul_scalar(sizes.key_scale())?.f_view(shape)?;
        Ok((carry, self.token(5)?.f_view(shape)?))
    }
}

/// mLSTM over a whole sequence in float32: what [`crate::mlstm::mlstm`] returns. All tensors are `Float` on one GPU, of
/// shapes that the caller has checked. Gradients flow to all of them, the state before the first token included; the
/// maximum of the state that leaves has none (`mlstm.rs` beside this file).
///
/// # Errors
/// [`KernelError`] when the GPU or its compiler fails.
pub(crate) fn mlstm(input: &MlstmInput<'_>) -> Result<MlstmOutput, KernelError> {
    let sizes = Sizes::of(input)?;
    let dense = |tensor: &Tensor| tensor.contiguous();
    let (input_gate, forget_gate) = (dense(input.i_BTH), dense(input.f_BTH));
    let resets = input.resets_BT.map(dense);
    let initial = input.state.map(|state| MlstmState {
        matrix: dense(&state.matrix),
        normalizer: dense(&state.normalizer),
        maximum: dense(&state.maximum),
    });
    let inputs = Inputs {
        query: Some(input.q_BTHK),
        key: Some(input.k_BTHK),
        value: Some(input.v_BTHV),
        input_gate: Some(&input_gate),
        forget_gate: Some(&forget_gate),
        matrix: initial.as_ref().map(|state| &state.matrix),
        normalizer: initial.as_ref().map(|state| &state.normalizer),
        maximum: initial.as_ref().map(|state| &state.maximum),
    };
    let Outputs { hidden, matrix, normalizer, maximum } = node(
        NAME,
        inputs,
        |_| forward(inputs, resets, sizes),
        move |saved, upstream, _| backward(&saved, &upstream, sizes),
    )?;
    let state = MlstmState { matrix, normalizer, maximum: maximum.detach() };
    Ok(MlstmOutput { h_BTHV: hidden, state })
}

fn launch(gpu: &Gpu, launch: LayerLaunch, parameters: &PreciseParameters) -> Result<(), BoxError> {
    // SAFETY: every address is a tensor of the size that the structure states.
    unsafe { gpu.launch(Specialization::precise(gpu.architecture()), launch, parameters) }
}

fn launch_rows(gpu: &Gpu, kernel: &'static str, parameters: &PreciseParameters) -> Result<(), BoxError> {
    launch(gpu, by_row(kernel, u64::try_from(parameters.rows)?), parameters)
}

/// Kernels of the gates, in order.
fn launch_gates(
    gpu: &Gpu,
    sizes: GateSizes,
    kernels: &[&'static str],
    addresses: &GateAddresses,
) -> Result<(), BoxError> {
    let arguments = sizes.arguments(addresses);
    for kernel in kernels {
        // SAFETY: every address is a tensor of the size that `mlstm.cuh` states for these sizes.
        unsafe { gpu.launch(sizes.specialization(gpu.architecture()), sizes.launch(kernel), &arguments)? };
    }
    Ok(())
}

fn heads_of(sizes: Sizes) -> Result<u32, BoxError> {
    Ok(u32::try_from(sizes.batch * sizes.heads)?)
}

fn forward(
    inputs: Inputs<Option<&Tensor>>,
    resets: Option<Tensor>,
    sizes: Sizes,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let missing = "an input is missing";
    let (input_gate, forget_gate) = (inputs.input_gate.ok_or(missing)?, inputs.forget_gate.ok_or(missing)?);
    let query = sizes.head_major(inputs.query.ok_or(missing)?)?;
    let key = sizes.head_major(inputs.key.ok_or(missing)?)?;
    let value = sizes.head_major(inputs.value.ok_or(missing)?)?;
    let gpu = Gpu::of(&query)?;
    let new = |shape: &[i64]| make(shape, Kind::Float, &query);
    let Sizes { batch, heads, key: key_width, value: value_width, .. } = sizes;
    let last = MlstmState {
        matrix: new(&[batch, heads, key_width, value_width])?,
        normalizer: new(&[batch, heads, key_width])?,
        maximum: new(&[batch, heads])?,
    };
    let (of_token, of_chunk) = (new(&[6, sizes.rows()])?, new(&[3, sizes.slices()])?);
    let segment_start = resets.as_ref().map(|_| make(&[sizes.rows()], Kind::Int, &query)).transpose()?;
    let gates = Gates { of_token: &of_token, of_chunk: &of_chunk, segment_start: segment_start.as_ref() };
    let half_weight = make(&[sizes.rows()], Kind::BFloat16, &query)?;
    let addresses = GateAddresses {
        input_gate: address(input_gate),
        forget_gate: address(forget_gate),
        resets: optional_address(resets.as_ref()),
        initial_maximum: optional_address(inputs.maximum),
        final_maximum: address(&last.maximum),
        state_weight: address(&half_weight),
        ..gates.addresses()?
    };
    launch_gates(gpu, sizes.gates()?, &["mlstm_gates_local", "mlstm_gates_carry"], &addresses)?;

    let (carry, keep) = gates.factors(sizes)?;
    let (carried_query, kept_key) = (query.f_mul(&carry)?, key.f_mul(&keep)?);
    let states = kept_key.f_transpose(1, 2)?.f_bmm(&value)?;
    let norms = kept_key.f_sum_dim_intlist([1].as_slice(), false, None::<Kind>)?;
    for (x, width, outer, last) in [
        (&states, key_width * value_width, inputs.matrix, &last.matrix),
        (&norms, key_width, inputs.normalizer, &last.normalizer),
    ] {
        let parameters = PreciseParameters {
            x: address(x),
            outer: optional_address(outer),
            last: address(last),
            outer_factor: (1.0 / sizes.key_scale()) as f32,
            last_factor: sizes.key_scale() as f32,
            ..gates.read_by(sizes.parameters(width)?)?
        };
        let scan = by_state("precise_states", u32::try_from(width)?, heads_of(sizes)?);
        launch(gpu, scan, &parameters)?;
    }
    let scores = query.f_bmm(&key.f_transpose(1, 2)?)?;
    let (row_sums, query_norm) = (new(&[sizes.rows()])?, new(&[sizes.rows()])?);
    let inverse_denominator = new(&[sizes.rows()])?;
    let parameters = PreciseParameters {
        x: address(&scores),
        row_sums: address(&row_sums),
        ..gates.read_by(sizes.parameters(sizes.length)?)?
    };
    launch_rows(gpu, "precise_scores", &parameters)?;
    let parameters = PreciseParameters {
        own: address(&carried_query),
        vector: address(&norms),
        row_sums: address(&row_sums),
        query_norm: address(&query_norm),
        inverse_denominator: address(&inverse_denominator),
        ..gates.read_by(sizes.parameters(key_width)?)?
    };
    launch_rows(gpu, "precise_denominator", &parameters)?;
    let mut hidden = scores.f_bmm(&value)?;
    let _ = hidden.f_baddbmm_(&carried_query, &states)?;
    let _ = hidden.f_mul_(&inverse_denominator.f_view([sizes.slices(), sizes.length, 1])?)?;

    let outputs = Outputs {
        hidden: sizes.token_major(&hidden)?,
        matrix: last.matrix,
        normalizer: last.normalizer,
        maximum: last.maximum,
    };
    let saved = Saved {
        query,
        key,
        value,
        hidden,
        states,
        norms,
        scores,
        query_norm,
        inverse_denominator,
        input_gate: input_gate.shallow_clone(),
        forget_gate: forget_gate.shallow_clone(),
        of_token,
        of_chunk,
        segment_start,
        resets,
        matrix: inputs.matrix.map(Tensor::shallow_clone),
        normalizer: inputs.normalizer.map(Tensor::shallow_clone),
        maximum: inputs.maximum.map(Tensor::shallow_clone),
    };
    Ok((outputs, saved))
}

/// Gradients of the states that leave each chunk, `(B·H·N, K, V)` and `(B·H·N, K)`, of the initial state, and of the
/// chunks' decay.
struct StateGradients {
    matrix: Tensor,
    normalizer: Tensor,
    decay: Tensor,
    initial: Option<[Tensor; 2]>,
}

fn state_gradients(
    saved: &Saved,
    upstream: &Outputs<Option<Tensor>>,
    gates: &Gates<'_>,
    sizes: Sizes,
    [matrix, normalizer]: [Tensor; 2],
) -> Result<StateGradients, BoxError> {
    let gpu = Gpu::of(&matrix)?;
    let dense = |tensor: &Option<Tensor>| -> Result<Option<Tensor>, BoxError> {
        Ok(tensor.as_ref().map(Tensor::f_contiguous).transpose()?)
    };
    let outer = [dense(&upstream.matrix)?, dense(&upstream.normalizer)?];
    let like = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::f_empty_like).transpose();
    let initial = [like(&saved.matrix)?, like(&saved.normalizer)?];
    let mut decay: Option<Tensor> = None;
    for (index, (x, states)) in
        [(&matrix, &saved.states), (&normalizer, &saved.norms)].into_iter().enumerate()
    {
        let width = if index == 0 { sizes.key * sizes.value } else { sizes.key };
        let scan = by_state("precise_state_gradients", u32::try_from(width)?, heads_of(sizes)?);
        let partial = make(&[i64::from(scan.parts), sizes.slices()], Kind::Float, x)?;
        let parameters = PreciseParameters {
            x: address(x),
            states: address(states),
            outer: optional_address(outer[index].as_ref()),
            last: optional_address(initial[index].as_ref()),
            partial: address(&partial),
            outer_factor: sizes.key_scale() as f32,
            last_factor: (1.0 / sizes.key_scale()) as f32,
            ..gates.read_by(sizes.parameters(width)?)?
        };
        launch(gpu, scan, &parameters)?;
        let sum = partial.f_sum_dim_intlist([0].as_slice(), false, None::<Kind>)?;
        decay = Some(match decay {
            Some(before) => before.f_add(&sum)?,
            None => sum,
        });
    }
    let [initial_matrix, initial_normalizer] = initial;
    let initial = initial_matrix.zip(initial_normalizer).map(|(matrix, normalizer)| [matrix, normalizer]);
    Ok(StateGradients { matrix, normalizer, decay: decay.ok_or("no gradient of the decay")?, initial })
}

fn backward(
    saved: &Saved,
    upstream: &Outputs<Option<Tensor>>,
    sizes: Sizes,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let Saved { query, key, value, scores, .. } = saved;
    let gpu = Gpu::of(query)?;
    let gates = Gates {
        of_token: &saved.of_token,
        of_chunk: &saved.of_chunk,
        segment_start: saved.segment_start.as_ref(),
    };
    let new = |shape: &[i64]| make(shape, Kind::Float, query);
    let row = [sizes.slices(), sizes.length, 1];
    let (carry, keep) = gates.factors(sizes)?;
    let (carried_query, kept_key) = (query.f_mul(&carry)?, key.f_mul(&keep)?);

    // dh / den, and what reaches n . q.
    let gradient = match &upstream.hidden {
        Some(gradient) => sizes.head_major(gradient)?,
        None => saved.hidden.f_zeros_like()?,
    };
    let norm_gradient = new(&[sizes.rows()])?;
    let parameters = PreciseParameters {
        x: address(&gradient),
        own: address(&saved.hidden),
        query_norm: address(&saved.query_norm),
        inverse_denominator: address(&saved.inverse_denominator),
        norm_gradient: address(&norm_gradient),
        ..gates.read_by(sizes.parameters(sizes.value)?)?
    };
    launch_rows(gpu, "precise_prepare", &parameters)?;

    let turned = carried_query.f_transpose(1, 2)?;
    let added = [turned.f_bmm(&gradient)?, turned.f_bmm(&norm_gradient.f_view(row)?)?.f_squeeze_dim(-1)?];
    let states = state_gradients(saved, upstream, &gates, sizes, added)?;

    let score_gradients = gradient.f_bmm(&value.f_transpose(1, 2)?)?;
    let parameters = PreciseParameters {
        x: address(&score_gradients),
        norm_gradient: address(&norm_gradient),
        ..gates.read_by(sizes.parameters(sizes.length)?)?
    };
    launch_rows(gpu, "precise_score_gradients", &parameters)?;

    let (query_dot, key_carry_dot) = (new(&[sizes.rows()])?, new(&[sizes.rows()])?);
    let key_dot = new(&[sizes.rows()])?;
    let mut query_gradient = score_gradients.f_bmm(key)?;
    let _ = query_gradient.f_baddbmm_(&gradient.f_mul(&carry)?, &saved.states.f_transpose(1, 2)?)?;
    let by_norm = carry.f_view([-1])?.f_mul(&norm_gradient)?;
    let of_keys = sizes.parameters(sizes.key)?;
    let parameters = PreciseParameters {
        x: address(&query_gradient),
        own: address(query),
        vector: address(&saved.norms),
        vector_factor: address(&by_norm),
        dots: address(&query_dot),
        ..of_keys
    };
    launch_rows(gpu, "precise_rows", &parameters)?;

    let mut key_gradient = value.f_bmm(&states.matrix.f_transpose(1, 2)?)?;
    let parameters = PreciseParameters {
        x: address(&key_gradient),
        own: address(key),
        factor: address(&keep),
        vector: address(&states.normalizer),
        vector_factor: address(&keep),
        dots: address(&key_carry_dot),
        ..of_keys
    };
    launch_rows(gpu, "precise_rows", &parameters)?;
    let _ = key_gradient.f_baddbmm_(&score_gradients.f_transpose(1, 2)?, query)?;
    let parameters = PreciseParameters {
        x: address(&key_gradient),
        own: address(key),
        dots: address(&key_dot),
        ..of_keys
    };
    launch_rows(gpu, "precise_rows", &parameters)?;

    let mut value_gradient = scores.f_transpose(1, 2)?.f_bmm(&gradient)?;
    let _ = value_gradient.f_baddbmm_(&kept_key, &states.matrix)?;

    let (input_gate, forget_gate) = (saved.input_gate.f_empty_like()?, saved.forget_gate.f_empty_like()?);
    let outer = upstream.matrix.as_ref().or(upstream.normalizer.as_ref());
    let addresses = GateAddresses {
        input_gate: address(&saved.input_gate),
        forget_gate: address(&saved.forget_gate),
        resets: optional_address(saved.resets.as_ref()),
        initial_matrix: optional_address(saved.matrix.as_ref()),
        final_matrix_gradient: optional_address(outer),
        query_dot: address(&query_dot),
        key_carry_dot: address(&key_carry_dot),
        key_dot: address(&key_dot),
        decay_gradient: address(&states.decay),
        input_gate_gradient: address(&input_gate),
        forget_gate_gradient: address(&forget_gate),
        ..gates.addresses()?
    };
    launch_gates(gpu, sizes.gates()?, &["mlstm_gate_gradients"], &addresses)?;

    let maximum = match (&states.initial, &saved.matrix, &saved.normalizer) {
        (Some([matrix, normalizer]), Some(own_matrix), Some(own_normalizer)) => {
            let by_matrix =
                matrix.f_mul(own_matrix)?.f_sum_dim_intlist([2, 3].as_slice(), false, None::<Kind>)?;
            let by_norm =
                normalizer.f_mul(own_normalizer)?.f_sum_dim_intlist([2].as_slice(), false, None::<Kind>)?;
            Some(by_matrix.f_add(&by_norm)?)
        }
        _ => None,
    };
    let (matrix, normalizer) = match states.initial {
        Some([matrix, normalizer]) => (Some(matrix), Some(normalizer)),
        None => (None, None),
    };
    Ok(Inputs {
        query: Some(sizes.token_major(&query_gradient)?),
        key: Some(sizes.token_major(&key_gradient)?),
        value: Some(sizes.token_major(&value_gradient)?),
        input_gate: Some(input_gate),
        forget_gate: Some(forget_gate),
        matrix,
        normalizer,
        maximum,
    })
}
