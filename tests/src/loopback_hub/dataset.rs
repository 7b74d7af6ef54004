//! A dataset repository of one commit: its files with the object ids git and LFS give them.

use std::path::Path;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files of these kinds are kept in LFS storage, as the Hub's default `.gitattributes` has it.
const LFS_ENDINGS: [&str; 8] = [".zst", ".gz", ".parquet", ".arrow", ".bin", ".tar", ".zip", ".bz2"];
/// Larger files are in LFS storage whatever they are.
const MAX_IN_GIT: usize = 10 << 20;

/// A dataset repository.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// `owner/name`.
    pub repository: String,
    /// Its only commit; branch `main` and prefixes of at least 7 digits lead to it.
    pub sha: String,
    /// Its files.
    pub files: Vec<StoredFile>,
    pub(super) token: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) disabled: bool,
    pub(super) listed_paths: Vec<String>,
}

/// A file with its ids.
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// Its path.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// SHA-256 of its bytes, hex.
    pub sha256: String,
    /// Whether it lies in LFS storage.
    pub lfs: bool,
    /// The git blob id, hex: of its bytes, or of its pointer if it lies in LFS storage.
    pub oid: String,
}

impl Dataset {
    pub(super) fn new(repository: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let files: Vec<_> = files.into_iter().map(|(path, content)| StoredFile::new(path, content)).collect();
        let mut hasher = Sha1::new_with_prefix(repository);
        for file in &files {
            hasher.update(format!("{}\0{}\0", file.path, file.oid));
        }
        Self {
            repository: repository.to_owned(),
            sha: hex(&hasher.finalize()),
            files,
            token: None,
            licence: None,
            disabled: false,
            listed_paths: Vec::new(),
        }
    }

    /// Whether `revision` leads to this commit.
    pub(super) fn has_revision(&self, revision: &str) -> bool {
        revision == "main" || (revision.len() >= 7 && self.sha.starts_with(revision))
    }

    pub(super) fn file(&self, path: &str) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The entries of the tree API for everything under the root, folders included, in no order that a client
    /// could rely on.
    pub(super) fn tree(&self) -> Vec<Value> {
        let mut folders: Vec<&str> = Vec::new();
        for file in &self.files {
            let ends = file.path.match_indices('/').map(|(end, _)| &file.path[..end]);
            folders.extend(ends);
        }
        folders.sort_unstable();
        folders.dedup();
        let folders = folders.iter().map(|path| {
            let oid = hex(&Sha1::digest(path));
            json!({"type": "directory", "oid": oid, "size": 0, "path": path})
        });
        let files = self.files.iter().map(StoredFile::entry);
        let listed = self
            .listed_paths
            .iter()
            .map(|path| json!({"type": "file", "oid": git_blob_sha1(b"x"), "size": 1, "path": path}));
        let mut entries: Vec<(Vec<u8>, Value)> = folders
            .chain(files)
            .chain(listed)
            .map(|entry| (Sha256::digest(entry["path"].as_str().unwrap_or_default()).to_vec(), entry))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

impl StoredFile {
    fn new(path: String, content: Vec<u8>) -> Self {
        let sha256 = hex(&Sha256::digest(&content));
        let lfs = content.len() > MAX_IN_GIT || LFS_ENDINGS.iter().any(|ending| path.ends_with(ending));
        let oid = if lfs {
            let size = content.len();
            let pointer =
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
            git_blob_sha1(pointer.as_bytes())
        } else {
            git_blob_sha1(&content)
        };
        Self { path, content, sha256, lfs, oid }
    }

    /// What `X-Linked-Etag` says.
    pub(super) fn etag(&self) -> &str {
        if self.lfs { &self.sha256 } else { &self.oid }
    }

    fn entry(&self) -> Value {
        let mut entry =
            json!({"type": "file", "oid": self.oid, "size": self.content.len(), "path": self.path});
        if self.lfs {
            entry["lfs"] = json!({"oid": self.sha256, "size": self.content.len(), "pointerSize": 134});
            entry["xetHash"] = json!(hex(&Sha256::digest(&self.sha256)));
        }
        entry
    }
}

/// The id git gives a blob: `sha1("blob {length}\0" + content)`, hex.
#[must_use]
pub fn git_blob_sha1(content: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}

/// Lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All files under `folder`, with `/`-separated relative paths.
pub(super) fn read_folder(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(current) = pending.pop() {
        for entry in fs_err::read_dir(&current).expect("a folder that can be read") {
            let path = entry.expect("a folder that can be read").path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let relative = path.strip_prefix(folder).expect("it lies inside");
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            files.push((parts.join("/"), fs_err::read(&path).expect("a file that can be read")));
        }
    }
    files.sort();
    files
}
