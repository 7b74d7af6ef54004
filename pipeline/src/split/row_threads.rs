//! The threads of [`super::row_writer`], each a loop over what the one before it sends.

use crossbeam_channel::{Receiver, Sender};
use xlstm_manifests::Error as ContractError;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::file_digest::{Digested, FileDigest, Undigested};
use xlstm_manifests::merkle::{MerkleTree, Section};
use xlstm_manifests::packed::PackedWriter;

use super::SplitError;
use super::fault::Fault;
use super::row_writer::{Message, Rows, Sealed, Stretch, TOGETHER, WAITING};

/// A thread's name and what it does.
type Named = (&'static str, Box<dyn FnOnce() + Send>);

/// What is to be digested: of one shard after the other, in the order of their bytes.
enum ToDigest {
    /// A shard begins; this has the digest of its first bytes.
    Begin(FileDigest),
    Rows(Undigested),
    /// All rows of the shard are written.
    Seal(Option<Box<PackedWriter>>, Sender<Sealed>),
}

/// The threads that put together, write and digest what `messages` bring.
pub(super) fn of(rows: Rows, messages: Receiver<Message<Vec<Stretch>>>, fault: &Fault) -> [Named; 3] {
    let together = rows.tokens_together();
    let (batches, to_write) = crossbeam_channel::bounded(WAITING);
    let (written, to_digest) = crossbeam_channel::bounded(rows.batches_waiting());
    let (spare, empty) = Spare::of(together);
    let (tree, spare_of_rows) = (rows.tree.clone(), spare.clone());
    let (fault_of_rows, fault_of_digests) = (fault.clone(), fault.clone());
    let assemble = move || assemble(&messages, together, &batches, &empty);
    let writing = Writing { rows, open: None, digests: written, spare: spare_of_rows };
    let write = move || run(&to_write, &fault_of_rows, writing);
    let digesting = Digesting { file: FileDigest::default(), shard_tree: MerkleTree::new(), tree, spare };
    let digest = move || run(&to_digest, &fault_of_digests, digesting);
    [("assembler", Box::new(assemble)), ("rows", Box::new(write)), ("digests", Box::new(digest))]
}

/// The thread `assembler`, which puts stretches together, `together` tokens at a time, counted from the beginning of each shard: until no
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

    /// Batches that may wait to be digested: of long rows fewer, since 256 of them can be 32 MiB.
    fn batches_waiting(&self) -> usize {
        (WAITING * TOGETHER / PackedWriter::batch_tokens(self.row_length).max(1)).clamp(1, WAITING)
    }
}

/// What a thread does with each message.
trait Step<M> {
    fn take(&mut self, message: &mut M) -> Result<(), SplitError>;
}

/// A thread: until no further message can come.
fn run<M>(messages: &Receiver<M>, fault: &Fault, mut step: impl Step<M>) {
    for mut message in messages {
        if let Err(error) = step.take(&mut message) {
            // Before anything is dropped: a closing that waits for the end of a shard hears from the drop that nothing will come, and
            // asks here why.
            fault.set(error);
            drop((step, message));
            messages.iter().for_each(drop);
            return;
        }
    }
}

/// The thread `rows`.
struct Writing {
    rows: Rows,
    open: Option<PackedWriter>,
    digests: Sender<ToDigest>,
    spare: Spare,
}

impl Step<Message<Vec<u16>>> for Writing {
    fn take(&mut self, message: &mut Message<Vec<u16>>) -> Result<(), SplitError> {
        let mut writer = match self.open.take() {
            Some(writer) => writer,
            None => self.begin()?,
        };
        match message {
            Message::Tokens(tokens) => {
                self.spare.give_back(writer.take(std::mem::take(tokens))?);
                self.hand_over(&mut writer)?;
                self.open = Some(writer);
            }
            Message::Seal(sender) => {
                writer.end()?;
                self.hand_over(&mut writer)?;
                self.rows.shard += 1;
                self.send(ToDigest::Seal(Some(Box::new(writer)), sender.clone()))?;
            }
        }
        Ok(())
    }
}

impl Writing {
    fn begin(&self) -> Result<PackedWriter, SplitError> {
        let Rows { folder, row_length, separator, shard, .. } = &self.rows;
        let path = folder.join(super::packed_sink::shard_name(*shard));
        let mut writer = PackedWriter::create(&path, *row_length, *separator)?;
        self.send(ToDigest::Begin(writer.digest_later()?))?;
        Ok(writer)
    }

    /// Lets the other thread digest what was written.
    fn hand_over(&self, writer: &mut PackedWriter) -> Result<(), SplitError> {
        let undigested = writer.take_undigested()?;
        if undigested.is_empty() { Ok(()) } else { self.send(ToDigest::Rows(undigested)) }
    }

    fn send(&self, message: ToDigest) -> Result<(), SplitError> {
        let sent = self.digests.send(message);
        sent.map_err(|_| ContractError::internal("the thread that digests rows ended early").into())
    }
}

/// The thread `digests`.
struct Digesting {
    /// Of the shard whose turn it is.
    file: FileDigest,
    shard_tree: MerkleTree,
    /// Over the rows of all shards.
    tree: MerkleTree,
    spare: Spare,
}

