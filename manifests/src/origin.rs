//! Where a split comes from: what was compared, and what was only claimed.
//!
//! Two things must never be taken for each other. *Compared* is an input whose bytes had the digest that somebody else
//! published for it (the Hub's listing of a commit, a `Cargo.lock`): the manifest holds that digest in
//! `inputs[].declared`. *Claimed* is what the caller said of files that nothing was compared with
//! (`prepare slimpajama --offline --from DIR`): it stands in `source.claimed`, and statements of a license are then
//! quoted as claimed for these files.
//!
//! Manifests from before `claimed` existed say the same by what they lack: a repository without a resolved revision
//! and without published digests was only ever named by the caller.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::manifest::{Claim, Licence, Manifest, Source};

/// Who claims what stands in [`Source::claimed`].
pub const CALLER: &str = "the caller (--offline --from)";

/// What is known of where a split's inputs come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The repository that the inputs were compared with.
    pub repository: Option<String>,
    /// Its commit.
    pub revision: Option<String>,
    /// Inputs whose bytes were compared with a published digest, by who published it and how.
    pub compared: Vec<Compared>,
    /// Inputs that no published digest vouches for.
    pub not_compared: u64,
    /// What was only said.
    pub claimed: Option<Claim>,
}

/// Inputs that were compared with digests of one publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Who published the digests: `hub`, `Cargo.lock`.
    pub by: String,
    /// `sha256`, `git-blob-sha1`.
    pub algorithm: String,
    /// How many inputs.
    pub inputs: u64,
}

impl Origin {
    /// The origin that `manifest` records.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let mut counts = BTreeMap::<(&str, &str), u64>::new();
        for declared in manifest.inputs.iter().filter_map(|input| input.declared.as_ref()) {
            *counts.entry((&declared.by, &declared.algorithm)).or_default() += 1;
        }
        let compared: Vec<Compared> = counts
            .into_iter()
            .map(|((by, algorithm), inputs)| Compared { by: by.into(), algorithm: algorithm.into(), inputs })
            .collect();
        let checked: u64 = compared.iter().map(|compared| compared.inputs).sum();
        let source = normalized(&manifest.source);
        Self {
            repository: source.repository,
            revision: source.resolved_revision,
            compared,
            not_compared: (manifest.inputs.len() as u64).saturating_sub(checked),
            claimed: source.claimed,
        }
    }

    /// Whether every input was compared with a published digest, and nothing was only claimed.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.claimed.is_none() && self.not_compared == 0 && !self.compared.is_empty()
    }

    /// The origin in one line: `24 inputs compared with sha256 published by hub; repository X @ Y`, or what was claimed.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut parts: Vec<String> = self
            .compared
            .iter()
            .map(|Compared { by, algorithm, inputs }| {
                format!("{inputs} inputs compared with {algorithm} published by {by}")
            })
            .collect();
        if self.not_compared > 0 {
            parts.push(format!("{} inputs compared with nothing", self.not_compared));
        }
        if let Some(repository) = &self.repository {
            let revision = self.revision.as_deref().unwrap_or("a revision not recorded");
            parts.push(format!("repository {repository} @ {revision}"));
        }
        if let Some(claim) = &self.claimed {
            parts.push(claim.sentence());
        }
        parts.join("; ")
    }
}

impl Claim {
    /// The claim in one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let at = self.revision.as_ref().map_or(String::new(), |revision| format!(" @ {revision}"));
        format!("claimed to be {}{at} by {}, not checked", self.repository, self.claimed_by)
    }
}

/// `source` with a repository that nothing was compared with as a claim, also where an earlier version wrote it as fact.
#[must_use]
pub fn normalized(source: &Source) -> Source {
    let (Some(repository), None, None) = (&source.repository, &source.resolved_revision, &source.claimed)
    else {
        return source.clone();
    };
    Source::claimed(&source.profile, repository, source.requested_revision.clone(), &source.licences)
}

impl Source {
    /// The source of files that the caller says are `repository`'s, and that nothing was compared with. Statements
    /// about that repository's license are quoted as what they are here: claims about something else, by name.
    #[must_use]
    pub fn claimed(profile: &str, repository: &str, revision: Option<String>, licences: &[Licence]) -> Self {
        let quoted = |licence: &Licence| Licence {
            claimed_by: format!(
                "{} of {repository}, which the caller claims these files to be (not checked)",
                licence.claimed_by
            ),
            statement: licence.statement.clone(),
            // An identifier would be taken for this data's license by whoever reads identifiers.
            spdx: None,
        };
        Self {
            profile: profile.into(),
            repository: None,
            requested_revision: None,
            resolved_revision: None,
            licences: licences.iter().map(quoted).collect(),
            generator: None,
            claimed: Some(Claim { repository: repository.into(), revision, claimed_by: CALLER.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            profile: "slimpajama/original".into(),
            repository: Some("cerebras/SlimPajama-627B".into()),
            requested_revision: Some("main".into()),
            resolved_revision: None,
            licences: vec![Licence {
                claimed_by: "dataset card".into(),
                statement: "Apache 2.0".into(),
                spdx: Some("Apache-2.0".into()),
            }],
            generator: None,
            claimed: None,
        }
    }

    #[test]
    fn a_repository_that_was_never_resolved_is_a_claim() {
        let old = normalized(&source());
        assert_eq!((&old.repository, &old.requested_revision), (&None, &None));
        let claim = old.claimed.clone().unwrap();
        assert_eq!(
            (claim.repository.as_str(), claim.revision.as_deref()),
            ("cerebras/SlimPajama-627B", Some("main"))
        );
        assert!(old.licences[0].claimed_by.contains("not checked") && old.licences[0].spdx.is_none());
        assert_eq!(normalized(&old), old, "what is a claim stays one");
        let resolved = Source { resolved_revision: Some("0".repeat(40)), ..source() };
        assert_eq!(normalized(&resolved), resolved);
    }
}
