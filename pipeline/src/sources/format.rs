//! Which format a file has: by its name, and then by its first bytes.
//!
//! A failed download often leaves a file of the right name with an error page, a Git LFS pointer or
//! nothing inside (NVIDIA's script for the same corpus treats files below 100 bytes as failed). So the
//! first bytes are looked at before anything is parsed, and the error says what they are:
//!
//! | bytes | format |
//! |---|---|
//! | `28 b5 2f fd`, or `5x 2a 4d 18` (skippable frame) | zstd (RFC 8878) |
//! | `1f 8b` | gzip (RFC 1952) |
//! | `PAR1` | Parquet |

use std::fs::File;
use std::io::Read;
use std::path::Path;

use xlstm_manifests::printable;

use super::error::SourceError;

/// How a file of JSON lines or of text is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd, one or more frames.
    Zstd,
    /// gzip, one or more members.
    Gzip,
}

/// The format of a source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One JSON object a line.
    JsonLines {
        /// What wraps the lines.
        compression: Compression,
    },
    /// Apache Parquet.
    Parquet,
    /// Plain text or Markdown: the file is one document.
    Text {
        /// What wraps the text.
        compression: Compression,
    },
    /// A `.crate` archive of cargo: a gzip-compressed tar.
    Crate,
}

impl Format {
    /// The format that the name of `path` says; `None` if it says none.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        // A name that is not UTF-8 has its ending all the same.
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let (stem, ending) = name.rsplit_once('.')?;
        let (inner, compression) = match ending {
            "zst" => (stem.rsplit_once('.')?.1, Compression::Zstd),
            "gz" => (stem.rsplit_once('.')?.1, Compression::Gzip),
            plain => (plain, Compression::None),
        };
        match (inner, compression) {
            ("jsonl" | "ndjson", _) | ("json", Compression::Zstd | Compression::Gzip) => {
                Some(Self::JsonLines { compression })
            }
            ("txt" | "md" | "markdown", _) => Some(Self::Text { compression }),
            ("parquet", Compression::None) => Some(Self::Parquet),
            ("crate", Compression::None) => Some(Self::Crate),
            _ => None,
        }
    }

    /// The format that the name of `path` says.
    ///
    /// # Errors
    /// [`SourceError::UnknownFormat`] if it says none.
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        Self::from_path(path).ok_or_else(|| SourceError::UnknownFormat { path: path.to_owned() })
    }

    /// Compares the first bytes of `path` with the format.
    ///
    /// # Errors
    /// When they are of another format, or the file cannot be read.
    pub fn check(self, path: &Path) -> Result<(), SourceError> {
        let mut head = Vec::new();
        let file = open_regular(path)?;
        file.take(256).read_to_end(&mut head).map_err(|error| SourceError::io(path, error))?;
        let found = Head::of(&head);
        let fits = match self {
            Self::JsonLines { compression: Compression::None } => {
                matches!(found, Head::Empty | Head::Other)
            }
            Self::JsonLines { compression: Compression::Zstd }
            | Self::Text { compression: Compression::Zstd } => found == Head::Zstd,
            Self::JsonLines { compression: Compression::Gzip }
            | Self::Text { compression: Compression::Gzip }
            | Self::Crate => found == Head::Gzip,
            Self::Parquet => found == Head::Parquet,
            // Text may be anything, even a page of HTML; but not what is never text.
            Self::Text { compression: Compression::None } => {
                matches!(found, Head::Empty | Head::Markup | Head::Other)
            }
        };
        if fits {
            return Ok(());
        }
        Err(SourceError::WrongFormat {
            path: path.to_owned(),
            expected: self.name(),
            found: found.describe(&head),
            hint: found.hint(),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::JsonLines { compression: Compression::None } => "JSON lines",
            Self::JsonLines { compression: Compression::Zstd } => "zstd-compressed JSON lines",
            Self::JsonLines { compression: Compression::Gzip } => "gzip-compressed JSON lines",
            Self::Parquet => "a Parquet file",
            Self::Text { compression: Compression::None } => "text",
            Self::Text { compression: Compression::Zstd } => "zstd-compressed text",
            Self::Text { compression: Compression::Gzip } => "gzip-compressed text",
            Self::Crate => "a crate archive (gzip)",
        }
    }
}

/// Opens a file that can be read twice and to an end: a pipe or a device is neither.
///
/// # Errors
/// When it is none, or cannot be opened.
pub(super) fn open_regular(path: &Path) -> Result<File, SourceError> {
    // Looked at before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| SourceError::io(path, error))?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(|error| SourceError::io(path, error))
}

/// The encoding other than UTF-8 that the first bytes of a text show: by their byte order mark, or by the zero bytes of
/// a first character below U+0100.
pub(super) fn other_encoding(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        &[a, 0, b, 0, ..] | &[0, a, 0, b, ..] if a != 0 && b != 0 => Some("UTF-16"),
        _ => None,
    }
}

/// What to do about text of another encoding.
pub(super) const CONVERT: &str =
    "convert it first, as with `iconv -f UTF-16 -t UTF-8` (the encoding of its name)";

/// What the first bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Empty,
    Zstd,
    Gzip,
    Parquet,
    EncryptedParquet,
    LargeFilePointer,
    OtherEncoding,
    Markup,
    Other,
}

