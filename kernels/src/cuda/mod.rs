//! The CUDA kernels under libtorch's tensors: loaded kernels, device memory, and the layers that use them.
//!
//! `xlstm-cuda` compiles and launches; here its addresses come from tensors and its rooms are byte tensors, so that
//! libtorch's allocator owns all memory. Launches go to the default stream, which is the one libtorch uses unless told
//! otherwise, and to the first visible card: with several, each process sees its own through CUDA_VISIBLE_DEVICES.
//! Compiled kernels stay loaded for the life of the process; the first call of a size compiles or reads the cache.

mod mlstm;

pub use mlstm::mlstm;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::driver::{Driver, Kernel};
use xlstm_cuda::{Cache, Nvrtc, Specialisation};

/// Driver, compiler, cache and everything loaded so far.
struct Card {
    driver: Driver,
    nvrtc: Nvrtc,
    cache: Cache,
    loaded: Mutex<HashMap<(Specialisation, &'static str), Kernel>>,
}

impl Card {
    fn open() -> Result<Self, xlstm_cuda::CudaError> {
        let (driver, nvrtc) = (Driver::open()?, Nvrtc::open()?);
        Ok(Self { driver, nvrtc, cache: Cache::of_user(), loaded: Mutex::default() })
    }

    /// The one card of this process; the first call opens it, and an error is the answer of every call.
    fn get() -> Result<&'static Self, BoxError> {
        static CARD: OnceLock<Result<Card, String>> = OnceLock::new();
        CARD.get_or_init(|| Self::open().map_err(|error| error.to_string()))
            .as_ref()
            .map_err(|text| text.clone().into())
    }

    fn kernel(
        &self,
        wanted: Specialisation,
        name: &'static str,
        shared_bytes: u32,
    ) -> Result<Kernel, BoxError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&(wanted.clone(), name)) {
            return Ok(*kernel);
        }
        let compiled = self.cache.get(&self.nvrtc, &wanted)?;
        let kernel = self.driver.load(&compiled.cubin, name, shared_bytes)?;
        loaded.insert((wanted, name), kernel);
        Ok(kernel)
    }
}

/// Device memory of so many bytes.
fn room(bytes: u64, device: Device) -> Result<Tensor, BoxError> {
    Ok(Tensor::f_empty([i64::try_from(bytes)?], (Kind::Uint8, device))?)
}

fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}
