//! Time mix of the three versions: wkv of RWKV-4, linear attention of RWKV-5 and RWKV-6.

use tch::Tensor;
use xlstm_kernels::gated_norm::{GatedNormInput, HeadNorm, gated_norm};
use xlstm_kernels::linear_attention::{
    LinearAttentionInput, LinearAttentionOptions, LogDecay, linear_attention,
};
use xlstm_kernels::scan::{ScanKernel, WkvInput, WkvState, wkv};
use xlstm_manifests::recipe::architecture::{RWKV_DECAY_RANK, RWKV_MIX_RANK, RwkvConfig, RwkvVersion};

use super::{Adder, BlockDepth, NORM_EPSILON, Shift, adder};
use crate::error::Result;
use crate::model::attention::by_head;
use crate::model::block::{BlockCall, NamedTensors};
use crate::model::parameters::{Builder, Init};
use crate::model::recurrent::wide;
use crate::model::{product, signed};

/// What the core's result is divided by before its norm.
const HEAD_DIVISOR: f64 = 8.0;
/// Names of the core's state.
const MEMORY: &str = "memory";
const NUMERATOR: &str = "wkv.numerator";
const DENOMINATOR: &str = "wkv.denominator";
const MAXIMUM: &str = "wkv.maximum";

#[derive(Debug)]
pub(super) struct Four {
    decay: Tensor,
    first: Tensor,
    mix: [Tensor; 3],
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
}

impl Four {
    pub(super) fn new(builder: &mut Builder, prefix: &str, place: BlockDepth) -> Result<Self> {
        let d = signed(place.width);
        let mut add = adder(builder, prefix, place, 4);
        let decay = place.by_channel(|i| -5.0 + 8.0 * place.ratio(i).powf(0.7 + 1.3 * place.depth));
        let first = place.by_channel(|i| 0.3_f64.ln() + 0.5 * ((i + 1.0) % 3.0 - 1.0));
        Ok(Self {
            decay: add.shaped("time_decay", &[d], &decay)?,
            first: add.shaped("time_first", &[d], &first)?,
            mix: [
                add.vector("time_mix_k", &place.power(place.height, 0.0, false))?,
                add.vector("time_mix_v", &place.power(place.height, 0.3 * place.depth, false))?,
                add.vector("time_mix_r", &place.power(0.5 * place.height, 0.0, false))?,
            ],
            key: add.matrix("key", [d, d], 0.0)?,
            value: add.matrix("value", [d, d], 1.0)?,
            receptance: add.matrix("receptance", [d, d], 0.0)?,
            output: add.matrix("output", [d, d], 0.0)?,
        })
    }

    pub(super) fn forward(&self, shift: &Shift<'_>, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)> {
        let [mix_k, mix_v, mix_r] = shift.mixes_of_present(self.mix.each_ref())?;
        let project = |mix: &Tensor, weight: &Tensor| product(mix, weight, call.precision);
        let state = match call.state {
            Some(state) => Some(WkvState {
                numerator: state.need(NUMERATOR)?,
                denominator: state.need(DENOMINATOR)?,
                maximum: state.need(MAXIMUM)?,
            }),
            None => None,
        };
        let output = wkv(
            &WkvInput {
                decay_D: &self.decay,
                bonus_D: &self.first,
                k_BTD: &project(&mix_k, &self.key)?,
                v_BTD: &project(&mix_v, &self.value)?,
                state: state.as_ref(),
                resets_BT: call.resets_BT,
            },
            ScanKernel::Auto,
        )?;
        let gated = output.y_BTD * project(&mix_r, &self.receptance)?.f_sigmoid()?;
        let WkvState { numerator, denominator, maximum } = output.state;
        let state = vec![(NUMERATOR, numerator), (DENOMINATOR, denominator), (MAXIMUM, maximum)];
        Ok((product(&gated, &self.output, call.precision)?, state))
    }
}

