//! `docs/results/index.html`: what was compared with the paper, what agrees and what does not, on one page.
//!
//! Everything on it is computed from the files in a folder of results: reports, figures of documents, results of sweeps, run
//! manifests and recipes. Words of people, a folder's `summary.txt`, are quoted. A new folder is found by itself: a small twin by its
//! recipes' names, scaling and longer contexts by what they measured, all else in a table of its own.

mod agreement;
mod extrapolation;
mod found;
mod ordering;
mod pairs;
mod rest;
mod scaling;
mod sweeps;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use xlstm_manifests::printable;
use xlstm_pipeline::report::{Cell, Page, Table, count};

use super::committed::Committed;
use super::experiments::{EXPERIMENTS, Experiment};
use crate::error::Result;
use found::{Found, Links, Verified, chapter};

/// What the head of the page says of a section.
struct Glance {
    /// The section's id.
    id: String,
    /// The paper's table or figure.
    place: &'static str,
    /// At the paper's protocol, or made small.
    scale: String,
    /// What was compared, with the number of seeds.
    compared: String,
    /// What came out, in a sentence.
    outcome: String,
    /// Reports, runs and results that the section's figures come from.
    sources: BTreeSet<PathBuf>,
}

/// What all sections are made from.
struct Context<'a> {
    committed: &'a Committed,
    runs: &'a [Found],
    links: Links,
    /// Summaries that were quoted: each is, once, where its folder is first met.
    quoted: RefCell<BTreeSet<PathBuf>>,
}

type Write = fn(&mut Page, &'static Experiment, &Context<'_>) -> Result<Option<Glance>>;

/// The page over the folder `results`, for the place `out`; complete HTML.
///
/// # Errors
/// When a file in the folder cannot be read or was altered.
pub fn results_page(results: &Path, out: &Path) -> Result<String> {
    let committed = Committed::read(results)?;
    let runs = found::runs(&committed)?;
    let context = Context {
        committed: &committed,
        runs: &runs,
        links: Links::from_page(out),
        quoted: RefCell::default(),
    };
    let others: [Write; 3] = [sweeps::write, scaling::write, extrapolation::write];
    let mut sections = Page::new("");
    let (mut glances, mut verified) = (Vec::new(), Verified::default());
    for experiment in EXPERIMENTS {
        let mut close = |sections: &mut Page, glance: Option<Glance>| -> Result<()> {
            let Some(glance) = glance else { return Ok(()) };
            verified.join(context.close(sections, &glance)?);
            glances.push(glance);
            Ok(())
        };
        for length in ordering::lengths(experiment, &context)? {
            let glance = ordering::write(&mut sections, experiment, &context, length)?;
            close(&mut sections, glance)?;
        }
        for write in others {
            let glance = write(&mut sections, experiment, &context)?;
            close(&mut sections, glance)?;
        }
    }
    let shown = glances.iter().flat_map(|glance| &glance.sources).collect();
    rest::write(&mut sections, &context, &shown);
    let mut page = Page::new("The paper's comparisons, made again");
    head(&mut page, &glances);
    page.append(sections);
    not_run(&mut page, &glances);
    how(&mut page, &verified);
    Ok(printable::lines(&page.render()))
}

impl Context<'_> {
    /// The folders of these files that have words of people.
    fn chapters(&self, sources: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        sources.iter().map(|source| chapter(&self.committed.folder, source)).collect()
    }

    /// Quotes what people wrote on the folders of a section's figures.
    fn learned(&self, page: &mut Page, sources: &BTreeSet<PathBuf>) -> Result<()> {
        for folder in self.chapters(sources) {
            let summary = folder.join("summary.txt");
            if summary.is_file() && self.quoted.borrow_mut().insert(summary.clone()) {
                for text in fs_err::read_to_string(&summary)?.split("\n\n") {
                    page.paragraph(&text.split_whitespace().collect::<Vec<_>>().join(" "));
                }
            }
        }
        Ok(())
    }

    /// Ends a section: where to read more, and what `verify` says of its figures.
    fn close(&self, page: &mut Page, glance: &Glance) -> Result<Verified> {
        let results = &self.committed.folder;
        let mut readmes = Vec::new();
        for folder in self.chapters(&glance.sources) {
            let readme = folder.join("README.md");
            if readme.is_file() {
                let name = Cell::text(&self.links.name(&readme));
                readmes.push(("Commands, machine, details", self.links.cell(&readme, name)));
            }
        }
        if !readmes.is_empty() {
            page.fact_cells(&readmes);
        }
        let mut verified = Verified::default();
        for source in &glance.sources {
            verified.add(results, source)?;
        }
        verified.write(page);
        Ok(verified)
    }
}

