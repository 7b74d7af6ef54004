//! `xlstm-eval report RUN`, `compare RUN…` and `page EVALUATION`: pages about runs and evaluations.

use std::path::{Path, PathBuf};

use clap::Args;
use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::printable;
use xlstm_trainer::command_line::{print, say};
use xlstm_trainer::report::{
    EvaluationView, RunView, comparisons, evaluation_page, evaluations_of, load_overlap, runs_page,
};

/// A page about a run.
#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// The run's folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// More reports of evaluations to show than those in the run's folder (folder or file); may be given again
    #[arg(long, value_name = "EVALUATION")]
    evaluation: Vec<PathBuf>,
    /// Where to write the page [default: report.html in the run's folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl ReportArguments {
    /// Writes the page; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let out = self.out.clone().unwrap_or_else(|| self.run.join("report.html"));
        write(std::slice::from_ref(&self.run), &self.evaluation, &out)
    }
}

/// A page about several runs side by side.
#[derive(Debug, Args)]
pub(super) struct CompareArguments {
    /// Folders of runs
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// More reports of evaluations to show than those in the run's folder (folder or file); may be given again
    #[arg(long, value_name = "EVALUATION")]
    evaluation: Vec<PathBuf>,
    /// Where to write the page
    #[arg(short, long, value_name = "FILE", default_value = "comparison.html")]
    out: PathBuf,
}

impl CompareArguments {
    /// Writes the page; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        write(&self.runs, &self.evaluation, &self.out)
    }
}

/// A page about an evaluation.
#[derive(Debug, Args)]
pub(super) struct PageArguments {
    /// The evaluation's folder, or its report
    #[arg(value_name = "EVALUATION")]
    evaluation: PathBuf,
    /// What `xlstm-data overlap TRAIN EVAL --json` printed: adds contamination by domain
    #[arg(long, value_name = "FILE")]
    overlap: Option<PathBuf>,
    /// Where to write the page [default: report.html beside the report]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl PageArguments {
    /// Writes the page; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let out = write_page(&self.evaluation, self.overlap.as_deref(), self.out.as_deref())?;
        print(&format!("{}\n", printable::path(&out)))?;
        Ok(0)
    }
}

/// Writes an evaluation's page, beside its report unless `out` says where; returns its path.
pub(super) fn write_page(
    evaluation: &Path,
    overlap: Option<&Path>,
    out: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let view = EvaluationView::load(evaluation)?;
    let overlap = overlap.map(load_overlap).transpose()?;
    let out = out.map_or_else(|| view.path.with_extension("html"), Path::to_path_buf);
    write_atomic(&out, evaluation_page(&view, overlap.as_ref()).as_bytes())?;
    Ok(out)
}

fn write(runs: &[PathBuf], evaluations: &[PathBuf], out: &Path) -> anyhow::Result<u8> {
    let views = RunView::load_all(runs)?;
    for (run, note) in views.iter().flat_map(|run| run.notes.iter().map(move |note| (run, note))) {
        say(&format!("note: {}", printable::text(&format!("{}: {note}", run.name))));
    }
    let mut shown = Vec::new();
    for run in runs {
        shown.extend(evaluations_of(run)?);
    }
    for path in evaluations {
        shown.push(EvaluationView::load(path)?);
    }
    let differences = comparisons(&views, &shown)?;
    for comparison in differences.iter().filter(|comparison| comparison.is_of_everything()) {
        say(&printable::text(&comparison.sentence()));
    }
    write_atomic(out, runs_page(&views, &shown, &differences)?.as_bytes())?;
    print(&format!("{}\n", printable::path(out)))?;
    Ok(0)
}