impl Step<ToDigest> for Digesting {
    fn take(&mut self, message: &mut ToDigest) -> Result<(), SplitError> {
        match message {
            ToDigest::Begin(file) => self.file = std::mem::take(file),
            ToDigest::Rows(undigested) => {
                let Digested { leaves, rows } = std::mem::take(undigested).digest(&mut self.file);
                rows.into_iter()
                    .filter_map(|rows| rows.into_vec::<u16>().ok())
                    .for_each(|memory| self.spare.give_back(memory));
                append(&mut self.shard_tree, &mut self.tree, &leaves)?;
            }
            ToDigest::Seal(writer, sender) => {
                let Some(mut writer) = writer.take() else { return Ok(()) };
                writer.digest_now(std::mem::take(&mut self.file))?;
                let tokens_root = std::mem::take(&mut self.shard_tree).root();
                // The closing is gone only when the run has failed.
                let _ = sender.send(Sealed { writer: *writer, tokens_root, tree: self.tree.clone() });
            }
        }
        Ok(())
    }
}

/// Appends leaves to the tree of their shard and to that of all: once, where the same subtrees are in both.
fn append(
    shard_tree: &mut MerkleTree,
    tree: &mut MerkleTree,
    leaves: &[Sha256Digest],
) -> Result<(), SplitError> {
    let beginning_at = |start| {
        let mut section = Section::new(start);
        section.extend(leaves);
        section
    };
    let of_shard = beginning_at(shard_tree.leaves());
    let of_all = of_shard.moved(tree.leaves()).unwrap_or_else(|| beginning_at(tree.leaves()));
    shard_tree.append(&of_shard)?;
    Ok(tree.append(&of_all)?)
}

/// Memory of batches, for the assembler to fill again.
#[derive(Clone)]
struct Spare {
    /// Tokens that the assembler puts together.
    together: usize,
    memory: Sender<Vec<u16>>,
}

impl Spare {
    /// More come back than were sent: each shard brings the memory that its writer began with. What nobody needs is let go.
    const MOST: usize = 2 * WAITING + 4;

    fn of(together: usize) -> (Self, Receiver<Vec<u16>>) {
        let (memory, empty) = crossbeam_channel::bounded(Self::MOST);
        (Self { together, memory }, empty)
    }

    /// That of very short or long rows is not what a batch of the assembler needs.
    fn give_back(&self, mut memory: Vec<u16>) {
        if (self.together..=2 * self.together).contains(&memory.capacity()) {
            memory.clear();
            // Full, or the assembler is gone.
            let _ = self.memory.try_send(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(folder: &std::path::Path) -> (PackedWriter, FileDigest) {
        let mut writer = PackedWriter::create(&folder.join("shard.arrow"), 64, 0).unwrap();
        let file = writer.digest_later().unwrap();
        (writer, file)
    }

    #[test]
    fn rows_are_not_written_on_once_nobody_digests_them() {
        let folder = tempfile::tempdir().unwrap();
        let (messages, received) = crossbeam_channel::unbounded();
        let (digests, gone) = crossbeam_channel::bounded(1);
        drop(gone);
        let (seal, sealed) = crossbeam_channel::bounded(1);
        messages.send(Message::Tokens(vec![1; 64])).unwrap();
        messages.send(Message::Seal(seal)).unwrap();
        let rows = Rows {
            folder: folder.path().into(),
            row_length: 64,
            separator: 0,
            shard: 0,
            tree: MerkleTree::new(),
        };
        drop(messages);
        let fault = Fault::default();
        let spare = Spare::of(TOGETHER).0;
        run(&received, &fault, Writing { rows, open: None, digests, spare });
        assert!(fault.is_set() && fault.error().is_internal());
        assert!(sealed.recv().is_err(), "nobody waits for a shard that will not come");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0, "nothing is left half-written");
    }

    #[test]
    fn a_shard_is_not_sealed_while_its_digest_lacks_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (digests, to_digest) = crossbeam_channel::unbounded();
        let (mut writer, file) = begun(folder.path());
        writer.extend(&[1; 64]).unwrap();
        writer.end().unwrap();
        let (seal, sealed) = crossbeam_channel::bounded(1);
        digests.send(ToDigest::Begin(file)).unwrap();
        digests.send(ToDigest::Seal(Some(Box::new(writer)), seal)).unwrap();
        drop(digests);
        let spare = Spare::of(TOGETHER).0;
        let fault = Fault::default();
        let (shard_tree, tree) = (MerkleTree::new(), MerkleTree::new());
        let digesting = Digesting { file: FileDigest::default(), shard_tree, tree, spare };
        run(&to_digest, &fault, digesting);
        assert!(fault.is_set() && fault.error().is_internal());
        assert!(sealed.recv().is_err());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0, "nothing is left half-written");
    }

    #[test]
    fn memory_that_comes_back_is_bounded_and_of_a_size_that_is_needed() {
        let (spare, empty) = Spare::of(1000);
        for capacity in [0, 999, 2001, 16_000] {
            spare.give_back(Vec::with_capacity(capacity));
        }
        assert!(empty.is_empty(), "of another size");
        // Shards that are no whole number of batches bring one more each than was sent.
        for _ in 0..100 {
            spare.give_back(vec![7; 1000]);
        }
        assert_eq!(empty.len(), Spare::MOST);
        assert!(empty.try_iter().all(|memory| memory.is_empty() && memory.capacity() >= 1000));
        drop(empty);
        spare.give_back(vec![7; 1000]);
    }
}
