//! `xlstm-data merge`: the parts of a task array, put together.
//!
//! A part is a split of its own: its documents, packed from the start of a row. Merging feeds every part's
//! documents, in order, to the same builder that `prepare` feeds; so the whole is byte for byte what one
//! process would have written. No source is read and nothing is tokenized again: it runs at the speed of the
//! disk. Every file of a part is checked against its digest before it is used.

use std::path::{Path, PathBuf};

use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::examples::Example;
use xlstm_manifests::manifest::{FileRecord, Input, Layout, MANIFEST_NAME, Manifest, SetTotals};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::tokens_leaf;
use xlstm_manifests::spans::Span;
use xlstm_manifests::{Dataset, Error as ContractError, Sha256Digest, digest};

use crate::audit::progress::Progress;
use crate::engine::BEYOND_MAX_TOKENS;
use crate::split::{
    Cursor, DocumentMeta, InputMeta, Opened, SplitBuilder, SplitError, SplitSpec, TokenizedDocument,
};

/// Why parts could not be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Writing or taking up the whole failed.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// A part cannot be read or is damaged.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The parts given are not all the parts of one whole.
    #[error("{0}")]
    Parts(String),
}

struct LoadedPart {
    folder: PathBuf,
    manifest: Manifest,
}

impl LoadedPart {
    /// Bytes of its shards.
    fn bytes(&self) -> u64 {
        self.manifest.shards.iter().map(|shard| shard.file.size).sum()
    }
}

/// Merges the part folders `parts` into the split folder `out`.
///
/// # Errors
/// When parts are missing, repeated or of different wholes, or one of them is damaged.
pub fn merge(parts: &[PathBuf], out: &Path, restart: bool) -> Result<Manifest, MergeError> {
    let parts = load(parts)?;
    let spec = whole(&parts)?;
    let limit = spec.selection.max_tokens;
    let mut builder = match SplitBuilder::open(out, spec, restart)? {
        Opened::Finished(manifest) => {
            check_finished(out, &parts, &manifest)?;
            return Ok(*manifest);
        }
        Opened::Building(builder) => *builder,
    };
    check_resumed(out, &parts, builder.tally().ended_inputs())?;
    let cursor = builder.cursor();
    let progress = Progress::over_bytes("merge", parts.iter().map(LoadedPart::bytes).sum());
    let mut first_input = 0;
    for part in &parts {
        feed_part(&mut builder, part, first_input, cursor, (limit, &progress))?;
        first_input += part.manifest.inputs.len() as u32;
    }
    let tokens = builder.tally().totals().tokens;
    let not_planned = parts.iter().filter_map(|p| p.manifest.part.as_ref()).map(|p| p.not_planned).max();
    if let (Some(limit), Some(not_planned)) = (limit, not_planned)
        && tokens < limit
        && not_planned > 0
    {
        return Err(MergeError::Parts(format!(
            "the parts hold {tokens} tokens, fewer than the {limit} of --max-tokens, and {not_planned} inputs were \
             left out of the array as not needed: prepare without --task, or without --max-tokens"
        )));
    }
    Ok(builder.finish()?)
}

/// Whether two inputs are the same bytes under the same name.
fn is_same(a: &Input, b: &Input) -> bool {
    (&a.path, a.size, a.sha256) == (&b.path, b.size, b.sha256)
}

/// Whether an unfinished merge was begun with these parts.
fn check_resumed(out: &Path, parts: &[LoadedPart], ended: &[Input]) -> Result<(), MergeError> {
    let inputs = parts.iter().flat_map(|part| &part.manifest.inputs);
    if inputs.zip(ended).all(|(now, then)| is_same(now, then)) {
        return Ok(());
    }
    let (found, differs) = ("an unfinished merge", "its inputs: it was begun with other parts".to_owned());
    Err(SplitError::OtherRun { folder: out.into(), found, differs }.into())
}

