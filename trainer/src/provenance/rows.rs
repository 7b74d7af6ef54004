//! Rows of a split, the documents in them, and the files that those come from.

use xlstm_manifests::manifest::SetTotals;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::{Dataset, Manifest, Sha256Digest};

use super::DatasetLink;
use crate::error::{Result, TrainError};

/// A row with the documents that have tokens in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLink {
    /// Which pass over the data, from 0.
    pub epoch: u64,
    /// The row of the split.
    pub row: u64,
    /// Its documents, in order.
    pub documents: Vec<DocumentLink>,
}

/// A document with tokens in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentLink {
    /// Index of its source file in the manifest.
    pub input: usize,
    /// Path of its source file.
    pub source: String,
    /// SHA-256 of its source file.
    pub source_sha256: Sha256Digest,
    /// Its record in that file.
    pub record: u64,
    /// SHA-256 of its text.
    pub sha256: Sha256Digest,
    /// The source's own name for it.
    pub id: Option<String>,
    /// Its set.
    pub set: Option<String>,
    /// The license that it carries itself.
    pub license: Option<String>,
    /// Where it says that it is from.
    pub from: Option<String>,
}

/// The documents of these rows; `None` where the dataset is not here.
///
/// # Errors
/// When a shard cannot be read, or a span names a file or set that the manifest does not have.
pub fn rows(data: &DatasetLink, rows: &[StepRow]) -> Result<Option<Vec<RowLink>>> {
    if data.manifest().is_none() {
        return Ok(None);
    }
    let dataset = Dataset::open(&data.folder)?;
    let link = |row: &StepRow| -> Result<RowLink> {
        let spans = dataset.documents_in_row(row.row)?;
        let documents = spans.into_iter().map(|span| document(dataset.manifest(), data, span));
        Ok(RowLink { epoch: row.epoch, row: row.row, documents: documents.collect::<Result<_>>()? })
    };
    rows.iter().map(link).collect::<Result<_>>().map(Some)
}

fn document(
    manifest: &Manifest,
    data: &DatasetLink,
    span: xlstm_manifests::spans::Span,
) -> Result<DocumentLink> {
    let unknown = |what: &str, index: usize, of: usize| {
        let hint = "the split was altered: run `xlstm-data audit` on it";
        TrainError::file(&data.folder, format!("a {what} below {of}"), format!("{what} {index}"), hint)
    };
    let input = span.input as usize;
    let source =
        manifest.inputs.get(input).ok_or_else(|| unknown("source file", input, manifest.inputs.len()))?;
    let name = |what: &str, index: Option<u16>, totals: &[SetTotals]| -> Result<Option<String>> {
        let Some(index) = index.map(usize::from) else { return Ok(None) };
        let found = totals.get(index).ok_or_else(|| unknown(what, index, totals.len()))?;
        Ok(Some(found.name.clone()))
    };
    Ok(DocumentLink {
        input,
        source: source.path.to_string(),
        source_sha256: source.sha256,
        record: span.record,
        sha256: span.digest,
        set: name("set", span.set, &manifest.sets)?,
        license: name("license", span.license, &manifest.record_licenses)?,
        from: name("source", span.source, &manifest.record_sources)?,
        id: span.id,
    })
}
