//! AdamW with decoupled weight decay, and the norm of all gradients.
//!
//! ```text
//! m ← β1 m + (1 - β1) g        v ← β2 v + (1 - β2) g²        p ← p (1 - lr·wd)
//! p ← p - lr / (1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + ε)          g is the gradient times the clipping factor
//! ```
//! On the CPU one pass over each parameter does all of it, in chunks that all cores share; a chunk's bounds do not
//! depend on the number of threads, so neither does any result. On a GPU (`on_gpu`) libtorch's fused operation updates all
//! parameters in a few launches, and nothing is waited for.

mod on_gpu;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::multi_tensor::drop_gradients;
use xlstm_manifests::recipe::Optimizer;

use crate::error::{Result, TrainError};
use crate::model::{Model, copy_to_cpu};
use crate::tensor_file::TensorFile;

/// Numbers that one thread updates at a time.
const CHUNK: usize = 1 << 15;

struct ParameterState {
    name: String,
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    decays: bool,
}

/// AdamW over a model's trainable parameters.
pub struct AdamW {
    options: Optimizer,
    states: Vec<ParameterState>,
    step: u64,
    /// On a GPU: 1 since a step whose loss or gradient was not finite, 0 before; with 1 no update changes anything.
    failed: Option<Tensor>,
}

pub use on_gpu::UpdateNumbers;

