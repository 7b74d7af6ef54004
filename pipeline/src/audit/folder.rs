//! The files of a split: which there should be, which there are, and whether their bytes are the right ones.
//!
//! Three things speak about each file: the manifest, `manifest-sha256.txt` and the file itself. Where two
//! agree against the third, the third is named; a damaged shard is not blamed on the manifest, nor the
//! other way round. Between the manifest and the one line of the checksums about it there is no third
//! voice, but a digest that was *damaged* still resembles the right one, where the digest of other bytes
//! has nothing in common with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use xlstm_manifests::checksums::{self, CHECKSUMS_NAME};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::{FileRecord, MANIFEST_NAME, VERSION};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Error, Manifest, Sha256Digest};

use super::finding::{Check, Findings};
use crate::split::WORK_FOLDER;

/// A file beside the manifest that says where the inputs were; for this machine only, so nothing lists it.
pub const INPUTS_POINTER: &str = ".inputs";

/// The folders of the splits that `path` names: a split's folder or manifest, or the parent of some.
///
/// # Errors
/// When there is nothing of the kind at `path`.
pub fn splits_at(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let missing = |found: &str| {
        Error::mismatch(
            path,
            "a split's folder, its manifest, or a folder of splits",
            found,
            "name the --out of a finished `xlstm-data prepare`, or a split inside it",
        )
    };
    if path.is_file() {
        return match path.file_name() {
            Some(name) if name == MANIFEST_NAME => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                Ok(vec![folder.unwrap_or(Path::new(".")).into()])
            }
            _ => Err(missing("another file")),
        };
    }
    if !path.is_dir() {
        return Err(missing("no such folder"));
    }
    if looks_like_split(path) {
        return Ok(vec![path.into()]);
    }
    let mut splits = Vec::new();
    for entry in fs_err::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_dir() && looks_like_split(&entry.path()) {
            splits.push(entry.path());
        }
    }
    splits.sort();
    if splits.is_empty() { Err(missing("a folder without one")) } else { Ok(splits) }
}

/// Whether a folder is a split, also one that lost its manifest.
fn looks_like_split(folder: &Path) -> bool {
    let shard = |name: &str| {
        name.ends_with(".arrow")
            && ["shard-", "spans-", "documents-", "windows-"].iter().any(|p| name.starts_with(p))
    };
    folder.join(MANIFEST_NAME).is_file()
        || folder.join(CHECKSUMS_NAME).is_file()
        || fs_err::read_dir(folder).is_ok_and(|entries| {
            entries.filter_map(Result::ok).any(|entry| entry.file_name().to_str().is_some_and(shard))
        })
}

/// Reads as much of the manifest as possible: a contradiction is a finding, and the audit continues.
pub(super) fn read_manifest(folder: &Path, findings: &mut Findings) -> Option<Manifest> {
    let path = folder.join(MANIFEST_NAME);
    let strict = Manifest::load(&path);
    if let Err(error) = &strict {
        findings.add(MANIFEST_NAME, Check::Manifest, error.to_string());
    }
    let bytes = fs_err::read(&path).ok()?;
    // A newer version has other rules: nothing more can be said about it.
    let manifest: Manifest = strict
        .ok()
        .or_else(|| serde_json::from_slice(&bytes).ok().filter(|m: &Manifest| m.version <= VERSION))?;
    match manifest.to_bytes() {
        Ok(canonical) if canonical == bytes => {}
        Ok(canonical) => {
            let at = canonical.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
            let line = 1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
            let found = format!("other bytes from line {line} (byte {at}) on");
            findings.differ(MANIFEST_NAME, Check::Canonical, "the canonical form of its content", found);
        }
        Err(error) => findings.add(MANIFEST_NAME, Check::Canonical, error.to_string()),
    }
    Some(manifest)
}

/// What `manifest-sha256.txt` says; nothing when it cannot be read, which is a finding.
pub(super) fn read_checksums(
    folder: &Path,
    findings: &mut Findings,
) -> Option<BTreeMap<SafePath, Sha256Digest>> {
    let path = folder.join(CHECKSUMS_NAME);
    if !path.exists() {
        findings.differ(CHECKSUMS_NAME, Check::Present, "the split's checksums", "no such file");
        return None;
    }
    checksums::read(&path)
        .inspect_err(|error| findings.add(CHECKSUMS_NAME, Check::Checksums, error.to_string()))
        .ok()
}

/// The checksums file, as the manifest says that it should be, names the split's files and no other.
pub(super) fn check_names(
    manifest: &Manifest,
    listed: &BTreeMap<SafePath, Sha256Digest>,
    findings: &mut Findings,
) {
    let manifest_name = SafePath::new(MANIFEST_NAME).ok();
    let mut expected: BTreeSet<&SafePath> = manifest.data_files().map(|file| &file.path).collect();
    if expected.len() != manifest.data_files().count() {
        findings.differ(MANIFEST_NAME, Check::Manifest, "each file listed once", "a path that stands twice");
    }
    expected.extend(&manifest_name);
    let found: BTreeSet<&SafePath> = listed.keys().collect();
    for path in expected.difference(&found) {
        findings.differ(CHECKSUMS_NAME, Check::Checksums, format!("a line for `{path}`"), "none");
    }
    for path in found.difference(&expected) {
        findings.differ(
            CHECKSUMS_NAME,
            Check::Checksums,
            "files of the split only",
            format!("a line for `{path}`"),
        );
    }
}

