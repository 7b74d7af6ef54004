//! RetNet, GLA, HGRN and HGRN2: one shell with RMS norms and SwiGLU, and a mixer with a state of constant size.
//!
//! ```text
//! x + mixer(RMS(x))                     x + W_down (SiLU(gate) ⊙ up),  (gate, up) = W RMS(x)
//!
//! GLA     log a = log σ(W2 W1 y + b) / 16             o = core(q, k, v, log a)      W_o [RMS_head(o) ⊙ SiLU(W_g y)]
//! HGRN2   f = γ + (1 − γ) σ(W_f y), k = 1 − f         o = core(SiLU(W_q y), k, W_i y, log f)             W_o RMS(o)
//! HGRN    f likewise        h_t = f ⊙ h_{t-1} + SiLU(W_i y) ⊙ (1 − f)                  W_o [RMS(h) ⊙ SiLU(W_g y)]
//! RetNet  q, k with rotary positions, log a = log(1 − 2^(−5−h))                     W_o [RMS_head(o) ⊙ SiLU(W_g y)]
//! ```
//! The core is `xlstm_kernels::linear_attention`. Names, eps and initial values are those of flash-linear-attention
//! (36743f3f). γ of a layer comes from one table for the model: the cumulative softmax of `model.lower_bounds` over layers,
//! less its first row. Matrices decay but the embedding.

use tch::{Kind, Tensor};
use xlstm_kernels::cuda::{BetweenProducts, Recurrence};
use xlstm_kernels::gated_norm::{GatedNormInput, HeadNorm, gated_norm};
use xlstm_kernels::linear_attention::{
    LinearAttentionInput, LinearAttentionOptions, LogDecay, linear_attention,
};
use xlstm_kernels::scan::{LinearScanInput, ScanKernel, linear_scan};
use xlstm_kernels::transformer::swiglu_of_halves;
use xlstm_manifests::recipe::architecture::{
    GLA_GATE_RANK, GlaConfig, Hgrn2Config, HgrnConfig, RecurrentConfig, RecurrentMixer, RetnetConfig,
};

use super::attention::{Rotary, by_head};
use super::block::{Block, BlockCall, BlockState};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::{product, signed};
use crate::error::{Result, TrainError};

/// Standard deviation of embedding, output and feed-forward.
const DEVIATION: f64 = 0.02;
/// What the logarithm of GLA's gate is divided by.
const GATE_NORMALIZER: f64 = 16.0;
/// Base of RetNet's rotary angles.
pub(super) const ROTARY_BASE: f64 = 10_000.0;
/// Name of a mixer's state.
const MEMORY: &str = "memory";

impl Network for GlaConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts {
            width: self.embedding_dim,
            head: Some(self.embedding_dim / self.mixer_heads()),
        })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder, false, |builder, prefix, _| {
            let (d, heads) = (self.embedding_dim, self.mixer_heads());
            let matrix = |builder: &mut Builder, name, [outputs, inputs]: [u64; 2]| {
                xavier(builder, &format!("{prefix}.{name}.weight"), [outputs, inputs])
            };
            Ok(Box::new(Gla {
                heads: signed(heads),
                query: matrix(builder, "q_proj", [d / 2, d])?,
                key: matrix(builder, "k_proj", [d / 2, d])?,
                value: matrix(builder, "v_proj", [d, d])?,
                gate: matrix(builder, "g_proj", [d, d])?,
                decay_down: matrix(builder, "gk_proj.0", [GLA_GATE_RANK, d])?,
                decay_up: matrix(builder, "gk_proj.1", [d / 2, GLA_GATE_RANK])?,
                decay_bias: constant(builder, format!("{prefix}.gk_proj.1.bias"), d / 2, 0.0)?,
                norm: rms(builder, format!("{prefix}.g_norm_swish_gate"), d / heads, self.norm_epsilon)?,
                output: matrix(builder, "o_proj", [d, d])?,
            }))
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        let (d, heads) = (self.embedding_dim, self.mixer_heads());
        Some(Recurrence::LinearAttention { keys: d / 2 / heads, values: d / heads })
    }
}

