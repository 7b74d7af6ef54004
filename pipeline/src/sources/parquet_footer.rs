//! What is looked up in a Parquet file's directory before and after the library reads it.
//!
//! Before: a schema whose groups lie in each other, which the library follows until the stack ends, and one of millions of
//! columns, which take far more memory than the file.
//!
//! After an error: whether columns are encrypted.
//! The directory (`FileMetaData`, Thrift's compact protocol, before the last eight bytes of the file) of such a file has
//! a field 8, `encryption_algorithm` (Encryption.md of the format). The library built here passes over it, and then calls
//! the encrypted pages damaged; so after such an error the field is looked for, by walking over the structure's fields.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::format::open_regular;

/// `encryption_algorithm` in `FileMetaData`.
const ENCRYPTION_ALGORITHM: i64 = 8;

/// `schema` in `FileMetaData`: a list of `SchemaElement`, each of which says how many of the following are inside it.
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;

/// The largest directory that is read: it takes some ten times as much memory.
const MAX_FOOTER: u64 = 64 << 20;
/// The most columns and groups, and groups inside groups, of a schema.
const MAX_ELEMENTS: u64 = 100_000;
const DEEPEST_SCHEMA: usize = 64;

/// Structures inside structures; the format has five.
const MAX_DEPTH: u32 = 32;

/// Whether the directory of the file at `path` names an encryption algorithm; `false` for what cannot be read.
pub(super) fn is_encrypted(path: &Path) -> bool {
    directory(path).is_some_and(|bytes| has_field(&bytes, ENCRYPTION_ALGORITHM))
}

/// What keeps the directory of the file at `path` from being read; nothing is said of one that is damaged.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    match length(path) {
        Some(length) if length > MAX_FOOTER => {
            return Some(format!("a directory of {length} bytes, of at most {MAX_FOOTER}"));
        }
        _ => {}
    }
    schema_obstacle(&directory(path)?)
}

fn schema_obstacle(bytes: &[u8]) -> Option<String> {
    let mut scan = Scan { bytes };
    let mut id = 0;
    loop {
        let (field, kind) = scan.field(id)?;
        if field == SCHEMA && kind == 9 {
            break;
        }
        id = field;
        scan.skip(kind, MAX_DEPTH)?;
    }
    let head = scan.byte()?;
    let count = if head >> 4 == 15 { scan.varint()? } else { u64::from(head >> 4) };
    if count > MAX_ELEMENTS {
        return Some(format!("a schema of {count} columns and groups, of at most {MAX_ELEMENTS}"));
    }
    // Elements that are still to come in each of the groups around the next one.
    let mut open: Vec<u64> = Vec::new();
    for _ in 0..count {
        let children = scan.children()?;
        if let Some(left) = open.last_mut() {
            *left = left.saturating_sub(1);
        }
        if children > 0 {
            open.push(children);
        }
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > DEEPEST_SCHEMA {
            return Some(format!("a schema of more than {DEEPEST_SCHEMA} groups inside each other"));
        }
    }
    None
}

/// Length of the directory.
fn length(path: &Path) -> Option<u64> {
    let mut file = open_regular(path).ok()?;
    file.seek(SeekFrom::End(-8)).ok()?;
    let mut tail = [0; 4];
    file.read_exact(&mut tail).ok()?;
    Some(u64::from(u32::from_le_bytes(tail)))
}

fn directory(path: &Path) -> Option<Vec<u8>> {
    let length = length(path).filter(|&length| length <= MAX_FOOTER)?;
    let mut file = open_regular(path).ok()?;
    let end = file.seek(SeekFrom::End(-8)).ok()?;
    file.seek(SeekFrom::Start(end.checked_sub(length)?)).ok()?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether the structure at the head of `bytes` has the field `wanted`.
fn has_field(bytes: &[u8], wanted: i64) -> bool {
    let mut scan = Scan { bytes };
    let mut id = 0;
    while let Some((field, kind)) = scan.field(id) {
        if field == wanted {
            return true;
        }
        id = field;
        if scan.skip(kind, MAX_DEPTH).is_none() {
            return false;
        }
    }
    false
}

struct Scan<'a> {
    bytes: &'a [u8],
}

