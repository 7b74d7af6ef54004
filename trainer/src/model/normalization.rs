//! The norms of residual models, over the last axis, with statistics in float32 (float64 in tests).

use tch::Tensor;
use xlstm_kernels::{cuda, norm};
use xlstm_manifests::recipe::ComputePath;

use super::block::Residual;
use crate::error::Result;

/// One norm with its parameters, `(C,)` each.
#[derive(Debug)]
pub(super) enum Norm {
    /// Layer norm without bias, whose scale is `1 + weight`: the xLSTM's.
    ResidualWeight {
        /// The scale less one.
        weight: Tensor,
        /// Added to the variance.
        epsilon: f64,
    },
    /// `x / sqrt(mean(x²) + epsilon) · weight`.
    Rms {
        /// The scale.
        weight: Tensor,
        /// Added to the mean square.
        epsilon: f64,
    },
}

impl Norm {
    /// `(…, C)` in, `(…, C)` out.
    pub(super) fn apply(&self, x_C: &Tensor) -> Result<Tensor> {
        match self {
            Self::ResidualWeight { weight, epsilon } => Ok(norm::layer_norm(x_C, weight, *epsilon)?),
            Self::Rms { weight, epsilon } => Ok(x_C.f_rms_norm(weight.size(), Some(weight), *epsilon)?),
        }
    }

    /// The norm of a residual, with what is yet to be added.
    pub(super) fn of_residual(&self, residual: &Residual, path: ComputePath) -> Result<Tensor> {
        match (path, self) {
            (ComputePath::FusedGpu, Self::ResidualWeight { weight, epsilon }) => {
                let delta = residual.delta_BTC.as_ref();
                Ok(cuda::add_layer_norm(&residual.x_BTC, delta, weight, *epsilon)?.1)
            }
            _ => self.apply(&residual.x_BTC),
        }
    }
}
