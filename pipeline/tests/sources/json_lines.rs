//! JSON lines, plain and compressed, whole and broken.

use std::io::Write;

use proptest::prelude::*;

use super::*;

const LINES: &str = concat!(
    "\u{feff}{\"text\":\"one\",\"meta\":{\"redpajama_set_name\":\"RedPajamaC4\"}}\n",
    "\n",
    "{\"text\":\"two\\nlines\",\"meta\":{\"redpajama_set_name\":\"RedPajamaBook\"}}\r\n",
    "  \t\n",
    "{\"no\":1}\n",
    "{\"text\":\"\"}\n",
    "{\"text\":\"last, without an end\",\"meta\":{}}",
);

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The same lines in every way they may be stored: in frames or members that end anywhere.
fn stored(folder: &Folder, lines: &[u8]) -> Vec<PathBuf> {
    let halves = lines.split_at(lines.len() / 2);
    let skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip";
    vec![
        folder.file("plain.jsonl", lines),
        folder.file("one.jsonl.zst", &zstd(lines)),
        folder.file(
            "frames.jsonl.zst",
            &[&skippable[..], &zstd(halves.0), skippable, &zstd(halves.1)].concat(),
        ),
        folder.file("one.jsonl.gz", &gzip(lines)),
        folder.file("members.json.gz", &[gzip(halves.0), gzip(b""), gzip(halves.1)].concat()),
    ]
}

#[test]
fn lines_are_the_same_however_they_are_stored() {
    let folder = Folder::new();
    for path in stored(&folder, LINES.as_bytes()) {
        let steps = read(&path, &Fields::slimpajama());
        assert_eq!(
            texts(&steps),
            ["one", "two\nlines", "BAD", "", "last, without an end"],
            "{}",
            path.display()
        );
        assert_eq!(steps.iter().map(number).collect::<Vec<_>>(), [0, 2, 4, 5, 6]);
        let Entry::Record(record) = &steps[1] else { panic!() };
        assert_eq!(record.set.as_deref(), Some("RedPajamaBook"));
        assert_any_start_agrees(&path, &Fields::slimpajama());
    }
}

/// Lines that end anywhere in the readers' buffers (256 KiB), that fill them, and that are longer.
#[test]
fn lines_are_whole_wherever_a_buffer_ends() {
    let folder = Folder::new();
    let mut lines = Vec::new();
    let mut expected = Vec::new();
    for number in 0..400u64 {
        let length = match number % 40 {
            7 => 256 << 10,
            13 => 600_000 + number as usize,
            _ => (number * number * 7919 % 9973) as usize,
        };
        let text = format!("{number} \n\"é\\ {}", "x y".repeat(length / 3));
        match number % 9 {
            3 => lines.extend_from_slice(b" \r\n"),
            5 => lines.extend_from_slice(b"{\"text\": 1}\n"),
            _ => {
                lines.extend_from_slice(&serde_json::to_vec(&serde_json::json!({ "text": text })).unwrap());
                lines.push(b'\n');
            }
        }
        match number % 9 {
            3 => {}
            5 => expected.push((number, "BAD".to_owned())),
            _ => expected.push((number, text)),
        }
    }
    for path in stored(&folder, &lines) {
        let steps = read(&path, &Fields::default());
        let found: Vec<_> =
            steps.iter().map(number).zip(texts(&steps).into_iter().map(str::to_owned)).collect();
        assert!(found == expected, "{}", path.display());
    }
}

#[test]
fn an_empty_file_has_no_records() {
    let folder = Folder::new();
    for path in stored(&folder, b"") {
        assert_eq!(read(&path, &Fields::default()), []);
    }
}

#[test]
fn a_file_cut_short_says_how_far_it_was_good() {
    let folder = Folder::new();
    let mut lines = String::new();
    for number in 0..20_000 {
        lines += &format!("{{\"text\":\"document {number} {}\"}}\n", number * 7919 % 10_007);
    }
    for (name, bytes) in [("cut.jsonl.zst", zstd(lines.as_bytes())), ("cut.jsonl.gz", gzip(lines.as_bytes()))]
    {
        let path = folder.file(name, &bytes[..bytes.len() * 2 / 3]);
        let (steps, error) = read_from(&path, &Fields::default(), 0);
        let error = error.unwrap().to_string();
        let reached = format!("in record {} (from 0)", steps.len());
        assert!(!steps.is_empty() && error.contains(&reached), "{error}, {} records", steps.len());
        assert!(error.contains(name) && error.contains("damaged") && error.contains("again"), "{error}");
    }
}

#[test]
fn changed_bytes_never_go_unnoticed_in_gzip() {
    let folder = Folder::new();
    let lines = "{\"text\":\"some document of some length\"}\n".repeat(50);
    let sound = gzip(lines.as_bytes());
    let expected = read(&folder.file("sound.jsonl.gz", &sound), &Fields::default());
    for at in 10..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        let path = folder.file("flipped.jsonl.gz", &bytes);
        // The last byte of the compressed data is filled up with bits that mean nothing.
        let (steps, error) = read_from(&path, &Fields::default(), 0);
        assert!(error.is_some() || steps == expected, "byte {at}");
    }
}

