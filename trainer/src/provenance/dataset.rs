//! A dataset as a run or a report names it, where it is found now, and what is known of its source files.

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::{Claim, Declared, Input};
use xlstm_manifests::origin::Origin;
use xlstm_manifests::run_manifest::{DatasetRef, find_dataset};
use xlstm_manifests::{Error as ContractError, Manifest, Sha256Digest};

/// What a dataset was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A run was trained on it.
    Training,
    /// A run was validated on it.
    Validation,
    /// An evaluation scored it.
    Evaluated,
}

impl Role {
    /// Its name: `training split`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Training => "training split",
            Self::Validation => "validation split",
            Self::Evaluated => "evaluated split",
        }
    }
}

/// What a run or a report says of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its identity.
    pub root: Sha256Digest,
    /// Where it was. A hint.
    pub path: PathBuf,
    /// Its split.
    pub split: String,
    /// The profile that it was prepared from.
    pub profile: String,
    /// Its tokens.
    pub tokens: u64,
    /// Its rows, where they were recorded.
    pub rows: Option<u64>,
    /// SHA-256 of its manifest, where that was recorded.
    pub manifest_sha256: Option<Sha256Digest>,
}

impl From<&DatasetRef> for Recorded {
    fn from(data: &DatasetRef) -> Self {
        Self {
            root: data.root,
            path: data.path.clone(),
            split: data.split.clone(),
            profile: data.profile.clone(),
            tokens: data.tokens,
            rows: Some(data.rows),
            manifest_sha256: None,
        }
    }
}

/// Where the dataset is now.
#[derive(Debug)]
pub enum Found {
    /// Here, with the recorded root.
    Here(Box<Manifest>),
    /// In its place is one with another root: it was altered or replaced.
    Other(Box<Manifest>),
    /// The recorded path, seen from the current folder, happens to lead to a dataset with this root: another one of the
    /// same name.
    Namesake(Sha256Digest),
    /// In its place is a manifest that cannot be read, or that contradicts itself.
    Unreadable(ContractError),
    /// Nowhere.
    Missing,
}

/// A dataset that a run or a report names.
#[derive(Debug)]
pub struct DatasetLink {
    /// What it was used for.
    pub role: Role,
    /// Which dataset of how many of a mixture it is, from 1.
    pub of_mixture: Option<(usize, usize)>,
    /// What was recorded of it.
    pub recorded: Recorded,
    /// Its folder now; where it is nowhere, the one that was recorded.
    pub folder: PathBuf,
    /// What is there.
    pub found: Found,
}

/// A source file of a dataset, and what vouches for it.
#[derive(Debug, Clone, Copy)]
pub struct SourceLink<'a> {
    /// The file.
    pub input: &'a Input,
    /// What vouches for it.
    pub evidence: Evidence<'a>,
}

/// What vouches for a source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// Its bytes were compared with a digest that somebody published.
    Compared(&'a Declared),
    /// Only the caller's word.
    Claimed(&'a Claim),
    /// Nothing: it is a file of the user's own.
    Nothing,
}

impl Evidence<'_> {
    /// The evidence in words, after a comma: `compared with sha256 … published by hub`.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Compared(Declared { algorithm, digest, by }) => {
                format!("compared with {algorithm} {digest} published by {by}")
            }
            Self::Claimed(claim) => format!("compared with nothing, {}", claim.sentence()),
            Self::Nothing => "compared with nothing that anybody published".to_owned(),
        }
    }
}

impl DatasetLink {
    /// Looks for a dataset that a file in the folder `from` names: in its recorded place, then below the folders `more` and
    /// around `from`. It is known by its root, which is computed again.
    #[must_use]
    pub fn find(role: Role, recorded: Recorded, from: &Path, more: &[PathBuf]) -> Self {
        let by_root = find_dataset(recorded.root, &recorded.path, from, more);
        let beside = from.join(&recorded.path);
        let in_place = if Manifest::locate(&beside).is_file() { beside } else { recorded.path.clone() };
        // Older runs recorded paths from where they were started: what lies there from here is another dataset.
        let by_chance = recorded.path.is_relative() && in_place == recorded.path;
        let (folder, known) = by_root.map_or((in_place, false), |folder| (folder, true));
        let found = match Manifest::locate(&folder).is_file().then(|| Manifest::load(&folder)) {
            None => Found::Missing,
            Some(Ok(manifest)) if known || manifest.root == recorded.root => Found::Here(Box::new(manifest)),
            Some(Ok(manifest)) if by_chance => Found::Namesake(manifest.root),
            Some(Ok(manifest)) => Found::Other(Box::new(manifest)),
            Some(Err(error)) => Found::Unreadable(error),
        };
        Self { role, of_mixture: None, recorded, folder, found }
    }

    /// The datasets that a run in the folder `from` was trained on: one, or those of a mixture.
    #[must_use]
    pub fn find_all<'a>(
        trained_on: impl ExactSizeIterator<Item = &'a DatasetRef>,
        from: &Path,
        more: &[PathBuf],
    ) -> Vec<Self> {
        let of = trained_on.len();
        let link = |(number, data): (usize, &DatasetRef)| Self {
            of_mixture: (of > 1).then_some((number + 1, of)),
            ..Self::find(Role::Training, Recorded::from(data), from, more)
        };
        trained_on.enumerate().map(link).collect()
    }

    /// What it is called: `training split`, `training split 1 of 2`.
    #[must_use]
    pub fn name(&self) -> String {
        let of_mixture = self.of_mixture.map(|(number, of)| format!(" {number} of {of}"));
        format!("{}{}", self.role.name(), of_mixture.unwrap_or_default())
    }

    /// Its manifest, where it is here.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.found {
            Found::Here(manifest) => Some(manifest),
            _ => None,
        }
    }

    /// Why its manifest cannot be shown; `None` where it can.
    #[must_use]
    pub fn absence(&self) -> Option<String> {
        let (name, shown, root) = (self.name(), self.folder.display(), self.recorded.root);
        match &self.found {
            Found::Here(_) => None,
            Found::Missing => Some(format!(
                "The {name} is no longer at {shown} (seen from here): what follows of it is only what the run recorded. Its \
                 root {root} still names it."
            )),
            Found::Namesake(other) => Some(format!(
                "At {shown} lies another {name}: root {other}, and the run used {root}. What follows is only what the run \
                 recorded."
            )),
            Found::Other(manifest) => {
                let other = manifest.root;
                Some(format!("At {shown} lies another {name} now: root {other}, and the run used {root}."))
            }
            Found::Unreadable(error) => Some(format!("The manifest of the {name} cannot be read: {error}.")),
        }
    }

    /// What was compared with published digests and what was only claimed; known where the manifest is here.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.manifest().map(Origin::of)
    }

    /// Its source files, in stream order; none where the manifest is not here.
    #[must_use]
    pub fn sources<'a>(&'a self, origin: &'a Origin) -> Vec<SourceLink<'a>> {
        let inputs = self.manifest().map_or([].as_slice(), |manifest| &manifest.inputs);
        inputs.iter().map(|input| SourceLink { input, evidence: evidence(input, origin) }).collect()
    }
}

fn evidence<'a>(input: &'a Input, origin: &'a Origin) -> Evidence<'a> {
    match (&input.declared, &origin.claimed) {
        (Some(declared), _) => Evidence::Compared(declared),
        (None, Some(claim)) => Evidence::Claimed(claim),
        (None, None) => Evidence::Nothing,
    }
}