impl AdamW {
    /// Fresh moments.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(model: &Model, options: &Optimizer) -> Result<Self> {
        let mut states = Vec::new();
        for parameter in model.parameters().iter().filter(|parameter| parameter.trainable) {
            let tensor = parameter.tensor.shallow_clone();
            states.push(ParameterState {
                name: parameter.name.clone(),
                first: tensor.detach().f_zeros_like()?,
                second: tensor.detach().f_zeros_like()?,
                parameter: tensor,
                decays: parameter.decays,
            });
        }
        let mut optimizer = Self { options: options.clone(), states, step: 0, failed: None };
        if optimizer.on_gpu() {
            optimizer.failed = Some(Tensor::f_zeros([], (Kind::Float, optimizer.device()))?);
        }
        Ok(optimizer)
    }

    fn device(&self) -> Device {
        self.states.first().map_or(Device::Cpu, |state| state.parameter.device())
    }

    /// Updates done so far.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Sets the gradients that are there to zero.
    pub fn zero_gradients(&self) {
        for state in &self.states {
            let mut gradient = state.parameter.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
    }

    /// Before the first micro-batch of a step: there are no gradients, which spares clearing them and adding to zeros (16 bytes a
    /// parameter; on a GPU also two launches for each). The memory waits for the next ones, in libtorch's cache on a GPU and in
    /// [`xlstm_bridge::runtime::pool_memory`]'s on a CPU. `shared` gradients, views of what is reduced over ranks, stay and are cleared.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn begin_step(&self, shared: bool) -> Result<()> {
        if shared {
            self.zero_gradients();
            return Ok(());
        }
        Ok(drop_gradients(&self.tensors())?)
    }

    /// The trained parameters, for reductions over ranks.
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        self.states.iter().map(|state| state.parameter.shallow_clone()).collect()
    }

    /// Euclidean norm of all gradients together, before clipping; for parameters on a CPU.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn gradient_norm(&self) -> Result<f64> {
        let mut total = 0.0;
        for state in &self.states {
            let gradient = state.parameter.grad();
            if !gradient.defined() {
                continue;
            }
            total += match floats(&gradient) {
                Some(values) => squares(values),
                None => f64::try_from(gradient.f_norm()?.f_to_kind(Kind::Double)?)?.powi(2),
            };
        }
        Ok(total.sqrt())
    }

    /// One update with this learning rate; gradients are multiplied by `factor` first (clipping). For parameters on a CPU; those that have
    /// no gradient are left as they are, with their moments.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn update(&mut self, learning_rate: f64, factor: f64) -> Result<()> {
        self.step += 1;
        let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
        let options = &self.options;
        let common = Constants {
            factor: factor as f32,
            beta1: options.beta1 as f32,
            beta2: options.beta2 as f32,
            one_minus_beta1: (1.0 - options.beta1) as f32,
            one_minus_beta2: (1.0 - options.beta2) as f32,
            epsilon: options.epsilon as f32,
            step_size: (learning_rate / (1.0 - options.beta1.powi(exponent))) as f32,
            root_correction: (1.0 - options.beta2.powi(exponent)).sqrt() as f32,
            keep: 1.0,
        };
        for state in &mut self.states {
            let gradient = state.parameter.grad();
            if !gradient.defined() {
                continue;
            }
            let decay = if state.decays { options.weight_decay } else { 0.0 };
            let constants = Constants { keep: (1.0 - learning_rate * decay) as f32, ..common };
            tch::no_grad(|| state.update(&gradient, &constants))?;
        }
        Ok(())
    }

    /// Whether all parameters are fp32 on a GPU.
    #[must_use]
    pub fn on_gpu(&self) -> bool {
        let on_gpu = |state: &ParameterState| {
            matches!(state.parameter.device(), Device::Cuda(_)) && state.parameter.kind() == Kind::Float
        };
        !self.states.is_empty() && self.states.iter().all(on_gpu)
    }

    /// Copies of the moments on the CPU, by name: `first.NAME`, `second.NAME`.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::with_capacity(2 * self.states.len());
        for state in &self.states {
            tensors.push((format!("first.{}", state.name), copy_to_cpu(&state.first)?));
            tensors.push((format!("second.{}", state.name), copy_to_cpu(&state.second)?));
        }
        Ok(tensors)
    }

    /// Goes on from a [`snapshot`](Self::snapshot) made after `step` updates.
    ///
    /// # Errors
    /// When a moment is missing or has another shape: all are named.
    pub fn load(&mut self, file: &TensorFile, step: u64) -> Result<()> {
        let mut problems = Vec::new();
        for state in &mut self.states {
            for (prefix, target) in [("first", &mut state.first), ("second", &mut state.second)] {
                let name = format!("{prefix}.{}", state.name);
                match file.tensor(&name)? {
                    Some(tensor) if tensor.size() == target.size() => target.f_copy_(&tensor)?,
                    Some(tensor) => {
                        problems.push(format!(
                            "  {name}: expected {:?}, found {:?}",
                            target.size(),
                            tensor.size()
                        ));
                    }
                    None => problems.push(format!("  {name}: expected {:?}, found none", target.size())),
                }
            }
        }
        if !problems.is_empty() {
            let (path, count) = (file.path().to_path_buf(), problems.len());
            return Err(TrainError::Parameters { path, count, list: problems.join("\n") });
        }
        self.step = step;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Constants {
    factor: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - β1 and 1 - β2, rounded once: the difference of rounded numbers would be off by several units.
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    epsilon: f32,
    step_size: f32,
    root_correction: f32,
    /// What weight decay leaves of a parameter.
    keep: f32,
}

impl ParameterState {
    fn update(&mut self, gradient: &Tensor, constants: &Constants) -> Result<()> {
        let handles = [&self.parameter, &self.first, &self.second].map(Tensor::shallow_clone);
        let [parameter, first, second] = handles;
        // SAFETY: parameter and moments are three different tensors, and nothing else reads or writes them while the
        // optimizer runs.
        let changed = unsafe { (floats_mut(&parameter), floats_mut(&first), floats_mut(&second)) };
        if let ((Some(p), Some(m), Some(v)), Some(g)) = (changed, floats(gradient)) {
            let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
            chunks.zip(g.par_chunks(CHUNK)).for_each(|(((p, m), v), g)| update_chunk(p, m, v, g, constants));
            return Ok(());
        }
        let c = constants.map_f64();
        let gradient = gradient.f_mul_scalar(c.factor)?;
        let (mut parameter, mut first, mut second) = (parameter, first, second);
        let _ = first.f_mul_scalar_(c.beta1)?.f_add_(&gradient.f_mul_scalar(c.one_minus_beta1)?)?;
        let _ = second
            .f_mul_scalar_(c.beta2)?
            .f_addcmul_(&gradient, &gradient.f_mul_scalar(c.one_minus_beta2)?)?;
        let _ = parameter.f_mul_scalar_(c.keep)?;
        let denominator = second.f_sqrt()?.f_div_scalar(c.root_correction)?.f_add_scalar(c.epsilon)?;
        let _ = parameter.f_addcdiv_(&first.f_mul_scalar(-c.step_size)?, &denominator)?;
        Ok(())
    }
}

struct ConstantsF64 {
    factor: f64,
    beta1: f64,
    beta2: f64,
    one_minus_beta1: f64,
    one_minus_beta2: f64,
    epsilon: f64,
    step_size: f64,
    root_correction: f64,
    keep: f64,
}

impl Constants {
    fn map_f64(self) -> ConstantsF64 {
        ConstantsF64 {
            factor: f64::from(self.factor),
            beta1: f64::from(self.beta1),
            beta2: f64::from(self.beta2),
            one_minus_beta1: f64::from(self.one_minus_beta1),
            one_minus_beta2: f64::from(self.one_minus_beta2),
            epsilon: f64::from(self.epsilon),
            step_size: f64::from(self.step_size),
            root_correction: f64::from(self.root_correction),
            keep: f64::from(self.keep),
        }
    }
}

/// One part of a parameter. Each number is computed for itself and nothing is contracted, so vectors of any width give the same bits.
fn update_chunk(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: &Constants) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { update_chunk_avx2(p, m, v, g, c) };
        return;
    }
    update_elements(p, m, v, g, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn update_chunk_avx2(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: &Constants) {
    update_elements(p, m, v, g, c);
}

#[inline(always)]
fn update_elements(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: &Constants) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * c.factor;
        *m = c.beta1 * *m + c.one_minus_beta1 * g;
        *v = c.beta2 * *v + c.one_minus_beta2 * g * g;
        *p = *p * c.keep - c.step_size * (*m / (v.sqrt() / c.root_correction + c.epsilon));
    }
}

