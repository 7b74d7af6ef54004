//! Datasets of the catalog, on the Hub: SlimPajama and PALOMA.
//!
//! The revision is resolved to a commit once, the commit is listed once, and the catalog says which of its files
//! make up a split, in which order. With `--from DIR --offline` no Hub is asked: the files found in DIR are taken
//! as they are, and the manifest shows that nobody declared their digests.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use walkdir::WalkDir;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::catalog::{self, Catalog, CountMismatch, FileFormat, Profile, Split};
use xlstm_manifests::manifest::{Layout, Licence, Selection, Source, Tokenizer};
use xlstm_manifests::printable;
use xlstm_manifests::safe_path::SafePath;

use super::request::{Common, PalomaRequest, SlimPajamaRequest};
use super::walk::cannot_walk;
use super::{Context, packing, refuse};
use crate::hub::{Hub, HubError, RemoteFile, Revision};
use crate::plan::{Location, Plan, PlannedInput, RemoteRepository, declared_by_hub};
use crate::sources::{
    Compression, Fields, Format, PALOMA_LICENSE, PALOMA_SOURCE, SLIMPAJAMA_LICENSE, SLIMPAJAMA_SOURCE,
};
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
    let wanted = Wanted { splits: &request.splits, sources: &[] };
    wanted.plans(profile, &files, common, tokenizer)
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
        return Err(refuse(
            "--max-tokens does not go with PALOMA: a part of an evaluation set is not comparable; use --source",
        ));
    }
    if common.drop_duplicates.is_some() {
        return Err(refuse(
            "--drop-duplicates does not go with PALOMA: an evaluation set without some documents is not comparable; \
             `xlstm-data overlap` says what of it is in training data",
        ));
    }
    for source in &request.sources {
        if profile.source(source).is_none() {
            let known: Vec<_> = profile.sources.iter().map(|source| source.directory.as_str()).collect();
            let source = printable::text(source);
            return Err(refuse(format!("--source {source}: expected one of {}", known.join(", "))));
        }
    }
    let files = Files::find(profile, request.revision.as_deref(), common, context)?;
    let wanted = Wanted { splits: &request.splits, sources: &request.sources };
    wanted.plans(profile, &files, common, tokenizer)
}

/// The splits and sources that were asked for by name; none for all.
struct Wanted<'a> {
    splits: &'a [String],
    sources: &'a [String],
}

