//! The runs of a folder of results with their reports; links from the page to files; what `verify` says.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use xlstm_pipeline::report::{Cell, Page, count};

use super::super::committed::Committed;
use crate::error::Result;
use crate::evaluation::results::{Perplexity, Results};
use crate::report::{EvaluationView, RunView, evaluations_of};
use crate::verify::{Depth, LinkState, verify};

/// A run with its evaluations.
pub(super) struct Found {
    pub(super) run: RunView,
    pub(super) evaluations: Vec<EvaluationView>,
}

impl Found {
    /// The evaluation of the run's own validation split, whole.
    pub(super) fn validation(&self) -> Option<&EvaluationView> {
        let own = self.run.manifest.validation.as_ref()?.root;
        let is_own = |view: &&EvaluationView| {
            let report = &view.report;
            report.dataset.as_ref().is_some_and(|data| data.root == own) && report.setting.first.is_none()
        };
        self.evaluations.iter().filter(is_own).find(|view| perplexity(view).is_some())
    }

    /// The evaluation of the test split of the same data.
    pub(super) fn test(&self) -> Option<&EvaluationView> {
        let profile = &self.run.manifest.train.profile;
        let is_test = |view: &&EvaluationView| {
            let report = &view.report;
            // Perplexity by frequency may be of another text, whose split is called the same.
            report.setting.counts.is_none()
                && report
                    .dataset
                    .as_ref()
                    .is_some_and(|data| data.split == "test" && data.profile == *profile)
        };
        self.evaluations.iter().filter(is_test).find(|view| perplexity(view).is_some())
    }
}

/// The figures of an evaluation of perplexity.
pub(super) fn perplexity(view: &EvaluationView) -> Option<&Perplexity> {
    match &view.report.results {
        Results::Perplexity(found) => Some(found),
        _ => None,
    }
}

/// All runs that have evaluations, by folder.
pub(super) fn runs(committed: &Committed) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for folder in &committed.runs {
        let evaluations = evaluations_of(folder)?;
        if !evaluations.is_empty() {
            found.push(Found { run: RunView::load(folder)?, evaluations });
        }
    }
    Ok(found)
}

/// The folder in `results` that says in words what `path` belongs to: the nearest above it that has a README or a summary,
/// else the one that lies in `results` itself.
pub(super) fn chapter(results: &Path, path: &Path) -> PathBuf {
    let inside = path.ancestors().skip(1).take_while(|above| above.starts_with(results) && *above != results);
    let inside: Vec<&Path> = inside.collect();
    let speaks = |folder: &&&Path| folder.join("README.md").is_file() || folder.join("summary.txt").is_file();
    inside.iter().find(speaks).or(inside.last()).map_or_else(|| results.into(), |folder| folder.to_path_buf())
}

/// Addresses of files as seen from the page.
pub(super) struct Links {
    /// The page's folder.
    from: PathBuf,
}

impl Links {
    /// From the page at `out`.
    pub(super) fn from_page(out: &Path) -> Self {
        Self { from: out.parent().map_or_else(PathBuf::new, Path::to_path_buf) }
    }

    /// The relative path to a file that is there; `None` where it cannot be told.
    fn relative(&self, path: &Path) -> Option<String> {
        let here = if self.from.as_os_str().is_empty() { Path::new(".") } else { &self.from };
        let (from, to) = (here.canonicalize().ok()?, path.canonicalize().ok()?);
        let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
        let up = from.components().skip(common).map(|_| Component::ParentDir);
        let relative: PathBuf = up.chain(to.components().skip(common)).collect();
        Some(relative.to_str()?.to_owned())
    }

    /// A cell that leads to the file.
    pub(super) fn cell(&self, path: &Path, cell: Cell) -> Cell {
        match self.relative(path) {
            Some(relative) => cell.file(&relative),
            None => cell,
        }
    }

    /// The file's name as seen from the page.
    pub(super) fn name(&self, path: &Path) -> String {
        self.relative(path).unwrap_or_else(|| path.display().to_string())
    }
}

/// What `verify` found over some reports, among the files in the folder of results.
#[derive(Debug, Default)]
pub(super) struct Verified {
    reports: usize,
    /// Files and figures that hold; each once.
    held: BTreeSet<(String, PathBuf)>,
    /// Those that do not, with why.
    failed: BTreeSet<String>,
    /// Those that are not kept in the folder.
    elsewhere: BTreeSet<String>,
}

impl Verified {
    /// Follows the links of a report or a run.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn add(&mut self, results: &Path, path: &Path) -> Result<()> {
        self.reports += 1;
        for link in verify(path, &Depth::default())?.links {
            // What lies elsewhere on this machine says nothing of the folder, and would make another page on each.
            let inside = link.path.starts_with(results);
            match link.state {
                LinkState::Ok if inside => drop(self.held.insert((link.link, link.path))),
                LinkState::Failed => {
                    let path = link.path.strip_prefix(results).unwrap_or(&link.path).display().to_string();
                    self.failed.insert(format!("{}, {path}: {}", link.link, link.detail));
                }
                LinkState::NotAtHand if inside => drop(self.elsewhere.insert(kind(&link.link))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds what another one found.
    pub(super) fn join(&mut self, other: Self) {
        self.reports += other.reports;
        self.held.extend(other.held);
        self.failed.extend(other.failed);
        self.elsewhere.extend(other.elsewhere);
    }

    /// Writes it.
    pub(super) fn write(&self, page: &mut Page) {
        let held = count(self.held.len() as u64);
        let mut sentence = format!(
            "xlstm-eval verify over {} of the reports and runs behind this: {held} files and sets of figures hold, {} do not.",
            count(self.reports as u64),
            count(self.failed.len() as u64)
        );
        if !self.elsewhere.is_empty() {
            let kinds: Vec<&str> = self.elsewhere.iter().map(String::as_str).collect();
            sentence.push_str(&format!(
                " Not kept here, so followed only to their digests: {}.",
                kinds.join(", ")
            ));
        }
        page.verdict(
            self.failed.is_empty(),
            if self.failed.is_empty() { "holds." } else { "broken." },
            &sentence,
        );
        self.failed.iter().for_each(|failed| page.warning(failed));
    }
}

/// The kind of a link, without the name of the one file.
fn kind(link: &str) -> String {
    link.split_once(':').map_or(link, |(kind, _)| kind).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_with_words_is_the_chapter() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path();
        let run = results.join("sweeps/parity/runs/a");
        fs_err::create_dir_all(&run).unwrap();
        assert_eq!(chapter(results, &run.join("run.json")), results.join("sweeps"));
        fs_err::write(results.join("sweeps/parity/README.md"), "x").unwrap();
        assert_eq!(chapter(results, &run.join("run.json")), results.join("sweeps/parity"));
    }

    #[test]
    fn links_lead_from_the_page_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("docs/results");
        fs_err::create_dir_all(results.join("a b")).unwrap();
        let report = results.join("a b/report.json");
        fs_err::write(&report, "{}").unwrap();
        assert_eq!(Links::from_page(&results.join("index.html")).name(&report), "a b/report.json");
        let other = folder.path().join("index.html");
        assert_eq!(Links::from_page(&other).name(&report), "docs/results/a b/report.json");
        let beside = folder.path().join("docs/pages");
        fs_err::create_dir_all(&beside).unwrap();
        assert_eq!(Links::from_page(&beside.join("x.html")).name(&report), "../results/a b/report.json");
    }
}
