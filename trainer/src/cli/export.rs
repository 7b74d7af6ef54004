//! `xlstm-train export RUN -o FILE`: a run's parameters for other programs.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::printable;
use xlstm_trainer::hugging_face;
use xlstm_trainer::model::{Placement, export_with};
use xlstm_trainer::run::{load_model, trained_context};

use super::{DeviceArguments, say};

/// A run's parameters for other programs.
#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    step: Option<u64>,
    /// Whose form to write
    #[arg(long, value_enum, default_value_t = Format::Official)]
    format: Format,
    /// The safetensors file to write; for transformers a folder that is not there yet
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Whose form is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The official package's, and of other architectures this program's own.
    Official,
    /// Hugging Face transformers', of Llama, GPT-2, Mamba and RWKV-4.
    Transformers,
}

/// Writes the file or folder; returns the exit code.
pub(super) fn run(arguments: &ExportArguments) -> anyhow::Result<u8> {
    arguments.device.start()?;
    let placement = Placement::new(tch::Device::Cpu, xlstm_manifests::recipe::Precision::Float32, false);
    let (model, file) = load_model(&arguments.run, arguments.step, placement)?;
    let context = trained_context(&file)?.unwrap_or(2048);
    let form = match arguments.format {
        Format::Official => {
            export_with(&model, &arguments.output, context, hugging_face::import_record(&file)?)?;
            "official names, vanilla layout"
        }
        Format::Transformers => {
            hugging_face::export(&model, &file, &arguments.output, context)?;
            "for Hugging Face transformers"
        }
    };
    say(&format!(
        "{} parameters from {} to {}, {form}",
        model.parameter_count(),
        printable::path(&file),
        printable::path(&arguments.output)
    ));
    Ok(0)
}
