//! `xlstm-train export RUN -o FILE`: a run's parameters for the official package.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::printable;
use xlstm_trainer::model::{Placement, export};
use xlstm_trainer::run::{load_model, trained_context};

use super::{DeviceArguments, say};

/// A run's parameters for the official package.
#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    step: Option<u64>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Writes the file; returns the exit code.
pub(super) fn run(arguments: &ExportArguments) -> anyhow::Result<u8> {
    arguments.device.start()?;
    let placement = Placement::new(tch::Device::Cpu, xlstm_manifests::recipe::Precision::Float32, false);
    let (model, file) = load_model(&arguments.run, arguments.step, placement)?;
    let context = trained_context(&file)?.unwrap_or(2048);
    export(&model, &arguments.output, context)?;
    say(&format!(
        "{} parameters from {} to {}, official names, vanilla layout",
        model.parameter_count(),
        printable::path(&file),
        printable::path(&arguments.output)
    ));
    Ok(0)
}
