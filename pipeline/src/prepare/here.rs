//! Which files of a plan are on this machine.

use std::path::PathBuf;

use super::Context;
use super::request::Common;
use crate::plan::{InputFolders, Location, Plan, PlannedInput};

/// Where `input` is on this machine, with the size that the plan says: at its place, in `--from`, among the downloads or in the
/// Hugging Face cache. `None` where it is still to be downloaded.
pub(super) fn place_of(
    plan: &Plan,
    input: &PlannedInput,
    folders: &InputFolders,
    context: &Context,
) -> Option<PathBuf> {
    let file = match &input.location {
        Location::Local(path) => return Some(path.clone()),
        Location::Remote(file) => file,
    };
    let placed = folders.place(&input.path);
    if fs_err::metadata(&placed).is_ok_and(|found| found.len() == input.size.unwrap_or(0)) {
        return Some(placed);
    }
    let (hub, remote) = context.hub.as_ref().zip(plan.remote.as_ref())?;
    hub.locate_in_hf_cache(&remote.repository, &remote.sha, file)
}

/// The folders of a request.
pub(super) fn folders(common: &Common) -> InputFolders {
    InputFolders { from: common.from.clone(), downloads: common.downloads() }
}
