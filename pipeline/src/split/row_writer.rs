//! Rows on their way into shards: put together, digested and written by threads of their own.
//!
//! ```text
//! builder ─► stretches of tokens ─► assembler: whole batches ─► rows: bytes and leaves digested, and written
//! ```
//! A shard's bytes are digested one after the other, and its Merkle leaves beside them, which is most of the work behind the
//! tokenizer: the thread that does it gets batches that it need not copy. Tokens come in stream order from one builder and each thread hands
//! them on in that order, so the bytes are the same as if the builder wrote them itself. The builder need not even read
//! tokens that it may keep: the first thread that does waits for another processor's memory.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::PackedWriter;
use xlstm_manifests::{Error as ContractError, Sha256Digest};

use super::SplitError;

/// Tokens that are handed over together: 1 MiB.
const TOGETHER: usize = 1 << 19;
/// As many together that may wait, before each of the threads.
const WAITING: usize = 4;

/// Where rows go.
pub(super) struct Rows {
    pub(super) folder: PathBuf,
    pub(super) row_length: usize,
    /// Fills up a split's last row.
    pub(super) separator: u16,
    /// Number of the shard that is written next.
    pub(super) shard: usize,
    /// Over the rows of all shards before it.
    pub(super) tree: MerkleTree,
}

/// A shard whose rows are all written, but not yet durable.
pub(super) struct Sealed {
    pub(super) writer: PackedWriter,
    /// Root over its rows.
    pub(super) tokens_root: Sha256Digest,
    /// Over the rows of all shards up to its end.
    pub(super) tree: MerkleTree,
}

/// Tokens that follow each other.
enum Stretch {
    /// Some of what a tokenizer thread made.
    Shared(Arc<Vec<u16>>, Range<usize>),
    Copied(Vec<u16>),
    /// A separator.
    One(u16),
}

impl Stretch {
    fn tokens(&self) -> &[u16] {
        match self {
            Self::Shared(all, range) => &all[range.clone()],
            Self::Copied(tokens) => tokens,
            Self::One(token) => std::slice::from_ref(token),
        }
    }
}

/// Tokens, or the end of a shard.
enum Message<T> {
    Tokens(T),
    Seal(Sender<Sealed>),
}

/// The error that has ended the writing, for whoever asks first.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<SplitError>>>);

impl Fault {
    fn set(&self, error: SplitError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The error, or that the writing ended without one.
    pub(super) fn take(&self) -> SplitError {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.unwrap_or_else(|| ContractError::internal("the thread that writes rows ended early").into())
    }
}

pub(super) struct RowWriter {
    stretches: Vec<Stretch>,
    /// Tokens in them.
    waiting: usize,
    /// `None` once no further token will come.
    messages: Option<Sender<Message<Vec<Stretch>>>>,
    fault: Fault,
    threads: Vec<JoinHandle<()>>,
}

impl RowWriter {
    pub(super) fn start(rows: Rows) -> Result<Self, SplitError> {
        let (messages, received) = crossbeam_channel::bounded(WAITING);
        let (batches, to_write) = crossbeam_channel::bounded(WAITING);
        let (written, spare) = crossbeam_channel::unbounded();
        let fault = Fault::default();
        let its_fault = fault.clone();
        let together = rows.tokens_together();
        let write = move || {
            if let Err(error) = rows.write(&to_write, &written) {
                its_fault.set(error);
                // A closing may wait for one of these: dropped, they tell it that nothing will come.
                to_write.iter().for_each(drop);
            }
        };
        let assemble = move || assemble(&received, together, &batches, &spare);
        // Of two threads the second may not start: dropped, this waits for the first.
        let mut started = Self {
            stretches: Vec::new(),
            waiting: 0,
            messages: Some(messages),
            fault,
            threads: Vec::with_capacity(2),
        };
        for (name, work) in
            [("assembler", Box::new(assemble) as Box<dyn FnOnce() + Send>), ("rows", Box::new(write))]
        {
            started.threads.push(std::thread::Builder::new().name(name.into()).spawn(work)?);
        }
        Ok(started)
    }

    pub(super) fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// Appends tokens to the current shard.
    ///
    /// # Errors
    /// When tokens before them could not be written.
    pub(super) fn extend(&mut self, tokens: &[u16]) -> Result<(), SplitError> {
        match (self.stretches.last_mut(), tokens) {
            (Some(Stretch::Copied(last)), _) => last.extend_from_slice(tokens),
            (_, &[token]) => self.stretches.push(Stretch::One(token)),
            _ => self.stretches.push(Stretch::Copied(tokens.to_vec())),
        }
        self.count(tokens.len())
    }