impl Network for Hgrn2Config {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder, false, |builder, prefix, bound| {
            let d = self.embedding_dim;
            let matrix =
                |builder: &mut Builder, name| xavier(builder, &format!("{prefix}.{name}.weight"), [d, d]);
            Ok(Box::new(Hgrn2 {
                heads: signed(self.mixer_heads()),
                query: matrix(builder, "q_proj")?,
                forget: matrix(builder, "f_proj")?,
                input: matrix(builder, "i_proj")?,
                bound: bound.ok_or_else(no_bounds)?,
                norm: rms(builder, format!("{prefix}.g_norm"), d, self.norm_epsilon)?,
                output: matrix(builder, "o_proj")?,
            }))
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        let (d, heads) = (self.embedding_dim, self.mixer_heads());
        Some(Recurrence::LinearAttention { keys: d / heads, values: d / heads })
    }
}

impl Network for HgrnConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: Some(self.embedding_dim) })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder, false, |builder, prefix, bound| {
            let d = self.embedding_dim;
            let matrix =
                |builder: &mut Builder, name| xavier(builder, &format!("{prefix}.{name}.weight"), [d, d]);
            Ok(Box::new(Hgrn {
                input: matrix(builder, "i_proj")?,
                forget: matrix(builder, "f_proj")?,
                gate: matrix(builder, "g_proj")?,
                bound: bound.ok_or_else(no_bounds)?,
                norm: rms(builder, format!("{prefix}.g_norm"), d, self.norm_epsilon)?,
                swapped_norm: self.swapped_norm == Some(true),
                output: matrix(builder, "o_proj")?,
            }))
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        Some(Recurrence::Scan)
    }
}

impl Network for RetnetConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts {
            width: self.embedding_dim,
            head: Some(2 * self.embedding_dim / self.mixer_heads()),
        })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        build(self, builder, true, |builder, prefix, _| {
            let (d, heads) = (self.embedding_dim, self.mixer_heads());
            let matrix = |builder: &mut Builder, name, [outputs, inputs]: [u64; 2]| {
                xavier(builder, &format!("{prefix}.{name}.weight"), [outputs, inputs])
            };
            Ok(Box::new(Retention {
                heads: signed(heads),
                query: matrix(builder, "q_proj", [d, d])?,
                key: matrix(builder, "k_proj", [d, d])?,
                value: matrix(builder, "v_proj", [2 * d, d])?,
                gate: matrix(builder, "g_proj", [2 * d, d])?,
                norm: rms(builder, format!("{prefix}.g_norm_swish_gate"), 2 * d / heads, self.norm_epsilon)?,
                output: matrix(builder, "o_proj", [d, 2 * d])?,
            }))
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        let (d, heads) = (self.embedding_dim, self.mixer_heads());
        Some(Recurrence::LinearAttention { keys: d / heads, values: 2 * d / heads })
    }
}

fn no_bounds() -> TrainError {
    TrainError::Internal("expected lower bounds of the forget gates, found none".into())
}

/// Uniform by Xavier with gain 2^−2.5.
fn xavier(builder: &mut Builder, name: &str, [outputs, inputs]: [u64; 2]) -> Result<Tensor> {
    let bound = (6.0 / (outputs + inputs) as f64).sqrt() * 2f64.powf(-2.5);
    builder.add(name.into(), &[signed(outputs), signed(inputs)], &Init::Uniform(bound), Decay::Yes)
}

fn constant(builder: &mut Builder, name: String, width: u64, value: f64) -> Result<Tensor> {
    builder.add(name, &[signed(width)], &Init::Constant(value), Decay::No)
}

