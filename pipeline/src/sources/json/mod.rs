//! The few fields that are wanted out of one line of JSON, at memory speed.
//!
//! A line of a web corpus is one object, a long string `text` and a little else. A general parser builds a
//! value for everything and copies the text twice; this one walks the line once (RFC 8259, and the `NaN`, `Infinity`
//! and `-Infinity` that Python's `json` writes), unescapes only the strings that were asked for, straight into their final place, and checks
//! the rest without keeping it. Memory is the line and its text. Where a key occurs more than once the last
//! one counts, as in Python's `json`. Numbers are kept as they are written, of whatever size.

mod string;

use std::fmt;
use std::ops::Range;

/// The value found for a wanted field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Value {
    /// The line has no such field.
    #[default]
    Absent,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// An array, which is checked and skipped: where it stands in the line.
    Array(Range<usize>),
    /// An object, which is checked and skipped: where it stands in the line.
    Object(Range<usize>),
}

impl Value {
    /// A name: a string, or any other value as it is written in `line`.
    pub(super) fn into_name(self, line: &[u8]) -> Option<String> {
        match self {
            Self::String(name) | Self::Number(name) => Some(name),
            Self::Bool(value) => Some(value.to_string()),
            Self::Array(place) | Self::Object(place) => {
                Some(String::from_utf8_lossy(line.get(place)?).into_owned())
            }
            Self::Absent | Self::Null => None,
        }
    }

    /// What was found, for an error message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Absent => "nothing".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Number(digits) => format!("the number {}", digits.chars().take(40).collect::<String>()),
            Self::String(_) => "a string".to_owned(),
            Self::Array(_) => "an array".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

/// Why a line cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Not JSON: at which byte of the line, and what was expected there.
    Syntax { at: usize, expected: &'static str },
    /// Not UTF-8 from this byte on.
    NotUtf8 { at: usize },
    /// JSON, but no object: what it is instead.
    NotAnObject { found: String },
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { at, expected } => write!(formatter, "byte {at}: expected {expected}"),
            Self::NotUtf8 { at } => write!(formatter, "byte {at} is not UTF-8"),
            Self::NotAnObject { found } => write!(formatter, "{found} instead of an object"),
        }
    }
}

/// The wanted fields, each a path of keys from the top (`meta.redpajama_set_name` is two keys). A key may itself hold dots:
/// then the rest of a path is one key.
#[derive(Debug, Clone)]
pub(super) struct Paths(Vec<Vec<Key>>);

/// A key of a path, and the rest of the path, from this key on, as a single key.
#[derive(Debug, Clone)]
struct Key {
    name: String,
    rest: String,
}

/// The paths that a key leads to: as bits, those that end with it and those that go on inside its value.
#[derive(Debug, Clone, Copy, Default)]
struct Matching {
    ending: u32,
    inside: u32,
}

impl Paths {
    /// Paths written with dots, at most 32. One that is `None` names nothing.
    pub(super) fn new<'a>(dotted: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let split = |path: &str| {
            let starts = std::iter::once(0).chain(path.match_indices('.').map(|(dot, _)| dot + 1));
            let rests = starts.map(|start| &path[start..]);
            let name = |rest: &str| rest.split('.').next().unwrap_or(rest).to_owned();
            rests.map(|rest| Key { name: name(rest), rest: rest.to_owned() }).collect()
        };
        Self(dotted.into_iter().take(32).map(|path| path.map_or_else(Vec::new, split)).collect())
    }

    fn all(&self) -> u32 {
        // One bit each, of at most 32.
        self.0.iter().fold(0, |bits, _| bits << 1 | 1)
    }
}

/// Finds the values of `paths` in `line`, in the order of `paths`.
///
/// # Errors
/// The line's first flaw; text outside the wanted fields counts too.
pub(super) fn extract(line: &[u8], paths: &Paths) -> Result<Vec<Value>, Flaw> {
    let mut scan = Scan { line, at: 0, utf8_until: 0, paths, values: vec![Value::Absent; paths.0.len()] };
    let result = scan.document();
    // A byte that is no UTF-8 is the better explanation of whatever else went wrong.
    let unchecked = if result.is_ok() { scan.utf8_until } else { 0 };
    if let Err(error) = std::str::from_utf8(&line[unchecked..]) {
        return Err(Flaw::NotUtf8 { at: unchecked + error.valid_up_to() });
    }
    result.map(|()| scan.values)
}

