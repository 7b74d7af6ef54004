//! Where an input may be on this machine.
//!
//! Paths of a machine are not part of a dataset. They are looked for, in this order: the folder that the
//! user names, the folder that the one-line file `.inputs` beside the split or its parent names (`prepare`
//! leaves it), cargo's download cache for crates, the Hugging Face cache for files of the Hub. Whatever is
//! found is compared with the manifest's digest before it is believed.

use std::path::{Path, PathBuf};

use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::{Input, Source};

use super::folder::INPUTS_POINTER;
use crate::hub::{DeclaredDigest, Hub, HubConfig, RemoteFile};
use crate::sources::cargo_cache;

/// Finds the inputs of one split.
pub(crate) struct Locator {
    folders: Vec<PathBuf>,
    cargo_registries: Vec<PathBuf>,
    hub: Option<(Hub, String, String)>,
}

impl Locator {
    /// For the split in `folder`, whose manifest names `source`.
    pub(crate) fn new(folder: &Path, source: &Source, named: Option<&Path>) -> Self {
        let mut folders: Vec<PathBuf> = named.map(Path::to_path_buf).into_iter().collect();
        let pointers = [folder.join(INPUTS_POINTER), folder.join("..").join(INPUTS_POINTER)];
        for text in pointers.iter().filter_map(|pointer| fs_err::read_to_string(pointer).ok()) {
            folders.extend(text.lines().next().filter(|line| !line.is_empty()).map(PathBuf::from));
        }
        let cargo_registries = if source.profile == "crates" { registries() } else { Vec::new() };
        // A Hub that cannot be set up (no certificates, say) only means one place less to look.
        let hub = match (&source.repository, &source.resolved_revision) {
            (Some(repository), Some(revision)) => HubConfig::from_env()
                .and_then(Hub::new)
                .ok()
                .map(|hub| (hub, repository.clone(), revision.clone())),
            _ => None,
        };
        Self { folders, cargo_registries, hub }
    }

    /// A file that may be `input`: its content is still to be checked.
    pub(crate) fn find(&self, input: &Input) -> Option<PathBuf> {
        let folders = self.folders.iter().chain(&self.cargo_registries);
        folders.map(|folder| input.path.under(folder)).find(|path| path.is_file()).or_else(|| {
            let (hub, repository, revision) = self.hub.as_ref()?;
            let file = RemoteFile {
                path: input.path.to_string(),
                size: input.size,
                digest: declared(input),
                xet_hash: None,
            };
            hub.locate_in_hf_cache(repository, revision, &file)
        })
    }

    /// The file that is `input`, byte for byte.
    ///
    /// # Errors
    /// A sentence that says what was found instead, and what to do.
    pub(crate) fn verified(&self, input: &Input) -> Result<PathBuf, String> {
        let path = self.find(input).ok_or_else(|| {
            let places: Vec<_> =
                self.folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
            let places = if places.is_empty() { "no folder".into() } else { places.join(", ") };
            format!("the source file was not found (looked in {places}); name its folder with --inputs")
        })?;
        let (size, sha256) = digest_file(&path).map_err(|error| error.to_string())?;
        if (size, sha256) == (input.size, input.sha256) {
            return Ok(path);
        }
        Err(format!(
            "the source file `{}` is not the one that was read: expected {} bytes, sha256 {}, found {size} bytes, sha256 {sha256}",
            path.display(),
            input.size,
            input.sha256
        ))
    }
}

/// The digest under which caches know an input: what was published for it, else its SHA-256.
pub(super) fn declared(input: &Input) -> DeclaredDigest {
    let published = input.declared.as_ref().filter(|declared| declared.algorithm == "git-blob-sha1");
    published
        .and_then(|declared| declared.digest.parse().ok())
        .map_or(DeclaredDigest::Sha256(input.sha256), DeclaredDigest::GitBlobSha1)
}

fn registries() -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(cargo_cache::cache_folder()) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders
}
