//! `manifest-sha256.txt`: one line `<hex>  <name>` for each file of the split but itself, sorted by name,
//! as `sha256sum -c` reads it (and as BagIt, RFC 8493, names it).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::safe_path::SafePath;

/// The file's name.
pub const CHECKSUMS_NAME: &str = "manifest-sha256.txt";

/// The text for these files.
#[must_use]
pub fn render(files: &BTreeMap<SafePath, Sha256Digest>) -> String {
    files.iter().fold(String::new(), |mut text, (path, digest)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{digest}  {path}");
        text
    })
}

/// Reads the file back.
///
/// # Errors
/// When a line is not `<64 hex digits>  <relative path>`, or a path stands twice; names file and line.
pub fn read(path: &Path) -> Result<BTreeMap<SafePath, Sha256Digest>> {
    let bytes = fs_err::read(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Error::damaged(path, "UTF-8 text", format!("{error}")))?;
    let mut files = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let fail = |found: String| {
            Error::damaged(
                path,
                "`<64 hex digits>  <relative path>` on each line",
                format!("line {number}: {found}"),
            )
        };
        let (digest, name) = line.split_once("  ").ok_or_else(|| fail(format!("`{line}`")))?;
        let digest = digest.parse().map_err(|error| fail(format!("{error}")))?;
        let name = SafePath::new(name).map_err(|error| fail(format!("{error}")))?;
        if files.insert(name, digest).is_some() {
            return Err(fail(format!("a second line for the same file: `{line}`")));
        }
    }
    if text != render(&files) {
        return Err(Error::damaged(path, "sorted lines, each ended by a newline", "another layout"));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CHECKSUMS_NAME);
        let files: BTreeMap<_, _> =
            ["b", "a/c"].map(|name| (SafePath::new(name).unwrap(), Sha256Digest::of(name.as_bytes()))).into();
        fs_err::write(&path, render(&files)).unwrap();
        assert_eq!(read(&path).unwrap(), files);
        fs_err::write(&path, render(&files).replace("  b", "  ../b")).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("../b"), "{message}");
    }
}
