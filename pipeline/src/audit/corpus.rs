//! The documents of a split, one interface for all layouts: where each is from, and its tokens.
//!
//! Documents are numbered in stream order over the whole split. Only the current shard is held.

use std::path::{Path, PathBuf};

use xlstm_manifests::documents::{Document, DocumentShard};
use xlstm_manifests::manifest::{Input, SetTotals};
use xlstm_manifests::spans::{Span, SpansFile};
use xlstm_manifests::{Dataset, Error, Manifest, Result, Sha256Digest};

use super::spans::set_name;

/// A split opened for reading document by document.
#[derive(Debug)]
pub(crate) struct Corpus {
    content: Content,
    /// Number of each shard's first document, then the number of documents.
    starts: Vec<u64>,
}

#[derive(Debug)]
enum Content {
    Rows(Box<Dataset>),
    Documents { manifest: Box<Manifest>, folder: PathBuf },
}

/// What is known of a document besides its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Index into the manifest's inputs.
    pub(crate) input: u32,
    /// Record number in that input.
    pub(crate) record: u64,
    /// Its set's name.
    pub(crate) set: Option<String>,
    /// The source's own name for it.
    pub(crate) id: Option<String>,
    /// The license that it carries itself.
    pub(crate) license: Option<String>,
    /// Where it says that it is from.
    pub(crate) source: Option<String>,
    /// Tokens of its text, without separator.
    pub(crate) tokens: u64,
    /// UTF-8 bytes of its text.
    pub(crate) bytes: u64,
    /// SHA-256 of its text.
    pub(crate) digest: Sha256Digest,
    /// Characters and words, where the layout stores them.
    pub(crate) chars_and_words: Option<(u64, u64)>,
    /// Row and token in it where it begins, in a split with rows.
    pub(crate) place: Option<(u64, u16)>,
}

impl Corpus {
    /// Opens the split at `path`, whole or one task's part.
    ///
    /// # Errors
    /// When the manifest does not hold, or a shard is missing or has another size.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // A manifest named without a folder is in the current one.
        let here = path.parent() == Some(Path::new("")) && path.is_file();
        let path = &if here { Path::new(".").join(path) } else { path.to_path_buf() };
        let manifest = Manifest::load(path)?;
        let rows = manifest.layout.has_rows();
        let mut starts = vec![0u64];
        for shard in &manifest.shards {
            let records = if rows { shard.companion.records } else { shard.file.records };
            starts.push(starts.last().copied().unwrap_or(0).saturating_add(records));
        }
        let content = if rows {
            Content::Rows(Box::new(Dataset::open_part(path)?))
        } else {
            let file = Manifest::locate(path);
            let folder = file.parent().unwrap_or(Path::new(".")).into();
            Content::Documents { manifest: Box::new(manifest), folder }
        };
        Ok(Self { content, starts })
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> &Manifest {
        match &self.content {
            Content::Rows(dataset) => dataset.manifest(),
            Content::Documents { manifest, .. } => manifest,
        }
    }

    /// The split's folder.
    pub(crate) fn folder(&self) -> &Path {
        match &self.content {
            Content::Rows(dataset) => dataset.folder(),
            Content::Documents { folder, .. } => folder,
        }
    }

    /// The rows, where there are rows.
    pub(crate) fn rows(&self) -> Option<&Dataset> {
        match &self.content {
            Content::Rows(dataset) => Some(dataset),
            Content::Documents { .. } => None,
        }
    }

    /// The input that a document names.
    ///
    /// # Errors
    /// When the manifest has no such input: shard and manifest were not made together.
    pub(crate) fn input_of(&self, number: u32) -> Result<&Input> {
        let inputs = &self.manifest().inputs;
        inputs.get(number as usize).ok_or_else(|| {
            let expected = format!("an input {number} (from 0), which a document names");
            Error::damaged(&Manifest::locate(self.folder()), expected, format!("{} inputs", inputs.len()))
        })
    }