    /// As [`Self::extend`], without a copy.
    ///
    /// # Errors
    /// As [`Self::extend`].
    pub(super) fn share(&mut self, all: &Arc<Vec<u16>>, range: Range<usize>) -> Result<(), SplitError> {
        let length = range.len();
        self.stretches.push(Stretch::Shared(Arc::clone(all), range));
        self.count(length)
    }

    fn count(&mut self, tokens: usize) -> Result<(), SplitError> {
        self.waiting += tokens;
        if self.waiting >= TOGETHER { self.hand_over() } else { Ok(()) }
    }

    /// Ends the current shard, filling up its last row; the next token begins another.
    ///
    /// # Errors
    /// As [`Self::extend`].
    pub(super) fn seal(&mut self) -> Result<Receiver<Sealed>, SplitError> {
        self.hand_over()?;
        let (sender, sealed) = crossbeam_channel::bounded(1);
        self.send(Message::Seal(sender))?;
        Ok(sealed)
    }

    fn hand_over(&mut self) -> Result<(), SplitError> {
        self.waiting = 0;
        if self.stretches.is_empty() {
            return Ok(());
        }
        let next = Vec::with_capacity(self.stretches.len());
        let stretches = std::mem::replace(&mut self.stretches, next);
        self.send(Message::Tokens(stretches))
    }

    fn send(&self, message: Message<Vec<Stretch>>) -> Result<(), SplitError> {
        let sent = self.messages.as_ref().is_some_and(|messages| messages.send(message).is_ok());
        if sent && !self.fault.is_set() { Ok(()) } else { Err(self.fault.take()) }
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        self.messages = None;
        for thread in self.threads.drain(..) {
            // A panic there ends the run by what it has not sent.
            let _ = thread.join();
        }
    }
}

/// The thread that puts stretches together, `together` tokens at a time, counted from the beginning of each shard: until no
/// further message can come, or nobody takes what it made.
fn assemble(
    messages: &Receiver<Message<Vec<Stretch>>>,
    together: usize,
    batches: &Sender<Message<Vec<u16>>>,
    spare: &Receiver<Vec<u16>>,
) {
    let empty = || spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(together));
    let mut batch = empty();
    for message in messages {
        match message {
            Message::Tokens(stretches) => {
                for stretch in &stretches {
                    let mut tokens = stretch.tokens();
                    while !tokens.is_empty() {
                        let (now, later) = tokens.split_at(tokens.len().min(together - batch.len()));
                        batch.extend_from_slice(now);
                        tokens = later;
                        if batch.len() == together {
                            let full = std::mem::replace(&mut batch, empty());
                            if batches.send(Message::Tokens(full)).is_err() {
                                return;
                            }
                        }
                    }
                }
            }
            Message::Seal(sender) => {
                let last = std::mem::replace(&mut batch, empty());
                let sent = last.is_empty() || batches.send(Message::Tokens(last)).is_ok();
                if !sent || batches.send(Message::Seal(sender)).is_err() {
                    return;
                }
            }
        }
    }
}

impl Rows {
    /// A batch of the shard, which is then taken without a copy; of very short or long rows another number.
    fn tokens_together(&self) -> usize {
        let batch = PackedWriter::batch_tokens(self.row_length);
        if (TOGETHER / 8..=TOGETHER).contains(&batch) { batch } else { TOGETHER }
    }

    /// The thread: until no further message can come, or a token cannot be written.
    fn write(
        mut self,
        messages: &Receiver<Message<Vec<u16>>>,
        written: &Sender<Vec<u16>>,
    ) -> Result<(), SplitError> {
        let mut open: Option<PackedWriter> = None;
        let mut shard_tree = MerkleTree::new();
        for message in messages {
            let mut writer = match open.take() {
                Some(writer) => writer,
                None => {
                    let path = self.folder.join(super::packed_sink::shard_name(self.shard));
                    PackedWriter::create(&path, self.row_length, self.separator)?
                }
            };
            let seal = match message {
                Message::Tokens(tokens) => {
                    // Nobody fills what comes back once the assembler is gone.
                    let _ = written.send(writer.take(tokens)?);
                    None
                }
                Message::Seal(sender) => {
                    writer.end()?;
                    Some(sender)
                }
            };
            for leaf in writer.take_leaves() {
                shard_tree.push(leaf);
                self.tree.push(leaf);
            }
            match seal {
                None => open = Some(writer),
                Some(sender) => {
                    self.shard += 1;
                    let tokens_root = std::mem::take(&mut shard_tree).root();
                    // The closing is gone only when the run has failed.
                    let _ = sender.send(Sealed { writer, tokens_root, tree: self.tree.clone() });
                }
            }
        }
        Ok(())
    }
}
