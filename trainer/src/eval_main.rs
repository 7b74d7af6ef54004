//! `xlstm-eval`: says how good a model is, where, and proves on which data.
//!
//! Exit codes: 0 done, 1 the user's input or data, 2 a fault of the program, 3 `verify`
//! could not follow every link, 128 + n stopped by signal n (saved).

mod eval_cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    xlstm_trainer::command_line::run_program(eval_cli::run)
}
