//! sLSTM blocks, post up-projection (figure 10).
//!
//! ```text
//! y = LN(x);  c = SiLU(conv(y));  i, f from c;  z, o from y;  x + GroupNorm(sLSTM(i, f, z, o))
//! x + W_down(GELU(g) ⊙ u),  (g, u) = W_up LN(x)
//! ```
//! Two names of the official package are swapped for compatibility with old weights: `fgate.weight` feeds the input
//! gate and `igate.weight` the forget gate. Without a convolution, c = y. Recurrent weights and biases are kept in
//! the `vanilla` layout; see `xlstm_kernels::slstm` for both.

use tch::{Kind, Tensor};
use xlstm_kernels::slstm::{self, SlstmInput, SlstmLayout, SlstmOptions};
use xlstm_kernels::{conv, cuda, gates, norm};
use xlstm_manifests::recipe::{ForgetGate, GateWeights, ModelConfig, RecurrentInit, SlstmBias, WeightInit};

use super::parameters::{Builder, Init, linspace, small_init, wang_init};
use super::state::{BlockState, CellState};
use super::{Call, NORM_EPSILON, product, signed};
use crate::error::Result;

/// An sLSTM block with its feed-forward.
#[derive(Debug)]
pub(super) struct SlstmBlock {
    norm: Tensor,
    convolution: Option<(Tensor, Tensor)>,
    /// Input weights by what they feed: input gate, forget gate, cell input, output gate.
    weights: [Tensor; 4],
    recurrent: Tensor,
    bias: Tensor,
    group_norm: Tensor,
    feed_norm: Tensor,
    feed_up: Tensor,
    feed_down: Tensor,
    heads: i64,
    gradient_clip: Option<f64>,
    exponential_forget: bool,
}

impl SlstmBlock {
    pub(super) fn new(builder: &mut Builder, model: &ModelConfig, prefix: &str, index: u64) -> Result<Self> {
        let (config, d) = (&model.slstm, model.embedding_dim);
        let (width, heads) = (signed(d), signed(config.heads));
        let zero = Init::Constant(0.0);
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let norm = builder.add(format!("{prefix}.xlstm_norm.weight"), &[width], &zero)?;
        let convolution = super::convolution(builder, &name("conv1d"), width, config.convolution)?;
        let (shape, fan_in) = match config.gate_weights {
            GateWeights::Headwise => (vec![heads, width / heads, width / heads], d / config.heads),
            GateWeights::Dense => (vec![width, width], d),
        };
        let init = match config.weight_init {
            WeightInit::Small => small_init(d),
            WeightInit::Standard => Init::Uniform((fan_in as f64).powf(-0.5)),
        };
        let mut gate = |part: &str| builder.add(name(part), &shape, &init);
        let weights = [
            gate("fgate.weight")?, // the input gate: see above
            gate("igate.weight")?, // the forget gate
            gate("zgate.weight")?,
            gate("ogate.weight")?,
        ];
        let recurrent_init = match config.recurrent_init {
            RecurrentInit::Zeros => zero.clone(),
            RecurrentInit::Standard => Init::Uniform((d as f64).powf(-0.5)),
        };
        let recurrent_shape = [heads, 4 * (width / heads), width / heads];
        let recurrent =
            builder.add(name("slstm_cell._recurrent_kernel_"), &recurrent_shape, &recurrent_init)?;
        let bias = builder.add(name("slstm_cell._bias_"), &[4 * width], &bias_init(model, index))?;
        let group_norm = builder.add(name("group_norm.weight"), &[width], &zero)?;
        let feed = signed(model.feed_forward_dim());
        let feed_norm = builder.add(format!("{prefix}.ffn_norm.weight"), &[width], &zero)?;
        let feed_up =
            builder.add(format!("{prefix}.ffn.proj_up.weight"), &[2 * feed, width], &small_init(d))?;
        let down = wang_init(d, model.blocks);
        let feed_down = builder.add(format!("{prefix}.ffn.proj_down.weight"), &[width, feed], &down)?;
        let clip = config.recurrent_gradient_clip;
        let gradient_clip = (clip > 0.0).then_some(clip);
        Ok(Self {
            norm,
            convolution,
            weights,
            recurrent,
            bias,
            group_norm,
            feed_norm,
            feed_up,
            feed_down,
            heads,
            gradient_clip,
            exponential_forget: config.forget_gate == ForgetGate::Exponential,
        })
    }

