//! How often each token occurs in a split: `token-counts.json`, which `xlstm-data count` writes.
//!
//! The file names the split by its root and the tokenizer by its digest, so that whoever uses the counts can say what they
//! are counts of. It is canonical JSON: the same split gives the same bytes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic::{Written, write_atomic};
use crate::canonical;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::identity;
use crate::manifest::Manifest;
use crate::versioned::FileKind;

/// The value of `format`.
pub const COUNTS_FORMAT: &str = "xlstm-token-counts";
/// The version written, and the newest one read.
pub const COUNTS_VERSION: u32 = 1;
/// The file's name in a folder.
pub const COUNTS_NAME: &str = "token-counts.json";

const KIND: FileKind = FileKind {
    format: COUNTS_FORMAT,
    version: COUNTS_VERSION,
    file: COUNTS_NAME,
    what: "counts by token",
    hint: "count the training split first: `xlstm-data count DIR/train --out FILE`",
};

/// How often each token occurs in one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCounts {
    /// Always [`COUNTS_FORMAT`].
    pub format: String,
    /// [`COUNTS_VERSION`] when written.
    pub version: u32,
    /// The split's root.
    pub root: Sha256Digest,
    /// The split's name.
    pub split: String,
    /// Its dataset profile.
    pub profile: String,
    /// Digest of what pins the behavior of its tokenizer.
    pub tokenizer_sha256: Sha256Digest,
    /// All tokens, separators included: the sum of the counts.
    pub tokens: u64,
    /// Tokens of the vocabulary that occur.
    pub types: u64,
    /// The count of each id of the vocabulary.
    pub counts: Vec<u64>,
}

impl TokenCounts {
    /// Of the split that `manifest` describes; `counts` has an entry for each id.
    #[must_use]
    pub fn new(manifest: &Manifest, counts: Vec<u64>) -> Self {
        Self {
            format: COUNTS_FORMAT.into(),
            version: COUNTS_VERSION,
            root: manifest.root,
            split: manifest.split.clone(),
            profile: manifest.source.profile.clone(),
            tokenizer_sha256: identity::tokenizer(&manifest.tokenizer),
            tokens: counts.iter().fold(0, |sum: u64, &count| sum.saturating_add(count)),
            types: counts.iter().filter(|&&count| count > 0).count() as u64,
            counts,
        }
    }

    /// The file for a path that names a folder or the file itself.
    #[must_use]
    pub fn locate(path: &Path) -> PathBuf {
        KIND.locate(path)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it is missing, is of another format or newer than this program, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self> {
        let path = Self::locate(path);
        let found: Self = KIND.read(&path)?;
        let sum = found.counts.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
        let types = found.counts.iter().filter(|&&count| count > 0).count() as u64;
        for (what, said, counted) in [("tokens", found.tokens, sum), ("types", found.types, types)] {
            if said != counted {
                let expected = format!("{what} {counted}, by its counts");
                return Err(Error::damaged(&path, expected, said.to_string()));
            }
        }
        Ok(found)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When writing fails.
    pub fn store(&self, path: &Path) -> Result<Written> {
        let bytes = canonical::to_canonical_file(self).map_err(Error::internal)?;
        write_atomic(path, &bytes)
    }
}

/// Buckets of tokens by the number of decimal digits of their count: 0, 1 to 9, 10 to 99, …, and from a million on one.
pub const FREQUENCY_BUCKETS: usize = 8;

/// The bucket of a count.
#[must_use]
pub fn frequency_bucket(count: u64) -> usize {
    let digits = count.checked_ilog10().map_or(0, |digits| digits as usize + 1);
    digits.min(FREQUENCY_BUCKETS - 1)
}

/// The smallest count of a bucket, and the largest; the last bucket has none.
#[must_use]
pub fn counts_of_bucket(bucket: usize) -> (u64, Option<u64>) {
    let power = |digits: usize| 10_u64.pow(u32::try_from(digits).unwrap_or(u32::MAX).min(18));
    match bucket {
        0 => (0, Some(0)),
        last if last + 1 >= FREQUENCY_BUCKETS => (power(FREQUENCY_BUCKETS - 2), None),
        digits => (power(digits - 1), Some(power(digits) - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_decades() {
        for (count, bucket) in [
            (0, 0),
            (1, 1),
            (9, 1),
            (10, 2),
            (99, 2),
            (100, 3),
            (999_999, 6),
            (1_000_000, 7),
            (9_999_999, 7),
            (u64::MAX, 7),
        ] {
            assert_eq!(frequency_bucket(count), bucket, "{count}");
            let (first, last) = counts_of_bucket(bucket);
            assert!(first <= count && last.is_none_or(|last| count <= last), "{count}: {first} to {last:?}");
        }
        assert_eq!(counts_of_bucket(3), (100, Some(999)));
        assert_eq!(counts_of_bucket(7), (1_000_000, None));
    }
}
