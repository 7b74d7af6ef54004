//! RWKV-4, RWKV-5 and RWKV-6: time mix and channel mix, both of a token and the one before.
//!
//! ```text
//! time mix     k, v, r (g) = W mix(y, shift(y))
//!   RWKV-4     W_o (σ(r) ⊙ wkv(w, u, k, v))
//!   5 and 6    W_o (GroupNorm(core(r, k, v, −exp(w), bonus u) / 8) ⊙ SiLU(g))
//! channel mix  σ(W_r mix) ⊙ W_v relu(W_k mix)²
//! mix          4, 5: y ⊙ μ + shift(y) ⊙ (1 − μ)      6: y + (shift(y) − y) ⊙ (m + a function of the token)
//! ```
//! Names, layouts and initial values are those of the authors' repository (RWKV-LM): the `x052` and `x060` models of April
//! 2024, and `v4neo`. RWKV-4 decays everything but biases, embedding and norms, as the paper says; the others matrices
//! alone. Decays, wkv and the core are fp32 whatever the products are.

mod time_mix;

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cuda::{BetweenProducts, Recurrence};
use xlstm_kernels::token_shift::{TokenShiftInput, token_shift};
use xlstm_manifests::recipe::architecture::{Rwkv4Config, Rwkv5Config, Rwkv6Config, RwkvConfig, RwkvVersion};

use super::block::{Block, BlockCall, BlockState};
use super::exchange::TransformersForm;
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::{product, signed};
use crate::error::Result;
use time_mix::{Five, Four, Six};

/// Epsilon of all norms.
pub(super) const NORM_EPSILON: f64 = 1e-5;
/// Names of the state's last tokens, of both mixes.
const TIME_SHIFT: &str = "time_mix.shift";
const CHANNEL_SHIFT: &str = "channel_mix.shift";

impl Network for Rwkv4Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder)
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        Some(Recurrence::Scan)
    }

    fn transformers(&self) -> Option<&dyn TransformersForm> {
        Some(self)
    }
}

impl Network for Rwkv5Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: Some(self.head_dim) })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder)
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        Some(Recurrence::LinearAttention { keys: self.head_dim, values: self.head_dim })
    }
}

impl Network for Rwkv6Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: Some(self.head_dim) })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder)
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        Some(Recurrence::LinearAttention { keys: self.head_dim, values: self.head_dim })
    }
}

fn build<N: RwkvVersion>(config: &RwkvConfig<N>, builder: &mut Builder) -> Result<Parts> {
    let (d, vocabulary) = (signed(config.embedding_dim), signed(config.vocabulary_size));
    let first = if N::NUMBER == 4 { 1e-3 } else { 1e-4 };
    let embedding = builder.add("emb.weight".into(), &[vocabulary, d], &Init::Uniform(first), Decay::No)?;
    let embedding_norm = Some(Norm::layer(builder, "blocks.0.ln0", d, NORM_EPSILON)?);
    let mut blocks: Vec<Box<dyn Block>> = Vec::new();
    for index in 0..config.blocks {
        blocks.push(Box::new(RwkvBlock::new(builder, config, index)?));
    }
    let norm = Norm::layer(builder, "ln_out", d, NORM_EPSILON)?;
    let gain = 0.5 * (vocabulary as f64 / d as f64).sqrt();
    let head = builder.values(|| orthogonal([vocabulary, d], gain))?;
    let output = builder.output("head.weight", &embedding, &[vocabulary, d], &head)?;
    Ok(Parts {
        embedding,
        biases: None,
        position_embedding: None,
        embedding_norm,
        blocks,
        norm,
        output,
        positional: false,
    })
}

/// A random matrix with orthogonal rows or columns, times `gain`.
fn orthogonal([rows, columns]: [i64; 2], gain: f64) -> Result<Vec<f32>> {
    let long = Tensor::f_randn([rows.max(columns), rows.min(columns)], (Kind::Float, Device::Cpu))?;
    let (q, r) = Tensor::f_linalg_qr(&long, "reduced")?;
    // The sign of R's diagonal makes the distribution uniform.
    let q = q * r.f_diagonal(0, 0, 1)?.f_sign()?;
    let matrix = if rows < columns { q.f_transpose(0, 1)? } else { q };
    Ok(Vec::try_from((matrix * gain).f_contiguous()?.f_view([-1])?)?)
}