#[test]
fn bad_lines_do_not_stop_a_reader() {
    let folder = Folder::new();
    let lines: &[&[u8]] = &[
        b"{\"text\":\"a\"}",
        b"{\"text\":\"a\"",
        b"{\"text\":null}",
        b"{\"text\":7}",
        b"{\"text\":\"\\ud800\"}",
        b"{\"text\":\"\xff\"}",
        b"[]",
        b"{\"text\":\"b\",\"n\":184467440737095516160,\"text\":\"c\"}",
    ];
    let path = folder.file("mixed.jsonl", &lines.join(&b'\n'));
    let steps = read(&path, &Fields::default());
    let reasons: Vec<_> = steps
        .iter()
        .map(|step| match step {
            Entry::Record(record) => record.text.as_str(),
            Entry::Bad { reason, .. } => reason.reason(),
        })
        .collect();
    let expected = [
        "a",
        "invalid-json",
        "missing-text",
        "text-not-a-string",
        "invalid-json",
        "invalid-utf-8",
        "missing-text",
        "c",
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn a_long_line_is_a_line() {
    let folder = Folder::new();
    let long = "word ".repeat(4 << 20);
    let path =
        folder.file("long.jsonl", format!("{{\"text\":\"{long}\"}}\n{{\"text\":\"short\"}}\n").as_bytes());
    assert_eq!(texts(&read(&path, &Fields::default())), [long.as_str(), "short"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any texts, written by serde_json, come back, in every way of storing them.
    #[test]
    fn texts_come_back(documents in prop::collection::vec(any::<String>(), 0..20)) {
        let folder = Folder::new();
        let line = |text: &String| serde_json::json!({"id": 1, "text": text}).to_string() + "\n";
        let lines: String = documents.iter().map(line).collect();
        for path in stored(&folder, lines.as_bytes()) {
            let steps = read(&path, &Fields::default());
            prop_assert_eq!(texts(&steps), documents.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

/// Damaged lines, 10,000 of them: each is told of under its own number, and what a strict parser takes is taken with
/// the same text and id.
#[test]
fn no_damaged_line_is_lost_or_changed() {
    let folder = Folder::new();
    let mut state = 88_172_645_463_325_252u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let samples: [&[u8]; 5] = [
        br#"{"text":"one","id":7,"x":[1,2.5e3,{"y":null}],"z":"\u00e9\n"}"#,
        "{\"id\":\"größe\",\"text\":\"zwei \\ud83d\\ude42 東京\"}".as_bytes(),
        br#"{ "text" : "" , "id" : true , "text" : "last counts" }"#,
        br#"{"meta":{"text":"inner"},"text":"outer","n":-0.0,"a":[[],{},""]}"#,
        br#"["no object"]"#,
    ];
    let pieces: [&[u8]; 14] = [
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b",",
        b":",
        b"\xff",
        b"NaN",
        b"\\ud800",
        b"\0",
        b" ",
        b"\r",
        b"\"text\":",
    ];
    let lines: Vec<Vec<u8>> = (0..10_000)
        .map(|_| {
            let mut line = samples[below(samples.len())].to_vec();
            for _ in 0..below(4) {
                let at = below(line.len().max(1));
                match below(3) {
                    0 => line.truncate(at),
                    1 => drop(line.splice(at..at, pieces[below(pieces.len())].iter().copied())),
                    _ => line[at..]
                        .iter_mut()
                        .take(1)
                        .for_each(|byte| *byte = (*byte).wrapping_add(1 + below(90) as u8)),
                }
                if line.is_empty() {
                    break;
                }
            }
            line.retain(|&byte| byte != b'\n');
            line
        })
        .collect();
    let path = folder.file(
        "damaged.jsonl",
        &[b"{\"text\":\"first\"}".to_vec()]
            .iter()
            .chain(&lines)
            .flat_map(|line| [&line[..], b"\n"].concat())
            .collect::<Vec<u8>>(),
    );
    let fields = Fields { id: Some("id".to_owned()), ..Fields::default() };
    let steps = read(&path, &fields);
    let blank = |line: &&Vec<u8>| line.trim_ascii().is_empty();
    assert_eq!(steps.len(), 1 + lines.len() - lines.iter().filter(blank).count());
    let mut taken = 0;
    for step in &steps[1..] {
        let line = &lines[usize::try_from(number(step)).unwrap() - 1];
        let strict = serde_json::from_slice::<serde_json::Value>(line)
            .ok()
            .filter(|_| std::str::from_utf8(line).is_ok());
        let text = strict.as_ref().and_then(|value| value.as_object()?.get("text")?.as_str());
        match (step, text) {
            (Entry::Record(record), Some(text)) => {
                taken += 1;
                assert_eq!(record.text, text, "{}", String::from_utf8_lossy(line));
                let id = strict.as_ref().and_then(|value| value.get("id"));
                if let Some(id) = id.and_then(serde_json::Value::as_str) {
                    assert_eq!(record.id.as_deref(), Some(id));
                }
            }
            (Entry::Bad { .. }, None) => {}
            (Entry::Bad { found, .. }, Some(text)) => panic!("`{text}` was lost: {found}"),
            // Beyond the strict parser: what Python writes, half of a pair in a key, depth and digits without limit.
            (Entry::Record(record), None) => {
                let line = String::from_utf8_lossy(line);
                let lenient = ["NaN", "Infinity", "\\u"].iter().any(|word| line.contains(word));
                assert!(lenient, "{line} gave {record:?}");
            }
        }
    }
    assert!(taken > 2_000, "{taken}");
}
