//! Datasets of the catalog, on the Hub: SlimPajama and PALOMA.
//!
//! The revision is resolved to a commit once, the commit is listed once, and the catalog says which of its files
//! make up a split, in which order. With `--from DIR --offline` no Hub is asked: the files found in DIR are taken
//! as they are, and the manifest shows that nobody declared their digests.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use walkdir::WalkDir;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::catalog::{Catalog, FileFormat, Profile, Split};
use xlstm_manifests::manifest::{Layout, Licence, Selection, Source, Tokenizer};
use xlstm_manifests::safe_path::SafePath;

use super::request::{Common, PalomaRequest, SlimPajamaRequest};
use super::{Context, packing};
use crate::hub::{Hub, HubError, RemoteFile, Revision};
use crate::plan::{Location, Plan, PlannedInput, RemoteRepository, declared_by_hub};
use crate::sources::{Compression, Fields, Format};
use crate::split::SplitSpec;

pub(super) fn slimpajama(
    request: &SlimPajamaRequest,
    common: &Common,
    context: &Context,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    let catalog = Catalog::load()?;
    let profile = catalog.profile("slimpajama", &request.profile)?;
    check_sets(profile, common)?;
    let files = Files::find(profile, request.revision.as_deref(), common, context)?;
    wanted(profile, &request.splits)?
        .into_iter()
        .map(|split| plan(profile, split, &files, common, tokenizer, &|_| true))
        .collect()
}

pub(super) fn paloma(
    request: &PalomaRequest,
    common: &Common,
    context: &Context,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    let catalog = Catalog::load()?;
    let profile = catalog.profile("paloma", "paloma")?;
    if common.max_tokens.is_some() {
        bail!(
            "--max-tokens does not go with PALOMA: a part of an evaluation set is not comparable; use --source"
        );
    }
    for source in &request.sources {
        if profile.source(source).is_none() {
            let known: Vec<_> = profile.sources.iter().map(|source| source.directory.as_str()).collect();
            bail!("--source {source}: expected one of {}", known.join(", "));
        }
    }
    let files = Files::find(profile, request.revision.as_deref(), common, context)?;
    let keep = |source: &str| request.sources.is_empty() || request.sources.iter().any(|s| s == source);
    wanted(profile, &request.splits)?
        .into_iter()
        .map(|split| plan(profile, split, &files, common, tokenizer, &keep))
        .collect()
}

/// A set that does not occur would silently exclude nothing.
fn check_sets(profile: &Profile, common: &Common) -> anyhow::Result<()> {
    match common.exclude_sets.iter().find(|set| !profile.sets.is_empty() && !profile.sets.contains(set)) {
        Some(unknown) => bail!("--exclude-set {unknown}: expected one of {}", profile.sets.join(", ")),
        None => Ok(()),
    }
}

fn wanted<'a>(profile: &'a Profile, names: &[String]) -> anyhow::Result<Vec<&'a Split>> {
    if names.is_empty() {
        return Ok(profile.splits.iter().collect());
    }
    names.iter().map(|name| Ok(profile.split(name)?)).collect()
}

/// The files of a dataset, as the Hub lists them or as a folder holds them.
struct Files {
    revision: Option<Revision>,
    listing: Vec<RemoteFile>,
    local: Vec<SafePath>,
    requested: String,
}

impl Files {
    fn find(
        profile: &Profile,
        revision: Option<&str>,
        common: &Common,
        context: &Context,
    ) -> anyhow::Result<Self> {
        let requested = revision.unwrap_or(&profile.revision).to_owned();
        if let (true, Some(from)) = (common.offline, &common.from) {
            return Ok(Self { revision: None, listing: Vec::new(), local: walk(from)?, requested });
        }
        let hub = context.hub.as_ref().context("no Hub was set up")?;
        let (revision, listing) = ask(hub, profile, &requested).map_err(|error| advise(error, profile))?;
        Ok(Self { revision: Some(revision), listing, local: Vec::new(), requested })
    }

    fn paths(&self) -> Vec<&str> {
        let listed = self.listing.iter().map(|file| file.path.as_str());
        listed.chain(self.local.iter().map(SafePath::as_str)).collect()
    }
}

fn ask(hub: &Hub, profile: &Profile, requested: &str) -> Result<(Revision, Vec<RemoteFile>), HubError> {
    let revision = hub.resolve(&profile.repository, requested)?;
    let listing = hub.list(&profile.repository, &revision.sha)?;
    Ok((revision, listing.files))
}

/// Says what else there is when a repository is gone.
fn advise(error: HubError, profile: &Profile) -> anyhow::Error {
    let gone = matches!(error, HubError::RepositoryNotFound { .. } | HubError::Disabled { .. });
    if gone && profile.dataset == "slimpajama" {
        let text = format!("{error}; other copies: --profile reupload (all of it), --profile 6b (a sample)");
        return anyhow::Error::new(error).context(text);
    }
    error.into()
}