/// A block's place among the others, from which first values follow.
#[derive(Clone, Copy)]
struct BlockDepth {
    /// 0 in the first block, 1 in the last.
    depth: f64,
    /// 1 in the first block, towards 0.
    height: f64,
    width: u64,
}

impl BlockDepth {
    fn new(index: u64, blocks: u64, width: u64) -> Self {
        let depth = index as f64 / (blocks.max(2) - 1) as f64;
        Self { depth, height: 1.0 - index as f64 / blocks as f64, width }
    }

    fn by_channel(self, function: impl Fn(f64) -> f64) -> Init {
        Init::Values((0..self.width).map(|channel| function(channel as f64) as f32).collect())
    }

    /// (i/d)^exponent.
    fn power(self, exponent: f64, more: f64, from_one: bool) -> Init {
        let d = self.width as f64;
        self.by_channel(|i| {
            let value = (i / d).powf(exponent) + more;
            if from_one { 1.0 - value } else { value }
        })
    }

    fn ratio(self, channel: f64) -> f64 {
        channel / (self.width.max(2) - 1) as f64
    }
}

#[derive(Debug)]
struct RwkvBlock {
    time_norm: Norm,
    time_mix: TimeMix,
    channel_norm: Norm,
    channel_mix: ChannelMix,
}

impl RwkvBlock {
    fn new<N: RwkvVersion>(builder: &mut Builder, config: &RwkvConfig<N>, index: u64) -> Result<Self> {
        let d = signed(config.embedding_dim);
        let place = BlockDepth::new(index, config.blocks, config.embedding_dim);
        let prefix = format!("blocks.{index}");
        let time_norm = Norm::layer(builder, &format!("{prefix}.ln1"), d, NORM_EPSILON)?;
        let channel_norm = Norm::layer(builder, &format!("{prefix}.ln2"), d, NORM_EPSILON)?;
        let time_mix = match N::NUMBER {
            4 => TimeMix::Four(Four::new(builder, &format!("{prefix}.att"), place)?),
            5 => TimeMix::Five(Five::new(builder, &format!("{prefix}.att"), place, config)?),
            _ => TimeMix::Six(Six::new(builder, &format!("{prefix}.att"), place, config)?),
        };
        let channel_mix = ChannelMix::new(builder, &format!("{prefix}.ffn"), place, config)?;
        Ok(Self { time_norm, time_mix, channel_norm, channel_mix })
    }
}

impl Block for RwkvBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let y_BTC = self.time_norm.apply(x_BTC)?;
        let (shift, time_last) = Shift::new(&y_BTC, call, TIME_SHIFT)?;
        let (mixed_BTC, mut state) = match &self.time_mix {
            TimeMix::Four(mix) => mix.forward(&shift, call)?,
            TimeMix::Five(mix) => mix.forward(&shift, call)?,
            TimeMix::Six(mix) => mix.forward(&shift, call)?,
        };
        let x_BTC = x_BTC + call.dropped(mixed_BTC, 0)?;
        let y_BTC = self.channel_norm.apply(&x_BTC)?;
        let (shift, channel_last) = Shift::new(&y_BTC, call, CHANNEL_SHIFT)?;
        let x_BTC = x_BTC + call.dropped(self.channel_mix.forward(&shift, call)?, 1)?;
        state.extend([(TIME_SHIFT, time_last), (CHANNEL_SHIFT, channel_last)]);
        Ok((x_BTC, BlockState::new(state)))
    }
}

/// A normed residual and what stands before its first token: what mixes are made of.
struct Shift<'a> {
    y_BTC: &'a Tensor,
    first_BC: Option<Tensor>,
    resets_BT: Option<&'a Tensor>,
    /// The type of the products that read the mixes.
    kind: Kind,
}

impl<'a> Shift<'a> {
    /// The shift, and the last token, `(B, C)`, which is the state `name`.
    fn new(y_BTC: &'a Tensor, call: &BlockCall<'a>, name: &'static str) -> Result<(Self, Tensor)> {
        let first_BC = call.state.map(|state| state.need(name)).transpose()?;
        let kind = call.precision.unwrap_or(y_BTC.kind());
        let last_BC = y_BTC.f_select(1, y_BTC.size()[1] - 1)?;
        Ok((Self { y_BTC, first_BC, resets_BT: call.resets_BT, kind }, last_BC))
    }

