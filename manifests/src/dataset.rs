//! Reading a split that has rows of one length, packed tokens or examples: rows by number, straight from the mapped
//! shards.
//!
//! Two ways to open it. Training reads through [`Dataset::open_checked`]: a shard's rows are digested when the first of
//! them is wanted, and compared with the Merkle root that the manifest has for the shard, which the dataset's `root`
//! covers, and its ids with the vocabulary; so nothing is computed from a row that is not the one that was prepared. Commands that check digests
//! themselves (audit, merge, export, trace) use [`Dataset::open`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::digest::{Sha256Digest, digest_file};
use crate::error::{Error, Result};
use crate::examples::ExampleRow;
use crate::manifest::{FileRecord, Layout, Manifest, Shard};
use crate::merkle::MerkleTree;
use crate::packed::{PackedShard, Row, tokens_leaves};
use crate::spans::{Span, SpansFile};
use crate::stored::{StoredRow, StoredShape, StoredShard};
use crate::vectors::VectorRow;

/// A split with rows, opened for reading. Shards are mapped on first use; share it between threads freely.
#[derive(Debug)]
pub struct Dataset {
    manifest: Manifest,
    folder: PathBuf,
    /// First row of each shard, then the number of rows.
    starts: Vec<u64>,
    shards: Vec<OnceLock<Rows>>,
    spans: Vec<OnceLock<SpansFile>>,
    checked: bool,
}

/// The rows of one shard.
#[derive(Debug)]
enum Rows {
    Packed(PackedShard),
    Stored(StoredShard),
}

/// Rows whose digests are taken together.
const ROWS_AT_ONCE: usize = 16;

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Packed(shard) => shard.rows(),
            Self::Stored(shard) => shard.rows(),
        }
    }

    /// The Merkle root over all rows.
    fn root(&self) -> Sha256Digest {
        let mut tree = MerkleTree::new();
        for start in (0..self.len()).step_by(ROWS_AT_ONCE) {
            let together = start..(start + ROWS_AT_ONCE).min(self.len());
            let leaves: Vec<Sha256Digest> = match self {
                Self::Packed(shard) => {
                    tokens_leaves(together.filter_map(|index| Some(shard.row(index)?.tokens())))
                }
                Self::Stored(shard) => together.filter_map(|index| Some(shard.row(index)?.leaf())).collect(),
            };
            leaves.into_iter().for_each(|leaf| tree.push(leaf));
        }
        tree.root()
    }
}

impl Rows {
    /// What a model of `vocabulary_size` tokens could not read: the row, and what is wrong there.
    fn complaint(
        &self,
        shape: Option<StoredShape>,
        vocabulary_size: u32,
    ) -> Option<(usize, (String, String))> {
        (0..self.len()).find_map(|index| {
            let wrong = match self {
                Self::Packed(shard) => {
                    let highest = shard.row(index)?.ids.iter().copied().max()?;
                    (u32::from(highest) >= vocabulary_size)
                        .then(|| (format!("ids below {vocabulary_size}"), highest.to_string()))
                }
                Self::Stored(shard) => shard.row(index)?.complaint(shape?),
            };
            Some((index, wrong?))
        })
    }
}

impl Dataset {
    /// Opens the split whose folder or manifest `path` names. Checks the manifest, and the presence and
    /// size of every shard; digests are `audit`'s work.
    ///
    /// # Errors
    /// When the manifest does not hold, the layout has no rows, or a shard is missing or has another size.
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

    /// As [`Dataset::open`]; every shard and spans file is compared with the manifest's digests before its first use.
    ///
    /// # Errors
    /// As [`Dataset::open`]. A shard that differs is an error of the first row that is wanted from it.
    pub fn open_checked(path: &Path) -> Result<Self> {
        Ok(Self { checked: true, ..Self::open(path)? })
    }

    /// As [`Dataset::open`], but takes one task's part of a whole too.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_part(path: &Path) -> Result<Self> {
        let manifest = Manifest::load(path)?;
        let file = Manifest::locate(path);
        let folder = file.parent().unwrap_or(Path::new(".")).to_path_buf();
        if !manifest.layout.has_rows() {
            return Err(Error::mismatch(
                &file,
                format!("layout `{}`, `{}` or `{}`", Layout::Packed, Layout::Examples, Layout::Vectors),
                format!("`{}`", manifest.layout),
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
        let spans = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { manifest, folder, starts, shards, spans, checked: false })
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

    /// The shard of row `index`, and the row's place in it.
    fn locate(&self, index: u64) -> Result<(&Rows, usize)> {
        if index >= self.rows() {
            return Err(self.past_end(index));
        }
        let number = self.starts.partition_point(|&start| start <= index) - 1;
        let within = usize::try_from(index - self.starts[number]).map_err(|_| self.past_end(index))?;
        Ok((self.shard(number, index)?, within))
    }

    fn past_end(&self, index: u64) -> Error {
        Error::mismatch(
            &self.folder,
            format!("a row below {}", self.rows()),
            format!("row {index}"),
            "ask for a row that the split has",
        )
    }

    /// Row `index` of the split; of an example what goes in, all positions.
    ///
    /// # Errors
    /// When its shard cannot be mapped or does not hold, `index` is past the end, or the split's inputs are no tokens.
    pub fn row(&self, index: u64) -> Result<Row<'_>> {
        let (shard, within) = self.locate(index)?;
        let row = match shard {
            Rows::Packed(shard) => shard.row(within),
            Rows::Stored(shard) => match shard.row(within) {
                Some(StoredRow::Tokens(row)) => Some(Row { ids: row.input_ids, length: row.input_ids.len() }),
                Some(StoredRow::Numbers(_)) => {
                    let hint = "this command is about tokens: give it a split of text or of examples";
                    let expected =
                        format!("rows of tokens (layout `{}`, `{}`)", Layout::Packed, Layout::Examples);
                    let found = format!("layout `{}`", Layout::Vectors);
                    return Err(Error::mismatch(&Manifest::locate(&self.folder), expected, found, hint));
                }
                None => None,
            },
        };
        row.ok_or_else(|| self.past_end(index))
    }

    /// Valid tokens of row `index`; of an example all its positions.
    ///
    /// # Errors
    /// When its shard cannot be mapped or does not hold, or `index` is past the end.
    pub fn positions(&self, index: u64) -> Result<u64> {
        Ok(match self.stored(index)? {
            Some(_) => u64::from(self.manifest.packing.row_length),
            None => self.row(index)?.length as u64,
        })
    }

    /// Row `index` with its stored targets; `None` in a packed split.
    ///
    /// # Errors
    /// When its shard cannot be mapped or does not hold, or `index` is past the end.
    pub fn stored(&self, index: u64) -> Result<Option<StoredRow<'_>>> {
        let (shard, within) = self.locate(index)?;
        match shard {
            Rows::Packed(_) => Ok(None),
            Rows::Stored(shard) => shard.row(within).ok_or_else(|| self.past_end(index)).map(Some),
        }
    }

