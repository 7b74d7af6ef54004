//! `audit`: an intact dataset passes; whatever is changed in one is found, and the file named.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should stop"
)]

mod deep;
mod edited;
mod files;
mod manifests;
mod reports;

#[path = "../datasets/mod.rs"]
mod datasets;

use std::path::Path;
use std::sync::OnceLock;

use datasets::{Built, Recipe, build};
use proptest::prelude::*;
use xlstm_manifests::checksums::CHECKSUMS_NAME;
use xlstm_manifests::manifest::{MANIFEST_NAME, VERSION};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedShard, PackedWriter, tokens_leaf};
use xlstm_manifests::spans::{self, Span, SpansFile, document_leaf};
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::audit::{Amount, AuditArgs, AuditReport, Check, Finding, audit, run};

fn report(path: &Path) -> AuditReport {
    audit(&AuditArgs::new(vec![path.into()])).unwrap()
}

fn findings(built: &Built) -> Vec<Finding> {
    let report = report(&built.split());
    assert_eq!(report.clean, report.splits[0].findings.is_empty());
    report.splits[0].findings.clone()
}

/// The audit must blame exactly this file for this.
#[track_caller]
fn assert_found(built: &Built, file: &str, check: Check) {
    let found = findings(built);
    assert!(found.iter().any(|f| f.file == file && f.check == check), "{file} {check:?} not in {found:#?}");
}

#[test]
fn an_intact_dataset_passes_and_is_summed_up() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let report = report(&built.split());
        assert!(report.clean, "{report:#?}");
        let split = &report.splits[0];
        let manifest = built.manifest();
        assert_eq!(split.checked.files, 2 * manifest.shards.len() as u64 + 1);
        assert_eq!(split.checked.shards, manifest.shards.len() as u64);
        let summary = split.summary.as_ref().unwrap();
        assert_eq!(summary.lengths.as_ref().unwrap().iter().sum::<u64>(), 42);
        assert_eq!(summary.sets.len(), 2);
        assert!((summary.sets.iter().filter_map(|set| set.token_percent).sum::<f64>() - 100.0).abs() < 1e-9);
        // A parent folder and the manifest itself name the same split.
        for path in [built.split().parent().unwrap().to_owned(), built.split().join(MANIFEST_NAME)] {
            assert_eq!(audit(&AuditArgs::new(vec![path])).unwrap().splits[0].checked, split.checked);
        }
    }
}

fn shared(documents: bool) -> &'static Built {
    static PACKED: OnceLock<Built> = OnceLock::new();
    static DOCUMENTS: OnceLock<Built> = OnceLock::new();
    if documents {
        DOCUMENTS.get_or_init(|| build(&Recipe::documents()))
    } else {
        PACKED.get_or_init(|| build(&Recipe::packed()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_flipped_bit_anywhere_is_found_and_its_file_named(
        documents: bool,
        file: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let original = shared(documents);
        let files = original.files();
        let copy = tempfile::tempdir().unwrap();
        let victim = file.get(&files);
        for path in &files {
            let mut bytes = fs_err::read(path).unwrap();
            if path == victim {
                let position = at.index(bytes.len());
                bytes[position] ^= 1 << bit;
            }
            fs_err::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let found = report(copy.path());
        let name = victim.file_name().unwrap().to_str().unwrap();
        prop_assert!(!found.clean);
        prop_assert!(
            found.splits[0].findings.iter().any(|finding| finding.file == name),
            "{name}: {:#?}", found.splits[0].findings
        );
    }

    #[test]
    fn any_truncation_is_found_and_its_file_named(
        documents: bool,
        file: prop::sample::Index,
        at: prop::sample::Index,
    ) {
        let original = shared(documents);
        let files = original.files();
        let copy = tempfile::tempdir().unwrap();
        let victim = file.get(&files);
        for path in &files {
            let mut bytes = fs_err::read(path).unwrap();
            if path == victim {
                bytes.truncate(at.index(bytes.len()));
            }
            fs_err::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let found = report(copy.path());
        let name = victim.file_name().unwrap().to_str().unwrap();
        prop_assert!(found.splits[0].findings.iter().any(|finding| finding.file == name), "{name}: {found:#?}");
    }
}
