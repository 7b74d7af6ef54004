//! The catalog: pinned datasets as data, in `catalog/*.toml`, part of the program.
//!
//! A profile says where a dataset is (repository and revision on the Hub), how its files are laid out and
//! read, what is to be expected of them, and who says what about its license. A corpus that moves, as the
//! original SlimPajama did, is a new profile and no new code.
//!
//! Which files make up a split, and in which order, decides the token stream, so it is fixed here: the
//! split's parts in the order of the catalog; within a part the paths that match its glob, by path, with
//! runs of digits compared as numbers (`example_train_2` before `example_train_10`).

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::manifest::Licence;

/// The embedded profiles, file name and contents.
const FILES: [(&str, &str); 4] = [
    ("catalog/slimpajama-original.toml", include_str!("../catalog/slimpajama-original.toml")),
    ("catalog/slimpajama-reupload.toml", include_str!("../catalog/slimpajama-reupload.toml")),
    ("catalog/slimpajama-6b.toml", include_str!("../catalog/slimpajama-6b.toml")),
    ("catalog/paloma.toml", include_str!("../catalog/paloma.toml")),
];

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// A catalog file does not have the form of [`Profile`].
    #[error("{file}: {detail}; the program was built from a damaged checkout")]
    Damaged {
        /// The catalog's file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// There is no such profile.
    #[error("no profile `{name}` of dataset `{dataset}`; there are {known}")]
    NoProfile {
        /// The dataset that was asked for.
        dataset: String,
        /// The profile that was asked for.
        name: String,
        /// The profiles that there are.
        known: String,
    },
    /// The profile has no such split.
    #[error("profile `{profile}` has no split `{split}`; it has {known}")]
    NoSplit {
        /// The profile.
        profile: String,
        /// The split that was asked for.
        split: String,
        /// The splits that there are.
        known: String,
    },
}

/// All profiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// In the order: SlimPajama original, reupload, 6b; PALOMA.
    pub profiles: Vec<Profile>,
}

/// A dataset at a place and revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The dataset: `slimpajama`, `paloma`.
    pub dataset: String,
    /// The profile's name among those of the dataset.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// `owner/name` of the dataset repository on the Hub.
    pub repository: String,
    /// The default revision: a commit, in full or abbreviated as far as it is known.
    pub revision: String,
    /// Whether an account must accept terms before it may download.
    pub gated: bool,
    /// The files' format.
    pub format: FileFormat,
    /// Path of the field that holds the text.
    pub text_field: String,
    /// Path of the field that names the set.
    pub set_field: Option<String>,
    /// Path of the field that names the set where `set_field` is absent.
    pub set_fallback_field: Option<String>,
    /// Path of the field that names the document.
    pub id_field: Option<String>,
    /// Path of the field that is there where the source cut the document.
    pub truncated_field: Option<String>,
    /// The sets that are known to occur; empty if it is not known.
    #[serde(default)]
    pub sets: Vec<String>,
    /// What a user should know, a sentence or two each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Who says what about the license. Statements may contradict each other: all are recorded.
    pub licences: Vec<Licence>,
    /// The splits.
    pub splits: Vec<Split>,
    /// What the dataset is composed of, in the order of its paper (PALOMA).
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// How the files of a profile are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileFormat {
    /// JSON lines, zstd.
    #[serde(rename = "jsonl.zst")]
    JsonLinesZstd,
    /// JSON lines, gzip.
    #[serde(rename = "jsonl.gz")]
    JsonLinesGzip,
    /// Apache Parquet.
    #[serde(rename = "parquet")]
    Parquet,
}

/// One split of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// `train`, `validation` or `test`.
    pub name: String,
    /// Other names that people use for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Documents, where published.
    pub documents: Option<u64>,
    /// The split's files, in the order in which they are read.
    pub parts: Vec<Part>,
}

/// Files of a split that stand together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which paths: `*` stands for any characters but `/`.
    pub glob: String,
    /// How many files, where known.
    pub files: Option<u64>,
    /// The directory of the [`Source`] that they belong to.
    pub source: Option<String>,
}

/// One of the sources that a dataset is composed of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The folder in the repository, which is also the name of the configuration on the Hub.
    pub directory: String,
    /// The name in the paper.
    pub name: String,
    /// Published tokens, validation and test together (PALOMA: GPT-NeoX-20B, Table 1).
    pub tokens: u64,
    /// Published number of domains.
    pub domains: u64,
}

/// A part with another number of files than it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountMismatch {
    /// The part's glob.
    pub glob: String,
    /// Files that it should have.
    pub expected: u64,
    /// Files that there are.
    pub found: u64,
}

impl Catalog {
    /// Reads the embedded catalog.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`], which the tests rule out for the catalog as it stands in the repository.
    pub fn load() -> Result<Self, CatalogError> {
        let read = |(file, text): (&str, &str)| Profile::parse(file, text);
        Ok(Self { profiles: FILES.into_iter().map(read).collect::<Result<_, _>>()? })
    }

