//! `xlstm-eval serve RUN`: a checkpoint behind the completions protocol.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use xlstm_manifests::printable;
use xlstm_manifests::recipe::Precision;
use xlstm_trainer::checkpoint;
use xlstm_trainer::command_line::{DeviceArguments, say};
use xlstm_trainer::model::Placement;
use xlstm_trainer::run::load_model;
use xlstm_trainer::serve::{Engine, Server, serve};
use xlstm_trainer::signals::Signals;

/// A checkpoint behind the completions protocol.
#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    step: Option<u64>,
    /// Address to listen on; anyone who reaches it can use the model
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port; 0 takes a free one. The full address is printed on stdout
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Type of the matrix products
    #[arg(long, default_value = "float32")]
    precision: Products,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Type of the matrix products.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Products {
    Float32,
    Bfloat16,
}

impl ServeArguments {
    /// Serves until a signal comes; returns the exit code.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let device = self.device.start()?;
        let signals = Signals::listen()?;
        let precision = match self.precision {
            Products::Float32 => Precision::Float32,
            Products::Bfloat16 => Precision::Bfloat16,
        };
        let placement = Placement::new(device.device, precision, false);
        let (mut model, file) = load_model(&self.run, self.step, placement)?;
        model.freeze()?;
        let engine = Engine::new(name_of(&file), model)?;
        say(&format!("serving {}; Ctrl-C ends it", printable::path(&file)));
        serve(engine, Server { address: SocketAddr::new(self.host, self.port) }, &signals)?;
        Ok(0)
    }
}

/// The model's name for clients: its run and step, or its file. Not where it lies: a stranger learns nothing of this
/// machine's folders.
fn name_of(file: &Path) -> String {
    let full = file.canonicalize().unwrap_or_else(|_| file.to_path_buf());
    let text = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let step = full.parent().filter(|folder| checkpoint::is_checkpoint(folder));
    let named = match step {
        Some(step) => {
            let run = step.parent().and_then(Path::parent).and_then(|run| text(run.file_name()));
            run.zip(text(step.file_name())).map(|(run, step)| format!("{run}/{step}"))
        }
        None => text(full.file_stem()),
    };
    named.unwrap_or_else(|| "model".into())
}
