//! `xlstm-train`: trains xLSTM models on prepared shards, and shows what a run did.
//!
//! Exit codes: 0 done, 1 the user's input or data, 2 a fault of the program, 128 + n stopped by signal n (saved).

mod cli;

use std::process::ExitCode;

use xlstm_trainer::TrainError;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error
                .downcast_ref::<xlstm_trainer::TrainError>()
                .map_or(1, xlstm_trainer::TrainError::exit_code);
            #[expect(clippy::print_stderr, reason = "messages go to stderr")]
            {
                eprintln!("error: {error:#}{}", hint.unwrap_or_default());
            }
            ExitCode::from(code)
        }
    }
}
