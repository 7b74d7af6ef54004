//! Going on from the newest checkpoint.

use std::path::Path;

use xlstm_manifests::order::Order;
use xlstm_manifests::run_manifest::CHECKPOINTS_NAME;

use super::super::options::TrainOptions;
use super::{Built, Opened, Resumed};
use crate::checkpoint::{self, MODEL_NAME, OPTIMIZER_NAME};
use crate::communicator::Communicator;
use crate::error::{Result, TrainError};
use crate::model::{Model, check_sizes};
use crate::optimizer::AdamW;
use crate::run::check_finite;
use crate::tensor_file::TensorFile;

/// Refuses to go on from a checkpoint that was altered, or of another model than the recipe's, before one of the recipe's
/// sizes is made.
pub(super) fn check_checkpoint(opened: &Opened, options: &TrainOptions) -> Result<()> {
    if !options.resume {
        return Ok(());
    }
    let checkpoints = opened.run.join(CHECKPOINTS_NAME);
    let Some(step) = checkpoint::list(&checkpoints)?.pop() else { return Ok(()) };
    let folder = checkpoint::folder_of(&checkpoints, step);
    checkpoint::verify(&folder, &checkpoint::open(&folder)?)?;
    check_sizes(&opened.recipe.model, &TensorFile::open(&folder.join(MODEL_NAME))?)
}

/// Loads the newest checkpoint of a run that goes on, and gives all ranks the same parameters.
pub(super) fn resume(
    opened: &Opened,
    options: &TrainOptions,
    built: &mut Built,
    ranks: &dyn Communicator,
) -> Result<Resumed> {
    let Built { model, optimizer } = built;
    let resumed = if options.resume {
        let before = opened.existing.as_ref().map_or(0, |existing| existing.manifest.updates_before());
        load_newest(&opened.run.join(CHECKPOINTS_NAME), (model, optimizer), &opened.order, before)?
    } else {
        Resumed::default()
    };
    let tensors: Vec<_> =
        model.parameters().iter().map(|parameter| parameter.tensor.shallow_clone()).collect();
    ranks.broadcast(&tensors)?;
    ranks.sum_gradients_of(&optimizer.tensors())?;
    Ok(resumed)
}

/// Loads the newest checkpoint, which was checked before; there may be none yet. The optimizer had done so many updates
/// `before` the run.
fn load_newest(
    checkpoints: &Path,
    (model, optimizer): (&Model, &mut AdamW),
    order: &Order,
    before: u64,
) -> Result<Resumed> {
    let Some(step) = checkpoint::list(checkpoints)?.pop() else { return Ok(Resumed::default()) };
    let folder = checkpoint::folder_of(checkpoints, step);
    // Its bytes were compared with their digests in `check_checkpoint`.
    let state = checkpoint::open(&folder)?;
    if state.train_root != order.root {
        let hint = "this checkpoint belongs to another run: give the run its own folder back";
        let (expected, found) = (format!("root {}", order.root), format!("root {}", state.train_root));
        return Err(TrainError::file(&folder, expected, found, hint));
    }
    model.load(&TensorFile::open(&folder.join(MODEL_NAME))?, "")?;
    check_finite(model, &folder.join(MODEL_NAME))?;
    optimizer.load(&TensorFile::open(&folder.join(OPTIMIZER_NAME))?, before + state.step)?;
    Ok(Resumed { step: state.step, tokens: state.tokens })
}
