//! The CUDA kernels under libtorch's tensors: loaded kernels, device memory, and the layers that use them.
//!
//! `xlstm-cuda` compiles and launches; here its addresses come from tensors and its rooms are byte tensors, so that
//! libtorch's allocator owns all memory. Launches go to the stream that libtorch itself uses on the calling thread. Compiled kernels stay loaded for the life of the process; the first call of a size compiles or reads the
//! cache.
//!
//! | function | computes | kernels |
//! |---|---|---|
//! | [`add_layer_norm`] | residual and layer norm | `residual.cu` |
//! | [`residual_norm`] | layer norms and RMS norm of the residual | `residual.cu` |
//! | [`mlstm_inner`] | an mLSTM block between its two big products | `inner.cu`, `mlstm_*.cu`, `pointwise.cu` |
//! | [`mlstm_step`], [`mlstm_step_down`] | one token of an mLSTM block, its state moved on where it lies | `mlstm_step.cu`, `step_product.cu` |
//! | [`step_up`], [`step_down`] | one token's products, with what stands before them | `step_product.cu` |
//! | [`mlstm`] | the mLSTM cell alone | `mlstm_*.cu` |
//! | [`slstm`], [`slstm_from`] | the sLSTM cell in bf16 | `slstm.cu` |
//! | [`recurrent()`] | sLSTM and LSTM cells in float32 | `recurrent.cu` |
//! | [`conv_silu`], [`head_norm`], [`gelu_gate`] | what stands around the sLSTM | `pointwise.cu` |
//! | [`projected_cross_entropy`] | vocabulary projection and loss | `cross_entropy.cu` |
//!
//!
//! Gated linear attention, the scans of [`crate::scan`], [`crate::token_shift`], [`crate::gated_norm`], [`crate::dropout`] and
//! [`crate::transformer`] have kernels (`dropout.cu`, `linear_attention.cu`, `linear_attention_chunk_*.cu`, `scan.cu`, `selective_scan.cu`, `token_shift.cu`, `gated_norm.cu`,
//! `transformer.cu`) behind those modules.
//!
//! All but these and [`recurrent()`] are for training in bf16 mixed precision: activations bf16, parameters and the residual
//! fp32; sequences may begin anew within, at a document's border. Everything else on a GPU (float32 around the sLSTM, states
//! of whole blocks, sizes without a kernel) is computed by libtorch's operations in the modules beside this one.

mod cross_entropy;
mod inner;
pub mod launch;
pub(crate) mod layout;
mod linear_attention;
mod mlstm;
mod mlstm_step;
mod precise;
pub mod profile;
mod recurrent;
mod residual;
mod scan;
pub mod selfcheck;
mod short;
mod slstm;
mod step_product;
mod supports;
mod wrapped;

pub use cross_entropy::{cross_entropy_fits, projected_cross_entropy};
pub use inner::{InnerInput, InnerOutput, InnerState, gate_weights, inner_fits, mlstm_inner};
pub(crate) use linear_attention::{linear_attention, linear_attention_fits};
pub use mlstm::mlstm;
pub use mlstm_step::{StepState, Stepped, mlstm_step, mlstm_step_down};
pub(crate) use precise::mlstm as mlstm_precise;
pub use recurrent::{RecurrentInput, recurrent, recurrent_fits};
pub use residual::{add_layer_norm, residual_fits, residual_norm, residual_norm_fits};
pub(crate) use scan::{scan, scan_fits, selective_scan, selective_scan_form};
pub(crate) use short::{fits as mlstm_short_fits, mlstm as mlstm_short};
pub use slstm::{SlstmSequence, slstm, slstm_fits, slstm_from, slstm_rounds_weights};
pub use step_product::{step_down, step_down_fits, step_up, step_up_fits};
pub use supports::{
    BetweenProducts, FusedCell, Recurrence, RecurrenceBy, Request, supports, supports_recurrence,
};
pub(crate) use wrapped::{block_projections, conv, mlstm_output};
pub use wrapped::{conv_silu, gelu_gate, head_norm};

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::driver::{Driver, Kernel};
use xlstm_cuda::layers::LayerLaunch;
pub use xlstm_cuda::recurrent::Cell;
pub use xlstm_cuda::{Architecture, describe};
use xlstm_cuda::{Cache, Nvrtc, Specialization};

/// The widest head that there are kernels for: that of the paper's 2.7B model.
pub(crate) const MAX_HEAD: i64 = 1280;

/// More GPUs than a machine has.
const MAX_GPUS: usize = 16;

static ONLY_LIBTORCH: AtomicBool = AtomicBool::new(false);

/// Computes with libtorch's operations alone from now on, also where there is a kernel of ours; for this process.
pub fn use_only_libtorch(only: bool) {
    ONLY_LIBTORCH.store(only, Ordering::Relaxed);
}

/// Whether kernels of ours may be used on this device: it is a GPU, and nobody asked for libtorch alone.
pub fn enabled(device: Device) -> bool {
    matches!(device, Device::Cuda(_)) && !ONLY_LIBTORCH.load(Ordering::Relaxed)
}