/// What RWKV-5 and RWKV-6 share: matrices, bonus and norm.
#[derive(Debug)]
struct Core {
    heads: i64,
    bonus: Tensor,
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    output: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
}

impl Core {
    fn new<N: RwkvVersion>(add: &mut Adder<'_>, place: BlockDepth, config: &RwkvConfig<N>) -> Result<Self> {
        let (d, head) = (signed(place.width), signed(config.head_dim));
        let bonus =
            place.by_channel(|i| place.depth * (1.0 - place.ratio(i)) + 0.1 * ((i + 1.0) % 3.0 - 1.0));
        // The index from 1 of the block, over the number of blocks.
        let deep = 1.0 - place.height + 1.0 / config.blocks as f64;
        Ok(Self {
            heads: d / head,
            bonus: add.shaped("time_faaaa", &[d / head, head], &bonus)?,
            receptance: add.matrix("receptance", [d, d], 1.0)?,
            key: add.matrix("key", [d, d], 0.1)?,
            value: add.matrix("value", [d, d], 1.0)?,
            output: add.matrix("output", [d, d], 0.0)?,
            gate: add.matrix("gate", [d, d], 0.1)?,
            norm_weight: add.shaped("ln_x.weight", &[d], &Init::Constant(deep.powf(0.7)))?,
            norm_bias: add.shaped("ln_x.bias", &[d], &Init::Constant(0.0))?,
        })
    }

    /// Of the mixes of key, value, receptance and gate.
    fn forward(
        &self,
        [k, v, r, g]: [&Tensor; 4],
        log_decay: LogDecay<'_>,
        call: &BlockCall<'_>,
    ) -> Result<(Tensor, NamedTensors)> {
        let head =
            |mix: &Tensor, weight: &Tensor| by_head(&product(mix, weight, call.precision)?, self.heads);
        let memory = call.state.map(|state| state.need(MEMORY)).transpose()?;
        let input = LinearAttentionInput {
            q_BTHK: &head(r, &self.receptance)?,
            k_BTHK: &head(k, &self.key)?,
            v_BTHV: &head(v, &self.value)?,
            log_decay,
            bonus_HK: Some(&self.bonus),
            scale: 1.0,
            state_BHKV: memory.as_ref(),
            resets_BT: call.resets_BT,
        };
        let output = linear_attention(&input, &LinearAttentionOptions::default())?;
        let gated = gated_norm(&GatedNormInput {
            o_BTHE: &output.o_BTHV,
            weight: &self.norm_weight,
            bias_D: Some(&self.norm_bias),
            gate_BTD: &product(g, &self.gate, call.precision)?,
            norm: HeadNorm::Layer,
            // The norm of o / 8 is that of o with another ε.
            epsilon: NORM_EPSILON * HEAD_DIVISOR * HEAD_DIVISOR,
        })?;
        Ok((product(&gated, &self.output, call.precision)?, vec![(MEMORY, output.state_BHKV)]))
    }
}

/// First values of the decays of RWKV-5 and RWKV-6.
fn first_decays(place: BlockDepth) -> Init {
    place.by_channel(|i| -6.0 + 5.0 * place.ratio(i).powf(0.7 + 1.3 * place.depth))
}

#[derive(Debug)]
pub(super) struct Five {
    mix: [Tensor; 4],
    decay: Tensor,
    core: Core,
}

impl Five {
    pub(super) fn new<N: RwkvVersion>(
        builder: &mut Builder,
        prefix: &str,
        place: BlockDepth,
        config: &RwkvConfig<N>,
    ) -> Result<Self> {
        let mut add = adder(builder, prefix, place, 5);
        let (d, head) = (signed(place.width), signed(config.head_dim));
        Ok(Self {
            mix: [
                add.vector("time_mix_k", &place.power(place.height, 0.0, false))?,
                add.vector("time_mix_v", &place.power(place.height, 0.3 * place.depth, false))?,
                add.vector("time_mix_r", &place.power(0.5 * place.height, 0.0, false))?,
                add.vector("time_mix_g", &place.power(0.5 * place.height, 0.0, false))?,
            ],
            decay: add.shaped("time_decay", &[d / head, head], &first_decays(place))?,
            core: Core::new(&mut add, place, config)?,
        })
    }

