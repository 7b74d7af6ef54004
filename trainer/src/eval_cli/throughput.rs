//! `xlstm-eval throughput MODEL`: speed of generation.

use std::path::PathBuf;

use clap::Args;
use xlstm_trainer::command_line::say;
use xlstm_trainer::environment;
use xlstm_trainer::evaluation::open::open_model;
use xlstm_trainer::evaluation::output;
use xlstm_trainer::evaluation::results::{
    Effort, Protocol, REPORT_FORMAT, REPORT_VERSION, Report, Results, Setting,
};
use xlstm_trainer::evaluation::throughput::{ThroughputOptions, measure};

use super::evaluate::{ModelArguments, show, show_with_page};

/// Speed of generation.
#[derive(Debug, Args)]
pub(super) struct ThroughputArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    prefill: usize,
    /// Numbers of generated tokens to take the time at, batch size 1, ascending
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_values_t = [128, 256, 512, 1024, 2048])]
    lengths: Vec<usize>,
    /// Batch sizes to measure the speed of
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    batches: Vec<usize>,
    /// Tokens to generate for each sequence of a batch
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    tokens: usize,
    /// Repetitions of each measurement; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: usize,
    /// Folder for the report [default: none is written]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures; returns the exit code.
pub(super) fn run(arguments: &ThroughputArguments) -> anyhow::Result<u8> {
    let device = arguments.model.device.start()?;
    let model = &arguments.model;
    let opened = open_model(&model.model, model.step, model.precision, &device)?;
    let options = ThroughputOptions {
        prefill: arguments.prefill,
        lengths: arguments.lengths.clone(),
        batches: arguments.batches.clone(),
        batch_tokens: arguments.tokens,
        repetitions: arguments.repetitions,
    };
    let begin = std::time::Instant::now();
    let results = measure(&opened.model, &options, &mut |text| say(text))?;
    let seconds = begin.elapsed().as_secs_f64();
    let single: usize = options.lengths.last().copied().unwrap_or(0);
    let batched: usize = options.batches.iter().sum::<usize>() * options.batch_tokens;
    let tokens = ((single + batched) * options.repetitions) as f64;
    let report = Report {
        format: REPORT_FORMAT.into(),
        version: REPORT_VERSION,
        model: opened.link,
        run: opened.run,
        dataset: None,
        program: environment::program_named("xlstm-eval"),
        setting: Setting {
            protocol: Protocol::Throughput,
            context_length: (options.prefill + single) as u64,
            precision: opened.precision.name().into(),
            device: device.name,
            reset_at_document_boundaries: false,
            first: None,
            counts: None,
        },
        effort: Effort::new(tokens, seconds, 1),
        marks: opened.marks,
        results: Results::Throughput(results),
    };
    if let Some(folder) = &arguments.out {
        fs_err::create_dir_all(folder)?;
        output::write(&report, folder)?;
        show_with_page(&report, folder, arguments.json)?;
        return Ok(0);
    }
    show(&report, arguments.json)?;
    Ok(0)
}
