//! `--deep` of a split that copies were left out of (`prepare --drop-duplicates`): the list is applied again.
//!
//! No copy that the list names may be stored; each is read again from its source, must have the digest that the list says,
//! and counts where the rest of the selection asks for it. With `--deep all` these counts must be the manifest's; with
//! `--deep N` at most N copies are read, picked as documents are.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xlstm_manifests::manifest::{DUPLICATE, DropDuplicates, Input, MANIFEST_NAME};
use xlstm_manifests::{Manifest, Sha256Digest, printable};

use super::corpus::Corpus;
use super::deep::{fields_of, format_of, read_record};
use super::finding::{Check, Findings};
use super::locate::Locator;
use super::sample::{Amount, Chosen};
use super::selection::Selected;
use crate::duplicates::{Copies, InputCopies};
use crate::report::CommandError;
use crate::sources::{self, Fields};

/// Loads the list that `--duplicates` names.
///
/// # Errors
/// When it cannot be read, or is the list of none of the splits.
pub(super) fn load(path: &Path, folders: &[PathBuf]) -> Result<Copies, CommandError> {
    let copies = Copies::load(path)?;
    let lists: Vec<Sha256Digest> = folders
        .iter()
        .filter_map(|folder| Manifest::load(folder).ok()?.selection.drop_duplicates)
        .map(|dropped| dropped.list_sha256)
        .collect();
    let found = copies.selection().list_sha256;
    let file = printable::path(path);
    match lists.first() {
        _ if lists.contains(&found) => Ok(copies),
        Some(expected) => Err(CommandError::Usage(format!(
            "--duplicates `{file}`: expected the list that these splits were prepared with, SHA-256 {expected}, found {found}"
        ))),
        None => Err(CommandError::Usage(format!(
            "--duplicates `{file}`: expected a split prepared with --drop-duplicates, found none: leave the option out"
        ))),
    }
}

/// Whether these are the bytes that the split was prepared with. That the manifest counts them as they are is another matter:
/// a finding.
pub(super) fn is_of(copies: &Copies, dropped: &DropDuplicates, findings: &mut Findings) -> bool {
    let list = copies.selection();
    if list.list_sha256 != dropped.list_sha256 {
        return false;
    }
    if list.documents != dropped.documents {
        findings.add(
            MANIFEST_NAME,
            Check::Selection,
            format!(
                "selection.drop_duplicates.documents: expected {}, as many as the list `{}` names, found {}: prepare the split \
                 again with that list",
                list.documents,
                printable::path(copies.path()),
                dropped.documents
            ),
        );
    }
    true
}

/// What is missing to apply a split's list again.
pub(super) fn needed(dropped: &DropDuplicates) -> String {
    format!(
        "the selection of --deep: not done, since the list of copies is needed: name the file of SHA-256 {} ({} documents) with \
         --duplicates",
        dropped.list_sha256, dropped.documents
    )
}

struct Again<'a> {
    corpus: &'a Corpus,
    locator: &'a Locator,
    selected: Selected,
    fields: Fields,
    chosen: Chosen,
}

/// One input with the copies that the list names in it.
struct Work<'a> {
    input: &'a Input,
    /// Numbers of its stored documents.
    stored: std::ops::Range<u64>,
    copies: Option<&'a InputCopies>,
    /// Number of its first copy among all of the split.
    first: u64,
}

