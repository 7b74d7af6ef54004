//! `xlstm-train import DIR -o FILE`: a model of Hugging Face transformers for this program.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::printable;
use xlstm_trainer::hugging_face;

use super::{DeviceArguments, say};

/// A model of Hugging Face transformers for this program.
#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// A folder with config.json and model.safetensors, as `save_pretrained` writes it, or the safetensors file
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// The model's configuration [default: config.json beside the parameters]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Writes the file; returns the exit code.
pub(super) fn run(arguments: &ImportArguments) -> anyhow::Result<u8> {
    arguments.device.start()?;
    let imported = hugging_face::import(&arguments.from, arguments.config.as_deref(), &arguments.output)?;
    for note in &imported.notes {
        say(&format!("note: {note}"));
    }
    say(&format!(
        "{}, {} parameters from {} to {}",
        imported.model.label(),
        imported.model.size().parameters,
        printable::path(&arguments.from),
        printable::path(&arguments.output)
    ));
    Ok(0)
}
