//! A plan: what a split will be made of, before a byte of it is read.

use std::path::{Path, PathBuf};

use serde::Serialize;
use xlstm_manifests::manifest::{Declared, Part};
use xlstm_manifests::safe_path::SafePath;

use crate::hub::{DeclaredDigest, RemoteFile};
use crate::record::Record;
use crate::sources::{Compression, Fields, Format};
use crate::split::SplitSpec;

/// Where an input's bytes are.
#[derive(Debug, Clone)]
pub enum Location {
    /// A file on this machine.
    Local(PathBuf),
    /// A file of the plan's repository.
    Remote(RemoteFile),
}

/// One input of a plan.
#[derive(Debug, Clone)]
pub struct PlannedInput {
    /// Path in the repository, or below the folder that was given.
    pub path: SafePath,
    /// How to read it.
    pub format: Format,
    /// Bytes.
    pub size: Option<u64>,
    /// The digest that its content must have.
    pub declared: Option<Declared>,
    /// Its own license.
    pub licence: Option<String>,
    /// Where it is.
    pub location: Location,
    /// Put before each record's set, with a slash (PALOMA: the source).
    pub set_prefix: Option<String>,
}

impl PlannedInput {
    /// Completes a record's set with the input's prefix.
    pub fn name_set(&self, record: &mut Record) {
        if let Some(prefix) = &self.set_prefix {
            let domain = record.set.as_deref().unwrap_or(prefix);
            record.set = Some(format!("{prefix}/{domain}"));
        }
    }
}

/// A format as a manifest names it.
#[must_use]
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::JsonLines { compression: Compression::None } => "jsonl",
        Format::JsonLines { compression: Compression::Zstd } => "jsonl.zst",
        Format::JsonLines { compression: Compression::Gzip } => "jsonl.gz",
        Format::Parquet => "parquet",
        Format::Text { compression: Compression::None } => "text",
        Format::Text { compression: Compression::Zstd } => "text.zst",
        Format::Text { compression: Compression::Gzip } => "text.gz",
        Format::Crate => "crate",
    }
}

/// The format that a manifest names.
#[must_use]
pub fn format_of_name(name: &str) -> Option<Format> {
    let compressed = [Compression::None, Compression::Zstd, Compression::Gzip];
    let formats = compressed
        .into_iter()
        .flat_map(|compression| [Format::JsonLines { compression }, Format::Text { compression }]);
    formats.chain([Format::Parquet, Format::Crate]).find(|&format| format_name(format) == name)
}

/// Whether a file of this format is much smaller than its text.
#[must_use]
pub fn is_compressed(format: Format) -> bool {
    let plain = Compression::None;
    !matches!(format, Format::JsonLines { compression } | Format::Text { compression } if compression == plain)
}

/// The digest that a listing declares, as a manifest holds it.
#[must_use]
pub fn declared_by_hub(digest: &DeclaredDigest) -> Declared {
    let algorithm = match digest {
        DeclaredDigest::Sha256(_) => "sha256",
        DeclaredDigest::GitBlobSha1(_) => "git-blob-sha1",
    };
    Declared { algorithm: algorithm.into(), digest: digest.hex(), by: "hub".into() }
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRepository {
    /// `owner/name`.
    pub repository: String,
    /// The commit, 40 hex digits.
    pub sha: String,
}

/// One split to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the split will say of itself.
    pub spec: SplitSpec,
    /// Its inputs in stream order.
    pub inputs: Vec<PlannedInput>,
    /// How records are read.
    pub fields: Fields,
    /// Where remote inputs come from.
    pub remote: Option<RemoteRepository>,
    /// Where its inputs are found again: noted for `audit` and `trace`, outside the dataset.
    pub inputs_folder: Option<PathBuf>,
    /// Documents and tokens that the catalog expects, where it knows.
    pub expected_tokens: Option<u64>,
    /// What the user should know before it is carried out: what was passed over, what is missing.
    pub notes: Vec<String>,
}

#[derive(Serialize)]
struct InputIdentity<'a> {
    path: &'a SafePath,
    size: Option<u64>,
    declared: Option<&'a Declared>,
}

impl Plan {
    /// Sets the plan's digest from its settings and inputs; call it once both are final.
    ///
    /// # Errors
    /// When a number has no canonical form.
    pub fn seal(&mut self) -> Result<(), crate::split::SplitError> {
        let inputs: Vec<_> = self
            .inputs
            .iter()
            .map(|input| InputIdentity {
                path: &input.path,
                size: input.size,
                declared: input.declared.as_ref(),
            })
            .collect();
        self.spec.seal(&inputs)
    }

    /// The inputs of part `index` (1-based) of `count`: contiguous, so that parts put end to end are the whole,
    /// and balanced by size where sizes are known. `not_planned` inputs were cut off the end before.
    #[must_use]
    pub fn part(mut self, index: u32, count: u32, not_planned: u64) -> Self {
        let weights: Vec<u64> = self.inputs.iter().map(|input| input.size.unwrap_or(0) + 4096).collect();
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        let mut before = 0u128;
        let mut position = 0;
        let of_part = |before: u128| before * u128::from(count) / total.max(1);
        self.inputs.retain(|_| {
            let here = of_part(before);
            before += u128::from(weights[position]);
            position += 1;
            here == u128::from(index - 1)
        });
        self.spec.part = Some(Part { index, count, plan: self.spec.plan, not_planned, met: None });
        self
    }

    /// Bytes of all inputs whose size is known.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.inputs.iter().filter_map(|input| input.size).sum()
    }
}

/// Where remote files are kept, and where they may already be.
#[derive(Debug, Clone)]
pub struct InputFolders {
    /// Files that were downloaded by other means (`--from`), laid out as in the repository.
    pub from: Option<PathBuf>,
    /// Where downloads go.
    pub downloads: PathBuf,
}

impl InputFolders {
    /// The file of `path` among those already downloaded, if it is there.
    #[must_use]
    pub fn given(&self, path: &SafePath) -> Option<PathBuf> {
        self.from.as_ref().map(|from| path.under(from)).filter(|file| file.exists())
    }

    /// Where `path` is, or is to be put.
    #[must_use]
    pub fn place(&self, path: &SafePath) -> PathBuf {
        self.given(path).unwrap_or_else(|| path.under(&self.downloads))
    }

    /// Whether `file` was downloaded by us, and so may be removed after use.
    #[must_use]
    pub fn is_download(&self, file: &Path) -> bool {
        file.starts_with(&self.downloads)
    }
}
