//! What a run begins or goes on with: recipe, splits, first parameters, and the run as it was found.

use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::order::Order;
use xlstm_manifests::recipe::Recipe;
use xlstm_manifests::rows::Readable as _;
use xlstm_manifests::run_manifest::RUN_NAME;

use super::super::data::{check_same_data, open_validation};
use super::super::initial::Initial;
use super::super::options::{Existing, TrainOptions, resolve_recipe};
use super::Opened;
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};

/// Opens recipe, splits and run, and refuses what contradicts itself.
pub(super) fn open_data(options: &TrainOptions, device: &DeviceInfo, world: u64) -> Result<Opened> {
    let (recipe, train) = resolve_recipe(options, device)?;
    let row_length = u64::from(train.packing().row_length);
    let rows = recipe.rows_per_step(row_length)?;
    if rows < world {
        return Err(TrainError::Usage(format!(
            "expected at least one row for each of {world} ranks, found {rows} rows in a step: raise \
             training.tokens_per_step"
        )));
    }
    let existing = options.existing()?;
    let validation = open_validation(options, existing.as_ref(), &train)?;
    if existing.is_none() {
        check_measured(&recipe, validation.is_some())?;
    }
    let run = options.out.clone().unwrap_or_else(|| default_folder(&recipe, &train.root()));
    let order = train.order(recipe.training.order_seed(), rows);
    check_folder(&run, options.resume)?;
    let initial = Initial::find(options, &recipe)?;
    if let Some(existing) = &existing {
        check_same_run(existing, &recipe, &order)?;
        check_same_data(&existing.manifest, &train)?;
        if let (Some(known), Some((now, path))) = (&existing.manifest.validation, &validation) {
            known.check(now.manifest(), path)?;
        }
    }
    Ok(Opened { recipe, train, validation, existing, initial, run, order, rows })
}

/// Refuses rules about validation where nothing is ever measured.
fn check_measured(recipe: &Recipe, has_split: bool) -> Result<()> {
    let (validation, keep_best) = (&recipe.validation, recipe.checkpoint.keep_best);
    let asked = [
        ("validation.patience", validation.patience > 0),
        ("validation.stop_at_accuracy", validation.stop_at_accuracy > 0.0),
        ("checkpoint.keep_best", keep_best),
    ];
    let Some((key, _)) = asked.into_iter().find(|(_, asked)| *asked) else { return Ok(()) };
    if !has_split {
        return Err(TrainError::Usage(format!(
            "`{key}` needs a validation split, found none: name one with --validation DIR, or set the key to its default"
        )));
    }
    if validation.every_steps == 0 && key != "checkpoint.keep_best" {
        return Err(TrainError::Usage(format!(
            "`{key}` ends a run at a validation, found `validation.every_steps` = 0, which measures at step 0 and at the end \
             alone: set it to the steps between two validations"
        )));
    }
    Ok(())
}

fn default_folder(recipe: &Recipe, root: &Sha256Digest) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let name: String = recipe.name.chars().map(plain).collect();
    let name = name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let root = root.to_string();
    Path::new("runs").join(format!("{name}-{}", &root[..8]))
}

pub(in crate::train) fn check_folder(run: &Path, resume: bool) -> Result<()> {
    match (run.join(RUN_NAME).is_file(), resume) {
        (true, false) => Err(TrainError::file(
            run,
            "no run in this folder",
            "one",
            "add --resume to go on with it, or choose another --out",
        )),
        (false, true) => Err(TrainError::file(
            run,
            format!("a run to go on with (`{RUN_NAME}`)"),
            "none",
            "leave --resume out to begin one, or name the run's folder with --out",
        )),
        _ => Ok(()),
    }
}

/// A resumed run may change its logging, validation, checkpoints and micro-batches, and nothing else.
fn check_same_run(existing: &Existing, recipe: &Recipe, order: &Order) -> Result<()> {
    let mut same = recipe.clone();
    same.name.clone_from(&existing.recipe.name);
    same.checkpoint = existing.recipe.checkpoint.clone();
    same.logging = existing.recipe.logging.clone();
    same.validation = existing.recipe.validation.clone();
    same.training.micro_batch_rows = existing.recipe.training.micro_batch_rows;
    same.training.activation_checkpointing = existing.recipe.training.activation_checkpointing;
    same.description.clone_from(&existing.recipe.description);
    same.paper.clone_from(&existing.recipe.paper);
    if same != existing.recipe {
        return Err(TrainError::Usage(format!(
            "expected the recipe that the run began with ({}), found one that differs in:\n{}\n\
             leave --recipe and --set out to go on with it, or begin a new run with another --out",
            existing.recipe.name,
            differences(&existing.recipe, &same)?
        )));
    }
    if existing.manifest.order.root != order.root || existing.manifest.order == *order {
        return Ok(());
    }
    Err(TrainError::Usage("expected the order of rows that the run began with, found another".into()))
}

fn differences(before: &Recipe, after: &Recipe) -> Result<String> {
    let (before, after) = (before.to_toml()?, after.to_toml()?);
    let changed = before.lines().zip(after.lines()).filter(|(before, after)| before != after);
    Ok(changed.map(|(before, after)| format!("  {before}  →  {after}")).collect::<Vec<_>>().join("\n"))
}
