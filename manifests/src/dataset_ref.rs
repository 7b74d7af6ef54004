//! A dataset as a run remembers it, and where it is found again: by its root, wherever it lies by now.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::{Manifest, identity};

/// A dataset as a run knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetRef {
    /// Its identity.
    pub root: Sha256Digest,
    /// Where it was: from the run's folder, or absolute where they share no folder (older runs: from where the program was
    /// started). A hint: the root is what counts, see [`DatasetRef::find`].
    pub path: PathBuf,
    /// Its split.
    pub split: String,
    /// The profile it was prepared from.
    pub profile: String,
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Digest of what pins its tokenizer (`identity::tokenizer`); absent in older runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokenizer_sha256: Option<Sha256Digest>,
}

impl DatasetRef {
    /// The reference to an opened split.
    #[must_use]
    pub fn new(manifest: &Manifest, path: &Path) -> Self {
        Self {
            root: manifest.root,
            path: path.into(),
            split: manifest.split.clone(),
            profile: manifest.source.profile.clone(),
            rows: manifest.totals.rows,
            tokens: manifest.totals.tokens,
            tokenizer_sha256: Some(identity::tokenizer(&manifest.tokenizer)),
        }
    }

    /// The folder that holds this dataset now, for a run in folder `run`: the recorded one, or else one in `more`, or below
    /// the run's parent folder or the one above. Datasets with another root are passed over; `None` where there is none.
    #[must_use]
    pub fn find(&self, run: &Path, more: &[PathBuf]) -> Option<PathBuf> {
        find_dataset(self.root, &self.path, run, more)
    }

    /// Refuses a dataset that is not the one the run began with.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming both roots.
    pub fn check(&self, manifest: &Manifest, path: &Path) -> Result<()> {
        if manifest.root == self.root {
            return Ok(());
        }
        Err(Error::mismatch(
            &Manifest::locate(path),
            format!("the {} split with root {} that this run began with", self.split, self.root),
            format!("root {}", manifest.root),
            "give the run its dataset back, or begin a new run with another --out",
        ))
    }
}

/// How many folders deep datasets are looked for.
const SEARCH_DEPTH: usize = 3;
/// How many folders are looked into at most.
const SEARCH_FOLDERS: usize = 4096;

/// The folder of the dataset with this root: `recorded`, seen from the folder `run` and from the current one, or else a
/// folder in `more`, or below the parent folder of `run` or the one above.
#[must_use]
pub fn find_dataset(root: Sha256Digest, recorded: &Path, run: &Path, more: &[PathBuf]) -> Option<PathBuf> {
    let here = [run.join(recorded), recorded.to_path_buf()];
    if let Some(found) = here.iter().find(|folder| has_root(folder, root)) {
        return Some(found.clone());
    }
    // Beside the run, and beside the folder of all runs.
    let run = run.canonicalize().unwrap_or_default();
    let around: Vec<PathBuf> = run.ancestors().skip(1).take(2).map(Path::to_path_buf).collect();
    let mut left = SEARCH_FOLDERS;
    more.iter().chain(&around).find_map(|folder| search(folder, root, SEARCH_DEPTH, &mut left))
}

fn search(folder: &Path, root: Sha256Digest, depth: usize, left: &mut usize) -> Option<PathBuf> {
    *left = left.checked_sub(1)?;
    if has_root(folder, root) {
        return Some(folder.into());
    }
    let entries = fs_err::read_dir(folder).ok().filter(|_| depth > 0)?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir() && !path.is_symlink())
        .filter(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')))
        .collect();
    folders.sort();
    folders.iter().find_map(|folder| search(folder, root, depth - 1, left))
}

/// Whether a folder's manifest has this root. The root is computed again from what the manifest says.
fn has_root(folder: &Path, root: Sha256Digest) -> bool {
    let file = Manifest::locate(folder);
    // Most folders have none, or plainly another one.
    let named = fs_err::read_to_string(&file).is_ok_and(|text| text.contains(&root.to_string()));
    named && Manifest::load(&file).is_ok_and(|manifest| manifest.root == root)
}

/// `path` as seen from the folder `run`; absolute where they share nothing but the file system's root, and as it is
/// where one of them does not exist.
#[must_use]
pub fn path_from(run: &Path, path: &Path) -> PathBuf {
    let (Ok(run), Ok(path)) = (run.canonicalize(), path.canonicalize()) else { return path.into() };
    let common = run.components().zip(path.components()).take_while(|(a, b)| a == b).count();
    if common < 2 {
        return path;
    }
    let up = run.components().skip(common).map(|_| std::path::Component::ParentDir);
    up.chain(path.components().skip(common)).collect()
}
