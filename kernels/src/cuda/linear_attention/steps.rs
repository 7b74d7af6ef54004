//! Gated linear attention step by step (`linear_attention.cu`): computed in float32, from queries, keys and values in float32 or bf16.
//!
//! What is saved is the inputs, exp(g), the final state and, where sequences are cut into segments, the states at their borders:
//! those in between are computed again. Three kernels of the backward pass give gradients of queries, of keys with decays and
//! bonus, and of values with the first state.

use tch::{Kind, Tensor};
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::linear_attention::{
    LinearAttentionParameters, LinearAttentionPass, LinearAttentionSizes, Segments,
};

use super::{decay_room, dense, dense_if_any, is_by_token, like};
use crate::cuda::{Gpu, address, contiguous, make, optional_address};
use crate::linear_attention::{Inputs, LinearAttentionInput, Outputs};
use crate::shape::dimensions;

pub(super) const NAME: &str = "linear_attention (CUDA)";

named_tensors! {
    pub(super) struct Saved {
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        /// `(B, T, H, K)`, or `(H, K)`.
        decay: Tensor,
        bonus_HK: Option<Tensor>,
        initial_BHKV: Option<Tensor>,
        resets_BT: Option<Tensor>,
        last_BHKV: Tensor,
        /// S at the borders of N segments, `(B, N + 1, H, K, V)`; `None` for one segment.
        states: Option<Tensor>,
        /// The product of each segment's decays, `(B, N, H, K)`.
        products: Option<Tensor>,
    }
}

/// Sizes and cut of one call.
#[derive(Debug, Clone, Copy)]
struct Plan {
    batch: i64,
    tokens: i64,
    heads: i64,
    key: i64,
    value: i64,
    sizes: LinearAttentionSizes,
    segments: Segments,
}

impl Plan {
    fn new(q_BTHK: &Tensor, v_BTHV: &Tensor, bonus: bool) -> Result<Self, BoxError> {
        let [batch, tokens, heads, key] = dimensions::<4>(NAME, "q_BTHK", q_BTHK)?;
        let [.., value] = dimensions::<4>(NAME, "v_BTHV", v_BTHV)?;
        let sizes = sizes(q_BTHK, v_BTHV, bonus)?;
        let segments = sizes.segments(u32::try_from(batch)?, u32::try_from(tokens)?, u32::try_from(heads)?);
        Ok(Self { batch, tokens, heads, key, value, sizes, segments })
    }

    fn is_cut(&self) -> bool {
        self.segments.count > 1
    }

    /// Room for the matrices at all borders.
    fn borders(&self, like: &Tensor) -> Result<Option<Tensor>, BoxError> {
        let Self { batch, heads, key, value, segments, .. } = *self;
        let size = [batch, i64::from(segments.count) + 1, heads, key, value];
        self.is_cut().then(|| make(&size, Kind::Float, like)).transpose()
    }

    /// Room for a vector of keys for each segment and head.
    fn by_segment(&self, like: &Tensor) -> Result<Tensor, BoxError> {
        make(&[self.batch, self.segments.count.into(), self.heads, self.key], Kind::Float, like)
    }
}

/// Whether there is a kernel for heads of these sizes.
pub(super) fn knows(input: &LinearAttentionInput<'_>) -> bool {
    sizes(input.q_BTHK, input.v_BTHV, input.bonus_HK.is_some()).is_ok()
}

fn sizes(q_BTHK: &Tensor, v_BTHV: &Tensor, bonus: bool) -> Result<LinearAttentionSizes, BoxError> {
    let [.., key] = dimensions::<4>(NAME, "q_BTHK", q_BTHK)?;
    let [.., value] = dimensions::<4>(NAME, "v_BTHV", v_BTHV)?;
    let sizes = LinearAttentionSizes::new(u32::try_from(key)?, u32::try_from(value)?, bonus);
    let of_type = |sizes: LinearAttentionSizes| match q_BTHK.kind() {
        Kind::Float => sizes,
        _ => sizes.in_bf16(),
    };
    sizes.map(of_type).ok_or_else(|| {
        format!("{NAME}: expected heads of a power of two from 16 to 512, found keys of {key} and values of {value}")
            .into()
    })
}

/// Dense and of the type of the queries.
fn dense_as(name: &str, tensor: &Tensor, q_BTHK: &Tensor) -> Result<Tensor, BoxError> {
    contiguous(NAME, name, tensor, q_BTHK.kind())
}

impl Saved {
    fn plan(&self) -> Result<Plan, BoxError> {
        Plan::new(&self.q_BTHK, &self.v_BTHV, self.bonus_HK.is_some())
    }

    fn parameters(&self, plan: &Plan, scale: f64) -> Result<LinearAttentionParameters, BoxError> {
        Ok(LinearAttentionParameters {
            tokens: i32::try_from(plan.tokens)?,
            heads: i32::try_from(plan.heads)?,
            segments: i32::try_from(plan.segments.count)?,
            segment_tokens: i32::try_from(plan.segments.tokens)?,
            token_decay: is_by_token(&self.decay).into(),
            scale: scale as f32,
            query: address(&self.q_BTHK),
            key: address(&self.k_BTHK),
            value: address(&self.v_BTHV),
            decay: address(&self.decay),
            bonus: optional_address(self.bonus_HK.as_ref()),
            resets: optional_address(self.resets_BT.as_ref()),
            initial: optional_address(self.initial_BHKV.as_ref()),
            last: address(&self.last_BHKV),
            states: optional_address(self.states.as_ref()),
            products: optional_address(self.products.as_ref()),
            ..LinearAttentionParameters::default()
        })
    }

