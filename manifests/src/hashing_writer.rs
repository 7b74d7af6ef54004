//! A writer that digests a file while it is written, and Merkle leaves of the same bytes beside it.

use std::io::{self, Write};

use crate::digest::Sha256Digest;
use crate::merkle::Leaves;
use crate::sha256_lanes::{LongMessage, compress};

/// A writer that digests and counts what passes through it.
#[derive(Debug)]
pub(crate) struct HashingWriter<W> {
    inner: W,
    stream: LongMessage,
    /// Digested in the other lane while there is something to write.
    beside: Option<Leaves>,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner`; nothing has been counted yet.
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, stream: LongMessage::new(), beside: None }
    }

    /// Digests `leaves` beside what is written from now on.
    pub(crate) fn begin_leaves(&mut self, leaves: Leaves) {
        self.beside = Some(leaves);
    }

    /// The digests of the leaves that were begun last.
    pub(crate) fn end_leaves(&mut self) -> Vec<Sha256Digest> {
        self.beside.take().map(Leaves::finish).unwrap_or_default()
    }

    /// The wrapped writer, with the size in bytes and the digest of what was written.
    pub(crate) fn finish(self) -> (W, u64, Sha256Digest) {
        (self.inner, self.stream.length(), Sha256Digest(self.stream.finish()))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.stream.update(&bytes[..written], |state, blocks| match &mut self.beside {
            Some(leaves) => leaves.accompany(state, blocks),
            None => compress(state, blocks),
        });
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
