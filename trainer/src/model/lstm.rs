//! LSTM layers: stacked, on a residual, and in turn with feed-forwards (Table 2; Section 4.1's LSTM and LSTM (Block)).
//!
//! ```text
//! plain      x ← LSTM(x)
//! others     x ← x + LSTM(LN(x))           feed-forward: x ← x + W_down GELU(W_up LN(x))
//! ```
//! Parameters are PyTorch's, with both of its bias vectors, which the printed counts need; norms have a weight and no
//! bias. PyTorch's initial values for the LSTM, U(±1/√d); embedding, output and feed-forward begin as the xLSTM's.
//! Matrices decay but the embedding. `weight_hh` is `(4d, d)`, or `(H, 4·d/H, d/H)` with more than one head.
//!
//! On a GPU, a layer with one wide head is libtorch's own LSTM (`xlstm_kernels::lstm::layer_fits`), in float32, its products in TF32
//! where others are in bf16; all others are a product for the input and a recurrence in float32.

use tch::{Kind, Tensor};
use xlstm_kernels::cuda::{BetweenProducts, Recurrence};
use xlstm_kernels::lstm::{
    LstmInput, LstmKernel, LstmLayer, LstmOutput, LstmState, layer_fits, lstm, lstm_layer,
};
use xlstm_kernels::slstm::{SlstmLayout, canonical_recurrent};
use xlstm_manifests::recipe::architecture::{LstmConfig, LstmForm};

use super::block::{Block, BlockCall, BlockState};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init, InputMap, small_init, wang_init};
use super::{product, signed};
use crate::error::Result;

/// Epsilon of all norms.
const NORM_EPSILON: f64 = 1e-5;
/// Names of a layer's state.
const HIDDEN: &str = "lstm.hidden";
const CELL: &str = "lstm.cell";

impl Network for LstmConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn recurrence(&self, resets: bool) -> Option<Recurrence> {
        let (heads, units) = (self.heads, self.embedding_dim / self.heads.max(1));
        Some(Recurrence::Lstm { heads, units, resets })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let (embedding, input_bias) = builder.input(&InputMap {
            name: "token_embedding.weight",
            vocabulary: signed(self.vocabulary_size),
            width: signed(self.embedding_dim),
            init: &small_init(self.embedding_dim),
            numbers: self.input_width,
        })?;
        let mut blocks: Vec<LstmBlock> = Vec::new();
        for (index, is_feed_forward) in self.layers().enumerate() {
            let prefix = format!("layers.{index}");
            match blocks.last_mut() {
                // A feed-forward has no state, and every block must have one: it goes with the LSTM before it.
                Some(block) if is_feed_forward => block.feed = Some(Feed::new(builder, self, &prefix)?),
                _ => blocks.push(LstmBlock { layer: Layer::new(builder, self, &prefix)?, feed: None }),
            }
        }
        let norm = match self.form {
            LstmForm::Plain => Norm::None,
            _ => Norm::layer_without_bias(builder, "norm", signed(self.embedding_dim), NORM_EPSILON)?,
        };
        let shape = [signed(self.vocabulary_size), signed(self.embedding_dim)];
        let small = small_init(self.embedding_dim);
        let output = builder.output("lm_head.weight", &embedding, &shape, &small)?;
        let biases = builder.biases(input_bias, signed(self.vocabulary_size))?;
        let blocks = blocks.into_iter().map(|block| Box::new(block) as Box<dyn Block>).collect();
        Ok(Parts {
            embedding,
            biases,
            position_embedding: None,
            embedding_norm: None,
            blocks,
            norm,
            output,
            positional: false,
        })
    }
}

/// An LSTM layer, and the feed-forward behind it where there is one.
#[derive(Debug)]
struct LstmBlock {
    layer: Layer,
    feed: Option<Feed>,
}

#[derive(Debug)]
struct Layer {
    /// `None`: a stacked layer, whose output takes the place of its input.
    norm: Option<Norm>,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    heads: i64,
}

