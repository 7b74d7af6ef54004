//! `xlstm-train --manifest DIR …`: one training run.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use xlstm_manifests::printable;
use xlstm_manifests::run_manifest::DatasetRef;
use xlstm_trainer::command_line::on_ranks;
use xlstm_trainer::communicator::Communicator;
use xlstm_trainer::device::DeviceInfo;
use xlstm_trainer::launch;
use xlstm_trainer::signals::Signals;
use xlstm_trainer::train::{Outcome, RecordSteps, TrainOptions, describe, resolve_recipe, setup};

use super::{DeviceArguments, print, print_json, say};

/// One training run.
#[derive(Debug, Args)]
pub(super) struct TrainArguments {
    /// Folder or manifest of the training split, or the folder of a dataset with `train` and `validation` in it
    #[arg(long, value_name = "DIR")]
    manifest: Option<PathBuf>,
    /// Folder or manifest of the validation split
    #[arg(long, value_name = "DIR")]
    validation: Option<PathBuf>,
    /// A built-in recipe (`xlstm-train recipes`) or a TOML file [default: chosen for device and corpus, and printed]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Change a value of the recipe, such as `training.steps=100`; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The run's folder [default: runs/RECIPE-ROOT]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Go on with the run in --out from its newest checkpoint
    #[arg(long, requires = "out")]
    resume: bool,
    /// On a GPU: record a step as one CUDA graph and replay it, which small models gain from; `auto`: where a step is one
    /// micro-batch of one process that takes little of the GPU's memory
    #[arg(long, value_enum, default_value_t = RecordSteps::Auto)]
    cuda_graph: RecordSteps,
    #[command(flatten)]
    launch: launch::Options,
    /// Print the resolved recipe as TOML and stop
    #[arg(long)]
    print_config: bool,
    /// Print parameters, memory by part, tokens and time, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object about the run's end on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

impl TrainArguments {
    fn options(&self) -> TrainOptions {
        TrainOptions {
            manifest: self.manifest.clone(),
            validation: self.validation.clone(),
            recipe: self.recipe.clone(),
            overrides: self.set.clone(),
            out: self.out.clone(),
            resume: self.resume,
            cuda_graph: self.cuda_graph,
        }
    }
}

/// Trains; returns the exit code.
pub(super) fn run(arguments: &TrainArguments) -> anyhow::Result<u8> {
    let options = arguments.options();
    if arguments.print_config
        && let (Some(name), None) = (&arguments.recipe, &arguments.manifest)
    {
        // Needs neither data nor device.
        print(&xlstm_manifests::recipe::load(name, &arguments.set)?.to_toml()?)?;
        return Ok(0);
    }
    if arguments.print_config || arguments.dry_run {
        return plan(arguments, &options);
    }
    on_ranks(&arguments.launch, &arguments.device, |device, communicator| {
        train(arguments, &options, device, communicator)
    })
}

/// Prints what a run would be.
fn plan(arguments: &TrainArguments, options: &TrainOptions) -> anyhow::Result<u8> {
    let device = arguments.device.start()?;
    let (recipe, dataset, path) = resolve_recipe(options, &device)?;
    let manifest = dataset.manifest();
    if arguments.print_config {
        print(&recipe.to_toml()?)?;
    }
    if arguments.dry_run {
        let row_length = u64::from(manifest.packing.row_length);
        let text = describe(&recipe, &DatasetRef::new(manifest, &path), row_length, &device)?;
        print(&format!("{text}\n"))?;
    }
    Ok(0)
}

/// Trains as one rank, of one or several.
fn train(
    arguments: &TrainArguments,
    options: &TrainOptions,
    device: &DeviceInfo,
    communicator: Box<dyn Communicator>,
) -> anyhow::Result<u8> {
    let signals = Signals::listen()?;
    let first_rank = communicator.rank() == 0;
    let mut trainer = setup(options, device, communicator, signals)?;
    if first_rank {
        if arguments.recipe.is_none() && !arguments.resume {
            say(&format!(
                "no --recipe: this one was chosen for the device and the corpus\n\n{}",
                trainer.recipe().to_toml()?
            ));
        }
        say(&trainer.summary(device)?);
    }
    let outcome = trainer.run()?;
    if first_rank {
        finish(arguments, &trainer, outcome)?;
    }
    Ok(match outcome {
        Outcome::Finished { .. } => 0,
        Outcome::Stopped { signal, .. } => 128 + signal,
    })
}

fn finish(
    arguments: &TrainArguments,
    trainer: &xlstm_trainer::train::Trainer,
    outcome: Outcome,
) -> anyhow::Result<()> {
    let run = trainer.folder().display().to_string();
    let shown = printable::text(&run);
    let (status, validation) = match outcome {
        Outcome::Finished { validation } => {
            say(&format!("finished: {shown}, step {}", trainer.step_count()));
            ("finished", validation)
        }
        Outcome::Stopped { step, .. } => {
            say(&format!(
                "stopped after step {step}, saved; go on with `xlstm-train --resume --out {shown}`"
            ));
            ("stopped", None)
        }
    };
    if arguments.json {
        let step = trainer.step_count();
        print_json(&json!({"run": run, "status": status, "step": step, "validation_loss": validation}))?;
    }
    Ok(())
}
