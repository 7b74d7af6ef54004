//! Checksums of everything that a split is and was made from, as `sha256sum -c` reads them.
//!
//! Lines that begin with `#` are comments to it; `--ignore-missing` lets the dataset be checked in its folder
//! and the inputs in theirs with the same file.

use std::fmt::Write as _;

use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::origin::Origin;
use xlstm_manifests::printable;
use xlstm_manifests::{Manifest, Sha256Digest};

use crate::report::CommandError;

/// The text for `manifest`.
pub(super) fn render(manifest: &Manifest) -> Result<String, CommandError> {
    let mut text = format!("# xlstm dataset, split {}, root {}\n", manifest.split, manifest.root);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}  {MANIFEST_NAME}", Sha256Digest::of(&manifest.to_bytes()?));
    for file in manifest.data_files() {
        let _ = writeln!(text, "{}  {}", file.sha256, file.path);
    }
    let origin = Origin::of(manifest);
    let from = match (&origin.repository, &origin.revision, &origin.claimed) {
        (Some(repository), Some(revision), _) => format!("from {repository} @ {revision}"),
        (_, _, Some(claim)) => claim.sentence(),
        _ => format!("from {}", manifest.source.profile),
    };
    let _ = writeln!(text, "# inputs, {}", printable::text(&from));
    for input in &manifest.inputs {
        let _ = writeln!(text, "{}  {}", input.sha256, input.path);
    }
    Ok(text)
}
