//! The tokenize-and-pack engine: all cores, bounded memory, one order.
//!
//! ```text
//!            claims the next input in order            MPMC queue          one channel an input, drained in order
//! Provider ─► reader threads: verify, decode ─► batches ─► tokenizer threads ─► collector (caller's thread) ─► SplitBuilder
//! ```
//! A reader sends, for each batch, a one-place channel into its input's ordered channel and the batch with
//! the other end of it into the work queue; the collector waits for batch after batch, input after input.
//! So whatever thread did the work, documents reach the builder in stream order, and the bytes written do
//! not depend on the number of threads. Memory is bounded by `budget::Budget`: a reader waits until what is
//! in flight leaves room, except that the input whose turn it is may always have one batch.

mod asked;
mod batch;
mod budget;
mod collect;
mod filter;
mod read;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::manifest::{Layout, Manifest};
use xlstm_manifests::{Error as ContractError, Sha256Digest, printable};

pub(crate) use asked::absorb;
pub use asked::{Asked, Field};
pub use filter::{BEYOND_MAX_TOKENS, Filter, HoldoutCut, holdout_threshold};

use crate::duplicates::OtherBytes;
use crate::hub::HubError;
use crate::plan::PlannedInput;
use crate::sources::{Fields, SourceError};
use crate::split::{SplitBuilder, SplitError};
use crate::tokenizer::{Gpt2Tokenizer, TokenizerError};

/// Why a split could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Writing the split failed.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// Reading an input failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Getting an input from the Hub failed.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file could not be read or is not what was declared.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A record cannot be used, and `--on-bad-record fail` is in force.
    #[error("`{path}`, record {record}: {reason}: {found}; {hint}", path = printable::path(path), hint = hint(reason, found))]
    BadRecord {
        /// The input file.
        path: PathBuf,
        /// 0-based record number.
        record: u64,
        /// The class of defect.
        reason: &'static str,
        /// What was found.
        found: String,
    },
    /// An option named a field or a set that no record has.
    #[error("{0}")]
    Option(String),
    /// The list of copies is of other files.
    #[error(transparent)]
    OtherBytes(#[from] OtherBytes),
    /// The list of copies is of other texts.
    #[error(
        "`{path}`, record {record}: expected the text of SHA-256 {expected}, which the list of --drop-duplicates names, found \
         {found}; make the list from a dataset that was prepared with the same --text-field",
        path = printable::path(path)
    )]
    NotTheCopy {
        /// The input file.
        path: PathBuf,
        /// 0-based record number.
        record: u64,
        /// The digest in the list.
        expected: Sha256Digest,
        /// The text's.
        found: Sha256Digest,
    },
    /// The input changed while it was read.
    #[error("`{path}` changed while it was read (size or time of modification); prepare again from files that stay", path = path.display())]
    Changed {
        /// The input file.
        path: PathBuf,
    },
    /// A thread of ours ended early: a fault of the program.
    #[error("internal fault: {0}; please report it")]
    Internal(String),
}

/// What to do about a record of this defect.
fn hint(reason: &str, found: &str) -> &'static str {
    match reason {
        // What was found says what to do.
        _ if found.contains("one object a line") => {
            "or use --on-bad-record skip to leave such records out and count them in the manifest"
        }
        "missing-text" | "text-not-a-string" => {
            "name the field that holds the text with --text-field (dots lead into nested fields), or use \
             --on-bad-record skip to leave such records out and count them in the manifest"
        }
        _ => {
            "mend the file, or use --on-bad-record skip to leave such records out and count them in the manifest"
        }
    }
}

/// An input whose file is on this machine.
#[derive(Debug, Clone)]
pub struct Provided {
    /// Index in the plan.
    pub index: u32,
    /// What the plan says of it.
    pub planned: PlannedInput,
    /// The file.
    pub path: PathBuf,
    /// Size and digest, if whoever fetched it has just computed them; else the reader does.
    pub verified: Option<(u64, Sha256Digest)>,
}

/// Yields inputs in plan order, from the cursor's on; may block while one is fetched.
pub trait Provider: Send {
    /// The next input; `None` after the last.
    fn provide(&mut self) -> Option<Result<Provided, EngineError>>;

    /// A flag that makes a blocked [`Provider::provide`] give up, if it can block.
    fn canceller(&self) -> Option<Arc<AtomicBool>> {
        None
    }