/// Sum of squares in double precision, in an order that does not depend on the number of threads.
fn squares(values: &[f32]) -> f64 {
    let sum_of_chunk = |values: &[f32]| -> f64 {
        let mut sums = [0.0_f64; 8];
        for group in values.chunks(8) {
            for (sum, value) in sums.iter_mut().zip(group) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        sums.iter().sum()
    };
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_chunk).collect();
    sums.iter().sum()
}

fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu
        && tensor.kind() == Kind::Float
        && tensor.is_contiguous()
        && tensor.numel() > 0
}

/// The numbers of a contiguous float32 tensor on the CPU.
fn floats(tensor: &Tensor) -> Option<&[f32]> {
    // SAFETY: such a tensor owns `numel` initialized floats at `data_ptr`, and the borrow keeps it alive.
    is_plain(tensor).then(|| unsafe {
        std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>().cast_const(), tensor.numel())
    })
}

/// The numbers of a contiguous float32 tensor on the CPU, to be changed.
///
/// # Safety
/// While the slice lives, nothing else reads or writes the tensor's memory: a tensor is a handle, and others may share it.
#[expect(clippy::mut_from_ref, reason = "a tensor is a handle; the caller vouches for the only slice")]
unsafe fn floats_mut(tensor: &Tensor) -> Option<&mut [f32]> {
    // SAFETY: as above, and by this function's contract.
    is_plain(tensor)
        .then(|| unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_vectors_give_the_same_bits() {
        let of = |scale: f32| (0..1003).map(|i| (i as f32 * scale).sin()).collect::<Vec<f32>>();
        let positive = |scale| of(scale).iter().map(|value| value.abs()).collect::<Vec<f32>>();
        let c = Constants {
            factor: 0.37,
            beta1: 0.9,
            beta2: 0.95,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.05,
            epsilon: 1e-5,
            step_size: 0.013,
            root_correction: 0.3,
            keep: 0.999,
        };
        let mut wide = [of(0.31), of(0.17), positive(0.23)];
        let mut narrow = wide.clone();
        let g = of(0.11);
        let [p, m, v] = &mut wide;
        update_chunk(p, m, v, &g, &c);
        let [p, m, v] = &mut narrow;
        update_elements(p, m, v, &g, &c);
        assert_eq!(wide.map(bits), narrow.map(bits));
    }

    fn bits(values: Vec<f32>) -> Vec<u32> {
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn both_paths_agree() {
        let values = || Tensor::from_slice(&(0..100).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>());
        let gradient = Tensor::from_slice(&(0..100).map(|i| (i as f32 * 0.11).cos()).collect::<Vec<_>>());
        let state = |kind: Kind| {
            let parameter = values().to_kind(kind);
            let (first, second) = (parameter.zeros_like(), parameter.zeros_like());
            ParameterState { name: "w".into(), parameter, first, second, decays: true }
        };
        let constants = Constants {
            factor: 0.5,
            beta1: 0.9,
            beta2: 0.95,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.05,
            epsilon: 1e-5,
            step_size: 0.01,
            root_correction: 0.3,
            keep: 0.999,
        };
        let (mut plain, mut libtorch) = (state(Kind::Float), state(Kind::Double));
        for _ in 0..3 {
            plain.update(&gradient, &constants).unwrap();
            libtorch.update(&gradient.to_kind(Kind::Double), &constants).unwrap();
        }
        let difference = (plain.parameter.to_kind(Kind::Double) - &libtorch.parameter).abs().max();
        assert!(f64::try_from(difference).unwrap() < 1e-6);
        assert!(
            (squares(floats(&gradient).unwrap())
                - gradient.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]))
            .abs()
                < 1e-9
        );
    }
}
