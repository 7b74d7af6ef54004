//! The command line: pure argument structs, and one file for each command.

mod chain;
mod doctor;
mod export;
mod import;
mod plot;
mod recipes;
mod selfcheck;
mod sweep;
mod train;

use clap::{Parser, Subcommand};
use xlstm_trainer::command_line::{
    DeviceArguments, GENERATION_MEMORY, GenerateArguments, LOADING_MEMORY, TRAINING_MEMORY, advise, print,
    print_json, say,
};

/// Train xLSTM models on shards that `xlstm-data` prepared
#[derive(Debug, Parser)]
#[command(name = "xlstm-train", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::TrainArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print versions, devices, kernels and process groups, and what is missing and how to get it
    Doctor(doctor::DoctorArguments),
    /// List the built-in recipes, or say what the keys of a recipe mean
    Recipes(recipes::RecipesArguments),
    /// Compare every kernel for this GPU with float64, before a run is trusted
    Selfcheck(selfcheck::SelfcheckArguments),
    /// Draw the loss of one or several runs as an SVG
    Plot(plot::PlotArguments),
    /// Follow a validation figure back to parameters, program, recipe, rows, documents and source files
    Chain(chain::ChainArguments),
    /// Train an experiment's grid: tasks, variants, learning rates and seeds, several runs at once
    Sweep(sweep::SweepArguments),
    /// Measure a run of a sweep; `sweep` starts it
    #[command(hide = true)]
    SweepMeasure(sweep::MeasureArguments),
    /// Generate text with a run's newest checkpoint
    Sample(GenerateArguments),
    /// Write a run's parameters for the official package or for Hugging Face transformers
    Export(export::ExportArguments),
    /// Read a model of Hugging Face transformers (Llama, GPT-2, Mamba, RWKV-4) into a file that takes a run's place
    Import(import::ImportArguments),
}

/// Parses the command line and runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<u8> {
    let cli = Cli::parse();
    match cli.command {
        None => advise(TRAINING_MEMORY, train::run(&cli.train)),
        Some(Command::Doctor(arguments)) => doctor::run(&arguments),
        Some(Command::Recipes(arguments)) => recipes::run(&arguments),
        Some(Command::Selfcheck(arguments)) => selfcheck::run(&arguments),
        Some(Command::Plot(arguments)) => plot::run(&arguments),
        Some(Command::Chain(arguments)) => chain::run(&arguments),
        Some(Command::Sweep(arguments)) => sweep::run(&arguments),
        Some(Command::SweepMeasure(arguments)) => sweep::measure(&arguments),
        Some(Command::Sample(arguments)) => advise(GENERATION_MEMORY, arguments.run()),
        Some(Command::Export(arguments)) => advise(LOADING_MEMORY, export::run(&arguments)),
        Some(Command::Import(arguments)) => advise(LOADING_MEMORY, import::run(&arguments)),
    }
}
