//! TensorBoard event files, scalars only.
//!
//! ```text
//! record   u64 LE length │ u32 masked crc32c(length) │ data │ u32 masked crc32c(data)
//! data     protobuf Event: 1 wall_time double │ 2 step int64 │ 3 file_version string │ 5 summary
//!          Summary: 1 value { 1 tag string │ 2 simple_value float }
//! mask     rotate right by 15, add 0xa282ead8
//! ```
//! The first record says `brain.Event:2`. Nothing but this is needed for a reader to plot a run.

use std::io::Write as _;
use std::path::Path;

use crate::error::Result;

/// Appends scalars to one event file.
pub struct EventWriter(fs_err::File);

impl EventWriter {
    /// Starts a file in `folder`, named by the time in seconds since 1970.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(folder: &Path, time: f64) -> Result<Self> {
        let path = folder.join(format!("events.out.tfevents.{:010}.xlstm", time as u64));
        let mut writer = Self(fs_err::OpenOptions::new().create(true).append(true).open(path)?);
        let mut event = Vec::new();
        put_double(&mut event, 1, time);
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Writes scalars of one step.
    ///
    /// # Errors
    /// When writing fails.
    pub fn scalars(&mut self, time: f64, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, time);
        event.push(2 << 3);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked(data).to_le_bytes());
        self.0.write_all(&record)?;
        Ok(self.0.flush()?)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: records are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_follow_the_format() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 5.0).unwrap();
        writer.scalars(6.0, 300, &[("loss", 1.5)]).unwrap();
        let path = fs_err::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let content = fs_err::read(path).unwrap();
        let first = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        assert!(content[12..12 + first].ends_with(b"brain.Event:2"));
        let second = &content[16 + first..];
        let length = u64::from_le_bytes(second[..8].try_into().unwrap()) as usize;
        let data = &second[12..12 + length];
        // Step 300 as a varint; value 1.5 as a float after the tag.
        let expected =
            [&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4][..], b"loss", &[0x15, 0, 0, 0xc0, 0x3f]]
                .concat();
        assert_eq!(data[9..], expected);
        assert_eq!(second[12 + length..], masked(data).to_le_bytes());
    }
}
