//! From arguments to a trainer that is ready to run.
//!
//! ```text
//! open_data ─► agree ─► build ─► resume ─► assemble
//! recipe,      ranks     model,    newest     Trainer
//! splits, run  alike     moments   checkpoint
//! ```
//! | file | what it does |
//! |---|---|
//! | `open` | opens recipe, splits and run, and compares them |
//! | `folder` | makes the run's folder and its manifest |
//! | `resume` | goes on from the newest checkpoint |
//! | `recording` | decides whether steps are recorded |
//!
//! Everything that can be refused is refused before the first file of a new run is written.

mod folder;
mod open;
mod recording;
mod resume;

use std::path::PathBuf;
use std::sync::Arc;

use xlstm_bridge::runtime;
use xlstm_manifests::atomic::FolderLock;
use xlstm_manifests::mixed_rows::Mixture;
use xlstm_manifests::order::Order;
use xlstm_manifests::recipe::{Precision, Recipe};
use xlstm_manifests::rows::{Readable as _, Rows};
use xlstm_manifests::run_manifest::CHECKPOINTS_NAME;

use super::data::say_of_validation;
use super::early::EarlyStop;
use super::initial::Initial;
use super::options::{Existing, TrainOptions};
use super::plan::micro_batch_rows;
use super::recorded::Recording;
use super::report::RunLog;
use super::trainer::Trainer;
use crate::checkpoint::{self, Retention, Writer};
use crate::communicator::Communicator;
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::Result;
use crate::loader::BatchShape;
use crate::metrics::{RowLog, TrainingProgress, peak_operations};
use crate::model::{Model, Placement};
use crate::optimizer::AdamW;
use crate::signals::Signals;

use folder::{prepare_folder, store_run};
pub(super) use open::check_folder;
use open::open_data;
use recording::recording;
use resume::{check_checkpoint, resume};

/// A trainer for these options.
///
/// # Errors
/// When anything does not fit: see the module.
pub fn setup(
    options: &TrainOptions,
    device: &DeviceInfo,
    communicator: Box<dyn Communicator>,
    signals: Signals,
) -> Result<Trainer> {
    let ranks = communicator.as_ref();
    let opened = open_data(options, device, ranks.world_size())?;
    if ranks.rank() == 0 {
        say_of_validation(opened.validation.as_ref(), &opened.train);
    }
    let agreed = agree(&opened, options, device, ranks)?;
    check_checkpoint(&opened, options)?;
    let mut built = build(&opened.recipe, device)?;
    if let Some(initial) = &opened.initial {
        initial.load(&built.model, &mut built.optimizer)?;
    }
    let resumed = resume(&opened, options, &mut built, ranks)?;
    if ranks.rank() == 0 {
        store_run(&opened, resumed.step + 1, ranks.world_size(), device)?;
    }
    let recording = recording(&opened, &agreed, options.cuda_graph, device, ranks.world_size())?;
    assemble(opened, (agreed, recording), built, &resumed, (device, communicator, signals))
}

/// Everything that is read before a file of the run is written.
struct Opened {
    recipe: Recipe,
    train: Mixture,
    validation: Option<(Box<dyn Rows>, PathBuf)>,
    /// The run as it was found.
    existing: Option<Existing>,
    /// The parameters that a new run begins with, where they are not drawn.
    initial: Option<Initial>,
    /// The run's folder.
    run: PathBuf,
    order: Order,
    /// Rows of a step, over all ranks.
    rows: u64,
}

/// What holds for all ranks.
struct Agreed {
    /// Rows that a rank computes at a time.
    micro_batch_rows: u64,
    /// Holds the run's folder, on the first rank.
    lock: Option<FolderLock>,
}

struct Built {
    model: Model,
    optimizer: AdamW,
}

/// How far a run has come.
#[derive(Default)]
struct Resumed {
    step: u64,
    tokens: u64,
}

