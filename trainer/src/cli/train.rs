//! `xlstm-train --manifest DIR …`: one training run.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use xlstm_manifests::{printable, recipe};
use xlstm_trainer::command_line::on_ranks;
use xlstm_trainer::communicator::Communicator;
use xlstm_trainer::device::DeviceInfo;
use xlstm_trainer::launch;
use xlstm_trainer::signals::Signals;
use xlstm_trainer::train::{Elsewhere, Outcome, RecordSteps, TrainOptions, describe, resolve_recipe, setup};

use super::{DeviceArguments, print, print_json, say};

/// One training run.
#[derive(Debug, Args)]
pub(super) struct TrainArguments {
    /// Folder or manifest of the training split, or the folder of a dataset with `train` and `validation` in it; given several
    /// times, rows are mixed by weight, a decimal number [default: 1]
    #[arg(long, value_name = "DIR[=WEIGHT]")]
    manifest: Vec<PathBuf>,
    /// Folder or manifest of the validation split
    #[arg(long, value_name = "DIR")]
    validation: Option<PathBuf>,
    /// A built-in recipe (`xlstm-train recipes`) or a TOML file [default: chosen for device and corpus, and printed]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Change a value of the recipe, such as `training.steps=100`; may be given again (`xlstm-train recipes --keys` has all)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    often: OftenSet,
    /// The run's folder [default: runs/RECIPE-ROOT]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Go on with the run in --out from its newest checkpoint
    #[arg(long, requires = "out")]
    resume: bool,
    /// Begin with the parameters of this run (its newest checkpoint), checkpoint or safetensors file
    #[arg(long, value_name = "RUN|FILE", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    /// With --init-from a run or checkpoint: begin with its moments of the optimizer too
    #[arg(long, requires = "init_from")]
    init_optimizer: bool,
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
    /// With --dry-run: plan for so many GPUs that are not here, such as `"A100 40GB" x8`
    #[arg(long = "for", value_names = ["GPU", "xN"], num_args = 1..=2, requires = "dry_run")]
    elsewhere: Vec<String>,
    /// Print one JSON object about the run's end on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Keys that everyone sets.
#[derive(Debug, Args)]
struct OftenSet {
    /// What the recipe is called: `--set name=NAME`; the run's folder is called by it [default: the recipe's]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    name: Option<String>,
    /// Seed of all that is drawn: `--set training.seed=N`
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Highest learning rate: `--set optimizer.learning_rate=RATE`
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Optimizer steps: `--set training.steps=N`
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
}

impl OftenSet {
    /// As overrides of the recipe.
    fn overrides(&self) -> Vec<String> {
        let values = [
            // In quotes, so that no name is taken for a number.
            self.name.as_ref().map(|name| format!("name={}", serde_json::Value::from(name.as_str()))),
            self.seed.map(|seed| format!("training.seed={seed}")),
            self.learning_rate.map(|rate| format!("optimizer.learning_rate={rate:?}")),
            self.steps.map(|steps| format!("training.steps={steps}")),
        ];
        values.into_iter().flatten().collect()
    }
}

impl TrainArguments {
    /// What `--set` and the flags for single keys ask for.
    fn overrides(&self) -> anyhow::Result<Vec<String>> {
        let key = |text: &str| text.split('=').next().unwrap_or_default().trim().to_owned();
        let own = self.often.overrides();
        for flag in &own {
            if let Some(set) = self.set.iter().find(|set| key(set) == key(flag)) {
                anyhow::bail!(
                    "expected one value of `{}`, found `--set {set}` and a flag that means `--set {flag}`: leave one out",
                    key(flag)
                );
            }
        }
        Ok(self.set.iter().cloned().chain(own).collect())
    }

    fn options(&self) -> anyhow::Result<TrainOptions> {
        Ok(TrainOptions {
            manifests: self.manifest.clone(),
            validation: self.validation.clone(),
            recipe: self.recipe.clone(),
            overrides: self.overrides()?,
            out: self.out.clone(),
            resume: self.resume,
            cuda_graph: self.cuda_graph,
            init_from: self.init_from.clone(),
            init_optimizer: self.init_optimizer,
        })
    }
}

/// Trains; returns the exit code.
pub(super) fn run(arguments: &TrainArguments) -> anyhow::Result<u8> {
    let options = arguments.options()?;
    if arguments.print_config
        && let (Some(name), []) = (&arguments.recipe, arguments.manifest.as_slice())
    {
        // Needs neither data nor device.
        print(&recipe::load(name, &options.overrides)?.to_commented_toml()?)?;
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
    let elsewhere = match arguments.elsewhere.as_slice() {
        [] => None,
        words => Some(Elsewhere::parse(words)?),
    };
    let device = elsewhere.as_ref().map_or(&device, Elsewhere::device);
    let (recipe, train) = resolve_recipe(options, device)?;
    if arguments.print_config {
        print(&recipe.to_commented_toml()?)?;
    }
    if arguments.dry_run {
        say_defaults(options)?;
        let text = match &elsewhere {
            Some(elsewhere) => elsewhere.describe(&recipe, &train)?,
            None => describe(&recipe, &train, device)?,
        };
        print(&format!("{text}\n"))?;
    }
    Ok(0)
}

/// Says what a recipe file left to the defaults.
fn say_defaults(options: &TrainOptions) -> anyhow::Result<()> {
    let Some(name) = &options.recipe else { return Ok(()) };
    let loaded = recipe::load_described(name, &options.overrides)?;
    if loaded.from_file && !loaded.defaulted.is_empty() {
        let (count, name) = (loaded.defaulted.len(), printable::text(name));
        say(&format!("`{name}` leaves {count} keys to their defaults (`xlstm-train recipes --keys`):"));
        for value in &loaded.defaulted {
            say(&format!("  {}", printable::text(value)));
        }
    }
    Ok(())
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
        if !arguments.resume {
            say_defaults(options)?;
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