impl Scan<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn take(&mut self, count: u64) -> Option<()> {
        self.bytes = self.bytes.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next field's number and type, after the field `before`; `None` at the structure's end.
    fn field(&mut self, before: i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        if head == 0 {
            return None;
        }
        let id = match head >> 4 {
            // Zigzag: the sign is the lowest bit.
            0 => {
                let raw = self.varint()?;
                (raw >> 1).cast_signed() ^ -(raw & 1).cast_signed()
            }
            delta => before + i64::from(delta),
        };
        Some((id, head & 0x0f))
    }

    /// `num_children` of the structure that begins here; 0 where it has none.
    fn children(&mut self) -> Option<u64> {
        let (mut id, mut children) = (0, 0);
        while *self.bytes.first()? != 0 {
            let (field, kind) = self.field(id)?;
            id = field;
            if field == NUM_CHILDREN && kind == 5 {
                // Zigzag; a negative number is none.
                let raw = self.varint()?;
                children = if raw & 1 == 0 { raw >> 1 } else { 0 };
            } else {
                self.skip(kind, MAX_DEPTH)?;
            }
        }
        self.take(1)?;
        Some(children)
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            // A boolean is its type.
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(drop),
            7 => self.take(8),
            8 => {
                let length = self.varint()?;
                self.take(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                (0..count).try_for_each(|_| self.element(head & 0x0f, depth))
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 0x0f, depth)
                })
            }
            12 => {
                let mut id = 0;
                loop {
                    // The end of the structure and the end of the bytes differ.
                    if *self.bytes.first()? == 0 {
                        return self.take(1);
                    }
                    let (field, kind) = self.field(id)?;
                    id = field;
                    self.skip(kind, depth)?;
                }
            }
            _ => None,
        }
    }

    /// As [`Self::skip`], of a list or map, where a boolean has a byte.
    fn element(&mut self, kind: u8, depth: u32) -> Option<()> {
        if matches!(kind, 1 | 2) { self.take(1) } else { self.skip(kind, depth) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_that_are_too_deep_or_wide_are_seen() {
        // version 1 · schema: a list of structures {4: name "g", 5: num_children}.
        let schema = |count: usize, children: u8| {
            let mut bytes = vec![0x15, 2, 0x19, 0xfc];
            let mut left = count;
            while left > 127 {
                bytes.push(left as u8 & 127 | 128);
                left >>= 7;
            }
            bytes.push(left as u8);
            (0..count).for_each(|_| bytes.extend([0x48, 1, b'g', 0x15, 2 * children, 0]));
            bytes
        };
        assert_eq!(schema_obstacle(&schema(60, 1)), None);
        assert!(schema_obstacle(&schema(70, 1)).unwrap().contains("inside each other"));
        assert_eq!(schema_obstacle(&schema(70, 0)), None);
        assert!(schema_obstacle(&schema(100_001, 0)).unwrap().contains("100001 columns"));
        for cut in 0..60 {
            assert_eq!(schema_obstacle(&schema(20, 1)[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn fields_are_found_behind_others_and_damage_is_no_field() {
        // 1: i32 5 · 2: list of two structures {1: binary "ab"} · 8: structure {}.
        let bytes = [0x15, 10, 0x19, 0x2c, 0x18, 2, b'a', b'b', 0, 0x18, 0, 0, 0x6c, 0, 0];
        assert!(has_field(&bytes, 8) && has_field(&bytes, 2) && !has_field(&bytes, 7));
        for cut in 0..12 {
            assert!(!has_field(&bytes[..cut], 8), "{cut}");
        }
        // Structures nested without end.
        assert!(!has_field(&[0x1c; 100], 8));
    }
}
