//! Errors of models and training: whose fault, which file, what was expected and found, what to do next.

use std::path::{Path, PathBuf};

use xlstm_bridge::BridgeError;
use xlstm_kernels::KernelError;
use xlstm_manifests::recipe::RecipeError;

/// `Result` with [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

/// What can go wrong with a model or a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The dataset or the run manifest.
    #[error(transparent)]
    Data(#[from] xlstm_manifests::Error),
    /// A file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Autograd.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// A file is not what its name or its neighbours say.
    #[error("`{path}`: expected {expected}, found {found}; {hint}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do next.
        hint: String,
    },
    /// Parameters that do not fit the model, all of them.
    #[error("`{path}`: {count} of its parameters do not fit the model:\n{list}", path = path.display())]
    Parameters {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// One line each: name, expected, found.
        list: String,
    },
    /// Loss or gradient is not a number. The parameters are as they were before the step.
    #[error(
        "step {step}: {what} is {value}; stopped before the update, the last checkpoint is untouched.\n\
         rows of the step: {rows}\ndocuments: {documents}\n\
         Look at them with `xlstm-data trace --run {run} --step {step}`, or lower optimizer.learning_rate",
        run = run.display()
    )]
    NotFinite {
        /// The run's folder.
        run: PathBuf,
        /// The step.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The rows, in short.
        rows: String,
        /// The documents, in short.
        documents: String,
    },
    /// A rank ended or is stuck, so all others end.
    #[error("{who} is lost: {reason}; {next}")]
    RankLost {
        /// Rank, host and process.
        who: String,
        /// How that was seen.
        reason: String,
        /// What to do next, with the step to go on from.
        next: String,
    },
    /// Ranks that were not started alike.
    #[error(
        "ranks disagree on the {what}: rank 0 has {first}, rank {rank} (host {host}) has {found}; start all ranks with \
         the same program, arguments and files"
    )]
    Disagree {
        /// On what.
        what: String,
        /// Rank 0's value.
        first: String,
        /// The rank that differs.
        rank: u64,
        /// Its machine.
        host: String,
        /// Its value.
        found: String,
    },
    /// Something that the user asked for cannot be done.
    #[error("{0}")]
    Usage(String),
    /// The loader's thread ended.
    #[error("the data loader stopped without saying why; this is a fault of the program, please report it")]
    LoaderGone,
}

impl TrainError {
    /// A [`TrainError::File`].
    pub fn file(
        path: &Path,
        expected: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::File { path: path.into(), expected: expected.into(), found: found.into(), hint: hint.into() }
    }

    /// What to do about an error of libtorch that is the machine's and not the program's: no memory.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let text = match self {
            Self::Kernel(error) => error.to_string(),
            Self::Bridge(error) => error.to_string(),
            Self::Torch(error) => error.to_string(),
            _ => return None,
        };
        let known = ["allocate memory", "out of memory", "bad_alloc"].iter().any(|part| text.contains(part));
        known.then_some(
            "there is not enough memory: lower training.micro_batch_rows or training.context_length, set \
             training.activation_checkpointing=true, or choose a smaller recipe",
        )
    }

    /// Exit code: 1 for the user's input or data, 2 for a fault of ours.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.hint().is_some() => 1,
            Self::Kernel(_) | Self::Bridge(_) | Self::Torch(_) | Self::LoaderGone => 2,
            _ => 1,
        }
    }
}
