//! Generated rows without shards: `prepare task --stream`, and the reader that training uses.
//!
//! The manifest is the one of the written split, byte for byte: every shard was made and digested, and none was written. A row is made
//! again whenever it is wanted, from the generator that the manifest names. Opening makes the first shard's rows again
//! and compares their Merkle root with the manifest's, so a program that would make others is refused.

use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::rows::{Rows, Sequences};
use xlstm_manifests::spans::Span;
use xlstm_manifests::{Error, Manifest, Result, Sha256Digest};

use super::Sample;
use super::written::{Generated, generated};

/// A generated split whose rows are made when they are wanted.
pub struct StreamedRows {
    manifest: Manifest,
    folder: PathBuf,
    generated: Generated,
    /// Number of each input's first row, then the number of rows.
    starts: Vec<u64>,
}

impl fmt::Debug for StreamedRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StreamedRows").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Whether the split that `path` names is generated and has no shards.
///
/// # Errors
/// When there is no manifest, or it does not hold.
pub fn is_streamed(path: &Path) -> Result<bool> {
    let manifest = Manifest::load(path)?;
    Ok(manifest.source.generator.is_some() && has_no_shards(&folder_of(path), &manifest))
}

/// Whether none of the shards is there; a split that lost some of them is damaged, not streamed.
pub(super) fn has_no_shards(folder: &Path, manifest: &Manifest) -> bool {
    manifest.shards.iter().all(|shard| !shard.file.path.under(folder).exists())
}

fn folder_of(path: &Path) -> PathBuf {
    Manifest::locate(path).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// The rows of the split that `path` names: from its shards, or made when they are wanted.
///
/// # Errors
/// When the split cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn Rows>> {
    if is_streamed(path)? {
        return Ok(Box::new(StreamedRows::open(path)?));
    }
    xlstm_manifests::rows::open(path)
}

impl StreamedRows {
    /// Opens the split and compares the rows of its first shard with the manifest.
    ///
    /// # Errors
    /// When the manifest names no generator of this program, or the rows are not those that the manifest has.
    pub fn open(path: &Path) -> Result<Self> {
        let manifest = Manifest::load(path)?;
        let file = Manifest::locate(path);
        let fail = |error: anyhow::Error| {
            let hint = "use the version of xlstm-data that prepared the split, or prepare it again";
            Error::mismatch(&file, "a generator of this program", format!("{error:#}"), hint)
        };
        let generated = generated(&manifest).map_err(fail)?;
        let mut starts = vec![0];
        for input in &manifest.inputs {
            starts.push(starts.last().copied().unwrap_or(0) + input.counts.documents);
        }
        let streamed = Self { folder: folder_of(path), generated, starts, manifest };
        if let Some(shard) = streamed.manifest.shards.first() {
            let found = streamed.root_of(shard.file.records)?;
            if found != shard.tokens_root {
                let expected = format!("tokens_root {} of the first shard", shard.tokens_root);
                return Err(fail(anyhow::anyhow!(
                    "expected {expected}, found {found} over the rows made again"
                )));
            }
        }
        Ok(streamed)
    }

    /// Makes all rows and compares them with the manifest.
    ///
    /// # Errors
    /// When they are not those that the manifest has.
    pub fn check(&self) -> Result<()> {
        let found = self.root_of(self.rows())?;
        if found == self.manifest.tokens_root {
            return Ok(());
        }
        let hint = "use the version of xlstm-data that prepared the split, or prepare it again";
        let expected = format!("tokens_root {} of all rows", self.manifest.tokens_root);
        let found = format!("{found} over the rows made again");
        Err(Error::mismatch(&Manifest::locate(&self.folder), expected, found, hint))
    }

    /// Merkle root over the first `rows` rows.
    fn root_of(&self, rows: u64) -> Result<Sha256Digest> {
        let leaf = |row| -> Result<Sha256Digest> { Ok(self.sample(row)?.stored().leaf()) };
        let leaves: Vec<Sha256Digest> = (0..rows).into_par_iter().map(leaf).collect::<Result<_>>()?;
        let mut tree = MerkleTree::new();
        leaves.into_iter().for_each(|leaf| tree.push(leaf));
        Ok(tree.root())
    }

    /// Input and record of row `row`.
    fn place(&self, row: u64) -> Result<(u32, u64)> {
        let rows = self.starts.last().copied().unwrap_or(0);
        if row >= rows {
            let hint = "ask for a row that the split has";
            return Err(Error::mismatch(
                &self.folder,
                format!("a row below {rows}"),
                format!("row {row}"),
                hint,
            ));
        }
        let input = self.starts.partition_point(|&start| start <= row) - 1;
        let number = u32::try_from(input).map_err(Error::internal)?;
        Ok((number, row - self.starts[input]))
    }

    /// Row `row`, made again.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn sample(&self, row: u64) -> Result<Sample> {
        let (input, record) = self.place(row)?;
        self.generated
            .sample(input, record)
            .map_err(|error| Error::Internal(format!("row {row} cannot be made again: {error:#}")))
    }
}

impl Rows for StreamedRows {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    fn targets_in(&self, row: u64) -> Result<u64> {
        Ok(match self.sample(row)? {
            Sample::Tokens(example) => example.targets.iter().flatten().count() as u64,
            Sample::Numbers(example) => example.targets.iter().flatten().count() as u64,
        })
    }

    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()> {
        let first = into.positions();
        let sample = self.sample(row)?;
        let length = u16::try_from(sample.length()).map_err(Error::internal)?;
        match sample {
            Sample::Tokens(example) => {
                into.push_tokens(&example.input_ids, example.targets.iter().copied(), length);
            }
            Sample::Numbers(example) => {
                into.push_numbers(&example.inputs, example.targets.iter().copied(), length)
            }
        }
        if starts {
            // An example begins where its row does, which is a beginning anyway.
            into.starts.resize(into.starts.len() + into.positions() - first, false);
        }
        Ok(())
    }

    fn documents_in_row(&self, row: u64) -> Result<Vec<Span>> {
        let (input, record) = self.place(row)?;
        let sample = self.sample(row)?;
        Ok(vec![Span {
            input,
            record,
            row,
            offset: 0,
            length: u64::from(self.manifest.packing.row_length),
            bytes: 0,
            set: None,
            digest: sample.stored().digest(),
            id: None,
            license: None,
            source: None,
        }])
    }
}
