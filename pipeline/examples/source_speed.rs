//! Throughput of reading documents without doing anything with them: `source_speed FILE [SET_FIELD]`.
//!
//! Prints one JSON object: records, bytes of text and of the file, and MB/s of text, of one thread, file
//! cache warm or not as it is. A .jsonl file measures JSON alone, a .jsonl.zst decompression and JSON.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use xlstm_pipeline::record::Entry;
use xlstm_pipeline::sources::{self, Fields, Format};

#[allow(clippy::print_stdout, reason = "its output is data")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().context("usage: source_speed FILE [SET_FIELD]")?);
    let fields = Fields { set: arguments.next(), ..Fields::default() };
    let started = Instant::now();
    let mut reader = sources::open(&path, Format::of(&path)?, &fields, 0)?;
    let (mut records, mut bad, mut text_bytes) = (0u64, 0u64, 0u64);
    while let Some(step) = reader.next_entry() {
        match step? {
            Entry::Record(record) => {
                records += 1;
                text_bytes += record.text.len() as u64;
            }
            Entry::Bad { .. } => bad += 1,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = serde_json::json!({
        "records": records, "bad": bad, "text_bytes": text_bytes,
        "file_bytes": std::fs::metadata(&path)?.len(), "seconds": seconds,
        "megabytes_of_text_per_second": text_bytes as f64 / seconds / 1e6,
    });
    println!("{report}");
    Ok(())
}
