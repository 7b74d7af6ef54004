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

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};
use xlstm_kernels::linear;
use xlstm_kernels::long_convolution::{LongConvolutionInput, long_convolution};
use xlstm_manifests::recipe::architecture::{H3Config, HyenaConfig};

use super::block::{Block, BlockCall, BlockState, NamedTensors};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init, linspace};
use super::signed;
use crate::error::Result;

/// Epsilon of all norms.
const NORM_EPSILON: f64 = 1e-5;
/// Standard deviation of the matrices' first values.
const DEVIATION: f64 = 0.02;
/// Taps of Hyena's short convolution.
const SHORT_TAPS: i64 = 3;
/// Steps of H3's filter that come from one power of each mode.
const FILTER_BLOCK: i64 = 64;
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
        let table = |builder: &mut Builder, name: &str, decay| {
            builder.add(name.into(), &[v, d], &Init::Normal(DEVIATION), decay)
        };
        let embedding = table(builder, "backbone.embeddings.word_embeddings.weight", Decay::No)?;
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
        let output = table(builder, "lm_head.weight", Decay::Yes)?;
        let (position_embedding, embedding_norm) = (None, None);
        Ok(Parts { embedding, position_embedding, embedding_norm, blocks, norm, output, positional: false })
    }
}

impl Network for H3Config {
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
        let (mixed_BTC, state) = self.mixer.mix(&self.norm.apply(x_BTC)?, call)?;
        let x_BTC = x_BTC + mixed_BTC;
        let up_BTF = self.up.apply(&self.feed_norm.apply(&x_BTC)?, call)?.f_gelu("tanh")?;
        Ok((x_BTC + self.down.apply(&up_BTF, call)?, BlockState::new(state)))
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

#[derive(Debug)]
struct H3 {
    query: Map,
    key: Map,
    value: Map,
    output: Map,
    shift_b: Tensor,
    shift_c: Tensor,
    shift_skip: Tensor,
    system_b: Tensor,
    system_c: Tensor,
    log_step: Tensor,
    inverse_real: Tensor,
    imaginary: Tensor,
    skip: Tensor,
}

impl H3 {
    fn new(builder: &mut Builder, config: &H3Config, prefix: &str) -> Result<Self> {
        let (d, n) = (signed(config.embedding_dim), signed(config.state_dim));
        let modes = n / 2;
        let name = |part: &str| format!("{prefix}.{part}");
        let query = Map::new(builder, &name("q_proj"), [d, d], DEVIATION)?;
        let key = Map::new(builder, &name("k_proj"), [d, d], DEVIATION)?;
        let value = Map::new(builder, &name("v_proj"), [d, d], DEVIATION)?;
        let output = Map::new(builder, &name("output_linear"), [d, d], DEVIATION)?;
        let mut add =
            |part: &str, shape: &[i64], init: &Init| builder.add(name(part), shape, init, Decay::No);
        let by_channel = |values: Vec<f32>| Init::Values(values.repeat(usize::try_from(d).unwrap_or(0)));
        let first_tap = by_channel((0..n).map(|tap| if tap == 0 { 1.0 } else { 0.0 }).collect());
        let ones = by_channel((0..modes).flat_map(|_| [1.0, 0.0]).collect());
        let frequencies = by_channel((0..modes).map(|mode| (PI * mode as f64) as f32).collect());
        Ok(Self {
            query,
            key,
            value,
            output,
            shift_skip: add("ssm_k_D", &[d], &Init::Normal(1.0))?,
            shift_c: add("ssm_k_kernel.kernel.C", &[1, d, n], &Init::Uniform((n as f64).powf(-0.5)))?,
            shift_b: add("ssm_k_kernel.kernel.B", &[d, n], &first_tap)?,
            skip: add("D", &[d], &Init::Normal(1.0))?,
            system_c: add("kernel.kernel.C", &[1, d, modes, 2], &Init::Normal(0.5_f64.sqrt()))?,
            log_step: add("kernel.kernel.log_dt", &[d], &Init::Values(first_log_steps(d)?))?,
            system_b: add("kernel.kernel.B", &[d, modes, 2], &ones)?,
            inverse_real: add("kernel.kernel.inv_A_real", &[d, modes], &Init::Constant(0.5_f64.ln()))?,
            imaginary: add("kernel.kernel.A_imag", &[d, modes], &frequencies)?,
        })
    }

