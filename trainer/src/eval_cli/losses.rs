//! `xlstm-eval losses MODEL --text FILE|--manifest DIR --to FILE.parquet`.

use std::path::{Path, PathBuf};

use clap::Args;
use xlstm_manifests::printable;
use xlstm_trainer::command_line::{on_ranks, print, print_json, say};
use xlstm_trainer::evaluation::evaluate::{EvaluateOptions, SplitOptions};
use xlstm_trainer::evaluation::losses::{LossesOutcome, LossesReport, losses};
use xlstm_trainer::evaluation::own_text;
use xlstm_trainer::evaluation::results::Protocol;
use xlstm_trainer::launch;
use xlstm_trainer::signals::Signals;

use super::evaluate::{DataArguments, ModelArguments};

/// Losses of single tokens.
#[derive(Debug, Args)]
pub(super) struct LossesArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    data: DataArguments,
    /// The Parquet file to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Likeliest tokens beside each one, with their losses; 0: none
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Tokens in a context [default: as in training; where that is not recorded, as the split was prepared for]
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<u32>,
    /// Only the first N rows (packed) or documents [default: all]
    #[arg(long, value_name = "N")]
    first: Option<u64>,
    /// Tokens in a batch at most; decides speed and memory [default: 8192 on the CPU, 65536 on a GPU]
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,
    #[command(flatten)]
    launch: launch::Options,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Writes the table; returns the exit code.
pub(super) fn run(arguments: &LossesArguments) -> anyhow::Result<u8> {
    let (model, step) = (&arguments.model.model, arguments.model.step);
    let to: &Path = &arguments.to;
    on_ranks(&arguments.launch, &arguments.model.device, |device, communicator| {
        let signals = Signals::listen()?;
        let manifest = match arguments.data.text() {
            Some(text) => own_text::prepare(&text, (model, step), None, communicator.as_ref())?,
            None => arguments.data.manifest()?,
        };
        let options = EvaluateOptions {
            split: SplitOptions {
                model: model.clone(),
                step,
                manifest,
                first: arguments.first,
                precision: arguments.model.precision,
                batch_tokens: arguments.batch_tokens,
                out: None,
            },
            protocol: Protocol::Paper,
            context_length: arguments.context_length,
            prepared_windows: false,
            counts: None,
        };
        match losses(&options, (to, arguments.top), device, communicator.as_ref(), &signals)? {
            LossesOutcome::Written(report) => show(&report, arguments.json)?,
            LossesOutcome::OnFirstRank => {}
            LossesOutcome::Stopped(signal) => {
                if communicator.rank() == 0 {
                    say("stopped; nothing was written");
                }
                return Ok(128 + signal);
            }
        }
        Ok(0)
    })
}

fn show(report: &LossesReport, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(report);
    }
    for mark in &report.marks {
        say(&format!("note: {}", printable::text(&mark.text)));
    }
    print(&format!(
        "{} tokens of {} documents: loss {:.6} nats a token, perplexity {:.4}\nsplit  root {}\ntable  {}\n       SHA-256 {}\n",
        report.tokens,
        report.documents,
        report.loss,
        report.perplexity,
        report.root,
        printable::path(&report.path),
        report.sha256
    ))
}