impl Layer {
    fn new(builder: &mut Builder, config: &LstmConfig, prefix: &str) -> Result<Self> {
        let (d, heads) = (signed(config.embedding_dim), signed(config.heads));
        let name = |part: &str| format!("{prefix}.lstm.{part}");
        let init = Init::Uniform((config.embedding_dim as f64).powf(-0.5));
        let norm = match config.form {
            LstmForm::Plain => None,
            _ => Some(Norm::layer_without_bias(builder, &format!("{prefix}.norm"), d, NORM_EPSILON)?),
        };
        let recurrent = if heads == 1 { vec![4 * d, d] } else { vec![heads, 4 * (d / heads), d / heads] };
        Ok(Self {
            norm,
            weight_ih: builder.add(name("weight_ih"), &[4 * d, d], &init, Decay::Yes)?,
            weight_hh: builder.add(name("weight_hh"), &recurrent, &init, Decay::Yes)?,
            bias_ih: builder.add(name("bias_ih"), &[4 * d], &init, Decay::No)?,
            bias_hh: builder.add(name("bias_hh"), &[4 * d], &init, Decay::No)?,
            heads,
        })
    }

    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let y_BTC = match &self.norm {
            Some(norm) => norm.for_products(x_BTC, call.precision)?,
            None => x_BTC.shallow_clone(),
        };
        let unit = y_BTC.size()[2] / self.heads;
        let state = call.state.map(cell_state).transpose()?;
        let output = if layer_fits(y_BTC.device(), self.heads, unit, call.resets_BT.is_some()) {
            let layer = LstmLayer {
                x_BTC: &y_BTC,
                weight_ih_FC: &self.weight_ih,
                weight_hh_FE: &self.weight_hh,
                bias_ih_F: &self.bias_ih,
                bias_hh_F: &self.bias_hh,
                state: state.as_ref(),
            };
            let kind = if x_BTC.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            let LstmOutput { h_BTHE, state } = lstm_layer(&layer, kind, call.precision.is_some())?;
            // As a product's result: what follows reads it in the type of the products.
            LstmOutput { h_BTHE: h_BTHE.f_to_kind(call.precision.unwrap_or_else(|| x_BTC.kind()))?, state }
        } else {
            self.by_cell(&y_BTC, state.as_ref(), call)?
        };
        let h_BTC = output.h_BTHE.f_flatten(2, 3)?;
        let h_BTC = match call.dropout {
            Some(_) => call.dropped(h_BTC.f_to_kind(x_BTC.kind())?, 0)?,
            // Added to the residual as it is: the sum is float32.
            None => h_BTC,
        };
        let x_BTC = match &self.norm {
            Some(_) => x_BTC.f_add(&h_BTC)?,
            None => h_BTC.f_to_kind(x_BTC.kind())?,
        };
        let LstmState { hidden, cell } = output.state;
        Ok((x_BTC, BlockState::new([(HIDDEN, hidden), (CELL, cell)])))
    }

    /// A product for all gate inputs, and the recurrence alone.
    fn by_cell(&self, y_BTC: &Tensor, state: Option<&LstmState>, call: &BlockCall<'_>) -> Result<LstmOutput> {
        let size = y_BTC.size();
        let (batch, time, unit) = (size[0], size[1], size[2] / self.heads);
        let raw_BTF = product(y_BTC, &self.weight_ih, call.precision)?;
        let weight_hh = self.weight_hh.f_view([self.heads, 4 * unit, unit])?;
        let input = LstmInput {
            x_BTGHE: &raw_BTF.f_view([batch, time, 4, self.heads, unit])?,
            recurrent_HEGE: &canonical_recurrent(&weight_hh, SlstmLayout::Vanilla)?,
            bias_GHE: &self.bias_ih.f_add(&self.bias_hh)?.f_view([4, self.heads, unit])?,
            state,
            resets_BT: call.resets_BT,
        };
        Ok(lstm(&input, LstmKernel::Auto)?)
    }
}

#[derive(Debug)]
struct Feed {
    norm: Norm,
    up: Tensor,
    down: Tensor,
}

impl Feed {
    fn new(builder: &mut Builder, config: &LstmConfig, prefix: &str) -> Result<Self> {
        let (d, feed) = (signed(config.embedding_dim), signed(config.feed_forward()));
        let name = |part: &str| format!("{prefix}.ffn.{part}.weight");
        let last = wang_init(config.embedding_dim, config.layers().count() as u64);
        Ok(Self {
            norm: Norm::layer_without_bias(builder, &format!("{prefix}.norm"), d, NORM_EPSILON)?,
            up: builder.add(name("proj_up"), &[feed, d], &small_init(config.embedding_dim), Decay::Yes)?,
            down: builder.add(name("proj_down"), &[d, feed], &last, Decay::Yes)?,
        })
    }

    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<Tensor> {
        let up_BTF = product(&self.norm.for_products(x_BTC, call.precision)?, &self.up, call.precision)?;
        Ok(x_BTC + call.dropped(product(&up_BTF.f_gelu("none")?, &self.down, call.precision)?, 1)?)
    }
}

impl Block for LstmBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let (x_BTC, state) = self.layer.forward(x_BTC, call)?;
        match &self.feed {
            Some(feed) => Ok((feed.forward(&x_BTC, call)?, state)),
            None => Ok((x_BTC, state)),
        }
    }
}

fn cell_state(state: &BlockState) -> Result<LstmState> {
    Ok(LstmState { hidden: state.need(HIDDEN)?, cell: state.need(CELL)? })
}