/// Files below `folder` that nothing lists.
pub(super) fn check_extra(folder: &Path, known: &BTreeSet<&str>, findings: &mut Findings) {
    let mut walk = walkdir::WalkDir::new(folder).min_depth(1).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                findings.add(".", Check::Present, error.to_string());
                continue;
            }
        };
        let name = entry.path().strip_prefix(folder).unwrap_or(entry.path()).to_string_lossy().into_owned();
        if name == WORK_FOLDER && entry.file_type().is_dir() {
            let advice = "a run is under way in this folder, or was stopped; run the same `prepare` again to finish it";
            findings.add(name, Check::Extra, advice);
            walk.skip_current_dir();
            continue;
        }
        let ours = [MANIFEST_NAME, CHECKSUMS_NAME, INPUTS_POINTER].contains(&name.as_str());
        if !entry.file_type().is_dir() && !ours && !known.contains(name.as_str()) {
            let advice = if name.ends_with(xlstm_manifests::atomic::PARTIAL_SUFFIX) {
                "a file that an unfinished run left; run the same `prepare` again, or remove it"
            } else {
                "a file that neither the manifest nor the checksums list; move it out of the split's folder"
            };
            findings.add(name, Check::Extra, advice);
        }
    }
}

/// The size and digest that a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Actual {
    pub(super) size: u64,
    pub(super) sha256: Sha256Digest,
}

/// Reads a file from start to end; a finding when that is not possible.
pub(super) fn digest(folder: &Path, path: &SafePath, findings: &mut Findings) -> Option<Actual> {
    if !path.under(folder).exists() {
        findings.differ(path.as_str(), Check::Present, "a file that the split lists", "no such file");
        return None;
    }
    match path.resolve(folder).and_then(|resolved| digest_file(&resolved)) {
        Ok((size, sha256)) => Some(Actual { size, sha256 }),
        Err(error) => {
            findings.add(path.as_str(), Check::Present, error.to_string());
            None
        }
    }
}

/// Compares what the manifest, the checksums and the file say; returns whether the file's content is the
/// one that the manifest describes.
pub(super) fn vote(
    record: &FileRecord,
    listed: Option<Sha256Digest>,
    actual: Option<Actual>,
    findings: &mut Findings,
) -> bool {
    let Some(actual) = actual else { return false };
    let name = record.path.as_str();
    if record.sha256 == actual.sha256 {
        if record.size != actual.size {
            let expected = format!("{} bytes for `{name}` (its digest is right)", actual.size);
            findings.differ(MANIFEST_NAME, Check::Digest, expected, record.size);
        }
        if let Some(digest) = listed.filter(|&digest| digest != actual.sha256) {
            let expected = format!("{} for `{name}` (as the manifest and the file say)", actual.sha256);
            findings.differ(CHECKSUMS_NAME, Check::Checksums, expected, digest);
        }
        return true;
    }
    if listed == Some(actual.sha256) {
        let expected =
            format!("sha256 {} for `{name}` (as {CHECKSUMS_NAME} and the file say)", actual.sha256);
        findings.differ(MANIFEST_NAME, Check::Digest, expected, record.sha256);
        return false;
    }
    let size = if record.size == actual.size { String::new() } else { format!("{} bytes, ", record.size) };
    let found_size =
        if record.size == actual.size { String::new() } else { format!("{} bytes, ", actual.size) };
    findings.differ(
        name,
        Check::Digest,
        format!("{size}sha256 {}", record.sha256),
        format!(
            "{found_size}sha256 {}; the file was changed or cut short after it was written: restore it or prepare the split again",
            actual.sha256
        ),
    );
    false
}

/// Hex digits in which the digests of different contents differ by chance: about 60 of 64, never this few.
const RESEMBLANCE: usize = 16;

/// Compares the manifest's bytes with the checksums' line about it, or any file with its only digest.
pub(super) fn check_listed(name: &str, listed: Sha256Digest, actual: Sha256Digest, findings: &mut Findings) {
    if listed == actual {
        return;
    }
    let (listed, actual) = (listed.to_string(), actual.to_string());
    let different = listed.bytes().zip(actual.bytes()).filter(|(a, b)| a != b).count();
    if different <= RESEMBLANCE {
        let expected = format!("{actual} for `{name}`");
        findings.differ(
            CHECKSUMS_NAME,
            Check::Checksums,
            expected,
            format!("{listed} ({different} digits differ)"),
        );
    } else {
        let expected = format!("sha256 {listed} (says {CHECKSUMS_NAME})");
        findings.differ(name, Check::Digest, expected, actual);
    }
}