/// The keys of the object in `line`, in its order, at most `most` of them; `None` if it is no JSON object.
pub(super) fn keys(line: &[u8], most: usize) -> Option<Vec<String>> {
    let nothing = Paths(Vec::new());
    let mut scan = Scan { line, at: 0, utf8_until: 0, paths: &nothing, values: Vec::new() };
    if scan.peek_token() != Some(b'{') {
        return None;
    }
    scan.at += 1;
    let mut keys = Vec::new();
    while keys.len() < most && scan.peek_token() == Some(b'"') {
        let start = scan.at + 1;
        scan.key(0, 0).ok()?;
        let raw = line.get(start..scan.at - 1)?;
        keys.push(
            String::from_utf8_lossy(&string::unescape(raw).unwrap_or_else(|| raw.to_vec())).into_owned(),
        );
        (scan.peek_token() == Some(b':')).then_some(())?;
        scan.at += 1;
        scan.peek_token();
        scan.skip_value().ok()?;
        if scan.peek_token() == Some(b',') {
            scan.at += 1;
        }
    }
    Some(keys)
}

struct Scan<'a> {
    line: &'a [u8],
    at: usize,
    /// Everything before this byte was checked to be UTF-8.
    utf8_until: usize,
    paths: &'a Paths,
    values: Vec<Value>,
}

type Outcome<T> = Result<T, Flaw>;

