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
    compression: Compression,
}

impl Decompressed {
    pub(super) fn open(path: &Path, compression: Compression) -> Result<Self, SourceError> {
        let fail = |error| SourceError::io(path, error);
        let file = open_regular(path)?;
        let position = Arc::new(AtomicU64::new(0));
        let file = Counted { file, position: Arc::clone(&position) };
        let file = BufReader::with_capacity(COMPRESSED_BUFFER, file);
        let bytes: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(file),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(file).map_err(fail)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(fail)?;
                bounded(decoder, &position)
            }
            Compression::Gzip => bounded(Members::new(file), &position),
        };
        Ok(Self { bytes, position, compression })
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

fn bounded(decoder: impl Read + Send + 'static, position: &Arc<AtomicU64>) -> Box<dyn BufRead + Send> {
    let bounded = Bounded { decoder, produced: 0, position: Arc::clone(position) };
    Box::new(BufReader::with_capacity(PLAIN_BUFFER, bounded))
}

/// A decoder that ends with an error where a few bytes become far more than any text does: they would be read for days,
/// and a window of 2 GiB would fill.
struct Bounded<R> {
    decoder: R,
    produced: u64,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.produced += count as u64;
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
