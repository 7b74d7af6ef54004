//! The links below a run or a report: a dataset's manifest, its files, its sources.

use std::path::Path;

use xlstm_manifests::checksums::{self, CHECKSUMS_NAME};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::run_manifest::find_dataset;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::audit::{Amount, AuditArgs, Check, SplitReport, audit};

use super::{Chain, Depth, differ};

/// What another file says of a dataset.
pub(super) struct Expected<'a> {
    /// `training split`, `validation split`, `evaluated split`.
    pub(super) name: &'a str,
    /// Its folder, as recorded.
    pub(super) path: &'a Path,
    /// The folder of the run or report that names it.
    pub(super) from: &'a Path,
    pub(super) root: Sha256Digest,
    /// SHA-256 of its manifest, where that was recorded.
    pub(super) manifest: Option<Sha256Digest>,
    /// Split, profile, tokens, rows, as far as they were recorded.
    pub(super) facts: (&'a str, &'a str, u64, Option<u64>),
}

impl Chain {
    /// Follows the links of a dataset: manifest and root, files, and with `deep` the sources.
    pub(super) fn dataset(&mut self, expected: &Expected, depth: &Depth) {
        let name = expected.name;
        let found = find_dataset(expected.root, expected.path, expected.from, &depth.data);
        let beside = expected.from.join(expected.path);
        let recorded = if Manifest::locate(&beside).is_file() { &beside } else { expected.path };
        let folder = found.as_deref().unwrap_or(recorded);
        let file = Manifest::locate(folder);
        if !file.is_file() {
            let detail =
                format!("no dataset here; its root is {}; name its folder with --data", expected.root);
            return self.not_at_hand(name, folder, detail);
        }
        // Older runs recorded paths from where they were started: what lies there from here is another dataset.
        let by_chance = found.is_none() && expected.path.is_relative() && folder == expected.path;
        if let Some(other) = Manifest::load(&file).ok().filter(|_| by_chance) {
            let detail = format!(
                "another dataset, root {}; its root is {}; name its folder with --data",
                other.root, expected.root
            );
            return self.not_at_hand(name, folder, detail);
        }
        let link = format!("{name}: manifest");
        let manifest = match Manifest::load(&file) {
            Ok(manifest) => manifest,
            // The root is computed from the manifest as it is read: an altered number ends here.
            Err(error) => return self.failed(&link, &file, error.to_string()),
        };
        let mut wrong = Vec::new();
        differ(&mut wrong, "root", &expected.root, &manifest.root);
        let (split, profile, tokens, rows) = expected.facts;
        differ(&mut wrong, "split", &split, &manifest.split.as_str());
        differ(&mut wrong, "profile", &profile, &manifest.source.profile.as_str());
        differ(&mut wrong, "tokens", &tokens, &manifest.totals.tokens);
        if let Some(rows) = rows {
            differ(&mut wrong, "rows", &rows, &manifest.totals.rows);
        }
        match digest_file(&file) {
            Ok((_, found)) => {
                let listed = listed(&file);
                for expected in expected.manifest.into_iter().chain(listed) {
                    differ(&mut wrong, "SHA-256", &expected, &found);
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
        self.list(&link, &file, format!("root {} recomputed", manifest.root), &wrong);
        if !wrong.is_empty() {
            return;
        }
        self.files(name, folder, &manifest, depth);
    }

    fn files(&mut self, name: &str, folder: &Path, manifest: &Manifest, depth: &Depth) {
        let link = format!("{name}: shards");
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
                let checked = format!(
                    "{} of {} documents read again from {} files and tokenized anew",
                    deep.documents, deep.of, deep.inputs
                );
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