    /// The profile `name` of `dataset`.
    ///
    /// # Errors
    /// [`CatalogError::NoProfile`] with the names that there are.
    pub fn profile(&self, dataset: &str, name: &str) -> Result<&Profile, CatalogError> {
        let found = self.profiles.iter().find(|profile| profile.dataset == dataset && profile.name == name);
        found.ok_or_else(|| CatalogError::NoProfile {
            dataset: dataset.to_owned(),
            name: name.to_owned(),
            known: join(self.profiles.iter().map(|profile| format!("{} {}", profile.dataset, profile.name))),
        })
    }
}

impl Profile {
    /// Reads a profile in the form of the catalog; `file` names it in errors.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] for anything that is not a profile, unknown keys included.
    pub fn parse(file: &str, text: &str) -> Result<Self, CatalogError> {
        toml::from_str(text)
            .map_err(|error| CatalogError::Damaged { file: file.to_owned(), detail: error.to_string() })
    }

    /// The split called `name`, by its name or an alias.
    ///
    /// # Errors
    /// [`CatalogError::NoSplit`] with the names that there are.
    pub fn split(&self, name: &str) -> Result<&Split, CatalogError> {
        let is_it = |split: &&Split| split.name == name || split.aliases.iter().any(|alias| alias == name);
        self.splits.iter().find(is_it).ok_or_else(|| CatalogError::NoSplit {
            profile: self.name.clone(),
            split: name.to_owned(),
            known: join(self.splits.iter().map(|split| split.name.clone())),
        })
    }

    /// The source whose files are in `directory`.
    #[must_use]
    pub fn source(&self, directory: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.directory == directory)
    }

    /// The paths of `listing` that make up `split`, in the order in which they are read.
    ///
    /// # Errors
    /// [`CatalogError::NoSplit`].
    pub fn select<'a>(
        &self,
        split: &str,
        listing: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<&'a str>, CatalogError> {
        let split = self.split(split)?;
        // A set first: a path that is listed twice is one file.
        let paths: BTreeSet<&str> = listing.into_iter().collect();
        let mut parts: Vec<Vec<&str>> = vec![Vec::new(); split.parts.len()];
        for path in paths {
            if let Some(place) = split.parts.iter().position(|part| matches(&part.glob, path)) {
                parts[place].push(path);
            }
        }
        for part in &mut parts {
            part.sort_by(|left, right| compare_paths(left, right));
        }
        Ok(parts.concat())
    }
}

impl Split {
    /// How many files the split should have; `None` unless it is known of every part.
    #[must_use]
    pub fn expected_files(&self) -> Option<u64> {
        self.parts.iter().map(|part| part.files).sum()
    }

    /// The part that `path` belongs to.
    #[must_use]
    pub fn part(&self, path: &str) -> Option<&Part> {
        self.parts.iter().find(|part| matches(&part.glob, path))
    }

    /// The parts of which `paths` has another number of files than they should have.
    #[must_use]
    pub fn count_mismatches(&self, paths: &[&str]) -> Vec<CountMismatch> {
        let mismatch = |part: &Part| {
            let found = paths.iter().filter(|path| matches(&part.glob, path)).count() as u64;
            let expected = part.files.filter(|&expected| expected != found)?;
            Some(CountMismatch { glob: part.glob.clone(), expected, found })
        };
        self.parts.iter().filter_map(mismatch).collect()
    }
}

