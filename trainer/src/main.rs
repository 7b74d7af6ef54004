//! `xlstm-train`: trains xLSTM models on prepared shards, and shows what a run did.
//!
//! Exit codes: 0 done, 1 the user's input or data, 2 a fault of the program, 128 + n stopped by signal n (saved).

mod cli;

use std::process::ExitCode;

use xlstm_trainer::TrainError;

#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let known = error.downcast_ref::<TrainError>();
            match known {
                // These say everything in one text; others are a chain.
                Some(error) => eprintln!("error: {error}"),
                None => eprintln!("error: {error:#}"),
            }
            if let Some(hint) = known.and_then(TrainError::hint) {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(known.map_or(1, TrainError::exit_code))
        }
    }
}
