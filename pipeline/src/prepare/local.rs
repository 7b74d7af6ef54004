//! Files and folders of this machine.
//!
//! Files come in the order of their paths, byte by byte, below each path given; paths given come in the order
//! given. Hidden files and files of no known format are passed over inside folders and refused when named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use walkdir::WalkDir;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{Holdout, Layout, Licence, Selection, Source, Tokenizer};
use xlstm_manifests::safe_path::SafePath;

use super::packing;
use super::request::{Common, LocalRequest};
use crate::plan::{Location, Plan, PlannedInput};
use crate::sources::{Fields, Format};
use crate::split::SplitSpec;

pub(super) fn plans(
    request: &LocalRequest,
    common: &Common,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    let (inputs, base) = inputs(&request.paths)?;
    if inputs.is_empty() {
        let paths: Vec<_> = request.paths.iter().map(|path| format!("`{}`", path.display())).collect();
        bail!(
            "no input: expected .txt, .md, .jsonl (plain, .zst, .gz) or .parquet files in {}, found none",
            paths.join(", ")
        );
    }
    let fields = Fields {
        text: request.text_field.clone(),
        set: request.set_field.clone(),
        id: request.id_field.clone(),
        ..Fields::default()
    };
    let whole = OnThisMachine {
        profile: "local",
        licence: Licence {
            claimed_by: "nobody".into(),
            statement: "local files carry no licence statement".into(),
            spdx: None,
        },
        text_field: Some(request.text_field.clone()),
        set_field: request.set_field.clone(),
        fields,
        inputs,
        inputs_folder: Some(base),
    };
    whole.plans(&request.split, request.holdout.as_deref(), common, tokenizer)
}

/// What a dataset made from files of this machine is, before a holdout divides it.
pub(super) struct OnThisMachine {
    pub(super) profile: &'static str,
    pub(super) licence: Licence,
    pub(super) text_field: Option<String>,
    pub(super) set_field: Option<String>,
    pub(super) fields: Fields,
    pub(super) inputs: Vec<PlannedInput>,
    pub(super) inputs_folder: Option<PathBuf>,
}

impl OnThisMachine {
    /// The plan of `split`, or of both sides of a holdout.
    pub(super) fn plans(
        self,
        split: &str,
        holdout: Option<&str>,
        common: &Common,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Vec<Plan>> {
        let plan = |(split, holdout)| Plan {
            spec: SplitSpec {
                split,
                layout: Layout::Packed,
                source: Source {
                    profile: self.profile.into(),
                    repository: None,
                    requested_revision: None,
                    resolved_revision: None,
                    licences: vec![self.licence.clone()],
                    generator: None,
                },
                selection: Selection {
                    text_field: self.text_field.clone(),
                    set_field: self.set_field.clone(),
                    exclude_sets: common.exclude_sets.clone(),
                    max_tokens: common.max_tokens,
                    holdout,
                    on_bad_record: common.on_bad_record(),
                },
                tokenizer: tokenizer.clone(),
                packing: packing(Layout::Packed, common),
                part: None,
                plan: Sha256Digest::of(b""),
            },
            inputs: self.inputs.clone(),
            fields: self.fields.clone(),
            remote: None,
            inputs_folder: self.inputs_folder.clone(),
            expected_tokens: None,
        };
        Ok(sides(split, holdout)?.into_iter().map(plan).collect())
    }
}

/// The splits that a holdout makes: train and validation; or the one `split` without.
pub(super) fn sides(split: &str, holdout: Option<&str>) -> anyhow::Result<Vec<(String, Option<Holdout>)>> {
    let Some(fraction) = holdout else { return Ok(vec![(split.to_owned(), None)]) };
    let value: f64 = fraction.parse().with_context(|| format!("--holdout `{fraction}` is not a number"))?;
    if !(value > 0.0 && value < 1.0) {
        bail!("--holdout {fraction}: expected a fraction above 0 and below 1");
    }
    let side = |held_out| Some(Holdout { fraction: fraction.to_owned(), held_out });
    Ok(vec![("train".to_owned(), side(false)), ("validation".to_owned(), side(true))])
}

/// The inputs below `paths`, and the folder that their names are relative to.
fn inputs(paths: &[PathBuf]) -> anyhow::Result<(Vec<PlannedInput>, PathBuf)> {
    let base = common_folder(paths)?;
    let mut inputs = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            let walk = WalkDir::new(path).follow_links(false).sort_by_file_name().into_iter();
            let mut files = Vec::new();
            for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name())) {
                let entry = entry.with_context(|| format!("cannot list `{}`", path.display()))?;
                if entry.file_type().is_file()
                    && let Some(format) = Format::from_path(entry.path())
                {
                    files.push((relative(&base, entry.path())?, entry.path().to_path_buf(), format));
                }
            }
            files.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, file, format) in files {
                push(&mut inputs, &mut seen, name, &file, format)?;
            }
        } else {
            let format = Format::from_path(path).with_context(|| {
                format!(
                    "`{}`: expected a name ending in .txt, .md, .jsonl, .jsonl.zst, .jsonl.gz or .parquet",
                    path.display()
                )
            })?;
            push(&mut inputs, &mut seen, relative(&base, path)?, path, format)?;
        }
    }
    Ok((inputs, base))
}

fn push(
    inputs: &mut Vec<PlannedInput>,
    seen: &mut BTreeSet<SafePath>,
    name: SafePath,
    file: &Path,
    format: Format,
) -> anyhow::Result<()> {
    if !seen.insert(name.clone()) {
        bail!("`{}` is given twice: name each file once", file.display());
    }
    let size = fs_err::metadata(file)?.len();
    inputs.push(PlannedInput {
        path: name,
        format,
        size: Some(size),
        declared: None,
        licence: None,
        location: Location::Local(file.to_path_buf()),
        set_prefix: None,
    });
    Ok(())
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with('.'))
}

/// The folder itself when one folder is given; else the deepest folder that holds all paths.
pub(super) fn common_folder(paths: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let mut common: Option<PathBuf> = None;
    for path in paths {
        let absolute = fs_err::canonicalize(path)?;
        let folder = if absolute.is_dir() {
            absolute
        } else {
            absolute.parent().map(Path::to_path_buf).unwrap_or_default()
        };
        common = Some(match common {
            None => folder,
            Some(mut common) => {
                while !folder.starts_with(&common) {
                    if !common.pop() {
                        bail!("the paths given share no folder: put them below one");
                    }
                }
                common
            }
        });
    }
    common.context("no path given")
}

pub(super) fn relative(base: &Path, file: &Path) -> anyhow::Result<SafePath> {
    let absolute = fs_err::canonicalize(file)?;
    let below = absolute.strip_prefix(base).unwrap_or(&absolute);
    let text = below
        .to_str()
        .with_context(|| format!("`{}`: the name is not UTF-8; rename the file", file.display()))?;
    Ok(SafePath::new(text)?)
}
