//! Rows on their way into shards: put together, written and digested by threads of their own.
//!
//! ```text
//! thread                          gets (4 MiB wait before each, or a batch)   hands on
//! builder (whoever feeds it)      documents in stream order                  stretches of tokens, 1 MiB together
//! `assembler`                     stretches, without a copy                  whole batches of rows; ends of shards
//! `rows`                          batches                                    bytes to the file, and what is to be digested, by reference
//! `digests`                       what was written, and ends of shards       shards whose rows are all digested; the batches' memory, back to `assembler`
//! `finisher` (`ledger`)           a shard's closing, which waits for that    the footer, fsync, rename, a line of the journal
//! ```
//! Digesting is most of the work behind the tokenizer, and a shard's SHA-256 is a chain: it cannot be shared out. So the thread that does
//! it does nothing else. The leaves of rows stay with it: beside the chain, in the other lane of the same instructions, they cost a
//! twelfth more, and on another thread half as much again (`sha256_lanes`).
//!
//! Tokens come in stream order from one builder, and each thread hands them on in that order, so the bytes and digests are the same as if the
//! builder wrote them itself. The builder need not even read tokens that it may keep: the first thread that does waits for
//! another processor's memory. A thread that fails says so in the [`Fault`] and takes what comes, so that nobody waits for it; one
//! that panics drops its ends of the channels, which the threads before and behind it notice.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::PackedWriter;

use super::SplitError;
use super::fault::Fault;
use super::row_threads;

/// Tokens that are handed over together: 1 MiB.
pub(super) const TOGETHER: usize = 1 << 19;
/// As many together that may wait, before each of the threads.
pub(super) const WAITING: usize = 4;

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
pub(super) enum Stretch {
    /// Some of what a tokenizer thread made.
    Shared(Arc<Vec<u16>>, Range<usize>),
    Copied(Vec<u16>),
    /// A separator.
    One(u16),
}

impl Stretch {
    pub(super) fn tokens(&self) -> &[u16] {
        match self {
            Self::Shared(all, range) => &all[range.clone()],
            Self::Copied(tokens) => tokens,
            Self::One(token) => std::slice::from_ref(token),
        }
    }
}

/// Tokens, or the end of a shard.
pub(super) enum Message<T> {
    Tokens(T),
    Seal(Sender<Sealed>),
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
        let fault = Fault::default();
        let threads = row_threads::of(rows, received, &fault);
        // One may not start: dropped, this waits for those before it.
        let mut started = Self {
            stretches: Vec::new(),
            waiting: 0,
            messages: Some(messages),
            fault,
            threads: Vec::with_capacity(threads.len()),
        };
        for (name, work) in threads {
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
        if sent && !self.fault.is_set() { Ok(()) } else { Err(self.fault.error()) }
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;

    use xlstm_manifests::Error as ContractError;
    use xlstm_manifests::packed::tokens_leaf;

    use super::*;

    const SEPARATOR: u16 = xlstm_manifests::END_OF_TEXT;

    fn rows(folder: &Path, row_length: usize) -> Rows {
        Rows { folder: folder.into(), row_length, separator: SEPARATOR, shard: 0, tree: MerkleTree::new() }
    }

    /// Shards of these rows, the last one a token short: bytes, digests and roots are those of a writer on one thread.
    fn check(row_length: usize, shards: &[usize]) {
        let (found, expected) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut writer = RowWriter::start(rows(found.path(), row_length)).unwrap();
        let mut tree = MerkleTree::new();
        for (index, &count) in shards.iter().enumerate() {
            let last = usize::from(index + 1 == shards.len());
            let tokens: Vec<u16> =
                (0..count * row_length - last).map(|at| (at * 7919 % 50_000) as u16).collect();
            let all = Arc::new(tokens.clone());
            for start in (0..tokens.len()).step_by(100_003) {
                let range = start..tokens.len().min(start + 100_003);
                if start.is_multiple_of(2) {
                    writer.share(&all, range).unwrap();
                } else {
                    writer.extend(&tokens[range]).unwrap();
                }
            }
            let sealed = writer.seal().unwrap().recv().unwrap();
            let name = super::super::packed_sink::shard_name(index);
            let mut alone =
                PackedWriter::create(&expected.path().join(&name), row_length, SEPARATOR).unwrap();
            let mut shard_tree = MerkleTree::new();
            for row in tokens.chunks(row_length) {
                alone.push(row).unwrap();
                shard_tree.push(tokens_leaf(row));
                tree.push(tokens_leaf(row));
            }
            assert_eq!(sealed.tokens_root, shard_tree.root());
            assert_eq!(sealed.tree, tree);
            assert_eq!(sealed.writer.finish().unwrap().0, alone.finish().unwrap().0);
            let bytes = |folder: &Path| fs_err::read(folder.join(&name)).unwrap();
            assert!(bytes(found.path()) == bytes(expected.path()));
        }
    }

    #[test]
    fn rows_of_any_length_are_written_as_one_thread_writes_them() {
        check(64, &[700, 1, 9000]);
        check(2048, &[300, 512, 256, 3000]);
        check(65_535, &[3, 600]);
    }

    #[test]
    fn who_waits_for_the_end_of_a_shard_finds_the_error_as_soon_as_nothing_will_come() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..300 {
            let mut writer = RowWriter::start(rows(&folder.path().join("missing"), 64)).unwrap();
            // The end itself meets the error, as the last rows of a shard do on a full disk.
            if let Ok(sealed) = writer.seal() {
                assert!(sealed.recv().is_err());
            }
            assert!(writer.fault().is_set());
        }
    }

    #[test]
    fn whoever_asks_after_the_first_is_told_the_error_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = RowWriter::start(rows(&folder.path().join("missing"), 64)).unwrap();
        let is_the_cause = |error: &SplitError| {
            matches!(error, SplitError::Contract(ContractError::Io(error))
                if error.kind() == ErrorKind::NotFound && error.to_string().contains("shard-00000.arrow"))
        };
        // The end of a shard waits for what will not come, as its closing does on another thread, and takes note of the error.
        let seal = |writer: &mut RowWriter| {
            writer.extend(&[1, 2, 3])?;
            writer.seal()
        };
        match seal(&mut writer) {
            Ok(sealed) => assert!(sealed.recv().is_err()),
            Err(error) => assert!(is_the_cause(&error), "{error}"),
        }
        assert!(is_the_cause(&writer.fault().error()));
        // Then the builder, which goes on until it asks.
        for _ in 0..3 {
            let error = seal(&mut writer).map(drop).unwrap_err();
            assert!(is_the_cause(&error), "{error}");
        }
    }
}
