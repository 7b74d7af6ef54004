//! The embedded default: the text of the crates in a `Cargo.lock`, from cargo's own cache.
//!
//! Needs no Hub and no download: whoever built this program has the archives. Each is checked against the
//! lock file's SHA-256; the licence is the one in the crate's manifest.

use anyhow::bail;
use xlstm_manifests::manifest::{Declared, Licence, Tokenizer};
use xlstm_manifests::safe_path::SafePath;

use super::local::OnThisMachine;
use super::request::{Common, CratesRequest};
use crate::plan::{Location, Plan, PlannedInput};
use crate::sources::{Fields, Format, SourceError, cargo_cache, crate_archive};

pub(super) fn plans(
    request: &CratesRequest,
    common: &Common,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    let whole = OnThisMachine {
        profile: "crates",
        licence: Licence {
            claimed_by: "each crate's own manifest".into(),
            statement: "the licence of each input is recorded with it".into(),
            spdx: None,
        },
        text_field: None,
        set_field: None,
        fields: Fields::default(),
        inputs: inputs(request)?,
        inputs_folder: None,
    };
    whole.plans("train", request.holdout.as_deref(), common, tokenizer)
}

fn inputs(request: &CratesRequest) -> anyhow::Result<Vec<PlannedInput>> {
    let cache = cargo_cache::cache_folder();
    let mut inputs = Vec::new();
    let mut missing = Vec::new();
    for package in cargo_cache::packages(&request.lockfile)? {
        let path = match cargo_cache::locate(&cache, &package) {
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
        bail!(
            "`{}`: {} of its crates are not in cargo's cache (first: {first}); run `cargo fetch --locked` beside it",
            request.lockfile.display(),
            missing.len(),
        );
    }
    Ok(inputs)
}
