//! Files and folders of this machine: the plans that they make. Which files they are is [`super::walk`]'s.
//!
//! Nobody published a digest of such files, so the manifest records theirs and says that they were compared with
//! nothing. What documents say of themselves (`--license-field`, `--source-field`) is kept by document.

use std::path::PathBuf;

use xlstm_manifests::manifest::{Holdout, Layout, Licence, Selection, Source, Tokenizer};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Sha256Digest, printable};

use super::request::{Common, LocalRequest};
use super::walk::{self, ENDINGS, Found};
use super::{packing, refuse};
use crate::plan::{Plan, PlannedInput};
use crate::sources::Fields;
use crate::split::SplitSpec;

pub(super) fn plans(
    request: &LocalRequest,
    common: &Common,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Plan>> {
    check_split(&request.split)?;
    let Found { inputs, base, mut notes } = walk::inputs(&request.paths)?;
    if inputs.is_empty() {
        let paths: Vec<_> = request.paths.iter().map(|path| format!("`{}`", printable::path(path))).collect();
        let passed = notes.iter().map(|note| format!("; {note}")).collect::<String>();
        let paths = paths.join(", ");
        return Err(refuse(format!(
            "no input: expected files ending in {ENDINGS} in {paths}, found none{passed}"
        )));
    }
    notes.iter_mut().for_each(|note| *note += &format!("; read are {ENDINGS}"));
    let fields = Fields {
        text: request.text_field.clone(),
        set: request.set_field.clone(),
        id: request.id_field.clone(),
        license: request.license_field.clone(),
        source: request.source_field.clone(),
        ..Fields::default()
    };
    let whole = OnThisMachine {
        profile: "local",
        licences: vec![stated_license(request.license.as_deref())?.unwrap_or_else(no_license)],
        text_field: Some(request.text_field.clone()),
        fields,
        inputs,
        inputs_folder: Some(base),
        notes,
    };
    whole.plans(&request.split, request.holdout.as_deref(), common, tokenizer)
}

/// What whoever prepares files says of their license (`--license`).
pub(super) fn stated_license(license: Option<&str>) -> anyhow::Result<Option<Licence>> {
    let Some(license) = license.map(str::trim) else { return Ok(None) };
    if license.is_empty() {
        return Err(refuse("--license: expected a license such as CC-BY-4.0, found nothing"));
    }
    // An identifier would be taken for one that somebody looked up.
    Ok(Some(statement("whoever prepared these files, not checked", license)))
}

/// What stands where nobody says anything.
pub(super) fn no_license() -> Licence {
    statement("nobody", "local files carry no licence statement")
}

fn statement(claimed_by: &str, statement: &str) -> Licence {
    Licence { claimed_by: claimed_by.into(), statement: statement.into(), spdx: None }
}

/// Folders of the output folder that are no splits.
const TAKEN: [&str; 2] = ["parts", "downloads"];

/// Whether `name` is a plain name, as a split's folder needs it.
#[must_use]
pub fn is_split_name(name: &str) -> bool {
    let plain = SafePath::new(name).is_ok_and(|path| !path.as_str().contains(['/', '\\']));
    plain && !TAKEN.contains(&name) && !name.starts_with('.')
}

/// A split is a folder of its own in the output folder, so its name must be a plain one.
pub(super) fn check_split(split: &str) -> anyhow::Result<()> {
    if is_split_name(split) {
        return Ok(());
    }
    let why = if TAKEN.contains(&split) { ", a name that the output folder uses itself" } else { "" };
    Err(refuse(format!(
        "--split `{}`{why}: expected a plain name such as train, validation or test",
        printable::text(split)
    )))
}

/// What a dataset made from files of this machine is, before a holdout divides it.
pub(super) struct OnThisMachine {
    pub(super) profile: &'static str,
    pub(super) licences: Vec<Licence>,
    pub(super) text_field: Option<String>,
    pub(super) fields: Fields,
    pub(super) inputs: Vec<PlannedInput>,
    pub(super) inputs_folder: Option<PathBuf>,
    pub(super) notes: Vec<String>,
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
                    licences: self.licences.clone(),
                    generator: None,
                    claimed: None,
                },
                selection: Selection {
                    text_field: self.text_field.clone(),
                    set_field: self.fields.set.clone(),
                    id_field: self.fields.id.clone(),
                    license_field: self.fields.license.clone(),
                    source_field: self.fields.source.clone(),
                    exclude_sets: common.exclude_sets.clone(),
                    max_tokens: common.max_tokens,
                    holdout,
                    drop_duplicates: common.drop_duplicates.as_ref().map(|copies| copies.selection()),
                    on_bad_record: common.on_bad_record(),
                },
                tokenizer: tokenizer.clone(),
                packing: packing(Layout::Packed, common),
                part: None,
                plan: Sha256Digest::of(b""),
                plan_without_skip: None,
            },
            inputs: self.inputs.clone(),
            fields: self.fields.clone(),
            remote: None,
            inputs_folder: self.inputs_folder.clone(),
            notes: self.notes.clone(),
            expected_tokens: None,
        };
        Ok(sides(split, holdout)?.into_iter().map(plan).collect())
    }
}

/// The splits that a holdout makes: train and validation; or the one `split` without.
pub(super) fn sides(split: &str, holdout: Option<&str>) -> anyhow::Result<Vec<(String, Option<Holdout>)>> {
    let Some(fraction) = holdout else { return Ok(vec![(split.to_owned(), None)]) };
    if !fraction.parse::<f64>().is_ok_and(|value| value > 0.0 && value < 1.0) {
        return Err(refuse(format!(
            "--holdout {fraction}: expected a fraction above 0 and below 1, such as 0.01"
        )));
    }
    let side = |held_out| Some(Holdout { fraction: fraction.to_owned(), held_out });
    Ok(vec![("train".to_owned(), side(false)), ("validation".to_owned(), side(true))])
}