impl Head {
    fn of(head: &[u8]) -> Self {
        match head {
            [] => Self::Empty,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x1f, 0x8b, ..] => Self::Gzip,
            [b'P', b'A', b'R', b'1', ..] => Self::Parquet,
            [b'P', b'A', b'R', b'E', ..] => Self::EncryptedParquet,
            _ if is_large_file_pointer(head) => Self::LargeFilePointer,
            _ if other_encoding(head).is_some() => Self::OtherEncoding,
            _ if head.trim_ascii_start().starts_with(b"<") => Self::Markup,
            _ => Self::Other,
        }
    }

    fn describe(self, head: &[u8]) -> String {
        match self {
            Self::Empty => "an empty file".to_owned(),
            Self::Zstd => "zstd data".to_owned(),
            Self::Gzip => "gzip data".to_owned(),
            Self::Parquet => "a Parquet file".to_owned(),
            Self::EncryptedParquet => "an encrypted Parquet file (magic `PARE`)".to_owned(),
            Self::OtherEncoding => {
                format!("text in {}", other_encoding(head).unwrap_or("another encoding than UTF-8"))
            }
            Self::LargeFilePointer => "a Git LFS pointer in place of the file".to_owned(),
            Self::Markup => format!("an HTML or XML page (`{}`)", excerpt(head)),
            Self::Other => {
                let bytes: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                format!("the bytes {} (`{}`)", bytes.join(" "), excerpt(head))
            }
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Empty | Self::Markup => {
                "a download failed and left this behind: delete it and download again"
            }
            Self::LargeFilePointer => "run `git lfs pull`, or download the file itself",
            Self::EncryptedParquet => "decrypt it with its key first: encrypted files cannot be read here",
            Self::OtherEncoding => CONVERT,
            Self::Zstd | Self::Gzip | Self::Parquet => "give the file the ending of what it is",
            Self::Other => "compare its size and SHA-256 with the source and download it again",
        }
    }
}

/// Git LFS leaves a pointer (specification, version 1) where a file was not fetched: a text file of three lines or more,
/// the version first. A text about such files has no `oid` in its second line.
fn is_large_file_pointer(head: &[u8]) -> bool {
    let Some(rest) = head.strip_prefix(b"version https://") else { return false };
    let second = rest.trim_ascii_end().split(|&byte| byte == b'\n').nth(1);
    rest.starts_with(b"git-lfs.")
        && second.is_none_or(|line| line.starts_with(b"oid ") || line.starts_with(b"ext-"))
}

/// The first characters, fit for one line of a message.
fn excerpt(head: &[u8]) -> String {
    printable::text(&String::from_utf8_lossy(&head[..head.len().min(60)])).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_format() {
        let json = |compression| Some(Format::JsonLines { compression });
        for (name, format) in [
            ("a/example_train_0.jsonl.zst", json(Compression::Zstd)),
            ("val_x.jsonl.gz", json(Compression::Gzip)),
            ("c4-train.00000.json.gz", json(Compression::Gzip)),
            ("A.JSONL", json(Compression::None)),
            ("x.ndjson", json(Compression::None)),
            ("train-00000-of-00048-ab722660a17694c2.parquet", Some(Format::Parquet)),
            ("README.md", Some(Format::Text { compression: Compression::None })),
            ("notes.txt.zst", Some(Format::Text { compression: Compression::Zstd })),
            ("notes.MD.gz", Some(Format::Text { compression: Compression::Gzip })),
            ("rows.parquet.gz", None),
            ("serde-1.0.0.crate", Some(Format::Crate)),
            ("package.json", None),
            ("backup.tar.gz", None),
            ("Makefile", None),
        ] {
            assert_eq!(Format::from_path(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn the_first_bytes_must_agree() {
        let directory = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Format::of(&path).unwrap().check(&path).map_err(|error| error.to_string())
        };
        assert!(check("a.jsonl", b"").is_ok());
        assert!(check("a.jsonl", b"\xef\xbb\xbf{}").is_ok());
        assert!(check("a.jsonl.zst", &zstd::encode_all(&b"{}"[..], 1).unwrap()).is_ok());
        assert!(check("a.md", b"<p>").is_ok());
        assert!(
            check("a.md", b"version https://git-lfs.github.com/spec/v1\nis how a pointer begins").is_ok()
        );
        let page = b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>";
        for (name, bytes, found) in [
            ("a.jsonl.zst", &page[..], "an HTML or XML page"),
            ("a.jsonl.zst", b"", "an empty file"),
            ("a.jsonl.zst", b"\x1f\x8b\x08", "gzip data"),
            ("a.jsonl.gz", b"{\"text\":1}", "7b 22 74 65"),
            ("a.jsonl", b"\x28\xb5\x2f\xfd", "zstd data"),
            ("a.jsonl", page, "an HTML or XML page"),
            ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            ("a.txt", b"PAR1", "a Parquet file"),
            (
                "a.md",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
                "a Git LFS pointer",
            ),
            ("a.txt", b"\xff\xfeh\0i\0", "UTF-16"),
            ("a.jsonl", b"{\0\"\0t\0", "UTF-16"),
            ("a.parquet", b"PAREabc", "an encrypted Parquet file"),
            ("a.crate", b"", "an empty file"),
        ] {
            let error = check(name, bytes).unwrap_err();
            assert!(error.contains(found) && error.contains(name), "{error}");
        }
    }
}
