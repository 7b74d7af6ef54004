//! Norms of heads with the gate behind them on the GPU (`gated_norm.cu`): what [`crate::gated_norm`] launches.

use tch::Tensor;
use xlstm_bridge::BoxError;
use xlstm_cuda::gated_norm::{GatedNormForm, GatedNormParameters};

use super::Gpu;

/// One pass over `rows` tokens of `heads` heads, on the GPU of `like`.
///
/// # Safety
/// The addresses of `parameters` are those of tensors on that GPU, of the types and sizes that `gated_norm.cu` states.
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn gated_norm(
    form: GatedNormForm,
    like: &Tensor,
    parameters: &GatedNormParameters,
    [rows, heads]: [i64; 2],
    backward: bool,
) -> Result<(), BoxError> {
    let gpu = Gpu::of(like)?;
    let launch = form.launch(u64::try_from(rows)?, u32::try_from(heads)?, backward);
    // SAFETY: the caller's word; the sizes are those of the launch.
    unsafe { gpu.launch(form.specialization(gpu.architecture()), launch, parameters) }
}
