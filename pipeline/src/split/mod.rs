//! Building one split, document by document, so that a killed run goes on where it was.
//!
//! ```text
//! SplitBuilder ── counts inputs, sets, totals ── Sink (packed rows | documents | examples) ── shards
//!       └──────── journal: one line per finished shard, fsynced after the shard itself
//! ```
//! Whoever feeds a builder (`prepare` from sources, `merge` from parts) pushes inputs and documents in
//! stream order; the bytes written depend on nothing else. After a kill the builder takes up the state of
//! the last journal line and asks, through [`SplitBuilder::cursor`], to be fed again from there.

mod documents_sink;
mod examples_sink;
mod journal;
mod packed_sink;
mod tally;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xlstm_manifests::atomic::{self, FolderLock};
use xlstm_manifests::checksums;
use xlstm_manifests::examples::Example;
use xlstm_manifests::manifest::FORMAT;
use xlstm_manifests::manifest::{
    FileRecord, Layout, MANIFEST_NAME, Manifest, Packing, Part, Selection, SetTotals, Shard, Source,
    Tokenizer, Tool,
};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{
    Dataset, Error as ContractError, Sha256Digest, canonical, identity, origin, printable,
};

use documents_sink::DocumentsSink;
use examples_sink::ExamplesSink;
use journal::{Journal, Snapshot, Trees};
use packed_sink::PackedSink;
use tally::Counted;
pub use tally::{InputMeta, Tally};

/// Folder for what a run in progress needs, below the split's folder.
pub const WORK_FOLDER: &str = ".work";

/// The file in it that a run holds.
const LOCK_NAME: &str = "lock";

/// Why a split could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A file of the dataset could not be written, or is not what it should be.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The folder holds another dataset, or an unfinished run with other settings.
    #[error("`{folder}` holds {found}, which differs in {differs}; use another --out, or --restart to discard it", folder = printable::path(folder))]
    OtherRun {
        /// The split's folder.
        folder: PathBuf,
        /// What was found there.
        found: &'static str,
        /// Which settings differ.
        differs: String,
    },
    /// A limit of the format.
    #[error("{0}")]
    Limit(String),
    /// An example that its split cannot hold.
    #[error(
        "record {record} of input {input}: expected {expected}, found {found}; correct the example and prepare again"
    )]
    Example {
        /// Index of its input.
        input: u32,
        /// Record number in that input.
        record: u64,
        /// What an example of this split has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// The feeder broke its promise on resumption: a source changed, or a fault of ours.
    #[error(
        "the run cannot go on from its journal: expected record {record} of input {input}, found {found}; \
         an input changed since the run began: use --restart"
    )]
    Resume {
        /// Input index of the journal's cursor.
        input: u32,
        /// Record number of the journal's cursor.
        record: u64,
        /// What came instead.
        found: String,
    },
}

impl From<std::io::Error> for SplitError {
    fn from(error: std::io::Error) -> Self {
        Self::Contract(error.into())
    }
}

/// Everything about a split that is known before its first document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSpec {
    /// `train`, `validation`, `test`, `val`.
    pub split: String,
    /// Packed rows, documents or examples.
    pub layout: Layout,
    /// Where documents come from.
    pub source: Source,
    /// Which documents are asked for.
    pub selection: Selection,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// How tokens become rows.
    pub packing: Packing,
    /// This task's part of the whole, if it is one.
    pub part: Option<Part>,
    /// Digest of all of the above and the input list.
    pub plan: Sha256Digest,
    /// Digest of the same plan with `--on-bad-record fail`, where this one skips: an unfinished run of that one has met
    /// no bad record in what it stored, so this one goes on from it.
    pub plan_without_skip: Option<Sha256Digest>,
}

impl SplitSpec {
    /// The digest that binds parts and resumed runs together: settings and input list, not the part.
    ///
    /// # Errors
    /// When a number has no canonical form.
    pub fn plan_digest(&self, inputs: &impl Serialize) -> Result<Sha256Digest, SplitError> {
        self.digest_with(&self.selection, inputs)
    }

