//! Gated linear attention in chunks (`linear_attention_chunks.cuh`): products in bf16, states and sums in float32.
//!
//! What is saved is the inputs, the sums of the log decays (where those are by token) and the scores within chunks, 64 numbers of bf16 a
//! token and head. The states between chunks are computed again.

use tch::{Kind, Tensor};
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::linear_attention_chunks::{
    CHUNK, LinearAttentionChunkParameters, LinearAttentionChunkPass, LinearAttentionChunkSizes,
};

use super::{decay_room, dense, dense_if_any, is_by_token, like};
use crate::cuda::{Gpu, address, contiguous, make, optional_address};
use crate::linear_attention::{Inputs, LinearAttentionInput, Outputs};
use crate::shape::dimensions;

pub(super) const NAME: &str = "linear_attention in chunks (CUDA)";

named_tensors! {
    pub(super) struct Saved {
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        /// Sums within chunks, `(B, T, H, K)`, or the log decays, `(H, K)`.
        decays: Tensor,
        bonus_HK: Option<Tensor>,
        initial_BHKV: Option<Tensor>,
        resets_BT: Option<Tensor>,
        /// `(B, H, N, 64, 64)`.
        scores: Tensor,
    }
}

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
struct Plan {
    batch: i64,
    tokens: i64,
    heads: i64,
    key: i64,
    value: i64,
    chunks: i64,
    sizes: LinearAttentionChunkSizes,
}

impl Plan {
    fn new(q_BTHK: &Tensor, v_BTHV: &Tensor, bonus: bool) -> Result<Self, BoxError> {
        let [batch, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", q_BTHK)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", v_BTHV)?;
        let sizes = LinearAttentionChunkSizes::new(u32::try_from(key)?, u32::try_from(value)?, bonus);
        let sizes = sizes.ok_or_else(|| {
            format!(
                "{NAME}: expected heads of 64 keys and values or, without a bonus, 128 keys and 128 or 256 values, found {key} and {value}"
            )
        })?;
        let chunks = u32::try_from(tokens)?.div_ceil(CHUNK).into();
        Ok(Self { batch, tokens, heads, key, value, chunks, sizes })
    }

    /// Room for the states (or their gradients) between chunks.
    fn states(&self, like: &Tensor) -> Result<Tensor, BoxError> {
        make(&[self.batch, self.heads, self.chunks, self.key, self.value], Kind::BFloat16, like)
    }

    /// Room for a state.
    fn state(&self, like: &Tensor) -> Result<Tensor, BoxError> {
        make(&[self.batch, self.heads, self.key, self.value], Kind::Float, like)
    }

    /// Room for a vector of keys for each chunk and head.
    fn by_chunk(&self, like: &Tensor) -> Result<Tensor, BoxError> {
        make(&[self.batch, self.chunks, self.heads, self.key], Kind::Float, like)
    }
}

/// Fewest tokens that are computed in chunks: below, a chunk is mostly empty, and steps are in float32.
const FEWEST_TOKENS: i64 = CHUNK as i64;

/// Whether this call, which [`super::linear_attention_fits`] says yes to, is computed in chunks: all bf16, at least a chunk of tokens, and
/// a size that there is a kernel for.
pub(super) fn fits(input: &LinearAttentionInput<'_>) -> bool {
    let long = input.q_BTHK.size().get(1).is_some_and(|&tokens| tokens >= FEWEST_TOKENS);
    let rounded = input.q_BTHK.kind() == Kind::BFloat16;
    rounded && long && Plan::new(input.q_BTHK, input.v_BTHV, input.bonus_HK.is_some()).is_ok()
}

fn rounded(name: &str, tensor: &Tensor) -> Result<Tensor, BoxError> {
    contiguous(NAME, name, tensor, Kind::BFloat16)
}

impl Saved {
    fn parameters(&self, plan: &Plan, scale: f64) -> Result<LinearAttentionChunkParameters, BoxError> {
        Ok(LinearAttentionChunkParameters {
            tokens: i32::try_from(plan.tokens)?,
            heads: i32::try_from(plan.heads)?,
            chunks: i32::try_from(plan.chunks)?,
            token_decay: is_by_token(&self.decays).into(),
            scale: scale as f32,
            query: address(&self.q_BTHK),
            key: address(&self.k_BTHK),
            value: address(&self.v_BTHV),
            log_decay: address(&self.decays),
            sums: address(&self.decays),
            bonus: optional_address(self.bonus_HK.as_ref()),
            resets: optional_address(self.resets_BT.as_ref()),
            initial: optional_address(self.initial_BHKV.as_ref()),
            scores: address(&self.scores),
            ..LinearAttentionChunkParameters::default()
        })
    }