fn rms(builder: &mut Builder, name: String, width: u64, epsilon: f64) -> Result<Norm> {
    Ok(Norm::Rms { weight: constant(builder, format!("{name}.weight"), width, 1.0)?, epsilon })
}

/// The lower bounds of one layer: the table and the layer's number.
#[derive(Debug)]
struct Bound {
    table_LC: Tensor,
    layer: i64,
}

impl Bound {
    /// γ, `(C)`: zero in the first layer, `None` there.
    fn value(&self) -> Result<Option<Tensor>> {
        if self.layer == 0 {
            return Ok(None);
        }
        let shares_LC = self.table_LC.f_softmax(0, self.table_LC.kind())?;
        Ok(Some(shares_LC.f_narrow(0, 1, self.layer)?.f_sum_dim_intlist(0, false, None::<Kind>)?))
    }

    /// f and log f of pre-activations, which are not in bf16.
    fn forget(&self, pre_BTC: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some(bound_C) = self.value()? else {
            return Ok((pre_BTC.f_sigmoid()?, pre_BTC.f_log_sigmoid()?));
        };
        let forget_BTC = &bound_C + (-&bound_C + 1.0) * pre_BTC.f_sigmoid()?;
        let logarithm = forget_BTC.f_log()?;
        Ok((forget_BTC, logarithm))
    }
}

fn build<M: RecurrentMixer>(
    config: &RecurrentConfig<M>,
    builder: &mut Builder,
    positional: bool,
    mixer: impl Fn(&mut Builder, &str, Option<Bound>) -> Result<Box<dyn Mixer>>,
) -> Result<Parts> {
    let (d, f, epsilon) = (config.embedding_dim, config.feed_forward(), config.norm_epsilon);
    let (shape, init) = ([signed(config.vocabulary_size), signed(d)], Init::Normal(DEVIATION));
    let embedding = builder.add("model.embeddings.weight".into(), &shape, &init, Decay::No)?;
    let bounds = if M::LOWER_BOUNDS {
        let shape = [signed(config.blocks), signed(d)];
        Some(builder.add("model.lower_bounds".into(), &shape, &Init::Constant(0.0), Decay::No)?)
    } else {
        None
    };
    let last = Init::Normal(DEVIATION / (2.0 * config.blocks as f64).sqrt());
    let mut blocks: Vec<Box<dyn Block>> = Vec::new();
    for index in 0..config.blocks {
        let prefix = format!("model.layers.{index}");
        let bound =
            bounds.as_ref().map(|table| Bound { table_LC: table.shallow_clone(), layer: signed(index) });
        let name = |part: &str| format!("{prefix}.{part}");
        blocks.push(Box::new(RecurrentBlock {
            norm: rms(builder, name("attn_norm"), d, epsilon)?,
            mixer: mixer(builder, &name("attn"), bound)?,
            feed_norm: rms(builder, name("mlp_norm"), d, epsilon)?,
            gate_and_up: builder.add(
                name("mlp.gate_proj.weight"),
                &[signed(2 * f), signed(d)],
                &Init::Normal(DEVIATION),
                Decay::Yes,
            )?,
            down: builder.add(name("mlp.down_proj.weight"), &[signed(d), signed(f)], &last, Decay::Yes)?,
        }));
    }
    let norm = rms(builder, "model.norm".into(), d, epsilon)?;
    let output = builder.output("lm_head.weight", &embedding, &shape, &init)?;
    Ok(Parts {
        embedding,
        biases: None,
        position_embedding: None,
        embedding_norm: None,
        blocks,
        norm,
        output,
        positional,
    })
}

#[derive(Debug)]
struct RecurrentBlock {
    norm: Norm,
    mixer: Box<dyn Mixer>,
    feed_norm: Norm,
    gate_and_up: Tensor,
    down: Tensor,
}

