//! What has been scored so far, so that a killed evaluation goes on: `.work/scores-RANK.jsonl`.
//!
//! ```text
//! {"plan": "…"}                                    model, data and setting that the figures belong to
//! {"nanoseconds": 81, "sequences": [[7, 461…, …]]}   a batch: number of a sequence, then its figures' float64 bits
//! ```
//! A line is appended after each batch. A sequence's figures are its parts' sums, then those of its groups of positions.
//! Bits, not decimals: a resumed evaluation gives the very same figures. A line that is not whole (the kill came while
//! it was written), or that follows one, counts for nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::Sha256Digest;

use crate::error::{Result, TrainError};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    plan: Sha256Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    nanoseconds: u64,
    sequences: Vec<Vec<u64>>,
}

/// Figures of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    /// Its number.
    pub(super) sequence: usize,
    /// Its parts' sums, then those of its groups of positions.
    pub(super) values: Vec<f64>,
}

/// A rank's journal, open for appending.
pub(super) struct Journal {
    file: fs_err::File,
}

fn name_of(work: &Path, rank: u64) -> PathBuf {
    work.join(format!("scores-{rank}.jsonl"))
}

/// What all ranks of earlier sessions have scored under this plan, with the nanoseconds that it took.
///
/// # Errors
/// When a journal cannot be read.
pub(super) fn read(work: &Path, plan: Sha256Digest) -> Result<(Vec<Scored>, u64)> {
    let (mut scored, mut nanoseconds) = (Vec::new(), 0);
    if !work.is_dir() {
        return Ok((scored, nanoseconds));
    }
    for entry in fs_err::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let text = fs_err::read(&path)?;
        let mut lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let header = lines.next().and_then(|line| serde_json::from_slice::<Header>(line).ok());
        if header.is_none_or(|header| header.plan != plan) {
            continue;
        }
        for entry in lines.map_while(|line| serde_json::from_slice::<Entry>(line).ok()) {
            nanoseconds += entry.nanoseconds;
            scored.extend(entry.sequences.iter().filter_map(|numbers| {
                let (first, rest) = numbers.split_first()?;
                let values = rest.iter().map(|&bits| f64::from_bits(bits)).collect();
                Some(Scored { sequence: usize::try_from(*first).ok()?, values })
            }));
        }
    }
    Ok((scored, nanoseconds))
}

impl Journal {
    /// Goes on with this rank's journal where it belongs to this plan, and begins it anew where not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn open(work: &Path, rank: u64, plan: Sha256Digest) -> Result<Self> {
        fs_err::create_dir_all(work)?;
        let path = name_of(work, rank);
        let mut file =
            fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let text = fs_err::read(&path)?;
        let mut whole = 0;
        for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let good = if index == 0 {
                serde_json::from_slice::<Header>(line).is_ok_and(|header| header.plan == plan)
            } else {
                serde_json::from_slice::<Entry>(line).is_ok()
            };
            if !good || !line.ends_with(b"\n") {
                break;
            }
            whole += line.len() as u64;
        }
        file.set_len(whole)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
        let mut journal = Self { file };
        if whole == 0 {
            journal.append_line(&Header { plan })?;
        }
        Ok(journal)
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn append(&mut self, scored: &[Scored], nanoseconds: u64) -> Result<()> {
        let sequences = scored.iter().map(|one| {
            let bits = one.values.iter().map(|value| value.to_bits());
            std::iter::once(one.sequence as u64).chain(bits).collect()
        });
        self.append_line(&Entry { nanoseconds, sequences: sequences.collect() })
    }

    fn append_line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(TrainError::internal)?;
        bytes.push(b'\n');
        // One call, so that a kill leaves at most one torn line.
        Ok(self.file.write_all(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off_and_another_plan_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (plan, other) = (Sha256Digest::of(b"a"), Sha256Digest::of(b"b"));
        let scored = |sequence| Scored { sequence, values: vec![0.1 + 0.2, f64::MIN_POSITIVE] };
        let mut journal = Journal::open(folder.path(), 0, plan).unwrap();
        journal.append(&[scored(3), scored(1)], 5).unwrap();
        journal.append(&[scored(2)], 6).unwrap();
        drop(journal);
        let path = name_of(folder.path(), 0);
        let text = fs_err::read(&path).unwrap();
        fs_err::write(&path, &text[..text.len() - 2]).unwrap();
        assert_eq!(read(folder.path(), plan).unwrap(), (vec![scored(3), scored(1)], 5));
        let mut journal = Journal::open(folder.path(), 0, plan).unwrap();
        journal.append(&[scored(9)], 7).unwrap();
        assert_eq!(read(folder.path(), plan).unwrap(), (vec![scored(3), scored(1), scored(9)], 12));
        assert_eq!(read(folder.path(), other).unwrap(), (vec![], 0));
        Journal::open(folder.path(), 0, other).unwrap();
        assert_eq!(read(folder.path(), plan).unwrap(), (vec![], 0));
    }
}