    /// Sets `plan` and `plan_without_skip`.
    ///
    /// # Errors
    /// As [`Self::plan_digest`].
    pub fn seal(&mut self, inputs: &impl Serialize) -> Result<(), SplitError> {
        self.plan = self.plan_digest(inputs)?;
        let failing = Selection { on_bad_record: "fail".into(), ..self.selection.clone() };
        let skips = self.selection != failing;
        self.plan_without_skip = if skips { Some(self.digest_with(&failing, inputs)?) } else { None };
        Ok(())
    }

    fn digest_with(
        &self,
        selection: &Selection,
        inputs: &impl Serialize,
    ) -> Result<Sha256Digest, SplitError> {
        let plan = serde_json::json!({
            "split": self.split, "layout": self.layout, "source": self.source, "selection": selection,
            "tokenizer": self.tokenizer, "packing": self.packing, "inputs": inputs,
        });
        let bytes = canonical::to_canonical_bytes(&plan).map_err(std::io::Error::other)?;
        Ok(Sha256Digest::of(&bytes))
    }
}

/// A document as the builder takes it.
#[derive(Debug, Clone, Copy)]
pub struct TokenizedDocument<'a> {
    /// Record number in the current input.
    pub record: u64,
    /// Tokens, no separator.
    pub ids: &'a [u16],
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// Unicode scalar values of its text.
    pub chars: u64,
    /// Pieces between runs of white space.
    pub words: u64,
    /// SHA-256 of its text.
    pub digest: Sha256Digest,
    /// The set it counts towards.
    pub set: Option<&'a str>,
    /// The source's own name for it.
    pub id: Option<&'a str>,
    /// The license that it carries itself.
    pub license: Option<&'a str>,
    /// Where it says that it is from.
    pub source: Option<&'a str>,
    /// Whether its source cut it.
    pub truncated: bool,
    /// What stands beside `ids` in a split of examples.
    pub example: Option<Example<'a>>,
}

impl<'a> TokenizedDocument<'a> {
    /// An example as a document: all its positions are tokens, it has no text, and its digest is its own.
    #[must_use]
    pub fn of_example(record: u64, example: Example<'a>, set: Option<&'a str>, id: Option<&'a str>) -> Self {
        Self {
            record,
            ids: example.input_ids,
            bytes: 0,
            chars: 0,
            words: 0,
            digest: example.digest(),
            set,
            id,
            license: None,
            source: None,
            truncated: false,
            example: Some(example),
        }
    }
}

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

    /// Finishes the shard being written, the split's number `index`; `None` when there is none.
    fn close(&mut self, index: usize) -> Result<Option<Shard>, SplitError>;

    /// As [`Sink::close`], for the split's last shard.
    fn close_last(&mut self, index: usize) -> Result<Option<Shard>, SplitError> {
        self.close(index)
    }

    /// The Merkle trees so far.
    fn trees(&self) -> Trees;

    /// Writes what stands beside the shards of a finished split.
    fn other_files(&self, _sets: &[SetTotals]) -> Result<Vec<FileRecord>, SplitError> {
        Ok(Vec::new())
    }
}

fn sink(folder: &Path, spec: &SplitSpec, last: Option<&Snapshot>) -> Box<dyn Sink> {
    match spec.layout {
        Layout::Packed => Box::new(PackedSink::new(folder, spec, last)),
        Layout::Documents => Box::new(DocumentsSink::new(folder, spec, last)),
        Layout::Examples => Box::new(ExamplesSink::new(folder, spec, last)),
    }
}