    /// Called when everything read from inputs before `index` is durable.
    fn durable_before(&mut self, _index: u32) {}
}

/// What happens to a record that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadRecord {
    /// Stop with an error that names it.
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Tokenizer threads.
    pub threads: usize,
    /// What to do about bad records.
    pub on_bad_record: OnBadRecord,
    /// Which fields of a record are read.
    pub fields: Fields,
    /// Which documents are wanted.
    pub filter: Filter,
    /// Stop after the document that reaches this many tokens.
    pub max_tokens: Option<u64>,
    /// What the records must have had, by the options that ask for it.
    pub asked: Asked,
}

/// Hears how a run is getting on.
pub trait Observer: Sync {
    /// After each batch: bytes of the current input consumed (0 where unknown), and totals so far.
    fn progress(&self, _input: u32, _documents: u64, _text_bytes: u64, _tokens: u64) {}
    /// An input is done; its size in bytes.
    fn input_done(&self, _size: u64) {}
}

/// An observer that hears nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;
impl Observer for Silent {}

/// Reads, tokenizes and packs everything that `provider` yields.
///
/// # Errors
/// The first error in stream order; what was durable by then stays, and a later run resumes from it.
pub fn run(
    builder: SplitBuilder,
    layout: Layout,
    provider: &mut dyn Provider,
    tokenizer: &Gpt2Tokenizer,
    options: &EngineOptions,
    observer: &dyn Observer,
) -> Result<Manifest, EngineError> {
    let threads = options.threads.max(1);
    let readers = threads.div_ceil(2).clamp(1, 16).max(threads.min(2));
    let shared = Shared {
        canceller: provider.canceller(),
        provider: Mutex::new(provider),
        cancelled: AtomicBool::new(false),
        enough: AtomicBool::new(false),
        budget: Arc::new(budget::Budget::new(readers)),
        cursor: builder.cursor(),
    };
    // Text that waits for a tokenizer thread only costs memory; what is ready may wait for its turn much longer.
    let (work_sender, work) = crossbeam_channel::bounded(2 * threads);
    let (stream_sender, streams) = crossbeam_channel::unbounded();
    std::thread::scope(|scope| {
        let shared = &shared;
        let start = || -> std::io::Result<()> {
            for _ in 0..readers {
                let outlets = read::Outlets { jobs: work_sender.clone(), streams: stream_sender.clone() };
                let readers = read::Readers { shared, options };
                spawn(scope, "reader", move || readers.run(&outlets))?;
            }
            for _ in 0..threads {
                let jobs: Receiver<batch::Job<'_>> = work.clone();
                let work = batch::Work { tokenizer, filter: &options.filter, layout };
                spawn(scope, "tokenizer", move || batch::worker(&jobs, work))?;
            }
            Ok(())
        };
        let started = start();
        drop((work_sender, stream_sender, work));
        let result = match started {
            Ok(()) => collect::collect(builder, shared, &streams, options, observer),
            Err(error) => Err(ContractError::from(error).into()),
        };
        shared.cancel();
        result
    })
}

/// Starts a thread under a name that profilers and debuggers show.
fn spawn<'scope, 'env>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn_scoped(scope, work).map(drop)
}

/// What all threads of a run see.
struct Shared<'a> {
    provider: Mutex<&'a mut dyn Provider>,
    canceller: Option<Arc<AtomicBool>>,
    cancelled: AtomicBool,
    /// `max_tokens` is reached: readers begin no further input.
    enough: AtomicBool,
    budget: Arc<budget::Budget>,
    cursor: crate::split::Cursor,
}

impl Shared<'_> {
    fn cancel(&self) {
        self.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(canceller) = &self.canceller {
            canceller.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        self.budget.cancel();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// One input as the collector sees it.
struct InputStream {
    provided: Provided,
    /// Size and digest of its file.
    start: Receiver<Result<(u64, Sha256Digest), EngineError>>,
    /// Then its batches in order, or the error that ended the input.
    batches: Receiver<Result<AwaitedBatch, EngineError>>,
}

/// A batch that a tokenizer thread is at work on.
type AwaitedBatch = Receiver<Result<batch::Tokenized, EngineError>>;

type StreamSender = Sender<Result<InputStream, EngineError>>;
