//! gzip (RFC 1952): members one after the other, and what may stand behind the last.
//!
//! A tape or an object store pads files with zero bytes, and a hand-made file may end in a newline. `gzip -d` gives all
//! content of such files, so they are read here too. Anything else behind a member is an error: it may be a member whose
//! head was damaged, and then documents would be missing without a word.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The decompressed bytes of all members.
pub(super) struct Members<R: BufRead> {
    /// `None` only while one decoder gives way to the next.
    decoder: Option<GzDecoder<R>>,
    finished: bool,
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(file: R) -> Self {
        Self { decoder: Some(GzDecoder::new(file)), finished: false }
    }

    /// After a member: begins the next one; `false` if there is none.
    fn next_member(&mut self) -> io::Result<bool> {
        let Some(decoder) = self.decoder.take() else { return Ok(false) };
        let mut file = decoder.into_inner();
        let another = match fill(&mut file)?.first() {
            None => false,
            Some(0x1f) => true,
            Some(_) => pad(&mut file).map(|()| false)?,
        };
        self.decoder = another.then(|| GzDecoder::new(file));
        Ok(another)
    }
}

fn fill<R: BufRead>(file: &mut R) -> io::Result<&[u8]> {
    loop {
        match file.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            // Asked again: a result cannot be returned from inside the loop while it is borrowed.
            Ok(_) => return file.fill_buf(),
        }
    }
}

/// Reads to the end what must be padding: zero bytes, or line ends.
fn pad<R: BufRead>(file: &mut R) -> io::Result<()> {
    loop {
        let bytes = fill(file)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(other) = bytes.iter().find(|byte| !matches!(byte, 0 | b'\n' | b'\r')) {
            let text = format!(
                "byte {other:#04x} behind the last member, where another member or padding is expected"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let length = bytes.len();
        file.consume(length);
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.finished && !buffer.is_empty() {
            let count = match &mut self.decoder {
                Some(decoder) => decoder.read(buffer)?,
                None => 0,
            };
            if count > 0 {
                return Ok(count);
            }
            self.finished = !self.next_member()?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Write as _};

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(file: &[u8], buffer: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Members::new(BufReader::with_capacity(buffer, file)).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn members_and_padding_are_read_and_nothing_else_is() {
        let two = [member(b"one"), member(b""), member(b"two")].concat();
        for buffer in [1, 7, 4096] {
            assert_eq!(read(&two, buffer).unwrap(), b"onetwo");
            for padding in [&b"\0"[..], &[0; 5000], b"\n", b"\r\n"] {
                assert_eq!(read(&[&two[..], padding].concat(), buffer).unwrap(), b"onetwo");
            }
            for garbage in [&b"x"[..], b"\0\0x", b"\x1f", b"\x1f\x8b"] {
                read(&[&two[..], garbage].concat(), buffer).unwrap_err();
            }
            read(&two[..two.len() - 1], buffer).unwrap_err();
            read(b"", buffer).unwrap_err();
        }
    }
}
