//! A run's folder: its lock, its recipe, its manifest.

use std::path::Path;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::atomic::{FolderLock, write_atomic};
use xlstm_manifests::recipe::ModelSize;
use xlstm_manifests::run_manifest::{
    CHECKPOINTS_NAME, DatasetRef, RECIPE_NAME, RUN_FORMAT, RecipeRef, RunManifest, Session, path_from,
};

use super::super::report::now;
use super::Opened;
use crate::checkpoint;
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::Result;

pub(super) fn prepare_folder(run: &Path) -> Result<FolderLock> {
    fs_err::create_dir_all(run)?;
    let lock = FolderLock::acquire(&run.join(".lock"))?;
    checkpoint::clean(&run.join(CHECKPOINTS_NAME))?;
    Ok(lock)
}

/// Writes the run manifest, with a session more.
pub(super) fn store_run(opened: &Opened, first_step: u64, world: u64, device: &DeviceInfo) -> Result<()> {
    let Opened { recipe, run, .. } = opened;
    let program = environment::program();
    let mut manifest = match &opened.existing {
        Some(existing) => existing.manifest.clone(),
        None => {
            let text = recipe.to_toml()?;
            write_atomic(&run.join(RECIPE_NAME), text.as_bytes())?;
            RunManifest {
                format: RUN_FORMAT.into(),
                version: 1,
                train: opened.train.reference(run),
                mixture: if opened.order.is_mixed() { opened.train.references(run) } else { Vec::new() },
                validation: opened
                    .validation
                    .as_ref()
                    .map(|(data, path)| DatasetRef::new(data.manifest(), &path_from(run, path))),
                recipe: RecipeRef { name: recipe.name.clone(), sha256: Sha256Digest::of(text.as_bytes()) },
                order: opened.order.clone(),
                initialization_seed: recipe.training.initialization_seed(),
                initialized_from: opened.initial.as_ref().map(|initial| initial.record(run)),
                parameters: ModelSize::of(&recipe.model).parameters,
                program: program.clone(),
                sessions: Vec::new(),
            }
        }
    };
    manifest.version = manifest.version_needed();
    manifest.sessions.push(Session {
        first_step,
        world,
        device: device.name.clone(),
        precision: recipe.training.precision.name().into(),
        started_at: now() as u64,
        program,
    });
    manifest.store(run)?;
    Ok(())
}
