//! `xlstm-data prepare`: from a dataset's name to finished splits.
//!
//! ```text
//! arguments ─► Request ─► plans (one a split: slimpajama | paloma | crates | local) ─► engine ─► manifest
//! ```
//! A plan holds every decision; `--dry-run` prints it, a run carries it out, and its digest keeps resumed runs
//! and parts of a whole from mixing with others.

mod crates_io;
mod estimate;
mod examples;
mod finished;
mod here;
mod hub_profiles;
mod local;
mod preview;
mod progress;
mod provider;
mod request;
mod sampled_copies;
mod turns;
mod walk;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xlstm_manifests::manifest::{Layout, Manifest, Packing, Targets};
use xlstm_manifests::printable;

pub use estimate::Sample;
pub use examples::{ExamplesPlan, ExamplesRequest, execute_examples, no_tokenizer, plan_examples};
pub use local::is_split_name;
pub use preview::{Preview, previews};
pub use progress::PrepareProgress;
pub use request::{
    Common, CratesRequest, DatasetRequest, LocalRequest, PalomaRequest, SlimPajamaRequest, Task,
};

use crate::duplicates::Copies;
use crate::engine::{self, EngineOptions, Filter, OnBadRecord};
use crate::hub::Hub;
use crate::plan::{InputFolders, Plan, is_compressed};
use crate::report::CommandError;
use crate::split::{Opened, SplitBuilder, SplitSpec};
use crate::tokenizer::Gpt2Tokenizer;

/// What a prepare run did with one split.
pub struct Prepared {
    /// The split's folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether it was there before.
    pub was_finished: bool,
}

/// Everything that a request needs of the outside world.
pub struct Context {
    /// The tokenizer.
    pub tokenizer: Gpt2Tokenizer,
    /// The Hub, for datasets that live there.
    pub hub: Option<std::sync::Arc<Hub>>,
}

/// The plans of a request: one a split, parts cut if it asks for one.
///
/// # Errors
/// When the request contradicts itself, or its inputs cannot be listed.
pub fn plans(request: &DatasetRequest, common: &Common, context: &Context) -> anyhow::Result<Vec<Plan>> {
    let tokenizer = context.tokenizer.identity()?;
    let mut plans = match request {
        DatasetRequest::SlimPajama(request) => {
            hub_profiles::slimpajama(request, common, context, &tokenizer)?
        }
        DatasetRequest::Paloma(request) => hub_profiles::paloma(request, common, context, &tokenizer)?,
        DatasetRequest::Crates(request) => crates_io::plans(request, common, &tokenizer)?,
        DatasetRequest::Local(request) => local::plans(request, common, &tokenizer)?,
    };
    if let Some(copies) = &common.drop_duplicates {
        check_copies(&mut plans, copies)?;
    }
    plans
        .into_iter()
        .map(|mut plan| {
            plan.seal()?;
            Ok(match common.task {
                Some(task) => {
                    let all = plan.inputs.len();
                    let capped = cap_inputs(plan)?;
                    let not_planned = (all - capped.inputs.len()) as u64;
                    capped.part(task.index, task.count, not_planned)
                }
                None => plan,
            })
        })
        .collect()
}

/// Refuses a list that names nothing of any plan, and says of each plan what of the list is not its own. Whether a file is the
/// one that the list names is seen when it is read.
fn check_copies(plans: &mut [Plan], copies: &Copies) -> anyhow::Result<()> {
    let (list, all) = (printable::path(copies.path()), copies.documents());
    let others: Vec<(u64, Option<String>)> = plans
        .iter()
        .map(|plan| {
            let inputs = plan.inputs.iter().map(|input| input.path.as_str()).collect();
            let (documents, first) = copies.of_other_inputs(&inputs);
            (documents, first.map(|first| printable::text(first).into_owned()))
        })
        .collect();
    if let Some((_, Some(first))) =
        others.iter().find(|_| others.iter().all(|(documents, _)| *documents == all))
    {
        return Err(refuse(format!(
            "--drop-duplicates `{list}`: expected copies among the files that are prepared, found {all} documents of other \
             files (first: `{first}`); files are named as in the manifest of the dataset that the list was made from: give \
             the same paths, or the list of these data"
        )));
    }
    for (plan, (documents, first)) in plans.iter_mut().zip(others) {
        if let Some(first) = first {
            plan.notes.push(format!(
                "split `{}`: {documents} of {all} documents of `{list}` are of files that are not read for it (first: `{first}`)",
                plan.spec.split
            ));
        }
    }
    Ok(())
}

/// Compressed (or plain) bytes that one token is taken to need when a task array plans `--max-tokens`: about twice
/// what GPT-2 needs on English web text.
const COMPRESSED_BYTES_PER_TOKEN: f64 = 3.0;
const PLAIN_BYTES_PER_TOKEN: f64 = 9.0;
/// The share of a corpus that is taken to stay when sets are excluded: how large they are is not known before.
const SHARE_AFTER_EXCLUSION: f64 = 0.25;

