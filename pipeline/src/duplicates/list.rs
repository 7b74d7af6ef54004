//! The list of copies: a line of JSON for each, written by `duplicates --list` and read by `prepare --drop-duplicates`.
//!
//! ```text
//! split, root      name and root of the split that has the document
//! input, input_sha256, record   the file as its manifest names it, that file's SHA-256, the record's number in it
//! set, id          as the split stores them; null where it stores none
//! sha256           of the text
//! exact, similarity
//! copy_of          the earlier document: split, root, input, input_sha256, record, set, id, sha256
//! ```
//! Lines come in the order of splits and documents; no document is a copy of itself (module `again`). No place of this machine is in them, so the same splits give the same bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use xlstm_manifests::atomic::AtomicFile;
use xlstm_manifests::manifest::DropDuplicates;
use xlstm_manifests::{Sha256Digest, printable};

use crate::report::CommandError;

/// A document as the list names it.
#[derive(Debug, Serialize)]
pub(super) struct Named {
    pub(super) split: String,
    pub(super) root: Sha256Digest,
    pub(super) input: String,
    pub(super) input_sha256: Sha256Digest,
    pub(super) record: u64,
    pub(super) set: Option<String>,
    pub(super) id: Option<String>,
    pub(super) sha256: Sha256Digest,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    #[serde(flatten)]
    pub(super) document: Named,
    pub(super) exact: bool,
    pub(super) similarity: f64,
    pub(super) copy_of: Named,
}

/// Writes a list.
pub(super) fn write(
    path: &Path,
    lines: impl Iterator<Item = Result<Line, CommandError>>,
) -> Result<(), CommandError> {
    let mut file = AtomicFile::create(path)?;
    for line in lines {
        let text =
            serde_json::to_string(&line?).map_err(|error| CommandError::Internal(error.to_string()))?;
        writeln!(file, "{text}")?;
    }
    file.commit()?;
    Ok(())
}

/// What is read of a line: where the copy is, and that its original is elsewhere.
#[derive(Deserialize)]
struct Place {
    input: String,
    input_sha256: Sha256Digest,
    record: u64,
    sha256: Sha256Digest,
    copy_of: Original,
}

#[derive(Deserialize)]
struct Original {
    input: String,
    input_sha256: Sha256Digest,
    record: u64,
    sha256: Sha256Digest,
}

/// Bytes of the longest line that is read.
const LONGEST_LINE: u64 = 16 << 20;

/// The copies that a list names.
#[derive(Debug)]
pub struct Copies {
    path: PathBuf,
    sha256: Sha256Digest,
    documents: u64,
    /// By the input's name, then by its bytes: splits of several datasets may have files of the same name.
    by_input: BTreeMap<String, BTreeMap<Sha256Digest, InputCopies>>,
}

/// The copies of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InputCopies {
    /// Record number, and SHA-256 of the text.
    pub records: BTreeMap<u64, Sha256Digest>,
    /// Texts whose first document, which has the same text, is in this file too: its record number.
    originals: BTreeMap<Sha256Digest, u64>,
}

/// The list names a file of this name with other bytes.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{input}` is not the file that the list of copies `{list}` speaks of: expected SHA-256 {expected}, found {found}; \
     make the list from these files (`xlstm-data duplicates --list` over a dataset prepared from them)",
    input = printable::text(input), list = printable::path(list)
)]
pub struct OtherBytes {
    /// The input's name.
    pub input: String,
    /// The list.
    pub list: PathBuf,
    /// One of the digests that the list names for it.
    pub expected: Sha256Digest,
    /// The file's.
    pub found: Sha256Digest,
}

impl Copies {
    /// Reads a list.
    ///
    /// # Errors
    /// When the file cannot be read, is not such a list, is empty, or names a document twice or as a copy of itself.
    pub fn load(path: &Path) -> Result<Self, CommandError> {
        let mut copies = Self {
            path: path.into(),
            sha256: Sha256Digest::of(b""),
            documents: 0,
            by_input: BTreeMap::new(),
        };
        let mut reader = BufReader::new(fs_err::File::open(path)?);
        let mut hasher = Sha256::new();
        let mut line = Vec::new();
        while (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            hasher.update(&line);
            copies.add(&line)?;
            line.clear();
        }
        if copies.documents == 0 {
            return Err(CommandError::Usage(format!(
                "`{}`: expected a list of copies, found an empty file; where `xlstm-data duplicates` found no copy, leave \
                 the option out",
                printable::path(path)
            )));
        }
        copies.sha256 = Sha256Digest(hasher.finalize().into());
        Ok(copies)
    }

