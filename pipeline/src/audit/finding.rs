//! What an audit found: which file, which check, what should be there and what is.

use std::collections::BTreeMap;

use serde::Serialize;

/// One thing that is wrong with a split.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file, as its path below the split's folder.
    pub file: String,
    /// Which check it failed.
    pub check: Check,
    /// What was expected, what was found and, where it is not plain, what to do.
    pub message: String,
}

/// The checks, in the order in which they build on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The manifest can be read, is of a known version and does not contradict itself.
    Manifest,
    /// The manifest's bytes are the canonical form of what it says.
    Canonical,
    /// `manifest-sha256.txt` lists the split's files, each with its digest.
    Checksums,
    /// Every listed file is there and can be read.
    Present,
    /// No file is there that nothing lists.
    Extra,
    /// Size and SHA-256 of a file.
    Digest,
    /// A file is what its name says, and holds as many records as the manifest says.
    Format,
    /// Rows are full, but for the split's last; what follows its tokens is filling.
    Rows,
    /// Every id is in the vocabulary.
    Ids,
    /// The separator stands after each document and nowhere else.
    Separators,
    /// The digest of the tokens.
    TokensRoot,
    /// Documents tile the token stream, in the order of their inputs.
    Spans,
    /// The digest of the documents.
    DocumentsRoot,
    /// Counts by input and set, and totals.
    Counts,
    /// Only documents that the selection asks for are there.
    Selection,
    /// Evaluation windows follow from the documents' lengths.
    Windows,
    /// Tokens spell the text whose digest is stored (`--text`).
    Text,
    /// Tokens, digest and counts follow from the source file (`--deep`).
    Deep,
    /// Repository, revision and digests on the Hub (`--sources`).
    Sources,
}

impl Check {
    /// The check's name, as JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Canonical => "canonical",
            Self::Checksums => "checksums",
            Self::Present => "present",
            Self::Extra => "extra",
            Self::Digest => "digest",
            Self::Format => "format",
            Self::Rows => "rows",
            Self::Ids => "ids",
            Self::Separators => "separators",
            Self::TokensRoot => "tokens-root",
            Self::Spans => "spans",
            Self::DocumentsRoot => "documents-root",
            Self::Counts => "counts",
            Self::Selection => "selection",
            Self::Windows => "windows",
            Self::Text => "text",
            Self::Deep => "deep",
            Self::Sources => "sources",
        }
    }
}

/// Findings under collection. Of one check in one file, the first few are kept and the rest counted, so
/// that a file with a million wrong rows stays one paragraph (and memory stays bounded).
#[derive(Debug, Default)]
pub(super) struct Findings {
    by_kind: BTreeMap<(String, Check), (Vec<String>, u64)>,
}

/// Findings of one check in one file that are spelled out.
const SPELLED_OUT: usize = 5;

impl Findings {
    pub(super) fn add(&mut self, file: impl Into<String>, check: Check, message: impl Into<String>) {
        let (spelled, more) = self.by_kind.entry((file.into(), check)).or_default();
        if spelled.len() < SPELLED_OUT { spelled.push(message.into()) } else { *more += 1 }
    }

    /// `expected` and `found` differ.
    pub(super) fn differ(
        &mut self,
        file: impl Into<String>,
        check: Check,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) {
        self.add(file, check, format!("expected {expected}, found {found}"));
    }

    pub(super) fn absorb(&mut self, other: Self) {
        for ((file, check), (spelled, more)) in other.by_kind {
            for message in spelled {
                self.add(file.clone(), check, message);
            }
            if more > 0 {
                self.by_kind.entry((file, check)).or_default().1 += more;
            }
        }
    }

    /// Whether files and content are right, so that documents can be read through them.
    pub(super) fn is_sound(&self) -> bool {
        self.by_kind.keys().all(|(_, check)| matches!(check, Check::Extra | Check::Sources))
    }

    /// Sorted by file and check.
    pub(super) fn finish(self) -> Vec<Finding> {
        let mut list = Vec::new();
        for ((file, check), (spelled, more)) in self.by_kind {
            let rest = (more > 0).then(|| format!("and {more} more of this kind"));
            list.extend(spelled.into_iter().chain(rest).map(|message| Finding {
                file: file.clone(),
                check,
                message,
            }));
        }
        list
    }
}