    /// s, `(C, N)`: the correlation of C with B.
    fn shift(&self) -> Result<Tensor> {
        let taps = self.shift_b.size()[1];
        let spectrum = |tensor: &Tensor| tensor.f_fft_rfft(2 * taps, -1, "backward");
        let product = spectrum(&self.shift_c.f_squeeze_dim(0)?)? * spectrum(&self.shift_b)?.f_conj()?;
        Ok(product.f_fft_irfft(2 * taps, -1, "backward")?.f_narrow(1, 0, taps)?)
    }

    /// K, `(C, L)` for L steps: λˡ = λ^(64 a) λ^b makes it a product of two small matrices for each channel.
    fn filter(&self, length: i64) -> Result<Tensor> {
        let exact = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
        let step = exact(&self.log_step)?.f_exp()?.f_unsqueeze(-1)?;
        // z = Δ A / 2, λ = (1 + z) / (1 − z).
        let real = exact(&self.inverse_real)?.f_exp()?.f_neg()? * &step * 0.5;
        let imaginary = exact(&self.imaginary)? * &step * 0.5;
        let (plus, minus) = (&real + 1.0, -&real + 1.0);
        let square = imaginary.f_square()?;
        let below = minus.f_square()? + &square;
        let log_radius = ((plus.f_square()? + square) / &below).f_log()? * 0.5;
        let angle = imaginary.f_atan2(&plus)? + imaginary.f_atan2(&minus)?;
        // c = B C Δ / (1 − z).
        let part = |tensor: &Tensor, index: i64| exact(&tensor.f_select(-1, index)?);
        let (b, c) = ([part(&self.system_b, 0)?, part(&self.system_b, 1)?], self.system_c.f_squeeze_dim(0)?);
        let c = [part(&c, 0)?, part(&c, 1)?];
        let product = [&b[0] * &c[0] - &b[1] * &c[1], &b[0] * &c[1] + &b[1] * &c[0]];
        let scale = step / below;
        let weight = [
            (&product[0] * &minus - &product[1] * &imaginary) * &scale,
            (&product[0] * &imaginary + &product[1] * &minus) * &scale,
        ];
        let power = |exponent_1S: &Tensor| -> Result<[Tensor; 2]> {
            let radius = (log_radius.f_unsqueeze(-1)? * exponent_1S).f_exp()?;
            let angle = angle.f_unsqueeze(-1)? * exponent_1S;
            Ok([&radius * angle.f_cos()?, radius * angle.f_sin()?])
        };
        let options = (Kind::Double, self.log_step.device());
        let blocks = (length + FILTER_BLOCK - 1) / FILTER_BLOCK;
        let far = power(&(Tensor::f_arange(blocks, options)? * FILTER_BLOCK as f64))?;
        let near = power(&Tensor::f_arange(FILTER_BLOCK, options)?)?;
        let weight = [weight[0].f_unsqueeze(-1)?, weight[1].f_unsqueeze(-1)?];
        let far = [&weight[0] * &far[0] - &weight[1] * &far[1], &weight[0] * &far[1] + &weight[1] * &far[0]];
        let turned = |tensor: &Tensor| tensor.f_transpose(1, 2);
        let filter = turned(&far[0])?.f_matmul(&near[0])? - turned(&far[1])?.f_matmul(&near[1])?;
        let filter = filter.f_flatten(1, 2)?.f_narrow(1, 0, length)? * 2.0;
        Ok(filter.f_to_kind(self.log_step.kind())?)
    }
}

/// Logarithms of step sizes, even between those of 0.001 and 0.1.
fn first_log_steps(count: i64) -> Result<Vec<f32>> {
    let (low, high) = (1e-3_f64.ln(), 0.1_f64.ln());
    let values = Tensor::f_rand([count], (Kind::Float, Device::Cpu))? * (high - low) + low;
    Ok(Vec::try_from(values)?)
}

impl Mixer for H3 {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)> {
        let kind = y_BTC.kind();
        let q_BTC = self.query.apply(y_BTC, call)?;
        let k_BTC = self.key.apply(y_BTC, call)?.f_to_kind(kind)?;
        let v_BTC = self.value.apply(y_BTC, call)?;
        let keys = Inputs::new(&k_BTC, call, SHIFT)?;
        let shifted_BTC = keys.convolve(&k_BTC, &self.shift()?, &self.shift_skip, call)?;
        let u_BTC = shifted_BTC * v_BTC;
        let inputs = Inputs::new(&u_BTC, call, INPUTS[0])?;
        let long_BTC = inputs.convolve(&u_BTC, &self.filter(inputs.length())?, &self.skip, call)?;
        let mixed = self.output.apply(&(q_BTC * long_BTC), call)?;
        let shifted = keys.newest(self.shift_b.size()[1] - 1)?;
        Ok((mixed, vec![(SHIFT, shifted), (INPUTS[0], inputs.next_BSC)]))
    }
}

