//! The norms of residual models, over the last axis, with statistics in float32 (float64 in tests).

use tch::{Kind, Tensor};
use xlstm_kernels::cuda::launch::ResidualNorm;
use xlstm_kernels::{cuda, norm};
use xlstm_manifests::recipe::ComputePath;

use super::block::Residual;
use super::parameters::{Builder, Decay, Init};
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
    /// Layer norm with weight and bias.
    Layer {
        /// The scale.
        weight: Tensor,
        /// Added after it.
        bias: Tensor,
        /// Added to the variance.
        epsilon: f64,
    },
    /// Layer norm with a weight alone.
    LayerWeight {
        /// The scale.
        weight: Tensor,
        /// Added to the variance.
        epsilon: f64,
    },
    /// Nothing: what comes in goes out.
    None,
    /// `x / sqrt(mean(x²) + epsilon) · weight`.
    Rms {
        /// The scale.
        weight: Tensor,
        /// Added to the mean square.
        epsilon: f64,
    },
}

impl Norm {
    /// A layer norm with a fresh `NAME.weight` and `NAME.bias`; neither decays.
    pub(super) fn layer(builder: &mut Builder, name: &str, width: i64, epsilon: f64) -> Result<Self> {
        let (one, zero) = (Init::Constant(1.0), Init::Constant(0.0));
        let weight = builder.add(format!("{name}.weight"), &[width], &one, Decay::No)?;
        let bias = builder.add(format!("{name}.bias"), &[width], &zero, Decay::No)?;
        Ok(Self::Layer { weight, bias, epsilon })
    }

    /// A layer norm with a fresh `NAME.weight`, which does not decay.
    pub(super) fn layer_without_bias(
        builder: &mut Builder,
        name: &str,
        width: i64,
        epsilon: f64,
    ) -> Result<Self> {
        let weight = builder.add(format!("{name}.weight"), &[width], &Init::Constant(1.0), Decay::No)?;
        Ok(Self::LayerWeight { weight, epsilon })
    }

    /// `(…, C)` in, `(…, C)` out.
    pub(super) fn apply(&self, x_C: &Tensor) -> Result<Tensor> {
        match self {
            Self::ResidualWeight { weight, epsilon } => Ok(norm::layer_norm(x_C, weight, *epsilon)?),
            Self::Layer { weight, bias, epsilon } => {
                Ok(x_C.f_layer_norm(weight.size(), Some(weight), Some(bias), *epsilon, true)?)
            }
            Self::LayerWeight { weight, epsilon } => {
                Ok(x_C.f_layer_norm(weight.size(), Some(weight), None::<&Tensor>, *epsilon, true)?)
            }
            Self::None => Ok(x_C.shallow_clone()),
            Self::Rms { weight, epsilon } => Ok(x_C.f_rms_norm(weight.size(), Some(weight), *epsilon)?),
        }
    }

    /// The norm in the type of the products that read it: `precision`, or that of `x_C`. One kernel where there is one, and rounded
    /// once for all its readers.
    pub(super) fn for_products(&self, x_C: &Tensor, precision: Option<Kind>) -> Result<Tensor> {
        let kernel = match self {
            _ if precision != Some(Kind::BFloat16) => None,
            Self::ResidualWeight { weight, epsilon } => Some((ResidualNorm::ScaleLessOne(weight), *epsilon)),
            Self::Layer { weight, bias, epsilon } => {
                Some((ResidualNorm::Layer { weight, bias: Some(bias) }, *epsilon))
            }
            Self::LayerWeight { weight, epsilon } => {
                Some((ResidualNorm::Layer { weight, bias: None }, *epsilon))
            }
            Self::Rms { weight, epsilon } => Some((ResidualNorm::Rms(weight), *epsilon)),
            Self::None => None,
        };
        match kernel {
            Some((norm, epsilon)) if cuda::residual_norm_fits(x_C, norm.weight()) => {
                Ok(cuda::residual_norm(x_C, norm, epsilon)?)
            }
            _ => Ok(self.apply(x_C)?.f_to_kind(precision.unwrap_or(x_C.kind()))?),
        }
    }

    /// `W` of the norm of a residual, `(B, 1, N)`, by the kernel for one token of a few sequences; `None` where there is none.
    pub(super) fn step_product(&self, residual: &Residual, weight_NC: &Tensor) -> Result<Option<Tensor>> {
        let Self::ResidualWeight { weight, epsilon } = self else { return Ok(None) };
        if !cuda::step_up_fits(residual.x_BTC.size()[0], weight_NC) {
            return Ok(None);
        }
        let delta = residual.delta_BTC.as_ref();
        Ok(Some(cuda::step_up(&residual.x_BTC, delta, weight, weight_NC, *epsilon)?.1))
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
