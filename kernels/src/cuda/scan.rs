//! The scans of HGRN and RWKV-4 in float32 (`scan.cu`) and Mamba's (`selective_scan.cu`) on the GPU: what `crate::scan` launches
//! where its tensors lie on one.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::scan::{Scan, ScanParameters};
use xlstm_cuda::selective_scan::{SelectiveScanForm, SelectiveScanParameters};

use super::layout::MAX_GRID;
use super::{enabled, launch_on};

/// Whether there are kernels for scans of `x_BTD`: float32 on a GPU, and no one asked for libtorch alone.
pub(crate) fn scan_fits(x_BTD: &Tensor) -> bool {
    let [batch, tokens, _] = x_BTD.size()[..] else { return false };
    let within = batch <= MAX_GRID && i32::try_from(tokens).is_ok();
    within && x_BTD.kind() == Kind::Float && enabled(x_BTD.device())
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
    let launch = scan.launch(u32::try_from(batch)?, u32::try_from(width)?, backward);
    let sizes = [batch, tokens, width].map(i32::try_from);
    let [batch, tokens, width] = sizes;
    let parameters = ScanParameters { batch: batch?, tokens: tokens?, width: width?, ..parameters };
    // SAFETY: the caller's word; the sizes are those of the launch.
    unsafe { launch_on(x_BTD, |gpu| scan.specialization(gpu), launch, &parameters) }
}

/// The form of the selective scan of `u_BTD` with so many states that there is a kernel for: alone in float32, or with what stands
/// around it in float32 or bf16; on a GPU, if no one asked for libtorch alone.
pub(crate) fn selective_scan_form(u_BTD: &Tensor, states: i64, gated: bool) -> Option<SelectiveScanForm> {
    let float32 = match u_BTD.kind() {
        Kind::Float => true,
        Kind::BFloat16 if gated => false,
        _ => return None,
    };
    let [batch, tokens, width] = u_BTD.size()[..] else { return None };
    // Places within a row are counted in 32 bits.
    let within = batch <= MAX_GRID && i32::try_from(tokens).is_ok() && i32::try_from(2 * width).is_ok();
    if !within || !enabled(u_BTD.device()) {
        return None;
    }
    let states = u32::try_from(states).ok()?;
    if gated { SelectiveScanForm::gated(states, float32) } else { SelectiveScanForm::plain(states) }
}

/// One pass of the selective scan over the sequences and channels of `u_BTD`. `parameters` lacks only the sizes.
///
/// # Safety
/// Its addresses are those of dense tensors on the GPU of `u_BTD`, of the types and sizes that `selective_scan.cu` states.
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn selective_scan(
    form: SelectiveScanForm,
    u_BTD: &Tensor,
    parameters: SelectiveScanParameters,
    backward: bool,
) -> Result<(), BoxError> {
    let [batch, tokens, width] = u_BTD.size()[..] else {
        return Err(format!("selective scan (CUDA): expected three axes, found {:?}", u_BTD.size()).into());
    };
    let launch = form.launch(u32::try_from(batch)?, u32::try_from(width)?, backward);
    let [batch, tokens, width] = [batch, tokens, width].map(i32::try_from);
    let parameters = SelectiveScanParameters { batch: batch?, tokens: tokens?, width: width?, ..parameters };
    // SAFETY: the caller's word; the sizes are those of the launch.
    unsafe { launch_on(u_BTD, |gpu| form.specialization(gpu), launch, &parameters) }
}