    pub(super) fn forward(&self, x_BTD: &Tensor, call: &Call<'_>) -> Result<(Tensor, BlockState)> {
        let y_BTD = norm::layer_norm(x_BTD, &self.norm, NORM_EPSILON)?;
        let (c_BTD, window) = self.convolve(&y_BTD, call)?;
        let size = y_BTD.size();
        let (batch, time, width) = (size[0], size[1], size[2]);
        let inputs = [&c_BTD, &c_BTD, &y_BTD, &y_BTD];
        let mut raw = Vec::with_capacity(4);
        for (input, weight) in inputs.into_iter().zip(&self.weights) {
            raw.push(match weight.dim() {
                2 => product(input, weight, call.precision)?,
                _ => gates::block_linear(input, weight)?,
            });
        }
        let x_BTGHE = Tensor::f_stack(&raw, 2)?.f_view([batch, time, 4, self.heads, width / self.heads])?;
        let state = call.state.and_then(|state| match &state.cell {
            CellState::Slstm(state) => Some(state),
            CellState::Mlstm(_) => None,
        });
        let input = SlstmInput {
            x_BTGHE: &x_BTGHE,
            recurrent_HEGE: &slstm::canonical_recurrent(&self.recurrent, SlstmLayout::Vanilla)?,
            bias_GHE: &slstm::canonical_bias(&self.bias, self.heads, SlstmLayout::Vanilla)?,
            state,
            resets_BT: call.resets,
        };
        let options = SlstmOptions {
            gradient_clip: self.gradient_clip,
            exponential_forget: self.exponential_forget,
            ..SlstmOptions::default()
        };
        let output = slstm::slstm(&input, &options)?;
        let x_BTD = x_BTD + norm::head_norm(&output.y_BTHE, &self.group_norm, NORM_EPSILON)?;
        let y_BTD = norm::layer_norm(&x_BTD, &self.feed_norm, NORM_EPSILON)?;
        let gated_BTF = gates::gelu_gate(&product(&y_BTD, &self.feed_up, call.precision)?)?;
        let x_BTD = x_BTD + product(&gated_BTF, &self.feed_down, call.precision)?;
        Ok((x_BTD, BlockState { convolution: window, cell: CellState::Slstm(output.state) }))
    }

    /// Whether the card's kernels know this block's sizes.
    pub(super) fn fits_card(&self) -> Result<bool> {
        let width = self.norm.size()[0];
        let convolved = self.convolution.as_ref().is_none_or(|(taps, _)| taps.size()[2] == 4);
        let feed = self.feed_up.size()[0] / 2;
        let sizes = convolved && feed % 8 == 0 && self.gradient_clip.is_none() && !self.exponential_forget;
        Ok(sizes && cuda::slstm_fits(width / self.heads, &self.norm)?)
    }

