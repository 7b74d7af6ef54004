//! `xlstm-data merge`: the parts of a task array, put together.
//!
//! A part is a split of its own: its documents, packed from the start of a row. Merging feeds every part's
//! documents, in order, to the same builder that `prepare` feeds; so the whole is byte for byte what one
//! process would have written. No source is read and nothing is tokenized again: it runs at the speed of the
//! disk. Before anything of a part is used, its files are compared with their digests, and what they hold with the roots
//! and counts that the part's own root covers (`check`).

mod check;
mod feed;

use std::path::{Path, PathBuf};

use xlstm_manifests::Error as ContractError;
use xlstm_manifests::manifest::{Input, Manifest, Met, Totals};

use crate::audit::progress::ByteProgress;
use crate::engine::{Asked, absorb};
use crate::split::{Opened, SplitBuilder, SplitError, SplitSpec};
use feed::feed_part;

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
    /// An option of `prepare` named a field or a set that no record of any part has.
    #[error("{0}; then run the tasks again with --restart")]
    Option(String),
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
    check_options(&parts, &spec)?;
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
    let progress = ByteProgress::over_bytes("merge", parts.iter().map(LoadedPart::bytes).sum());
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

/// Refuses what no part can see alone: an option that names what no record has. Older parts do not say what theirs had.
fn check_options(parts: &[LoadedPart], spec: &SplitSpec) -> Result<(), MergeError> {
    let asked = Asked::of(&spec.source.profile, &spec.selection);
    let (mut met, mut totals) = (Met::default(), Totals::default());
    for LoadedPart { manifest, .. } in parts {
        let Some(part) = manifest.part.as_ref().and_then(|part| part.met.as_ref()) else { return Ok(()) };
        absorb(&mut met, part, &asked.exclude_sets);
        totals.documents = totals.documents.saturating_add(manifest.totals.documents);
        for (reason, count) in &manifest.totals.left_out {
            let all = totals.left_out.entry(reason.clone()).or_default();
            *all = all.saturating_add(*count);
        }
    }
    asked.missing(&met, &totals).map_or(Ok(()), |missing| Err(MergeError::Option(missing)))
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
    check_indices(&indices, reference.count)?;
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

/// Whether `indices`, which are sorted, are 1 to `count`. A part can say any count: what is missing is not all listed.
fn check_indices(indices: &[u32], count: u32) -> Result<(), MergeError> {
    const LISTED: usize = 20;
    if let Some(outside) = indices.iter().find(|index| !(1..=count).contains(index)) {
        return Err(MergeError::Parts(format!(
            "expected parts 1 to {count}, found one that says it is {outside}"
        )));
    }
    if let Some(twice) = indices.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(MergeError::Parts(format!("part {} is given twice: name each part once", twice[0])));
    }
    let missing = (count as usize).saturating_sub(indices.len());
    if missing == 0 {
        return Ok(());
    }
    let mut named =
        (1..=count).filter(|index| indices.binary_search(index).is_err()).map(|index| index.to_string());
    let list = named.by_ref().take(LISTED).collect::<Vec<_>>().join(", ");
    let more = if missing > LISTED { format!(" and {} more", missing - LISTED) } else { String::new() };
    Err(MergeError::Parts(format!(
        "parts {list}{more} of {count} are missing: run those tasks, then merge again"
    )))
}