impl Wanted<'_> {
    /// The plans of the splits. What was asked for by name and is not there is an error; of all splits, or all sources,
    /// those that are there are prepared and the others named.
    fn plans(
        &self,
        profile: &Profile,
        files: &Files,
        common: &Common,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Vec<Plan>> {
        let named =
            self.splits.iter().map(|name| Ok(profile.split(name)?)).collect::<anyhow::Result<Vec<_>>>()?;
        let splits = if named.is_empty() { profile.splits.iter().collect() } else { named };
        let (mut plans, mut missing) = (Vec::new(), Vec::new());
        let mut short = Vec::new();
        for split in splits {
            let paths = files.paths();
            let selected = profile.select(&split.name, paths.iter().copied())?;
            let source_of = |path: &str| split.part(path).and_then(|part| part.source.clone());
            let kept: Vec<(&str, Option<String>)> = selected
                .iter()
                .map(|path| (*path, source_of(path)))
                .filter(|(_, source)| self.keeps(source.as_deref()))
                .collect();
            if kept.is_empty() {
                missing.push(split);
                continue;
            }
            self.check_sources(profile, split, &kept)?;
            short.extend(split.count_mismatches(&selected));
            plans.push(plan(profile, split, &kept, files, common, tokenizer)?);
        }
        if plans.is_empty() || !(self.splits.is_empty() || missing.is_empty()) {
            return Err(self.none_found(profile, &missing));
        }
        let notes = self.notes(profile, &plans, &missing, &short);
        plans.iter_mut().for_each(|plan| plan.notes.clone_from(&notes));
        Ok(plans)
    }

    fn keeps(&self, source: Option<&str>) -> bool {
        self.sources.is_empty()
            || source.is_some_and(|source| self.sources.iter().any(|wanted| wanted == source))
    }

    /// Refuses a split that lacks a source that was asked for by name.
    fn check_sources(
        &self,
        profile: &Profile,
        split: &Split,
        kept: &[(&str, Option<String>)],
    ) -> anyhow::Result<()> {
        let there = |source: &String| kept.iter().any(|(_, found)| found.as_ref() == Some(source));
        match self.sources.iter().find(|source| !there(source)) {
            None => Ok(()),
            Some(source) => Err(refuse(format!(
                "--source {source}: expected files such as `{}` for split `{}` of {}, found none; is this the right \
                 repository, revision or --from folder?",
                glob_of(split, Some(source)),
                split.name,
                profile.repository
            ))),
        }
    }

    fn none_found(&self, profile: &Profile, missing: &[&Split]) -> anyhow::Error {
        let first = self.sources.first().map(String::as_str);
        let globs: Vec<_> = missing
            .iter()
            .map(|split| format!("`{}` (split `{}`)", glob_of(split, first), split.name))
            .collect();
        refuse(format!(
            "{}: expected files such as {}, found none; is this the right repository, revision or --from folder?",
            profile.repository,
            globs.join(", ")
        ))
    }

    /// What is not there although nobody asked for less: one line each for splits, sources and files.
    fn notes(
        &self,
        profile: &Profile,
        plans: &[Plan],
        missing: &[&Split],
        short: &[CountMismatch],
    ) -> Vec<String> {
        let mut notes = Vec::new();
        for split in missing {
            notes.push(format!(
                "split `{}` of {} is not there and is left out",
                split.name, profile.repository
            ));
        }
        if self.sources.is_empty() {
            for plan in plans {
                let there: BTreeSet<_> =
                    plan.inputs.iter().filter_map(|input| input.set_prefix.as_deref()).collect();
                let all = profile.sources.iter().map(|source| source.directory.as_str());
                let lacks: Vec<_> = all.filter(|source| !there.contains(source)).collect();
                if !lacks.is_empty() {
                    notes.push(format!(
                        "split `{}`: {} of {} sources are not there and are left out: {}",
                        plan.spec.split,
                        lacks.len(),
                        profile.sources.len(),
                        lacks.join(", ")
                    ));
                }
            }
        }
        if let Some(first) = short.first() {
            let sum = |count: fn(&CountMismatch) -> u64| short.iter().map(count).sum::<u64>();
            notes.push(format!(
                "{}: expected {} files, found {}, in {} places that have another number than they should (first: `{}`, \
                 {} for {})",
                profile.repository,
                sum(|mismatch| mismatch.expected),
                sum(|mismatch| mismatch.found),
                short.len(),
                first.glob,
                first.found,
                first.expected
            ));
        }
        notes
    }
}

/// What files of a split, or of a source of it, look like.
fn glob_of<'a>(split: &'a Split, source: Option<&str>) -> &'a str {
    let of = |part: &&catalog::Part| source.is_none() || part.source.as_deref() == source;
    split.parts.iter().find(of).map_or("", |part| part.glob.as_str())
}

