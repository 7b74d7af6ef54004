//! The real `xlstm-data` over altered files of every kind that it reads: exit code 0 or 1 with a message, below 1 GiB and
//! 30 seconds, whatever is in the file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{MANIFEST_NAME, Manifest};
use xlstm_tests::corpus;
use xlstm_tests::hostile::{Random, altered, meet};
use xlstm_tests::program::{run, xlstm_data};

/// Runs `xlstm-data` with these arguments; what is wrong with how it ended.
fn complaint(arguments: &[&str], folder: &Path) -> Option<String> {
    let mut command = Command::new(xlstm_data());
    command.args(arguments).current_dir(folder).env("NO_COLOR", "1").env_remove("HF_TOKEN");
    meet(&mut command).complaint().map(|wrong| format!("{arguments:?}: {wrong}"))
}

/// Writes the digests and sizes of the split's files as they are now into its manifest: what somebody does who alters one.
fn seal(split: &Path) {
    let path = split.join(MANIFEST_NAME);
    let mut manifest: Manifest = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    for shard in &mut manifest.shards {
        for file in [&mut shard.file, &mut shard.companion] {
            let bytes = fs_err::read(file.path.under(split)).unwrap();
            (file.size, file.sha256) = (bytes.len() as u64, Sha256Digest::of(&bytes));
        }
    }
    fs_err::write(path, manifest.to_bytes().unwrap()).unwrap();
}

/// A split of a few documents.
fn prepared(folder: &Path) {
    let lines: String = (0..30)
        .map(|number| {
            format!("{{\"text\": \"Document {number} of a few.\", \"id\": \"d{number}\", \"set\": \"s\"}}\n")
        })
        .collect();
    fs_err::create_dir_all(folder.join("in")).unwrap();
    fs_err::write(folder.join("in/a.jsonl"), lines).unwrap();
    let done = run(Command::new(xlstm_data())
        .args(["prepare", "local", "in", "--id-field", "id", "--set-field", "set", "--out", "out"])
        .current_dir(folder));
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn shards_spans_and_manifests() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path());
    let split = folder.path().join("out/train");
    let mut random = Random::new(7);
    let mut wrong = Vec::new();
    for name in ["shard-00000.arrow", "spans-00000.arrow", MANIFEST_NAME] {
        let sound = fs_err::read(split.join(name)).unwrap();
        let manifest = fs_err::read(split.join(MANIFEST_NAME)).unwrap();
        for input in 0..40 {
            // A new file: one that is mapped must not be cut short.
            fs_err::remove_file(split.join(name)).unwrap();
            fs_err::write(split.join(name), altered(&sound, &mut random)).unwrap();
            if name != MANIFEST_NAME {
                seal(&split);
            }
            let commands: [&[&str]; 6] = [
                &["audit", "out/train"],
                &["trace", "out/train", "--row", "0", "--token", "7"],
                &["overlap", "out/train", "out/train"],
                &["export", "out/train", "--to", "parquet", "--out", "export"],
                &["diff", "out/train", "out/train"],
                &["audit", "out/train", "--deep", "all"],
            ];
            wrong.extend(complaint(commands[input % commands.len()], folder.path()));
            let _ = fs_err::remove_dir_all(folder.path().join("export"));
            fs_err::write(split.join(MANIFEST_NAME), &manifest).unwrap();
        }
        fs_err::remove_file(split.join(name)).unwrap();
        fs_err::write(split.join(name), sound).unwrap();
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// A document that says to be of an input that the manifest does not have.
#[test]
fn a_document_of_no_input_is_an_error_of_the_file() {
    use xlstm_manifests::spans;
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path());
    let split = folder.path().join("out/train");
    let dataset = xlstm_manifests::Dataset::open(&split).unwrap();
    let mut altered: Vec<spans::Span> = dataset.spans(0).unwrap().iter().collect();
    drop(dataset);
    altered[3].input = 8;
    fs_err::remove_file(split.join("spans-00000.arrow")).unwrap();
    spans::write(&split.join("spans-00000.arrow"), &altered).unwrap();
    seal(&split);
    for form in ["documents", "rows"] {
        let mut command = Command::new(xlstm_data());
        command.args(["export", "out/train", "--to", "parquet", "--as", form, "--out", "tables"]);
        let met = meet(command.current_dir(folder.path()));
        assert_eq!(met.complaint(), None, "{form}");
        assert!(met.code == Some(1) && met.said.contains("an input 8 (from 0)"), "{form}: {met:?}");
        assert!(met.said.contains("manifest.json") && met.said.contains("found 1 inputs"), "{met:?}");
    }
    assert_eq!(complaint(&["audit", "out/train"], folder.path()), None);
}

