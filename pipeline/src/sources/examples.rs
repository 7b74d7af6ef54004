//! Examples out of JSON lines, plain or compressed: one object a line, inputs and targets side by side.
//!
//! ```json
//! {"input_ids": [3, 1, 4, 0], "targets": [null, null, 4, 1], "length": 4, "id": "mine-17", "set": "easy"}
//! ```
//! Both lists are equally long. A target of `null` (or -100, as PyTorch's losses have it) is not scored. `length` is
//! how many positions count, all by default; `id` and `set` may be left out; other keys are not read.

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use xlstm_manifests::examples::Example;

use super::decompress::Decompressed;
use super::error::SourceError;
use super::format::{Compression, Format};

/// The longest line that is read.
const MAX_LINE: u64 = 64 << 20;

/// The number that stands for "not scored" beside `null`.
const IGNORED: i64 = -100;

/// An example as its source has it, not yet padded to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceExample {
    /// What goes in.
    pub input_ids: Vec<u16>,
    /// What is to come out, position by position.
    pub targets: Vec<Option<u16>>,
    /// Positions that count.
    pub length: u16,
    /// The source's own name for it.
    pub id: Option<String>,
    /// The set it counts towards.
    pub set: Option<String>,
}

impl SourceExample {
    /// Fills it up to `row_length` positions with id 0, where nothing is scored. A longer one stays as it is.
    pub fn pad(&mut self, row_length: usize) {
        let positions = self.input_ids.len().max(row_length);
        self.input_ids.resize(positions, 0);
        self.targets.resize(positions, None);
    }

    /// It as a row of a split, once it was padded.
    #[must_use]
    pub fn example(&self) -> Example<'_> {
        Example { input_ids: &self.input_ids, targets: &self.targets, length: self.length }
    }
}

/// One line with something on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleEntry {
    /// 0-based line of the file.
    pub number: u64,
    /// The example, or the reason why it cannot be used (as a manifest counts it) and what was found.
    pub example: Result<SourceExample, (&'static str, String)>,
}

#[derive(Deserialize)]
struct Line {
    input_ids: Vec<u16>,
    targets: Vec<Option<i64>>,
    length: Option<usize>,
    id: Option<String>,
    set: Option<String>,
}

/// The examples of one file, one after the other.
pub struct Examples {
    path: PathBuf,
    stream: Decompressed,
    next: u64,
    line: Vec<u8>,
}

impl Examples {
    /// Opens a file of JSON lines.
    ///
    /// # Errors
    /// When it cannot be opened, or its name or its first bytes are those of another format.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let format = Format::of(path)?;
        format.check(path)?;
        let compression = compression(format).ok_or_else(|| SourceError::WrongFormat {
            path: path.to_owned(),
            expected: "JSON lines (.jsonl, plain or with .zst or .gz behind)",
            found: "a name that says another format".into(),
            hint: "write the examples as one JSON object a line",
        })?;
        Ok(Self {
            path: path.into(),
            stream: Decompressed::open(path, compression)?,
            next: 0,
            line: Vec::new(),
        })
    }

    /// Reads on until the example numbered `number`.
    ///
    /// # Errors
    /// When the file has no usable example of that number, or cannot be read further.
    pub fn seek(&mut self, number: u64) -> Result<SourceExample, SourceError> {
        let found = loop {
            match self.next_entry()? {
                Some(step) if step.number < number => {}
                Some(ExampleEntry { number: at, example: Ok(example) }) if at == number => {
                    return Ok(example);
                }
                Some(ExampleEntry { number: at, example: Err((reason, found)) }) if at == number => {
                    break format!("one that cannot be used ({reason}: {found})");
                }
                Some(step) => break format!("record {} as the next one", step.number),
                None => break "the end of the file".to_owned(),
            }
        };
        Err(SourceError::NoSuchRecord { path: self.path.clone(), number, found })
    }

    /// The next line that is not blank; `None` at the end of the file.
    ///
    /// # Errors
    /// When the file cannot be read further.
    pub fn next_entry(&mut self) -> Result<Option<ExampleEntry>, SourceError> {
        loop {
            self.line.clear();
            let read = (&mut self.stream.bytes).take(MAX_LINE).read_until(b'\n', &mut self.line);
            let length = read.map_err(|error| self.stream.error(&self.path, self.next, error))?;
            if length == 0 {
                return Ok(None);
            }
            if length as u64 == MAX_LINE && self.line.last() != Some(&b'\n') {
                let (path, record) = (self.path.clone(), self.next);
                return Err(SourceError::LineTooLong { path, record, limit: MAX_LINE });
            }
            let number = self.next;
            self.next += 1;
            let line = if number == 0 {
                self.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.line)
            } else {
                &self.line
            };
            if !line.trim_ascii().is_empty() {
                return Ok(Some(ExampleEntry { number, example: parse(line) }));
            }
        }
    }
}

