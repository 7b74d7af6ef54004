//! The journal of a run in progress: `.work/journal.jsonl`.
//!
//! Line 1 names the plan. Each further line is the whole state after one finished shard; it is appended
//! and fsynced only after the shard and its spans are durable, so what a line says is on disk. A torn last
//! line (the kill came while it was written) is cut off.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xlstm_manifests::manifest::{Input, Met, SetTotals, Shard, Totals};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::{Error as ContractError, Sha256Digest};

use super::{Cursor, SplitError, SplitSpec, TokenizedDocument};

/// The journal's name in the work folder.
pub(super) const JOURNAL_NAME: &str = "journal.jsonl";

/// The Merkle trees over tokens and documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trees {
    /// Leaves: rows (packed) or documents.
    pub tokens: MerkleTree,
    /// Leaves: documents.
    pub documents: MerkleTree,
}

/// The state after a finished shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// The shard that was finished.
    pub shard: Shard,
    /// Where feeding resumes.
    pub cursor: Cursor,
    /// Inputs that ended since the line before.
    pub closed_inputs: Vec<Input>,
    /// The input that is being read, with its counts so far.
    pub open_input: Option<Input>,
    /// Totals by set.
    pub sets: Vec<SetTotals>,
    /// Totals by the documents' own licenses.
    #[serde(default)]
    pub record_licenses: Vec<SetTotals>,
    /// Totals by the documents' own sources.
    #[serde(default)]
    pub record_sources: Vec<SetTotals>,
    /// Totals.
    pub totals: Totals,
    /// What the records read so far had of what is asked for.
    #[serde(default)]
    pub met: Option<Met>,
    /// Merkle trees.
    pub trees: Trees,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    plan: Sha256Digest,
    part: Option<(u32, u32)>,
    tool_version: String,
}

pub(super) struct Journal {
    file: fs_err::File,
}

impl Journal {
    /// Opens the journal in `work`, with the snapshots that it holds.
    pub(super) fn open(
        work: &Path,
        spec: &SplitSpec,
        folder: &Path,
    ) -> Result<(Self, Vec<Snapshot>), SplitError> {
        let header = Header {
            plan: spec.plan,
            part: spec.part.as_ref().map(|part| (part.index, part.count)),
            tool_version: env!("CARGO_PKG_VERSION").into(),
        };
        let path = work.join(JOURNAL_NAME);
        let mut file =
            fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let text = fs_err::read(&path)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut snapshots = Vec::new();
        match lines.next() {
            None => {
                file.set_len(0)?;
                write_header(&mut file, &header)?;
            }
            Some(line) => {
                let found: Header = parse(&path, line)?;
                let stored = lines.clone().next().is_some();
                let continues = spec.plan_without_skip == Some(found.plan)
                    && Header { plan: spec.plan, ..found.clone() } == header;
                // A run that stored nothing yet may be run again with other options.
                if !stored && found != header {
                    file.set_len(0)?;
                    write_header(&mut file, &header)?;
                    return Ok((Self { file }, snapshots));
                }
                if found != header && !continues {
                    let differs = if found.tool_version == header.tool_version {
                        "its settings or input list".to_owned()
                    } else {
                        format!(
                            "the program's version ({} then, {} now)",
                            found.tool_version, header.tool_version
                        )
                    };
                    let found = "an unfinished run";
                    return Err(SplitError::OtherRun { folder: folder.into(), found, differs });
                }
                for line in lines {
                    snapshots.push(parse(&path, line)?);
                }
                file.set_len(whole as u64)?;
                file.seek(SeekFrom::End(0))?;
            }
        }
        Ok((Self { file }, snapshots))
    }

    /// Appends a line and makes it durable.
    pub(super) fn append(&mut self, snapshot: &Snapshot) -> Result<(), SplitError> {
        let mut line = serde_json::to_vec(snapshot).map_err(ContractError::internal)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        Ok(())
    }
}

fn write_header(file: &mut fs_err::File, header: &Header) -> Result<(), SplitError> {
    let mut line = serde_json::to_vec(header).map_err(ContractError::internal)?;
    line.push(b'\n');
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&line)?;
    Ok(file.sync_all()?)
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, line: &'a [u8]) -> Result<T, SplitError> {
    serde_json::from_slice(line).map_err(|error| {
        ContractError::mismatch(
            path,
            "a line of a run's journal",
            error.to_string(),
            "the file was damaged: use --restart to prepare the split from its beginning",
        )
        .into()
    })
}

/// A document is what its leaf covers, wherever it is stored.
pub(super) fn document_leaf(input: u32, document: &TokenizedDocument<'_>, length: u64) -> Sha256Digest {
    xlstm_manifests::spans::document_leaf(input, document.meta.record, length, &document.meta.digest)
}