    fn launch(
        &self,
        plan: &Plan,
        pass: LinearAttentionChunkPass,
        parameters: &LinearAttentionChunkParameters,
    ) -> Result<(), BoxError> {
        let gpu = Gpu::of(&self.q_BTHK)?;
        let [batch, heads, chunks] = [plan.batch, plan.heads, plan.chunks].map(u32::try_from);
        let launch = plan.sizes.launch(pass, batch?, heads?, chunks?);
        let wanted = plan.sizes.specialization(pass, gpu.architecture());
        // SAFETY: the tensors are dense and have the sizes that the structure and the launch state.
        unsafe { gpu.launch(wanted, launch, parameters) }
    }
}

pub(super) fn forward(
    input: &LinearAttentionInput<'_>,
    log_decay: &Tensor,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    use LinearAttentionChunkPass as Pass;
    let plan = Plan::new(input.q_BTHK, input.v_BTHV, input.bonus_HK.is_some())?;
    let log_decay = dense(NAME, "log_decay", log_decay)?;
    let is_by_token = is_by_token(&log_decay);
    let scores_size = [plan.batch, plan.heads, plan.chunks, CHUNK.into(), CHUNK.into()];
    let saved = Saved {
        q_BTHK: rounded("q", input.q_BTHK)?,
        k_BTHK: rounded("k", input.k_BTHK)?,
        v_BTHV: rounded("v", input.v_BTHV)?,
        decays: if is_by_token { like(&log_decay)? } else { log_decay.shallow_clone() },
        bonus_HK: dense_if_any(NAME, "bonus", input.bonus_HK)?,
        initial_BHKV: dense_if_any(NAME, "state", input.state_BHKV)?,
        resets_BT: input.resets_BT.map(Tensor::f_contiguous).transpose()?,
        scores: make(&scores_size, Kind::BFloat16, input.q_BTHK)?,
    };
    let o_BTHV = make(&input.v_BTHV.size(), Kind::BFloat16, input.q_BTHK)?;
    let (states, state_BHKV) = (plan.states(input.q_BTHK)?, plan.state(input.q_BTHK)?);
    let parameters = LinearAttentionChunkParameters {
        log_decay: address(&log_decay),
        states: address(&states),
        last: address(&state_BHKV),
        output: address(&o_BTHV),
        ..saved.parameters(&plan, input.scale)?
    };
    let passes = [Pass::Sums, Pass::States, Pass::Outputs];
    for &pass in passes.iter().filter(|&&pass| is_by_token || pass != Pass::Sums) {
        saved.launch(&plan, pass, &parameters)?;
    }
    Ok((Outputs { o_BTHV, state_BHKV }, saved))
}

pub(super) fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    wanted: &Inputs<bool>,
    scale: f64,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    use LinearAttentionChunkPass as Pass;
    let plan = Plan::new(&saved.q_BTHK, &saved.v_BTHV, saved.bonus_HK.is_some())?;
    let output_gradient = match upstream.o_BTHV {
        Some(gradient) => rounded("gradient of o", &gradient)?,
        None => saved.v_BTHV.f_zeros_like()?,
    };
    let last_gradient = dense_if_any(NAME, "gradient of the state", upstream.state_BHKV.as_ref())?;
    let (queries, keys, values) = (like(&saved.q_BTHK)?, like(&saved.k_BTHK)?, like(&saved.v_BTHV)?);
    let decay = decay_room(wanted.log_decay, &saved.decays, || plan.by_chunk(&saved.q_BTHK))?;
    let bonus = saved.bonus_HK.as_ref().map(|_| plan.by_chunk(&saved.q_BTHK)).transpose()?;
    let initial = saved.initial_BHKV.as_ref().map(like).transpose()?;
    let (states, state_gradients) = (plan.states(&saved.q_BTHK)?, plan.states(&saved.q_BTHK)?);
    let parameters = LinearAttentionChunkParameters {
        states: address(&states),
        output_gradient: address(&output_gradient),
        last_gradient: optional_address(last_gradient.as_ref()),
        state_gradients: address(&state_gradients),
        query_gradient: address(&queries),
        key_gradient: address(&keys),
        value_gradient: address(&values),
        decay_gradient: optional_address(decay.as_ref()),
        bonus_gradient: optional_address(bonus.as_ref()),
        initial_gradient: optional_address(initial.as_ref()),
        ..saved.parameters(&plan, scale)?
    };
    for pass in [Pass::States, Pass::StateGradients, Pass::Keys, Pass::Values] {
        saved.launch(&plan, pass, &parameters)?;
    }
    Ok(Inputs {
        q_BTHK: Some(queries),
        k_BTHK: Some(keys),
        v_BTHV: Some(values),
        log_decay: decay,
        bonus_HK: bonus,
        state_BHKV: initial,
    })
}
