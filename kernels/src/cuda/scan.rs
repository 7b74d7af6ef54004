//! The scans of HGRN, Mamba and RWKV-4 in float32 on the GPU (`scan.cu`): what `crate::scan` launches where its tensors lie
//! on one.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::scan::{Scan, ScanParameters};

use super::{Gpu, enabled};

/// Most sequences of a launch.
const MAX_BATCH: i64 = 65535;

/// Whether there is a kernel for this scan of `x_BTD`: float32 on a GPU, and no one asked for libtorch alone.
pub(crate) fn scan_fits(scan: Scan, x_BTD: &Tensor) -> bool {
    let [batch, tokens, _] = x_BTD.size()[..] else { return false };
    let within = batch <= MAX_BATCH && i32::try_from(tokens).is_ok();
    within && scan.is_known() && x_BTD.kind() == Kind::Float && enabled(x_BTD.device())
}

/// One pass over `x_BTD`'s sequences and channels. `parameters` lacks only the sizes.
///
/// # Safety
/// Its addresses are those of dense float32 tensors on the GPU of `x_BTD`, of the sizes that `scan.cu` states.
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn scan(
    scan: Scan,
    x_BTD: &Tensor,
    parameters: ScanParameters,
    backward: bool,
) -> Result<(), BoxError> {
    let [batch, tokens, width] = x_BTD.size()[..] else {
        return Err(format!("scan (CUDA): expected three axes, found {:?}", x_BTD.size()).into());
    };
    let gpu = Gpu::of(x_BTD)?;
    let launch = scan.launch(u32::try_from(batch)?, u32::try_from(width)?, backward);
    let sizes = [batch, tokens, width].map(i32::try_from);
    let [batch, tokens, width] = sizes;
    let parameters = ScanParameters { batch: batch?, tokens: tokens?, width: width?, ..parameters };
    // SAFETY: the caller's word; the sizes are those of the launch.
    unsafe { gpu.launch(scan.specialization(gpu.architecture()), launch, &parameters) }
}
