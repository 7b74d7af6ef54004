//! RWKV's mixes of each token with the one before on the GPU (`token_shift.cu`): what [`crate::token_shift`] launches.

use tch::Tensor;
use xlstm_bridge::BoxError;
use xlstm_cuda::token_shift::{TokenShiftForm, TokenShiftParameters};

use super::Gpu;

/// One pass over `y_BTC`.
///
/// # Safety
/// The addresses of `parameters` are those of dense tensors on the GPU of `y_BTC`, of the types and sizes that `token_shift.cu`
/// states.
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn token_shift(
    form: TokenShiftForm,
    y_BTC: &Tensor,
    parameters: &TokenShiftParameters,
    backward: bool,
) -> Result<(), BoxError> {
    let [batch, tokens, width] = y_BTC.size()[..] else {
        return Err(format!("token shift (CUDA): expected three axes, found {:?}", y_BTC.size()).into());
    };
    let gpu = Gpu::of(y_BTC)?;
    let launch = form.launch(u32::try_from(batch)?, u32::try_from(tokens)?, u32::try_from(width)?, backward);
    // SAFETY: the caller's word; the sizes are those of the launch.
    unsafe { gpu.launch(form.specialization(gpu.architecture()), launch, parameters) }
}
