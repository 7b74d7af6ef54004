//! `xlstm-train doctor`: what this machine can do, and what is missing.

use clap::Args;
use serde_json::json;
use xlstm_bridge::{cuda, distributed, runtime};
use xlstm_trainer::{device, environment};

use super::{DeviceArguments, print};

/// What this machine can do.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Prints the report; returns the exit code.
pub(super) fn run(arguments: &DoctorArguments) -> anyhow::Result<u8> {
    let device = arguments.device.start()?;
    let status = cuda::open();
    let gpus = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    let folder =
        cuda::libtorch_folder().map_or_else(|| "unknown".to_owned(), |path| path.display().to_string());
    let rate = device::measured_rate(device.device)?;
    let memory = device.memory.map_or_else(
        || "unknown".to_owned(),
        |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    );
    let rows = [
        ("xlstm-train", env!("CARGO_PKG_VERSION").to_owned()),
        ("source commit", environment::COMMIT.to_owned()),
        ("libtorch", format!("{} in {folder}", runtime::LIBTORCH_VERSION)),
        ("processor", format!("{} threads, {}", runtime::threads(), runtime::cpu_capability())),
        (
            "denormals",
            if runtime::flush_denormals()? {
                "flushed to zero"
            } else {
                "kept (slow: this processor cannot flush them)"
            }
            .to_owned(),
        ),
        ("cuda", status.to_string()),
        ("GPUs", gpus.to_string()),
        ("device for runs", device.name.clone()),
        ("memory to use", memory),
        ("matrix products", format!("{:.0} GFLOP/s in float32, measured now", rate / 1e9)),
        ("process groups", process_groups(&status)),
        (
            "kernels",
            "CPU; GPU for bf16 training and the float32 sLSTM (`xlstm-train selfcheck`); libtorch elsewhere".to_owned(),
        ),
        (
            "GPU kernels",
            "run on compute capability 9.0; compiled for 8.0, 8.6, 8.9, 10.0 and 12.0, and not run on such GPUs".to_owned(),
        ),
    ];
    if arguments.json {
        let map: serde_json::Map<String, serde_json::Value> =
            rows.iter().map(|(key, value)| (key.replace([' ', '-'], "_"), json!(value))).collect();
        print(&format!("{}\n", json!(map)))?;
    } else {
        for (key, value) in rows {
            print(&format!("{key:<16} {value}\n"))?;
        }
    }
    Ok(0)
}

/// What several ranks can talk through here.
fn process_groups(status: &cuda::CudaStatus) -> String {
    let nccl = match (distributed::has_nccl(), status.is_available()) {
        (true, true) => "NCCL on GPUs".to_owned(),
        (true, false) => "NCCL built in, no GPU here".to_owned(),
        (false, _) => {
            "no NCCL (run tools/fetch_libtorch.py, which fetches CUDA's headers, and build again)".to_owned()
        }
    };
    format!("Gloo on CPUs; {nccl}")
}
