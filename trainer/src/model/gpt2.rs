//! GPT-2: layer norms, learned positions, full causal attention, GELU, biases everywhere, tied embeddings.
//!
//! ```text
//! x + W_o attention(q, k, v) + b,    (q, k, v) = W LN(x) + b
//! x + W_2 GELU(W_1 LN(x) + b) + b
//! ```
//! Parameters have the names of `transformers`, and its layout: `c_attn`, `c_proj` and `c_fc` are stored `(in, out)`. Weight
//! decay applies to these matrices alone.

use tch::Tensor;
use xlstm_kernels::cuda::BetweenProducts;
use xlstm_kernels::linear;
use xlstm_manifests::recipe::architecture::{Gelu, Gpt2Config};

use super::attention::{attend, by_head, join};
use super::block::{Block, BlockCall, BlockState};
use super::exchange::TransformersForm;
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::signed;
use crate::error::Result;

/// Epsilon of all norms.
pub(super) const NORM_EPSILON: f64 = 1e-5;

/// Standard deviation of the matrices' first values.
const DEVIATION: f64 = 0.02;

impl Network for Gpt2Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let width = signed(self.embedding_dim);
        let table = |builder: &mut Builder, name: &str, rows: u64| {
            builder.add(name.into(), &[signed(rows), width], &Init::Normal(DEVIATION), Decay::No)
        };
        let embedding = table(builder, "transformer.wte.weight", self.vocabulary_size)?;
        let positions = table(builder, "transformer.wpe.weight", self.positions)?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            blocks.push(Box::new(Gpt2Block::new(builder, self, &format!("transformer.h.{index}"))?));
        }
        let norm = Norm::layer(builder, "transformer.ln_f", width, NORM_EPSILON)?;
        let output = embedding.shallow_clone();
        Ok(Parts {
            embedding,
            biases: None,
            position_embedding: Some(positions),
            embedding_norm: None,
            blocks,
            norm,
            output,
            positional: false,
        })
    }

    fn transformers(&self) -> Option<&dyn TransformersForm> {
        Some(self)
    }
}

/// `x W + b` with the weight stored `(in, out)`.
#[derive(Debug)]
struct Map {
    weight_IO: Tensor,
    bias_O: Tensor,
}

impl Map {
    fn new(builder: &mut Builder, name: &str, [inputs, outputs]: [i64; 2], deviation: f64) -> Result<Self> {
        let init = Init::Normal(deviation);
        let weight_IO = builder.add(format!("{name}.weight"), &[inputs, outputs], &init, Decay::Yes)?;
        let bias_O = builder.add(format!("{name}.bias"), &[outputs], &Init::Constant(0.0), Decay::No)?;
        Ok(Self { weight_IO, bias_O })
    }

    fn apply(&self, x_I: &Tensor, call: &BlockCall<'_>) -> Result<Tensor> {
        let kind = call.precision.unwrap_or_else(|| self.weight_IO.kind());
        let weight_OI = self.weight_IO.f_transpose(0, 1)?.f_to_kind(kind)?;
        let bias_O = self.bias_O.f_to_kind(kind)?;
        Ok(linear::linear(&x_I.f_to_kind(kind)?, &weight_OI, Some(&bias_O))?)
    }
}

#[derive(Debug)]
struct Gpt2Block {
    heads: i64,
    gelu: Gelu,
    norm: Norm,
    query_key_value: Map,
    output: Map,
    feed_norm: Norm,
    up: Map,
    down: Map,
}

impl Gpt2Block {
    fn new(builder: &mut Builder, config: &Gpt2Config, prefix: &str) -> Result<Self> {
        let (d, feed) = (signed(config.embedding_dim), signed(config.feed_forward()));
        // A block has two residual branches.
        let last = DEVIATION / f64::sqrt(2.0 * config.blocks as f64);
        let name = |part: &str| format!("{prefix}.{part}");
        Ok(Self {
            heads: signed(config.heads),
            gelu: config.gelu,
            norm: Norm::layer(builder, &name("ln_1"), d, NORM_EPSILON)?,
            query_key_value: Map::new(builder, &name("attn.c_attn"), [d, 3 * d], DEVIATION)?,
            output: Map::new(builder, &name("attn.c_proj"), [d, d], last)?,
            feed_norm: Norm::layer(builder, &name("ln_2"), d, NORM_EPSILON)?,
            up: Map::new(builder, &name("mlp.c_fc"), [d, feed], DEVIATION)?,
            down: Map::new(builder, &name("mlp.c_proj"), [feed, d], last)?,
        })
    }
}

impl Block for Gpt2Block {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let y_BTC = self.norm.for_products(x_BTC, call.precision)?;
        let qkv = self.query_key_value.apply(&y_BTC, call)?.f_chunk(3, -1)?;
        let head = |index: usize| by_head(&qkv[index], self.heads);
        let (o_BTHE, state) = attend(&head(0)?, &head(1)?, &head(2)?, call)?;
        let x_BTC = x_BTC + call.dropped(self.output.apply(&o_BTHE.f_flatten(2, 3)?, call)?, 0)?;
        let y_BTC = self.feed_norm.for_products(&x_BTC, call.precision)?;
        let form = match self.gelu {
            Gelu::Tanh => "tanh",
            Gelu::Erf => "none",
        };
        let up_BTF = self.up.apply(&y_BTC, call)?.f_gelu(form)?;
        Ok((x_BTC + call.dropped(self.down.apply(&up_BTF, call)?, 1)?, state))
    }

    fn state_grows(&self) -> bool {
        true
    }

    fn join(&self, states: &[&BlockState]) -> Result<BlockState> {
        join(states)
    }
}
