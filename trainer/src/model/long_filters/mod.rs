//! H3 and Hyena: gates around convolutions as long as the text.
//!
//! ```text
//! x + mixer(LN(x))                     x + W_2 GELU(W_1 LN(x) + b_1) + b_2
//!
//! H3     q, k, v = W y + b      k' = k * s + D_k ⊙ k      u = k' ⊙ v      W_o (q ⊙ (u * K + D ⊙ u)) + b
//!        s_l = Σ_n B_n C_{n+l}                                a shift: N learned taps
//!        K_l = 2 Re Σ_n c_n λ_nˡ                              a diagonal system of N/2 modes, discretized bilinearly
//! Hyena  x_0 … x_{o-1}, v = conv3(W y + b)      v = (v ⊙ x_{o-1-j}) * f_j + β_j ⊙ …, j = 0 … o-2      W_o (v ⊙ x_0) + b
//!        f = W_f sin(… sin(ω (W_0 z + b_0))) ⊙ exp(−|δ| t/(P−1)),  z: learned features of the position
//! ```
//! Names and initial values are those of the authors' code (safari). A state holds the inputs of the convolutions, and
//! grows with the text; padding in front of a batch's shorter texts is zeros, which add nothing. Filters and transforms are
//! fp32 whatever the products are. The filters are made in fp64: H3's angles grow with the position, and each of Hyena's
//! sines multiplies the rounding of the one before by ω. Matrices of linear layers decay, nothing else.

mod h3;
mod hyena;

use tch::{Kind, Tensor};
use xlstm_kernels::cuda::BetweenProducts;
use xlstm_kernels::linear;
use xlstm_kernels::long_convolution::{LongConvolutionInput, long_convolution};
use xlstm_manifests::recipe::architecture::{H3Config, HyenaConfig};

use super::block::{Block, BlockCall, BlockState, NamedTensors};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::signed;
use crate::error::Result;
use h3::H3;
use hyena::Hyena;

/// Epsilon of all norms.
const NORM_EPSILON: f64 = 1e-5;
/// Standard deviation of the matrices' first values.
const DEVIATION: f64 = 0.02;
/// Names of the state: inputs of the convolutions, oldest first.
const SHIFT: &str = "shift.inputs";
const INPUTS: [&str; 7] =
    ["inputs.0", "inputs.1", "inputs.2", "inputs.3", "inputs.4", "inputs.5", "inputs.6"];

/// A linear map with bias.
#[derive(Debug)]
struct Map {
    weight_OI: Tensor,
    bias_O: Tensor,
}

impl Map {
    fn new(builder: &mut Builder, name: &str, shape: [i64; 2], deviation: f64) -> Result<Self> {
        let init = Init::Normal(deviation);
        let weight_OI = builder.add(format!("{name}.weight"), &shape, &init, Decay::Yes)?;
        let bias_O = builder.add(format!("{name}.bias"), &[shape[0]], &Init::Constant(0.0), Decay::No)?;
        Ok(Self { weight_OI, bias_O })
    }

    fn apply(&self, x_I: &Tensor, call: &BlockCall<'_>) -> Result<Tensor> {
        let kind = call.precision.unwrap_or_else(|| self.weight_OI.kind());
        let (weight_OI, bias_O) = (self.weight_OI.f_to_kind(kind)?, self.bias_O.f_to_kind(kind)?);
        Ok(linear::linear(&x_I.f_to_kind(kind)?, &weight_OI, Some(&bias_O))?)
    }
}

/// What both have around their mixers.
struct Shell {
    vocabulary: u64,
    width: u64,
    feed_forward: u64,
    blocks: u64,
}

impl Shell {
    /// Of matrices at the end of a residual branch that the authors scale.
    fn last(&self) -> f64 {
        DEVIATION / (2.0 * self.blocks as f64).sqrt()
    }

    fn build(
        &self,
        builder: &mut Builder,
        mixer: impl Fn(&mut Builder, &str) -> Result<Box<dyn Mixer>>,
    ) -> Result<Parts> {
        let (v, d, f) = (signed(self.vocabulary), signed(self.width), signed(self.feed_forward));
        let (init, name) = (Init::Normal(DEVIATION), "backbone.embeddings.word_embeddings.weight");
        let embedding = builder.add(name.into(), &[v, d], &init, Decay::No)?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            let prefix = format!("backbone.layers.{index}");
            blocks.push(Box::new(LongFilterBlock {
                norm: Norm::layer(builder, &format!("{prefix}.norm1"), d, NORM_EPSILON)?,
                mixer: mixer(builder, &format!("{prefix}.mixer"))?,
                feed_norm: Norm::layer(builder, &format!("{prefix}.norm2"), d, NORM_EPSILON)?,
                up: Map::new(builder, &format!("{prefix}.mlp.fc1"), [f, d], DEVIATION)?,
                down: Map::new(builder, &format!("{prefix}.mlp.fc2"), [d, f], self.last())?,
            }));
        }
        let norm = Norm::layer(builder, "backbone.ln_f", d, NORM_EPSILON)?;
        let output = builder.output("lm_head.weight", &embedding, &[v, d], &init)?;
        let (position_embedding, embedding_norm) = (None, None);
        Ok(Parts {
            embedding,
            biases: None,
            position_embedding,
            embedding_norm,
            blocks,
            norm,
            output,
            positional: false,
        })
    }
}

