//! What the command lines of `xlstm-train` and `xlstm-eval` have in common.

mod generate;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use xlstm_bridge::runtime;

use crate::device::{self, DeviceInfo};
use crate::error::TrainError;

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
}

impl DeviceArguments {
    /// Starts libtorch and finds the device.
    ///
    /// # Errors
    /// When libtorch cannot be set up, or there is no such device.
    pub fn start(&self) -> anyhow::Result<DeviceInfo> {
        let runtime = runtime::initialize(self.threads)?;
        // Before rayon's pool starts, whose threads inherit the arithmetic mode.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(runtime.threads).build_global();
        Ok(device::find(&self.device)?)
    }
}

/// Writes data to stdout; a reader that has gone away is no error.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a message to stderr.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// The exit code of a command that ended so; an error is told on stderr, with what to do about it.
#[must_use]
pub fn exit(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let known = error.downcast_ref::<TrainError>();
            match known {
                // These say everything in one text; others are a chain.
                Some(error) => say(&format!("error: {error}")),
                None => say(&format!("error: {error:#}")),
            }
            if let Some(hint) = known.and_then(TrainError::hint) {
                say(&format!("hint: {hint}"));
            }
            ExitCode::from(known.map_or(1, TrainError::exit_code))
        }
    }
}
