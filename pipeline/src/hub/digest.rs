//! The two digests by which the Hub declares what a file holds.
//!
//! A large file lives in LFS storage and is declared by the SHA-256 of its bytes. A small one lives in the git
//! repository and is declared by its git blob id, `sha1("blob {length}\0" + bytes)`. Whichever is declared, the
//! SHA-256 is computed as well, in the same pass: it is what manifests record.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use xlstm_manifests::Sha256Digest;

/// A git blob id: SHA-1 over `blob {length}\0` and the content, 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GitBlobSha1(pub [u8; 20]);

impl fmt::Display for GitBlobSha1 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for GitBlobSha1 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for GitBlobSha1 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 20];
        let parsed = digits.len() == 40
            && digits.chunks_exact(2).zip(&mut bytes).all(|(pair, byte)| {
                match (value(pair[0]), value(pair[1])) {
                    (Some(high), Some(low)) => {
                        *byte = high << 4 | low;
                        true
                    }
                    _ => false,
                }
            });
        if parsed {
            Ok(Self(bytes))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(format!("expected a git object id of 40 lower-case hex digits, found `{shown}`"))
        }
    }
}

impl Serialize for GitBlobSha1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GitBlobSha1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest by which a listing declares a file. In JSON: `{"sha256": "…"}` or `{"git_blob_sha1": "…"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeclaredDigest {
    /// A file in LFS storage: SHA-256 of its bytes.
    #[serde(rename = "sha256")]
    Sha256(Sha256Digest),
    /// A file in the git repository itself: its blob id.
    #[serde(rename = "git_blob_sha1")]
    GitBlobSha1(GitBlobSha1),
}

impl DeclaredDigest {
    /// The bare hex digits: the entity tag the Hub sends, and the name of the blob in a Hugging Face cache.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(digest) => digest.to_string(),
            Self::GitBlobSha1(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for DeclaredDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(formatter, "SHA-256 {digest}"),
            Self::GitBlobSha1(digest) => write!(formatter, "git blob SHA-1 {digest}"),
        }
    }
}

/// Both digests of a file in one pass over its bytes.
#[derive(Clone)]
pub(super) struct ContentHasher {
    sha256: Sha256,
    git_blob: Option<Sha1>,
}

impl ContentHasher {
    /// A hasher for a file declared by `declared` with `size` bytes (a git blob id covers the length).
    pub(super) fn new(declared: DeclaredDigest, size: u64) -> Self {
        let git_blob = match declared {
            DeclaredDigest::Sha256(_) => None,
            DeclaredDigest::GitBlobSha1(_) => Some(Sha1::new_with_prefix(format!("blob {size}\0"))),
        };
        Self { sha256: Sha256::new(), git_blob }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git_blob) = &mut self.git_blob {
            git_blob.update(bytes);
        }
    }

    /// The SHA-256 of the content, and the digest to compare with the declared one.
    pub(super) fn finish(&self) -> (Sha256Digest, DeclaredDigest) {
        let sha256 = Sha256Digest(self.sha256.clone().finalize().into());
        let found = match &self.git_blob {
            None => DeclaredDigest::Sha256(sha256),
            Some(git_blob) => DeclaredDigest::GitBlobSha1(GitBlobSha1(git_blob.clone().finalize().into())),
        };
        (sha256, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_git_blob_id_is_that_of_git_hash_object() {
        // `printf 'hello\n' | git hash-object --stdin`
        let declared: GitBlobSha1 = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let mut hasher = ContentHasher::new(DeclaredDigest::GitBlobSha1(declared), 6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        let (sha256, found) = hasher.finish();
        assert_eq!(found, DeclaredDigest::GitBlobSha1(declared));
        assert_eq!(sha256, Sha256Digest::of(b"hello\n"));
    }

    #[test]
    fn json_form_is_stable_and_refuses_other_digits() {
        let declared = DeclaredDigest::GitBlobSha1(GitBlobSha1([0xab; 20]));
        let json = serde_json::to_string(&declared).unwrap();
        assert_eq!(json, format!(r#"{{"git_blob_sha1":"{}"}}"#, "ab".repeat(20)));
        assert_eq!(serde_json::from_str::<DeclaredDigest>(&json).unwrap(), declared);
        for bad in ["", "ab", &"AB".repeat(20), &"zz".repeat(20), &"é".repeat(20)] {
            assert!(bad.parse::<GitBlobSha1>().is_err(), "{bad}");
        }
    }
}