/// How a file of JSON lines is compressed; `None` for other formats.
fn compression(format: Format) -> Option<Compression> {
    match format {
        Format::JsonLines { compression } => Some(compression),
        Format::Parquet | Format::Text { .. } | Format::Crate => None,
    }
}

fn parse(line: &[u8]) -> Result<SourceExample, (&'static str, String)> {
    let Line { input_ids, targets, length, id, set } =
        serde_json::from_slice(line).map_err(|error| ("invalid-json", error.to_string()))?;
    let invalid = |found: String| Err(("invalid-example", found));
    if input_ids.len() != targets.len() {
        let (ids, targets) = (input_ids.len(), targets.len());
        return invalid(format!("{ids} input_ids and {targets} targets, expected as many of both"));
    }
    let length = length.unwrap_or(input_ids.len());
    if length > input_ids.len() {
        return invalid(format!("length {length}, expected at most {}, its positions", input_ids.len()));
    }
    let Ok(length) = u16::try_from(length) else {
        return invalid(format!("{length} positions that count, expected at most {}", u16::MAX));
    };
    let mut checked = Vec::with_capacity(targets.len());
    for (position, target) in targets.into_iter().enumerate() {
        checked.push(match target.filter(|&target| target != IGNORED) {
            None => None,
            Some(target) => match u16::try_from(target) {
                Ok(target) => Some(target),
                Err(_) => {
                    return invalid(format!(
                        "target {target} at position {position}, expected 0 to 65535, or null or {IGNORED} where nothing \
                         is scored"
                    ));
                }
            },
        });
    }
    Ok(SourceExample { input_ids, targets: checked, length, id, set })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_examples_or_say_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let text = "\u{feff}{\"input_ids\":[3,1],\"targets\":[null,-100],\"x\":1}\n\n\
                    {\"input_ids\":[3,1],\"targets\":[1,null],\"length\":1,\"id\":\"a\",\"set\":\"s\"}\r\n\
                    {\"input_ids\":[3],\"targets\":[1,2]}\n{\"input_ids\":[3],\"targets\":[1],\"length\":2}\n\
                    {\"input_ids\":[3],\"targets\":[-1]}\n{\"input_ids\":[70000],\"targets\":[1]}\n{\"targets\":[1]}";
        fs_err::write(&path, text).unwrap();
        let mut reader = Examples::open(&path).unwrap();
        let mut steps = Vec::new();
        while let Some(step) = reader.next_entry().unwrap() {
            steps.push(step);
        }
        let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
        assert_eq!(numbers, [0, 2, 3, 4, 5, 6, 7]);
        let example = |index: usize| steps[index].example.clone().unwrap();
        assert_eq!(example(0).targets, [None, None]);
        let second = example(1);
        assert_eq!((second.input_ids, second.targets, second.length), (vec![3, 1], vec![Some(1), None], 1));
        assert_eq!((second.id.as_deref(), second.set.as_deref()), (Some("a"), Some("s")));
        let wrong: Vec<(&str, String)> =
            steps[2..].iter().map(|step| step.example.clone().unwrap_err()).collect();
        for ((reason, found), (expected, part)) in wrong.iter().zip([
            ("invalid-example", "1 input_ids and 2 targets"),
            ("invalid-example", "length 2"),
            ("invalid-example", "target -1 at position 0"),
            ("invalid-json", "70000"),
            ("invalid-json", "input_ids"),
        ]) {
            assert!(*reason == expected && found.contains(part), "{reason}: {found}");
        }
    }
}
