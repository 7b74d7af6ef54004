//! The audit of one split: files first, then content, then the whole.
//!
//! Each file is read once from start to end for its digest; a shard whose digest holds is then decoded from
//! the same, now cached, pages. Content is only ever decoded when the bytes are the ones that were written,
//! so what is found there is wrong in the writing, not in the keeping. Decoding is guarded all the same:
//! bytes with a matching digest can still be an attacker's.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rayon::prelude::*;
use xlstm_manifests::documents::{DocumentShard, Window, read_windows, windows};
use xlstm_manifests::manifest::{Layout, MANIFEST_NAME, Shard};
use xlstm_manifests::packed::PackedShard;
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::spans::SpansFile;
use xlstm_manifests::stored::{StoredShape, StoredShard};
use xlstm_manifests::{Manifest, Sha256Digest};

use super::finding::{Check, Findings};
use super::folder;
use super::progress::ByteProgress;
use super::rows::{self, Rows};
use super::selection::Selected;
use super::spans::{Documents, ExpectedSpans, scan_documents, scan_spans};
use super::stream::{Names, SplitContent};

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Files whose digest was computed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shards whose content was looked at.
    pub shards: u64,
}

/// A split after its files and content were looked at.
pub(super) struct SplitCheck {
    pub(super) manifest: Option<Manifest>,
    /// Lengths and duplicates; only when all shards could be read.
    pub(super) stream: Option<SplitContent>,
    pub(super) checked: Checked,
    pub(super) findings: Findings,
}

/// What all shards of a split are checked against.
struct Context<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    listed: &'a BTreeMap<SafePath, Sha256Digest>,
    sets: Vec<String>,
    selected: Selected,
    first_rows: Vec<u64>,
    progress: &'a ByteProgress,
}

/// Looks at everything in `folder`.
pub(super) fn check(folder: &Path, progress: &ByteProgress) -> SplitCheck {
    let mut findings = Findings::default();
    let manifest = folder::read_manifest(folder, &mut findings);
    let listed = folder::read_checksums(folder, &mut findings);
    if let (Some(manifest), Some(listed)) = (&manifest, &listed) {
        folder::check_names(manifest, listed, &mut findings);
    }
    let listed = listed.unwrap_or_default();
    let mut known: BTreeSet<&str> = listed.keys().map(SafePath::as_str).collect();
    known.extend(manifest.iter().flat_map(Manifest::data_files).map(|file| file.path.as_str()));
    folder::check_extra(folder, &known, &mut findings);
    let mut checked = Checked::default();
    check_other_files(folder, manifest.as_ref(), &listed, progress, &mut checked, &mut findings);
    let mut stream = None;
    if let Some(manifest) = &manifest {
        stream = check_shards(folder, manifest, &listed, progress, &mut checked, &mut findings);
    }
    SplitCheck { manifest, stream, checked, findings }
}

/// Files that only the checksums list, and the manifest's additional files: bytes only.
fn check_other_files(
    folder: &Path,
    manifest: Option<&Manifest>,
    listed: &BTreeMap<SafePath, Sha256Digest>,
    progress: &ByteProgress,
    checked: &mut Checked,
    findings: &mut Findings,
) {
    let of_shards: BTreeSet<&SafePath> = manifest
        .iter()
        .flat_map(|manifest| &manifest.shards)
        .flat_map(|shard| [&shard.file.path, &shard.companion.path])
        .collect();
    let additional: BTreeMap<&SafePath, _> =
        manifest.iter().flat_map(|manifest| &manifest.files).map(|file| (&file.path, file)).collect();
    let mut paths: BTreeSet<&SafePath> = listed.keys().collect();
    paths.extend(additional.keys());
    let paths: Vec<&SafePath> = paths.into_iter().filter(|path| !of_shards.contains(path)).collect();
    let results: Vec<(Findings, Checked)> = paths
        .par_iter()
        .map(|&path| {
            let mut found = Findings::default();
            let mut counted = Checked::default();
            let actual = digest_counted(folder, path, progress, &mut counted, &mut found);
            let line = listed.get(path).copied();
            match (additional.get(path), line, actual) {
                (Some(record), _, _) => {
                    folder::vote(record, line, actual, &mut found);
                }
                (None, Some(line), Some(actual)) => {
                    folder::check_listed(path.as_str(), line, actual.sha256, &mut found);
                }
                _ => {}
            }
            (found, counted)
        })
        .collect();
    for (found, counted) in results {
        findings.absorb(found);
        checked.files += counted.files;
        checked.bytes += counted.bytes;
    }
}

fn digest_counted(
    folder: &Path,
    path: &SafePath,
    progress: &ByteProgress,
    checked: &mut Checked,
    findings: &mut Findings,
) -> Option<folder::Actual> {
    let actual = folder::digest(folder, path, findings)?;
    checked.files += 1;
    checked.bytes += actual.size;
    progress.advance(actual.size);
    Some(actual)
}

