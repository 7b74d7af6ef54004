//! `prepare`, `plan` and `merge` on the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use xlstm_manifests::manifest::{Layout, MANIFEST_NAME, Manifest};
use xlstm_manifests::printable;

use super::args::{CommonArgs, DatasetArgs, ExamplesArgs, HubArgs, MergeArgs, PrepareArgs};
use crate::duplicates::Copies;
use crate::hub::{Hub, HubConfig};
use crate::plan::Plan;
use crate::prepare::{
    self, Common, Context, CratesRequest, DatasetRequest, ExamplesPlan, ExamplesRequest, LocalRequest,
    PalomaRequest, PrepareProgress, Prepared, SlimPajamaRequest,
};
use crate::report::CommandError;
use crate::tokenizer::Gpt2Tokenizer;

struct Resolved {
    request: DatasetRequest,
    common: Common,
    dry_run: bool,
    json: bool,
    quiet: bool,
}

pub(super) fn prepare(args: PrepareArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if let DatasetArgs::Task(args) = &args.dataset {
        return super::task::prepare(args, out);
    }
    let args = match args.dataset {
        DatasetArgs::Examples(args) => return examples(args, out),
        dataset => PrepareArgs { dataset },
    };
    let mut resolved = resolve(args)?;
    if resolved.dry_run {
        return show_plan(resolved, out);
    }
    let context = context(&mut resolved)?;
    let progress = PrepareProgress::new(resolved.quiet || resolved.json);
    let mut prepared = Vec::new();
    let plans = prepare::plans(&resolved.request, &resolved.common, &context)?;
    say_notes(&plans);
    for plan in plans {
        let result = prepare::execute(&plan, &resolved.common, &context, &progress)?;
        warn_if_empty(&result);
        if !resolved.json {
            write!(out, "{}", describe(&result))?;
        }
        prepared.push(result);
    }
    if resolved.json {
        let splits: Vec<_> = prepared.iter().map(summary).collect();
        writeln!(out, "{}", printable::json(&json!({ "splits": splits }).to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn plan(args: PrepareArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if let DatasetArgs::Task(args) = &args.dataset {
        return super::task::plan(args, out);
    }
    match args.dataset {
        DatasetArgs::Examples(args) => examples(ExamplesArgs { dry_run: true, ..args }, out),
        dataset => show_plan(resolve(PrepareArgs { dataset })?, out),
    }
}

fn examples(args: ExamplesArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (dry_run, json) = (args.dry_run, args.json);
    let request = ExamplesRequest {
        files: args.files,
        out: args.out,
        split: args.split,
        holdout: args.holdout,
        license: args.license,
        row_length: args.row_length,
        vocabulary_size: args.vocabulary_size,
        rows_per_shard: args.rows_per_shard,
        skip_bad_records: args.on_bad_record == "skip",
        restart: args.restart,
    };
    let plan = prepare::plan_examples(&request)?;
    if dry_run {
        return show_examples(&plan, &request, json, out);
    }
    let prepared = prepare::execute_examples(&plan, &request)?;
    if json {
        let splits: Vec<_> = prepared.iter().map(summary).collect();
        writeln!(out, "{}", json!({ "splits": splits }))?;
    } else {
        prepared.iter().try_for_each(|result| write!(out, "{}", describe(result)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_examples(
    plan: &ExamplesPlan,
    request: &ExamplesRequest,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    for spec in &plan.splits {
        let folder = request.out.join(&spec.split).display().to_string();
        let (row_length, vocabulary) = (spec.packing.row_length, spec.tokenizer.vocabulary_size);
        let (examples, unusable) = (plan.examples, plan.unusable);
        if json {
            let split = json!({
                "split": spec.split, "folder": folder, "row_length": row_length, "vocabulary_size": vocabulary,
                "input_width": spec.packing.input_width, "examples": examples, "unusable": unusable,
                "holdout": spec.selection.holdout,
            });
            writeln!(out, "{split}")?;
        } else {
            let side = match &spec.selection.holdout {
                Some(holdout) if holdout.held_out => format!("about {} of ", holdout.fraction),
                Some(holdout) => format!("all but about {} of ", holdout.fraction),
                None => String::new(),
            };
            let of = match spec.packing.input_width {
                Some(width) => format!("{width} numbers a position"),
                None => format!("ids below {vocabulary}"),
            };
            writeln!(
                out,
                "{}: {side}{examples} examples of {row_length} positions, {of}, {unusable} records that cannot be used\n  {folder}",
                spec.split
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_plan(mut resolved: Resolved, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let context = context(&mut resolved)?;
    let plans = prepare::plans(&resolved.request, &resolved.common, &context)?;
    say_notes(&plans);
    let previews = prepare::previews(&plans, &resolved.common, &context);
    say_all(previews.iter().flat_map(|preview| &preview.notes));
    if resolved.json {
        writeln!(out, "{}", printable::json(&json!({ "splits": previews }).to_string()))?;
    } else {
        for preview in previews {
            write!(out, "{}", preview.to_text())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A split without documents is no error (a small holdout may have none), and must not pass unseen.
fn warn_if_empty(prepared: &Prepared) {
    if prepared.manifest.totals.documents == 0 {
        let split = printable::text(&prepared.manifest.split);
        let left_out: u64 = prepared.manifest.totals.left_out.values().sum();
        let why = match &prepared.manifest.selection.holdout {
            Some(holdout) => {
                format!("; a holdout of {} took none: take more, or give more", holdout.fraction)
            }
            None => String::new(),
        };
        let _ = writeln!(
            std::io::stderr(),
            "warning: split `{split}` came out empty: of {left_out} records none is a document of it{why}"
        );
    }
}

/// Says what was passed over or is missing: on stderr, each once, also where several splits share it.
fn say_notes(plans: &[Plan]) {
    say_all(plans.iter().flat_map(|plan| &plan.notes));
}

fn say_all<'a>(notes: impl Iterator<Item = &'a String>) {
    for note in notes.collect::<BTreeSet<_>>() {
        // A note that cannot be said is no reason to stop.
        let _ = writeln!(std::io::stderr(), "note: {}", printable::text(note));
    }
}

fn resolve(args: PrepareArgs) -> anyhow::Result<Resolved> {
    let (request, hub, common) = match args.dataset {
        DatasetArgs::Examples(_) => anyhow::bail!("examples have no plan of documents"),
        DatasetArgs::Slimpajama { profile, revision, splits, hub, common } => {
            (DatasetRequest::SlimPajama(SlimPajamaRequest { profile, revision, splits }), Some(hub), common)
        }
        DatasetArgs::Paloma { revision, splits, sources, hub, common } => {
            (DatasetRequest::Paloma(PalomaRequest { revision, splits, sources }), Some(hub), common)
        }
        DatasetArgs::Crates { lockfile, license, holdout, common } => {
            (DatasetRequest::Crates(CratesRequest { lockfile, license, holdout }), None, common)
        }
        DatasetArgs::Local {
            paths,
            text_field,
            set_field,
            id_field,
            license_field,
            license,
            source_field,
            holdout,
            split,
            common,
        } => {
            let request = LocalRequest {
                paths,
                text_field,
                set_field,
                id_field,
                license_field,
                license,
                source_field,
                holdout,
                split,
            };
            (DatasetRequest::Local(request), None, common)
        }
        DatasetArgs::Task(_) => {
            anyhow::bail!("`task` is not read from files: this is a fault of the program")
        }
    };
    let (dry_run, json, quiet) = (common.dry_run, common.json, common.quiet);
    Ok(Resolved { request, common: resolve_common(common, hub)?, dry_run, json, quiet })
}

fn resolve_common(args: CommonArgs, hub: Option<HubArgs>) -> anyhow::Result<Common> {
    let threads = match args.threads {
        Some(0) => return Err(refuse("--threads 0: expected at least 1")),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let mut exclude_sets = args.exclude_sets;
    exclude_sets.sort();
    exclude_sets.dedup();
    let hub = hub.unwrap_or(HubArgs {
        from: None,
        offline: true,
        downloads: None,
        discard_downloads: false,
        parallel_downloads: 1,
    });
    let drop_duplicates = args.drop_duplicates.as_deref().map(Copies::load).transpose()?;
    Ok(Common {
        out: args.out,
        threads,
        max_tokens: args.max_tokens,
        exclude_sets,
        drop_duplicates: drop_duplicates.map(Arc::new),
        skip_bad_records: args.on_bad_record == "skip",
        task: args.task,
        rows_per_shard: args.rows_per_shard,
        restart: args.restart,
        from: hub.from,
        downloads: hub.downloads,
        discard_downloads: hub.discard_downloads,
        parallel_downloads: hub.parallel_downloads,
        offline: hub.offline,
    })
}

fn context(resolved: &mut Resolved) -> anyhow::Result<Context> {
    let hub = match resolved.request {
        DatasetRequest::SlimPajama(_) | DatasetRequest::Paloma(_) => {
            let mut config = HubConfig::from_env()?;
            // HF_HUB_OFFLINE is what --offline is, for the files of --from too.
            config.offline |= resolved.common.offline;
            resolved.common.offline = config.offline;
            Some(Arc::new(Hub::new(config)?))
        }
        DatasetRequest::Crates(_) | DatasetRequest::Local(_) => None,
    };
    Ok(Context { tokenizer: Gpt2Tokenizer::new()?, hub })
}

pub(super) fn summary(prepared: &Prepared) -> serde_json::Value {
    let manifest = &prepared.manifest;
    json!({
        "split": manifest.split,
        "folder": prepared.folder.display().to_string(),
        "root": manifest.root,
        "was_finished": prepared.was_finished,
        "part": manifest.part,
        "totals": manifest.totals,
        "sets": manifest.sets,
        "shards": manifest.shards.len(),
        "inputs": manifest.inputs.len(),
        "duplicate_inputs": manifest.duplicate_inputs(),
        "record_licenses": manifest.record_licenses,
        "record_sources": manifest.record_sources,
        "empty": manifest.totals.documents == 0,
    })
}

pub(super) fn describe(prepared: &Prepared) -> String {
    let Manifest { split, root, totals, inputs, shards, .. } = &prepared.manifest;
    let was = if prepared.was_finished { " (was finished before)" } else { "" };
    let left_out: u64 = totals.left_out.values().sum();
    let duplicates = describe_duplicates(&prepared.manifest);
    let empty = if totals.documents == 0 {
        "  note: no document is in this split: it can be neither trained on nor evaluated\n"
    } else {
        ""
    };
    let split = printable::text(split);
    let (documents, tokens) = match prepared.manifest.layout {
        Layout::Packed | Layout::Documents => ("documents", "tokens"),
        Layout::Examples | Layout::Vectors => ("examples", "positions"),
    };
    format!(
        "{split}: {} {documents}, {} {tokens}, {} rows in {} shards from {} files, {left_out} records left out{was}\n  \
         root {root}\n  {}\n{empty}{duplicates}",
        totals.documents,
        totals.tokens,
        totals.rows,
        shards.len(),
        inputs.len(),
        printable::path(&prepared.folder)
    )
}

/// Notes on inputs whose documents stand in the split more than once: seldom what is meant, and no error, because
/// small files of the same bytes are common.
fn describe_duplicates(manifest: &Manifest) -> String {
    const SHOWN: usize = 5;
    let duplicates = manifest.duplicate_inputs();
    let mut notes: String = duplicates
        .iter()
        .take(SHOWN)
        .map(|(earlier, later)| {
            let (earlier, later) = (printable::text(earlier.as_str()), printable::text(later.as_str()));
            format!("  note: `{later}` has the same bytes as `{earlier}`: remove one if it is not meant to count twice\n")
        })
        .collect();
    if let Some(more) = duplicates.len().checked_sub(SHOWN).filter(|&more| more > 0) {
        notes += &format!("  note: {more} more inputs like these; `xlstm-data audit` lists them\n");
    }
    notes
}

pub(super) fn merge(args: &MergeArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut prepared = Vec::new();
    for (split, parts) in parts(args)? {
        if !prepare::is_split_name(&split) {
            let split = printable::text(&split);
            return Err(refuse(format!(
                "the parts are of a split `{split}`, which is no plain name: they were altered"
            )));
        }
        let folder = args.out.join(split);
        let was_finished = !args.restart && folder.join(MANIFEST_NAME).exists();
        let manifest = crate::merge::merge(&parts, &folder, args.restart)?;
        if args.remove_parts {
            for part in &parts {
                fs_err::remove_dir_all(part)?;
            }
        }
        let result = Prepared { folder, manifest, was_finished };
        if !args.json {
            write!(out, "{}", describe(&result))?;
        }
        prepared.push(result);
    }
    if args.json {
        let splits: Vec<_> = prepared.iter().map(summary).collect();
        writeln!(out, "{}", printable::json(&json!({ "splits": splits }).to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An error of the user's.
pub(super) fn refuse(text: impl Into<String>) -> anyhow::Error {
    CommandError::Usage(text.into()).into()
}

/// The part folders of each split.
fn parts(args: &MergeArgs) -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut splits: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut add = |folder: &Path| -> anyhow::Result<()> {
        let manifest = Manifest::load(folder)?;
        splits.entry(manifest.split).or_default().push(folder.into());
        Ok(())
    };
    if !args.parts.is_empty() {
        args.parts.iter().try_for_each(|part| add(part))?;
        return Ok(splits);
    }
    let folder = args.out.join("parts");
    let hint = || format!("no parts in `{}`: run `xlstm-data prepare … --task I/N` first", folder.display());
    for part in fs_err::read_dir(&folder).with_context(hint)? {
        for split in fs_err::read_dir(part?.path())? {
            let path = split?.path();
            if path.join(MANIFEST_NAME).exists() {
                add(&path)?;
            } else if path.is_dir() {
                let path = printable::path(&path);
                return Err(refuse(format!("`{path}` is unfinished: run its task again, then merge")));
            }
        }
    }
    if splits.is_empty() {
        return Err(refuse(hint()));
    }
    Ok(splits)
}
