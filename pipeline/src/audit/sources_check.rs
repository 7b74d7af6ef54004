//! `--sources`: do repository, revision and files still stand on the Hub as they were when they were read?
//!
//! The listing is requested again, not taken from the cache: the question is about today.

use std::collections::BTreeMap;

use serde::Serialize;
use xlstm_manifests::Manifest;

use super::finding::{Check, Findings};
use super::locate::declared;
use crate::hub::{Hub, HubConfig, HubError};
use crate::report::CommandError;

/// How the inputs compare with what the Hub has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourcesReport {
    /// `owner/name`, where the split comes from a repository.
    pub repository: Option<String>,
    /// The commit that was read.
    pub revision: Option<String>,
    /// The commit that the revision which was asked for stands for today.
    pub revision_now: Option<String>,
    /// Inputs that the Hub has with the same digest.
    pub matches: u64,
    /// Inputs whose digest or size differs.
    pub changed: Vec<String>,
    /// Inputs that the Hub does not list.
    pub missing: Vec<String>,
}

/// Asks the Hub about the inputs of `manifest`.
///
/// # Errors
/// When the Hub cannot be asked at all: no network, a wrong setting. What it answers is a finding.
pub(super) fn check(manifest: &Manifest, findings: &mut Findings) -> Result<SourcesReport, CommandError> {
    let source = &manifest.source;
    let mut report = SourcesReport {
        repository: source.repository.clone(),
        revision: source.resolved_revision.clone(),
        revision_now: None,
        matches: 0,
        changed: Vec::new(),
        missing: Vec::new(),
    };
    let (Some(repository), Some(revision)) = (&source.repository, &source.resolved_revision) else {
        return Ok(report);
    };
    let cannot = |error: HubError| CommandError::Usage(format!("the Hub cannot be asked: {error}"));
    let fresh = tempfile::tempdir()?;
    let config = HubConfig { listing_cache: fresh.path().into(), ..HubConfig::from_env().map_err(cannot)? };
    let hub = Hub::new(config).map_err(cannot)?;
    let resolved = hub.resolve(repository, revision).and_then(|_| hub.list(repository, revision));
    let listing = match resolved {
        Ok(listing) => listing,
        Err(error) if is_answer(&error) => {
            findings.add(repository.as_str(), Check::Sources, error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(cannot(error)),
    };
    if let Some(requested) = source.requested_revision.as_deref().filter(|requested| *requested != revision) {
        // A branch may move on; that is said, not blamed.
        report.revision_now = hub.resolve(repository, requested).ok().map(|now| now.sha);
    }
    let listed: BTreeMap<&str, _> = listing.files.iter().map(|file| (file.path.as_str(), file)).collect();
    for input in &manifest.inputs {
        let name = input.path.to_string();
        match listed.get(name.as_str()) {
            Some(file) if file.size == input.size && file.digest == declared(input) => report.matches += 1,
            Some(file) => {
                let expected = format!("{} bytes, {}", input.size, declared(input));
                let found = format!("{} bytes, {} on the Hub", file.size, file.digest);
                findings.differ(name.as_str(), Check::Sources, expected, found);
                report.changed.push(name);
            }
            None => {
                let expected = format!("the file in {repository} at {revision}");
                findings.differ(name.as_str(), Check::Sources, expected, "no such file on the Hub");
                report.missing.push(name);
            }
        }
    }
    Ok(report)
}

/// Whether the Hub answered, only not what was hoped for.
fn is_answer(error: &HubError) -> bool {
    matches!(
        error,
        HubError::RepositoryNotFound { .. }
            | HubError::RevisionNotFound { .. }
            | HubError::Disabled { .. }
            | HubError::Protocol { .. }
    )
}
