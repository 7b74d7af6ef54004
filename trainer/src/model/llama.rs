//! Llama: RMS norms, rotary positions, full causal attention, SwiGLU, no biases.
//!
//! ```text
//! x + W_o attention(rotary(W_q y), rotary(W_k y), W_v y),  y = RMS(x)
//! x + W_down (SiLU(W_gate y) ⊙ W_up y),                    y = RMS(x)
//! ```
//! Parameters have the names of `transformers`. Rotary pairs are `(j, j + E/2)`, as there; Meta's code pairs `(2j, 2j+1)`,
//! which is the same model with the rows of W_q and W_k in another order. Weight decay applies to all matrices but the
//! token embedding.

use tch::Tensor;
use xlstm_kernels::cuda::BetweenProducts;
use xlstm_kernels::transformer::swiglu;
use xlstm_manifests::recipe::architecture::{LlamaConfig, LlamaInit};

use super::attention::{Rotary, attend, by_head, join};
use super::block::{Block, BlockCall, BlockState};
use super::exchange::TransformersForm;
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init, InputMap, small_init, wang_init};
use super::{product, signed};
use crate::error::{Result, TrainError};

impl Network for LlamaConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let (width, vocabulary) = (signed(self.embedding_dim), signed(self.vocabulary_size));
        let Inits { inner, .. } = Inits::new(self);
        let (embedding, input_bias) = builder.input(&InputMap {
            name: "model.embed_tokens.weight",
            vocabulary,
            width,
            init: &inner,
            numbers: self.input_width,
        })?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            blocks.push(Box::new(LlamaBlock::new(builder, self, &format!("model.layers.{index}"))?));
        }
        let norm = rms_norm(builder, self, "model.norm.weight".into())?;
        let output = builder.output("lm_head.weight", &embedding, &[vocabulary, width], &inner)?;
        let biases = builder.biases(input_bias, vocabulary)?;
        Ok(Parts {
            embedding,
            biases,
            position_embedding: None,
            embedding_norm: None,
            blocks,
            norm,
            output,
            positional: true,
        })
    }

    fn transformers(&self) -> Option<&dyn TransformersForm> {
        // It has models of tokens alone.
        (self.input_width == 0).then_some(self)
    }
}

/// First values: of matrices that read the residual, and of those that write to it.
struct Inits {
    inner: Init,
    last: Init,
}

impl Inits {
    fn new(config: &LlamaConfig) -> Self {
        match config.weight_init {
            // A block has two residual branches.
            LlamaInit::Small => Self {
                inner: small_init(config.embedding_dim),
                last: wang_init(config.embedding_dim, 2 * config.blocks),
            },
            LlamaInit::Normal => Self { inner: Init::Normal(0.02), last: Init::Normal(0.02) },
        }
    }
}

fn rms_norm(builder: &mut Builder, config: &LlamaConfig, name: String) -> Result<Norm> {
    let weight = builder.add(name, &[signed(config.embedding_dim)], &Init::Constant(1.0), Decay::No)?;
    Ok(Norm::Rms { weight, epsilon: config.norm_epsilon })
}

#[derive(Debug)]
struct LlamaBlock {
    heads: i64,
    rotary_base: f64,
    norm: Norm,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    feed_norm: Norm,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl LlamaBlock {
    fn new(builder: &mut Builder, config: &LlamaConfig, prefix: &str) -> Result<Self> {
        let (width, feed) = (signed(config.embedding_dim), signed(config.feed_forward()));
        let Inits { inner, last } = Inits::new(config);
        let name = |part: &str| format!("{prefix}.{part}.weight");
        let norm = rms_norm(builder, config, name("input_layernorm"))?;
        let mut matrix =
            |part: &str, shape: [i64; 2], init: &Init| builder.add(name(part), &shape, init, Decay::Yes);
        let query = matrix("self_attn.q_proj", [width, width], &inner)?;
        let key = matrix("self_attn.k_proj", [width, width], &inner)?;
        let value = matrix("self_attn.v_proj", [width, width], &inner)?;
        let output = matrix("self_attn.o_proj", [width, width], &last)?;
        let gate = matrix("mlp.gate_proj", [feed, width], &inner)?;
        let up = matrix("mlp.up_proj", [feed, width], &inner)?;
        let down = matrix("mlp.down_proj", [width, feed], &last)?;
        let feed_norm = rms_norm(builder, config, name("post_attention_layernorm"))?;
        let (heads, rotary_base) = (signed(config.heads), config.rotary_base);
        Ok(Self { heads, rotary_base, norm, query, key, value, output, feed_norm, gate, up, down })
    }

    fn attention(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let positions_BT = call.positions_BT.ok_or_else(|| {
            TrainError::Internal("expected positions for rotary attention, found none".into())
        })?;
        let project = |weight: &Tensor| by_head(&product(y_BTC, weight, call.precision)?, self.heads);
        let (q_BTHE, k_BTHE, v_BTHE) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        let rotary = Rotary::new(positions_BT, q_BTHE.size()[3], self.rotary_base, y_BTC.kind())?;
        let (o_BTHE, state) = attend(&rotary.turn(&q_BTHE)?, &rotary.turn(&k_BTHE)?, &v_BTHE, call)?;
        Ok((product(&o_BTHE.f_flatten(2, 3)?, &self.output, call.precision)?, state))
    }
}

impl Block for LlamaBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let (o_BTC, state) = self.attention(&self.norm.for_products(x_BTC, call.precision)?, call)?;
        let x_BTC = x_BTC + call.dropped(o_BTC, 0)?;
        let y_BTC = self.feed_norm.for_products(&x_BTC, call.precision)?;
        let gate_BTF = product(&y_BTC, &self.gate, call.precision)?;
        let up_BTF = product(&y_BTC, &self.up, call.precision)?;
        let inner_BTF = swiglu(&gate_BTF, &up_BTF)?;
        let x_BTC = x_BTC + call.dropped(product(&inner_BTF, &self.down, call.precision)?, 1)?;
        Ok((x_BTC, state))
    }

    fn state_grows(&self) -> bool {
        true
    }

    fn join(&self, states: &[&BlockState]) -> Result<BlockState> {
        join(states)
    }
}