/// Whether the whole that is there was made from these parts.
fn check_finished(out: &Path, parts: &[LoadedPart], manifest: &Manifest) -> Result<(), MergeError> {
    let inputs: Vec<&Input> = parts.iter().flat_map(|part| &part.manifest.inputs).collect();
    let prefix = inputs.iter().zip(&manifest.inputs).all(|(now, then)| is_same(now, then));
    let reached = manifest.selection.max_tokens.is_some_and(|limit| manifest.totals.tokens >= limit);
    let whole = match inputs.len().cmp(&manifest.inputs.len()) {
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Greater => reached,
        std::cmp::Ordering::Less => false,
    };
    if prefix && whole {
        return Ok(());
    }
    let (found, differs) = ("a finished dataset", "its inputs: it was not made from these parts".to_owned());
    Err(SplitError::OtherRun { folder: out.into(), found, differs }.into())
}

fn load(folders: &[PathBuf]) -> Result<Vec<LoadedPart>, MergeError> {
    let mut parts = Vec::new();
    for folder in folders {
        let manifest = Manifest::load(folder)?;
        if manifest.part.is_none() {
            return Err(MergeError::Parts(format!(
                "`{}` is a whole split, not a part: name the folders that `prepare --task` made",
                folder.display()
            )));
        }
        parts.push(LoadedPart { folder: folder.clone(), manifest });
    }
    parts.sort_by_key(|part| part.manifest.part.as_ref().map(|part| part.index));
    Ok(parts)
}

/// What the whole will say of itself, once it is certain that `parts` are its parts.
fn whole(parts: &[LoadedPart]) -> Result<SplitSpec, MergeError> {
    let first = parts.first().ok_or_else(|| MergeError::Parts("no parts were given".into()))?;
    let Some(reference) = &first.manifest.part else {
        return Err(MergeError::Parts("no parts were given".into()));
    };
    for part in parts {
        let same = part
            .manifest
            .part
            .as_ref()
            .is_some_and(|p| p.plan == reference.plan && p.count == reference.count)
            && part.manifest.split == first.manifest.split;
        if !same {
            return Err(MergeError::Parts(format!(
                "`{}` and `{}` are parts of different wholes: they were prepared with other settings or inputs",
                first.folder.display(),
                part.folder.display()
            )));
        }
    }
    let indices: Vec<u32> = parts.iter().filter_map(|p| p.manifest.part.as_ref()).map(|p| p.index).collect();
    let missing: Vec<String> =
        (1..=reference.count).filter(|i| !indices.contains(i)).map(|i| i.to_string()).collect();
    if !missing.is_empty() {
        return Err(MergeError::Parts(format!(
            "parts {} of {} are missing: run those tasks, then merge again",
            missing.join(", "),
            reference.count
        )));
    }
    if let Some(twice) = indices.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(MergeError::Parts(format!("part {} is given twice: name each part once", twice[0])));
    }
    let manifest = &first.manifest;
    Ok(SplitSpec {
        split: manifest.split.clone(),
        layout: manifest.layout,
        source: manifest.source.clone(),
        selection: manifest.selection.clone(),
        tokenizer: manifest.tokenizer.clone(),
        packing: manifest.packing.clone(),
        part: None,
        plan: reference.plan,
        plan_without_skip: None,
    })
}

/// Whether the whole has the tokens that were asked for.
fn has_enough(builder: &SplitBuilder, limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| builder.tally().totals().tokens >= limit)
}

/// Feeds one input after another, dropping what comes before the cursor or after the limit.
struct Feeder<'a> {
    builder: &'a mut SplitBuilder,
    part: &'a LoadedPart,
    /// Index of the part's first input in the whole.
    first_input: u32,
    cursor: Cursor,
    limit: Option<u64>,
    progress: &'a Progress,
    /// The part's input that is open, and documents of it beyond the limit.
    open: Option<(u32, u64)>,
    /// The next input of the part to begin.
    next: u32,
}

