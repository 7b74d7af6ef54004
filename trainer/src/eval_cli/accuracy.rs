//! `xlstm-eval accuracy MODEL --manifest DIR`, and `xlstm-eval squared-error` likewise.

use std::path::PathBuf;

use clap::Args;
use xlstm_trainer::command_line::{on_ranks, say};
use xlstm_trainer::evaluation::evaluate::{Outcome, SplitOptions};
use xlstm_trainer::evaluation::stored::{StoredMeasure, evaluate_stored};
use xlstm_trainer::launch;
use xlstm_trainer::signals::Signals;

use super::evaluate::{ModelArguments, show_with_page};

/// A measurement on stored targets.
#[derive(Debug, Args)]
pub(super) struct StoredArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Folder or manifest of the split, or the folder of a dataset with `validation` in it
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
    /// Only the first N examples [default: all]
    #[arg(long, value_name = "N")]
    first: Option<u64>,
    /// Positions in a batch at most; decides speed and memory, not the figures [default: 8192 on the CPU, 65536 on a GPU]
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,
    /// Folder for the report [default: in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    launch: launch::Options,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Evaluates; returns the exit code.
pub(super) fn run(measured: StoredMeasure, arguments: &StoredArguments) -> anyhow::Result<u8> {
    let options = SplitOptions {
        model: arguments.model.model.clone(),
        step: arguments.model.step,
        manifest: arguments.manifest.clone(),
        first: arguments.first,
        precision: arguments.model.precision,
        batch_tokens: arguments.batch_tokens,
        out: arguments.out.clone(),
    };
    on_ranks(&arguments.launch, &arguments.model.device, |device, communicator| {
        let signals = Signals::listen()?;
        let first_rank = communicator.rank() == 0;
        match evaluate_stored(measured, &options, device, communicator.as_ref(), &signals)? {
            Outcome::Finished(report, folder) => {
                if first_rank {
                    show_with_page(&report, &folder, arguments.json)?;
                }
                Ok(0)
            }
            Outcome::Stopped(signal) => {
                if first_rank {
                    say("stopped; nothing was written, the same command begins again");
                }
                Ok(128 + signal)
            }
        }
    })
}
