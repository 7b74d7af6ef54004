//! Runs the mLSTM kernels on the GPU through the driver alone and compares them with float64 on the CPU.
//!
//! The reference is the parallel form (paper A.3, eq. 71–105) written out, forward and backward. Queries and keys
//! are drawn positive, so that no denominator is a sum that cancels: there bf16 products determine neither sign nor
//! size of a gradient, in any implementation, and an error would say nothing about the kernels.

use crate::driver::Driver;
use crate::mlstm::{MlstmPlan, MlstmTensors, Strides};
use crate::{Cache, CudaError, MlstmSizes, Nvrtc};

/// Relative error of one tensor, ‖x − reference‖ / ‖reference‖.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorError {
    /// `h`, `dq`, `dk`, `dv`, `di` or `df`.
    pub tensor: &'static str,
    /// The error; NaN if the kernel left anything unwritten.
    pub relative: f64,
}

/// What a check draws.
#[derive(Debug, Clone, Copy)]
pub struct MlstmCase {
    /// Head sizes and chunk.
    pub sizes: MlstmSizes,
    /// Sequences, heads and tokens.
    pub shape: [u32; 3],
    /// Scale of the gates' random part: 1 is ordinary, 15 extreme.
    pub gate_scale: f64,
    /// Seed of the inputs.
    pub seed: u64,
}

/// One case: every tensor's error.
///
/// # Errors
/// Those of compilation and of the driver.
pub fn check_mlstm(
    driver: &Driver,
    nvrtc: &Nvrtc,
    cache: &Cache,
    case: &MlstmCase,
) -> Result<Vec<TensorError>, CudaError> {
    let inputs = Inputs::draw(case);
    let results = run(driver, nvrtc, cache, case, &inputs)?;
    let reference = inputs.reference();
    let errors = ["h", "dq", "dk", "dv", "di", "df"].into_iter().zip(results.iter().zip(&reference));
    Ok(errors
        .map(|(tensor, (ours, exact))| TensorError { tensor, relative: relative(ours, exact) })
        .collect())
}

fn relative(ours: &[f64], exact: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut ours.iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied()).max(1e-300)
}

/// Inputs as `(B, T, H, width)` and `(B, T, H)`, already rounded to what the kernels read.
struct Inputs {
    batch: usize,
    heads: usize,
    tokens: usize,
    widths: [usize; 2],
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    gradient: Vec<f64>,
    input_gate: Vec<f64>,
    forget_gate: Vec<f64>,
}

/// xorshift64*, then the sum of four uniform numbers: near enough to normal for a test.
struct Draw(u64);

impl Draw {
    fn normal(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            sum += (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
        }
        sum * 3.0_f64.sqrt()
    }
}

