//! Examples out of JSON lines, plain or compressed: one object a line, inputs and targets side by side.
//!
//! ```json
//! {"input_ids": [3, 1, 4, 0], "targets": [null, null, 4, 1], "length": 4, "id": "mine-17", "set": "easy"}
//! ```
//! Both lists are equally long. A target of `null` (or -100, as PyTorch's losses have it) is not scored. `length` is
//! how many positions count, all by default; `id` and `set` may be left out; other keys are not read.
//!
//! Of numbers, `inputs` in place of `input_ids` holds W of them for each position, position by position in one list (as tables of
//! `xlstm-data export` have them) or a list for each position; `targets` holds a number a position, or `null`:
//!
//! ```json
//! {"inputs": [[0.5, 1.0, 0.25], [0.1, -1.0, 0.75]], "targets": [null, 0.75]}
//! ```
//! Numbers become float32, the nearest one.

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};

use xlstm_manifests::examples::Example;
use xlstm_manifests::stored::{OfKind, Stored};
use xlstm_manifests::vectors::VectorExample;

use super::decompress::Decompressed;
use super::error::SourceError;
use super::example_line::parse;
use super::format::{Compression, Format};

/// The longest line that is read.
const MAX_LINE: u64 = 64 << 20;

/// Tokens of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTokens {
    /// What goes in.
    pub input_ids: Vec<u16>,
    /// What is to come out, position by position.
    pub targets: Vec<Option<u16>>,
}

/// Numbers of an example.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceNumbers {
    /// Numbers of a position that go in, at least 1.
    pub width: u32,
    /// What goes in, position by position.
    pub inputs: Vec<f32>,
    /// What is to come out, position by position.
    pub targets: Vec<Option<f32>>,
}

/// An example as its source has it, not yet padded to a row.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceExample {
    /// What goes in, and what is to come out.
    pub content: OfKind<SourceTokens, SourceNumbers>,
    /// Positions that count.
    pub length: u16,
    /// The source's own name for it.
    pub id: Option<String>,
    /// The set it counts towards.
    pub set: Option<String>,
}

impl SourceExample {
    /// Positions that it has.
    #[must_use]
    pub fn positions(&self) -> usize {
        match &self.content {
            OfKind::Tokens(tokens) => tokens.targets.len(),
            OfKind::Numbers(numbers) => numbers.targets.len(),
        }
    }

    /// Fills it up to `row_length` positions with 0, where nothing is scored. A longer one stays as it is.
    pub fn pad(&mut self, row_length: usize) {
        let positions = self.positions().max(row_length);
        match &mut self.content {
            OfKind::Tokens(tokens) => {
                tokens.input_ids.resize(positions, 0);
                tokens.targets.resize(positions, None);
            }
            OfKind::Numbers(numbers) => {
                numbers.inputs.resize(positions * numbers.width as usize, 0.0);
                numbers.targets.resize(positions, None);
            }
        }
    }

    /// It as a row of a split, once it was padded.
    #[must_use]
    pub fn stored(&self) -> Stored<'_> {
        let length = self.length;
        match &self.content {
            OfKind::Tokens(SourceTokens { input_ids, targets }) => {
                Stored::Tokens(Example { input_ids, targets, length })
            }
            OfKind::Numbers(SourceNumbers { inputs, targets, .. }) => {
                Stored::Numbers(VectorExample { inputs, targets, length })
            }
        }
    }
}

/// One line with something on it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExampleEntry {
    /// 0-based line of the file.
    pub number: u64,
    /// The example, or the reason why it cannot be used (as a manifest counts it) and what was found.
    pub example: Result<SourceExample, (&'static str, String)>,
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
        let tokens = |example: SourceExample| match example.content {
            OfKind::Tokens(tokens) => tokens,
            OfKind::Numbers(numbers) => panic!("{numbers:?}"),
        };
        assert_eq!(tokens(example(0)).targets, [None, None]);
        let second = example(1);
        let content = tokens(second.clone());
        assert_eq!((content.input_ids, content.targets, second.length), (vec![3, 1], vec![Some(1), None], 1));
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
