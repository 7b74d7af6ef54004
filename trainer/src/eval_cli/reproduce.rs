//! `xlstm-eval reproduce`: the page on every table and figure of the paper.

use std::path::PathBuf;

use clap::Args;
use xlstm_trainer::command_line::print;
use xlstm_trainer::reproduce::reproduce;

/// The page on every table and figure of the paper.
#[derive(Debug, Args)]
pub(super) struct ReproduceArguments {
    /// Folder of evaluation reports
    #[arg(long, value_name = "DIR", default_value = "docs/results")]
    results: PathBuf,
}

impl ReproduceArguments {
    /// Prints the page as Markdown; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        print(&reproduce(&self.results)?)?;
        Ok(0)
    }
}