/// Rounds to bf16, nearest even.
fn to_bf16(value: f64) -> u16 {
    let bits = (value as f32).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

impl Inputs {
    fn draw(case: &MlstmCase) -> Self {
        let [batch, heads, tokens] = case.shape.map(|size| size as usize);
        let widths = [case.sizes.key as usize, case.sizes.value as usize];
        let mut draw = Draw(case.seed | 1);
        let rows = batch * tokens * heads;
        let mut rounded = |count: usize, positive: bool| -> Vec<f64> {
            (0..count)
                .map(|_| draw.normal())
                .map(|x| from_bf16(to_bf16(if positive { x.abs() } else { x })))
                .collect()
        };
        let (query, key) = (rounded(rows * widths[0], true), rounded(rows * widths[0], true));
        let (value, gradient) = (rounded(rows * widths[1], false), rounded(rows * widths[1], false));
        let mut gates = |shift: f64| {
            (0..rows).map(|_| f64::from((draw.normal() * case.gate_scale + shift) as f32)).collect()
        };
        let (input_gate, forget_gate) = (gates(0.0), gates(3.0));
        Self { batch, heads, tokens, widths, query, key, value, gradient, input_gate, forget_gate }
    }

    fn row(&self, batch: usize, token: usize, head: usize) -> usize {
        (batch * self.tokens + token) * self.heads + head
    }

    /// h, dq, dk, dv, di, df.
    fn reference(&self) -> [Vec<f64>; 6] {
        let rows = self.batch * self.tokens * self.heads;
        let [k, v] = self.widths;
        let mut out = [v, k, k, v, 1, 1].map(|width| vec![0.0; rows * width]);
        for batch in 0..self.batch {
            for head in 0..self.heads {
                self.reference_head(batch, head, &mut out);
            }
        }
        out
    }

    fn reference_head(&self, batch: usize, head: usize, out: &mut [Vec<f64>; 6]) {
        let [k, v] = self.widths;
        let scale = 1.0 / (k as f64).sqrt();
        let rows: Vec<usize> = (0..self.tokens).map(|token| self.row(batch, token, head)).collect();
        let mut total = vec![0.0; self.tokens];
        for t in 0..self.tokens {
            let f = self.forget_gate[rows[t]];
            let before = if t == 0 { 0.0 } else { total[t - 1] };
            total[t] = before + f.min(0.0) - (-f.abs()).exp().ln_1p();
        }
        // Gradient of each log forget gate: P_ij lies on all t with j < t <= i.
        let mut log_forget = vec![0.0; self.tokens + 1];
        for i in 0..self.tokens {
            let exponent = |j: usize| total[i] - total[j] + self.input_gate[rows[j]];
            let m = (0..=i).map(exponent).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = (0..=i).map(|j| scale * (exponent(j) - m).exp()).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            let at = |row: usize, width: usize| row * width..(row + 1) * width;
            let query = &self.query[at(rows[i], k)];
            let scores: Vec<f64> =
                (0..=i).map(|j| weights[j] * dot(query, &self.key[at(rows[j], k)])).collect();
            let norm: f64 = scores.iter().sum();
            let den = norm.abs().max((-m).exp()) + 1e-6;
            for (j, score) in scores.iter().enumerate() {
                for c in 0..v {
                    out[0][rows[i] * v + c] += score / den * self.value[rows[j] * v + c];
                }
            }
            let gradient = &self.gradient[at(rows[i], v)];
            let along = dot(gradient, &out[0][rows[i] * v..(rows[i] + 1) * v]);
            let norm_gradient = if norm.abs() > (-m).exp() { -norm.signum() * along / den } else { 0.0 };
            for j in 0..=i {
                let value = &self.value[at(rows[j], v)];
                let score_gradient = dot(gradient, value) / den + norm_gradient;
                for c in 0..v {
                    out[3][rows[j] * v + c] += scores[j] / den * gradient[c];
                }
                for c in 0..k {
                    out[1][rows[i] * k + c] += score_gradient * weights[j] * self.key[rows[j] * k + c];
                    out[2][rows[j] * k + c] += score_gradient * weights[j] * query[c];
                }
                let product = score_gradient * scores[j];
                out[4][rows[j]] += product;
                log_forget[j + 1] += product;
                log_forget[i + 1] -= product;
            }
        }
        let mut sum = 0.0;
        for t in 0..self.tokens {
            sum += log_forget[t];
            out[5][rows[t]] = sum / (1.0 + self.forget_gate[rows[t]].exp());
        }
    }
}

/// The kernels, on device memory filled with NaN where results go.
fn run(
    driver: &Driver,
    nvrtc: &Nvrtc,
    cache: &Cache,
    case: &MlstmCase,
    inputs: &Inputs,
) -> Result<Vec<Vec<f64>>, CudaError> {
    let [batch, heads, tokens] = case.shape;
    let plan = MlstmPlan {
        sizes: case.sizes,
        architecture: driver.architecture(),
        batch,
        heads,
        tokens,
        keep: false,
        divided: false,
        resets: false,
    };
    let half = |values: &[f64]| values.iter().flat_map(|x| to_bf16(*x).to_le_bytes()).collect::<Vec<u8>>();
    let single = |values: &[f64]| values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
    let given = [half(&inputs.query), half(&inputs.key), half(&inputs.value), single(&inputs.input_gate)];
    let more = [single(&inputs.forget_gate), half(&inputs.gradient)];
    let given = given.iter().chain(&more).map(|bytes| driver.upload(bytes)).collect::<Result<Vec<_>, _>>()?;
    let poison = |bytes: usize| driver.upload(&vec![0xff; bytes]);
    let (qk_bytes, v_bytes) = (inputs.query.len() * 2, inputs.value.len() * 2);
    let gate_bytes = inputs.input_gate.len() * 4;
    let made = [v_bytes, qk_bytes, qk_bytes, v_bytes, gate_bytes, gate_bytes]
        .map(poison)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let (saved, scratch) = plan.bytes();
    let saved = poison(usize::try_from(saved).unwrap_or(usize::MAX))?;
    let scratch = poison(usize::try_from(scratch).unwrap_or(usize::MAX))?;
    let tensors = MlstmTensors {
        query: given[0].address(),
        key: given[1].address(),
        value: given[2].address(),
        input_gate: given[3].address(),
        forget_gate: given[4].address(),
        output_gradient: given[5].address(),
        output: made[0].address(),
        query_gradient: made[1].address(),
        key_gradient: made[2].address(),
        value_gradient: made[3].address(),
        input_gate_gradient: made[4].address(),
        forget_gate_gradient: made[5].address(),
        ..MlstmTensors::default()
    };
    let strides = [case.sizes.key, case.sizes.value, 1]
        .map(|width| Strides::token_major(i64::from(tokens), i64::from(heads), i64::from(width)));
    let parameters = plan.parameters(&tensors, strides, saved.address(), scratch.address());
    let arguments = plan.arguments(driver, parameters)?;
    for launch in plan.forward().into_iter().chain(plan.backward()) {
        let wanted = plan.specialization(launch.source);
        let compiled = cache.get(nvrtc, &wanted)?;
        let kernel = driver.load(&compiled.image, launch.kernel, launch.shape.shared_bytes)?;
        // SAFETY: the structure is the kernels' own, and every room is device memory of the plan's size, alive until the
        // downloads below, which wait for all launches.
        unsafe { driver.launch(kernel, launch.shape, &arguments, std::ptr::null_mut())? };
    }
    driver.synchronize()?;
    let as_half =
        |bytes: Vec<u8>| bytes.chunks_exact(2).map(|b| from_bf16(u16::from_le_bytes([b[0], b[1]]))).collect();
    let as_single = |bytes: Vec<u8>| {
        bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    };
    made.iter()
        .enumerate()
        .map(|(index, memory)| {
            memory.download().map(|bytes| if index < 4 { as_half(bytes) } else { as_single(bytes) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_the_gradients_of_its_own_output() {
        let sizes = MlstmSizes { key: 8, value: 8, chunk: 128 };
        let case = MlstmCase { sizes, shape: [1, 2, 7], gate_scale: 1.0, seed: 9 };
        let base = Inputs::draw(&case).reference();
        let loss = |change: &dyn Fn(&mut Inputs)| {
            let mut inputs = Inputs::draw(&case);
            change(&mut inputs);
            let h = &inputs.reference()[0];
            h.iter().zip(&inputs.gradient).map(|(a, b)| a * b).sum::<f64>()
        };
        let slope = |pick: fn(&mut Inputs) -> &mut Vec<f64>, index: usize| {
            let step = 1e-5;
            (loss(&|inputs| pick(inputs)[index] += step) - loss(&|inputs| pick(inputs)[index] -= step))
                / (2.0 * step)
        };
        let picks: [fn(&mut Inputs) -> &mut Vec<f64>; 5] = [
            |inputs| &mut inputs.query,
            |inputs| &mut inputs.key,
            |inputs| &mut inputs.value,
            |inputs| &mut inputs.input_gate,
            |inputs| &mut inputs.forget_gate,
        ];
        // The tolerance has room for epsilon, through which m would have a gradient if it had one.
        for (pick, expected) in picks.into_iter().zip(&base[1..]) {
            for index in (0..expected.len()).step_by(5) {
                let found = slope(pick, index);
                assert!(
                    (found - expected[index]).abs() < 1e-5 * (1.0 + found.abs()),
                    "{found} {}",
                    expected[index]
                );
            }
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even() {
        for (value, expected) in
            [(1.0, 1.0), (1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.015_625), (-2.5, -2.5)]
        {
            assert!((from_bf16(to_bf16(value)) - expected).abs() < 1e-12, "{value}");
        }
    }
}