impl Block for RecurrentBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let before = call.state.map(|state| state.need(MEMORY)).transpose()?;
        let (mixed_BTC, memory) =
            self.mixer.mix(&self.norm.for_products(x_BTC, call.precision)?, call, before.as_ref())?;
        let x_BTC = x_BTC + call.dropped(mixed_BTC, 0)?;
        let both_BTF = product(
            &self.feed_norm.for_products(&x_BTC, call.precision)?,
            &self.gate_and_up,
            call.precision,
        )?;
        let down_BTC = product(&swiglu_of_halves(&both_BTF)?, &self.down, call.precision)?;
        let x_BTC = x_BTC + call.dropped(down_BTC, 1)?;
        Ok((x_BTC, BlockState::new([(MEMORY, memory)])))
    }
}

/// What mixes time: its output for `y`, `(B, T, C)`, and its state afterwards.
trait Mixer: std::fmt::Debug + Send {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>, memory: Option<&Tensor>) -> Result<(Tensor, Tensor)>;
}

/// A norm of each head, gated: `RMS(o) ⊙ SiLU(gate)`, `(B, T, H·V)`.
fn gated(norm: &Norm, o_BTHV: &Tensor, gate_BTD: &Tensor) -> Result<Tensor> {
    let Norm::Rms { weight, epsilon } = norm else {
        return Err(TrainError::Internal("expected an RMS norm of heads".into()));
    };
    Ok(gated_norm(&GatedNormInput {
        o_BTHE: o_BTHV,
        weight,
        bias_D: None,
        gate_BTD,
        norm: HeadNorm::Rms,
        epsilon: *epsilon,
    })?)
}

/// The type of norms and gates: fp32, or fp64 where the model is.
pub(super) fn wide(tensor: &Tensor) -> Kind {
    if tensor.kind() == Kind::Double { Kind::Double } else { Kind::Float }
}

#[derive(Debug)]
struct Gla {
    heads: i64,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    decay_down: Tensor,
    decay_up: Tensor,
    decay_bias: Tensor,
    norm: Norm,
    output: Tensor,
}

impl Mixer for Gla {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>, memory: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let project = |weight: &Tensor| product(y_BTC, weight, call.precision);
        let head = |weight: &Tensor| by_head(&project(weight)?, self.heads);
        let rank_BTR = project(&self.decay_down)?;
        let pre_BTK = product(&rank_BTR, &self.decay_up, call.precision)?.f_to_kind(wide(y_BTC))?;
        let log_decay = (pre_BTK + &self.decay_bias).f_log_sigmoid()?.f_div_scalar(GATE_NORMALIZER)?;
        let q_BTHK = head(&self.query)?;
        let input = LinearAttentionInput {
            q_BTHK: &q_BTHK,
            k_BTHK: &head(&self.key)?,
            v_BTHV: &head(&self.value)?,
            log_decay: LogDecay::Token(&by_head(&log_decay, self.heads)?),
            bonus_HK: None,
            scale: scale(&q_BTHK),
            state_BHKV: memory,
            resets_BT: call.resets_BT,
        };
        let output = linear_attention(&input, &LinearAttentionOptions::default())?;
        let mixed = gated(&self.norm, &output.o_BTHV, &project(&self.gate)?)?;
        Ok((product(&mixed, &self.output, call.precision)?, output.state_BHKV))
    }
}

/// 1 / √K.
pub(super) fn scale(q_BTHK: &Tensor) -> f64 {
    (q_BTHK.size()[3] as f64).powf(-0.5)
}

#[derive(Debug)]
struct Hgrn2 {
    heads: i64,
    query: Tensor,
    forget: Tensor,
    input: Tensor,
    bound: Bound,
    norm: Norm,
    output: Tensor,
}