fn feed_part(
    builder: &mut SplitBuilder,
    part: &LoadedPart,
    first_input: u32,
    cursor: Cursor,
    (limit, progress): (Option<u64>, &Progress),
) -> Result<(), MergeError> {
    if has_enough(builder, limit) && !builder.is_interrupted() {
        return Ok(());
    }
    let next = cursor.input.saturating_sub(first_input);
    let mut feeder = Feeder { builder, part, first_input, cursor, limit, progress, open: None, next };
    match part.manifest.layout {
        Layout::Packed => feeder.packed()?,
        Layout::Documents => feeder.documents()?,
        Layout::Examples => feeder.examples()?,
    }
    feeder.begin_up_to(part.manifest.inputs.len() as u32)?;
    feeder.end_open();
    Ok(())
}

impl Feeder<'_> {
    fn check(&self, file: &FileRecord) -> Result<PathBuf, MergeError> {
        let path = file.path.resolve(&self.part.folder)?;
        let (size, sha256) = digest::digest_file(&path)?;
        if (size, sha256) == (file.size, file.sha256) {
            return Ok(path);
        }
        let hint = "the part was damaged: run its task again with --restart";
        let (expected, found) = (format!("SHA-256 {}", file.sha256), sha256.to_string());
        Err(ContractError::mismatch(&path, expected, found, hint).into())
    }

    /// Whoever alters a file can also rewrite its digest; the roots over its tokens are what the part's root
    /// covers.
    fn check_root(&self, file: &str, root: Sha256Digest, tree: &MerkleTree) -> Result<(), MergeError> {
        if tree.root() == root {
            return Ok(());
        }
        let hint = "the part was altered: run its task again with --restart";
        let path = self.part.folder.join(file);
        let expected = format!("tokens_root {root} (says the manifest)");
        Err(ContractError::mismatch(&path, expected, tree.root().to_string(), hint).into())
    }

    /// The part's rows, after every file was checked.
    fn open_rows(&self) -> Result<Dataset, MergeError> {
        let dataset = Dataset::open_part(&self.part.folder)?;
        let mut first = 0;
        let mut whole = MerkleTree::new();
        for shard in &self.part.manifest.shards {
            self.check(&shard.file)?;
            self.check(&shard.companion)?;
            let mut tree = MerkleTree::new();
            for row in first..first + shard.file.records {
                let leaf = dataset.leaf(row)?;
                tree.push(leaf);
                whole.push(leaf);
            }
            first += shard.file.records;
            self.check_root(shard.file.path.as_str(), shard.tokens_root, &tree)?;
        }
        self.check_root(MANIFEST_NAME, self.part.manifest.tokens_root, &whole)?;
        Ok(dataset)
    }

    fn examples(&mut self) -> Result<(), MergeError> {
        let dataset = self.open_rows()?;
        for (number, shard) in self.part.manifest.shards.iter().enumerate() {
            self.progress.advance(shard.file.size);
            for span in dataset.spans(number)?.iter() {
                if self.is_done(span.input, span.record) {
                    continue;
                }
                let Some(row) = dataset.example(span.row)? else { continue };
                let targets: Vec<_> = row.targets().collect();
                let example = Example { input_ids: row.input_ids, targets: &targets, length: row.length };
                let meta = DocumentMeta {
                    set: name(span.set, &self.part.manifest.sets),
                    id: span.id,
                    ..DocumentMeta::of_example(span.record, example.digest())
                };
                self.push(span.input, &TokenizedDocument::of_example(&meta, example))?;
            }
        }
        Ok(())
    }

    fn packed(&mut self) -> Result<(), MergeError> {
        let dataset = self.open_rows()?;
        let mut ids = Vec::new();
        for (number, shard) in self.part.manifest.shards.iter().enumerate() {
            self.progress.advance(shard.file.size);
            for span in dataset.spans(number)?.iter() {
                if self.is_done(span.input, span.record) {
                    continue;
                }
                let Span { input, record, bytes, digest, .. } = span;
                ids.clear();
                dataset.read_tokens(span.row, span.offset, span.length.saturating_sub(1), &mut ids)?;
                let manifest = &self.part.manifest;
                let meta = DocumentMeta {
                    record,
                    bytes,
                    chars: 0,
                    words: 0,
                    digest,
                    set: name(span.set, &manifest.sets),
                    id: span.id,
                    license: name(span.license, &manifest.record_licenses),
                    source: name(span.source, &manifest.record_sources),
                    truncated: false,
                };
                self.push(input, &TokenizedDocument { meta: &meta, ids: &ids, example: None })?;
            }
        }
        Ok(())
    }

    fn documents(&mut self) -> Result<(), MergeError> {
        let mut whole = MerkleTree::new();
        for shard in &self.part.manifest.shards {
            let path = self.check(&shard.file)?;
            let mut tree = MerkleTree::new();
            for document in DocumentShard::open(&path, shard.file.records)?.iter() {
                let leaf = tokens_leaf(&document.ids);
                tree.push(leaf);
                whole.push(leaf);
            }
            self.check_root(shard.file.path.as_str(), shard.tokens_root, &tree)?;
        }
        self.check_root(MANIFEST_NAME, self.part.manifest.tokens_root, &whole)?;
        for shard in &self.part.manifest.shards {
            self.progress.advance(shard.file.size);
            let path = shard.file.path.resolve(&self.part.folder)?;
            for document in DocumentShard::open(&path, shard.file.records)?.iter() {
                if self.is_done(document.input, document.record) {
                    continue;
                }
                let manifest = &self.part.manifest;
                let meta = DocumentMeta {
                    record: document.record,
                    bytes: document.bytes,
                    chars: document.chars,
                    words: document.words,
                    digest: document.digest,
                    set: Some(format!("{}/{}", document.source, document.domain)),
                    id: document.id,
                    license: name(document.license, &manifest.record_licenses),
                    source: name(document.record_source, &manifest.record_sources),
                    truncated: document.truncated,
                };
                let (input, ids) = (document.input, &document.ids);
                self.push(input, &TokenizedDocument { meta: &meta, ids, example: None })?;
            }
        }
        Ok(())
    }

    /// Whether a document of the part was stored by an earlier run.
    fn is_done(&self, input: u32, record: u64) -> bool {
        (self.first_input + input, record) < (self.cursor.input, self.cursor.record)
    }

    fn push(&mut self, input: u32, document: &TokenizedDocument<'_>) -> Result<(), MergeError> {
        self.begin_up_to(input + 1)?;
        if has_enough(self.builder, self.limit) && !self.builder.is_interrupted() {
            if let Some((_, beyond)) = &mut self.open {
                *beyond += 1;
            }
            return Ok(());
        }
        Ok(self.builder.document(document)?)
    }

    /// Begins inputs, each after ending the one before, until `end` of them have begun (or the limit is met).
    fn begin_up_to(&mut self, end: u32) -> Result<(), MergeError> {
        while self.next < end {
            self.end_open();
            let resumes = self.first_input + self.next == self.cursor.input && self.builder.is_interrupted();
            if has_enough(self.builder, self.limit) && !resumes {
                return Ok(());
            }
            self.builder.begin_input(meta(&self.part.manifest.inputs[self.next as usize]))?;
            self.open = Some((self.next, 0));
            self.next += 1;
        }
        Ok(())
    }

    fn end_open(&mut self) {
        let Some((input, beyond)) = self.open.take() else { return };
        for (reason, count) in &self.part.manifest.inputs[input as usize].counts.left_out {
            self.builder.left_out(reason, *count);
        }
        if beyond > 0 {
            self.builder.left_out(BEYOND_MAX_TOKENS, beyond);
        }
        self.builder.end_input();
    }
}

/// The name that an index of a document stands for.
fn name(index: Option<u16>, list: &[SetTotals]) -> Option<String> {
    list.get(usize::from(index?)).map(|total| total.name.clone())
}

fn meta(input: &Input) -> InputMeta {
    InputMeta {
        path: input.path.clone(),
        format: input.format.clone(),
        size: input.size,
        sha256: input.sha256,
        declared: input.declared.clone(),
        licence: input.licence.clone(),
    }
}
