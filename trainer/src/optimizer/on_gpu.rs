//! The update on a GPU: norm, clipping and AdamW from numbers in its own memory, so that the host need not wait and a step can
//! be recorded.

use tch::{Kind, Tensor};
use xlstm_bridge::multi_tensor::{self, AdamWConstants, AdamWTensors};

use super::{AdamW, ParameterState};
use crate::error::{Result, TrainError};

/// Numbers of one update, float32 on the GPU.
#[derive(Debug, Clone, Copy)]
pub struct UpdateNumbers<'a> {
    /// Which update this is, from 1; one element.
    pub step: &'a Tensor,
    /// A scalar.
    pub learning_rate: &'a Tensor,
}

impl AdamW {
    /// Counts an update that [`update_on_gpu`](Self::update_on_gpu) does or a recorded step did; the number of it.
    pub fn count_update(&mut self) -> u64 {
        self.step += 1;
        self.step
    }

    /// Clips the gradients together at `clip` (0: never) and updates all parameters; the norm before clipping, a float64
    /// scalar on the GPU. Nothing is waited for. Where `loss` (a float64 scalar) or the norm is not finite, now or in an
    /// update before, no parameter and no moment changes.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn update_on_gpu(&self, numbers: UpdateNumbers<'_>, loss: &Tensor, clip: f64) -> Result<Tensor> {
        let failed = self.failed.as_ref().ok_or_else(|| {
            TrainError::Internal("expected float32 parameters on a GPU, found others".into())
        })?;
        let states: Vec<&ParameterState> =
            self.states.iter().filter(|state| state.parameter.grad().defined()).collect();
        let gradients: Vec<Tensor> = states.iter().map(|state| state.parameter.grad()).collect();
        let norm = if gradients.is_empty() {
            loss.f_zeros_like()?
        } else {
            multi_tensor::norm(&gradients)?.f_to_kind(Kind::Double)?
        };
        // What is not finite is not zero when subtracted from itself.
        let sum = loss.f_add(&norm)?;
        let bad = sum.f_sub(&sum)?.f_ne(0.0)?.f_to_kind(Kind::Float)?;
        failed.shallow_clone().f_copy_(&failed.f_maximum(&bad)?)?;
        let scale = if clip > 0.0 {
            norm.f_add_scalar(1e-6)?.f_div_scalar(clip)?.f_clamp_min(1.0)?
        } else {
            norm.f_ones_like()?
        };
        let scale = scale.f_to_kind(Kind::Float)?;
        for decays in [true, false] {
            let states: Vec<&&ParameterState> =
                states.iter().filter(|state| state.decays == decays).collect();
            let list = |tensor: fn(&ParameterState) -> Tensor| {
                states.iter().map(|state| tensor(state)).collect::<Vec<_>>()
            };
            let tensors = AdamWTensors {
                parameters: &list(|state| state.parameter.detach()),
                gradients: &list(|state| state.parameter.grad()),
                first: &list(|state| state.first.shallow_clone()),
                second: &list(|state| state.second.shallow_clone()),
                step: numbers.step,
                scale: &scale,
                learning_rate: numbers.learning_rate,
                skip: failed,
            };
            let constants = AdamWConstants {
                beta1: self.options.beta1,
                beta2: self.options.beta2,
                weight_decay: if decays { self.options.weight_decay } else { 0.0 },
                epsilon: self.options.epsilon,
            };
            multi_tensor::adamw(&tensors, &constants)?;
        }
        Ok(norm)
    }
}