    /// By the card's kernels, in bf16; as `MlstmBlock::forward_card`.
    pub(super) fn forward_card(
        &self,
        x_BTD: &Tensor,
        delta_BTD: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let precision = Some(Kind::BFloat16);
        let (x_BTD, y_BTD) = cuda::add_layer_norm(x_BTD, delta_BTD, &self.norm, NORM_EPSILON)?;
        let c_BTD = match &self.convolution {
            Some((weight, bias)) => cuda::conv_silu(&conv::ConvInput {
                x_BTD: &y_BTD,
                weight_D1W: weight,
                bias_D: Some(bias),
                state: None,
                resets_BT: None,
            })?,
            None => y_BTD.shallow_clone(),
        };
        let size = y_BTD.size();
        let (batch, time, width) = (size[0], size[1], size[2]);
        let unit = width / self.heads;
        let mut raw = Vec::with_capacity(4);
        for (input, weight) in [&c_BTD, &c_BTD, &y_BTD, &y_BTD].into_iter().zip(&self.weights) {
            raw.push(match weight.dim() {
                2 => product(input, weight, precision)?.f_view([batch * time, self.heads, unit])?,
                _ => {
                    let input_HNE = input.f_view([batch * time, self.heads, unit])?.f_transpose(0, 1)?;
                    let weight_HEF = weight.f_to_kind(Kind::BFloat16)?.f_transpose(1, 2)?;
                    input_HNE.f_bmm(&weight_HEF)?.f_transpose(0, 1)?
                }
            });
        }
        let x_NGHE = Tensor::f_stack(&raw, 1)?;
        // The bias is added in fp32, and the sum rounded once.
        let bias_GHE = slstm::canonical_bias(&self.bias, self.heads, SlstmLayout::Vanilla)?;
        let x_NGHE = (x_NGHE + bias_GHE).f_to_kind(Kind::BFloat16)?;
        let recurrent_HEGE = slstm::canonical_recurrent(&self.recurrent, SlstmLayout::Vanilla)?;
        let y_BTHE = cuda::slstm(&x_NGHE.f_view([batch, time, 4, self.heads, unit])?, &recurrent_HEGE)?;
        let s_BTD = cuda::head_norm(&y_BTHE, &self.group_norm, NORM_EPSILON)?;
        let (x_BTD, y_BTD) = cuda::add_layer_norm(&x_BTD, Some(&s_BTD), &self.feed_norm, NORM_EPSILON)?;
        let gated_BTF = cuda::gelu_gate(&product(&y_BTD, &self.feed_up, precision)?)?;
        Ok((x_BTD, product(&gated_BTF, &self.feed_down, precision)?))
    }

    fn convolve(&self, y_BTD: &Tensor, call: &Call<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let Some((weight, bias)) = &self.convolution else { return Ok((y_BTD.shallow_clone(), None)) };
        let output = conv::causal_conv_silu(&conv::ConvInput {
            x_BTD: y_BTD,
            weight_D1W: weight,
            bias_D: Some(bias),
            state: call.state.and_then(|state| state.convolution.as_ref()),
            resets_BT: call.resets,
        })?;
        Ok((output.y_BTD, Some(output.state)))
    }
}

/// First values of the biases in the vanilla layout, `[gate][head][unit]`, gates in the order i, f, z, o.
fn bias_init(model: &ModelConfig, index: u64) -> Init {
    let (heads, d) = (model.slstm.heads, model.embedding_dim);
    let unit = d / heads;
    let forget = match model.slstm.bias_init {
        SlstmBias::Zeros => return Init::Constant(0.0),
        SlstmBias::Standard => return Init::Uniform((d as f64).powf(-0.5)),
        SlstmBias::SmallInit => linspace(3.0, 6.0, unit),
        SlstmBias::PowerlawBlockdependent => {
            let depth = if model.blocks > 1 { index as f64 / (model.blocks - 1) as f64 } else { 0.0 };
            let last = unit.saturating_sub(1).max(1) as f64;
            let value = |j: u64| -(-5.0 + 12.0 * (j as f64 / last).powf(0.3 + 1.3 * depth));
            (0..unit).map(|j| value(j) as f32).collect()
        }
    };
    let mut values = vec![0.0; 4 * d as usize];
    for (slot, value) in values[d as usize..2 * d as usize].iter_mut().zip(forget.iter().cycle()) {
        *slot = *value;
    }
    Init::Values(values)
}