#[derive(Debug)]
struct Hyena {
    order: i64,
    input: Map,
    output: Map,
    short_weight: Tensor,
    short_bias: Tensor,
    skip: Tensor,
    features: Tensor,
    frequency: Tensor,
    first: Map,
    inner: Vec<Map>,
    last: Tensor,
    decays: Vec<f32>,
}

impl Hyena {
    fn new(builder: &mut Builder, config: &HyenaConfig, prefix: &str, last: f64) -> Result<Self> {
        let (d, order) = (signed(config.embedding_dim), signed(config.order));
        let (w, e) = (signed(config.filter_dim), signed(config.position_features));
        let (channels, filters) = ((order + 1) * d, (order - 1) * d);
        let name = |part: &str| format!("{prefix}.{part}");
        let input = Map::new(builder, &name("in_proj"), [channels, d], DEVIATION)?;
        let output = Map::new(builder, &name("out_proj"), [d, d], last)?;
        let short = Init::Uniform((SHORT_TAPS as f64).powf(-0.5));
        let shape = [channels, 1, SHORT_TAPS];
        let short_weight = builder.add(name("short_filter.weight"), &shape, &short, Decay::Yes)?;
        let short_bias = builder.add(name("short_filter.bias"), &[channels], &short, Decay::No)?;
        let z = builder.values(|| Ok(position_features(config)))?;
        let mut add = |part: &str, shape: &[i64], init: &Init| {
            builder.add(name(&format!("filter_fn.{part}")), shape, init, Decay::No)
        };
        let skip = add("bias", &[filters], &Init::Normal(1.0))?;
        let features = add("pos_emb.z", &[1, signed(config.positions), e], &z)?;
        let mut map = |index: u64, shape: [i64; 2]| -> Result<Map> {
            let part = |kind: &str| format!("implicit_filter.{index}.{kind}");
            Ok(Map {
                weight_OI: add(&part("weight"), &shape, &Init::Normal(DEVIATION))?,
                bias_O: add(&part("bias"), &[shape[0]], &Init::Constant(0.0))?,
            })
        };
        let first = map(0, [w, e])?;
        let inner =
            (1..=config.filter_layers).map(|layer| map(2 * layer, [w, w])).collect::<Result<Vec<_>>>()?;
        let frequency = add("implicit_filter.1.freq", &[1, w], &Init::Constant(config.sine_frequency))?;
        let end = format!("implicit_filter.{}.weight", 2 * config.filter_layers + 2);
        let last = add(&end, &[filters, w], &Init::Normal(DEVIATION))?;
        let count = (config.order - 1) * config.embedding_dim;
        let decays = linspace(0.01_f64.ln() / 1.5, 0.01_f64.ln() / 0.3, count);
        Ok(Self {
            order,
            input,
            output,
            short_weight,
            short_bias,
            skip,
            features,
            frequency,
            first,
            inner,
            last,
            decays,
        })
    }

    /// All filters, `(C, o − 1, L)`, for L positions.
    fn filters(&self, length: i64) -> Result<Tensor> {
        let exact = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
        let device = self.features.device();
        let frequency = exact(&self.frequency)?;
        let layer = |x: &Tensor, map: &Map| -> Result<Tensor> {
            let (weight_OI, bias_O) = (exact(&map.weight_OI)?, exact(&map.bias_O)?);
            Ok((x.f_linear(&weight_OI, Some(&bias_O))? * &frequency).f_sin()?)
        };
        let z_LE = exact(&self.features.f_select(0, 0)?.f_narrow(0, 0, length)?)?;
        let mut hidden = layer(&z_LE, &self.first)?;
        for map in &self.inner {
            hidden = layer(&hidden, map)?;
        }
        let filters_LR = hidden.f_linear(&exact(&self.last)?, None::<&Tensor>)?;
        let positions = self.features.size()[1];
        // A constant in fp32 there.
        let time_L1 = Tensor::f_arange(length, (Kind::Double, device))?
            .f_div_scalar((positions - 1) as f64)?
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(-1)?;
        let time_L1 = exact(&time_L1)?;
        let decays_R = exact(&Tensor::f_from_slice(&self.decays)?.f_to_device(device)?)?;
        let filters_LR = filters_LR * (time_L1 * decays_R.f_abs()?.f_neg()?).f_exp()?;
        let filters_RL = filters_LR.f_to_kind(self.features.kind())?.f_transpose(0, 1)?.f_contiguous()?;
        Ok(filters_RL.f_view([-1, self.order - 1, length])?)
    }

