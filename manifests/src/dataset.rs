//! Reading a packed split: rows by number, straight from the mapped shards.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::manifest::{Layout, Manifest, Shard};
use crate::packed::{PackedShard, Row};
use crate::spans::{Span, SpansFile};

/// A packed split, opened for reading. Shards are mapped on first use; share it between threads freely.
#[derive(Debug)]
pub struct Dataset {
    manifest: Manifest,
    folder: PathBuf,
    /// First row of each shard, then the number of rows.
    starts: Vec<u64>,
    shards: Vec<OnceLock<PackedShard>>,
}

impl Dataset {
    /// Opens the split whose folder or manifest `path` names. Checks the manifest, and the presence and
    /// size of every shard; digests are `audit`'s work.
    ///
    /// # Errors
    /// When the manifest does not hold, the layout is not packed, or a shard is missing or has another size.
    pub fn open(path: &Path) -> Result<Self> {
        let dataset = Self::open_part(path)?;
        if let Some(part) = &dataset.manifest.part {
            return Err(Error::mismatch(
                &Manifest::locate(path),
                "a whole split",
                format!("part {} of {}", part.index, part.count),
                "run `xlstm-data merge` over all parts first",
            ));
        }
        Ok(dataset)
    }

    /// As [`Dataset::open`], but takes one task's part of a whole too.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_part(path: &Path) -> Result<Self> {
        let manifest = Manifest::load(path)?;
        let file = Manifest::locate(path);
        let folder = file.parent().unwrap_or(Path::new(".")).to_path_buf();
        if manifest.layout != Layout::Packed {
            return Err(Error::mismatch(
                &file,
                "layout `packed`",
                "`documents`",
                "this split is stored by document, for evaluation: use it with `xlstm-eval paloma`",
            ));
        }
        let mut starts = vec![0];
        for shard in &manifest.shards {
            check_size(&folder, &shard.file)?;
            check_size(&folder, &shard.companion)?;
            starts.push(starts.last().copied().unwrap_or(0) + shard.file.records);
        }
        let shards = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { manifest, folder, starts, shards })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The split's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Row `index` of the split.
    ///
    /// # Errors
    /// When its shard cannot be mapped, or `index` is past the end.
    pub fn row(&self, index: u64) -> Result<Row<'_>> {
        let past_end = || {
            Error::mismatch(
                &self.folder,
                format!("a row below {}", self.rows()),
                format!("row {index}"),
                "ask for a row that the split has",
            )
        };
        if index >= self.rows() {
            return Err(past_end());
        }
        let number = self.starts.partition_point(|&start| start <= index) - 1;
        let shard = self.shard(number)?;
        let within = usize::try_from(index - self.starts[number]).map_err(|_| past_end())?;
        shard.row(within).ok_or_else(past_end)
    }

    /// Appends the `length` tokens from token `offset` of row `row` on, across rows and shards.
    ///
    /// # Errors
    /// When they run past the end of the stream, or a shard cannot be mapped.
    pub fn read_tokens(&self, row: u64, offset: u16, length: u64, out: &mut Vec<u16>) -> Result<()> {
        let (mut row, mut offset) = (row, usize::from(offset));
        let mut missing = usize::try_from(length).unwrap_or(usize::MAX);
        while missing > 0 {
            let tokens = self.row(row)?.tokens();
            let available = tokens.get(offset..).unwrap_or_default();
            if available.is_empty() {
                return Err(Error::damaged(
                    &self.folder,
                    format!("a token at offset {offset} of row {row}"),
                    format!("{} tokens in that row", tokens.len()),
                ));
            }
            let taken = available.len().min(missing);
            out.extend_from_slice(&available[..taken]);
            missing -= taken;
            row += 1;
            offset = 0;
        }
        Ok(())
    }

    fn shard(&self, number: usize) -> Result<&PackedShard> {
        if let Some(shard) = self.shards[number].get() {
            return Ok(shard);
        }
        let record = &self.manifest.shards[number].file;
        let path = record.path.resolve(&self.folder)?;
        let row_length = self.manifest.packing.row_length as usize;
        let shard = PackedShard::open(&path, row_length, record.records)?;
        Ok(self.shards[number].get_or_init(|| shard))
    }

    /// The spans of the documents that start in shard `number`.
    ///
    /// # Errors
    /// When the spans file cannot be mapped.
    pub fn spans(&self, number: usize) -> Result<SpansFile> {
        let record = &self.manifest.shards[number].companion;
        SpansFile::open(&record.path.resolve(&self.folder)?, record.records)
    }

    /// The documents that have tokens in row `index`, in stream order.
    ///
    /// # Errors
    /// When a spans file cannot be mapped, or no document covers the row's start.
    pub fn documents_in_row(&self, index: u64) -> Result<Vec<Span>> {
        let row_length = u64::from(self.manifest.packing.row_length);
        let (start, end) = (index * row_length, (index + 1) * row_length);
        let first = |span: &Span| span.row * row_length + u64::from(span.offset);
        let mut number = self.starts.partition_point(|&s| s <= index).saturating_sub(1);
        let mut found = Vec::new();
        loop {
            let spans = self.spans(number)?;
            // Spans lie in stream order: search for the first that ends after the row's start.
            let (mut low, mut high) = (0, spans.len());
            while low < high {
                let middle = (low + high) / 2;
                match spans.get(middle) {
                    Some(span) if first(&span) + span.length <= start => low = middle + 1,
                    _ => high = middle,
                }
            }
            let here: Vec<Span> =
                (low..spans.len()).map_while(|i| spans.get(i).filter(|span| first(span) < end)).collect();
            let covered = here.first().is_some_and(|span| first(span) <= start);
            found.splice(0..0, here);
            if covered || number == 0 {
                return Ok(found);
            }
            number -= 1;
        }
    }

    /// The shard records with the first row of each.
    pub fn shards(&self) -> impl Iterator<Item = (u64, &Shard)> {
        self.starts.iter().copied().zip(&self.manifest.shards)
    }
}

fn check_size(folder: &Path, file: &crate::manifest::FileRecord) -> Result<()> {
    let path = file.path.under(folder);
    let size = match fs_err::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::damaged(&path, "a file that the manifest lists", "no such file"));
        }
        Err(error) => return Err(error.into()),
    };
    if size == file.size {
        Ok(())
    } else {
        Err(Error::damaged(&path, format!("{} bytes", file.size), format!("{size} bytes")))
    }
}
