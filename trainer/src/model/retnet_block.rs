//! RetNet in a Transformer's blocks: layer norms, biases, GELU, and retention in place of attention.
//!
//! ```text
//! x + W_o [w ⊙ RMS_head(o) ⊙ SiLU(W_g y + b)] + b        y = LN(x)        o = retention of q, k, v, each W y + b
//! x + W_2 GELU(W_1 LN(x) + b) + b
//! ```
//! Queries and keys have rotary positions; the log decay of head h is log(1 − 2^(−5−h)), keys are scaled by E^(−1/2). The
//! head norm has an epsilon of 1e-6, layer norms of 1e-5. First values are those of GPT-2; matrices decay but the embedding.

use tch::Tensor;
use xlstm_kernels::cuda::{BetweenProducts, Recurrence};
use xlstm_kernels::gated_norm::{GatedNormInput, HeadNorm, gated_norm};
use xlstm_kernels::linear;
use xlstm_kernels::linear_attention::{
    LinearAttentionInput, LinearAttentionOptions, LogDecay, linear_attention,
};
use xlstm_manifests::recipe::architecture::RetnetBlockConfig;

use super::attention::{Rotary, by_head};
use super::block::{Block, BlockCall, BlockState};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::recurrent::{ROTARY_BASE, retention_decays, scale};
use super::signed;
use crate::error::{Result, TrainError};

/// Epsilon of the layer norms.
const NORM_EPSILON: f64 = 1e-5;
/// Epsilon of the norm of each head.
const HEAD_EPSILON: f64 = 1e-6;
/// Standard deviation of the matrices' first values.
const DEVIATION: f64 = 0.02;
/// Name of the state.
const MEMORY: &str = "memory";

impl Network for RetnetBlockConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: Some(self.embedding_dim / self.heads) })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let width = signed(self.embedding_dim);
        let (shape, init) = ([signed(self.vocabulary_size), width], Init::Normal(DEVIATION));
        let embedding = builder.add("token_embedding.weight".into(), &shape, &init, Decay::No)?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            blocks.push(Box::new(RetnetBlock::new(builder, self, &format!("layers.{index}"))?));
        }
        let norm = Norm::layer(builder, "norm", width, NORM_EPSILON)?;
        let output = builder.output("lm_head.weight", &embedding, &shape, &init)?;
        Ok(Parts {
            embedding,
            biases: None,
            position_embedding: None,
            embedding_norm: None,
            blocks,
            norm,
            output,
            positional: true,
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        let width = self.embedding_dim / self.heads;
        Some(Recurrence::LinearAttention { keys: width, values: width })
    }
}

/// `x Wᵀ + b`.
#[derive(Debug)]
struct Map {
    weight: Tensor,
    bias: Tensor,
}

impl Map {
    fn new(builder: &mut Builder, name: &str, [outputs, inputs]: [i64; 2], deviation: f64) -> Result<Self> {
        let init = Init::Normal(deviation);
        let weight = builder.add(format!("{name}.weight"), &[outputs, inputs], &init, Decay::Yes)?;
        let bias = builder.add(format!("{name}.bias"), &[outputs], &Init::Constant(0.0), Decay::No)?;
        Ok(Self { weight, bias })
    }

    fn apply(&self, x: &Tensor, call: &BlockCall<'_>) -> Result<Tensor> {
        let kind = call.precision.unwrap_or_else(|| self.weight.kind());
        let (weight, bias) = (self.weight.f_to_kind(kind)?, self.bias.f_to_kind(kind)?);
        Ok(linear::linear(&x.f_to_kind(kind)?, &weight, Some(&bias))?)
    }
}

#[derive(Debug)]
struct RetnetBlock {
    heads: i64,
    norm: Norm,
    query: Map,
    key: Map,
    value: Map,
    gate: Map,
    head_norm: Tensor,
    output: Map,
    feed_norm: Norm,
    up: Map,
    down: Map,
}

impl RetnetBlock {
    fn new(builder: &mut Builder, config: &RetnetBlockConfig, prefix: &str) -> Result<Self> {
        let (d, feed) = (signed(config.embedding_dim), signed(config.feed_forward()));
        // A block has two residual branches.
        let last = DEVIATION / f64::sqrt(2.0 * config.blocks as f64);
        let name = |part: &str| format!("{prefix}.{part}");
        let square = |builder: &mut Builder, part: &str, deviation| {
            Map::new(builder, &format!("{prefix}.retention.{part}"), [d, d], deviation)
        };
        Ok(Self {
            heads: signed(config.heads),
            norm: Norm::layer(builder, &name("norm1"), d, NORM_EPSILON)?,
            query: square(builder, "q_proj", DEVIATION)?,
            key: square(builder, "k_proj", DEVIATION)?,
            value: square(builder, "v_proj", DEVIATION)?,
            gate: square(builder, "g_proj", DEVIATION)?,
            head_norm: builder.add(
                name("retention.head_norm.weight"),
                &[d],
                &Init::Constant(1.0),
                Decay::No,
            )?,
            output: square(builder, "o_proj", last)?,
            feed_norm: Norm::layer(builder, &name("norm2"), d, NORM_EPSILON)?,
            up: Map::new(builder, &name("ffn.fc1"), [feed, d], DEVIATION)?,
            down: Map::new(builder, &name("ffn.fc2"), [d, feed], last)?,
        })
    }

    /// What retention adds to the residual, and its state.
    fn retain(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, Tensor)> {
        let positions_BT = call
            .positions_BT
            .ok_or_else(|| TrainError::Internal("expected positions for retention, found none".into()))?;
        let head = |map: &Map| by_head(&map.apply(y_BTC, call)?, self.heads);
        let (q_BTHK, k_BTHK) = (head(&self.query)?, head(&self.key)?);
        let rotary = Rotary::new(positions_BT, q_BTHK.size()[3], ROTARY_BASE, y_BTC.kind())?;
        let memory = call.state.map(|state| state.need(MEMORY)).transpose()?;
        let input = LinearAttentionInput {
            q_BTHK: &rotary.turn(&q_BTHK)?,
            k_BTHK: &rotary.turn(&k_BTHK)?,
            v_BTHV: &head(&self.value)?,
            log_decay: LogDecay::Head(&retention_decays(self.heads, y_BTC)?),
            bonus_HK: None,
            scale: scale(&q_BTHK),
            state_BHKV: memory.as_ref(),
            resets_BT: call.resets_BT,
        };
        let output = linear_attention(&input, &LinearAttentionOptions::default())?;
        let mixed_BTC = gated_norm(&GatedNormInput {
            o_BTHE: &output.o_BTHV,
            weight: &self.head_norm,
            bias_D: None,
            gate_BTD: &self.gate.apply(y_BTC, call)?,
            norm: HeadNorm::Rms,
            epsilon: HEAD_EPSILON,
        })?;
        Ok((self.output.apply(&mixed_BTC, call)?, output.state_BHKV))
    }
}

impl Block for RetnetBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let (mixed_BTC, memory) = self.retain(&self.norm.for_products(x_BTC, call.precision)?, call)?;
        let x_BTC = x_BTC + call.dropped(mixed_BTC, 0)?;
        let up_BTF =
            self.up.apply(&self.feed_norm.for_products(&x_BTC, call.precision)?, call)?.f_gelu("none")?;
        let down_BTC = call.dropped(self.down.apply(&up_BTF, call)?, 1)?;
        Ok((&x_BTC + down_BTC, BlockState::new([(MEMORY, memory)])))
    }
}