/// All files below a folder that could be of a dataset.
fn walk(folder: &Path) -> anyhow::Result<Vec<SafePath>> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot list `{}`", folder.display()))?;
        if entry.file_type().is_file()
            && let Ok(below) = entry.path().strip_prefix(folder)
            && let Some(text) = below.to_str()
        {
            paths.push(SafePath::new(text)?);
        }
    }
    Ok(paths)
}

fn plan(
    profile: &Profile,
    split: &Split,
    files: &Files,
    common: &Common,
    tokenizer: &Tokenizer,
    keep_source: &dyn Fn(&str) -> bool,
) -> anyhow::Result<Plan> {
    let paths = files.paths();
    let selected = profile.select(&split.name, paths.iter().copied())?;
    check_counts(profile, split, &selected)?;
    let layout = if profile.dataset == "paloma" { Layout::Documents } else { Layout::Packed };
    let mut inputs = Vec::new();
    for path in selected {
        let source = split.part(path).and_then(|part| part.source.clone());
        if source.as_deref().is_none_or(keep_source) {
            inputs.push(input(profile, path, source, files, common)?);
        }
    }
    let name = if profile.dataset == profile.name {
        profile.name.clone()
    } else {
        format!("{}/{}", profile.dataset, profile.name)
    };
    Ok(Plan {
        spec: SplitSpec {
            split: split.name.clone(),
            layout,
            source: Source {
                profile: name,
                repository: Some(profile.repository.clone()),
                requested_revision: Some(files.requested.clone()),
                resolved_revision: files.revision.as_ref().map(|revision| revision.sha.clone()),
                licences: licences(profile, files),
                generator: None,
            },
            selection: Selection {
                text_field: Some(profile.text_field.clone()),
                set_field: profile.set_field.clone(),
                exclude_sets: common.exclude_sets.clone(),
                max_tokens: common.max_tokens,
                holdout: None,
                on_bad_record: common.on_bad_record(),
            },
            tokenizer: tokenizer.clone(),
            packing: packing(layout, common),
            part: None,
            plan: Sha256Digest::of(b""),
        },
        inputs,
        fields: fields(profile),
        remote: files.revision.as_ref().map(|revision| RemoteRepository {
            repository: revision.repository.clone(),
            sha: revision.sha.clone(),
        }),
        inputs_folder: Some(common.from.clone().unwrap_or_else(|| common.downloads())),
        expected_tokens: None,
    })
}

/// Files that should be there and are not: said, since a repository may have been changed on purpose; none at all
/// is an error.
fn check_counts(profile: &Profile, split: &Split, selected: &[&str]) -> anyhow::Result<()> {
    if selected.is_empty() {
        let globs: Vec<_> = split.parts.iter().map(|part| format!("`{}`", part.glob)).collect();
        bail!(
            "split `{}` of {}: expected files such as {}, found none; is this the right repository, revision or --from folder?",
            split.name,
            profile.repository,
            globs.first().map_or("", String::as_str)
        );
    }
    for mismatch in split.count_mismatches(selected) {
        // A warning that cannot be printed is no reason to stop.
        let _ = writeln!(
            std::io::stderr(),
            "warning: {}: expected {} files `{}`, found {}",
            profile.repository,
            mismatch.expected,
            mismatch.glob,
            mismatch.found
        );
    }
    Ok(())
}

fn input(
    profile: &Profile,
    path: &str,
    source: Option<String>,
    files: &Files,
    common: &Common,
) -> anyhow::Result<PlannedInput> {
    let path = SafePath::new(path)?;
    let format = match profile.format {
        FileFormat::JsonLinesZstd => Format::JsonLines { compression: Compression::Zstd },
        FileFormat::JsonLinesGzip => Format::JsonLines { compression: Compression::Gzip },
        FileFormat::Parquet => Format::Parquet,
    };
    let remote = files.listing.binary_search_by(|file| file.path.as_str().cmp(path.as_str())).ok();
    let (size, declared, location) = match (remote, &common.from) {
        (Some(at), _) => {
            let file = &files.listing[at];
            (file.size, Some(declared_by_hub(&file.digest)), Location::Remote(file.clone()))
        }
        (None, Some(from)) => {
            let local = path.under(from);
            (fs_err::metadata(&local)?.len(), None, Location::Local(local))
        }
        (None, None) => bail!("`{path}` is in no listing"),
    };
    Ok(PlannedInput { path, format, size: Some(size), declared, licence: None, location, set_prefix: source })
}

fn fields(profile: &Profile) -> Fields {
    Fields {
        text: profile.text_field.clone(),
        set: profile.set_field.clone(),
        set_fallback: profile.set_fallback_field.clone(),
        id: profile.id_field.clone(),
        truncated: profile.truncated_field.clone(),
    }
}

/// The catalog's statements, and what the repository's metadata says today.
fn licences(profile: &Profile, files: &Files) -> Vec<Licence> {
    let mut licences = profile.licences.clone();
    for licence in files.revision.iter().flat_map(|revision| &revision.licences) {
        licences.push(Licence {
            claimed_by: "metadata of the repository".into(),
            statement: licence.clone(),
            spdx: None,
        });
    }
    licences
}