    /// Example `index` of a split of examples; `None` in any other.
    ///
    /// # Errors
    /// As [`Dataset::stored`].
    pub fn example(&self, index: u64) -> Result<Option<ExampleRow<'_>>> {
        Ok(match self.stored(index)? {
            Some(StoredRow::Tokens(row)) => Some(row),
            Some(StoredRow::Numbers(_)) | None => None,
        })
    }

    /// Example `index` of a split of numbers; `None` in any other.
    ///
    /// # Errors
    /// As [`Dataset::stored`].
    pub fn vectors(&self, index: u64) -> Result<Option<VectorRow<'_>>> {
        Ok(match self.stored(index)? {
            Some(StoredRow::Numbers(row)) => Some(row),
            Some(StoredRow::Tokens(_)) | None => None,
        })
    }

    /// The Merkle leaf of row `index`.
    ///
    /// # Errors
    /// As [`Dataset::row`].
    pub fn leaf(&self, index: u64) -> Result<Sha256Digest> {
        match self.stored(index)? {
            Some(example) => Ok(example.leaf()),
            None => Ok(crate::packed::tokens_leaf(self.row(index)?.tokens())),
        }
    }

    /// Appends the `length` tokens from token `offset` of row `row` on, across rows and shards.
    ///
    /// # Errors
    /// When they run past the end of the stream, or a shard cannot be mapped.
    pub fn read_tokens(&self, row: u64, offset: u16, length: u64, out: &mut Vec<u16>) -> Result<()> {
        let (mut row, mut offset) = (row, usize::from(offset));
        let mut missing = usize::try_from(length).map_err(|_| {
            Error::damaged(&self.folder, "a document that fits in memory", format!("{length} tokens"))
        })?;
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

    /// Shard `number`, of which `row` is wanted.
    fn shard(&self, number: usize, row: u64) -> Result<&Rows> {
        if let Some(shard) = self.shards[number].get() {
            return Ok(shard);
        }
        let Shard { file, tokens_root, .. } = &self.manifest.shards[number];
        let path = file.path.resolve(&self.folder)?;
        let row_length = self.manifest.packing.row_length;
        let shape = StoredShape::of(&self.manifest)?;
        let shard = match (self.manifest.layout, shape) {
            (Layout::Packed, _) => Rows::Packed(PackedShard::open(&path, row_length as usize, file.records)?),
            (_, Some(shape)) => Rows::Stored(StoredShard::open(&path, shape, file.records)?),
            (layout, None) => {
                return Err(Error::damaged(&path, "a layout with rows", format!("`{layout}`")));
            }
        };
        if self.checked {
            let found = shard.root();
            if found != *tokens_root {
                let first = self.starts[number];
                let expected = format!(
                    "rows {first} to {} with tokens_root {tokens_root}, as the manifest says",
                    self.starts[number + 1] - 1
                );
                let found = format!("{found} when row {row} was wanted, and nothing was computed from it");
                return Err(Error::damaged(&path, expected, found));
            }
            let vocabulary_size = self.manifest.tokenizer.vocabulary_size;
            if let Some((within, (expected, found))) = shard.complaint(shape, vocabulary_size) {
                let row = self.starts[number] + within as u64;
                return Err(Error::damaged(&path, format!("{expected} in row {row}"), found));
            }
        }
        Ok(self.shards[number].get_or_init(|| shard))
    }

    /// The spans of the documents that start in shard `number`.
    ///
    /// # Errors
    /// When the spans file cannot be mapped or does not hold.
    pub fn spans(&self, number: usize) -> Result<&SpansFile> {
        if let Some(spans) = self.spans[number].get() {
            return Ok(spans);
        }
        let record = &self.manifest.shards[number].companion;
        let path = record.path.resolve(&self.folder)?;
        if self.checked {
            let (_, found) = digest_file(&path)?;
            if found != record.sha256 {
                return Err(Error::damaged(&path, format!("SHA-256 {}", record.sha256), found.to_string()));
            }
        }
        let spans = SpansFile::open(&path, record.records)?;
        Ok(self.spans[number].get_or_init(|| spans))
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
            // Spans are in stream order: search for the first that ends after the row's start.
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

fn check_size(folder: &Path, file: &FileRecord) -> Result<()> {
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
