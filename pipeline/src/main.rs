//! `xlstm-data`: see `xlstm-data --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    xlstm_pipeline::cli::run()
}