    /// Number of documents.
    pub(crate) fn documents(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Number of shards.
    pub(crate) fn shards(&self) -> usize {
        self.starts.len() - 1
    }

    /// The shard that holds document `number`, and the document's place in it.
    pub(crate) fn place_of(&self, number: u64) -> Option<(usize, usize)> {
        if number >= self.documents() {
            return None;
        }
        let shard = self.starts.partition_point(|&start| start <= number) - 1;
        Some((shard, usize::try_from(number - self.starts[shard]).ok()?))
    }

    /// Opens the documents of shard `number`.
    pub(crate) fn shard(&self, number: usize) -> Result<ShardDocuments<'_>> {
        let manifest = self.manifest();
        let append = manifest.packing.append_end_of_text;
        let names = |totals: &[SetTotals]| totals.iter().map(|set| set.name.clone()).collect();
        let (sets, licenses) = (names(&manifest.sets), names(&manifest.record_licenses));
        let sources = names(&manifest.record_sources);
        let list = match &self.content {
            Content::Rows(dataset) => List::Spans(dataset.spans(number)?, dataset),
            Content::Documents { folder, .. } => {
                let record = &manifest.shards[number].file;
                List::Documents(DocumentShard::open(&record.path.resolve(folder)?, record.records)?)
            }
        };
        Ok(ShardDocuments { list, sets, licenses, sources, append })
    }
}

/// The documents of one shard.
#[derive(Debug)]
pub(crate) struct ShardDocuments<'a> {
    list: List<'a>,
    sets: Vec<String>,
    licenses: Vec<String>,
    sources: Vec<String>,
    append: bool,
}

#[derive(Debug)]
enum List<'a> {
    Spans(&'a SpansFile, &'a Dataset),
    Documents(DocumentShard),
}

impl ShardDocuments<'_> {
    /// Number of documents.
    pub(crate) fn len(&self) -> usize {
        match &self.list {
            List::Spans(spans, _) => spans.len(),
            List::Documents(shard) => shard.len(),
        }
    }

    /// Document `index` of the shard with its tokens (no separator), which replace what is in `ids`.
    pub(crate) fn read(&self, index: usize, ids: &mut Vec<u16>) -> Result<Option<Meta>> {
        ids.clear();
        match &self.list {
            List::Spans(spans, dataset) => {
                let Some(span) = spans.get(index) else { return Ok(None) };
                let meta = self.of_span(span);
                if let Some((row, offset)) = meta.place {
                    dataset.read_tokens(row, offset, meta.tokens, ids)?;
                }
                Ok(Some(meta))
            }
            List::Documents(shard) => {
                let Some(mut document) = shard.get(index) else { return Ok(None) };
                *ids = std::mem::take(&mut document.ids);
                Ok(Some(self.of_document(document, ids.len() as u64)))
            }
        }
    }

    /// Document `index` of the shard without its tokens.
    pub(crate) fn meta(&self, index: usize) -> Option<Meta> {
        match &self.list {
            List::Spans(spans, _) => Some(self.of_span(spans.get(index)?)),
            List::Documents(shard) => {
                let document = shard.get(index)?;
                let tokens = document.ids.len() as u64;
                Some(self.of_document(document, tokens))
            }
        }
    }

    fn of_span(&self, span: Span) -> Meta {
        Meta {
            input: span.input,
            record: span.record,
            set: name_at(span.set, &self.sets),
            license: name_at(span.license, &self.licenses),
            source: name_at(span.source, &self.sources),
            id: span.id,
            tokens: span.length.saturating_sub(u64::from(self.append)),
            bytes: span.bytes,
            digest: span.digest,
            chars_and_words: None,
            place: Some((span.row, span.offset)),
        }
    }

    fn of_document(&self, document: Document, tokens: u64) -> Meta {
        Meta {
            input: document.input,
            record: document.record,
            set: set_name(&document.source, &document.domain, &self.sets),
            id: document.id,
            license: name_at(document.license, &self.licenses),
            source: name_at(document.record_source, &self.sources),
            tokens,
            bytes: document.bytes,
            digest: document.digest,
            chars_and_words: Some((document.chars, document.words)),
            place: None,
        }
    }
}

/// The name that an index of a document stands for.
fn name_at(index: Option<u16>, names: &[String]) -> Option<String> {
    names.get(usize::from(index?)).cloned()
}
