//! Hyena's mixer: gates around convolutions whose filters a small network of the position makes.

use std::f64::consts::PI;

use tch::{Kind, Tensor};
use xlstm_kernels::conv::{ConvInput, causal_conv};
use xlstm_manifests::recipe::architecture::HyenaConfig;

use super::{DEVIATION, INPUTS, Inputs, Map, Mixer, SHIFT};
use crate::error::Result;
use crate::model::block::{BlockCall, NamedTensors};
use crate::model::parameters::{Builder, Decay, Init, linspace};
use crate::model::signed;

/// Taps of the short convolution.
const SHORT_TAPS: i64 = 3;

#[derive(Debug)]
pub(super) struct Hyena {
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
    pub(super) fn new(builder: &mut Builder, config: &HyenaConfig, prefix: &str, last: f64) -> Result<Self> {
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
        let before = SHORT_TAPS - 1;
        let state = match &inputs.past_BPC {
            Some(past_BPC) => {
                let kept = past_BPC.size()[1].min(before);
                let newest = past_BPC.f_narrow(1, past_BPC.size()[1] - kept, kept)?;
                Some(newest.f_constant_pad_nd([0, 0, before - kept, 0])?)
            }
            None => None,
        };
        Ok(causal_conv(&ConvInput {
            x_BTD: p_BTC,
            weight_D1W: &self.short_weight,
            bias_D: Some(&self.short_bias),
            state: state.as_ref(),
            resets_BT: call.resets_BT,
        })?)
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
