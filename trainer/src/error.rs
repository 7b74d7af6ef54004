//! Errors of models and training: whose fault, which file, what was expected and found, what to do next.

use std::path::{Path, PathBuf};

use xlstm_bridge::BridgeError;
use xlstm_kernels::KernelError;
use xlstm_manifests::printable;
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
    /// A file is not what its name or its neighbors say.
    #[error("`{path}`: expected {expected}, found {found}; {hint}", path = printable::path(path))]
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
    #[error("`{path}`: {count} of its parameters do not fit the model:\n{list}", path = printable::path(path))]
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
        run = printable::path(run)
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
    /// Another rank failed where only one works and the others wait.
    #[error("another rank failed; its message says why")]
    AnotherRank,
    /// The model's log-likelihood of something is not a number. Nothing was averaged.
    #[error(
        "expected finite log-likelihoods, found {value} for {what}: the model overflows on it. Nothing was averaged; try \
         --precision float32"
    )]
    Overflow {
        /// Of which document, example or token.
        what: String,
        /// The value.
        value: f64,
    },
    /// More memory than there is: what was asked and had, and what to lower.
    #[error("{shortage}; {advice}")]
    OutOfMemory {
        /// What libtorch asked for, and what there was.
        shortage: String,
        /// Which setting to lower.
        advice: &'static str,
    },
    /// Nobody waits for the result any longer.
    #[error("given up: nobody waits for it any longer")]
    GivenUp,
    /// Something that never happens unless this program has a fault.
    #[error("{0}; this is a fault of the program, please report it")]
    Internal(String),
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

    /// A value of ours that has no written form, or one that another process of ours wrote and cannot be read.
    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }

    /// The text of an error of libtorch, if it is one.
    fn libtorch(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => Some(error.to_string()),
            Self::Bridge(error) => Some(error.to_string()),
            Self::Torch(error) => Some(error.to_string()),
            _ => None,
        }
    }

    /// Whether libtorch or the system had no more memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
            || self.libtorch().is_some_and(|text| memory::is_shortage(&text))
    }

    /// A shortage of memory with what to do about it; every other error as it is.
    #[must_use]
    pub fn advise_on_memory(self, advice: &'static str) -> Self {
        match self.libtorch().filter(|text| memory::is_shortage(text)) {
            Some(text) => Self::OutOfMemory { shortage: memory::shortage(&text), advice },
            None => self,
        }
    }

    /// The error in words, without the C++ stack that libtorch puts behind its own.
    #[must_use]
    pub fn message(&self) -> String {
        match self.libtorch() {
            Some(text) if memory::is_shortage(&text) => memory::shortage(&text),
            Some(text) => memory::without_stack(&text).to_owned(),
            // The system's errors are one line, whatever the names in them.
            None if self.is_of_the_system() => printable::text(&self.to_string()).into_owned(),
            None => self.to_string(),
        }
    }

    fn is_of_the_system(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Data(xlstm_manifests::Error::Io(_)))
    }

    /// Exit code: 1 for the user's input or data or a machine that is too small, 2 for a fault of ours.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_out_of_memory() => 1,
            Self::Io(error) | Self::Data(xlstm_manifests::Error::Io(error)) => exit_code_of_io(error),
            Self::Recipe(_)
            | Self::Data(_)
            | Self::File { .. }
            | Self::Parameters { .. }
            | Self::NotFinite { .. }
            | Self::RankLost { .. }
            | Self::Disagree { .. }
            | Self::Usage(_)
            | Self::AnotherRank
            | Self::Overflow { .. }
            | Self::GivenUp
            | Self::OutOfMemory { .. } => 1,
            Self::Kernel(_) | Self::Bridge(_) | Self::Torch(_) | Self::Internal(_) | Self::LoaderGone => 2,
        }
    }
}

/// 1 for what the system refused; 2 for what has the kind `Other`, which the system never gives: a value of ours that
/// could not be written.
fn exit_code_of_io(error: &std::io::Error) -> u8 {
    if error.kind() == std::io::ErrorKind::Other { 2 } else { 1 }
}

/// The text of an error of any kind with its causes, each of which is one line where it is the system's.
#[must_use]
pub fn message(error: &anyhow::Error) -> String {
    if let Some(error) = error.downcast_ref::<TrainError>() {
        // These say everything in one text; others are a chain.
        return error.message();
    }
    let text = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<TrainError>() {
        Some(error) => error.message(),
        None if cause.is::<std::io::Error>() => printable::text(&cause.to_string()).into_owned(),
        None => cause.to_string(),
    };
    error.chain().map(text).collect::<Vec<_>>().join(": ")
}

