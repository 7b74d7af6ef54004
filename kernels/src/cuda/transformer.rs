//! Rotary positions and SwiGLU on the GPU (`transformer.cu`): what [`crate::transformer`] launches.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::transformer::{RotaryParameters, SwigluParameters};

use super::Gpu;

fn specialization(gpu: &Gpu, like: &Tensor) -> Specialization {
    Specialization::transformer(gpu.architecture(), like.kind() == Kind::Float)
}

/// Turns the heads of `x`, either way.
///
/// # Safety
/// The addresses of `parameters` are those of tensors on the GPU of `x`, of its type (angles: fp32) and of the sizes that
/// `transformer.cu` states; `launch` covers them.
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn rotary(
    x: &Tensor,
    parameters: &RotaryParameters,
    launch: LayerLaunch,
) -> Result<(), BoxError> {
    let gpu = Gpu::of(x)?;
    // SAFETY: the caller's word.
    unsafe { gpu.launch(specialization(gpu, x), launch, parameters) }
}

/// One pass of SwiGLU.
///
/// # Safety
/// As [`rotary`], with rows spaced as `parameters` says.
///
/// # Errors
/// As [`rotary`].
pub(crate) unsafe fn swiglu(
    gate: &Tensor,
    parameters: &SwigluParameters,
    backward: bool,
) -> Result<(), BoxError> {
    let gpu = Gpu::of(gate)?;
    let (tokens, width) = (u64::try_from(parameters.tokens)?, u64::try_from(parameters.width)?);
    let launch = SwigluParameters::launch(tokens, width, backward);
    // SAFETY: the caller's word.
    unsafe { gpu.launch(specialization(gpu, gate), launch, parameters) }
}