/// Whether the float32 kernels take these activations, whose last axis has pieces of `width` numbers.
pub(crate) fn float32_fits(tensors: &[&Tensor], width: i64) -> bool {
    width % 8 == 0 && tensors.iter().all(|tensor| tensor.kind() == Kind::Float && enabled(tensor.device()))
}

/// Whether there is a kernel for the convolution of `x_BTD` by four taps: float32 or bf16 on a GPU, channels in eights.
pub(crate) fn conv_fits(x_BTD: &Tensor) -> bool {
    let [batch, tokens, width] = x_BTD.size()[..] else { return false };
    let known = matches!(x_BTD.kind(), Kind::Float | Kind::BFloat16);
    let within = batch <= layout::MAX_GRID && i32::try_from(batch * tokens).is_ok();
    known && width % 8 == 0 && within && enabled(x_BTD.device())
}

/// Whether there is a float32 kernel for the norm of pieces of `width` numbers.
pub(crate) fn norm_fits(tensor: &Tensor, width: i64) -> bool {
    float32_fits(&[tensor], width) && width <= MAX_HEAD && tensor.numel() > 0
}

/// What `--gpu-architecture` asked for.
static FORCED: OnceLock<Architecture> = OnceLock::new();

/// Compiles for `architecture` instead of the GPU's own from now on: an older one, as PTX. For this process; the first call
/// counts, and it must come before the first kernel.
pub fn force_architecture(architecture: Architecture) {
    FORCED.get_or_init(|| architecture);
}

/// Driver, compiler, cache and everything loaded so far, for one GPU.
pub struct Gpu {
    number: usize,
    driver: Driver,
    nvrtc: Nvrtc,
    cache: Cache,
    loaded: Mutex<HashMap<(Specialization, &'static str), Kernel>>,
}

impl Gpu {
    fn open(number: usize) -> Result<Self, xlstm_cuda::CudaError> {
        let driver = Driver::open(u32::try_from(number).unwrap_or(u32::MAX), FORCED.get().copied())?;
        let nvrtc = Nvrtc::open_in(&nvrtc_folders())?;
        Ok(Self { number, driver, nvrtc, cache: Cache::of_user(), loaded: Mutex::default() })
    }

    /// The GPU that holds a tensor; the first call opens it, and an error is the answer of every call.
    ///
    /// # Errors
    /// No driver, no compiler, a GPU that the kernels are not written for, or no GPU at all.
    pub fn of(tensor: &Tensor) -> Result<&'static Self, BoxError> {
        static OPENED: [OnceLock<Result<Gpu, String>>; MAX_GPUS] = [const { OnceLock::new() }; MAX_GPUS];
        let Device::Cuda(number) = tensor.device() else {
            return Err(
                format!("expected a tensor on a CUDA device, found one on {:?}", tensor.device()).into()
            );
        };
        let slot =
            OPENED.get(number).ok_or_else(|| format!("expected a GPU below {MAX_GPUS}, found {number}"))?;
        let explain = |error: xlstm_cuda::CudaError| {
            format!("{error}; `--kernels libtorch` computes without these kernels, slowly")
        };
        slot.get_or_init(|| Self::open(number).map_err(explain)).as_ref().map_err(|text| text.clone().into())
    }

    /// What is compiled for.
    pub fn architecture(&self) -> Architecture {
        self.driver.architecture()
    }

    /// The GPU's driver.
    fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Launches a kernel on libtorch's current stream of this thread.
    ///
    /// # Safety
    /// As [`Driver::launch`]: the structure is the kernel's own, its addresses are tensors of the sizes it states.
    unsafe fn launch<P: Copy>(
        &self,
        wanted: Specialization,
        launch: LayerLaunch,
        parameters: &P,
    ) -> Result<(), BoxError> {
        // SAFETY: the caller's word. libtorch's allocator gives a tensor's memory to no later work of this stream
        // before this launch has run.
        let start = |kernel, stream| unsafe { self.driver.launch(kernel, launch.shape, parameters, stream) };
        self.launched(wanted, launch, start)
    }

    /// As [`launch`](Self::launch), for a kernel that may begin before the one in front of it has ended.
    ///
    /// # Safety
    /// As [`Driver::launch_overlapping`].
    unsafe fn launch_overlapping<P: Copy>(
        &self,
        wanted: Specialization,
        launch: LayerLaunch,
        parameters: &P,
    ) -> Result<(), BoxError> {
        // SAFETY: the caller's word, and as in `launch`.
        let start = |kernel, stream| unsafe {
            self.driver.launch_overlapping(kernel, launch.shape, parameters, stream)
        };
        self.launched(wanted, launch, start)
    }

