//! The device that computes: which one, its name, its memory.

use tch::Device;
use xlstm_bridge::runtime;
use xlstm_kernels::cuda::describe;
use xlstm_manifests::recipe::Accelerator;

use crate::error::{Result, TrainError};
use crate::launch::Place;

/// A device and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// For libtorch.
    pub device: Device,
    /// `NVIDIA H100 80GB HBM3`, or `cpu (2 threads, AVX2)`.
    pub name: String,
    /// Bytes that can be used; `None` where the system does not say (a CPU without `/proc`; of GPUs it is always known).
    pub memory: Option<u64>,
}

impl DeviceInfo {
    /// What a recipe is chosen for.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        match (self.device, self.memory) {
            (Device::Cuda(_), Some(memory)) => Accelerator::Gpu { memory },
            _ => Accelerator::Cpu,
        }
    }
}

/// The device for `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// When there is no such device.
pub fn find(text: &str) -> Result<DeviceInfo> {
    let gpus = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    let wanted = match text {
        "auto" if gpus > 0 => Some(0),
        "auto" | "cpu" => None,
        "cuda" => Some(0),
        other => match other.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => Some(number),
            None => {
                let text = format!("expected a device `auto`, `cpu`, `cuda` or `cuda:N`, found `{other}`");
                return Err(TrainError::Usage(text));
            }
        },
    };
    match wanted {
        None => Ok(cpu()),
        Some(number) if i64::try_from(number).is_ok_and(|number| number < gpus) => gpu(number),
        Some(number) => Err(TrainError::Usage(format!(
            "expected a device below cuda:{gpus}, found cuda:{number}; `xlstm-train doctor` says what is missing"
        ))),
    }
}

/// The device for one rank of several: its share of the machine's memory, or the GPU of its number there.
///
/// # Errors
/// When there is no GPU for this rank, or `text` names one GPU for all.
pub fn find_for_rank(text: &str, place: &Place) -> Result<DeviceInfo> {
    let gpus = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    if text.starts_with("cuda:") {
        return Err(TrainError::Usage(format!(
            "expected `auto`, `cpu` or `cuda` for {} ranks, found `{text}`: each rank takes the GPU of its number",
            place.world
        )));
    }
    if text == "cpu" || (text == "auto" && gpus == 0) {
        let cpu = find("cpu")?;
        let sharing = place.local_world.unwrap_or(1).max(1);
        return Ok(DeviceInfo { memory: cpu.memory.map(|bytes| bytes / sharing), ..cpu });
    }
    // Slurm may show each task its own GPU only, which is then the first.
    let alone = gpus == 1 && place.started_by == "Slurm";
    let number = if alone { 0 } else { place.local_rank };
    if i64::try_from(number).is_ok_and(|number| number < gpus) {
        return find(&format!("cuda:{number}"));
    }
    Err(TrainError::Usage(format!(
        "expected a GPU for each rank on this machine, found {gpus} for local rank {}: start fewer ranks, or say \
         --device cpu",
        place.local_rank
    )))
}

fn cpu() -> DeviceInfo {
    let name = format!("cpu ({} threads, {})", runtime::threads(), runtime::cpu_capability());
    DeviceInfo { device: Device::Cpu, name, memory: available_memory() }
}

/// The GPU of libtorch's number: the driver counts as libtorch does, by `CUDA_VISIBLE_DEVICES`.
fn gpu(number: usize) -> Result<DeviceInfo> {
    let described = u32::try_from(number).ok().map(describe).transpose();
    let found = described.map_err(|error| {
        TrainError::Usage(format!(
            "expected the driver to describe cuda:{number}, found: {error}; `xlstm-train doctor` says what is missing, and \
             --device cpu computes without it"
        ))
    })?;
    let found =
        found.ok_or_else(|| TrainError::Usage(format!("expected the number of a device, found {number}")))?;
    Ok(DeviceInfo { device: Device::Cuda(number), name: found.name, memory: Some(found.memory) })
}

/// Memory that programs can still take, from `/proc/meminfo`.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Operations a second that a float32 matrix product reaches now, measured in a fraction of a second.
///
/// # Errors
/// When libtorch fails.
pub fn measured_rate(device: Device) -> Result<f64> {
    let size = 1024;
    let matrix = tch::Tensor::f_rand([size, size], (tch::Kind::Float, device))?;
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let begin = std::time::Instant::now();
        let product = matrix.f_matmul(&matrix)?;
        let _ = f64::try_from(product.f_get(0)?.f_get(0)?)?;
        best = best.max(2.0 * (size as f64).powi(3) / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        assert_eq!(find("cpu").unwrap().device, Device::Cpu);
        assert!(find("cuda:4096").unwrap_err().to_string().contains("found cuda:4096"));
        assert!(find("gpu").unwrap_err().to_string().contains("`gpu`"));
    }
}
