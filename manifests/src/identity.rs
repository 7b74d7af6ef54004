//! `root`: one digest over everything that decides the tokens, and nothing that does not.
//!
//! It is the SHA-256 of the canonical JSON (module `canonical`) of:
//!
//! ```text
//! format, version, layout, row_length, append_end_of_text
//! tokenizer   name, files, vocabulary_size, end_of_text, special_tokens, probe_sha256
//! selection   text_field, set_field, exclude_sets, max_tokens, holdout
//! inputs      [sha256, size, documents, tokens] of each, in order
//! totals      documents, tokens, rows
//! tokens_root, documents_root
//! selection.drop_duplicates   list_sha256, documents: only where a list of copies was given
//! targets     only where they are stored: what is to be predicted is then part of the data
//! input_width only where inputs are numbers: how many a position has
//! ```
//! Left out on purpose: names and places (repository, revision, paths: the bytes are what counts, and a
//! mirror serves the same ones), shard size, licenses, the engine's version, the tool, the task count.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::json;

use crate::canonical::{self, LARGEST};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::manifest::{DUPLICATE, InputCounts, Layout, Manifest, Targets, Tokenizer};
use crate::vectors::MAX_WIDTH;

/// The `root` of what `manifest` says.
///
/// # Errors
/// When a count is above 2^53 and so has no canonical form.
pub fn root(manifest: &Manifest) -> Result<Sha256Digest> {
    let selection = &manifest.selection;
    let inputs: Vec<_> = manifest
        .inputs
        .iter()
        .map(|input| json!([input.sha256, input.size, input.counts.documents, input.counts.tokens]))
        .collect();
    let mut identity = json!({
        "format": manifest.format,
        "version": manifest.version,
        "layout": manifest.layout,
        "row_length": manifest.packing.row_length,
        "append_end_of_text": manifest.packing.append_end_of_text,
        "tokenizer": tokenizer_value(&manifest.tokenizer),
        "selection": {
            "text_field": selection.text_field,
            "set_field": selection.set_field,
            "exclude_sets": selection.exclude_sets,
            "max_tokens": selection.max_tokens,
            "holdout": selection.holdout,
        },
        "inputs": inputs,
        "totals": [manifest.totals.documents, manifest.totals.tokens, manifest.totals.rows],
        "tokens_root": manifest.tokens_root,
        "documents_root": manifest.documents_root,
    });
    if let Some(dropped) = &selection.drop_duplicates {
        identity["selection"]["drop_duplicates"] = json!(dropped);
    }
    match manifest.packing.targets {
        // Says nothing new: so it was when nothing else could be said.
        Targets::NextToken => {}
        Targets::Stored => identity["targets"] = json!("stored"),
    }
    if let Some(width) = manifest.packing.input_width {
        identity["input_width"] = json!(width);
    }
    let bytes = canonical::to_canonical_bytes(&identity).map_err(Error::internal)?;
    Ok(Sha256Digest::of(&bytes))
}

/// One digest of what pins a tokenizer's behavior: equal where the same text gives the same ids.
#[must_use]
pub fn tokenizer(tokenizer: &Tokenizer) -> Sha256Digest {
    Sha256Digest::of(tokenizer_value(tokenizer).to_string().as_bytes())
}

fn tokenizer_value(tokenizer: &Tokenizer) -> serde_json::Value {
    json!({
        "name": tokenizer.name,
        "files": tokenizer.files,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
        "special_tokens": tokenizer.special_tokens,
        "probe_sha256": tokenizer.probe_sha256,
    })
}

/// Places in a row and lengths of rows are stored in 16 bits.
fn check_row_length(path: &Path, manifest: &Manifest) -> Result<()> {
    let found = manifest.packing.row_length;
    if (1..=u32::from(u16::MAX)).contains(&found) {
        return Ok(());
    }
    Err(Error::damaged(path, format!("packing.row_length from 1 to {}", u16::MAX), found.to_string()))
}

/// Rows of numbers have a width, and no others.
fn check_input_width(path: &Path, manifest: &Manifest) -> Result<()> {
    let found = manifest.packing.input_width;
    let (fits, expected) = match manifest.layout {
        Layout::Vectors => {
            let fits = found.is_some_and(|width| (1..=MAX_WIDTH).contains(&width));
            (fits, format!("packing.input_width from 1 to {MAX_WIDTH}"))
        }
        layout => (found.is_none(), format!("no packing.input_width in layout `{layout}`")),
    };
    if fits {
        return Ok(());
    }
    Err(Error::damaged(path, expected, found.map_or("none".into(), |width| width.to_string())))
}

/// Refuses counts above 2^53, which have no canonical form: no file can be written of them again, and sums of them wrap.
fn check_counts(path: &Path, manifest: &Manifest) -> Result<()> {
    let files = manifest.data_files().flat_map(|file| [file.size, file.records]);
    let inputs = manifest.inputs.iter().flat_map(|input| {
        let counts = &input.counts;
        let left_out = counts.left_out.values().copied();
        left_out.chain([input.size, counts.documents, counts.text_bytes, counts.tokens])
    });
    let lists = [&manifest.sets, &manifest.record_licenses, &manifest.record_sources];
    let names = lists.into_iter().flatten().flat_map(|set| [set.documents, set.text_bytes, set.tokens]);
    let listed = manifest.selection.drop_duplicates.as_ref().map(|dropped| dropped.documents);
    let limits = [manifest.packing.rows_per_shard, manifest.selection.max_tokens, listed];
    let totals = limits.into_iter().flatten().chain([manifest.totals.text_bytes]);
    let part = manifest.part.as_ref().map_or(0, |part| part.not_planned);
    let mut all = files.chain(inputs).chain(names).chain(totals).chain([part]);
    if let Some(count) = all.find(|&count| count > LARGEST) {
        return Err(Error::damaged(path, format!("counts of at most {LARGEST}"), count.to_string()));
    }
    let generator = manifest.source.generator.as_ref().map(canonical::to_canonical_bytes);
    generator
        .transpose()
        .map(drop)
        .map_err(|error| Error::damaged(path, "a generator of texts and whole numbers", error.to_string()))
}