    /// As [`launch`](Self::launch), for blocks that wait for each other.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    unsafe fn launch_cooperative<P: Copy>(
        &self,
        wanted: Specialization,
        launch: LayerLaunch,
        parameters: &P,
    ) -> Result<(), BoxError> {
        // SAFETY: as in `launch`.
        let start = |kernel, stream| unsafe {
            self.driver.launch_cooperative(kernel, launch.shape, parameters, stream)
        };
        self.launched(wanted, launch, start)
    }

    fn launched(
        &self,
        wanted: Specialization,
        launch: LayerLaunch,
        start: impl FnOnce(Kernel, *mut c_void) -> Result<(), xlstm_cuda::CudaError>,
    ) -> Result<(), BoxError> {
        let kernel = self.kernel(wanted, launch.kernel, launch.shape.shared_bytes)?;
        let stream = xlstm_bridge::cuda::current_stream(self.number)?;
        // SAFETY: libtorch's current stream belongs to the primary context, which the driver uses.
        let begin = unsafe { profile::begin(&self.driver, stream)? };
        start(kernel, stream)?;
        // SAFETY: as above.
        unsafe { profile::end(&self.driver, launch.kernel, begin, stream)? };
        Ok(())
    }

    /// Compiles what the cache lacks, on all cores.
    fn compile_all(&self, wanted: &[Specialization]) -> Result<(), BoxError> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<String>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(one) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.cache.get(&self.nvrtc, one) {
                            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(text) => Err(text.into()),
            None => Ok(()),
        }
    }

    fn kernel(
        &self,
        wanted: Specialization,
        name: &'static str,
        shared_bytes: u32,
    ) -> Result<Kernel, BoxError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (wanted, name);
        if let Some(kernel) = loaded.get(&key) {
            return Ok(*kernel);
        }
        let compiled = self.cache.get(&self.nvrtc, &key.0)?;
        let kernel = self.driver.load(&compiled.image, name, shared_bytes)?;
        loaded.insert(key, kernel);
        Ok(kernel)
    }
}

/// Launches one kernel on the GPU of `like`, on libtorch's current stream of this thread. `specialization` says what is compiled for it.
///
/// # Safety
/// As [`Gpu::launch`].
///
/// # Errors
/// When the GPU or its compiler fails.
pub(crate) unsafe fn launch_on<P: Copy>(
    like: &Tensor,
    specialization: impl FnOnce(Architecture) -> Specialization,
    launch: LayerLaunch,
    parameters: &P,
) -> Result<(), BoxError> {
    let gpu = Gpu::of(like)?;
    // SAFETY: the caller's word.
    unsafe { gpu.launch(specialization(gpu.architecture()), launch, parameters) }
}

/// Where NVRTC lies beside the libtorch in use: in the same folder, or in the wheels beside PyTorch's, or in what
/// `tools/fetch_libtorch.py --cuda` fetched.
fn nvrtc_folders() -> Vec<PathBuf> {
    let Some(linked) = xlstm_bridge::cuda::libtorch_folder() else { return Vec::new() };
    let real = linked.join("libtorch_cpu.so").canonicalize().ok();
    let real = real.and_then(|file| file.parent().map(PathBuf::from));
    let mut folders = Vec::new();
    for base in [Some(linked), real].into_iter().flatten() {
        folders.push(base.clone());
        for wheels in [base.join("../../nvidia"), base.join("../cuda/nvidia")] {
            let packages = std::fs::read_dir(wheels).into_iter().flatten().flatten();
            folders.extend(packages.map(|package| package.path().join("lib")));
        }
    }
    folders.retain(|folder| folder.join("libnvrtc.so.13").is_file());
    folders
}

/// Device memory of so many bytes.
fn scratch(bytes: u64, device: Device) -> Result<Tensor, BoxError> {
    Ok(Tensor::f_empty([i64::try_from(bytes)?], (Kind::Uint8, device))?)
}

/// An uninitialized tensor on the device of `like`.
fn make(shape: &[i64], kind: Kind, like: &Tensor) -> Result<Tensor, BoxError> {
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}

pub(crate) fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// The address, 0 for none.
pub(crate) fn optional_address(tensor: Option<&Tensor>) -> u64 {
    tensor.map_or(0, address)
}

/// Checks what a kernel takes on trust: type, and that the last axis is dense and sixteen bytes fit its start.
fn expect(name: &str, tensor: &Tensor, kind: Kind) -> Result<(), BoxError> {
    let dense = tensor.stride().last().is_none_or(|&stride| stride == 1);
    if tensor.kind() == kind && dense && address(tensor).is_multiple_of(16) {
        return Ok(());
    }
    let (found, stride) = (tensor.kind(), tensor.stride());
    Err(format!("{name}: expected {kind:?}, dense along its last axis and aligned to 16 bytes, found {found:?} with strides {stride:?}").into())
}

/// A tensor of `function` as a kernel takes it, copied where it is not dense and aligned, and checked by [`expect`].
fn contiguous(function: &str, name: &str, tensor: &Tensor, kind: Kind) -> Result<Tensor, BoxError> {
    let dense = layout::dense(tensor)?;
    expect(&format!("{function}: {name}"), &dense, kind)?;
    Ok(dense)
}
