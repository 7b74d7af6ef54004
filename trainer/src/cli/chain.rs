//! `xlstm-train chain RUN`: from a validation figure back to source files.

use std::path::PathBuf;

use clap::Args;
use xlstm_trainer::chain::chain;

use super::print;

/// From a validation figure back to source files.
#[derive(Debug, Args)]
pub(super) struct ChainArguments {
    /// The run's folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The figure after this step [default: the newest whose checkpoint was kept]
    #[arg(long)]
    step: Option<u64>,
    /// Folder in which datasets are looked for by their root, beside where they were and where the run is; may be given
    /// again
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
}

/// Prints the chain; returns the exit code.
pub(super) fn run(arguments: &ChainArguments) -> anyhow::Result<u8> {
    print(&chain(&arguments.run, arguments.step, &arguments.data)?)?;
    Ok(0)
}
