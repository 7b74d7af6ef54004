//! `xlstm-eval perplexity MODEL --manifest DIR` and `xlstm-eval paloma MODEL --manifest DIR`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use xlstm_manifests::printable;
use xlstm_trainer::command_line::{DeviceArguments, on_ranks, print, print_json, say};
use xlstm_trainer::evaluation::evaluate::{EvaluateOptions, EvaluationKind, Outcome, SplitOptions, evaluate};
use xlstm_trainer::evaluation::open::EvaluationPrecision;
use xlstm_trainer::evaluation::results::{Protocol, Report};
use xlstm_trainer::evaluation::text::figures;
use xlstm_trainer::launch;
use xlstm_trainer::signals::Signals;

use super::report::write_page;

/// The model, and how to compute.
#[derive(Debug, Args)]
pub(super) struct ModelArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN|CHECKPOINT")]
    pub(super) model: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    pub(super) step: Option<u64>,
    /// Type of the matrix products [default: that of the run's training]
    #[arg(long)]
    pub(super) precision: Option<EvaluationPrecision>,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

/// What both evaluations of a split take.
#[derive(Debug, Args)]
struct SplitArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Folder or manifest of the split, or the folder of a dataset with `validation` in it
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
    /// Tokens in a context [default: as in training; where that is not recorded, as the split was prepared for]
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<u32>,
    /// Take the contexts that the split was prepared for, whatever the model was trained with
    #[arg(long, conflicts_with = "context_length")]
    prepared_windows: bool,
    /// Tokens in a batch at most; decides speed and memory, not the figures [default: 8192 on the CPU, 65536 on a GPU]
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,
    /// Folder for the report; a killed evaluation goes on from what it holds [default: in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    launch: launch::Options,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Perplexity of a split.
#[derive(Debug, Args)]
pub(super) struct PerplexityArguments {
    #[command(flatten)]
    split: SplitArguments,
    /// Only the first N rows (packed) or documents [default: all]
    #[arg(long, value_name = "N")]
    first: Option<u64>,
    /// Also by how often a token occurs: counts of the training split, which `xlstm-data count` writes
    #[arg(long, value_name = "FILE")]
    counts: Option<PathBuf>,
}

/// PALOMA.
#[derive(Debug, Args)]
pub(super) struct PalomaArguments {
    #[command(flatten)]
    split: SplitArguments,
    /// How documents are cut into windows
    #[arg(long, default_value = "paper")]
    protocol: WindowProtocol,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WindowProtocol {
    /// xLSTM paper: the last window is filled up with preceding tokens, which are not scored again
    Paper,
    /// PALOMA's text: windows never overlap, the last one is short
    Disjoint,
}

/// Evaluates; returns the exit code.
pub(super) fn perplexity(arguments: &PerplexityArguments) -> anyhow::Result<u8> {
    let more = (arguments.first, arguments.counts.clone());
    run(EvaluationKind::Perplexity, &arguments.split, Protocol::Paper, more)
}

/// Evaluates; returns the exit code.
pub(super) fn paloma(arguments: &PalomaArguments) -> anyhow::Result<u8> {
    let protocol = match arguments.protocol {
        WindowProtocol::Paper => Protocol::Paper,
        WindowProtocol::Disjoint => Protocol::Disjoint,
    };
    run(EvaluationKind::Paloma, &arguments.split, protocol, (None, None))
}

fn run(
    kind: EvaluationKind,
    split: &SplitArguments,
    protocol: Protocol,
    (first, counts): (Option<u64>, Option<PathBuf>),
) -> anyhow::Result<u8> {
    let options = EvaluateOptions {
        split: SplitOptions {
            model: split.model.model.clone(),
            step: split.model.step,
            manifest: split.manifest.clone(),
            first,
            precision: split.model.precision,
            batch_tokens: split.batch_tokens,
            out: split.out.clone(),
        },
        protocol,
        context_length: split.context_length,
        prepared_windows: split.prepared_windows,
        counts,
    };
    on_ranks(&split.launch, &split.model.device, |device, communicator| {
        let signals = Signals::listen()?;
        let first_rank = communicator.rank() == 0;
        match evaluate(kind, &options, device, communicator.as_ref(), &signals)? {
            Outcome::Finished(report, folder) => {
                if first_rank {
                    show_with_page(&report, &folder, split.json)?;
                }
                Ok(0)
            }
            Outcome::Stopped(signal) => {
                if first_rank {
                    say("stopped; the same command goes on from here");
                }
                Ok(128 + signal)
            }
        }
    })
}

/// Prints a report, writes its page beside it, and says where both are.
pub(super) fn show_with_page(report: &Report, folder: &Path, json: bool) -> anyhow::Result<()> {
    show(report, json)?;
    let page = write_page(folder, None, None)?;
    say(&format!("report: {}\npage: {}", printable::path(folder), printable::path(&page)));
    Ok(())
}

/// Prints a report: its figures for people, or all of it.
pub(super) fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(report);
    }
    for mark in &report.marks {
        say(&format!("note: {}", printable::text(&mark.text)));
    }
    print(&figures(report, false))
}