/// Applies the list again and returns how many copies were read.
pub(super) fn check(
    corpus: &Corpus,
    copies: &Copies,
    (amount, seed): (Amount, u64),
    locator: &Locator,
    findings: &mut Findings,
) -> u64 {
    let manifest = corpus.manifest();
    let (mut next, mut first) = (0, 0);
    let mut work = Vec::new();
    for input in &manifest.inputs {
        let stored = next..next + input.counts.documents;
        next = stored.end;
        match copies.of_input(input.path.as_str(), &input.sha256) {
            Ok(copies) => {
                work.push(Work { input, stored, copies, first });
                first += copies.map_or(0, |copies| copies.records.len() as u64);
            }
            Err(error) => findings.add(input.path.as_str(), Check::Deep, error.to_string()),
        }
    }
    let again = Again {
        corpus,
        locator,
        // A fraction that is none is a finding of the audit itself.
        selected: Selected::new(&manifest.selection).0,
        fields: fields_of(manifest),
        chosen: Chosen::new(amount, first, seed),
    };
    let looked: Vec<(&Input, Result<u64, String>, Vec<String>)> = work
        .into_par_iter()
        .map(|work| {
            let mut problems = Vec::new();
            (work.input, again.input(&work, &mut problems), problems)
        })
        .collect();
    let mut read = 0;
    for (input, result, problems) in looked {
        let ended = result.map(|copies| read += copies).err();
        for problem in problems.into_iter().chain(ended) {
            findings.add(input.path.as_str(), Check::Deep, problem);
        }
    }
    read
}

impl Again<'_> {
    /// Compares one input; returns how many of its copies were read.
    fn input(&self, work: &Work<'_>, problems: &mut Vec<String>) -> Result<u64, String> {
        let stated = work.input.counts.left_out.get(DUPLICATE).copied().unwrap_or(0);
        let mut counted = 0;
        let mut read = 0;
        let all = work.copies.map_or(0, |copies| copies.records.len() as u64);
        if let Some(copies) = work.copies {
            self.stored(work, copies, problems)?;
            let numbers = self.chosen.within(work.first..work.first + all);
            read = numbers.len() as u64;
            counted = self.left_out(work, copies, &numbers, problems)?;
        }
        if read == all && counted != stated {
            problems.push(format!(
                "expected {counted} documents left out as `{DUPLICATE}` (by the list and the rest of the selection), found \
                 {stated} in the manifest"
            ));
        }
        Ok(read)
    }

    /// No stored document may be a copy.
    fn stored(
        &self,
        work: &Work<'_>,
        copies: &InputCopies,
        problems: &mut Vec<String>,
    ) -> Result<(), String> {
        let missing = |number: u64| format!("document {number} is not in the split");
        let mut number = work.stored.start;
        while number < work.stored.end {
            let (shard, place) = self.corpus.place_of(number).ok_or_else(|| missing(number))?;
            let documents = self.corpus.shard(shard).map_err(|error| error.to_string())?;
            for place in place..documents.len() {
                if number == work.stored.end {
                    break;
                }
                let record = documents.meta(place).ok_or_else(|| missing(number))?.record;
                if copies.records.contains_key(&record) {
                    problems.push(format!(
                        "document {number} (record {record}): expected to be left out, since the list names it as a copy, \
                         found in the split"
                    ));
                }
                number += 1;
            }
        }
        Ok(())
    }

    /// Reads the copies with these numbers again; returns how many of them the list alone leaves out.
    fn left_out(
        &self,
        work: &Work<'_>,
        copies: &InputCopies,
        numbers: &[u64],
        problems: &mut Vec<String>,
    ) -> Result<u64, String> {
        let chosen = |index: u64| numbers.binary_search(&(work.first + index)).is_ok();
        let wanted = (0..).zip(&copies.records).filter(|(index, _)| chosen(*index)).map(|(_, copy)| copy);
        let mut wanted = wanted.peekable();
        let Some(&(&first, _)) = wanted.peek() else { return Ok(0) };
        let path = self.locator.verified(work.input)?;
        let say = |error: sources::SourceError| error.to_string();
        let format = format_of(work.input).map_err(say)?;
        let mut reader = sources::open(&path, format, &self.fields, first).map_err(say)?;
        let mut counted = 0;
        for (&record, expected) in wanted {
            let source = read_record(reader.as_mut(), record)?;
            let found = Sha256Digest::of(source.text.as_bytes());
            if found != *expected {
                problems.push(format!(
                    "record {record}: expected the text of SHA-256 {expected}, which the list names, found {found}"
                ));
            } else if !source.text.is_empty()
                && self.selected.complaint(source.set.as_deref(), &found).is_none()
            {
                counted += 1;
            }
        }
        Ok(counted)
    }
}
