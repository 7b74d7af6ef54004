//! From arguments to a trainer that is ready to run.
//!
//! ```text
//! open_data ─► agree ─► build ─► resume ─► assemble
//! recipe,      ranks     model,    newest     Trainer
//! splits, run  alike     moments   checkpoint
//! ```
//! Everything that can be refused is refused before the first file of a new run is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xlstm_bridge::runtime;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::atomic::{FolderLock, write_atomic};
use xlstm_manifests::mixed_rows::Mixture;
use xlstm_manifests::order::Order;
use xlstm_manifests::recipe::{ModelSize, Precision, Recipe};
use xlstm_manifests::rows::{Readable as _, Rows};
use xlstm_manifests::run_manifest::{
    CHECKPOINTS_NAME, DatasetRef, RECIPE_NAME, RUN_FORMAT, RUN_NAME, RecipeRef, RunManifest, Session,
    path_from,
};

use super::data::{check_same_data, open_validation, say_of_validation};
use super::early::EarlyStop;
use super::initial::Initial;
use super::options::{Existing, RecordSteps, TrainOptions, resolve_recipe};
use super::plan::{memory_estimate, micro_batch_rows};
use super::recorded::Recording;
use super::report::{RunLog, now};
use super::trainer::Trainer;
use crate::checkpoint::{self, MODEL_NAME, OPTIMIZER_NAME, Retention, Writer};
use crate::communicator::Communicator;
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::loader::BatchShape;
use crate::metrics::{RowLog, TrainingProgress, peak_operations};
use crate::model::{Model, Placement, check_sizes};
use crate::optimizer::AdamW;
use crate::run::check_finite;
use crate::signals::Signals;
use crate::tensor_file::TensorFile;

/// A recorded step's memory stays its own: it is recorded where it needs less than one part in so many of the GPU's.
const RECORDED_SHARE: u64 = 4;

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

/// Whether steps are recorded, or why not.
fn recording(
    opened: &Opened,
    agreed: &Agreed,
    asked: RecordSteps,
    device: &DeviceInfo,
    world: u64,
) -> Result<Recording> {
    let obstacle = match device.device {
        tch::Device::Cuda(_) if asked == RecordSteps::Off => Some("asked for by --cuda-graph off"),
        tch::Device::Cuda(_) if world > 1 => Some("several ranks"),
        tch::Device::Cuda(_) if agreed.micro_batch_rows < opened.rows => {
            Some("a step is several micro-batches")
        }
        tch::Device::Cuda(_) if opened.recipe.training.activation_checkpointing => {
            Some("activations are checkpointed")
        }
        tch::Device::Cuda(_) if opened.recipe.model.input_width() > 0 => Some("inputs are numbers"),
        tch::Device::Cuda(_) if opened.recipe.training.has_dropout() => {
            Some("dropout follows from each step's rows")
        }
        tch::Device::Cuda(_) => None,
        _ => Some("no GPU"),
    };
    match (obstacle, asked) {
        (None, RecordSteps::On) => Ok(Recording::planned(true)),
        (Some(obstacle), RecordSteps::On) => {
            Err(TrainError::Usage(format!("--cuda-graph on: steps cannot be recorded here: {obstacle}")))
        }
        (Some(obstacle), _) => Ok(Recording::Never(obstacle.into())),
        (None, _) => {
            let tokens = opened.rows * u64::from(opened.train.packing().row_length);
            let needed = memory_estimate(&opened.recipe, tokens, device)?.total();
            let little = device.memory.is_some_and(|memory| needed < memory / RECORDED_SHARE);
            Ok(if little {
                Recording::planned(false)
            } else {
                Recording::Never("large steps gain nothing by it".into())
            })
        }
    }
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

/// Opens recipe, splits and run, and refuses what contradicts itself.
fn open_data(options: &TrainOptions, device: &DeviceInfo, world: u64) -> Result<Opened> {
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

/// Refuses to go on from a checkpoint that was altered, or of another model than the recipe's, before one of the recipe's
/// sizes is made.
fn check_checkpoint(opened: &Opened, options: &TrainOptions) -> Result<()> {
    if !options.resume {
        return Ok(());
    }
    let checkpoints = opened.run.join(CHECKPOINTS_NAME);
    let Some(step) = checkpoint::list(&checkpoints)?.pop() else { return Ok(()) };
    let folder = checkpoint::folder_of(&checkpoints, step);
    checkpoint::verify(&folder, &checkpoint::open(&folder)?)?;
    check_sizes(&opened.recipe.model, &TensorFile::open(&folder.join(MODEL_NAME))?)
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

/// Loads the newest checkpoint of a run that goes on, and gives all ranks the same parameters.
fn resume(
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

fn default_folder(recipe: &Recipe, root: &Sha256Digest) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let name: String = recipe.name.chars().map(plain).collect();
    let name = name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let root = root.to_string();
    Path::new("runs").join(format!("{name}-{}", &root[..8]))
}

pub(super) fn check_folder(run: &Path, resume: bool) -> Result<()> {
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

fn prepare_folder(run: &Path) -> Result<FolderLock> {
    fs_err::create_dir_all(run)?;
    let lock = FolderLock::acquire(&run.join(".lock"))?;
    checkpoint::clean(&run.join(CHECKPOINTS_NAME))?;
    Ok(lock)
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

/// Writes the run manifest, with a session more.
fn store_run(opened: &Opened, first_step: u64, world: u64, device: &DeviceInfo) -> Result<()> {
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
