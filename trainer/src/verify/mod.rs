//! Recomputes the digests along a chain and names the link that does not hold.
//!
//! ```text
//! report ─► checkpoint files ─► run manifest ─► recipe ─► dataset manifest ─► shards, checksums ─► root ─► sources
//! ```
//! Two kinds of evidence are used. Bytes are compared with the digest that the link before them recorded. Numbers that
//! no digest covers (a metrics line, a total in a report) are compared with the other numbers that decide them: a
//! perplexity with its loss, a learning rate with the recipe, a step's tokens with its number. Who alters all of those
//! consistently is found only by computing the figure again: that is what `deep` is for.
//!
//! A link whose bytes are not at hand is neither held nor broken, and is said to be so; likewise source files that nobody
//! compared with a published digest. [`crate::provenance`] finds the links; this module only compares.

mod dataset;
mod figures;
mod initial;
mod recompute;
mod report;
mod run;

use std::path::{Path, PathBuf};

use serde::Serialize;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::run_manifest::RUN_NAME;

use crate::error::Result;
use crate::provenance::FileLink;

pub use report::verify_report;
pub use run::verify_run;

/// How far to look.
#[derive(Debug, Clone, Default)]
pub struct Depth {
    /// Read the source files of datasets again, tokenize them anew, and compute the newest validation again.
    pub deep: bool,
    /// Folder of the source files, where they are not where `prepare` left them.
    pub inputs: Option<PathBuf>,
    /// Folders in which datasets are looked for, by root.
    pub data: Vec<PathBuf>,
}

/// How a link was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// It holds.
    Ok,
    /// It does not hold: something was altered.
    Failed,
    /// What it leads to is not here.
    NotAtHand,
    /// It was not to be followed: that takes `deep`.
    NotAsked,
    /// It ends in a claim: nobody compared these bytes with what somebody else published.
    Unchecked,
}

/// A link of the chain with what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its name: `recipe`, `checkpoint`, `training split`.
    pub link: String,
    /// The file or folder that it leads to.
    pub path: PathBuf,
    /// How it was found.
    pub state: LinkState,
    /// What was compared; for a failed one, what was expected, what was found.
    pub detail: String,
}

/// Follows all links of a run or of an evaluation report, whichever `path` names.
///
/// # Errors
/// When it is neither, or cannot be read.
pub fn verify(path: &Path, depth: &Depth) -> Result<Chain> {
    if path.join(RUN_NAME).is_file() || path.file_name().is_some_and(|name| name == RUN_NAME) {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        return verify_run(folder, depth);
    }
    verify_report(path, depth)
}

/// All links of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// In the order in which they were followed.
    pub links: Vec<Link>,
}

impl Chain {
    /// Whether no link is broken. Links that are not at hand or end in a claim do not count.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.count(LinkState::Failed) == 0
    }

    /// How many links were found so.
    #[must_use]
    pub fn count(&self, state: LinkState) -> usize {
        self.links.iter().filter(|link| link.state == state).count()
    }

    fn add(&mut self, link: &str, path: &Path, state: LinkState, detail: impl Into<String>) {
        self.links.push(Link { link: link.into(), path: path.into(), state, detail: detail.into() });
    }

    fn ok(&mut self, link: &str, path: &Path, detail: impl Into<String>) {
        self.add(link, path, LinkState::Ok, detail);
    }

    fn failed(&mut self, link: &str, path: &Path, detail: impl Into<String>) {
        self.add(link, path, LinkState::Failed, detail);
    }

    fn not_at_hand(&mut self, link: &str, path: &Path, detail: impl Into<String>) {
        self.add(link, path, LinkState::NotAtHand, detail);
    }

    fn not_asked(&mut self, link: &str, path: &Path, detail: impl Into<String>) {
        self.add(link, path, LinkState::NotAsked, detail);
    }

    /// One link for a list of things that were found wrong: held when there is none.
    fn list(&mut self, link: &str, path: &Path, checked: impl Into<String>, wrong: &[String]) {
        match wrong {
            [] => self.ok(link, path, checked),
            wrong => self.failed(link, path, wrong.join("; ")),
        }
    }

    /// Compares a file with the digest recorded for it.
    fn file(&mut self, link: &str, FileLink { path, sha256: expected, .. }: &FileLink) {
        if !path.is_file() {
            return self.not_at_hand(link, path, format!("no such file; its SHA-256 is {expected}"));
        }
        match digest_file(path) {
            Ok((_, found)) if found == *expected => self.ok(link, path, format!("SHA-256 {found}")),
            Ok((_, found)) => {
                self.failed(link, path, format!("expected SHA-256 {expected}, found {found}"));
            }
            Err(error) => self.failed(link, path, error.to_string()),
        }
    }
}

/// `expected … , found …` where two values differ; for [`Chain::list`].
fn differ<T: PartialEq + std::fmt::Display>(wrong: &mut Vec<String>, what: &str, expected: &T, found: &T) {
    if expected != found {
        wrong.push(format!("{what}: expected {expected}, found {found}"));
    }
}
