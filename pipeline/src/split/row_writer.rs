//! Rows on their way into shards: digested and written by a thread of their own.
//!
//! A shard's bytes and its Merkle leaves are digested while they are written, which is most of the work behind the
//! tokenizer. Tokens come in stream order from one builder and leave in that order, so the bytes are the same as if the
//! builder wrote them itself.

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
/// Such pieces that may wait to be written.
const WAITING: usize = 8;

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

enum Message {
    Tokens(Vec<u16>),
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
    tokens: Vec<u16>,
    /// `None` once no further token will come.
    messages: Option<Sender<Message>>,
    /// Pieces that were written, to be filled again.
    spare: Receiver<Vec<u16>>,
    fault: Fault,
    thread: Option<JoinHandle<()>>,
}

impl RowWriter {
    pub(super) fn start(rows: Rows) -> Result<Self, SplitError> {
        let (messages, received) = crossbeam_channel::bounded(WAITING);
        let (written, spare) = crossbeam_channel::unbounded();
        let fault = Fault::default();
        let its_fault = fault.clone();
        let work = move || {
            if let Err(error) = rows.write(&received, &written) {
                its_fault.set(error);
                // A closing may wait for one of these: dropped, they tell it that nothing will come.
                received.iter().for_each(drop);
            }
        };
        let thread = std::thread::Builder::new().name("rows".into()).spawn(work)?;
        Ok(Self { tokens: Vec::new(), messages: Some(messages), spare, fault, thread: Some(thread) })
    }

    pub(super) fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// Appends tokens to the current shard.
    ///
    /// # Errors
    /// When tokens before them could not be written.
    pub(super) fn extend(&mut self, tokens: &[u16]) -> Result<(), SplitError> {
        self.tokens.extend_from_slice(tokens);
        if self.tokens.len() >= TOGETHER { self.hand_over() } else { Ok(()) }
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
        if self.tokens.is_empty() {
            return Ok(());
        }
        let spare = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(TOGETHER + TOGETHER / 8));
        let tokens = std::mem::replace(&mut self.tokens, spare);
        self.send(Message::Tokens(tokens))
    }

    fn send(&self, message: Message) -> Result<(), SplitError> {
        let sent = self.messages.as_ref().is_some_and(|messages| messages.send(message).is_ok());
        if sent && !self.fault.is_set() { Ok(()) } else { Err(self.fault.take()) }
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // A panic there ends the run by what it has not sent.
            let _ = thread.join();
        }
    }
}

impl Rows {
    /// The thread: until no further message can come, or a token cannot be written.
    fn write(mut self, messages: &Receiver<Message>, written: &Sender<Vec<u16>>) -> Result<(), SplitError> {
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
                Message::Tokens(mut tokens) => {
                    writer.extend(&tokens)?;
                    tokens.clear();
                    // Nobody fills it again once the builder is gone.
                    let _ = written.send(tokens);
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
