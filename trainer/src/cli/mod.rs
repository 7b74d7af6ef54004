//! The command line: pure argument structs, and one file for each command.

mod chain;
mod doctor;
mod export;
mod plot;
mod sample;
mod train;

use std::io::Write as _;

use clap::{Args, Parser, Subcommand};
use xlstm_bridge::runtime;

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
    /// List the built-in recipes
    Recipes,
    /// Draw the loss of one or several runs as an SVG
    Plot(plot::PlotArguments),
    /// Follow a validation figure back to parameters, program, recipe, rows, documents and source files
    Chain(chain::ChainArguments),
    /// Generate text with a run's newest checkpoint
    Sample(sample::SampleArguments),
    /// Write a run's parameters for the official package
    Export(export::ExportArguments),
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
struct DeviceArguments {
    /// `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads on the CPU [default: one for each core]
    #[arg(long)]
    threads: Option<usize>,
}

impl DeviceArguments {
    /// Starts libtorch and finds the device.
    fn start(&self) -> anyhow::Result<xlstm_trainer::device::DeviceInfo> {
        let runtime = runtime::initialize(self.threads)?;
        // Before rayon's pool starts, whose threads inherit the arithmetic mode.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(runtime.threads).build_global();
        Ok(xlstm_trainer::device::find(&self.device)?)
    }
}

/// Parses the command line and runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<u8> {
    let cli = Cli::parse();
    match cli.command {
        None => train::run(&cli.train),
        Some(Command::Doctor(arguments)) => doctor::run(&arguments),
        Some(Command::Recipes) => recipes(),
        Some(Command::Plot(arguments)) => plot::run(&arguments),
        Some(Command::Chain(arguments)) => chain::run(&arguments),
        Some(Command::Sample(arguments)) => sample::run(&arguments),
        Some(Command::Export(arguments)) => export::run(&arguments),
    }
}

/// Writes data to stdout; a reader that has gone away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a message to stderr.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn recipes() -> anyhow::Result<u8> {
    for builtin in xlstm_manifests::recipe::builtins() {
        for name in builtin.full_names() {
            let recipe = xlstm_manifests::recipe::load(&name, &[])?;
            print(&format!("{name:<45} {}\n", recipe.paper))?;
        }
    }
    Ok(0)
}
