//! The embedded default: the text of the crates in a `Cargo.lock`, from cargo's own cache.
//!
//! Needs no Hub and no download: whoever built this program has the archives. Each is checked against the
//! lock file's SHA-256; the license is the one in the crate's manifest.

use xlstm_manifests::manifest::{Declared, Licence, Tokenizer};
use xlstm_manifests::printable;
use xlstm_manifests::safe_path::SafePath;

use super::local::{OnThisMachine, stated_license};
use super::refuse;
use super::request::{Common, CratesRequest};
use crate::plan::{Location, Plan, PlannedInput};
use crate::sources::cargo_cache::{LockedCrate, LockedPackages};
use crate::sources::{Fields, Format, SourceError, cargo_cache, crate_archive};

pub(super) fn plans(
    request: &CratesRequest,
    common: &Common,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    let locked = cargo_cache::packages(&request.lockfile)?;
    let notes = left_out(&locked);
    let own = Licence {
        claimed_by: "each crate's own manifest".into(),
        statement: "the licence of each input is recorded with it".into(),
        spdx: None,
    };
    let whole = OnThisMachine {
        profile: "crates",
        // Who prepares them may know better, or not: both statements stand.
        licences: [own].into_iter().chain(stated_license(request.license.as_deref())?).collect(),
        text_field: None,
        fields: Fields::default(),
        inputs: inputs(request, &locked.crates)?,
        inputs_folder: None,
        notes,
    };
    whole.plans("train", request.holdout.as_deref(), common, tokenizer)
}

/// The packages of the lock file that have no archive.
fn left_out(locked: &LockedPackages) -> Vec<String> {
    let mut notes = Vec::new();
    if !locked.git.is_empty() {
        let shown: Vec<_> =
            locked.git.iter().take(10).map(|name| format!("`{}`", printable::text(name))).collect();
        let more = if locked.git.len() > 10 { ", …" } else { "" };
        notes.push(format!(
            "left out: {} packages from git repositories, which have no archive with a published digest ({}{more})",
            locked.git.len(),
            shown.join(", ")
        ));
    }
    if locked.local > 0 {
        notes.push(format!(
            "left out: {} packages of the workspace or of paths on this machine",
            locked.local
        ));
    }
    notes
}

fn inputs(request: &CratesRequest, crates: &[LockedCrate]) -> anyhow::Result<Vec<PlannedInput>> {
    let cache = cargo_cache::cache_folder();
    let mut inputs = Vec::new();
    let mut missing = Vec::new();
    for package in crates {
        let path = match cargo_cache::locate(&cache, package) {
            Ok(path) => path,
            Err(SourceError::NoArchive { .. }) => {
                missing.push(package.file_name());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        inputs.push(PlannedInput {
            path: SafePath::new(package.file_name())?,
            format: Format::Crate,
            size: Some(fs_err::metadata(&path)?.len()),
            declared: Some(Declared {
                algorithm: "sha256".into(),
                digest: package.checksum.to_string(),
                by: "Cargo.lock".into(),
            }),
            licence: crate_archive::read_crate_licence(&path)?,
            location: Location::Local(path),
            set_prefix: None,
        });
    }
    if let Some(first) = missing.first() {
        return Err(refuse(format!(
            "`{}`: {} of its crates are not in cargo's cache (first: {first}); run `cargo fetch --locked` beside it",
            printable::path(&request.lockfile),
            missing.len(),
        )));
    }
    Ok(inputs)
}