/// The exit code of an error of any kind: 1 for the user's input, data or machine, 2 for whatever is not known to be
/// that.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let known = error.chain().find_map(|cause| {
        let cause: &(dyn std::error::Error + 'static) = cause;
        if let Some(error) = cause.downcast_ref::<TrainError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return Some(exit_code_of_io(error));
        }
        if let Some(xlstm_manifests::Error::Io(error)) = cause.downcast_ref() {
            return Some(exit_code_of_io(error));
        }
        let users = cause.is::<RecipeError>() || cause.is::<xlstm_manifests::Error>();
        users.then_some(1)
    });
    known.unwrap_or(2)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_has_no_written_form_is_our_fault_and_what_the_system_refuses_is_not() {
        let ours = || io::Error::other("no JSON form");
        let users = || io::Error::from(io::ErrorKind::NotFound);
        for (error, code) in [
            (TrainError::Io(ours()), 2),
            (TrainError::Data(xlstm_manifests::Error::Io(ours())), 2),
            (TrainError::internal("x"), 2),
            (TrainError::Io(users()), 1),
            (TrainError::Data(xlstm_manifests::Error::Io(users())), 1),
            (TrainError::Usage("x".into()), 1),
            (TrainError::AnotherRank, 1),
            (TrainError::Overflow { what: "document 1".into(), value: f64::NAN }, 1),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
            assert_eq!(exit_code(&error.into()), code);
        }
        assert_eq!(exit_code(&anyhow::Error::from(ours()).context("while writing")), 2);
        assert_eq!(exit_code(&anyhow::Error::from(users()).context("while reading")), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("nobody knows")), 2);
    }

    #[test]
    fn an_error_of_the_system_is_one_line_whatever_the_names_in_it() {
        let error = || fs_err::read("/nowhere/a\nforged\u{1b}[2J").unwrap_err();
        let texts = [
            TrainError::Io(error()).message(),
            message(&TrainError::Data(error().into()).into()),
            message(&anyhow::Error::from(error()).context("while reading")),
        ];
        for text in texts {
            assert!(text.contains("a\\nforged\\u{1b}[2J") && !text.contains('\n'), "{text}");
        }
    }
}

/// What libtorch says when there is no memory, in this program's words.
mod memory {
    /// Whether this text of libtorch is about memory.
    pub(super) fn is_shortage(text: &str) -> bool {
        ["allocate memory", "not enough memory", "out of memory", "bad_alloc"]
            .iter()
            .any(|part| text.contains(part))
    }

    /// `not enough memory on GPU 0: asked for 20.00 GiB, found 5.56 GiB free of 79.11 GiB`.
    pub(super) fn shortage(text: &str) -> String {
        let asked =
            after(text, "ried to allocate ").map_or_else(|| "more than there is".to_owned(), readable);
        if text.contains("CUDA") {
            let gpu = after(text, "GPU ").and_then(|rest| rest.split([' ', ';']).next()).unwrap_or("?");
            let free = after(text, "of which ").and_then(|rest| rest.split(" is free").next());
            let total = after(text, "total capacity of ").and_then(|rest| rest.split(" of which").next());
            let found = match (free, total) {
                (Some(free), Some(total)) => format!("{free} free of {total}"),
                _ => "less".to_owned(),
            };
            return format!("not enough memory on GPU {gpu}: asked for {asked}, found {found}");
        }
        let found =
            available().map_or_else(|| "less".to_owned(), |bytes| format!("{} available", size(bytes)));
        format!("not enough memory: asked for {asked}, found {found}")
    }

    /// The text before the C++ frames.
    pub(super) fn without_stack(text: &str) -> &str {
        let end = ["\nException raised from", "\nframe #"].iter().filter_map(|mark| text.find(mark)).min();
        text[..end.unwrap_or(text.len())].trim_end()
    }

    fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
        text.split_once(mark).map(|(_, rest)| rest)
    }

    /// `20.00 GiB` or `80000000000 bytes` at the head of a text, as a size.
    fn readable(rest: &str) -> String {
        let mut words = rest.split([' ', '\n']);
        let (number, unit) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match number.parse::<u64>() {
            Ok(bytes) if unit.starts_with("bytes") => size(bytes),
            _ => format!("{number} {}", unit.trim_end_matches('.')),
        }
    }

    fn size(bytes: u64) -> String {
        format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
    }

    /// Bytes that the system says it can still give.
    fn available() -> Option<u64> {
        let text = fs_err::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_was_asked_and_had_is_taken_from_libtorchs_own_texts() {
            let gpu = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which \
                       5.56 GiB is free. Including non-PyTorch memory, this process has 73.5 GiB memory in use.\n\
                       Exception raised from malloc at CUDACachingAllocator.cpp:1";
            assert!(is_shortage(gpu));
            assert_eq!(
                shortage(gpu),
                "not enough memory on GPU 0: asked for 20.00 GiB, found 5.56 GiB free of 79.11 GiB"
            );
            let cpu = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried \
                       to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)";
            assert!(is_shortage(cpu));
            let text = shortage(cpu);
            assert!(text.starts_with("not enough memory: asked for 4.00 GiB, found "), "{text}");
            assert_eq!(without_stack("a\nb\nException raised from f\nframe #0"), "a\nb");
        }
    }
}