impl Scan<'_> {
    fn fail<T>(&self, expected: &'static str) -> Outcome<T> {
        Err(Flaw::Syntax { at: self.at, expected })
    }

    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    /// The next byte that is not white space, not yet consumed.
    fn peek_token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn document(&mut self) -> Outcome<()> {
        if self.peek_token() == Some(b'{') {
            self.object(0, self.paths.all())?;
        } else {
            let found = self.value()?.describe();
            if self.peek_token().is_none() {
                return Err(Flaw::NotAnObject { found });
            }
        }
        if self.peek_token().is_some() { self.fail("the end of the line") } else { Ok(()) }
    }

    /// An object at `depth` keys from the top, of which the paths in the set `wanted` may name fields.
    fn object(&mut self, depth: usize, wanted: u32) -> Outcome<()> {
        self.at += 1;
        if self.peek_token() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let matching = self.key(depth, wanted)?;
            if self.peek_token() != Some(b':') {
                return self.fail("`:` after a key");
            }
            self.at += 1;
            self.field(depth, matching)?;
            match self.peek_token() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.fail("`,` or `}` after a field"),
            }
        }
    }

    /// Reads a key; the paths of `wanted` that lead on over it, from `depth` keys on.
    fn key(&mut self, depth: usize, wanted: u32) -> Outcome<Matching> {
        if self.peek_token() != Some(b'"') {
            return self.fail("a key in quotation marks");
        }
        let start = self.at + 1;
        let escaped = self.skip_string()?;
        let raw = &self.line[start..self.at - 1];
        let unescaped;
        let key = if escaped {
            // A key with half of a surrogate pair is no text, so no path can name it.
            let Some(text) = string::unescape(raw) else { return Ok(Matching::default()) };
            unescaped = text;
            unescaped.as_slice()
        } else {
            raw
        };
        let mut matching = Matching::default();
        for (index, path) in (0..32u32).zip(&self.paths.0).filter(|(index, _)| wanted & (1 << index) != 0) {
            let Some(next) = path.get(depth) else { continue };
            matching.ending |= u32::from(next.rest.as_bytes() == key) << index;
            let leads_on = path.len() > depth + 1 && next.name.as_bytes() == key;
            matching.inside |= u32::from(leads_on) << index;
        }
        Ok(matching)
    }

    /// The value of a key that the paths in `matching` lead to.
    fn field(&mut self, depth: usize, matching: Matching) -> Outcome<()> {
        let Matching { ending: leaves, inside } = matching;
        if leaves | inside == 0 {
            return self.skip_value();
        }
        // The last of several equal keys counts, also for what lay below the earlier ones.
        for (index, value) in (0..32u32).zip(&mut self.values) {
            if (leaves | inside) & (1 << index) != 0 {
                *value = Value::Absent;
            }
        }
        let value = match self.peek_token() {
            Some(b'{') if inside != 0 => {
                let start = self.at;
                self.object(depth + 1, inside)?;
                Value::Object(start..self.at)
            }
            _ if leaves == 0 => return self.skip_value(),
            _ => self.value()?,
        };
        // Two paths are seldom the same, so the value, which may be long, is moved and not copied.
        let last = leaves.checked_ilog2().unwrap_or(0);
        for index in (0..last).filter(|index| leaves & (1 << index) != 0) {
            self.values[index as usize] = value.clone();
        }
        if leaves != 0 {
            self.values[last as usize] = value;
        }
        Ok(())
    }

    /// Reads a value and keeps what [`Value`] keeps.
    fn value(&mut self) -> Outcome<Value> {
        let first = self.peek_token();
        let start = self.at;
        match first {
            Some(b'"') => self.take_string().map(Value::String),
            Some(b'{') => self.skip_value().map(|()| Value::Object(start..self.at)),
            Some(b'[') => self.skip_value().map(|()| Value::Array(start..self.at)),
            Some(b't') => self.literal(b"true", Value::Bool(true)),
            Some(b'f') => self.literal(b"false", Value::Bool(false)),
            Some(b'n') => self.literal(b"null", Value::Null),
            _ => {
                self.number()?;
                Ok(Value::Number(String::from_utf8_lossy(&self.line[start..self.at]).into_owned()))
            }
        }
    }

    /// Checks a value of any kind and depth without recursion.
    fn skip_value(&mut self) -> Outcome<()> {
        // What each open bracket needs to close it.
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.peek_token() {
                Some(bracket @ (b'{' | b'[')) => {
                    let close = if bracket == b'{' { b'}' } else { b']' };
                    self.at += 1;
                    if self.peek_token() != Some(close) {
                        open.push(close);
                        self.skip_key(&open)?;
                        continue;
                    }
                    self.at += 1;
                }
                Some(b'"') => drop(self.skip_string()?),
                Some(b't') => drop(self.literal(b"true", Value::Null)?),
                Some(b'f') => drop(self.literal(b"false", Value::Null)?),
                Some(b'n') => drop(self.literal(b"null", Value::Null)?),
                _ => self.number()?,
            }
            if !self.skip_to_next_value(&mut open)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what closes here; whether another value follows inside what is still open.
    fn skip_to_next_value(&mut self, open: &mut Vec<u8>) -> Outcome<bool> {
        while let Some(&close) = open.last() {
            match self.peek_token() {
                Some(b',') => {
                    self.at += 1;
                    self.skip_key(open)?;
                    return Ok(true);
                }
                Some(found) if found == close => {
                    self.at += 1;
                    open.pop();
                }
                _ => return self.fail("`,` or a closing bracket"),
            }
        }
        Ok(false)
    }

    /// Inside an object, consumes a key and its colon.
    fn skip_key(&mut self, open: &[u8]) -> Outcome<()> {
        if open.last() != Some(&b'}') {
            return Ok(());
        }
        self.key(0, 0)?;
        if self.peek_token() != Some(b':') {
            return self.fail("`:` after a key");
        }
        self.at += 1;
        Ok(())
    }

    fn literal(&mut self, word: &'static [u8], value: Value) -> Outcome<Value> {
        if !self.line[self.at..].starts_with(word) {
            return self.fail("`true`, `false` or `null`");
        }
        self.at += word.len();
        Ok(value)
    }

    /// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`, or Python's `NaN`, `Infinity`, `-Infinity`.
    fn number(&mut self) -> Outcome<()> {
        for word in [&b"NaN"[..], b"Infinity", b"-Infinity"] {
            if self.line[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(());
            }
        }
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits("a value")?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("a digit after the point")?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits("a digit of the exponent")?;
        }
        Ok(())
    }

    fn digits(&mut self, expected: &'static str) -> Outcome<()> {
        let count = self.line[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { self.fail(expected) } else { Ok(()) }
    }

    /// Consumes a string; whether it holds an escape.
    fn skip_string(&mut self) -> Outcome<bool> {
        let body = &self.line[self.at + 1..];
        match string::end(body) {
            Ok((length, escaped)) => {
                self.at += length + 2;
                Ok(escaped)
            }
            Err((offset, expected)) => Err(Flaw::Syntax { at: self.at + 1 + offset, expected }),
        }
    }

    /// Consumes a string and unescapes it.
    fn take_string(&mut self) -> Outcome<String> {
        let start = self.at + 1;
        let (bytes, length) = string::take(&self.line[start..])
            .map_err(|(offset, expected)| Flaw::Syntax { at: start + offset, expected })?;
        self.at = start + length + 1;
        // Quotation marks are ASCII, so the stretches between wanted strings can be checked one by one.
        let between = &self.line[self.utf8_until..start];
        if let Err(error) = std::str::from_utf8(between) {
            return Err(Flaw::NotUtf8 { at: self.utf8_until + error.valid_up_to() });
        }
        self.utf8_until = self.at;
        String::from_utf8(bytes).map_err(|_| Flaw::NotUtf8 { at: start })
    }
}

#[cfg(test)]
mod tests;
