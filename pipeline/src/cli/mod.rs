//! The command line of `xlstm-data`.
//!
//! Arguments are parsed into plain structs here, resolved in `args`, and carried out by the library. Data goes
//! to stdout, everything else to stderr. Exit codes: 0 done, 1 the user's input or data, 2 a fault of ours or
//! wrong usage.

mod args;
mod prepare;
mod task;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use xlstm_manifests::catalog::CatalogError;
use xlstm_manifests::{Error as ContractError, printable};

use crate::engine::EngineError;
use crate::guard::guarded;
use crate::hub::HubError;
use crate::merge::MergeError;
use crate::report::CommandError;
use crate::sources::SourceError;
use crate::split::SplitError;
use crate::tasks::TaskError;

/// Prepare, audit and trace training data for xLSTM: from bytes on the Hub to packed shards whose every token
/// leads back to its source.
#[derive(Debug, Parser)]
#[command(name = "xlstm-data", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download, check, tokenize and pack a dataset
    Prepare(args::PrepareArgs),
    /// Say what `prepare` would do: files, bytes, requests, disk, tokens
    Plan(args::PrepareArgs),
    /// Put the parts of a task array (`prepare --task`) together
    Merge(args::MergeArgs),
    Audit(crate::audit::AuditArgs),
    Show(crate::show::ShowArgs),
    Trace(crate::trace::TraceArgs),
    Diff(crate::diff::DiffArgs),
    Count(crate::count::CountArgs),
    Duplicates(crate::duplicates::DuplicatesArgs),
    Overlap(crate::overlap::OverlapArgs),
    Export(crate::export::ExportArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the process's arguments and does what they say.
#[must_use]
pub fn run() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => report(guarded(|| dispatch(cli), |error| exit_code(error) == 2)),
        Err(error) => {
            let code = error.exit_code();
            // A closed stdout or stderr leaves nothing to say it on.
            let _ = error.print();
            ExitCode::from(u8::try_from(code).unwrap_or(2))
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut out = printable::Filter::new(std::io::stdout().lock());
    match cli.command {
        Command::Prepare(args) => prepare::prepare(args, &mut out),
        Command::Plan(args) => prepare::plan(args, &mut out),
        Command::Merge(args) => prepare::merge(&args, &mut out),
        Command::Audit(args) => Ok(crate::audit::run(&args, &mut out)?.exit_code().into()),
        Command::Show(args) => Ok(crate::show::run(&args, &mut out)?.exit_code().into()),
        Command::Trace(args) => Ok(crate::trace::run(&args, &mut out)?.exit_code().into()),
        Command::Diff(args) => Ok(crate::diff::run(&args, &mut out)?.exit_code().into()),
        Command::Count(args) => Ok(crate::count::run(&args, &mut out)?.exit_code().into()),
        Command::Duplicates(args) => Ok(crate::duplicates::run(&args, &mut out)?.exit_code().into()),
        Command::Overlap(args) => Ok(crate::overlap::run(&args, &mut out)?.exit_code().into()),
        Command::Export(args) => Ok(crate::export::run(&args, &mut out)?.exit_code().into()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "xlstm-data", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Maps an error to its exit code, after saying it on stderr with the causes that its text does not hold.
fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}\n  cause: {cause}");
        }
    }
    if let Some(advice) = advice(&error) {
        text = format!("{text}; {advice}");
    }
    // Nothing is left to be done when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{}", printable::lines(&text));
    ExitCode::from(exit_code(&error))
}

/// What to do about a refusal of the operating system, where the error does not say it itself.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    let says_it = |cause: &(dyn std::error::Error + 'static)| {
        let engine = matches!(cause.downcast_ref(), Some(EngineError::Source(_) | EngineError::Hub(_)));
        engine || cause.is::<SourceError>() || cause.is::<HubError>()
    };
    if error.chain().any(says_it) {
        return None;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>())?.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Some(
            "free some space or choose another folder: what is finished stays, and the same command goes on from it",
        ),
        ErrorKind::ReadOnlyFilesystem => Some("the file system is read-only: choose another folder"),
        ErrorKind::PermissionDenied => Some("give this user access to it, or choose another folder"),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            Some("a part of this path is a file: remove it, or choose another folder")
        }
        ErrorKind::NotFound => Some("check that the path is right"),
        _ => None,
    }
}

/// 1 for the user's input or data, 2 for a fault of ours and for what nobody foresaw.
fn exit_code(error: &anyhow::Error) -> u8 {
    let command = error.chain().find_map(|cause| cause.downcast_ref::<CommandError>());
    match command {
        _ if error.chain().any(is_ours) => 2,
        Some(command) => command.exit_code(),
        None if error.chain().any(is_of_the_users) => 1,
        None => 2,
    }
}

/// Whether an error is a fault of this program. Errors that pass on another's words hide it from the chain, so each is
/// looked into.
fn is_ours(cause: &(dyn std::error::Error + 'static)) -> bool {
    let contract = |error: &ContractError| error.is_internal();
    let split = |error: &SplitError| error.is_internal();
    let engine = |error: &EngineError| match error {
        EngineError::Internal(_) | EngineError::Tokenizer(_) => true,
        EngineError::Contract(error) => contract(error),
        EngineError::Split(error) => split(error),
        _ => false,
    };
    let merge = |error: &MergeError| match error {
        MergeError::Contract(error) => contract(error),
        MergeError::Split(error) => split(error),
        MergeError::Parts(_) | MergeError::Option(_) => false,
    };
    let command = |error: &CommandError| match error {
        CommandError::Internal(_) | CommandError::Tokenizer(_) => true,
        CommandError::Dataset(error) => contract(error),
        _ => false,
    };
    cause.downcast_ref().is_some_and(contract)
        || cause.downcast_ref().is_some_and(split)
        || cause.downcast_ref().is_some_and(engine)
        || cause.downcast_ref().is_some_and(merge)
        || cause.downcast_ref().is_some_and(command)
}

/// Whether an error is one of those that the user's input, data or machine can cause. What is not known to be one is
/// taken for a fault of ours.
fn is_of_the_users(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<EngineError>()
        || cause.is::<std::io::Error>()
        || cause.is::<HubError>()
        || cause.is::<SourceError>()
        || cause.is::<SplitError>()
        || cause.is::<MergeError>()
        || cause.is::<CatalogError>()
        || cause.is::<TaskError>()
        || cause.is::<ContractError>()
}

/// Whether stdout was closed by its reader (`xlstm-data … | head`): not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_program_exit_with_two_wherever_they_come_from() {
        let internal = || ContractError::Internal("a value without a form".into());
        let io = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let cases: Vec<(anyhow::Error, u8)> = vec![
            (internal().into(), 2),
            (SplitError::from(internal()).into(), 2),
            (EngineError::from(SplitError::from(internal())).into(), 2),
            (MergeError::from(internal()).into(), 2),
            (CommandError::from(internal()).into(), 2),
            (EngineError::Internal("a thread".into()).into(), 2),
            (anyhow::Error::from(internal()).context("`a.jsonl`"), 2),
            (anyhow::anyhow!("nobody foresaw this"), 2),
            (io().into(), 1),
            (SplitError::from(io()).into(), 1),
            (EngineError::from(SplitError::Limit("too many".into())).into(), 1),
            (CommandError::Usage("no such split".into()).into(), 1),
        ];
        for (error, code) in cases {
            assert_eq!(exit_code(&error), code, "{error:?}");
        }
    }
}