    /// The convolution of three taps, `(B, T, C)`.
    fn short(&self, inputs: &Inputs, p_BTC: &Tensor, call: &BlockCall<'_>) -> Result<Tensor> {
        let time = p_BTC.size()[1];
        let padded_BPC = match &inputs.past_BPC {
            Some(past_BPC) => {
                let all = Tensor::f_cat(&[&past_BPC.f_to_kind(p_BTC.kind())?, p_BTC], 1)?;
                all.f_constant_pad_nd([0, 0, SHORT_TAPS - 1, 0])?
            }
            None => p_BTC.f_constant_pad_nd([0, 0, SHORT_TAPS - 1, 0])?,
        };
        let from = padded_BPC.size()[1] - time - (SHORT_TAPS - 1);
        let documents = match call.resets_BT {
            Some(resets_BT) => {
                let numbers = resets_BT.f_to_kind(Kind::Int64)?.f_cumsum(1, None::<Kind>)?;
                Some(numbers.f_constant_pad_nd([SHORT_TAPS - 1, 0])?)
            }
            None => None,
        };
        let mut sum_BTC = self.short_bias.shallow_clone();
        for tap in 0..SHORT_TAPS {
            let mut shifted = padded_BPC.f_narrow(1, from + tap, time)?;
            if let Some(documents) = &documents {
                let own = documents.f_narrow(1, SHORT_TAPS - 1, time)?;
                let other = documents.f_narrow(1, tap, time)?.f_ne_tensor(&own)?;
                shifted = shifted.f_masked_fill(&other.f_unsqueeze(-1)?, 0.0)?;
            }
            sum_BTC = sum_BTC.f_add(&(shifted * self.short_weight.f_select(2, tap)?.f_squeeze_dim(1)?))?;
        }
        Ok(sum_BTC)
    }
}

/// z: time, and cosines and negative sines of frequencies from 1e-4 up.
fn position_features(config: &HyenaConfig) -> Vec<f32> {
    let positions = config.positions;
    let bands = (config.position_features - 1) / 2;
    let frequencies = linspace(1e-4, (bands - 1) as f64, bands);
    let frequencies = if bands == 1 { vec![1e-4] } else { frequencies };
    (0..positions)
        .flat_map(|position| {
            let time = position as f64 / (positions - 1) as f64;
            let phases: Vec<f64> = frequencies
                .iter()
                .map(|frequency| 2.0 * PI * position as f64 * f64::from(*frequency) / positions as f64)
                .collect();
            let cosines: Vec<f64> = phases.iter().map(|phase| phase.cos()).collect();
            let sines = phases.into_iter().map(|phase| -phase.sin());
            std::iter::once(time).chain(cosines).chain(sines).map(|value| value as f32).collect::<Vec<f32>>()
        })
        .collect()
}

impl Mixer for Hyena {
    fn mix(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)> {
        let projected = self.input.apply(y_BTC, call)?.f_to_kind(y_BTC.kind())?;
        let short = Inputs::new(&projected, call, SHIFT)?;
        let parts = self.short(&short, &projected, call)?.f_chunk(self.order + 1, -1)?;
        let Some((v, gates)) = parts.split_last() else {
            return Err(crate::error::TrainError::Internal("expected order + 1 projections".into()));
        };
        let mut v_BTC = v.shallow_clone();
        let mut state = vec![(SHIFT, short.newest(SHORT_TAPS - 1)?)];
        let skips = self.skip.f_view([-1, self.order - 1])?;
        let mut filters = None;
        for (index, (gate, name)) in (0_i64..).zip(gates.iter().skip(1).rev().zip(INPUTS)) {
            let u_BTC = &v_BTC * gate;
            let inputs = Inputs::new(&u_BTC, call, name)?;
            if filters.is_none() {
                filters = Some(self.filters(inputs.length())?);
            }
            let Some(filters) = &filters else { continue };
            let filter_CL = filters.f_select(1, index)?;
            v_BTC = inputs.convolve(&u_BTC, &filter_CL, &skips.f_select(1, index)?, call)?;
            state.push((name, inputs.next_BSC));
        }
        let gated = match gates.first() {
            Some(gate) => v_BTC * gate,
            None => v_BTC,
        };
        Ok((self.output.apply(&gated, call)?, state))
    }
}