/// A set that does not occur would silently exclude nothing.
fn check_sets(profile: &Profile, common: &Common) -> anyhow::Result<()> {
    match common.exclude_sets.iter().find(|set| !profile.sets.is_empty() && !profile.sets.contains(set)) {
        Some(unknown) => {
            let unknown = printable::text(unknown);
            Err(refuse(format!("--exclude-set {unknown}: expected one of {}", profile.sets.join(", "))))
        }
        None => Ok(()),
    }
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
        // With the files already on disk, give up on an unreachable Hub quickly: --offline works without it.
        let brief = common.from.as_ref().map(|_| hub.impatient()).transpose()?;
        let asked = ask(brief.as_ref().unwrap_or(hub), profile, &requested);
        let (revision, listing) = asked.map_err(|error| advise(error, profile, common.from.is_some()))?;
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
fn advise(error: HubError, profile: &Profile, files_at_hand: bool) -> anyhow::Error {
    if matches!(error, HubError::Unreachable { .. }) {
        let advice = if files_at_hand {
            "to take the files of --from as they are, with no digest to compare them with, add --offline"
        } else {
            "on a machine without network, give files downloaded elsewhere with --from DIR --offline"
        };
        let text = format!("{error}; {advice}");
        return anyhow::Error::new(error).context(text);
    }
    let gone = matches!(error, HubError::RepositoryNotFound { .. } | HubError::Disabled { .. });
    if gone && profile.dataset == "slimpajama" {
        let text = format!("{error}; other copies: --profile reupload (all of it), --profile 6b (a sample)");
        return anyhow::Error::new(error).context(text);
    }
    error.into()
}

/// All files below a folder that could be of a dataset. A snapshot in a Hugging Face cache is all links, so links are
/// followed; a name that a catalog's pattern cannot match is of no dataset.
fn walk(folder: &Path) -> anyhow::Result<Vec<SafePath>> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name() {
        let entry = entry.map_err(|error| cannot_walk(&printable::path(folder), &error))?;
        if entry.file_type().is_file()
            && let Ok(below) = entry.path().strip_prefix(folder)
            && let Some(path) = below.to_str().and_then(|text| SafePath::new(text).ok())
        {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn plan(
    profile: &Profile,
    split: &Split,
    kept: &[(&str, Option<String>)],
    files: &Files,
    common: &Common,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Plan> {
    let layout = if profile.dataset == "paloma" { Layout::Documents } else { Layout::Packed };
    let inputs = kept
        .iter()
        .map(|(path, source)| input(profile, path, source.clone(), files, common))
        .collect::<anyhow::Result<_>>()?;
    let name = if profile.dataset == profile.name {
        profile.name.clone()
    } else {
        format!("{}/{}", profile.dataset, profile.name)
    };
    Ok(Plan {
        spec: SplitSpec {
            split: split.name.clone(),
            layout,
            source: source(profile, &name, files),
            selection: Selection {
                text_field: Some(profile.text_field.clone()),
                set_field: profile.set_field.clone(),
                id_field: None,
                license_field: None,
                source_field: None,
                exclude_sets: common.exclude_sets.clone(),
                max_tokens: common.max_tokens,
                holdout: None,
                drop_duplicates: common.drop_duplicates.as_ref().map(|copies| copies.selection()),
                on_bad_record: common.on_bad_record(),
            },
            tokenizer: tokenizer.clone(),
            packing: packing(layout, common),
            part: None,
            plan: Sha256Digest::of(b""),
            plan_without_skip: None,
        },
        inputs,
        fields: fields(profile),
        remote: files.revision.as_ref().map(|revision| RemoteRepository {
            repository: revision.repository.clone(),
            sha: revision.sha.clone(),
        }),
        inputs_folder: Some(common.from.clone().unwrap_or_else(|| common.downloads())),
        expected_tokens: None,
        notes: Vec::new(),
    })
}

/// The repository that was asked, or what the caller says of files that nothing is compared with.
fn source(profile: &Profile, name: &str, files: &Files) -> Source {
    let Some(revision) = &files.revision else {
        let requested = Some(files.requested.clone());
        return Source::claimed(name, &profile.repository, requested, &profile.licences);
    };
    Source {
        profile: name.into(),
        repository: Some(profile.repository.clone()),
        requested_revision: Some(files.requested.clone()),
        resolved_revision: Some(revision.sha.clone()),
        licences: licences(profile, files),
        generator: None,
        claimed: None,
    }
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
        (None, None) => return Err(refuse(format!("`{path}` is in no listing"))),
    };
    Ok(PlannedInput { path, format, size: Some(size), declared, licence: None, location, set_prefix: source })
}

fn fields(profile: &Profile) -> Fields {
    let (license, source) = match profile.dataset.as_str() {
        "slimpajama" => (SLIMPAJAMA_LICENSE, SLIMPAJAMA_SOURCE),
        _ => (PALOMA_LICENSE, PALOMA_SOURCE),
    };
    Fields {
        text: profile.text_field.clone(),
        set: profile.set_field.clone(),
        set_fallback: profile.set_fallback_field.clone(),
        id: profile.id_field.clone(),
        truncated: profile.truncated_field.clone(),
        license: Some(license.to_owned()),
        source: Some(source.to_owned()),
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
