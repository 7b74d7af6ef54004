//! `xlstm-train plot RUN… -o FILE`: the loss of runs as an SVG.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::atomic::write_atomic;
use xlstm_trainer::TrainError;
use xlstm_trainer::plot::{curve, svg};

use super::print;

/// The loss of runs as an SVG.
#[derive(Debug, Args)]
pub(super) struct PlotArguments {
    /// Folders of runs, or their metrics files
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write; without it the SVG goes to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Draws; returns the exit code.
pub(super) fn run(arguments: &PlotArguments) -> anyhow::Result<u8> {
    if let Some(path) = &arguments.output
        && path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg"))
    {
        let hint = "a picture is written as SVG, which browsers and converters read";
        return Err(TrainError::file(path, "a name that ends in .svg", "another one", hint).into());
    }
    let curves = arguments.runs.iter().map(|run| curve(run)).collect::<Result<Vec<_>, _>>()?;
    let text = svg(&curves);
    match &arguments.output {
        Some(path) => {
            write_atomic(path, text.as_bytes())?;
        }
        None => print(&text)?,
    }
    Ok(0)
}
