//! All that is checked, compiled beforehand.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BridgeError;
use xlstm_cuda::layers::ResidualForm;
use xlstm_cuda::{MlstmSizes, Source, Specialization};

use super::{loss, mlstm};
use crate::KernelError;
use crate::cuda::Gpu;

fn failed(kernel: &'static str) -> impl Fn(xlstm_bridge::BoxError) -> KernelError {
    move |source| KernelError::Bridge(BridgeError::Forward { name: kernel, source })
}

/// Compiles what the checks use, on all cores.
pub(super) fn compile(device: Device) -> Result<(), KernelError> {
    let tensor = Tensor::zeros([1], (Kind::Float, device));
    let gpu = Gpu::of(&tensor).map_err(failed("selfcheck"))?;
    let architecture = gpu.architecture();
    let mut wanted = vec![
        Specialization::sums(architecture),
        Specialization::inner(architecture, 4, false),
        Specialization::inner(architecture, 8, false),
        Specialization::inner(architecture, 4, true),
        Specialization::cross_entropy(architecture, loss::VOCABULARY as u32),
    ];
    wanted.extend([64, 96, 192, 384, 1024].map(|head| Specialization::pointwise(architecture, head, false)));
    for form in [ResidualForm::ScaleLessOne, ResidualForm::Layer, ResidualForm::Rms] {
        wanted.extend([136, 768, 2048].map(|width| Specialization::residual(architecture, width, form)));
    }
    for (_, tokens, _, key, value, _) in mlstm::CASES {
        let chunk = if tokens > 128 && key * value >= 128 * 256 { 256 } else { 128 };
        let sizes = MlstmSizes { key: key as u32, value: value as u32, chunk };
        wanted.extend(Source::MLSTM.map(|source| Specialization::mlstm(source, architecture, sizes)));
    }
    wanted.extend(super::recurrent::specializations(architecture));
    wanted.extend(super::methods::specializations(architecture));
    wanted.extend(super::around_methods::specializations(architecture));
    gpu.compile_all(&wanted).map_err(failed("selfcheck"))
}
