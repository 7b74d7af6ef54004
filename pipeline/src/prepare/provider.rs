//! Providers: where a plan's files come from, in order.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;

use super::request::Common;
use super::{Context, PrepareProgress};
use crate::engine::{EngineError, Provided, Provider};
use crate::hub::{Origin, Prefetch, PrefetchJobs, PrefetchOptions};
use crate::plan::{InputFolders, Location, Plan, PlannedInput};
use crate::split::Cursor;

/// The provider of `plan`'s inputs from the cursor's on.
pub(super) fn for_plan(
    plan: &Plan,
    common: &Common,
    context: &Context,
    folders: InputFolders,
    cursor: Cursor,
    progress: &PrepareProgress,
) -> anyhow::Result<Box<dyn Provider>> {
    let first = cursor.input as usize;
    let inputs: VecDeque<(u32, PlannedInput)> = (0..).zip(plan.inputs.iter().cloned()).skip(first).collect();
    let Some(remote) = &plan.remote else { return Ok(Box::new(LocalProvider { inputs })) };
    let files: Vec<_> = inputs
        .iter()
        .filter_map(|(_, input)| match &input.location {
            // A file that the user gave is checked in place, and never replaced.
            Location::Remote(_) if folders.given(&input.path).is_some() => None,
            Location::Remote(file) => Some((file.clone(), folders.place(&input.path))),
            Location::Local(_) => None,
        })
        .collect();
    let hub = context.hub.clone().context("the plan has remote files, but no Hub was set up")?;
    let options = PrefetchOptions { threads: common.parallel_downloads.max(1), ..PrefetchOptions::default() };
    let cancel = Arc::new(AtomicBool::new(false));
    let observer = progress.download_observer();
    let jobs = PrefetchJobs { repository: remote.repository.clone(), sha: remote.sha.clone(), files };
    let prefetch = Prefetch::start(hub, jobs, options, observer, Arc::clone(&cancel))?;
    Ok(Box::new(HubProvider {
        inputs,
        prefetch,
        cancel,
        folders,
        discard: common.discard_downloads,
        downloaded: VecDeque::new(),
    }))
}

/// Files of this machine.
struct LocalProvider {
    inputs: VecDeque<(u32, PlannedInput)>,
}

impl Provider for LocalProvider {
    fn provide(&mut self) -> Option<Result<Provided, EngineError>> {
        let (index, planned) = self.inputs.pop_front()?;
        let path = match &planned.location {
            Location::Local(path) => path.clone(),
            Location::Remote(file) => {
                let message = format!("`{}` is remote, but the plan names no repository", file.path);
                return Some(Err(EngineError::Internal(message)));
            }
        };
        Some(Ok(Provided { index, planned, path, verified: None }))
    }
}

/// Files of the Hub, fetched ahead.
struct HubProvider {
    inputs: VecDeque<(u32, PlannedInput)>,
    prefetch: Prefetch,
    cancel: Arc<AtomicBool>,
    folders: InputFolders,
    discard: bool,
    downloaded: VecDeque<(u32, PathBuf)>,
}

impl Provider for HubProvider {
    fn provide(&mut self) -> Option<Result<Provided, EngineError>> {
        let (index, planned) = self.inputs.pop_front()?;
        let given = match &planned.location {
            Location::Local(path) => Some(path.clone()),
            Location::Remote(_) => self.folders.given(&planned.path),
        };
        if let Some(path) = given {
            return Some(Ok(Provided { index, planned, path, verified: None }));
        }
        let fetched = self.prefetch.next()?;
        if fetched.file.path != planned.path.as_str() {
            let message =
                format!("expected `{}` to be fetched next, found `{}`", planned.path, fetched.file.path);
            return Some(Err(EngineError::Internal(message)));
        }
        let stored = match fetched.result {
            Ok(stored) => stored,
            Err(error) => return Some(Err(error.into())),
        };
        if self.discard && stored.origin != Origin::HuggingFaceCache && self.folders.is_download(&stored.path)
        {
            self.downloaded.push_back((index, stored.path.clone()));
        }
        let verified = Some((stored.fetched.size, stored.fetched.sha256));
        Some(Ok(Provided { index, planned, path: stored.path, verified }))
    }

    fn canceller(&self) -> Option<Arc<AtomicBool>> {
        Some(Arc::clone(&self.cancel))
    }

    fn durable_before(&mut self, index: u32) {
        while self.downloaded.front().is_some_and(|(i, _)| *i < index) {
            if let Some((_, path)) = self.downloaded.pop_front() {
                // What cannot be removed stays: it is only a copy of what the Hub has.
                let _ = fs_err::remove_file(path);
            }
        }
    }
}