impl Network for H3Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let shell = Shell {
            vocabulary: self.vocabulary_size,
            width: self.embedding_dim,
            feed_forward: self.feed_forward(),
            blocks: self.blocks,
        };
        shell.build(builder, |builder, prefix| Ok(Box::new(H3::new(builder, self, prefix)?)))
    }
}

impl Network for HyenaConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let shell = Shell {
            vocabulary: self.vocabulary_size,
            width: self.embedding_dim,
            feed_forward: self.feed_forward(),
            blocks: self.blocks,
        };
        shell.build(builder, |builder, prefix| Ok(Box::new(Hyena::new(builder, self, prefix, shell.last())?)))
    }
}

#[derive(Debug)]
struct LongFilterBlock {
    norm: Norm,
    mixer: Box<dyn Mixer>,
    feed_norm: Norm,
    up: Map,
    down: Map,
}

impl Block for LongFilterBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let (mixed_BTC, state) = self.mixer.mix(&self.norm.for_products(x_BTC, call.precision)?, call)?;
        let x_BTC = x_BTC + call.dropped(mixed_BTC, 0)?;
        let up_BTF =
            self.up.apply(&self.feed_norm.for_products(&x_BTC, call.precision)?, call)?.f_gelu("tanh")?;
        Ok((x_BTC + call.dropped(self.down.apply(&up_BTF, call)?, 1)?, BlockState::new(state)))
    }

    fn state_grows(&self) -> bool {
        true
    }

    fn join(&self, states: &[&BlockState]) -> Result<BlockState> {
        let mut longest = 0;
        for state in states {
            longest = state.iter().map(|(_, inputs)| inputs.size()[1]).chain([longest]).max().unwrap_or(0);
        }
        let mut padded = Vec::with_capacity(states.len());
        for state in states {
            let mut tensors = Vec::new();
            for name in INPUTS.into_iter().chain([SHIFT]) {
                if let Some(inputs_BSC) = state.get(name) {
                    let missing = longest - inputs_BSC.size()[1];
                    tensors.push((name, inputs_BSC.f_constant_pad_nd([0, 0, missing, 0])?));
                }
            }
            padded.push(BlockState::new(tensors));
        }
        BlockState::concatenate(&padded.iter().collect::<Vec<_>>())
    }
}

/// What mixes time: its output for `y`, `(B, T, C)`, and its state afterwards.
trait Mixer: std::fmt::Debug + Send {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)>;
}

/// A call's inputs of a convolution after those of the state, and the same with zeros before the newest document: the
/// next state.
struct Inputs {
    past_BPC: Option<Tensor>,
    next_BSC: Tensor,
}

impl Inputs {
    fn new(u_BTC: &Tensor, call: &BlockCall<'_>, name: &str) -> Result<Self> {
        let past_BPC = call.state.map(|state| state.need(name)).transpose()?;
        let all_BSC = match &past_BPC {
            Some(past_BPC) => Tensor::f_cat(&[&past_BPC.f_to_kind(u_BTC.kind())?, u_BTC], 1)?,
            None => u_BTC.shallow_clone(),
        };
        let next_BSC = match call.resets_BT {
            Some(resets_BT) => {
                let past = past_BPC.as_ref().map_or(0, |past_BPC| past_BPC.size()[1]);
                let documents = resets_BT.f_to_kind(Kind::Int64)?.f_cumsum(1, None::<Kind>)?;
                let documents = documents.f_constant_pad_nd([past, 0])?;
                let last = documents.f_narrow(1, documents.size()[1] - 1, 1)?;
                all_BSC.f_masked_fill(&documents.f_ne_tensor(&last)?.f_unsqueeze(-1)?, 0.0)?
            }
            None => all_BSC,
        };
        Ok(Self { past_BPC, next_BSC })
    }

    fn convolve(
        &self,
        u_BTC: &Tensor,
        filter_CL: &Tensor,
        skip_C: &Tensor,
        call: &BlockCall<'_>,
    ) -> Result<Tensor> {
        Ok(long_convolution(&LongConvolutionInput {
            u_BTD: u_BTC,
            filter_DL: filter_CL,
            skip_D: Some(skip_C),
            past_BPD: self.past_BPC.as_ref(),
            resets_BT: call.resets_BT,
        })?)
    }

    /// The newest inputs: all that a short filter asks for.
    fn newest(&self, count: i64) -> Result<Tensor> {
        let kept = count.min(self.length());
        Ok(self.next_BSC.f_narrow(1, self.length() - kept, kept)?)
    }

    /// How many inputs there are in all.
    fn length(&self) -> i64 {
        self.next_BSC.size()[1]
    }
}
