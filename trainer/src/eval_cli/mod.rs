//! The command line of `xlstm-eval`: pure argument structs, and one file for each command.

mod accuracy;
mod evaluate;
mod extrapolate;
mod losses;
mod report;
mod reproduce;
mod results;
mod serve;
mod throughput;
mod verify;

use clap::{CommandFactory as _, Parser, Subcommand};
use xlstm_trainer::command_line::{GENERATION_MEMORY, GenerateArguments, LOADING_MEMORY, advise, print};
use xlstm_trainer::evaluation::stored::StoredMeasure;

const EVALUATION_MEMORY: &str = "lower --batch-tokens, or --context-length if the windows may be shorter";
const EXTRAPOLATION_MEMORY: &str = "lower --chunk, leave --full out, or lower --lengths";

/// Evaluate models that `xlstm-train` made, on data that `xlstm-data` prepared
#[derive(Debug, Parser)]
#[command(name = "xlstm-eval", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Perplexity and bits per byte of a split: by set, by position, with confidence intervals
    Perplexity(evaluate::PerplexityArguments),
    /// PALOMA: perplexity by source and domain with the paper's windows, and the averages of both papers
    Paloma(evaluate::PalomaArguments),
    /// Accuracy on the stored targets of a split of examples: pooled over targets, and by length
    Accuracy(accuracy::StoredArguments),
    /// Mean squared error on the stored targets of a split of numbers: pooled over targets, by length and position
    SquaredError(accuracy::StoredArguments),
    /// Losses of single tokens, with the likeliest tokens beside each, as a Parquet table
    Losses(losses::LossesArguments),
    /// Longer contexts than in training, over the same tokens
    Extrapolate(extrapolate::ExtrapolateArguments),
    /// Generate text with a run's newest checkpoint
    Generate(GenerateArguments),
    /// Speed of generation: time against length, tokens a second against batch size
    Throughput(throughput::ThroughputArguments),
    /// Write a page about a run: recipe, curves, speed, data, licenses, and where each figure comes from
    Report(report::ReportArguments),
    /// Write a page about several runs side by side
    Compare(report::CompareArguments),
    /// Write a page about an evaluation
    Page(report::PageArguments),
    /// Recompute the digests along the chain from a run to its bytes; fails when a link was altered
    Verify(verify::VerifyArguments),
    /// Serve a checkpoint to lm-evaluation-harness and other clients of the completions protocol
    Serve(serve::ServeArguments),
    /// Print what reproduces each table and figure of the paper, what came out, and what it costs
    Reproduce(reproduce::ReproduceArguments),
    /// Write a page on what agrees with the paper and what does not, from a folder of results
    Results(results::ResultsArguments),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<u8> {
    match Cli::parse().command {
        Command::Perplexity(arguments) => advise(EVALUATION_MEMORY, evaluate::perplexity(&arguments)),
        Command::Paloma(arguments) => advise(EVALUATION_MEMORY, evaluate::paloma(&arguments)),
        Command::Accuracy(arguments) => {
            advise(EVALUATION_MEMORY, accuracy::run(StoredMeasure::Accuracy, &arguments))
        }
        Command::SquaredError(arguments) => {
            advise(EVALUATION_MEMORY, accuracy::run(StoredMeasure::SquaredError, &arguments))
        }
        Command::Losses(arguments) => advise(EVALUATION_MEMORY, losses::run(&arguments)),
        Command::Extrapolate(arguments) => advise(EXTRAPOLATION_MEMORY, extrapolate::run(&arguments)),
        Command::Throughput(arguments) => advise("lower --batches or --prefill", throughput::run(&arguments)),
        Command::Generate(arguments) => advise(GENERATION_MEMORY, arguments.run()),
        Command::Report(arguments) => arguments.run(),
        Command::Compare(arguments) => arguments.run(),
        Command::Page(arguments) => arguments.run(),
        Command::Verify(arguments) => advise(LOADING_MEMORY, arguments.run()),
        Command::Serve(arguments) => advise(LOADING_MEMORY, arguments.run()),
        Command::Reproduce(arguments) => arguments.run(),
        Command::Results(arguments) => arguments.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "xlstm-eval", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
    }
}