impl Mixer for Hgrn2 {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>, memory: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let project = |weight: &Tensor| product(y_BTC, weight, call.precision);
        let head = |tensor: &Tensor| by_head(tensor, self.heads);
        let (forget, logarithm) = self.bound.forget(&project(&self.forget)?.f_to_kind(wide(y_BTC))?)?;
        let q_BTHK = head(&project(&self.query)?.f_silu()?)?;
        let input = LinearAttentionInput {
            q_BTHK: &q_BTHK,
            k_BTHK: &head(&(-forget + 1.0).f_to_kind(q_BTHK.kind())?)?,
            v_BTHV: &head(&project(&self.input)?)?,
            log_decay: LogDecay::Token(&head(&logarithm)?),
            bonus_HK: None,
            scale: scale(&q_BTHK),
            state_BHKV: memory,
            resets_BT: call.resets_BT,
        };
        let output = linear_attention(&input, &LinearAttentionOptions::default())?;
        let normal = self.norm.apply(&output.o_BTHV.f_flatten(2, 3)?.f_to_kind(wide(y_BTC))?)?;
        Ok((product(&normal, &self.output, call.precision)?, output.state_BHKV))
    }
}

#[derive(Debug)]
struct Hgrn {
    input: Tensor,
    forget: Tensor,
    gate: Tensor,
    bound: Bound,
    norm: Norm,
    swapped_norm: bool,
    output: Tensor,
}

impl Mixer for Hgrn {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>, memory: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let kind = wide(y_BTC);
        let project = |weight: &Tensor| product(y_BTC, weight, call.precision);
        let (forget, _) = self.bound.forget(&project(&self.forget)?.f_to_kind(kind)?)?;
        let x_BTD = project(&self.input)?.f_silu()?.f_to_kind(kind)? * (-&forget + 1.0);
        let input = LinearScanInput {
            decay_BTD: &forget,
            x_BTD: &x_BTD,
            state_BD: memory,
            resets_BT: call.resets_BT,
        };
        let output = linear_scan(&input, ScanKernel::Auto)?;
        let gate_BTD = project(&self.gate)?;
        let mixed = if self.swapped_norm {
            self.norm.apply(&gate_BTD.f_to_kind(kind)?)? * output.h_BTD.f_silu()?
        } else {
            gated(&self.norm, &output.h_BTD.f_unsqueeze(2)?, &gate_BTD)?
        };
        Ok((product(&mixed, &self.output, call.precision)?, output.state_BD))
    }
}

#[derive(Debug)]
struct Retention {
    heads: i64,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: Norm,
    output: Tensor,
}

impl Mixer for Retention {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>, memory: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let positions_BT = call
            .positions_BT
            .ok_or_else(|| TrainError::Internal("expected positions for retention, found none".into()))?;
        let project = |weight: &Tensor| product(y_BTC, weight, call.precision);
        let head = |weight: &Tensor| by_head(&project(weight)?, self.heads);
        let (q_BTHK, k_BTHK) = (head(&self.query)?, head(&self.key)?);
        let rotary = Rotary::new(positions_BT, q_BTHK.size()[3], ROTARY_BASE, y_BTC.kind())?;
        let input = LinearAttentionInput {
            q_BTHK: &rotary.turn(&q_BTHK)?,
            k_BTHK: &rotary.turn(&k_BTHK)?,
            v_BTHV: &head(&self.value)?,
            log_decay: LogDecay::Head(&retention_decays(self.heads, y_BTC)?),
            bonus_HK: None,
            scale: scale(&q_BTHK),
            state_BHKV: memory,
            resets_BT: call.resets_BT,
        };
        let output = linear_attention(&input, &LinearAttentionOptions::default())?;
        let mixed = gated(&self.norm, &output.o_BTHV, &project(&self.gate)?)?;
        Ok((product(&mixed, &self.output, call.precision)?, output.state_BHKV))
    }
}

/// log(1 − 2^(−5−h)) of each head.
pub(super) fn retention_decays(heads: i64, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f64> = (0..heads).map(|head| (-(2f64.powf(-5.0 - head as f64))).ln_1p()).collect();
    Ok(Tensor::f_from_slice(&values)?.f_to_kind(wide(like))?.f_to_device(like.device())?)
}
