//! The opened datasets of a mixture behind one reader: what stands between a loader and the datasets.
//!
//! One dataset is a mixture too. Rows are numbered through (module [`mixture`](crate::mixture)); who reads them need not
//! know which dataset a row is of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::manifest::{Layout, Packing, Targets};
use crate::mixture::MixedDataset;
use crate::order::Order;
use crate::rows::{Readable, Rows, Sequences};
use crate::run_manifest::{DatasetRef, path_from};
use crate::spans::Span;
use crate::{Manifest, Sha256Digest, identity};

/// A dataset of a mixture.
#[derive(Debug)]
pub struct Part {
    /// Its rows.
    pub data: Box<dyn Rows>,
    /// Where it was opened: a folder or a manifest.
    pub path: PathBuf,
    /// Its rows in an epoch of the mixture, in lowest terms.
    pub weight: u64,
}

/// One dataset or several, opened.
#[derive(Debug)]
pub struct Mixture {
    parts: Vec<Part>,
    /// An order over them; its seed and its rows a step mean nothing.
    order: Order,
}

impl Mixture {
    /// The mixture of these datasets.
    ///
    /// # Errors
    /// When there is none, one has no rows or comes twice, or they differ in what a model must know of rows: layout,
    /// length, targets, tokenizer.
    pub fn new(parts: Vec<Part>) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::Internal("a mixture of no dataset".into()));
        };
        let mut roots = BTreeSet::new();
        for part in &parts {
            check_alike(first, part)?;
            let manifest = part.data.manifest();
            if !roots.insert(manifest.root.to_string()) {
                return Err(Error::mismatch(
                    &part.file(),
                    "datasets that differ",
                    format!("root {} twice", manifest.root),
                    "name each dataset once, with the sum of its weights",
                ));
            }
            if parts.len() > 1 && part.data.rows() == 0 {
                let hint = "leave it out of the mixture, or prepare it from other inputs";
                return Err(Error::mismatch(&part.file(), "at least one row", "none", hint));
            }
        }
        let datasets: Vec<MixedDataset> =
            parts.iter().map(|part| MixedDataset::new(part.data.manifest(), part.weight)).collect();
        let row_length = u64::from(first.data.manifest().packing.row_length);
        let order = Order::of(&datasets, row_length, 0, 1);
        Ok(Self { parts, order })
    }

    /// Its datasets, as they were named.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Its root; of one dataset its own.
    #[must_use]
    pub fn root(&self) -> Sha256Digest {
        self.order.root
    }

    /// Rows of all datasets.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.order.rows
    }

    /// Valid tokens of all datasets.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.order.tokens
    }

    /// Rows in an epoch of the mixture, in which all shares are exact; 1 of one dataset.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.order.epoch()
    }

    /// How rows are stored, in all of them.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.first().layout
    }

    /// The order of a run over it.
    #[must_use]
    pub fn order(&self, seed: u64, rows_per_step: u64) -> Order {
        Order { seed, rows_per_step, ..self.order.clone() }
    }

    /// As the manifest of the run in the folder `run` names it as a whole: of one dataset the dataset itself.
    #[must_use]
    pub fn reference(&self, run: &Path) -> DatasetRef {
        let mut references = self.references(run);
        let (first, of) = (self.first(), self.parts.len());
        if of == 1 {
            return references.remove(0);
        }
        DatasetRef {
            root: self.root(),
            // What it is made of stands in the run itself.
            path: ".".into(),
            split: first.split.clone(),
            profile: format!("mixture of {of} datasets"),
            rows: self.rows(),
            tokens: self.tokens(),
            tokenizer_sha256: Some(identity::tokenizer(&first.tokenizer)),
        }
    }

    /// As the manifest of the run in the folder `run` names its datasets.
    #[must_use]
    pub fn references(&self, run: &Path) -> Vec<DatasetRef> {
        let reference = |part: &Part| DatasetRef::new(part.data.manifest(), &path_from(run, &part.path));
        self.parts.iter().map(reference).collect()
    }

    /// The dataset that a row is of, and its number there.
    #[must_use]
    pub fn place(&self, row: u64) -> (&Part, u64) {
        let (dataset, row) = self.order.place(row);
        (&self.parts[dataset], row)
    }

    /// The documents that have tokens in a row, with the manifest of the dataset that they are of.
    ///
    /// # Errors
    /// When a spans file cannot be read.
    pub fn documents_in_row(&self, row: u64) -> Result<(&Manifest, Vec<Span>)> {
        let (part, row) = self.place(row);
        Ok((part.data.manifest(), part.data.documents_in_row(row)?))
    }

    fn first(&self) -> &Manifest {
        self.parts[0].data.manifest()
    }
}

impl Readable for Mixture {
    fn packing(&self) -> &Packing {
        &self.first().packing
    }

    fn targets_in(&self, row: u64) -> Result<u64> {
        let (part, row) = self.place(row);
        part.data.targets_in(row)
    }

    fn read(&self, row: u64, starts: bool, into: &mut Sequences) -> Result<()> {
        let (part, row) = self.place(row);
        part.data.read(row, starts, into)
    }
}

impl Part {
    fn file(&self) -> PathBuf {
        self.data.folder().join(crate::manifest::MANIFEST_NAME)
    }
}

/// A batch may hold rows of any dataset, and a model has one vocabulary.
fn check_alike(first: &Part, other: &Part) -> Result<()> {
    let (expected, found) = (facts(first.data.manifest()), facts(other.data.manifest()));
    let Some((expected, found)) = expected.into_iter().zip(found).find(|(expected, found)| expected != found)
    else {
        return Ok(());
    };
    let expected = format!("{expected}, as in `{}`", crate::printable::path(&first.file()));
    Err(Error::mismatch(&other.file(), expected, found, "prepare all datasets of a mixture alike"))
}

/// What the datasets of a mixture must have in common, in words.
fn facts(manifest: &Manifest) -> [String; 4] {
    let (packing, tokenizer) = (&manifest.packing, &manifest.tokenizer);
    let width = packing.input_width.map_or(String::new(), |width| format!(" of {width} numbers"));
    [
        format!("layout `{}`", manifest.layout),
        format!("rows of {} positions{width}", packing.row_length),
        match packing.targets {
            Targets::NextToken => "the next token as target".to_owned(),
            Targets::Stored => "stored targets".to_owned(),
        },
        format!("tokenizer `{}`, SHA-256 {}", tokenizer.name, identity::tokenizer(tokenizer)),
    ]
}
