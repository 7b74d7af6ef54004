//! A writer whose bytes are digested as they are written.

use std::io::{self, Write};

use crate::file_digest::Digests;

/// A writer that digests and counts what passes through it.
#[derive(Debug)]
pub(crate) struct HashingWriter<W> {
    inner: W,
    digests: Digests,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner`; nothing has been counted yet.
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, digests: Digests::new() }
    }

    /// The digests of what was written so far.
    pub(crate) fn digests(&mut self) -> &mut Digests {
        &mut self.digests
    }

    /// The wrapped writer, and the digests of what was written.
    pub(crate) fn finish(self) -> (W, Digests) {
        (self.inner, self.digests)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digests.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