/// What the builder is waiting for.
pub struct SplitBuilder {
    folder: PathBuf,
    spec: SplitSpec,
    sink: Box<dyn Sink>,
    tally: Tally,
    journal: Journal,
    shards: Vec<Shard>,
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
        let mut shards = Vec::new();
        let mut tally = Tally::new();
        let mut cursor = Cursor::default();
        let mut last = None;
        for snapshot in snapshots {
            shards.push(snapshot.shard.clone());
            tally.restore(&snapshot);
            cursor = snapshot.cursor;
            last = Some(snapshot);
        }
        remove_strays(folder, &shards)?;
        let sink = sink(folder, &spec, last.as_ref());
        Ok(Opened::Building(Box::new(Self {
            folder: folder.into(),
            spec,
            sink,
            tally,
            journal,
            shards,
            cursor,
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

    /// Finished shards so far.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Totals so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The input up to which everything is durable: files before it are not needed again.
    #[must_use]
    pub fn durable_input(&self) -> u32 {
        self.cursor.input
    }

    /// Begins the next input. On resumption the first call names the input of the cursor again.
    ///
    /// # Errors
    /// When the sink has to close a shard and cannot.
    pub fn begin_input(&mut self, meta: InputMeta) -> Result<(), SplitError> {
        if self.sink.begins_shard(&meta)
            && let Some(shard) = self.sink.close(self.shards.len())?
        {
            let cursor = Cursor { input: self.tally.next_input(), record: 0, stored_tokens: None };
            self.note_shard(shard, cursor)?;
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
        let length = document.ids.len() as u64 + separator;
        let counted = self.tally.count(document, length)?;
        self.sink.begin(counted, document, length)?;
        self.store(document, 0)
    }

    /// The document in whose middle the journal's last shard ended: only its remaining tokens are missing.
    fn finish_interrupted(
        &mut self,
        document: &TokenizedDocument<'_>,
        stored: u64,
    ) -> Result<(), SplitError> {
        let length = document.ids.len() as u64 + u64::from(self.spec.packing.append_end_of_text);
        if document.record != self.cursor.record || stored > length {
            let Cursor { input, record, .. } = self.cursor;
            let found = format!("record {} of {length} tokens", document.record);
            return Err(SplitError::Resume { input, record, found });
        }
        self.store(document, stored)
    }

    /// Stores the tokens of `document` from number `from` on, finishing shards as they fill.
    fn store(&mut self, document: &TokenizedDocument<'_>, from: u64) -> Result<(), SplitError> {
        let mut from = usize::try_from(from).unwrap_or(usize::MAX);
        while let Some(stored) = self.sink.store(document, from)? {
            from = stored;
            let Some(shard) = self.sink.close(self.shards.len())? else { continue };
            let input = self.tally.current_input();
            let cursor = Cursor { input, record: document.record, stored_tokens: Some(stored as u64) };
            self.note_shard(shard, cursor)?;
            // The document goes on at once; only a run that takes this one up must be fed it again.
            self.cursor.stored_tokens = None;
        }
        Ok(())
    }

    /// Notes a finished shard, after which a later run would go on at `cursor`.
    fn note_shard(&mut self, shard: Shard, cursor: Cursor) -> Result<(), SplitError> {
        let snapshot = self.tally.snapshot(shard, cursor, self.sink.trees());
        self.journal.append(&snapshot)?;
        self.shards.push(snapshot.shard);
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
        self.shards.extend(self.sink.close_last(self.shards.len())?);
        let trees = self.sink.trees();
        let files = self.sink.other_files(self.tally.sets())?;
        let spec = self.spec;
        let tally::Counts { inputs, sets, record_licenses, record_sources, mut totals } = self.tally.finish();
        totals.rows = self.shards.iter().map(|shard| shard.file.records).sum();
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
            shards: self.shards,
            files,
            sets,
            record_licenses,
            record_sources,
            totals,
            tokens_root: trees.tokens.root(),
            documents_root: trees.documents.root(),
            part: spec.part,
            tool: Tool { name: "xlstm-data".into(), version: env!("CARGO_PKG_VERSION").into() },
        };
        manifest.root = identity::root(&manifest)?;
        identity::check(&self.folder.join(MANIFEST_NAME), &manifest)?;
        atomic::write_atomic(&self.folder.join(MANIFEST_NAME), &manifest.to_bytes()?)?;
        finish_up(&self.folder, &manifest)?;
        Ok(manifest)
    }
}

/// The finished split in `folder`, if it is the one that `spec` asks for.
fn finished(folder: &Path, spec: &SplitSpec) -> Result<Manifest, SplitError> {
    let manifest = Manifest::load(folder)?;
    match differences(folder, spec, &manifest) {
        None => Ok(manifest),
        Some(differs) => {
            Err(SplitError::OtherRun { folder: folder.into(), found: "a finished dataset", differs })
        }
    }
}

/// Removes the work folder if it holds nothing but the lock. What cannot be removed stays, which costs nothing.
fn remove_lock(work: &Path) {
    let alone = fs_err::read_dir(work).is_ok_and(|entries| entries.count() == 1);
    if alone && fs_err::remove_file(work.join(LOCK_NAME)).is_ok() {
        let _ = fs_err::remove_dir(work);
    }
}

/// Writes the checksums, which close a split, and removes what only a run in progress needs.
fn finish_up(folder: &Path, manifest: &Manifest) -> Result<(), SplitError> {
    let path = folder.join(checksums::CHECKSUMS_NAME);
    if !path.exists() {
        let mut files: BTreeMap<SafePath, Sha256Digest> =
            manifest.data_files().map(|file| (file.path.clone(), file.sha256)).collect();
        files.insert(SafePath::new(MANIFEST_NAME)?, Sha256Digest::of(&manifest.to_bytes()?));
        atomic::write_atomic(&path, checksums::render(&files).as_bytes())?;
    }
    match fs_err::remove_dir_all(folder.join(WORK_FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes a split, finished or not, keeping the lock that the caller holds.
fn discard(folder: &Path) -> Result<(), SplitError> {
    for name in [MANIFEST_NAME, checksums::CHECKSUMS_NAME] {
        match fs_err::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    match fs_err::remove_file(folder.join(WORK_FOLDER).join(journal::JOURNAL_NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    remove_strays(folder, &[])
}

/// Removes shards that the journal does not know and files that a kill left half-written.
fn remove_strays(folder: &Path, shards: &[Shard]) -> Result<(), SplitError> {
    let known: Vec<&str> =
        shards.iter().flat_map(|shard| [shard.file.path.as_str(), shard.companion.path.as_str()]).collect();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours =
            ["shard-", "spans-", "documents-", "windows-"].iter().any(|prefix| name.starts_with(prefix))
                && name.ends_with(".arrow");
        if (ours && !known.contains(&name)) || name.ends_with(atomic::PARTIAL_SUFFIX) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Manifests of before `id_field` was recorded do not say where their ids are from: what they have decides.
fn same_selection(folder: &Path, asked: &Selection, manifest: &Manifest) -> bool {
    let mut found = manifest.selection.clone();
    if found.id_field.is_none() && asked.id_field.is_some() && has_ids(folder) {
        found.id_field.clone_from(&asked.id_field);
    }
    *asked == found
}

/// Whether a document of the packed split in `folder` has a name of its own.
fn has_ids(folder: &Path) -> bool {
    let Ok(dataset) = Dataset::open_part(folder) else { return false };
    let shards = dataset.manifest().shards.len();
    (0..shards)
        .any(|shard| dataset.spans(shard).is_ok_and(|spans| spans.iter().any(|span| span.id.is_some())))
}

/// The settings in which a finished split differs from what is asked for, if any.
fn differences(folder: &Path, spec: &SplitSpec, manifest: &Manifest) -> Option<String> {
    let mut differs = Vec::new();
    let mut check = |name: &str, same: bool| {
        if !same {
            differs.push(name.to_owned());
        }
    };
    check("split", spec.split == manifest.split);
    check("layout", spec.layout == manifest.layout);
    check("source", spec.source == origin::normalized(&manifest.source));
    check("selection", same_selection(folder, &spec.selection, manifest));
    // The same behavior by another version of the library is the same.
    check("tokenizer", identity::tokenizer(&spec.tokenizer) == identity::tokenizer(&manifest.tokenizer));
    check("packing", spec.packing == manifest.packing);
    check("part", spec.part == manifest.part);
    (!differs.is_empty()).then(|| differs.join(", "))
}
