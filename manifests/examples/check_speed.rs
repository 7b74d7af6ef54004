//! What it costs to check a split's rows before their first use: `check_speed SPLIT [REPEATS]`.
//!
//! Reads every row once, with and without the check, and prints the best of the repeats. The files should be in the page
//! cache, so run it twice: what is measured is the digest, not the disk.
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::path::Path;
use std::time::Instant;

use xlstm_manifests::rows::{Rows, Sequences};
use xlstm_manifests::{Dataset, Error, Result};

/// Seconds to read all rows of a freshly opened split.
fn read_all(open: fn(&Path) -> Result<Dataset>, path: &Path) -> Result<(f64, u64)> {
    let dataset = open(path)?;
    let mut row_positions = Sequences::default();
    let begin = Instant::now();
    for row in 0..Rows::rows(&dataset) {
        row_positions.clear();
        dataset.read(row, false, &mut row_positions)?;
        std::hint::black_box(&row_positions);
    }
    Ok((begin.elapsed().as_secs_f64(), Rows::rows(&dataset)))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = || Error::Io(std::io::Error::other("expected: check_speed SPLIT [REPEATS]"));
    let path = arguments.next().ok_or_else(usage)?;
    let repeats: u32 = arguments.next().map_or(Ok(5), |text| text.parse()).map_err(|_| usage())?;
    let best = |open: fn(&Path) -> Result<Dataset>| -> Result<(f64, u64)> {
        let mut best = (f64::INFINITY, 0);
        for _ in 0..repeats.max(1) {
            let (seconds, rows) = read_all(open, Path::new(&path))?;
            best = (best.0.min(seconds), rows);
        }
        Ok(best)
    };
    let (plain, rows) = best(Dataset::open)?;
    let (checked, _) = best(Dataset::open_checked)?;
    let microseconds = |seconds: f64| seconds * 1e6 / rows.max(1) as f64;
    println!("rows                {rows}");
    println!("read, unchecked     {:.3} µs a row", microseconds(plain));
    println!("read, checked       {:.3} µs a row", microseconds(checked));
    println!("the check           {:.3} µs a row", microseconds(checked - plain));
    Ok(())
}
