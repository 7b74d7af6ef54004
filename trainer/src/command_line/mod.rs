//! What the command lines of `xlstm-train` and `xlstm-eval` have in common.

mod generate;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use xlstm_bridge::runtime;
use xlstm_kernels::cuda::Architecture;
use xlstm_manifests::printable;

use crate::communicator::Communicator;
use crate::device::{self, DeviceInfo};
use crate::error::{self, TrainError};
use crate::guard::guarded_any;
use crate::launch::{self, Place};

pub use generate::{GenerateArguments, complete};

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct DeviceArguments {
    /// `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads on the CPU [default: one for each core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// On a GPU: `auto` uses this program's kernels where there is one, `libtorch` none of them
    #[arg(long, value_enum, default_value_t = Kernels::Auto)]
    pub kernels: Kernels,
    /// Compile the kernels as for an older GPU, `8.0` or `8.6`, to test what these run
    #[arg(long, value_parser = Architecture::forced)]
    pub gpu_architecture: Option<Architecture>,
}

/// What computes on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernels {
    /// This program's kernels where there is one for the size, libtorch's operations elsewhere.
    Auto,
    /// libtorch's operations alone.
    Libtorch,
}

impl DeviceArguments {
    /// Starts libtorch and finds the device; one rank of several takes its share of threads, memory and GPUs.
    ///
    /// # Errors
    /// When libtorch cannot be set up, or there is no such device.
    pub fn start(&self) -> anyhow::Result<DeviceInfo> {
        let place = Place::here()?;
        let sharing = place.as_ref().and_then(|place| place.local_world).unwrap_or(1).max(1);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = (cores / usize::try_from(sharing).unwrap_or(1)).max(1);
        let runtime = runtime::initialize(Some(self.threads.unwrap_or(share)))?;
        xlstm_kernels::cuda::use_only_libtorch(self.kernels == Kernels::Libtorch);
        if let Some(architecture) = self.gpu_architecture {
            xlstm_kernels::cuda::force_architecture(architecture);
        }
        // Before rayon's pool starts, whose threads inherit the arithmetic mode.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(runtime.threads).build_global();
        Ok(match place {
            Some(place) => device::find_for_rank(&self.device, &place)?,
            None => device::find(&self.device)?,
        })
    }
}

/// Does `work` in this process, or in as many ranks as the command line and the environment ask for
/// ([`launch`]). `work` gets the device of its rank and what ranks tell each other; what it prints to stdout is for
/// rank 0 alone. Returns the exit code: of `work`, or of the rank that failed first.
///
/// # Errors
/// Of `work`, or when ranks cannot be started or do not find each other.
pub fn on_ranks(
    options: &launch::Options,
    device: &DeviceArguments,
    work: impl FnOnce(&DeviceInfo, Box<dyn Communicator>) -> anyhow::Result<u8>,
) -> anyhow::Result<u8> {
    if let Some(code) = launch::start_local(options)? {
        return Ok(code);
    }
    let device = device.start()?;
    let launch::Connection { communicator, membership } = launch::connect(options, device.device)?;
    let result = guarded_any(|| work(&device, communicator));
    membership.leave(result.as_ref().map(|_| ()).map_err(AsRef::as_ref));
    result
}

/// Writes text to stdout, with what a terminal would obey spelled out; a reader that has gone away is no error.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(printable::lines(text).as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value to stdout as one line of JSON that means the same in a terminal.
///
/// # Errors
/// As [`print()`], and when the value has no JSON form.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", printable::json(&serde_json::to_string(value)?)))
}

/// As [`print_json`], over several lines.
///
/// # Errors
/// As [`print_json`].
pub fn print_json_pretty(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", printable::json(&serde_json::to_string_pretty(value)?)))
}

/// Writes a message to stderr, with what a terminal would obey spelled out.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
pub fn say(text: &str) {
    eprintln!("{}", printable::lines(text));
}

/// Runs a program's command line; its exit code. An error is told on stderr, with what to do about it; a panic, be
/// it ours or an exception of libtorch, is an error like any other.
#[must_use]
pub fn run_program(command: impl FnOnce() -> anyhow::Result<u8>) -> ExitCode {
    let error = match guarded_any(command) {
        Ok(code) => return ExitCode::from(code),
        Err(error) => error,
    };
    let prefix = launch::error_prefix();
    say(&format!("{prefix}error: {}", error::message(&error)));
    let code = error::exit_code(&error);
    if matches!(Place::here(), Ok(Some(_))) {
        // Threads of libtorch may still wait for a rank that never answers.
        runtime::exit_at_once(i32::from(code));
    }
    ExitCode::from(code)
}

/// What to lower where training has too little memory.
pub const TRAINING_MEMORY: &str = "lower training.micro_batch_rows or training.context_length, set \
                                   training.activation_checkpointing=true, or choose a smaller recipe";
/// What to lower where generation has too little memory.
pub const GENERATION_MEMORY: &str = "lower --samples, give fewer or shorter prompts, or use --device cpu";
/// What to do where a model alone does not fit.
pub const LOADING_MEMORY: &str = "the parameters alone need this much: use a machine with more memory";

/// The error of a command; a shortage of memory says which of the command's settings to lower.
///
/// # Errors
/// That of `result`.
pub fn advise<T>(advice: &'static str, result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match error.downcast::<TrainError>() {
        Ok(error) => error.advise_on_memory(advice).into(),
        Err(error) => error,
    })
}