    /// Launches the passes one after the other; those that only borders need are left out where there are none.
    fn launch(
        &self,
        plan: &Plan,
        passes: &[LinearAttentionPass],
        parameters: &LinearAttentionParameters,
    ) -> Result<(), BoxError> {
        let gpu = Gpu::of(&self.q_BTHK)?;
        let (batch, heads) = (u32::try_from(plan.batch)?, u32::try_from(plan.heads)?);
        let wanted = plan.sizes.specialization(gpu.architecture());
        for &pass in passes.iter().filter(|pass| plan.is_cut() || !pass.is_of_borders()) {
            let launch = plan.sizes.launch(pass, batch, heads, plan.segments.count);
            // SAFETY: the tensors are dense and have the sizes that the structure and the launch state.
            unsafe { gpu.launch(wanted.clone(), launch, parameters)? };
        }
        Ok(())
    }
}

pub(super) fn forward(
    input: &LinearAttentionInput<'_>,
    log_decay: &Tensor,
) -> Result<(Outputs<Tensor>, Saved), BoxError> {
    let plan = Plan::new(input.q_BTHK, input.v_BTHV, input.bonus_HK.is_some())?;
    let saved = Saved {
        q_BTHK: dense_as("q", input.q_BTHK, input.q_BTHK)?,
        k_BTHK: dense_as("k", input.k_BTHK, input.q_BTHK)?,
        v_BTHV: dense_as("v", input.v_BTHV, input.q_BTHK)?,
        decay: dense(NAME, "decay", &log_decay.f_exp()?)?,
        bonus_HK: dense_if_any(NAME, "bonus", input.bonus_HK)?,
        initial_BHKV: dense_if_any(NAME, "state", input.state_BHKV)?,
        resets_BT: input.resets_BT.map(Tensor::f_contiguous).transpose()?,
        last_BHKV: make(&[plan.batch, plan.heads, plan.key, plan.value], Kind::Float, input.q_BTHK)?,
        states: plan.borders(input.q_BTHK)?,
        products: plan.is_cut().then(|| plan.by_segment(input.q_BTHK)).transpose()?,
    };
    let o_BTHV = make(&input.v_BTHV.size(), input.v_BTHV.kind(), input.q_BTHK)?;
    let parameters =
        LinearAttentionParameters { output: address(&o_BTHV), ..saved.parameters(&plan, input.scale)? };
    let passes = [LinearAttentionPass::States, LinearAttentionPass::JoinStates, LinearAttentionPass::Forward];
    saved.launch(&plan, &passes, &parameters)?;
    Ok((Outputs { o_BTHV, state_BHKV: saved.last_BHKV.shallow_clone() }, saved))
}

pub(super) fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    wanted: &Inputs<bool>,
    scale: f64,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let plan = saved.plan()?;
    let output_gradient = match upstream.o_BTHV {
        Some(gradient) => dense_as("gradient of o", &gradient, &saved.q_BTHK)?,
        None => saved.v_BTHV.f_zeros_like()?,
    };
    let last_gradient = dense_if_any(NAME, "gradient of the state", upstream.state_BHKV.as_ref())?;
    let kind = saved.q_BTHK.kind();
    let (keys, values) = (like(&saved.k_BTHK)?, like(&saved.v_BTHV)?);
    let query = make(&saved.q_BTHK.size(), Kind::Float, &saved.q_BTHK)?;
    let decay = decay_room(wanted.log_decay, &saved.decay, || plan.by_segment(&saved.q_BTHK))?;
    let bonus = saved.bonus_HK.as_ref().map(|_| plan.by_segment(&saved.q_BTHK)).transpose()?;
    let initial = saved.initial_BHKV.as_ref().map(like).transpose()?;
    let state_gradients = plan.borders(&saved.q_BTHK)?;
    let parameters = LinearAttentionParameters {
        output_gradient: address(&output_gradient),
        last_gradient: optional_address(last_gradient.as_ref()),
        query_gradient: address(&query),
        key_gradient: address(&keys),
        value_gradient: address(&values),
        decay_gradient: optional_address(decay.as_ref()),
        bonus_gradient: optional_address(bonus.as_ref()),
        initial_gradient: optional_address(initial.as_ref()),
        state_gradients: optional_address(state_gradients.as_ref()),
        ..saved.parameters(&plan, scale)?
    };
    let passes = [
        LinearAttentionPass::StateGradients,
        LinearAttentionPass::JoinGradients,
        LinearAttentionPass::Queries,
        LinearAttentionPass::Keys,
        LinearAttentionPass::Values,
    ];
    saved.launch(&plan, &passes, &parameters)?;
    Ok(Inputs {
        q_BTHK: Some(query.f_to_kind(kind)?),
        k_BTHK: Some(keys),
        v_BTHV: Some(values),
        log_decay: decay,
        bonus_HK: bonus,
        state_BHKV: initial,
    })
}
