//! The digest of a file that is being written, and of Merkle leaves over the same bytes: now, or later and elsewhere.
//!
//! ```text
//! now     bytes ─► file, FileDigest, leaves                     one thread, nothing is kept
//! later   bytes ─► file, and by reference ─► Undigested ─► FileDigest, leaves     on another thread, in the same order
//! ```
//! Rows that a writer is given are not copied for later: the buffer that their leaves are over is kept, and what is written
//! out of it is told by its address. Only what stands between rows (headers, lengths, padding) is copied.

use arrow_buffer::Buffer;

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::merkle::Leaves;
use crate::sha256_lanes::{LongMessage, compress};

/// What the bytes of a file so far have made of its digest.
#[derive(Debug, Default)]
pub struct FileDigest(LongMessage);

impl FileDigest {
    fn update(&mut self, bytes: &[u8], beside: Option<&mut Leaves>) {
        self.0.update(bytes, |state, blocks| match beside {
            Some(leaves) => leaves.accompany(state, blocks),
            None => compress(state, blocks),
        });
    }
}

/// Bytes of a file, one after the other.
#[derive(Debug)]
enum Piece {
    /// Some of the rows.
    Shared(Buffer),
    Copied(Vec<u8>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(buffer) => buffer,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// Bytes of a file up to the next rows, and the leaves that are digested beside them.
#[derive(Debug, Default)]
struct Stretch {
    leaves: Option<Leaves>,
    pieces: Vec<Piece>,
}

impl Stretch {
    fn push(&mut self, bytes: &[u8]) {
        if let Some(shared) = self.leaves.as_ref().and_then(|leaves| part_of(leaves.buffer(), bytes)) {
            self.pieces.push(Piece::Shared(shared));
        } else if let Some(Piece::Copied(last)) = self.pieces.last_mut() {
            last.extend_from_slice(bytes);
        } else {
            self.pieces.push(Piece::Copied(bytes.to_vec()));
        }
    }
}

/// `bytes` as a part of `buffer`, if that is where they lie.
fn part_of(buffer: &Buffer, bytes: &[u8]) -> Option<Buffer> {
    let offset = bytes.as_ptr().addr().checked_sub(buffer.as_ptr().addr())?;
    let inside = !bytes.is_empty() && offset.checked_add(bytes.len())? <= buffer.len();
    inside.then(|| buffer.slice_with_length(offset, bytes.len()))
}

/// What was written and is not yet digested.
#[derive(Debug, Default)]
#[must_use = "the file's digest lacks it until it is digested"]
pub struct Undigested(Vec<Stretch>);

/// What [`Undigested::digest`] has made.
#[derive(Debug, Default)]
pub struct Digested {
    /// The Merkle leaves of the rows, in their order.
    pub leaves: Vec<Sha256Digest>,
    /// The memory of the rows: nothing of this crate holds it any longer.
    pub rows: Vec<Buffer>,
}

impl Undigested {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all of it into the file's digest, which has everything before it.
    #[must_use]
    pub fn digest(self, file: &mut FileDigest) -> Digested {
        let mut digested = Digested::default();
        for Stretch { mut leaves, pieces } in self.0 {
            pieces.iter().for_each(|piece| file.update(piece.bytes(), leaves.as_mut()));
            drop(pieces);
            if let Some(leaves) = leaves {
                let (leaves, rows) = leaves.finish();
                digested.leaves.extend(leaves);
                digested.rows.push(rows);
            }
        }
        digested
    }
}

/// How a file's bytes are digested.
#[derive(Debug)]
enum When {
    Now { file: FileDigest, beside: Option<Box<Leaves>> },
    Later(Undigested),
}

/// The digests of a file that is being written.
#[derive(Debug)]
pub(crate) struct Digests {
    /// Bytes that were written.
    size: u64,
    when: When,
}

impl Digests {
    /// Nothing has been written yet; what is will be digested at once.
    pub(crate) fn new() -> Self {
        Self { size: 0, when: When::Now { file: FileDigest::default(), beside: None } }
    }

    /// Takes bytes that were written.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.when {
            When::Now { file, beside } => file.update(bytes, beside.as_deref_mut()),
            When::Later(Undigested(stretches)) => {
                if stretches.is_empty() {
                    stretches.push(Stretch::default());
                }
                if let Some(last) = stretches.last_mut() {
                    last.push(bytes);
                }
            }
        }
    }

    /// Digests `leaves` beside what is written from now on.
    pub(crate) fn begin_leaves(&mut self, leaves: Leaves) {
        match &mut self.when {
            When::Now { beside, .. } => *beside = Some(Box::new(leaves)),
            When::Later(Undigested(stretches)) => {
                stretches.push(Stretch { leaves: Some(leaves), pieces: Vec::new() });
            }
        }
    }