/// Compares what the ranks have opened, and makes the run's folder.
fn agree(
    opened: &Opened,
    options: &TrainOptions,
    device: &DeviceInfo,
    ranks: &dyn Communicator,
) -> Result<Agreed> {
    let Opened { recipe, train, run, .. } = opened;
    ranks.run_is_in(run);
    let step = if options.resume { checkpoint::list(&run.join(CHECKPOINTS_NAME))?.pop() } else { None };
    let program = environment::program().binary_sha256;
    let validation = opened.validation.as_ref().map(|(data, _)| data.manifest().root.to_string());
    ranks.agree(&[
        ("program", program.map_or_else(String::new, |sha256| sha256.to_string())),
        ("recipe", recipe.to_toml()?),
        ("training split's root", train.root().to_string()),
        ("validation split's root", validation.unwrap_or_else(|| "none".into())),
        ("step to go on from", step.unwrap_or(0).to_string()),
        ("run's folder", run.display().to_string()),
        ("first parameters", opened.initial.as_ref().map_or_else(|| "drawn".into(), Initial::digest)),
    ])?;
    let row_length = u64::from(train.packing().row_length);
    let own = micro_batch_rows(recipe, opened.rows.div_ceil(ranks.world_size()), row_length, device)?;
    // Ranks that see different amounts of free memory still cut a step alike.
    let all = ranks.gather(own as f64)?;
    let micro_batch_rows = all.into_iter().fold(own as f64, f64::min) as u64;
    let lock = if ranks.rank() == 0 { Some(prepare_folder(run)?) } else { None };
    ranks.barrier()?;
    Ok(Agreed { micro_batch_rows, lock })
}

/// The model with first values, and fresh moments.
fn build(recipe: &Recipe, device: &DeviceInfo) -> Result<Built> {
    runtime::allow_tf32(recipe.training.precision == Precision::Tf32)?;
    let model = Model::new(
        &recipe.model,
        Placement::of(recipe, device.device),
        recipe.training.initialization_seed(),
    )?;
    let optimizer = AdamW::new(&model, &recipe.optimizer)?;
    Ok(Built { model, optimizer })
}

/// Puts the trainer together.
fn assemble(
    opened: Opened,
    (agreed, recording): (Agreed, Recording),
    built: Built,
    resumed: &Resumed,
    (device, communicator, signals): (&DeviceInfo, Box<dyn Communicator>, Signals),
) -> Result<Trainer> {
    let Opened { recipe, run, train, validation, order, initial, .. } = opened;
    let began_with = initial.as_ref().map(Initial::label);
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let peak = peak_operations(&device.name).map(|peak| peak * world as f64);
    let utilization = peak.map(|peak| recipe.operations_per_token() as f64 / peak);
    let progress = TrainingProgress::new(recipe.training.steps, resumed.step, rank == 0);
    let report = RunLog::new(&run, rank == 0, recipe.logging.tensorboard, progress, utilization)?;
    let log = recipe.logging.rows.then(|| RowLog::append(&run, rank, world)).transpose()?;
    let retention = Retention {
        keep_last: usize::try_from(recipe.checkpoint.keep_last).unwrap_or(usize::MAX),
        keep_every: recipe.checkpoint.keep_every_steps,
    };
    let writer = (rank == 0).then(|| Writer::new(run.join(CHECKPOINTS_NAME), retention));
    let of_numbers = recipe.model.input_width() > 0;
    let early = EarlyStop::new(&recipe.validation, &run, resumed.step)?;
    let shape = BatchShape {
        rows: usize::try_from(agreed.micro_batch_rows).unwrap_or(1),
        context: usize::try_from(recipe.training.context_length).unwrap_or(1),
        resets: recipe.training.reset_at_document_boundaries,
    };
    Ok(Trainer {
        recipe,
        run,
        train: Arc::new(train),
        validation: validation.map(|(data, _)| data),
        order,
        shape,
        model: built.model,
        optimizer: built.optimizer,
        communicator,
        signals,
        writer,
        recording,
        report: report.on(device.device).of_squared_error(of_numbers),
        step: resumed.step,
        tokens: resumed.tokens,
        saved: (resumed.step > 0).then_some(resumed.step),
        saved_at: std::time::Instant::now(),
        began_with,
        last_validation: None,
        early,
        rows: log,
        _lock: agreed.lock,
    })
}
