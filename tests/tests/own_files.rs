//! What people's own files and folders do: everything that was named is read or told of, nothing is answered for inputs
//! that were not read, and every refusal names the file, what was found and what to do.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
    UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use xlstm_manifests::{Dataset, Manifest};
use xlstm_tests::corpus;
use xlstm_tests::program::{Ran, assert_same_files, data, data_command, files, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with an input folder `in` and an output folder `out`.
struct Place(tempfile::TempDir);

impl Place {
    fn new(inputs: &[(&str, &[u8])]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs_err::create_dir(place.input()).unwrap();
        for (name, content) in inputs {
            place.put(name, content);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn input(&self) -> PathBuf {
        self.path("in")
    }

    fn split(&self) -> PathBuf {
        self.path("out/train")
    }

    fn put(&self, name: &str, content: &[u8]) {
        let path = self.input().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, content).unwrap();
    }

    fn prepare(&self, more: &[&str]) -> Ran {
        self.prepare_from(&self.input(), more)
    }

    fn prepare_from(&self, input: &Path, more: &[&str]) -> Ran {
        let (input, out) = (text(input), self.path("out"));
        let arguments = ["prepare", "local", input, "--out", text(&out), "--quiet"];
        data(arguments.into_iter().chain(more.iter().copied()))
    }

    fn manifest(&self) -> Manifest {
        Manifest::load(&self.split()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.manifest().inputs.iter().map(|input| input.path.to_string()).collect()
    }

    fn ids(&self) -> Vec<Option<String>> {
        let dataset = Dataset::open(&self.split()).unwrap();
        (0..dataset.manifest().shards.len())
            .flat_map(|shard| dataset.spans(shard).unwrap().iter().map(|span| span.id).collect::<Vec<_>>())
            .collect()
    }

    /// The texts, decoded from the tokens.
    fn texts(&self) -> Vec<String> {
        let table = self.path("table");
        data(["export", text(&self.split()), "--to", "parquet", "--with-text", "--out", text(&table)])
            .success();
        let file = fs_err::File::open(table.join("shard-00000.parquet")).unwrap();
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file.into_file(), 1 << 20)
                .unwrap();
        reader
            .flat_map(|batch| {
                let batch = batch.unwrap();
                let texts = batch.column_by_name("text").unwrap();
                let texts = texts.as_any().downcast_ref::<StringArray>().unwrap();
                texts.iter().map(|text| text.unwrap().to_owned()).collect::<Vec<_>>()
            })
            .collect()
    }
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn a_finished_dataset_answers_only_for_its_own_inputs_and_options() {
    let inputs: [(&str, &[u8]); 2] =
        [("1.jsonl", b"{\"text\":\"one\"}\n"), ("2.jsonl", b"{\"text\":\"two\"}\n")];
    let place = Place::new(&inputs);
    place.prepare(&[]).success();
    let before = files(&place.path("out"));
    let refused = |place: &Place, input: &Path, more: &[&str], parts: &[&str]| {
        let error = place.prepare_from(input, more).failure(1);
        assert_says(&error, &["finished dataset", "use another --out, or --restart"]);
        assert_says(&error, parts);
        assert_eq!(files(&place.path("out")), before, "nothing was changed");
    };
    assert!(place.prepare(&[]).success().contains("was finished before"));
    let other = place.path("other");
    fs_err::create_dir(&other).unwrap();
    fs_err::write(other.join("sp ace.txt"), "other words").unwrap();
    refused(&place, &other, &[], &["sp ace.txt"]);
    place.put("3.jsonl", b"{\"text\":\"three\"}\n");
    refused(&place, &place.input(), &[], &["`3.jsonl` is new"]);
    fs_err::remove_file(place.input().join("3.jsonl")).unwrap();
    place.put("2.jsonl", b"{\"text\":\"TWO\"}\n");
    refused(&place, &place.input(), &[], &["`2.jsonl` has other bytes"]);
    fs_err::remove_file(place.input().join("2.jsonl")).unwrap();
    refused(&place, &place.input(), &[], &["`2.jsonl` is gone"]);
    place.put("2.jsonl", b"{\"text\":\"two\"}\n");
    for option in ["--id-field", "--license-field", "--source-field", "--set-field"] {
        refused(&place, &place.input(), &[option, "text"], &["selection"]);
    }
    assert!(place.prepare(&[]).success().contains("was finished before"));
    // A prefix answers for what it read; files behind it were never in it.
    let place = Place::new(&inputs);
    place.prepare(&["--max-tokens", "1"]).success();
    place.put("9.jsonl", b"{\"text\":\"nine\"}\n");
    assert!(place.prepare(&["--max-tokens", "1"]).success().contains("was finished before"));
}

#[test]
fn a_merged_dataset_answers_only_for_its_own_parts_and_an_altered_part_is_found() {
    let words: String = (0..3000).map(|n| format!("{n} ")).collect();
    let place = Place::new(&[("1.txt", words.as_bytes()), ("2.txt", b"short")]);
    let task = |place: &Place, task: &str| place.prepare(&["--task", task]).success();
    task(&place, "1/2");
    task(&place, "2/2");
    let out = place.path("out");
    data(["merge", "--out", text(&out)]).success();
    fs_err::remove_dir_all(out.join("parts")).unwrap();
    place.put("2.txt", b"shoRT");
    task(&place, "1/2");
    task(&place, "2/2");
    let error = data(["merge", "--out", text(&out)]).failure(1);
    assert_says(&error, &["was not made from these parts", "--restart"]);
    data(["merge", "--out", text(&out), "--restart"]).success();

    // One token altered, and the file's own digest made anew: the Merkle roots still tell.
    let part = out.join("parts/00001-of-00002/train");
    let shard = part.join("shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    bytes[6900] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let mut manifest = Manifest::load(&part).unwrap();
    manifest.shards[0].file.sha256 = xlstm_manifests::Sha256Digest::of(&bytes);
    fs_err::write(part.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
    let error = data(["merge", "--out", text(&out), "--restart"]).failure(1);
    assert_says(&error, &["tokens_root", "altered"]);
}

#[test]
fn an_empty_split_is_said() {
    let notes: Vec<(String, Vec<u8>)> =
        (1..9).map(|n| (format!("{n}.txt"), format!("note {n} of a small corpus").into_bytes())).collect();
    let notes: Vec<(&str, &[u8])> =
        notes.iter().map(|(name, text)| (name.as_str(), text.as_slice())).collect();
    let place = Place::new(&notes);
    let ran = place.prepare(&["--holdout", "0.000001"]);
    assert_says(&ran.stderr, &["split `validation` came out empty", "holdout of 0.000001"]);
    assert_says(&ran.success(), &["no document is in this split"]);
    let place = Place::new(&[("a.jsonl", b"\"context\"\n[\"text\"]\n42\nnull\n")]);
    let ran = place.prepare(&["--on-bad-record", "skip", "--json"]);
    assert_says(&ran.stderr, &["split `train` came out empty", "of 4 records"]);
    assert_says(&ran.success(), &["\"empty\":true"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_under_their_own_names() {
    use std::os::unix::fs::symlink;
    let place = Place::new(&[("real.txt", b"a real file")]);
    let elsewhere = place.path("elsewhere");
    fs_err::create_dir_all(elsewhere.join("folder")).unwrap();
    fs_err::write(elsewhere.join("blob0123"), "{\"text\":\"from a blob\"}\n").unwrap();
    fs_err::write(elsewhere.join("folder/d.txt"), "in a linked folder").unwrap();
    symlink("../elsewhere/blob0123", place.input().join("data.jsonl")).unwrap();
    symlink("../elsewhere/folder", place.input().join("folder")).unwrap();
    place.prepare(&[]).success();
    assert_eq!(place.names(), ["data.jsonl", "folder/d.txt", "real.txt"]);
    data(["audit", text(&place.path("out")), "--deep", "all"]).success();
    // A link by its name, also where the file it leads to has no known ending.
    let named = Place::new(&[]);
    named.prepare_from(&place.input().join("data.jsonl"), &[]).success();
    assert_eq!(named.names(), ["data.jsonl"]);
    data(["audit", text(&named.path("out")), "--deep", "all"]).success();
    let trace = data(["trace", text(&named.split()), "--document", "0", "--token", "0"]).success();
    assert_says(&trace, &["digest and text agree"]);
    // In a circle, and to nowhere.
    symlink(".", place.input().join("loop")).unwrap();
    assert_says(&place.prepare(&["--restart"]).failure(1), &["in/loop", "symbolic link back to"]);
    fs_err::remove_file(place.input().join("loop")).unwrap();
    symlink("../nowhere", place.input().join("broken.txt")).unwrap();
    assert_says(&place.prepare(&["--restart"]).failure(1), &["in/broken.txt", "leads nowhere"]);
}

#[cfg(unix)]
#[test]
fn what_is_passed_over_is_said_and_legal_names_are_read() {
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new(&[
        ("1:intro.md", b"intro"),
        ("a\\b.txt", b"backslash"),
        ("c:notes.txt", b"a drive, on another system"),
        (".hidden.txt", b"hidden"),
        ("x.csv", b"1,2"),
        ("y.csv", b"3,4"),
        ("q.jsonl.xz", b"xz"),
        ("Makefile", b"all:"),
        ("z.txt.gz", &corpus::gzip_members(b"zipped text", 1)),
        ("w.MD.zst", &corpus::zstd_frames(b"frames of text", 2)),
    ]);
    let fifo = place.input().join("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let ran = place.prepare(&[]);
    assert_says(
        &ran.stderr,
        &[
            "passed over",
            "4 files of other endings (.csv 2, .xz 1, none 1)",
            "1 hidden",
            "1 that are not regular",
        ],
    );
    ran.success();
    assert_eq!(place.names(), ["1:intro.md", "a\\b.txt", "c:notes.txt", "w.MD.zst", "z.txt.gz"]);
    assert_eq!(
        place.texts(),
        ["intro", "backslash", "a drive, on another system", "frames of text", "zipped text"]
    );
    let formats: Vec<_> = place.manifest().inputs.into_iter().map(|input| input.format).collect();
    assert_eq!(formats, ["text", "text", "text", "text.zst", "text.gz"]);
    data(["audit", text(&place.path("out")), "--deep", "all"]).success();
    // A pipe that is named would be waited for without end.
    let named = Place::new(&[]);
    assert_says(&named.prepare_from(&fifo, &[]).failure(1), &["pipe.jsonl", "not a regular file"]);
    for (name, reason) in [(&b"a\nb.txt"[..], "control character"), (b"caf\xe9.txt", "not UTF-8")] {
        let place = Place::new(&[]);
        fs_err::write(place.input().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        let error = place.prepare(&[]).failure(1);
        assert_says(
            &error,
            &[reason, "rename the file", if name[0] == b'a' { "a\\nb.txt" } else { "caf\u{fffd}.txt" }],
        );
    }
}

#[test]
fn a_folder_with_its_own_output_is_the_same_input_again() {
    let place =
        Place::new(&[("a.jsonl", b"{\"text\":\"one two\"}\n"), ("b.jsonl", b"{\"text\":\"three\"}\n")]);
    let here = |out: &str, more: &[&str]| {
        let arguments = ["prepare", "local", ".", "--out", out, "--quiet"];
        run(data_command(arguments.into_iter().chain(more.iter().copied())).current_dir(place.input()))
    };
    here("out", &[]).success();
    assert!(here("out", &[]).success().contains("was finished before"));
    let ran = here("other", &[]);
    assert_says(&ran.stderr, &["what this program wrote (`out/train`)"]);
    ran.success();
    here(".", &[]).success();
    assert!(here(".", &[]).success().contains("was finished before"));
    assert_same_files(&place.input().join("out/train"), &place.input().join("other/train"));
    assert_same_files(&place.input().join("out/train"), &place.input().join("train"));
    let named = Place::new(&[]);
    let error = named.prepare_from(&place.input().join("out/train"), &[]).failure(1);
    assert_says(&error, &["is a prepared split", "no inputs"]);
}

#[test]
fn options_that_nothing_matches_are_said() {
    let lines = b"{\"text\":\"a book\",\"source\":\"books\",\"id\":\"b1\"}\n{\"text\":\"a page\",\"source\":\"web\",\"id\":\"w1\"}\n";
    let place = Place::new(&[("a.jsonl", lines)]);
    let error = place.prepare(&["--set-field", "source", "--exclude-set", "bookz"]).failure(1);
    assert_says(&error, &["--exclude-set bookz", "`books`, `web`"]);
    for option in ["--set-field", "--id-field", "--license-field", "--source-field"] {
        let error = place.prepare(&[option, "uid"]).failure(1);
        assert_says(&error, &[option, "uid", "none of 2"]);
    }
    assert!(!place.split().join("manifest.json").exists());
    // The right name goes on in the same folder, without --restart: nothing was stored.
    place.prepare(&["--set-field", "source", "--exclude-set", "books", "--id-field", "id"]).success();
    assert_eq!(place.ids(), [Some("w1".to_owned())]);
    for split in ["../outside", "", ".", "..", "a/b", ".hidden", "parts", "downloads"] {
        let place = Place::new(&[("a.txt", b"words")]);
        let error = place.prepare(&["--split", split]).failure(1);
        assert_says(&error, &["--split", "expected a plain name"]);
        assert!(!place.path("out").exists() && !place.path("outside").exists(), "{split}");
    }
}

#[test]
fn a_wrong_text_field_is_named_with_the_keys_that_are_there() {
    let place = Place::new(&[("a.jsonl", b"{\"content\":\"hello\",\"url\":\"u1\"}\n")]);
    let error = place.prepare(&[]).failure(1);
    assert_says(&error, &["record 0", "no field `text`", "`content`, `url`", "--text-field"]);
    assert!(!error.contains("mend the file"), "{error}");
    place.prepare(&["--text-field", "content"]).success();
    // What the message advises works, also after records were stored.
    let mut lines = b"{\"text\":\"ok\"}\n".repeat(3000);
    lines.extend(b"{\"text\":\"bad\"} trailing\n{\"text\":\"last\"}\n");
    let place = Place::new(&[("a.jsonl", &lines)]);
    let shards = ["--rows-per-shard", "1"];
    assert_says(&place.prepare(&shards).failure(1), &["record 3000", "--on-bad-record skip"]);
    assert!(place.split().join("shard-00000.arrow").exists(), "rows were stored before");
    place.prepare(&["--rows-per-shard", "1", "--on-bad-record", "skip"]).success();
    let whole = Place::new(&[("a.jsonl", &lines)]);
    whole.prepare(&["--rows-per-shard", "1", "--on-bad-record", "skip"]).success();
    assert_same_files(&whole.split(), &place.split());
    assert_eq!(place.manifest().totals.left_out["invalid-json"], 1);
}

#[test]
fn files_that_only_look_like_text_are_called_what_they_are() {
    let utf16: Vec<u8> =
        "\u{feff}{\"text\": \"Boat number 0\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n";
    for (name, content, parts) in [
        ("a.txt", &pointer[..], &["Git LFS pointer", "git lfs pull"][..]),
        ("b.md", pointer, &["Git LFS pointer", "git lfs pull"]),
        ("a.jsonl", &utf16, &["UTF-16", "iconv"]),
        ("a.jsonl", &utf16[2..], &["UTF-16", "iconv"]),
        ("a.txt", &utf16, &["UTF-16", "iconv"]),
        ("a.jsonl.gz", &corpus::gzip_members(&utf16, 1), &["UTF-16", "iconv"]),
        ("a.txt.zst", &corpus::zstd_frames(&utf16, 1), &["UTF-16", "iconv"]),
        (
            "a.parquet",
            include_bytes!("../files/encrypted_footer.parquet"),
            &["an encrypted Parquet file", "decrypt"],
        ),
        ("a.parquet", include_bytes!("../files/encrypted_text.parquet"), &["encrypted columns", "decrypt"]),
        (
            "a.jsonl.zst",
            include_bytes!("../files/dictionary.jsonl.zst"),
            &["compressed with a dictionary", "zstd -d -D"],
        ),
        (
            "a.jsonl.gz",
            &[&corpus::gzip_members(b"{\"text\":\"a\"}\n", 1)[..], b"xx"].concat(),
            &["behind the last member"],
        ),
    ] {
        let error = Place::new(&[(name, content)]).prepare(&[]).failure(1);
        assert_says(&error, parts);
        assert_says(&error, &[name]);
        assert!(!error.contains("damaged") || name.ends_with(".gz"), "{error}");
    }
}

#[test]
fn what_others_read_is_read_here() {
    let padded =
        [&corpus::gzip_members(b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n", 2)[..], &[0; 700]].concat();
    let newline = [&corpus::gzip_members(b"{\"text\":\"three\"}\n", 1)[..], b"\n"].concat();
    let place = Place::new(&[
        ("a.jsonl.gz", include_bytes!("../files/zero_padding.jsonl.gz")),
        ("b.jsonl.gz", &padded),
        ("c.jsonl.gz", &newline),
        (
            "d.jsonl",
            b"{\"text\":\"scored\", \"score\": NaN}\n{\"text\":\"also\", \"score\": [-Infinity, Infinity]}\n",
        ),
        ("e.jsonl", b"{\"\\ud800\": 1, \"text\":\"a key of half a pair\", \"\\udc00x\": {\"\\ud800\": 2}}\n"),
        ("f.txt", b"\xef\xbb\xbfmarked"),
        ("g.md", b"\xef\xbb\xbfmarked too"),
        ("h.parquet", include_bytes!("../files/encrypted_other.parquet")),
    ]);
    place.prepare(&[]).success();
    let texts = place.texts();
    let tail = [
        "one",
        "two",
        "three",
        "scored",
        "also",
        "a key of half a pair",
        "marked",
        "marked too",
        "one",
        "two",
    ];
    assert_eq!(texts[texts.len() - tail.len()..], tail);
    assert!(place.manifest().totals.left_out.is_empty());
    data(["audit", text(&place.path("out")), "--deep", "all"]).success();
}

#[test]
fn parquet_values_are_what_their_types_say_and_pages_what_their_checksums_say() {
    let columns: Vec<(&str, ArrayRef, [&str; 2])> = vec![
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX, 1])), ["18446744073709551615", "1"]),
        ("u32", Arc::new(UInt32Array::from(vec![4_294_967_295, 2])), ["4294967295", "2"]),
        (
            "price",
            Arc::new(Decimal128Array::from(vec![-1230, 5]).with_precision_and_scale(9, 2).unwrap()),
            ["-12.30", "0.05"],
        ),
        ("day", Arc::new(Date32Array::from(vec![19_782, -1])), ["2024-02-29", "1969-12-31"]),
        (
            "time",
            Arc::new(TimestampMicrosecondArray::from(vec![1_709_210_096_000_001, 0]).with_timezone("UTC")),
            ["2024-02-29T12:34:56.000001Z", "1970-01-01T00:00:00.000000Z"],
        ),
    ];
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["one", "two"]));
    let mut fields = vec![Field::new("text", DataType::Utf8, false)];
    fields.extend(columns.iter().map(|(name, array, _)| Field::new(*name, array.data_type().clone(), true)));
    let arrays =
        std::iter::once(texts.clone()).chain(columns.iter().map(|(_, array, _)| array.clone())).collect();
    let schema = Arc::new(Schema::new(fields));
    let file = parquet_file(&RecordBatch::try_new(schema, arrays).unwrap());
    for (name, _, expected) in &columns {
        let place = Place::new(&[("a.parquet", &file)]);
        place.prepare(&["--id-field", name]).success();
        assert_eq!(place.ids(), expected.map(|id| Some(id.to_owned())), "{name}");
    }
    let twice = Schema::new(vec![Field::new("text", DataType::Utf8, false); 2]);
    let file =
        parquet_file(&RecordBatch::try_new(Arc::new(twice), vec![texts.clone(), texts.clone()]).unwrap());
    let error = Place::new(&[("a.parquet", &file)]).prepare(&[]).failure(1);
    assert_says(&error, &["column `text`", "two or more columns of that name"]);
    let interval = Field::new("wait", DataType::Interval(arrow_schema::IntervalUnit::DayTime), true);
    let schema = Schema::new(vec![Field::new("text", DataType::Utf8, false), interval]);
    let waits: ArrayRef = arrow_array::new_null_array(schema.field(1).data_type(), 2);
    let file = parquet_file(&RecordBatch::try_new(Arc::new(schema), vec![texts, waits]).unwrap());
    let error = Place::new(&[("a.parquet", &file)]).prepare(&["--id-field", "wait"]).failure(1);
    assert_says(&error, &["column `wait`", "INTERVAL"]);

    let sound = include_bytes!("../files/page_checksums.parquet");
    Place::new(&[("a.parquet", sound)]).prepare(&[]).success();
    let mut damaged = sound.to_vec();
    let at = damaged.windows(8).position(|bytes| bytes == b"checksum").unwrap();
    damaged[at] = b'C';
    let error = Place::new(&[("a.parquet", &damaged)]).prepare(&[]).failure(1);
    assert_says(&error, &["a.parquet", "CRC checksum mismatch"]);
}

fn parquet_file(batch: &RecordBatch) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn a_lock_files_git_packages_are_mentioned() {
    let folder = tempfile::tempdir().unwrap();
    let lock = folder.path().join("Cargo.lock");
    fs_err::write(
        &lock,
        "version = 4\n\n[[package]]\nname = \"forked\"\nversion = \"1.0.0\"\nsource = \"git+https://example.org/x#1\"\n\n\
         [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n",
    )
    .unwrap();
    let out = folder.path().join("out");
    let ran = data(["prepare", "crates", "--lockfile", text(&lock), "--out", text(&out), "--quiet"]);
    assert_says(
        &ran.stderr,
        &["1 packages from git repositories", "forked 1.0.0", "1 packages of the workspace"],
    );
}

#[test]
fn paloma_sources_that_were_asked_for_are_there_or_said() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    let put = |name: &str| {
        let line = format!("{{\"text\":\"words of {name}\",\"subdomain\":\"d\",\"id\":\"1\"}}\n");
        let path = from.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, corpus::gzip_members(line.as_bytes(), 1)).unwrap();
    };
    put("ptb/val/val_ptb-00000000.jsonl.gz");
    // As AI2's own tools name them: SOURCE_SUBDOMAIN_NNNNNNNN.
    put("gab/val/gab_some.domain_00000000.jsonl.gz");
    let paloma = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let arguments =
            ["prepare", "paloma", "--offline", "--from", text(&from), "--out", text(&out), "--quiet"];
        data(arguments.into_iter().chain(more.iter().copied()))
    };
    let ran = paloma("all", &[]);
    assert_says(&ran.stderr, &["split `test`", "left out", "14 of 16 sources are not there"]);
    ran.success();
    let manifest = Manifest::load(&folder.path().join("all/validation")).unwrap();
    assert_eq!(manifest.totals.documents, 2);
    let error = paloma("one", &["--source", "ptb", "--source", "mc4"]).failure(1);
    assert_says(&error, &["--source mc4", "mc4/val/"]);
    let error = paloma("two", &["--source", "mc4", "--split", "val"]).failure(1);
    assert_says(&error, &["mc4/val/"]);
    assert!(!error.contains("c4_en"), "{error}");
    let error = paloma("three", &["--split", "test"]).failure(1);
    assert_says(&error, &["/test/"]);
    paloma("four", &["--source", "gab"]).success();
}

#[test]
fn files_at_hand_need_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    for chunk in 1..=3 {
        let path = from.join(format!("validation/chunk{chunk}/example_holdout_0.jsonl.zst"));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, corpus::zstd_frames(&corpus::json_lines(&corpus::documents(chunk, 2000)), 1))
            .unwrap();
    }
    let prepare = |out: &str| {
        let out = folder.path().join(out);
        let arguments = [
            "prepare",
            "slimpajama",
            "--split",
            "validation",
            "--from",
            text(&from),
            "--out",
            text(&out),
            "--quiet",
        ];
        let mut command = data_command(arguments);
        command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("XLSTM_HUB_RETRY_DELAY", "0.01");
        command
    };
    let error = run(&mut prepare("one")).failure(1);
    assert_says(&error, &["2 attempts", "--offline", "--from"]);
    let ran = run(prepare("two").env("HF_HUB_OFFLINE", "1"));
    assert_eq!(ran.stderr.matches("expected").count(), 1, "one line for all short places: {}", ran.stderr);
    ran.success();
}

#[test]
fn a_trace_and_a_diff_tell_altered_shards() {
    let place = Place::new(&[("a.txt", b"some words to be found again"), ("b.txt", b"and more of them")]);
    place.prepare(&[]).success();
    let copy = place.path("copy");
    fs_err::create_dir(&copy).unwrap();
    for (name, bytes) in files(&place.split()) {
        fs_err::write(copy.join(name), bytes).unwrap();
    }
    assert_says(&data(["diff", text(&place.split()), text(&copy)]).success(), &["The same tokens"]);
    let shard = place.split().join("shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    let tokens: Vec<u8> = Dataset::open(&copy).unwrap().row(0).unwrap().ids[..4]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let at = bytes.windows(8).position(|window| window == tokens).unwrap();
    bytes[at] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let ran = data(["diff", text(&place.split()), text(&copy)]);
    assert_says(&ran.stdout, &["shard-00000.arrow", "altered"]);
    assert_eq!(ran.code, Some(1));
    let alone = data(["diff", text(&place.split()), text(&copy), "--manifests-only"]).success();
    assert_says(&alone, &["By their manifests alone"]);
    let ran = data(["trace", text(&place.split()), "--row", "0", "--token", "0"]);
    assert_says(&ran.stdout, &["shards were altered", "xlstm-data audit"]);
    assert_eq!(ran.code, Some(1));
    for line in
        ran.stdout.lines().filter(|line| line.contains("expected sha256") && line.contains("found sha256"))
    {
        let digests: Vec<_> = line.split("sha256 ").skip(1).map(|rest| rest.get(..64)).collect();
        assert_ne!(digests[0], digests[1], "{line}");
    }
}

#[test]
fn a_step_that_a_run_does_not_have_is_refused() {
    let place = Place::new(&[("a.txt", b"some words for a step")]);
    place.prepare(&[]).success();
    let (run_folder, split) = (place.path("run"), place.split());
    fs_err::create_dir(&run_folder).unwrap();
    let root = place.manifest().root;
    let program = serde_json::json!({
        "name": "xlstm-train", "version": "0", "commit": "unknown", "binary_sha256": null, "libtorch": "2",
        "kernels": "cpu",
    });
    let manifest = serde_json::json!({
        "format": "xlstm-run", "version": 1, "validation": null, "initialization_seed": 1, "parameters": 1,
        "train": {"root": root, "path": split, "split": "train", "profile": "local", "rows": 1, "tokens": 6},
        "recipe": {"name": "test", "sha256": root},
        "order": {"algorithm": xlstm_manifests::order::ALGORITHM, "root": root, "seed": 1, "rows": 1,
            "rows_per_step": 1, "row_length": 2048, "tokens": 6},
        "program": program, "sessions": [],
    });
    fs_err::write(run_folder.join("run.json"), manifest.to_string()).unwrap();
    fs_err::write(run_folder.join("recipe.toml"), "[training]\nsteps = 200\n").unwrap();
    fs_err::write(run_folder.join("metrics.jsonl"), "{\"step\":10}\n{\"step\":20}\n").unwrap();
    let trace = |step: &str| data(["trace", "--run", text(&run_folder), "--step", step]);
    assert_says(&trace("20").success(), &["step 20"]);
    assert_says(&trace("21").failure(1), &["up to 20", "has recorded", "found step 21"]);
    assert_says(&trace("99999").failure(1), &["up to 200", "recipe", "found step 99999"]);
}

/// What was asked of a server: each path, and whether a token came along.
type Asked = Arc<std::sync::Mutex<Vec<(String, bool)>>>;

/// A mirror below a path that passes on the links of the Hub it mirrors, unchanged. Returns its address, and what was
/// asked of it: path, and whether a token came along.
fn mirror_below_a_path(link: &'static str) -> (String, Asked) {
    use std::io::{BufRead as _, Write as _};
    const SHA: &str = "b5f90f419b7489cdba26fdbc8c022fcb5562f968";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    let file = corpus::parquet(&corpus::documents(3, 3000), 100);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut token) = (String::new(), false);
            reader.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                token |= line.to_ascii_lowercase().starts_with("authorization:");
            }
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            log.lock().unwrap().push((path.clone(), token));
            let entry = |name: &str, bytes: &[u8]| {
                let digest = xlstm_manifests::Sha256Digest::of(bytes);
                serde_json::json!([{"type": "file", "path": name, "size": bytes.len(), "oid": "0".repeat(40),
                    "lfs": {"oid": digest, "size": bytes.len(), "pointerSize": 130}}])
                .to_string()
                .into_bytes()
            };
            let (mut status, mut more) = ("200 OK", String::new());
            let body = match path.strip_prefix("/mirror") {
                Some(path) if path.contains("/revision/") => {
                    serde_json::json!({"sha": SHA, "gated": false, "disabled": false})
                        .to_string()
                        .into_bytes()
                }
                Some(path) if path.contains("/tree/") && path.contains("cursor") => {
                    entry("data/validation-00000-of-00001.parquet", &file)
                }
                Some(path) if path.contains("/tree/") => {
                    let (path, _) = path.split_once('?').unwrap();
                    more = format!("Link: <{link}{path}?recursive=true&cursor=x>; rel=\"next\"\r\n");
                    entry("README.md", b"hello")
                }
                Some(path) if path.contains("/resolve/") => {
                    status = "307 Temporary Redirect";
                    more = "Location: /api/resolve-cache/file\r\n".to_owned();
                    Vec::new()
                }
                Some("/api/resolve-cache/file") => file.clone(),
                _ => {
                    status = "404 Not Found";
                    b"{}".to_vec()
                }
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    (format!("http://{address}/mirror"), asked)
}

#[test]
fn a_mirror_below_a_path_is_asked_below_it_and_gets_the_token_nowhere_else() {
    for link in ["https://hub.example", "", "/mirror"] {
        let (endpoint, asked) = mirror_below_a_path(link);
        let folder = tempfile::tempdir().unwrap();
        let (out, home) = (folder.path().join("out"), folder.path().join("home"));
        let arguments = [
            "prepare",
            "slimpajama",
            "--profile",
            "6b",
            "--split",
            "validation",
            "--out",
            text(&out),
            "--quiet",
        ];
        let mut command = data_command(arguments);
        command.env("HF_ENDPOINT", &endpoint).env("HF_TOKEN", "hf_secret").env("XDG_CACHE_HOME", &home);
        run(command.env("XLSTM_HUB_RETRY_DELAY", "0.01")).success();
        let asked = asked.lock().unwrap().clone();
        assert!(
            asked.len() >= 5 && asked.iter().all(|(path, token)| path.starts_with("/mirror/") && *token),
            "{asked:?}"
        );
        let origin = xlstm_manifests::origin::Origin::of(&Manifest::load(&out.join("validation")).unwrap());
        assert!(origin.is_verified() && origin.sentence().contains("sha256 published by hub"), "{origin:?}");
    }
}