/// What there is, at a glance.
fn head(page: &mut Page, glances: &[Glance]) {
    let places: BTreeSet<&str> = glances.iter().map(|glance| glance.place).collect();
    page.paragraph(&format!(
        "xLSTM: Extended Long Short-Term Memory (Beck et al., arXiv 2405.04517v2) compares methods in {} tables and groups of \
         figures. {} of them have results here, made by these programs alone. Small twins have fewer parameters and tokens than the \
         paper and other text: their perplexities do not compare with the paper's, their order does.",
        EXPERIMENTS.len(),
        places.len()
    ));
    let mut table = Table::new(
        "At a glance: what was compared, and whether it came out as in the paper",
        &["In the paper", "Here", "Compared", "What came out"],
    );
    for glance in glances {
        table.cells(vec![
            Cell::text(glance.place).link(&glance.id),
            Cell::text(glance.scale.as_str()),
            Cell::text(&glance.compared),
            Cell::text(&glance.outcome),
        ]);
    }
    page.table(&table);
}

/// What there is not.
fn not_run(page: &mut Page, glances: &[Glance]) {
    let missing: Vec<&Experiment> = EXPERIMENTS
        .iter()
        .filter(|experiment| glances.iter().all(|glance| glance.place != experiment.place))
        .collect();
    if missing.is_empty() {
        return;
    }
    page.section("not-run", "Not run");
    let mut table = Table::new(
        "Tables and figures of the paper without a result here",
        &["In the paper", "What it shows"],
    );
    missing.iter().for_each(|experiment| table.row(&[experiment.place, experiment.what]));
    page.table(&table);
    page.paragraph("What each of them costs, and its commands, are in docs/reproduce.md.");
}

/// How to check it.
fn how(page: &mut Page, verified: &Verified) {
    page.section("check", "How to check it");
    page.paragraph(
        "This page was written by the first command from the files beside it, and a test compares it with what they say. The \
         second one follows a figure to the bytes that it comes from: parameters and rows of data are not kept here, their \
         digests are, and the same recipe on the same data makes them again.",
    );
    page.commands(&[
        "xlstm-eval results docs/results".into(),
        "xlstm-eval verify docs/results/FOLDER/runs/RUN/evaluations/validation".into(),
    ]);
    verified.write(page);
}

/// `2 seeds`, or the range of numbers of seeds.
fn seeds(counts: impl Iterator<Item = u64>) -> String {
    let counts: BTreeSet<u64> = counts.collect();
    match (counts.first(), counts.last()) {
        (Some(1), Some(1)) => "one seed".into(),
        (Some(low), Some(high)) if low == high => format!("{} seeds", count(*low)),
        (Some(low), Some(high)) => format!("{} to {} seeds", count(*low), count(*high)),
        _ => "no run".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_the_one_that_is_written() {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results");
        let path = results.join("index.html");
        let written = results_page(&results, &path).unwrap();
        let committed = fs_err::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == written,
            "docs/results/index.html differs: write it anew with `xlstm-eval results docs/results`"
        );
    }

    #[test]
    fn numbers_of_seeds_are_told_as_one_or_a_range() {
        assert_eq!(seeds([1, 1].into_iter()), "one seed");
        assert_eq!(seeds([2, 2].into_iter()), "2 seeds");
        assert_eq!(seeds([3, 1].into_iter()), "1 to 3 seeds");
        assert_eq!(seeds(std::iter::empty()), "no run");
    }
}
