//! The folder of a split: what may stand there, and what a run leaves or clears away.

use std::collections::BTreeMap;
use std::path::Path;

use xlstm_manifests::atomic;
use xlstm_manifests::checksums;
use xlstm_manifests::manifest::{MANIFEST_NAME, Manifest, Part, Selection, Shard};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Dataset, Sha256Digest, identity, origin};

use super::journal::JOURNAL_NAME;
use super::{SplitError, SplitSpec, WORK_FOLDER};

/// The file in the work folder that a run holds.
pub(super) const LOCK_NAME: &str = "lock";

/// The finished split in `folder`, if it is the one that `spec` asks for.
pub(super) fn finished(folder: &Path, spec: &SplitSpec) -> Result<Manifest, SplitError> {
    let manifest = Manifest::load(folder)?;
    match differences(folder, spec, &manifest) {
        None => Ok(manifest),
        Some(differs) => {
            Err(SplitError::OtherRun { folder: folder.into(), found: "a finished dataset", differs })
        }
    }
}

/// Removes the work folder if it holds nothing but the lock. What cannot be removed stays, which costs nothing.
pub(super) fn remove_lock(work: &Path) {
    let alone = fs_err::read_dir(work).is_ok_and(|entries| entries.count() == 1);
    if alone && fs_err::remove_file(work.join(LOCK_NAME)).is_ok() {
        let _ = fs_err::remove_dir(work);
    }
}

/// Writes the checksums, which close a split, and removes what only a run in progress needs.
pub(super) fn finish_up(folder: &Path, manifest: &Manifest) -> Result<(), SplitError> {
    let path = folder.join(checksums::CHECKSUMS_NAME);
    if !path.exists() {
        let mut files: BTreeMap<SafePath, Sha256Digest> =
            manifest.data_files().map(|file| (file.path.clone(), file.sha256)).collect();
        files.insert(SafePath::new(MANIFEST_NAME)?, Sha256Digest::of(&manifest.to_bytes()?));
        atomic::write_atomic(&path, checksums::render(&files).as_bytes())?;
    }
    match fs_err::remove_dir_all(folder.join(WORK_FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes a split, finished or not, keeping the lock that the caller holds.
pub(super) fn discard(folder: &Path) -> Result<(), SplitError> {
    for name in [MANIFEST_NAME, checksums::CHECKSUMS_NAME] {
        match fs_err::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    match fs_err::remove_file(folder.join(WORK_FOLDER).join(JOURNAL_NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    remove_strays(folder, &[])
}

/// Removes shards that the journal does not know and files that a kill left half-written.
pub(super) fn remove_strays(folder: &Path, shards: &[Shard]) -> Result<(), SplitError> {
    let known: Vec<&str> =
        shards.iter().flat_map(|shard| [shard.file.path.as_str(), shard.companion.path.as_str()]).collect();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours =
            ["shard-", "spans-", "documents-", "windows-"].iter().any(|prefix| name.starts_with(prefix))
                && name.ends_with(".arrow");
        if (ours && !known.contains(&name)) || name.ends_with(atomic::PARTIAL_SUFFIX) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Older manifests do not record `id_field`: there, whether documents have ids decides.
fn same_selection(folder: &Path, asked: &Selection, manifest: &Manifest) -> bool {
    let mut found = manifest.selection.clone();
    if found.id_field.is_none() && asked.id_field.is_some() && has_ids(folder) {
        found.id_field.clone_from(&asked.id_field);
    }
    *asked == found
}

/// Whether any document of the packed split in `folder` has an id.
fn has_ids(folder: &Path) -> bool {
    let Ok(dataset) = Dataset::open_part(folder) else { return false };
    let shards = dataset.manifest().shards.len();
    (0..shards)
        .any(|shard| dataset.spans(shard).is_ok_and(|spans| spans.iter().any(|span| span.id.is_some())))
}

/// The settings in which a finished split differs from what is asked for, if any.
fn differences(folder: &Path, spec: &SplitSpec, manifest: &Manifest) -> Option<String> {
    let mut differs = Vec::new();
    let part = manifest.part.clone().map(|part| Part { met: None, ..part });
    let mut check = |name: &str, same: bool| {
        if !same {
            differs.push(name.to_owned());
        }
    };
    check("split", spec.split == manifest.split);
    check("layout", spec.layout == manifest.layout);
    check("source", spec.source == origin::normalized(&manifest.source));
    check("selection", same_selection(folder, &spec.selection, manifest));
    // The same behavior by another version of the library is the same.
    check("tokenizer", identity::tokenizer(&spec.tokenizer) == identity::tokenizer(&manifest.tokenizer));
    check("packing", spec.packing == manifest.packing);
    check("its part of the whole, or the settings or inputs of that whole", spec.part == part);
    (!differs.is_empty()).then(|| differs.join(", "))
}
