//! Crate archives: the `.crate` files that cargo downloads, gzip-compressed tars of source code.
//!
//! The record number is the entry's place among all entries of the archive. Used as documents are regular
//! files of at most 1 MiB of UTF-8 whose name says that they are text: `*.rs`, `*.md`, `*.toml`, `*.txt`,
//! and those that begin with `LICENSE`, `LICENCE`, `COPYING`, `README`, `CHANGELOG` or `NOTICE`. The rest
//! (binaries, lock files, data) is not a document and not counted. The id is the path inside the archive,
//! the set the family of the ending. Nothing is ever written to disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use tar::{Archive, Entry as ArchiveEntry};

use super::error::SourceError;
use super::{Entry, Record, RecordReader};

/// The largest file that is used.
const MAX_FILE: u64 = 1 << 20;

/// The most text that is held of one archive; cargo's registry accepts 10 MB compressed.
const MAX_TEXT: usize = 256 << 20;

/// The most that an archive unpacks to: names and attributes of its entries can be as long as it says.
const MAX_UNPACKED: u64 = 512 << 20;

type CrateFile = AtMost<GzDecoder<BufReader<File>>>;

/// A reader that ends with an error after so many bytes.
struct AtMost<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for AtMost<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(format!("more than {MAX_UNPACKED} bytes in one archive")))?;
        Ok(count)
    }
}

/// The text files of one archive.
pub(super) struct CrateArchive {
    /// `None` once the archive was read.
    path: Option<PathBuf>,
    from_record: u64,
    records: VecDeque<Record>,
}

impl CrateArchive {
    pub(super) fn new(path: &Path, from_record: u64) -> Self {
        Self { path: Some(path.to_owned()), from_record, records: VecDeque::new() }
    }
}

impl RecordReader for CrateArchive {
    fn next_entry(&mut self) -> Option<Result<Entry, SourceError>> {
        if let Some(path) = self.path.take() {
            match read_texts(&path, self.from_record) {
                Ok(records) => self.records = records,
                Err(error) => return Some(Err(error)),
            }
        }
        self.records.pop_front().map(|record| Ok(Entry::Record(record)))
    }
}

/// All documents of the archive numbered `from_record` and up.
fn read_texts(path: &Path, from_record: u64) -> Result<VecDeque<Record>, SourceError> {
    let mut records = VecDeque::new();
    let mut total = 0;
    each_entry(path, |number, entry| {
        let id = entry_path(entry);
        let Some(set) = family(&id).filter(|_| number >= from_record && is_small_file(entry)) else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        total += text.len();
        if total > MAX_TEXT {
            return Err(io::Error::other(format!("more than {MAX_TEXT} bytes of text in one archive")));
        }
        let set = Some(set.to_owned());
        records.push_back(Record { number, text, id: Some(id), set, ..Record::default() });
        Ok(())
    })?;
    Ok(records)
}

/// The license that the crate's own manifest states: an SPDX expression, or `see FILE`; `None` if it states
/// neither.
///
/// # Errors
/// When the archive cannot be read, or its `Cargo.toml` is no TOML.
pub fn read_crate_licence(path: &Path) -> Result<Option<String>, SourceError> {
    let mut manifest = None;
    each_entry(path, |_, entry| {
        let inner = entry_path(entry);
        if inner.split_once('/').is_some_and(|(_, name)| name == "Cargo.toml") && is_small_file(entry) {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            manifest = Some(text);
        }
        Ok(())
    })?;
    let Some(manifest) = manifest else { return Ok(None) };
    let table: toml::Table = manifest.parse().map_err(|error: toml::de::Error| {
        let place = "in its Cargo.toml".to_owned();
        let detail = error.message().to_owned();
        SourceError::Corrupt { path: path.to_owned(), what: "crate archive", place, detail }
    })?;
    let field = |name| table.get("package")?.get(name)?.as_str();
    Ok(field("license")
        .map(str::to_owned)
        .or_else(|| field("license-file").map(|file| format!("see {file}"))))
}

/// Calls `visit` with every entry of the archive and its number.
fn each_entry(
    path: &Path,
    mut visit: impl FnMut(u64, &mut ArchiveEntry<'_, CrateFile>) -> io::Result<()>,
) -> Result<(), SourceError> {
    let file = File::open(path).map_err(|error| SourceError::io(path, error))?;
    let mut archive =
        Archive::new(AtMost { reader: GzDecoder::new(BufReader::new(file)), left: MAX_UNPACKED });
    let mut number = 0;
    let result = archive.entries().and_then(|entries| {
        for entry in entries {
            visit(number, &mut entry?)?;
            number += 1;
        }
        Ok(())
    });
    result.map_err(|error| {
        SourceError::decoding(path, "crate archive", format!("at entry {number} (from 0)"), error)
    })
}

fn entry_path(entry: &ArchiveEntry<'_, CrateFile>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).into_owned()
}

fn is_small_file(entry: &ArchiveEntry<'_, CrateFile>) -> bool {
    entry.header().entry_type().is_file() && entry.size() <= MAX_FILE
}

/// The set that a file of this name counts towards; `None` if it is not used.
fn family(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?.to_ascii_lowercase();
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs") => return Some("rust"),
        Some("md") => return Some("markdown"),
        Some("toml") => return Some("toml"),
        Some("txt") => return Some("text"),
        _ => {}
    }
    let prefixes = ["license", "licence", "copying", "readme", "changelog", "notice"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)).then_some("text")
}