    /// The digests of the leaves that were begun last; none yet, if they are digested later.
    pub(crate) fn end_leaves(&mut self) -> Vec<Sha256Digest> {
        match &mut self.when {
            When::Now { beside, .. } => beside.take().map(|leaves| leaves.finish().0).unwrap_or_default(),
            When::Later(_) => Vec::new(),
        }
    }

    /// From now on nothing is digested here: what is to be done is [`Self::take`]n, and brought into what this returns.
    pub(crate) fn digest_later(&mut self) -> FileDigest {
        match std::mem::replace(&mut self.when, When::Later(Undigested::default())) {
            When::Now { file, .. } => file,
            When::Later(_) => FileDigest::default(),
        }
    }

    /// What was written since the last call and is not digested.
    pub(crate) fn take(&mut self) -> Undigested {
        match &mut self.when {
            When::Now { .. } => Undigested::default(),
            When::Later(undigested) => std::mem::take(undigested),
        }
    }

    /// Digests at once again, from `file` on.
    ///
    /// # Errors
    /// When `file` does not have all that was written, which is a fault of the program.
    pub(crate) fn digest_now(&mut self, file: FileDigest) -> Result<()> {
        if file.0.length() != self.size {
            return Err(Error::internal(format!(
                "{} bytes of a file were digested and {} written",
                file.0.length(),
                self.size
            )));
        }
        self.when = When::Now { file, beside: None };
        Ok(())
    }

    /// The size in bytes and the digest of what was written.
    ///
    /// # Errors
    /// When some of it is still to be digested, which is a fault of the program.
    pub(crate) fn finish(self) -> Result<(u64, Sha256Digest)> {
        match self.when {
            When::Now { file, .. } => Ok((self.size, Sha256Digest(file.0.finish()))),
            When::Later(_) => Err(Error::internal("a file was finished before it was digested")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merkle::leaf;

    const ROW: usize = 100;

    fn rows(count: usize, seed: u8) -> Buffer {
        Buffer::from_vec(
            (0..count * ROW).map(|at| (at as u8).wrapping_mul(37).wrapping_add(seed)).collect::<Vec<u8>>(),
        )
    }

    proptest! {
        /// However often it is taken, and whatever is written between the rows.
        #[test]
        fn later_makes_the_digests_that_now_makes(
            batches in prop::collection::vec((0usize..5, 0usize..200, any::<bool>()), 0..6),
        ) {
            let (mut now, mut later) = (Digests::new(), Digests::new());
            let mut whole = b"header".to_vec();
            now.update(&whole);
            later.update(&whole);
            let mut file = later.digest_later();
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            for (&(count, between, taken), seed) in batches.iter().zip(1..) {
                let (rows, between) = (rows(count, seed), vec![seed; between]);
                expected.extend(rows.chunks(ROW).map(|row| leaf(&[row])));
                for digests in [&mut now, &mut later] {
                    digests.begin_leaves(Leaves::new(rows.clone(), ROW, vec![ROW; count]));
                    digests.update(&between);
                    digests.update(&rows);
                    digests.update(&between);
                }
                found.extend(now.end_leaves());
                prop_assert!(later.end_leaves().is_empty());
                whole.extend([&between[..], &rows, &between].concat());
                if taken {
                    drop(later.take().digest(&mut file));
                    // Taken again, there is nothing.
                    prop_assert!(later.take().is_empty());
                }
            }
            prop_assert_eq!(&found, &expected);
            let _ = later.take().digest(&mut file);
            later.digest_now(file).unwrap();
            for digests in [&mut now, &mut later] {
                digests.update(b"footer");
            }
            whole.extend(b"footer");
            let expected = (whole.len() as u64, Sha256Digest::of(&whole));
            prop_assert_eq!(now.finish().unwrap(), expected);
            prop_assert_eq!(later.finish().unwrap(), expected);
        }
    }

    #[test]
    fn rows_are_kept_where_they_lie_and_given_back() {
        let rows = rows(3, 1);
        let place = rows.as_ptr();
        let mut digests = Digests::new();
        let mut file = digests.digest_later();
        digests.begin_leaves(Leaves::new(rows.clone(), ROW, vec![ROW; 3]));
        digests.update(&rows[..2 * ROW]);
        digests.update(&rows[2 * ROW..]);
        let expected: Vec<_> = rows.chunks(ROW).map(|row| leaf(&[row])).collect();
        drop(rows);
        let undigested = digests.take();
        assert!(undigested.0[0].pieces.iter().all(|piece| matches!(piece, Piece::Shared(_))));
        let Digested { leaves, rows } = undigested.digest(&mut file);
        assert_eq!(leaves, expected);
        let rows: Vec<u8> = rows.into_iter().next().unwrap().into_vec().unwrap();
        assert_eq!(rows.as_ptr(), place);
    }

    #[test]
    fn a_digest_that_lacks_something_is_not_taken() {
        let mut digests = Digests::new();
        let file = digests.digest_later();
        digests.update(b"not digested");
        assert!(digests.digest_now(file).unwrap_err().is_internal());
        assert!(digests.finish().unwrap_err().is_internal());
    }
}