/// Refuses more copies left out than the list names.
fn check_duplicates(path: &Path, manifest: &Manifest) -> Result<()> {
    let listed = manifest.selection.drop_duplicates.as_ref().map_or(0, |dropped| dropped.documents);
    let found = manifest.totals.left_out.get(DUPLICATE).copied().unwrap_or(0);
    if found <= listed {
        return Ok(());
    }
    let expected = format!(
        "totals.left_out.{DUPLICATE} of at most {listed}, the documents of selection.drop_duplicates,"
    );
    Err(Error::damaged(path, expected, found.to_string()))
}

/// Refuses a file that is listed twice: it would be read again each time, a hundred thousand times for one of 5 kB.
fn check_files(path: &Path, manifest: &Manifest) -> Result<()> {
    let mut seen = HashSet::new();
    match manifest.data_files().find(|file| !seen.insert(file.path.as_str())) {
        None => Ok(()),
        Some(twice) => Err(Error::damaged(path, "each file once", format!("`{}` twice", twice.path))),
    }
}

/// A sum that does not wrap: one that is too large for 64 bits equals no total, since totals are at most 2^53.
fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// Checks that a manifest does not contradict itself: sums, layout and `root`.
///
/// # Errors
/// [`Error::Mismatch`] naming the first count or digest that does not add up.
pub fn check(path: &Path, manifest: &Manifest) -> Result<()> {
    let same = |what: &str, expected: u64, found: u64| {
        if expected == found {
            Ok(())
        } else {
            Err(Error::damaged(path, format!("{what} {expected}"), format!("{found}")))
        }
    };
    check_counts(path, manifest)?;
    check_files(path, manifest)?;
    let totals = &manifest.totals;
    let mut sums = InputCounts::default();
    let mut left_out = BTreeMap::<String, u64>::new();
    for input in &manifest.inputs {
        sums.documents = sums.documents.saturating_add(input.counts.documents);
        sums.text_bytes = sums.text_bytes.saturating_add(input.counts.text_bytes);
        sums.tokens = sums.tokens.saturating_add(input.counts.tokens);
        for (reason, count) in &input.counts.left_out {
            let sum = left_out.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    same("totals.documents, the sum over inputs,", sums.documents, totals.documents)?;
    same("totals.text_bytes, the sum over inputs,", sums.text_bytes, totals.text_bytes)?;
    same("totals.tokens, the sum over inputs,", sums.tokens, totals.tokens)?;
    if left_out != totals.left_out {
        return Err(Error::damaged(
            path,
            format!("totals.left_out, the sum over inputs, {left_out:?}"),
            format!("{:?}", totals.left_out),
        ));
    }
    check_duplicates(path, manifest)?;
    let shards = &manifest.shards;
    same("totals.rows, the sum over shards,", sum(shards.iter().map(|s| s.file.records)), totals.rows)?;
    same("totals.tokens, the sum over shards,", sum(shards.iter().map(|s| s.tokens)), totals.tokens)?;
    check_row_length(path, manifest)?;
    let targets = match manifest.layout {
        Layout::Packed | Layout::Documents => Targets::NextToken,
        Layout::Examples | Layout::Vectors => Targets::Stored,
    };
    if manifest.packing.targets != targets {
        let (layout, found) = (manifest.layout, manifest.packing.targets);
        return Err(Error::damaged(
            path,
            format!("targets {targets:?} of layout `{layout}`"),
            format!("{found:?}"),
        ));
    }
    check_input_width(path, manifest)?;
    if manifest.version < manifest.layout.version() {
        let (layout, version) = (manifest.layout, manifest.layout.version());
        return Err(Error::damaged(
            path,
            format!("version {version}, the first with layout `{layout}`"),
            manifest.version.to_string(),
        ));
    }
    match manifest.layout {
        // A row has one example and all its positions, padding too.
        Layout::Packed | Layout::Examples | Layout::Vectors => {
            let spans = sum(shards.iter().map(|shard| shard.companion.records));
            same("totals.documents, the sum over spans,", spans, totals.documents)?;
            let rows = totals.tokens.div_ceil(u64::from(manifest.packing.row_length));
            same("totals.rows, tokens over row length,", rows, totals.rows)?;
            if manifest.packing.targets == Targets::Stored {
                same("totals.rows, one for each example,", totals.documents, totals.rows)?;
            }
        }
        Layout::Documents => {}
    }
    let computed = root(manifest)?;
    if computed != manifest.root {
        return Err(Error::damaged(
            path,
            format!("root {computed} (computed from the manifest)"),
            manifest.root.to_string(),
        ));
    }
    Ok(())
}