    pub(super) fn forward(&self, shift: &Shift<'_>, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)> {
        let mixes = shift.mixes_of_present(self.mix.each_ref())?;
        let decay = self.decay.f_exp()?.f_neg()?;
        self.core.forward(mixes.each_ref(), LogDecay::Key(&decay), call)
    }
}

#[derive(Debug)]
pub(super) struct Six {
    mix_x: Tensor,
    /// Of decay, key, value, receptance and gate.
    mix: [Tensor; 5],
    mix_down: Tensor,
    mix_up: Tensor,
    decay: Tensor,
    decay_down: Tensor,
    decay_up: Tensor,
    core: Core,
}

impl Six {
    pub(super) fn new<N: RwkvVersion>(
        builder: &mut Builder,
        prefix: &str,
        place: BlockDepth,
        config: &RwkvConfig<N>,
    ) -> Result<Self> {
        let mut add = adder(builder, prefix, place, 6);
        let d = signed(place.width);
        let (rank, decay_rank) = (signed(RWKV_MIX_RANK), signed(RWKV_DECAY_RANK));
        let plain = place.power(place.height, 0.0, true);
        let half = place.power(0.5 * place.height, 0.0, true);
        let small = Init::Uniform(0.01);
        Ok(Self {
            mix_x: add.vector("time_maa_x", &plain)?,
            mix: [
                add.vector("time_maa_w", &plain)?,
                add.vector("time_maa_k", &plain)?,
                add.vector("time_maa_v", &place.power(place.height, 0.3 * place.depth, true))?,
                add.vector("time_maa_r", &half)?,
                add.vector("time_maa_g", &half)?,
            ],
            mix_down: add.shaped("time_maa_w1", &[d, 5 * rank], &Init::Constant(0.0))?,
            mix_up: add.shaped("time_maa_w2", &[5, rank, d], &small)?,
            decay: add.vector("time_decay", &first_decays(place))?,
            decay_down: add.shaped("time_decay_w1", &[d, decay_rank], &Init::Constant(0.0))?,
            decay_up: add.shaped("time_decay_w2", &[decay_rank, d], &small)?,
            core: Core::new(&mut add, place, config)?,
        })
    }

    pub(super) fn forward(&self, shift: &Shift<'_>, call: &BlockCall<'_>) -> Result<(Tensor, NamedTensors)> {
        // These matrices are stored (in, out).
        let through = |x: &Tensor, weight_IO: &Tensor| -> Result<Tensor> {
            product(x, &weight_IO.f_transpose(0, 1)?, call.precision)
        };
        let [mixed_BTC] = shift.mixes([&self.mix_x], None)?;
        let hidden = through(&mixed_BTC, &self.mix_down)?.f_tanh()?;
        let [batch, time, width] = shift.y_BTC.size()[..] else {
            return Err(crate::error::TrainError::Internal("expected three axes".into()));
        };
        // All five in one product: (5, tokens, rank) times (5, rank, C).
        let hidden_MNR = hidden.f_view([batch * time, 5, -1])?.f_transpose(0, 1)?;
        let own_MNC = hidden_MNR.f_matmul(&self.mix_up.f_to_kind(hidden.kind())?)?;
        let own_MBTC = own_MNC.f_view([5, batch, time, width])?;
        let [w, k, v, r, g] = shift.mixes(self.mix.each_ref(), Some(&own_MBTC))?;
        let kind = wide(shift.y_BTC);
        let own = through(&through(&w, &self.decay_down)?.f_tanh()?, &self.decay_up)?.f_to_kind(kind)?;
        let log_decay = by_head(&(&self.decay + own).f_exp()?.f_neg()?, self.core.heads)?;
        self.core.forward([&k, &v, &r, &g], LogDecay::Token(&log_decay), call)
    }
}
