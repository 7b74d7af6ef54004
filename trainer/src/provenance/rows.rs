//! Rows of a split, the documents in them, and the files that those come from.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use xlstm_manifests::manifest::SetTotals;
use xlstm_manifests::order::{Order, StepRow};
use xlstm_manifests::{Dataset, Manifest, Sha256Digest};

use super::DatasetLink;
use crate::error::{Result, TrainError};

/// A row with the documents that have tokens in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLink {
    /// Which of the run's datasets, from 0.
    pub dataset: usize,
    /// Which pass over the dataset, from 0.
    pub epoch: u64,
    /// The row of the dataset.
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

/// The documents of these rows of one dataset; `None` where it is not here.
///
/// # Errors
/// When a shard cannot be read, or a span names a file or set that the manifest does not have.
pub fn rows(data: &DatasetLink, rows: &[StepRow]) -> Result<Option<Vec<RowLink>>> {
    documents(std::slice::from_ref(data), rows.iter().map(|&row| (0, row)))
}

/// The documents of these rows of a run; `None` where a dataset that they are of is not here.
///
/// # Errors
/// As [`rows`].
pub fn rows_of_step(order: &Order, train: &[DatasetLink], rows: &[StepRow]) -> Result<Option<Vec<RowLink>>> {
    let placed = |row: &StepRow| {
        let (dataset, number) = order.place(row.row);
        (dataset, StepRow { epoch: row.epoch, row: number })
    };
    documents(train, rows.iter().map(placed))
}

fn documents(
    links: &[DatasetLink],
    rows: impl Iterator<Item = (usize, StepRow)>,
) -> Result<Option<Vec<RowLink>>> {
    let mut opened: BTreeMap<usize, Dataset> = BTreeMap::new();
    let mut found = Vec::new();
    for (number, row) in rows {
        let Some(data) = links.get(number).filter(|data| data.manifest().is_some()) else { return Ok(None) };
        let dataset = match opened.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Dataset::open(&data.folder)?),
        };
        let spans = dataset.documents_in_row(row.row)?;
        let documents = spans.into_iter().map(|span| document(dataset.manifest(), data, span));
        let documents = documents.collect::<Result<_>>()?;
        found.push(RowLink { dataset: number, epoch: row.epoch, row: row.row, documents });
    }
    Ok(Some(found))
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
