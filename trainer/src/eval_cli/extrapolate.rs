//! `xlstm-eval extrapolate MODEL --manifest DIR`: longer contexts than in training.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use xlstm_trainer::evaluation::extrapolate::{ExtrapolateOptions, extrapolate};
use xlstm_trainer::evaluation::results::ExtrapolationText;

use super::evaluate::{ModelArguments, show_with_page};

/// Longer contexts than in training.
#[derive(Debug, Args)]
pub(super) struct ExtrapolateArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Folder or manifest of the split, or the folder of a dataset with `validation` in it
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
    /// Context lengths, ascending; each divides the last
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_values_t = [2048, 4096, 8192, 16384])]
    lengths: Vec<usize>,
    /// Stretches of text at most, each as long as the longest context
    #[arg(long, value_name = "N", default_value_t = 16)]
    stretches: usize,
    /// Where they come from
    #[arg(long, default_value = "documents")]
    text: Text,
    /// Tokens read at a time, the state carried on: memory does not grow with the context
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    chunk: usize,
    /// Read each context in one forward pass instead
    #[arg(long, conflicts_with = "chunk")]
    full: bool,
    /// Folder for the report [default: in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Text {
    /// Documents at least as long as the longest context
    Documents,
    /// The packed stream: documents joined by separators
    Stream,
}

/// Evaluates; returns the exit code.
pub(super) fn run(arguments: &ExtrapolateArguments) -> anyhow::Result<u8> {
    let device = arguments.model.device.start()?;
    let options = ExtrapolateOptions {
        model: arguments.model.model.clone(),
        step: arguments.model.step,
        manifest: arguments.manifest.clone(),
        lengths: arguments.lengths.clone(),
        stretches: arguments.stretches,
        text: match arguments.text {
            Text::Documents => ExtrapolationText::Documents,
            Text::Stream => ExtrapolationText::Stream,
        },
        chunk: (!arguments.full).then_some(arguments.chunk),
        precision: arguments.model.precision,
        out: arguments.out.clone(),
    };
    let (report, folder) = extrapolate(&options, &device)?;
    show_with_page(&report, &folder, arguments.json)?;
    Ok(0)
}