    /// Mixes by these shares of the token before, and what each token adds to them, `(M, B, T, C)`.
    fn mixes<const M: usize>(&self, shares: [&Tensor; M], own_MBTC: Option<&Tensor>) -> Result<[Tensor; M]> {
        let input = TokenShiftInput {
            y_BTC: self.y_BTC,
            first_BC: self.first_BC.as_ref(),
            own_MBTC,
            resets_BT: self.resets_BT,
            kind: self.kind,
        };
        Ok(token_shift(&input, shares)?)
    }

    /// Mixes by shares of the token at hand: y ⊙ μ + before ⊙ (1 − μ).
    fn mixes_of_present<const M: usize>(&self, present: [&Tensor; M]) -> Result<[Tensor; M]> {
        let before = present.map(|share| -share + 1.0);
        self.mixes(before.each_ref(), None)
    }
}

/// Names a module's parameters.
struct Adder<'a> {
    builder: &'a mut Builder,
    prefix: &'a str,
    /// Whether what is no matrix decays too.
    vectors: Decay,
    width: i64,
}

impl Adder<'_> {
    fn vector(&mut self, name: &str, init: &Init) -> Result<Tensor> {
        let shape = [1, 1, self.width];
        self.builder.add(format!("{}.{name}", self.prefix), &shape, init, self.vectors)
    }

    fn shaped(&mut self, name: &str, shape: &[i64], init: &Init) -> Result<Tensor> {
        self.builder.add(format!("{}.{name}", self.prefix), shape, init, self.vectors)
    }

    /// Orthogonal with a gain, zeros without one.
    fn matrix(&mut self, name: &str, shape: [i64; 2], gain: f64) -> Result<Tensor> {
        let init = match gain {
            0.0 => Init::Constant(0.0),
            _ => self.builder.values(|| orthogonal(shape, gain))?,
        };
        self.builder.add(format!("{}.{name}.weight", self.prefix), &shape, &init, Decay::Yes)
    }
}

fn adder<'a>(builder: &'a mut Builder, prefix: &'a str, place: BlockDepth, version: u64) -> Adder<'a> {
    let vectors = if version == 4 { Decay::Yes } else { Decay::No };
    Adder { builder, prefix, vectors, width: signed(place.width) }
}

#[derive(Debug)]
enum TimeMix {
    Four(Four),
    Five(Five),
    Six(Six),
}

#[derive(Debug)]
struct ChannelMix {
    /// Whether mixes weigh the token before.
    of_before: bool,
    mix_k: Tensor,
    mix_r: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
}

impl ChannelMix {
    fn new<N: RwkvVersion>(
        builder: &mut Builder,
        prefix: &str,
        place: BlockDepth,
        config: &RwkvConfig<N>,
    ) -> Result<Self> {
        let (d, f) = (signed(place.width), signed(config.feed_forward()));
        let of_before = N::NUMBER == 6;
        let mut add = adder(builder, prefix, place, N::NUMBER);
        let mix = place.power(place.height, 0.0, of_before);
        let [name_k, name_r] =
            if of_before { ["time_maa_k", "time_maa_r"] } else { ["time_mix_k", "time_mix_r"] };
        // v4neo scales by the root of the widening; the later models do not.
        let gain = if N::NUMBER == 4 { (f as f64 / d as f64).sqrt() } else { 1.0 };
        Ok(Self {
            of_before,
            mix_k: add.vector(name_k, &mix)?,
            mix_r: add.vector(name_r, &mix)?,
            key: add.matrix("key", [f, d], gain)?,
            receptance: add.matrix("receptance", [d, d], 0.0)?,
            value: add.matrix("value", [d, f], 0.0)?,
        })
    }

    fn forward(&self, shift: &Shift<'_>, call: &BlockCall<'_>) -> Result<Tensor> {
        let both = [&self.mix_k, &self.mix_r];
        let [mix_k, mix_r] =
            if self.of_before { shift.mixes(both, None)? } else { shift.mixes_of_present(both)? };
        let key_BTF = product(&mix_k, &self.key, call.precision)?.f_relu()?.f_square()?;
        let gate_BTC = product(&mix_r, &self.receptance, call.precision)?.f_sigmoid()?;
        Ok(gate_BTC * product(&key_BTF, &self.value, call.precision)?)
    }
}
