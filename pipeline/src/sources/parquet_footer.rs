//! Whether a Parquet file with a readable directory has encrypted columns.
//!
//! The directory (`FileMetaData`, Thrift's compact protocol, before the last eight bytes of the file) of such a file has
//! a field 8, `encryption_algorithm` (Encryption.md of the format). The library built here passes over it, and then calls
//! the encrypted pages damaged; so after such an error the field is looked for, by walking over the structure's fields.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::format::open_regular;

/// `encryption_algorithm` in `FileMetaData`.
const ENCRYPTION_ALGORITHM: i64 = 8;

/// The largest directory that is looked at.
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;

/// Structures inside structures; the format has five.
const MAX_DEPTH: u32 = 32;

/// Whether the directory of the file at `path` names an encryption algorithm; `false` for what cannot be read.
pub(super) fn is_encrypted(path: &Path) -> bool {
    directory(path).is_some_and(|bytes| has_field(&bytes, ENCRYPTION_ALGORITHM))
}

fn directory(path: &Path) -> Option<Vec<u8>> {
    let mut file = open_regular(path).ok()?;
    let end = file.seek(SeekFrom::End(-8)).ok()?;
    let mut tail = [0; 8];
    file.read_exact(&mut tail).ok()?;
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > MAX_DIRECTORY_BYTES {
        return None;
    }
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
