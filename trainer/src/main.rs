//! `xlstm-train`: trains xLSTM models on prepared shards, and shows what a run did.
//!
//! Exit codes: 0 done, 1 the user's input or data, 2 a fault of the program, 128 + n stopped by signal n (saved).

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    xlstm_trainer::command_line::run_program(cli::run)
}