#[test]
fn sources_of_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let documents = corpus::documents(3, 4000);
    let lines = corpus::json_lines(&documents);
    let seeds = [
        ("a.jsonl", lines.clone()),
        ("a.jsonl.zst", corpus::zstd_frames(&lines, 2)),
        ("a.jsonl.gz", corpus::gzip_members(&lines, 2)),
        ("a.txt", lines.clone()),
        ("a.parquet", corpus::parquet(&documents, 3)),
    ];
    let mut random = Random::new(8);
    let mut wrong = Vec::new();
    for (name, sound) in seeds {
        let path = folder.path().join(name);
        for _ in 0..25 {
            fs_err::write(&path, altered(&sound, &mut random)).unwrap();
            wrong.extend(complaint(&["prepare", "local", name, "--out", "out"], folder.path()));
            let _ = fs_err::remove_dir_all(folder.path().join("out"));
        }
        fs_err::remove_file(path).unwrap();
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// Small files that become large, and large ones that are not needed.
#[test]
fn bombs_end_in_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // A text of 3 GB that takes no place on the disk.
    fs_err::File::create(path("sparse.txt")).unwrap().set_len(3 << 30).unwrap();
    // 1 MB that becomes 1 GB of one line, and of many.
    let zeros = vec![b' '; 1 << 20];
    let mut one = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let mut many = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let newlines = vec![b'\n'; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut one, &zeros).unwrap();
        std::io::Write::write_all(&mut many, &newlines).unwrap();
    }
    fs_err::write(path("one.jsonl.zst"), one.finish().unwrap()).unwrap();
    fs_err::write(path("many.jsonl.zst"), many.finish().unwrap()).unwrap();
    fs_err::write(path("deep.parquet"), deep_schema(50_000)).unwrap();
    for (name, says) in [
        ("deep.parquet", "inside each other"),
        ("sparse.txt", "expected a text of at most"),
        ("one.jsonl.zst", "is longer than"),
        ("many.jsonl.zst", "times as many"),
    ] {
        let met = meet(
            Command::new(xlstm_data())
                .args(["prepare", "local", name, "--out", "out"])
                .current_dir(folder.path()),
        );
        assert_eq!(met.complaint(), None, "{name}");
        assert!(met.code == Some(1) && met.said.contains(says) && met.said.contains(name), "{met:?}");
    }
}

/// A Parquet file of no rows whose one column lies in `depth` groups, one in the other.
fn deep_schema(depth: usize) -> Vec<u8> {
    // Thrift's compact protocol: version 1, a list of SchemaElement, no rows, no row groups.
    let element = |name: &str, children: Option<u8>| {
        let mut bytes = if children.is_none() { vec![0x15, 12, 0x38] } else { vec![0x48] };
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend(children.into_iter().flat_map(|children| [0x15, 2 * children]));
        bytes.push(0);
        bytes
    };
    let mut directory = vec![0x15, 2, 0x19, 0xfc];
    let mut left = depth + 1;
    while left > 127 {
        directory.push(u8::try_from(left & 127).unwrap() | 128);
        left >>= 7;
    }
    directory.push(u8::try_from(left).unwrap());
    (0..depth).for_each(|_| directory.extend(element("g", Some(1))));
    directory.extend(element("text", None));
    directory.extend([0x16, 0, 0x19, 0x0c, 0]);
    let length = u32::try_from(directory.len()).unwrap().to_le_bytes();
    [b"PAR1", &directory[..], &length, b"PAR1"].concat()
}
