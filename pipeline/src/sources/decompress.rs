//! Streams of bytes out of files that may be compressed.
//!
//! zstd files may hold several frames one after the other, gzip files several members (PALOMA's were
//! written by appending); both are read to the end of the file (see [`super::gzip`] for what may stand behind). A frame may ask for a window of up to 2 GiB
//! (`--long=31`): it is granted, and costs memory only where a file really asks. A file that was
//! cut exactly between two frames or members looks whole; only its digest tells. How many compressed bytes
//! were read is counted, so that an error can say how far the file was good.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gzip::Members;

use super::error::SourceError;
use super::format::{Compression, open_regular};

/// Bytes read from the file at once.
const COMPRESSED_BUFFER: usize = 256 << 10;

/// Bytes decompressed at once.
const PLAIN_BUFFER: usize = 256 << 10;

/// The largest window a zstd frame may ask for, as a power of two.
const WINDOW_LOG_MAX: u32 = 31;

/// Bytes that any file may decompress to; beyond, at most so many times what was read of it. Text reaches a tenth of that.
pub(super) const ALWAYS_ALLOWED: u64 = 256 << 20;
pub(super) const MAX_RATIO: u64 = 200;

/// A file's decompressed bytes, and how far the file itself was read.
pub(super) struct Decompressed {
    pub(super) bytes: Box<dyn BufRead + Send>,
    position: Arc<AtomicU64>,
    decoded: Arc<Decoded>,
    compression: Compression,
}

/// How far a decoder is.
#[derive(Default)]
struct Decoded {
    /// Bytes that it took, without what waits in a buffer before it.
    taken: AtomicU64,
    /// Bytes that it made of them.
    produced: AtomicU64,
}

impl Decompressed {
    pub(super) fn open(path: &Path, compression: Compression) -> Result<Self, SourceError> {
        let fail = |error| SourceError::io(path, error);
        let file = open_regular(path)?;
        let position = Arc::new(AtomicU64::new(0));
        let file = Counted { file, position: Arc::clone(&position) };
        let file = BufReader::with_capacity(COMPRESSED_BUFFER, file);
        let decoded = Arc::new(Decoded::default());
        let taken = |file| Taken { file, decoded: Arc::clone(&decoded) };
        let bytes: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(file),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(taken(file)).map_err(fail)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(fail)?;
                bounded(decoder, &position, &decoded)
            }
            Compression::Gzip => bounded(Members::new(taken(file)), &position, &decoded),
        };
        Ok(Self { bytes, position, decoded, compression })
    }

    /// A plain file's bytes from `start` on.
    pub(super) fn plain_from(path: &Path, start: u64) -> Result<Self, SourceError> {
        let mut file = open_regular(path)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(start))
            .map_err(|error| SourceError::io(path, error))?;
        let position = Arc::new(AtomicU64::new(start));
        let file = Counted { file, position: Arc::clone(&position) };
        let bytes = Box::new(BufReader::with_capacity(COMPRESSED_BUFFER, file));
        Ok(Self { bytes, position, decoded: Arc::default(), compression: Compression::None })
    }

    /// Bytes of a compressed file that its first `consumed` decompressed bytes came from, but for a block that the decoder
    /// has in hand (128 KiB of zstd): what was decoded and not consumed is taken to be compressed as much as what was.
    pub(super) fn compressed(&self, consumed: u64) -> f64 {
        let (taken, produced) = (&self.decoded.taken, &self.decoded.produced);
        let ratio = taken.load(Ordering::Relaxed) as f64 / produced.load(Ordering::Relaxed).max(1) as f64;
        ratio * consumed as f64
    }

    /// An error of the decoder while it produced record `number`.
    pub(super) fn error(&self, path: &Path, number: u64, error: io::Error) -> SourceError {
        let what = match self.compression {
            Compression::None => "file",
            Compression::Zstd => "zstd stream",
            Compression::Gzip => "gzip stream",
        };
        // The library's words for a dictionary that it was not given.
        if self.compression == Compression::Zstd && error.to_string().contains("ictionary") {
            return SourceError::WrongFormat {
                path: path.to_owned(),
                expected: "a zstd stream that needs nothing else",
                found: "one that was compressed with a dictionary".to_owned(),
                hint: "decompress it with its dictionary first (`zstd -d -D DICTIONARY`)",
            };
        }
        let position = self.position.load(Ordering::Relaxed);
        let place = format!("in record {number} (from 0), within the first {position} bytes of the file");
        SourceError::decoding(path, what, place, error)
    }
}

fn bounded(
    decoder: impl Read + Send + 'static,
    position: &Arc<AtomicU64>,
    decoded: &Arc<Decoded>,
) -> Box<dyn BufRead + Send> {
    let (position, decoded) = (Arc::clone(position), Arc::clone(decoded));
    let bounded = Bounded { decoder, produced: 0, position, decoded };
    Box::new(BufReader::with_capacity(PLAIN_BUFFER, bounded))
}

/// A decoder that ends with an error where a few bytes become far more than any text does: they would be read for days,
/// and a window of 2 GiB would fill.
struct Bounded<R> {
    decoder: R,
    produced: u64,
    position: Arc<AtomicU64>,
    decoded: Arc<Decoded>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.produced += count as u64;
        self.decoded.produced.store(self.produced, Ordering::Relaxed);
        let read = self.position.load(Ordering::Relaxed);
        if self.produced > ALWAYS_ALLOWED && self.produced / MAX_RATIO > read {
            return Err(io::Error::other(format!(
                "{read} bytes became {}, more than {MAX_RATIO} times as many: if that is meant, decompress the file first",
                self.produced
            )));
        }
        Ok(count)
    }
}

/// A buffered file that counts what a decoder takes from it.
struct Taken<R> {
    file: R,
    decoded: Arc<Decoded>,
}

impl<R: BufRead> Read for Taken<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.decoded.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Taken<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.decoded.taken.fetch_add(count as u64, Ordering::Relaxed);
        self.file.consume(count);
    }
}

/// A file that counts what was read of it.
struct Counted {
    file: File,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.position.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
