//! Examples into rows, one each, and rows into shards. Each has a span as a document of one row has.

use std::path::{Path, PathBuf};

use xlstm_manifests::manifest::Packing;
use xlstm_manifests::spans::Span;
use xlstm_manifests::stored::StoredShape;

use super::examples_shard::{ExamplesShard, MadeShard};
use super::journal::{Snapshot, Trees};
use super::ledger::Closing;
use super::tally::Counted;
use super::{Sink, SplitError, SplitSpec, TokenizedDocument, narrow};

pub(super) struct ExamplesSink {
    folder: PathBuf,
    packing: Packing,
    shape: StoredShape,
    rows_per_shard: u64,
    /// Number of the shard being written.
    shard: usize,
    open: Option<ExamplesShard>,
    /// Up to the end of the last full shard.
    trees: Trees,
}

/// What the rows of a split with stored targets look like.
fn shape_of(spec: &SplitSpec) -> Result<StoredShape, SplitError> {
    narrow::<_, u16>(spec.packing.row_length, "positions in a row")?;
    let shape = StoredShape::new(spec.layout, &spec.packing, spec.tokenizer.vocabulary_size)?;
    shape.ok_or_else(|| SplitError::Limit(format!("layout `{}` has no stored targets", spec.layout)))
}

impl ExamplesSink {
    pub(super) fn new(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Self, SplitError> {
        let trees = last.map(|snapshot| snapshot.trees.clone()).unwrap_or_default();
        let rows_per_shard = spec.packing.rows_per_shard.unwrap_or(u64::MAX).max(1);
        // When a run resumes, all its finished shards are full.
        let shard = narrow(trees.tokens.leaves() / rows_per_shard, "shards")?;
        Ok(Self {
            folder: folder.into(),
            packing: spec.packing.clone(),
            shape: shape_of(spec)?,
            rows_per_shard,
            shard,
            open: None,
            trees,
        })
    }
}

impl Sink for ExamplesSink {
    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError> {
        let Counted { input, set, license, source } = counted;
        let meta = document.meta;
        let record = meta.record;
        let refused =
            |(expected, found): (String, String)| SplitError::Example { input, record, expected, found };
        let example = document.example.ok_or_else(|| refused(("an example".into(), "a text".into())))?;
        if let Some(complaint) = example.complaint(self.shape) {
            return Err(refused(complaint));
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let shard =
                    ExamplesShard::create(&self.folder, (&self.packing, self.shape), self.shard, true)?;
                self.open.insert(shard)
            }
        };
        let span = Span {
            input,
            record,
            row: open.next_row(),
            offset: 0,
            length,
            bytes: meta.bytes,
            set,
            digest: meta.digest,
            id: meta.id.clone(),
            license,
            source,
        };
        open.push(&example, span)
    }

    /// `begin` writes an example whole; all that is left to report, once, is the end of a shard.
    fn store(&mut self, document: &TokenizedDocument<'_>, from: usize) -> Result<Option<usize>, SplitError> {
        let full = self.open.as_ref().is_some_and(|open| open.len() == self.rows_per_shard);
        Ok((full && from < document.tokens()).then_some(document.tokens()))
    }

    fn close(&mut self, _index: usize) -> Result<Option<Closing>, SplitError> {
        self.open.take().map(|open| self.take(open.finish()?)).transpose()
    }

    fn take(&mut self, made: MadeShard) -> Result<Closing, SplitError> {
        self.trees.tokens.append(&made.rows)?;
        self.trees.documents.append(&made.documents)?;
        self.shard = made.index + 1;
        let trees = self.trees.clone();
        Ok(Box::new(move || Ok((made.shard, trees))))
    }
}
