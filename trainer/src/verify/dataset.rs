//! The links below a run or a report: a dataset's manifest, its files, its sources and who vouches for them.

use std::path::Path;

use xlstm_manifests::checksums::{self, CHECKSUMS_NAME};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::origin::Origin;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::audit::{Amount, AuditArgs, Check, SplitReport, audit};

use super::{Chain, Depth, LinkState, differ};
use crate::provenance::{DatasetLink, Found, Recorded};

/// Whether a folder has nothing but a manifest: kept beside a result, to say what it was trained on or measured with.
fn is_manifest_alone(folder: &Path) -> bool {
    let Ok(entries) = fs_err::read_dir(folder) else { return false };
    entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.file_name() == MANIFEST_NAME))
}

impl Chain {
    /// Follows the links of a dataset: manifest and root, files, sources, and with `deep` their texts.
    pub(super) fn dataset(&mut self, data: &DatasetLink, depth: &Depth) {
        let (name, folder, recorded) = (&*data.name(), &data.folder, &data.recorded);
        let (root, link) = (recorded.root, format!("{name}: manifest"));
        let file = Manifest::locate(folder);
        let manifest = match &data.found {
            Found::Missing => {
                let detail = format!("no dataset here; its root is {root}; name its folder with --data");
                return self.not_at_hand(name, folder, detail);
            }
            Found::Namesake(other) => {
                let detail =
                    format!("another dataset, root {other}; its root is {root}; name its folder with --data");
                return self.not_at_hand(name, folder, detail);
            }
            // The root is computed from the manifest as it is read: an altered number ends here.
            Found::Unreadable(error) => return self.failed(&link, &file, error.to_string()),
            Found::Here(manifest) | Found::Other(manifest) => manifest,
        };
        let wrong = contradictions(recorded, manifest, &file);
        self.list(&link, &file, format!("root {} recomputed", manifest.root), &wrong);
        if wrong.is_empty() {
            self.files(name, folder, manifest, depth);
            self.origin(name, folder, &Origin::of(manifest));
        }
    }

    /// Who vouches for the source files, as the manifest recorded it when they were read.
    fn origin(&mut self, name: &str, folder: &Path, origin: &Origin) {
        let state = if origin.is_verified() { LinkState::Ok } else { LinkState::Unchecked };
        let mut detail = origin.sentence();
        if origin.is_verified() {
            detail.push_str("; `xlstm-data audit --sources` asks the publisher again");
        }
        self.add(&format!("{name}: origin"), folder, state, detail);
    }

    fn files(&mut self, name: &str, folder: &Path, manifest: &Manifest, depth: &Depth) {
        let link = format!("{name}: shards");
        if is_manifest_alone(folder) {
            let detail = "the manifest is here alone, without its shards";
            return self.not_at_hand(&link, folder, detail);
        }
        let mut args = AuditArgs::new(vec![folder.into()]);
        args.deep = depth.deep.then_some(Amount::All);
        args.inputs = depth.inputs.clone().filter(|_| depth.deep);
        let report = match audit(&args) {
            Ok(report) => report,
            Err(error) => return self.failed(&link, folder, error.to_string()),
        };
        let Some(split) = report.splits.into_iter().next() else {
            return self.failed(&link, folder, "expected a split, found none");
        };
        let (sources, files): (Vec<_>, Vec<_>) =
            split.findings.iter().partition(|finding| depth.deep && finding.check == Check::Deep);
        let texts = |findings: &[&xlstm_pipeline::audit::Finding]| {
            findings
                .iter()
                .map(|finding| format!("{}: {}", finding.file, finding.message))
                .collect::<Vec<_>>()
        };
        let checked = format!(
            "{} files against {CHECKSUMS_NAME} and manifest; Merkle roots of rows and documents, counts and root recomputed",
            split.checked.files
        );
        self.list(&link, folder, checked, &texts(&files));
        self.sources(name, folder, manifest, &split, &texts(&sources));
    }

    fn sources(
        &mut self,
        name: &str,
        folder: &Path,
        manifest: &Manifest,
        split: &SplitReport,
        wrong: &[String],
    ) {
        let link = format!("{name}: source files");
        match &split.deep {
            Some(deep) => {
                let mut checked = format!(
                    "{} of {} documents read again from {} files and tokenized anew",
                    deep.documents, deep.of, deep.inputs
                );
                split.not_done.iter().for_each(|not_done| checked.extend(["; ", not_done]));
                self.list(&link, folder, checked, wrong);
            }
            None => {
                let detail = format!("{} files, not read without --deep", manifest.inputs.len());
                self.not_asked(&link, folder, detail);
            }
        }
    }
}

/// The digest that the checksums give for the manifest; none where that line cannot be read (the audit says why).
fn listed(manifest: &Path) -> Option<Sha256Digest> {
    let sums = checksums::read(&manifest.with_file_name(CHECKSUMS_NAME)).ok()?;
    sums.get(&SafePath::new(MANIFEST_NAME).ok()?).copied()
}

/// What in a manifest is not what was recorded of it.
fn contradictions(recorded: &Recorded, manifest: &Manifest, file: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    differ(&mut wrong, "root", &recorded.root, &manifest.root);
    differ(&mut wrong, "split", &recorded.split, &manifest.split);
    differ(&mut wrong, "profile", &recorded.profile, &manifest.source.profile);
    differ(&mut wrong, "tokens", &recorded.tokens, &manifest.totals.tokens);
    if let Some(rows) = recorded.rows {
        differ(&mut wrong, "rows", &rows, &manifest.totals.rows);
    }
    match digest_file(file) {
        Ok((_, found)) => {
            for expected in recorded.manifest_sha256.into_iter().chain(listed(file)) {
                differ(&mut wrong, "SHA-256", &expected, &found);
            }
        }
        Err(error) => wrong.push(error.to_string()),
    }
    wrong
}
