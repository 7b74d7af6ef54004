//! The command line of `xlstm-eval`: pure argument structs, and one file for each command.

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
    /// Generate text with a run's newest checkpoint
    Generate(GenerateArguments),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<u8> {
    match Cli::parse().command {
        Command::Generate(arguments) => arguments.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "xlstm-eval", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
    }
}
