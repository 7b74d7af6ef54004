//! `xlstm-eval perplexity MODEL --manifest DIR` and `xlstm-eval paloma MODEL --manifest DIR`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use xlstm_manifests::printable;
use xlstm_trainer::command_line::{DeviceArguments, on_ranks, print, print_json, say};
use xlstm_trainer::evaluation::evaluate::{EvaluateOptions, EvaluationKind, Outcome, SplitOptions, evaluate};
use xlstm_trainer::evaluation::open::EvaluationPrecision;
use xlstm_trainer::evaluation::own_text::{self, OwnText};
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

/// What is scored: a prepared split, or a file of text.
#[derive(Debug, Args)]
pub(super) struct DataArguments {
    /// Folder or manifest of the split, or the folder of a dataset with `validation` in it
    #[arg(long, value_name = "DIR", required_unless_present = "text", conflicts_with = "text")]
    manifest: Option<PathBuf>,
    /// A file of text, JSON lines or another format of `xlstm-data prepare local` instead: it is prepared with the run's
    /// evaluations (or below --out) first
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// With --text: field of a record that holds its text
    #[arg(long, value_name = "FIELD", default_value = "text", requires = "text")]
    text_field: String,
}

impl DataArguments {
    /// The file of text, where one is named.
    pub(super) fn text(&self) -> Option<OwnText> {
        self.text.clone().map(|file| OwnText { file, field: self.text_field.clone() })
    }

    /// The prepared split.
    pub(super) fn manifest(&self) -> anyhow::Result<PathBuf> {
        self.manifest
            .clone()
            .ok_or_else(|| anyhow::anyhow!("expected --manifest DIR or --text FILE, found neither"))
    }
}

/// What both evaluations of a split take.
#[derive(Debug, Args)]
struct SplitArguments {
    #[command(flatten)]
    model: ModelArguments,
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
    data: DataArguments,
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
    /// Folder or manifest of the split, or the folder of a dataset with `validation` in it
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
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
    let data = match arguments.data.text() {
        Some(text) => Data::Text(text),
        None => Data::Split(arguments.data.manifest()?),
    };
    let more = (arguments.first, arguments.counts.clone());
    run(EvaluationKind::Perplexity, data, &arguments.split, Protocol::Paper, more)
}

/// Evaluates; returns the exit code.
pub(super) fn paloma(arguments: &PalomaArguments) -> anyhow::Result<u8> {
    let protocol = match arguments.protocol {
        WindowProtocol::Paper => Protocol::Paper,
        WindowProtocol::Disjoint => Protocol::Disjoint,
    };
    let data = Data::Split(arguments.manifest.clone());
    run(EvaluationKind::Paloma, data, &arguments.split, protocol, (None, None))
}

/// What is scored.
enum Data {
    Split(PathBuf),
    Text(OwnText),
}

fn run(
    kind: EvaluationKind,
    data: Data,
    split: &SplitArguments,
    protocol: Protocol,
    (first, counts): (Option<u64>, Option<PathBuf>),
) -> anyhow::Result<u8> {
    let model = (split.model.model.as_path(), split.model.step);
    let options = |manifest: PathBuf| EvaluateOptions {
        split: SplitOptions {
            model: model.0.into(),
            step: model.1,
            manifest,
            first,
            precision: split.model.precision,
            batch_tokens: split.batch_tokens,
            out: split.out.clone(),
        },
        protocol,
        context_length: split.context_length,
        prepared_windows: split.prepared_windows,
        counts: counts.clone(),
    };
    on_ranks(&split.launch, &split.model.device, |device, communicator| {
        let signals = Signals::listen()?;
        let first_rank = communicator.rank() == 0;
        let manifest = match &data {
            Data::Split(path) => path.clone(),
            Data::Text(text) => own_text::prepare(text, model, split.out.as_deref(), communicator.as_ref())?,
        };
        match evaluate(kind, &options(manifest), device, communicator.as_ref(), &signals)? {
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