    fn add(&mut self, line: &[u8]) -> Result<(), CommandError> {
        let number = self.documents + 1;
        let wrong = |what: String| {
            CommandError::Usage(format!("`{}`, line {number}: {what}", printable::path(&self.path)))
        };
        let place: Place = serde_json::from_slice(line).map_err(|error| {
            let error = error.to_string();
            wrong(format!(
                "expected a copy as `xlstm-data duplicates --list` writes it, found {}; name that command's list",
                printable::text(&error)
            ))
        })?;
        let of = &place.copy_of;
        if (&place.input, place.input_sha256, place.record) == (&of.input, of.input_sha256, of.record) {
            return Err(wrong(format!(
                "expected a copy and an earlier document at another place, found record {} of `{}` as a copy of itself, which \
                 would leave out both: make the list again with this version's `xlstm-data duplicates`, or remove the line",
                place.record,
                printable::text(&place.input)
            )));
        }
        let original_here =
            place.sha256 == of.sha256 && (&place.input, place.input_sha256) == (&of.input, of.input_sha256);
        let by_bytes = self.by_input.entry(place.input).or_default();
        let copies = by_bytes.entry(place.input_sha256).or_default();
        if original_here {
            copies.originals.insert(of.sha256, of.record);
        }
        if copies.records.insert(place.record, place.sha256).is_some() {
            let record = place.record;
            return Err(wrong(format!(
                "record {record} is named twice: a list of `xlstm-data duplicates` names each copy once"
            )));
        }
        self.documents = number;
        Ok(())
    }

    /// What a manifest says of the list.
    #[must_use]
    pub fn selection(&self) -> DropDuplicates {
        DropDuplicates { list_sha256: self.sha256, documents: self.documents }
    }

    /// The list's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Documents named of inputs that are not among `inputs`, and the first of those inputs. All of them: the list is of
    /// other data.
    #[must_use]
    pub fn of_other_inputs(&self, inputs: &BTreeSet<&str>) -> (u64, Option<&str>) {
        let others = self.by_input.iter().filter(|(input, _)| !inputs.contains(input.as_str()));
        let documents = |by_bytes: &BTreeMap<_, InputCopies>| {
            by_bytes.values().map(|copies| copies.records.len() as u64).sum::<u64>()
        };
        others.fold((0, None), |(sum, first), (input, by_bytes)| {
            (sum + documents(by_bytes), first.or(Some(input)))
        })
    }

    /// The digests of texts that the list names at a place, one for each file that it knows under the name.
    #[must_use]
    pub fn named(&self, input: &str, record: u64) -> Vec<Sha256Digest> {
        let files = self.by_input.get(input).into_iter().flat_map(BTreeMap::values);
        files.filter_map(|copies| copies.records.get(&record).copied()).collect()
    }

    /// For each text that the list names in the files of a name: the share of the documents with that text that it leaves out,
    /// above 0 and at most 1. For estimates over records whose numbers are not known.
    #[must_use]
    pub fn shares_of_texts(&self, input: &str) -> HashMap<Sha256Digest, f64> {
        let mut counts: HashMap<Sha256Digest, (u64, u64)> = HashMap::new();
        for copies in self.by_input.get(input).into_iter().flat_map(BTreeMap::values) {
            for digest in copies.records.values() {
                counts.entry(*digest).or_default().0 += 1;
            }
            // An original that is listed itself, as near an earlier document, goes as well.
            for (digest, _) in
                copies.originals.iter().filter(|(_, record)| !copies.records.contains_key(record))
            {
                counts.entry(*digest).or_default().1 += 1;
            }
        }
        let share = |(copies, originals): (u64, u64)| copies as f64 / (copies + originals) as f64;
        counts.into_iter().map(|(digest, counts)| (digest, share(counts))).collect()
    }

    /// Documents that the list names.
    #[must_use]
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The copies of an input; `None` where the list names none.
    ///
    /// # Errors
    /// [`OtherBytes`] when it names only files of other bytes under this name: its records may be others.
    pub fn of_input(&self, input: &str, sha256: &Sha256Digest) -> Result<Option<&InputCopies>, OtherBytes> {
        let Some(by_bytes) = self.by_input.get(input) else { return Ok(None) };
        match (by_bytes.get(sha256), by_bytes.keys().next()) {
            (None, Some(&expected)) => {
                Err(OtherBytes { input: input.into(), list: self.path.clone(), expected, found: *sha256 })
            }
            (found, _) => Ok(found),
        }
    }
}
