//! `xlstm-eval results`: the page on what a folder of results says to the paper.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::printable;
use xlstm_trainer::command_line::print;
use xlstm_trainer::reproduce::results_page;

/// The page on what agrees with the paper and what does not.
#[derive(Debug, Args)]
pub(super) struct ResultsArguments {
    /// Folder of runs with their evaluations, and of results of sweeps
    #[arg(value_name = "DIR", default_value = "docs/results")]
    results: PathBuf,
    /// Where to write the page [default: index.html in the folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl ResultsArguments {
    /// Writes the page; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let out = self.out.clone().unwrap_or_else(|| self.results.join("index.html"));
        write_atomic(&out, results_page(&self.results, &out)?.as_bytes())?;
        print(&format!("{}\n", printable::path(&out)))?;
        Ok(0)
    }
}
