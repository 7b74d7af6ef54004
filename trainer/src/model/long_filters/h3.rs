//! H3's mixer: a shift and a diagonal system of modes, both as convolutions.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};
use xlstm_manifests::recipe::architecture::H3Config;

use super::{DEVIATION, INPUTS, Inputs, Map, Mixer, SHIFT};
use crate::error::Result;
use crate::model::block::{BlockCall, NamedTensors};
use crate::model::parameters::{Builder, Decay, Init};
use crate::model::signed;

/// Steps of the filter that come from one power of each mode.
const FILTER_BLOCK: i64 = 64;

#[derive(Debug)]
pub(super) struct H3 {
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
    pub(super) fn new(builder: &mut Builder, config: &H3Config, prefix: &str) -> Result<Self> {
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