/// With `--max-tokens`, tasks share only the front of the input list: enough of it to reach the bound with room
/// to spare. `merge` checks that it was enough.
#[allow(clippy::cast_precision_loss)]
fn cap_inputs(mut plan: Plan) -> anyhow::Result<Plan> {
    let Some(max_tokens) = plan.spec.selection.max_tokens else { return Ok(plan) };
    let selection = &plan.spec.selection;
    let mut share = if selection.exclude_sets.is_empty() { 1.0 } else { SHARE_AFTER_EXCLUSION };
    if let Some(holdout) = &selection.holdout {
        let fraction: f64 = holdout.fraction.parse()?;
        share *= if holdout.held_out { fraction } else { 1.0 - fraction };
    }
    let mut tokens = 0.0;
    let kept = plan
        .inputs
        .iter()
        .take_while(|input| {
            let wanted = tokens < max_tokens as f64;
            let compressed = is_compressed(input.format);
            let bytes_per_token = if compressed { COMPRESSED_BYTES_PER_TOKEN } else { PLAIN_BYTES_PER_TOKEN };
            tokens += input.size.unwrap_or(0) as f64 * share / bytes_per_token;
            wanted
        })
        .count();
    plan.inputs.truncate(kept);
    Ok(plan)
}

/// The folder of a plan's split (of its part, for a task).
#[must_use]
pub fn split_folder(out: &Path, plan: &Plan) -> PathBuf {
    folder_of(out, &plan.spec)
}

/// As [`split_folder`], of what a split says of itself.
#[must_use]
pub fn folder_of(out: &Path, spec: &SplitSpec) -> PathBuf {
    match &spec.part {
        None => out.join(&spec.split),
        Some(part) => {
            out.join("parts").join(format!("{:05}-of-{:05}", part.index, part.count)).join(&spec.split)
        }
    }
}

/// Carries a plan out.
///
/// # Errors
/// The first error in stream order; what is durable by then stays, and the same command resumes from it.
pub fn execute(
    plan: &Plan,
    common: &Common,
    context: &Context,
    progress: &PrepareProgress,
) -> anyhow::Result<Prepared> {
    let folder = split_folder(&common.out, plan);
    let builder = match SplitBuilder::open(&folder, plan.spec.clone(), common.restart)? {
        Opened::Finished(manifest) => {
            finished::check(&folder, plan, &manifest)?;
            return Ok(Prepared { folder, manifest: *manifest, was_finished: true });
        }
        Opened::Building(builder) => *builder,
    };
    finished::check_resumed(&folder, plan, builder.tally().ended_inputs())?;
    note_inputs_folder(&common.out, plan)?;
    let folders = InputFolders { from: common.from.clone(), downloads: common.downloads() };
    let mut provider = provider::for_plan(plan, common, context, folders, builder.cursor(), progress)?;
    let options = EngineOptions {
        threads: common.threads,
        on_bad_record: if plan.spec.selection.on_bad_record == "skip" {
            OnBadRecord::Skip
        } else {
            OnBadRecord::Fail
        },
        fields: plan.fields.clone(),
        filter: filter(plan, common)?,
        max_tokens: plan.spec.selection.max_tokens,
        asked: engine::Asked::of(&plan.spec.source.profile, &plan.spec.selection),
    };
    progress.begin(&plan.spec.split, plan);
    let manifest =
        engine::run(builder, plan.spec.layout, provider.as_mut(), &context.tokenizer, &options, progress)?;
    progress.end();
    Ok(Prepared { folder, manifest, was_finished: false })
}

fn filter(plan: &Plan, common: &Common) -> anyhow::Result<Filter> {
    let selection = &plan.spec.selection;
    let holdout = selection
        .holdout
        .as_ref()
        .map(|holdout| {
            let fraction: f64 = holdout.fraction.parse().context("the holdout's fraction is not a number")?;
            let threshold = engine::holdout_threshold(fraction);
            anyhow::Ok(engine::HoldoutCut { threshold, held_out: holdout.held_out })
        })
        .transpose()?;
    Ok(Filter {
        exclude_sets: selection.exclude_sets.clone(),
        holdout,
        copies: common.drop_duplicates.clone(),
    })
}

/// Notes where inputs are found again, for `audit --deep` and `trace`: a path of this machine, so not in the dataset.
fn note_inputs_folder(out: &Path, plan: &Plan) -> anyhow::Result<()> {
    plan.inputs_folder.as_ref().map_or(Ok(()), |folder| write_inputs_folder(out, folder))
}

fn write_inputs_folder(out: &Path, folder: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(out)?;
    let folder = std::path::absolute(folder)?;
    xlstm_manifests::atomic::write_atomic(
        &out.join(".inputs"),
        format!("{}\n", folder.display()).as_bytes(),
    )?;
    Ok(())
}

/// An error of the user's: what was asked for is not there, or cannot be.
pub(crate) fn refuse(text: impl Into<String>) -> anyhow::Error {
    CommandError::Usage(text.into()).into()
}

/// How text of this layout becomes rows.
fn packing(layout: Layout, common: &Common) -> Packing {
    let row_length = xlstm_manifests::ROW_LENGTH as u32;
    match layout {
        Layout::Packed => Packing {
            row_length,
            rows_per_shard: Some(common.rows_per_shard),
            append_end_of_text: true,
            input_width: None,
            targets: Targets::NextToken,
        },
        Layout::Documents => Packing {
            row_length,
            rows_per_shard: None,
            append_end_of_text: false,
            input_width: None,
            targets: Targets::NextToken,
        },
        Layout::Examples | Layout::Vectors => packing_of_examples(row_length, common.rows_per_shard),
    }
}

/// How examples of `row_length` positions become rows: one each.
#[must_use]
pub fn packing_of_examples(row_length: u32, rows_per_shard: u64) -> Packing {
    Packing {
        row_length,
        rows_per_shard: Some(rows_per_shard),
        append_end_of_text: false,
        input_width: None,
        targets: Targets::Stored,
    }
}