/// All shards, a few at a time, put together in stream order. `None` when some content could not be read, so
/// that nothing can be said of the whole.
fn check_shards(
    folder: &Path,
    manifest: &Manifest,
    listed: &BTreeMap<SafePath, Sha256Digest>,
    progress: &ByteProgress,
    checked: &mut Checked,
    findings: &mut Findings,
) -> Option<SplitContent> {
    let (selected, complaint) = Selected::new(&manifest.selection);
    if let Some(complaint) = complaint {
        findings.add(MANIFEST_NAME, Check::Selection, complaint);
    }
    let first_rows = manifest
        .shards
        .iter()
        .scan(0u64, |next, shard| {
            let first = *next;
            *next = next.saturating_add(shard.file.records);
            Some(first)
        })
        .collect();
    let sets = manifest.sets.iter().map(|set| set.name.clone()).collect();
    let context = Context { folder, manifest, listed, sets, selected, first_rows, progress };
    let mut stream = SplitContent::new(manifest);
    let mut whole = true;
    // Results wait for their turn; a few shards at a time bound the memory they take.
    let width = 2 * rayon::current_num_threads().max(1);
    let numbers: Vec<usize> = (0..manifest.shards.len()).collect();
    for wave in numbers.chunks(width) {
        let results: Vec<ShardCheck> = wave.par_iter().map(|&number| check_shard(&context, number)).collect();
        for (result, &number) in results.into_iter().zip(wave) {
            let shard = &manifest.shards[number];
            checked.files += result.checked.files;
            checked.bytes += result.checked.bytes;
            findings.absorb(result.findings);
            match result.content {
                Some((rows, documents)) => {
                    checked.shards += 1;
                    let names =
                        Names { shard: shard.file.path.as_str(), companion: shard.companion.path.as_str() };
                    stream.absorb(&names, rows, documents);
                }
                None => {
                    whole = false;
                    stream.skip();
                }
            }
        }
    }
    if whole {
        stream.finish(manifest);
    }
    findings.absorb(std::mem::take(&mut stream.findings));
    whole.then_some(stream)
}

struct ShardCheck {
    checked: Checked,
    findings: Findings,
    content: Option<(Rows, Documents)>,
}

fn check_shard(context: &Context<'_>, number: usize) -> ShardCheck {
    let shard = &context.manifest.shards[number];
    let mut findings = Findings::default();
    let mut checked = Checked::default();
    let mut intact = true;
    for record in [&shard.file, &shard.companion] {
        let actual =
            digest_counted(context.folder, &record.path, context.progress, &mut checked, &mut findings);
        let line = context.listed.get(&record.path).copied();
        intact &= folder::vote(record, line, actual, &mut findings);
    }
    let mut content = None;
    if intact {
        let read = catch_unwind(AssertUnwindSafe(|| match context.manifest.layout {
            Layout::Packed => packed_content(context, number),
            Layout::Documents => document_content(context, shard),
            Layout::Examples | Layout::Vectors => examples_content(context, number),
        }));
        match read {
            Ok(Ok(found)) => content = Some(found),
            Ok(Err((file, error))) => findings.add(file, Check::Format, error.to_string()),
            Err(_) => findings.differ(
                shard.file.path.as_str(),
                Check::Format,
                "content that can be decoded",
                format!("a fault while decoding it or `{}`", shard.companion.path),
            ),
        }
    }
    ShardCheck { checked, findings, content }
}

type Content = Result<(Rows, Documents), (String, xlstm_manifests::Error)>;

fn stored_row_length(manifest: &Manifest) -> Result<u16, (String, xlstm_manifests::Error)> {
    manifest.packing.stored_row_length().map_err(|error| (MANIFEST_NAME.to_owned(), error))
}

fn packed_content(context: &Context<'_>, number: usize) -> Content {
    let manifest = context.manifest;
    let shard = &manifest.shards[number];
    let first_row = context.first_rows[number];
    let row_length = manifest.packing.row_length;
    let blame = |file: &SafePath| {
        let name = file.to_string();
        move |error| (name, error)
    };
    let path = shard.file.path.resolve(context.folder).map_err(blame(&shard.file.path))?;
    let packed =
        PackedShard::open(&path, row_length as usize, shard.file.records).map_err(blame(&shard.file.path))?;
    let path = shard.companion.path.resolve(context.folder).map_err(blame(&shard.companion.path))?;
    let spans = SpansFile::open(&path, shard.companion.records).map_err(blame(&shard.companion.path))?;
    let expected = rows::Expected {
        file: shard.file.path.as_str(),
        first_row,
        rows_of_split: manifest.totals.rows,
        row_length: u64::from(row_length),
        vocabulary_size: manifest.tokenizer.vocabulary_size,
        end_of_text: manifest.tokenizer.end_of_text,
        tokens: shard.tokens,
        tokens_root: shard.tokens_root,
    };
    let place = place(context, shard, first_row..first_row.saturating_add(shard.file.records));
    let (mut rows, documents) = rayon::join(|| rows::scan(&packed, &expected), || scan_spans(&spans, &place));
    check_full(manifest, number, &mut rows.findings);
    Ok((rows, documents))
}

