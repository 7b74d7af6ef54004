//! JSON files that begin with what they are: `format` and `version`, which are looked at before all else.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::{printable, reading};

/// A kind of file.
pub(crate) struct FileKind {
    /// The value of `format`.
    pub(crate) format: &'static str,
    /// The newest version that is read.
    pub(crate) version: u32,
    /// Its name in a folder.
    pub(crate) file: &'static str,
    /// What it is, for messages.
    pub(crate) what: &'static str,
    /// What to name instead where it is missing.
    pub(crate) hint: &'static str,
}

#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

impl FileKind {
    /// The file for a path that names its folder or the file itself.
    pub(crate) fn locate(&self, path: &Path) -> PathBuf {
        if path.is_dir() { path.join(self.file) } else { path.into() }
    }

    /// What a message says is there where the file `path` is not: such files one folder below, if any.
    fn found_instead_of(&self, path: &Path) -> String {
        let entries = path.parent().and_then(|folder| fs_err::read_dir(folder).ok()).into_iter().flatten();
        let mut below: Vec<String> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|folder| folder.join(self.file).is_file())
            .map(|folder| format!("`{}`", printable::path(&folder)))
            .collect();
        below.sort();
        let more = if below.len() > 8 { ", …" } else { "" };
        below.truncate(8);
        match below.as_slice() {
            [] => "no such file".into(),
            below => format!("no such file, but one in {}{more}", below.join(", ")),
        }
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// When it is missing, is of another format, newer than this program, or of another shape.
    pub(crate) fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        reading::note(path);
        let bytes = match fs_err::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::mismatch(path, self.what, self.found_instead_of(path), self.hint));
            }
            Err(error) => return Err(error.into()),
        };
        let Self { format, version, .. } = self;
        let header: Header = serde_json::from_slice(&bytes).map_err(|error| {
            Error::damaged(path, format!("{} (`{format}`)", self.what), error.to_string())
        })?;
        if header.format != *format {
            return Err(Error::damaged(path, format!("format `{format}`"), format!("`{}`", header.format)));
        }
        if header.version > *version {
            return Err(Error::NewerVersion {
                path: path.into(),
                found: header.version,
                supported: *version,
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::damaged(path, format!("version {version} of `{format}`"), error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: FileKind =
        FileKind { format: "some-kind", version: 2, file: "some.json", what: "a thing", hint: "look there" };

    #[derive(Debug, Deserialize)]
    struct Thing {
        name: String,
    }

    #[test]
    fn what_a_file_is_comes_before_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = KIND.locate(folder.path());
        assert_eq!(KIND.locate(&path), path);
        let read = |text: &str| {
            fs_err::write(&path, text).unwrap();
            KIND.read::<Thing>(&path).map(|thing| thing.name).map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"format":"some-kind","version":1,"name":"x"}"#), Ok("x".to_owned()));
        for (text, parts) in [
            ("", ["some.json", "a thing"]),
            (r#"{"format":"other","version":1,"name":"x"}"#, ["`some-kind`", "`other`"]),
            (r#"{"format":"some-kind","version":3}"#, ["3", "2"]),
            (r#"{"format":"some-kind","version":2}"#, ["version 2", "name"]),
        ] {
            let error = read(text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
        fs_err::remove_file(&path).unwrap();
        let error = KIND.read::<Thing>(&path).unwrap_err().to_string();
        assert!(error.contains("no such file;") && error.contains("look there"), "{error}");
        fs_err::create_dir(folder.path().join("inside")).unwrap();
        fs_err::write(folder.path().join("inside/some.json"), "").unwrap();
        let error = KIND.read::<Thing>(&path).unwrap_err().to_string();
        assert!(error.contains("but one in `") && error.contains("inside`;"), "{error}");
    }
}
