//! The command line of `xlstm-eval`: pure argument structs, and one file for each command.

mod evaluate;
mod extrapolate;
mod throughput;

use clap::{CommandFactory as _, Parser, Subcommand};
use xlstm_trainer::command_line::{GenerateArguments, print};

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
    /// Longer contexts than in training, over the same tokens
    Extrapolate(extrapolate::ExtrapolateArguments),
    /// Generate text with a run's newest checkpoint
    Generate(GenerateArguments),
    /// Speed of generation: time against length, tokens a second against batch size
    Throughput(throughput::ThroughputArguments),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<u8> {
    match Cli::parse().command {
        Command::Perplexity(arguments) => evaluate::perplexity(&arguments),
        Command::Paloma(arguments) => evaluate::paloma(&arguments),
        Command::Extrapolate(arguments) => extrapolate::run(&arguments),
        Command::Throughput(arguments) => throughput::run(&arguments),
        Command::Generate(arguments) => arguments.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "xlstm-eval", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
    }
}
