//! Whether what a folder holds was made from the inputs that are asked for now: a finished split answers for no other
//! files, and an unfinished run is not resumed with them.

use std::path::Path;

use rayon::prelude::*;
use xlstm_manifests::manifest::{Input, Manifest};
use xlstm_manifests::{digest, printable};

use crate::plan::{Location, Plan, PlannedInput, format_name};
use crate::split::SplitError;

/// Compares a finished split with the plan's inputs: the same files in the same order, with the same bytes.
///
/// # Errors
/// [`SplitError::OtherRun`] naming the first file that differs.
pub(super) fn check(folder: &Path, plan: &Plan, manifest: &Manifest) -> anyhow::Result<()> {
    let differ = |differs| differ(folder, "a finished dataset", differs);
    let reached = plan.spec.selection.max_tokens.is_some_and(|limit| manifest.totals.tokens >= limit);
    for (planned, input) in plan.inputs.iter().zip(&manifest.inputs) {
        if planned.path != input.path {
            let (was, is) = (printable::text(input.path.as_str()), printable::text(planned.path.as_str()));
            return Err(differ(format!("its inputs: it was made from `{was}` where `{is}` is now")));
        }
    }
    match (plan.inputs.get(manifest.inputs.len()), manifest.inputs.get(plan.inputs.len())) {
        (Some(added), _) if !reached => {
            return Err(differ(format!("its inputs: `{}` is new", printable::text(added.path.as_str()))));
        }
        (_, Some(gone)) => {
            let gone = printable::text(gone.path.as_str());
            return Err(differ(format!("its inputs: `{gone}` is gone")));
        }
        _ => {}
    }
    match first_changed(plan, &manifest.inputs)? {
        None => Ok(()),
        Some(name) => Err(differ(format!("its inputs: `{name}` has other bytes, or is read in another way"))),
    }
}

/// Compares the inputs that an unfinished run has read to their ends with what they are now. The one that it is in the
/// middle of is compared when it is opened again.
///
/// # Errors
/// [`SplitError::OtherRun`] naming the first file that differs.
pub(super) fn check_resumed(folder: &Path, plan: &Plan, ended: &[Input]) -> anyhow::Result<()> {
    match first_changed(plan, ended)? {
        None => Ok(()),
        Some(name) => {
            let differs = format!("its inputs: `{name}` has other bytes than it had then");
            Err(differ(folder, "an unfinished run", differs))
        }
    }
}

fn differ(folder: &Path, found: &'static str, differs: String) -> anyhow::Error {
    SplitError::OtherRun { folder: folder.into(), found, differs }.into()
}

/// The first input that was read and is another one now, by name.
fn first_changed(plan: &Plan, read: &[Input]) -> anyhow::Result<Option<String>> {
    let same = plan.inputs.par_iter().zip(read).map(|(planned, input)| is_same(planned, input));
    let same: Vec<bool> = same.collect::<anyhow::Result<_>>()?;
    let first = same.iter().position(|same| !same);
    Ok(first.map(|index| printable::text(read[index].path.as_str()).into_owned()))
}

/// Whether a planned input is one that was read. A digest that is published for both tells; else the file is read.
fn is_same(planned: &PlannedInput, input: &Input) -> anyhow::Result<bool> {
    if planned.path != input.path
        || format_name(planned.format) != input.format
        || planned.size.is_some_and(|size| size != input.size)
    {
        return Ok(false);
    }
    match (&planned.location, &planned.declared, &input.declared) {
        (_, Some(now), Some(then)) if now.algorithm == then.algorithm => Ok(now.digest == then.digest),
        (Location::Remote(_), Some(now), None) if now.algorithm == "sha256" => {
            Ok(now.digest == input.sha256.to_string())
        }
        // Published as a git blob now, and not then: the listing cannot be compared with what was read.
        (Location::Remote(_), ..) => Ok(true),
        (Location::Local(path), ..) => Ok(digest::digest_file(path)? == (input.size, input.sha256)),
    }
}
