//! Building one split, document by document, so that a killed run can resume.
//!
//! ```text
//! SplitBuilder ── counts inputs, sets, totals ── Sink (packed rows | documents | examples) ── shards
//!       └──────── ledger ── journal: one line per finished shard, fsynced after the shard itself
//! ```
//! Whoever feeds a builder (`prepare` from sources, `merge` from parts) pushes inputs and documents in
//! stream order; the bytes written depend on nothing else. After a kill the builder takes up the state of
//! the last journal line and asks, through [`SplitBuilder::cursor`], to be fed again from there.

mod document;
mod documents_sink;
mod error;
mod examples_shard;
mod examples_sink;
mod fault;
mod folder;
mod journal;
mod ledger;
mod packed_sink;
mod row_threads;
mod row_writer;
mod spec;
mod tally;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::atomic::{self, FolderLock};
use xlstm_manifests::manifest::{
    FORMAT, FileRecord, Layout, MANIFEST_NAME, Manifest, Met, Part, SetTotals, Shard, Tool,
};
use xlstm_manifests::{Error as ContractError, Sha256Digest, identity};

pub use document::{DocumentMeta, TokenizedDocument};
use documents_sink::DocumentsSink;
pub use error::SplitError;
pub use examples_shard::{ExamplesShard, MadeShard};
use examples_sink::ExamplesSink;
use folder::{LOCK_NAME, discard, finish_up, finished, remove_lock, remove_strays};
use journal::{Journal, Snapshot};
use ledger::{Closing, Ledger};
use packed_sink::PackedSink;
pub use spec::SplitSpec;
use tally::Counted;
pub use tally::{InputMeta, Tally};

/// Folder for what a run in progress needs, below the split's folder.
pub const WORK_FOLDER: &str = ".work";

/// Where to feed a builder from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Index of the input.
    pub input: u32,
    /// First record wanted from it.
    pub record: u64,
    /// Whether that record was already counted, and only tokens after this many are still to be stored.
    pub stored_tokens: Option<u64>,
}

/// Where a split's documents go: one kind for each layout.
trait Sink {
    /// Notes the input that begins, and says whether the shard being written must be finished before it.
    fn begins_shard(&mut self, _meta: &InputMeta) -> bool {
        false
    }

    /// Notes a document that begins. `length` is its tokens, separator included.
    fn begin(
        &mut self,
        counted: Counted,
        document: &TokenizedDocument<'_>,
        length: u64,
    ) -> Result<(), SplitError>;