fn join(names: impl Iterator<Item = String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Whether `path` is what `glob` describes: `*` stands for any characters but `/`.
fn matches(glob: &str, path: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else { return glob == path };
    let Some(rest) = path.strip_prefix(head) else { return false };
    let name = rest.find('/').unwrap_or(rest.len());
    (0..=name).any(|end| rest.is_char_boundary(end) && matches(tail, &rest[end..]))
}

/// By path, with runs of digits compared as numbers, and as text where the numbers are equal (`01`, `1`).
fn compare_paths(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left, right);
    while let (Some(first), Some(second)) = (a.chars().next(), b.chars().next()) {
        let order = if first.is_ascii_digit() && second.is_ascii_digit() {
            let (number, after) = split_number(a);
            let (other, after_other) = split_number(b);
            (a, b) = (after, after_other);
            // Without leading zeros the longer number is the larger.
            number.len().cmp(&other.len()).then_with(|| number.cmp(other))
        } else {
            (a, b) = (&a[first.len_utf8()..], &b[second.len_utf8()..]);
            first.cmp(&second)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len()).then_with(|| left.cmp(right))
}

/// The run of digits at the head of `text`, without leading zeros, and what follows it.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, after) = text.split_at(end);
    (digits.trim_start_matches('0'), after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        Catalog::load().unwrap()
    }

    #[test]
    fn the_original_has_the_published_number_of_files() {
        let catalog = catalog();
        let original = catalog.profile("slimpajama", "original").unwrap();
        let files = |split: &str| original.split(split).unwrap().expected_files();
        assert_eq!(files("train"), Some(59_166));
        assert_eq!(files("validation"), Some(31_428));
        assert_eq!(files("test"), Some(31_411));
        let total: u64 = original.splits.iter().filter_map(Split::expected_files).sum();
        assert_eq!(total, 122_005);
    }

    #[test]
    fn paloma_adds_up_to_the_papers_totals() {
        let catalog = catalog();
        let paloma = catalog.profile("paloma", "paloma").unwrap();
        assert_eq!(paloma.sources.len(), 16);
        assert_eq!(paloma.sources.iter().map(|source| source.tokens).sum::<u64>(), 123_683_201);
        assert_eq!(paloma.sources.iter().map(|source| source.domains).sum::<u64>(), 546);
        for split in &paloma.splits {
            let directories: Vec<_> = split.parts.iter().filter_map(|part| part.source.clone()).collect();
            let sources: Vec<_> = paloma.sources.iter().map(|source| source.directory.clone()).collect();
            assert_eq!(directories, sources, "{}", split.name);
        }
    }

    #[test]
    fn every_profile_is_pinned_and_licensed() {
        let catalog = catalog();
        let names: BTreeSet<_> =
            catalog.profiles.iter().map(|profile| (&profile.dataset, &profile.name)).collect();
        assert_eq!(names.len(), FILES.len());
        for profile in &catalog.profiles {
            let revision = &profile.revision;
            let is_commit = revision.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit && (revision.len() == 40 || revision == "65cd6fc"), "{revision}");
            assert!(!profile.licences.is_empty() && !profile.splits.is_empty(), "{}", profile.title);
        }
    }

    #[test]
    fn files_are_read_in_the_order_of_their_numbers() {
        let catalog = catalog();
        let original = catalog.profile("slimpajama", "original").unwrap();
        let listing = [
            "README.md",
            "train/chunk10/example_train_0.jsonl.zst",
            "train/chunk2/example_train_10.jsonl.zst",
            "train/chunk2/example_train_9.jsonl.zst",
            "train/chunk1/example_train_0.jsonl.zst",
            "train/chunk1/example_train_0.jsonl.zst",
            "train/chunk1/nested/example_train_0.jsonl.zst",
            "validation/chunk1/example_holdout_0.jsonl.zst",
        ];
        let selected = original.select("train", listing).unwrap();
        assert_eq!(selected, [listing[4], listing[3], listing[2], listing[1]]);
        let short = original.split("train").unwrap().count_mismatches(&selected);
        assert_eq!(short.len(), 10);
        assert_eq!((short[1].expected, short[1].found), (5911, 2));
    }

    #[test]
    fn palomas_sources_keep_the_papers_order() {
        let catalog = catalog();
        let paloma = catalog.profile("paloma", "paloma").unwrap();
        let listing = [
            "4chan_meta_sep/val/val-00000001.jsonl.gz",
            "ptb/val/val.jsonl.gz",
            "c4_en/val/val-00000000.jsonl.gz",
        ];
        let selected = paloma.select("val", listing).unwrap();
        assert_eq!(selected, [listing[2], listing[1], listing[0]]);
        let part = paloma.split("validation").unwrap().part(listing[1]).unwrap();
        assert_eq!(paloma.source(part.source.as_deref().unwrap()).unwrap().name, "Penn Treebank");
        assert!(paloma.select("test", listing).unwrap().is_empty());
    }

    #[test]
    fn names_that_do_not_exist_are_answered_with_those_that_do() {
        let catalog = catalog();
        let error = catalog.profile("slimpajama", "7b").unwrap_err().to_string();
        assert!(error.contains("`slimpajama 6b`"), "{error}");
        let error = catalog.profiles[0].split("dev").unwrap_err().to_string();
        assert!(error.contains("`validation`"), "{error}");
        let error = Profile::parse("x.toml", "dataset = \"a\"\nsurprise = 1\n").unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("surprise"), "{error}");
    }

    #[test]
    fn globs_stay_within_a_folder() {
        for (glob, path, expected) in [
            ("a/*.gz", "a/b.gz", true),
            ("a/*.gz", "a/.gz", true),
            ("a/*.gz", "a/b/c.gz", false),
            ("data/train-*-of-*.parquet", "data/train-00000-of-00048-ab722660a17694c2.parquet", true),
            ("data/train-*-of-*.parquet", "data/train-00000.parquet", false),
            ("a/é*ü", "a/éöü", true),
            ("plain", "plain", true),
            ("plain", "plainer", false),
        ] {
            assert_eq!(matches(glob, path), expected, "{glob} {path}");
        }
    }

    #[test]
    fn numbers_in_paths_have_a_total_order() {
        let mut paths = ["a10b", "a2", "a02", "a2b", "b", "a", "a010b"];
        paths.sort_by(|left, right| compare_paths(left, right));
        assert_eq!(paths, ["a", "a02", "a2", "a2b", "a010b", "a10b", "b"]);
    }
}
