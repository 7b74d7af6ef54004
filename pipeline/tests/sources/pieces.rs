//! A share of a large file: records from all over it, each whole and once, and how much of the file they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xlstm_pipeline::sources::{Gate, read_share};

use super::*;

/// Ten thousand lines, short in the first half and long in the second.
fn lines() -> String {
    let line = |number: usize| {
        let words = if number < 5000 { 3 } else { 30 };
        format!("{{\"text\":\"{number} {}\"}}\n", "wörd ".repeat(words))
    };
    (0..10_000).map(line).collect()
}

/// Numbers that the texts of a share begin with, and the share.
fn share(path: &Path, limit: u64) -> (Vec<usize>, f64) {
    let (found, share, _) = share_and_gates(path, limit);
    (found, share)
}

/// The same, and how often the gate for large records was asked.
fn share_and_gates(path: &Path, limit: u64) -> (Vec<usize>, f64, u64) {
    let mut found = Vec::new();
    let fields = Fields { text: "text".into(), ..Fields::default() };
    let asked = Arc::new(AtomicU64::new(0));
    let gate = || -> Gate {
        let asked = Arc::clone(&asked);
        Box::new(move || {
            asked.fetch_add(1, Ordering::Relaxed);
        })
    };
    let share =
        read_share(path, Format::of(path).unwrap(), &fields, limit, &gate, &mut |entry| match entry {
            Entry::Record(record) => found.push(record.text.split(' ').next().unwrap().parse().unwrap()),
            Entry::Bad { .. } => panic!("a line was cut"),
        });
    (found, share.unwrap(), asked.load(Ordering::Relaxed))
}

#[test]
fn large_records_ask_first_whichever_way_a_file_is_read() {
    let folder = Folder::new();
    let text = format!("7 {}", "word ".repeat(18 << 20).split_at(18 << 20).0);
    let line = format!("{{\"text\":\"8 word\"}}\n{{\"text\":\"{text}\"}}\n");
    let zstd = zstd::encode_all(line.as_bytes(), 1).unwrap();
    for (name, bytes, limit, expected) in [
        ("all.jsonl", line.as_bytes(), 64 << 20, vec![8, 7]),
        ("pieces.jsonl", line.as_bytes(), 1 << 20, vec![8, 7]),
        ("all.jsonl.zst", &zstd, 64 << 20, vec![8, 7]),
        ("all.txt", text.as_bytes(), 64 << 20, vec![7]),
    ] {
        let path = folder.file(name, bytes);
        let (found, share, gates) = share_and_gates(&path, limit);
        assert_eq!((found, share, gates), (expected, 1.0, 1), "{name}");
    }
}

#[test]
fn a_short_stream_of_much_text_is_not_read_to_its_end() {
    let folder = Folder::new();
    // A number that stays as long, and much that does not: as much in every line.
    let line = |number: u64| {
        let noise = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{{\"text\":\"{number} {noise:x} {}\"}}\n", "w".repeat(400))
    };
    let text: String = (0..100_000).map(line).collect();
    let path = folder.file("a.jsonl.zst", &zstd::encode_all(text.as_bytes(), 3).unwrap());
    let size = fs_err::metadata(&path).unwrap().len();
    assert!(size * 10 < text.len() as u64, "{size}");
    let (found, part) = share(&path, size);
    // Eight times the limit, and the rest of a line.
    let read: usize = text.lines().take(found.len()).map(|line| line.len() + 1).sum();
    assert!((8 * size..8 * size + 500).contains(&(read as u64)), "{read} of {size}");
    let expected = read as f64 / text.len() as f64;
    assert!((part / expected - 1.0).abs() < 0.1, "{part}, {expected}");
}

#[test]
fn pieces_of_plain_lines_are_spread_and_cut_no_line() {
    let (folder, text) = (Folder::new(), lines());
    let path = folder.file("a.jsonl", text.as_bytes());
    let whole: Vec<usize> = (0..10_000).collect();
    assert_eq!(share(&path, text.len() as u64), (whole, 1.0));
    for limit in [0, 1, 10_000, 200_000, text.len() as u64 / 2, text.len() as u64 - 1] {
        let (found, share) = share(&path, limit);
        assert!(found.is_sorted_by(|a, b| a < b), "limit {limit}: a line came twice");
        assert_eq!(found.first(), Some(&0), "limit {limit}");
        let bytes: usize =
            text.lines().enumerate().filter(|(n, _)| found.contains(n)).map(|(_, l)| l.len() + 1).sum();
        assert!((share - bytes as f64 / text.len() as f64).abs() < 1e-12, "limit {limit}: {share}");
        if limit >= 10_000 {
            assert!((share * text.len() as f64 / limit as f64 - 1.0).abs() < 0.2, "limit {limit}: {share}");
            // Bytes of the second half are nine tenths of the file, lines a half.
            let second = found.iter().filter(|&&number| number >= 5000).count();
            assert!(second > found.len() / 4 && found.last() > Some(&9900), "limit {limit}");
        }
    }
    // One line that is longer than all pieces; a last line without an end.
    let long = folder.file("b.jsonl", format!("{{\"text\":\"7 {}\"}}", "word ".repeat(1000)).as_bytes());
    assert_eq!(share(&long, 100), (vec![7], 1.0));
}

#[test]
fn a_compressed_stream_is_read_from_its_beginning() {
    let (folder, text) = (Folder::new(), lines());
    // Random words, which stay large.
    let mut noise = String::new();
    let mut state = 1_u64;
    for number in 0..40_000 {
        let words = (0..12).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format!("{state:x}")
        });
        noise += &format!("{{\"text\":\"{number} {}\"}}\n", words.collect::<Vec<_>>().join(" "));
    }
    let zstd = zstd::encode_all(noise.as_bytes(), 1).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, noise.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    for (name, bytes) in [("a.jsonl.zst", &zstd), ("a.jsonl.gz", &gzip)] {
        let path = folder.file(name, bytes);
        let (found, part) = share(&path, 1 << 20);
        let expected: Vec<usize> = (0..found.len()).collect();
        assert_eq!(found, expected);
        let true_share = found.len() as f64 / 40_000.0;
        // A decoder has up to a block of zstd, 128 KiB, in hand.
        let off = (part - true_share).abs() * bytes.len() as f64;
        assert!(found.len() < 20_000 && off < f64::from(128 << 10), "{name}: {part}, {true_share}");
    }
    let small = folder.file("b.jsonl.zst", &zstd::encode_all(text.as_bytes(), 1).unwrap());
    assert_eq!(share(&small, 1 << 20).1, 1.0);
}

#[test]
fn stretches_of_parquet_rows_are_spread() {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use parquet::file::properties::WriterProperties;

    let folder = Folder::new();
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..2000).map(|number| format!("{number} {}", "word ".repeat(20))),
    ));
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(300)).build();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let path = folder.file("a.parquet", &bytes);
    let (found, part) = share(&path, bytes.len() as u64 / 10);
    assert!(
        found.is_sorted_by(|a, b| a < b) && found.first() == Some(&0) && found.last() > Some(&1800),
        "{found:?}"
    );
    assert!((part - found.len() as f64 / 2000.0).abs() < 1e-12 && (0.09..0.13).contains(&part), "{part}");
    assert_eq!(share(&path, bytes.len() as u64).0.len(), 2000);
}