    /// Stores a document's tokens from number `from` on. Returns how many of them are stored when the shard is full, to
    /// be called again after [`Sink::close`].
    fn store(&mut self, document: &TokenizedDocument<'_>, from: usize) -> Result<Option<usize>, SplitError>;

    /// Ends the shard being written, the split's number `index`; `None` when there is none.
    fn close(&mut self, index: usize) -> Result<Option<Closing>, SplitError>;

    /// As [`Sink::close`], for the split's last shard.
    fn close_last(&mut self, index: usize) -> Result<Option<Closing>, SplitError> {
        self.close(index)
    }

    /// Takes a shard that was made apart, the next of the split.
    fn take(&mut self, _made: MadeShard) -> Result<Closing, SplitError> {
        Err(ContractError::internal("shards of this layout are made in order").into())
    }

    /// Writes what stands beside the shards of a finished split.
    fn other_files(&self, _sets: &[SetTotals]) -> Result<Vec<FileRecord>, SplitError> {
        Ok(Vec::new())
    }
}

fn sink(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Result<Box<dyn Sink>, SplitError> {
    Ok(match spec.layout {
        Layout::Packed => Box::new(PackedSink::new(folder, spec, last)?),
        Layout::Documents => Box::new(DocumentsSink::new(folder, spec, last)?),
        Layout::Examples | Layout::Vectors => Box::new(ExamplesSink::new(folder, spec, last)?),
    })
}

/// A number of the format in a narrower type; more than that is a limit of the format or of this machine.
fn narrow<T, U: TryFrom<T>>(value: T, what: &str) -> Result<U, SplitError>
where
    T: Copy + std::fmt::Display,
{
    U::try_from(value).map_err(|_| SplitError::Limit(format!("{value} {what}: more than can be stored here")))
}

/// What the builder is waiting for.
pub struct SplitBuilder {
    folder: PathBuf,
    spec: SplitSpec,
    sink: Box<dyn Sink>,
    tally: Tally,
    // Dropped after the sink, whose shards it waits for.
    ledger: Ledger,
    cursor: Cursor,
    _lock: FolderLock,
}

/// What a folder turned out to be when a builder was asked for it.
pub enum Opened {
    /// The split is there, finished, from the same settings.
    Finished(Box<Manifest>),
    /// To be fed from [`SplitBuilder::cursor`].
    Building(Box<SplitBuilder>),
}

impl SplitBuilder {
    /// Opens `folder` for the split `spec`, taking up an unfinished run of the same plan.
    ///
    /// # Errors
    /// When another process is at work there, when it holds something else, or when it cannot be written.
    pub fn open(folder: &Path, spec: SplitSpec, restart: bool) -> Result<Opened, SplitError> {
        let work = folder.join(WORK_FOLDER);
        fs_err::create_dir_all(&work)?;
        let lock = FolderLock::acquire(&work.join(LOCK_NAME))?;
        if restart {
            discard(folder)?;
        }
        if folder.join(MANIFEST_NAME).exists() {
            let result = finished(folder, &spec);
            drop(lock);
            match &result {
                // A kill between the manifest and the removal of `.work` leaves these.
                Ok(manifest) => finish_up(folder, manifest)?,
                // A refusal leaves the folder as it was: an audit would take `.work` for a run under way.
                Err(_) => remove_lock(&work),
            }
            return result.map(|manifest| Opened::Finished(Box::new(manifest)));
        }
        let (journal, snapshots) = Journal::open(&work, &spec, folder)?;
        let mut tally = Tally::new();
        snapshots.iter().for_each(|snapshot| tally.restore(snapshot));
        let sink = sink(folder, &spec, snapshots.last())?;
        let ledger = Ledger::new(journal, snapshots)?;
        remove_strays(folder, ledger.shards())?;
        Ok(Opened::Building(Box::new(Self {
            folder: folder.into(),
            spec,
            sink,
            tally,
            cursor: ledger.durable(),
            ledger,
            _lock: lock,
        })))
    }

    /// Where the feeder must begin.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether the next document is one that the journal's last shard ended in the middle of.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.cursor.stored_tokens.is_some()
    }

    /// Shards that are durable so far.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        self.ledger.shards()
    }