/// All shards but the last have as many rows as the manifest says.
fn check_full(manifest: &Manifest, number: usize, findings: &mut Findings) {
    let file = &manifest.shards[number].file;
    let full = manifest.packing.rows_per_shard;
    if let Some(full) = full.filter(|&full| number + 1 < manifest.shards.len() && file.records != full) {
        let expected = format!("{full} rows, as in every shard but the last");
        findings.differ(file.path.as_str(), Check::Rows, expected, file.records);
    }
}

fn examples_content(context: &Context<'_>, number: usize) -> Content {
    let manifest = context.manifest;
    let shard = &manifest.shards[number];
    let first_row = context.first_rows[number];
    let blame = |file: &SafePath| {
        let name = file.to_string();
        move |error| (name, error)
    };
    let path = shard.file.path.resolve(context.folder).map_err(blame(&shard.file.path))?;
    let shape = StoredShape::of(manifest).and_then(|shape| {
        shape.ok_or_else(|| xlstm_manifests::Error::Internal("a layout without stored targets".into()))
    });
    let shape = shape.map_err(|error| (MANIFEST_NAME.to_owned(), error))?;
    let examples = StoredShard::open(&path, shape, shard.file.records).map_err(blame(&shard.file.path))?;
    let path = shard.companion.path.resolve(context.folder).map_err(blame(&shard.companion.path))?;
    let spans = SpansFile::open(&path, shard.companion.records).map_err(blame(&shard.companion.path))?;
    let place = place(context, shard, first_row..first_row.saturating_add(shard.file.records));
    let documents = scan_spans(&spans, &place);
    let expected = rows::ExpectedExamples {
        file: shard.file.path.as_str(),
        first_row,
        shape,
        tokens: shard.tokens,
        tokens_root: shard.tokens_root,
    };
    let mut rows = rows::scan_examples(&examples, &spans, &expected);
    check_full(manifest, number, &mut rows.findings);
    Ok((rows, documents))
}

fn place<'a>(context: &'a Context<'_>, shard: &'a Shard, rows: std::ops::Range<u64>) -> ExpectedSpans<'a> {
    let file = match context.manifest.layout {
        Layout::Packed | Layout::Examples | Layout::Vectors => &shard.companion,
        Layout::Documents => &shard.file,
    };
    ExpectedSpans {
        file: file.path.as_str(),
        rows,
        row_length: u64::from(context.manifest.packing.row_length),
        inputs: context.manifest.inputs.len() as u64,
        sets: &context.sets,
        licenses: context.manifest.record_licenses.len(),
        sources: context.manifest.record_sources.len(),
        append_end_of_text: context.manifest.packing.append_end_of_text,
        selected: &context.selected,
    }
}

fn document_content(context: &Context<'_>, shard: &Shard) -> Content {
    let manifest = context.manifest;
    let blame = |file: &SafePath| {
        let name = file.to_string();
        move |error| (name, error)
    };
    let path = shard.file.path.resolve(context.folder).map_err(blame(&shard.file.path))?;
    let stored = DocumentShard::open(&path, shard.file.records).map_err(blame(&shard.file.path))?;
    let path = shard.companion.path.resolve(context.folder).map_err(blame(&shard.companion.path))?;
    let stored_windows =
        read_windows(&path, shard.companion.records).map_err(blame(&shard.companion.path))?;
    let mut rows = Rows::default();
    let limits = (manifest.tokenizer.vocabulary_size, manifest.tokenizer.end_of_text);
    let place = place(context, shard, 0..0);
    let documents = scan_documents(&stored, &place, limits, &mut rows.leaves);
    let tokens: u64 = documents.by_input.values().map(|sum| sum.tokens).sum();
    let file = shard.file.path.as_str();
    if tokens != shard.tokens {
        rows.findings.differ(file, Check::Counts, format!("{} tokens", shard.tokens), tokens);
    }
    rows::check_root(&rows.leaves, file, shard.tokens_root, &mut rows.findings);
    let lengths = stored.iter().map(|document| document.ids.len() as u64);
    let length = stored_row_length(manifest)?;
    let expected: Vec<Window> =
        lengths.zip(0u32..).flat_map(|(tokens, index)| windows(index, tokens, length)).collect();
    if let Some((index, (wanted, found))) =
        expected.iter().zip(&stored_windows).enumerate().find(|(_, (a, b))| a != b)
    {
        let wanted = format!("window {index} {wanted:?}");
        rows.findings.differ(shard.companion.path.as_str(), Check::Windows, wanted, format!("{found:?}"));
    } else if expected.len() != stored_windows.len() {
        let wanted = format!("{} windows", expected.len());
        rows.findings.differ(shard.companion.path.as_str(), Check::Windows, wanted, stored_windows.len());
    }
    Ok((rows, documents))
}