    /// Whether the split is a part of a whole.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.spec.part.is_some()
    }

    /// Notes what the records so far have of what is asked for: a run that is resumed goes on from it.
    pub fn met(&mut self, met: &Met) {
        self.tally.meet(met);
    }

    /// Totals so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The input up to which everything is durable: files before it are not needed again.
    #[must_use]
    pub fn durable_input(&self) -> u32 {
        self.ledger.durable().input
    }

    /// Begins the next input. On resumption the first call names the input of the cursor again.
    ///
    /// # Errors
    /// When the sink has to close a shard and cannot.
    pub fn begin_input(&mut self, meta: InputMeta) -> Result<(), SplitError> {
        if self.sink.begins_shard(&meta)
            && let Some(closing) = self.sink.close(self.ledger.len())?
        {
            let cursor = Cursor { input: self.tally.next_input()?, record: 0, stored_tokens: None };
            self.note_shard(closing, cursor)?;
        }
        self.tally.begin_input(meta)
    }

    /// Counts a record of the current input that is left out.
    pub fn left_out(&mut self, reason: &str, count: u64) {
        self.tally.left_out(reason, count);
    }

    /// Takes a document of the current input.
    ///
    /// # Errors
    /// When a shard cannot be written, a limit of the format is met, or the feeder did not start at the cursor.
    pub fn document(&mut self, document: &TokenizedDocument<'_>) -> Result<(), SplitError> {
        if let Some(stored) = self.cursor.stored_tokens.take() {
            return self.finish_interrupted(document, stored);
        }
        let separator = u64::from(self.spec.packing.append_end_of_text);
        let length = document.tokens() as u64 + separator;
        let counted = self.tally.count(document, length)?;
        self.sink.begin(counted, document, length)?;
        self.store(document, 0)
    }

    /// Counts examples of the current input that are rows of a shard made apart: see [`Self::shard`].
    ///
    /// # Errors
    /// When a limit of the format is met.
    pub fn count_examples(&mut self, examples: u64) -> Result<(), SplitError> {
        self.cursor.stored_tokens = None;
        self.tally.count_examples(examples, examples * u64::from(self.spec.packing.row_length))
    }

    /// Takes the next shard, whose examples are all counted.
    ///
    /// # Errors
    /// When it is not the next one, or cannot be noted.
    pub fn shard(&mut self, made: MadeShard) -> Result<(), SplitError> {
        let Some(last) = made.last else { return Ok(()) };
        let cursor = Cursor { input: last.input, record: last.record, stored_tokens: Some(last.length) };
        let closing = self.sink.take(made)?;
        self.note_shard(closing, cursor)?;
        self.cursor.stored_tokens = None;
        Ok(())
    }

    /// The document in whose middle the journal's last shard ended: only its remaining tokens are missing.
    fn finish_interrupted(
        &mut self,
        document: &TokenizedDocument<'_>,
        stored: u64,
    ) -> Result<(), SplitError> {
        let length = document.tokens() as u64 + u64::from(self.spec.packing.append_end_of_text);
        if document.meta.record != self.cursor.record || stored > length {
            let Cursor { input, record, .. } = self.cursor;
            let found = format!("record {} of {length} tokens", document.meta.record);
            return Err(SplitError::Resume { input, record, found });
        }
        self.store(document, stored)
    }

    /// Stores the tokens of `document` from number `from` on, finishing shards as they fill.
    fn store(&mut self, document: &TokenizedDocument<'_>, from: u64) -> Result<(), SplitError> {
        let mut from: usize = narrow(from, "tokens of a document")?;
        loop {
            let stored = match self.sink.store(document, from) {
                Ok(None) => return Ok(()),
                Ok(Some(stored)) => stored,
                Err(error) => return Err(self.ledger.failure(error)),
            };
            from = stored;
            let closing = self.sink.close(self.ledger.len());
            let Some(closing) = closing.map_err(|error| self.ledger.failure(error))? else { continue };
            let input = self.tally.current_input()?;
            let cursor = Cursor { input, record: document.meta.record, stored_tokens: Some(stored as u64) };
            self.note_shard(closing, cursor)?;
            // The document continues at once; only a resumed run must be fed it again.
            self.cursor.stored_tokens = None;
        }
    }

    /// Hands over a full shard, after which a later run would go on at `cursor`.
    fn note_shard(&mut self, closing: Closing, cursor: Cursor) -> Result<(), SplitError> {
        let moment = self.tally.moment(cursor);
        self.ledger.note(closing, moment)?;
        if self.spec.layout != Layout::Packed {
            // These shards are written already: there is nothing to wait for but the journal.
            self.ledger.settle()?;
        }
        self.cursor = cursor;
        Ok(())
    }

    /// Ends the current input.
    pub fn end_input(&mut self) {
        self.tally.end_input();
    }

    /// Writes the last shard, the manifest and the checksums.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn finish(mut self) -> Result<Manifest, SplitError> {
        let last = self.sink.close_last(self.ledger.len());
        let last = last.map_err(|error| self.ledger.failure(error))?;
        // Its rows may still be written by now; the shards before it become durable meanwhile.
        let (mut shards, mut trees) = self.ledger.finish()?;
        if let Some(closing) = last {
            let (shard, after) = closing()?;
            shards.push(shard);
            trees = after;
        }
        let files = self.sink.other_files(self.tally.sets())?;
        let spec = self.spec;
        let tally::Counts { inputs, sets, record_licenses, record_sources, mut totals, met } =
            self.tally.finish();
        totals.rows = shards.iter().map(|shard| shard.file.records).sum();
        let mut manifest = Manifest {
            format: FORMAT.into(),
            version: spec.layout.version(),
            root: Sha256Digest::of(b""),
            split: spec.split,
            layout: spec.layout,
            source: spec.source,
            selection: spec.selection,
            tokenizer: spec.tokenizer,
            packing: spec.packing,
            inputs,
            shards,
            files,
            sets,
            record_licenses,
            record_sources,
            totals,
            tokens_root: trees.tokens.root(),
            documents_root: trees.documents.root(),
            part: spec.part.map(|part| Part { met, ..part }),
            tool: Tool { name: "xlstm-data".into(), version: env!("CARGO_PKG_VERSION").into() },
        };
        manifest.root = identity::root(&manifest)?;
        identity::check(&self.folder.join(MANIFEST_NAME), &manifest)?;
        atomic::write_atomic(&self.folder.join(MANIFEST_NAME), &manifest.to_bytes()?)?;
        finish_up(&self.folder, &manifest)?;
        Ok(manifest)
    }
}
