//! Rows of numbers on their way through the pipeline: written, streamed, cut into parts, merged, audited, traced, exported.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use xlstm_manifests::rows::{Rows, Sequences};
use xlstm_manifests::vectors::{VectorExample as Row, VectorShape, VectorsWriter};
use xlstm_manifests::{Dataset, Manifest};
use xlstm_pipeline::audit::{Amount, AuditArgs, audit};
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{self, Parameters, Range, Split, Task, streamed};

use crate::{NEAREST, task, vectors};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xlstm-data")).args(arguments).output().unwrap()
}

/// Runs the program, which must succeed; returns what it printed.
fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names and bytes of all files of a split.
fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
    };
    files.filter(|path| path.is_file()).map(named).collect()
}

/// Short sequences: three shares of them are a few megabytes.
fn short() -> Box<dyn Task> {
    let parameters = Parameters { length: Some(Range { min: 2, max: 4 }), ..Parameters::default() };
    tasks::by_name(NEAREST, 3, &parameters).unwrap()
}

/// By their bits: what is not scored is NaN.
fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn threads_and_parts_change_no_byte_and_rows_are_the_samples() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let task = short();
    let plan = || TaskPlan::new(&*task, Split::Train, 140_000, 50_000).unwrap();
    plan().execute(&at("one"), 1, false).unwrap();
    plan().execute(&at("three"), 3, false).unwrap();
    let expected = bytes(&at("one/train"));
    assert!(expected.len() > 6 && bytes(&at("three/train")) == expected);
    let parts: Vec<_> =
        (1..=2).map(|index| plan().part(index, 2).execute(&at("array"), 2, false).unwrap().folder).collect();
    xlstm_pipeline::merge::merge(&parts, &at("array/train"), false).unwrap();
    assert!(bytes(&at("array/train")) == expected, "merged parts differ");
    let manifest = Manifest::load(&at("one/train")).unwrap();
    assert_eq!((manifest.layout.name(), manifest.version), ("vectors", 3));
    assert_eq!((manifest.packing.input_width, manifest.packing.row_length), (Some(3), 4));
    assert_eq!((manifest.totals.rows, manifest.totals.tokens), (140_000, 4 * 140_000));
    let dataset = Dataset::open_checked(&at("one/train")).unwrap();
    for (number, sample) in (0..).zip(vectors(&*task, Split::Train, 60)) {
        let row = dataset.vectors(number).unwrap().unwrap();
        assert_eq!(bits(row.inputs), bits(&sample.inputs));
        assert!(row.targets().eq(sample.targets.iter().copied()));
        assert_eq!(usize::from(row.length), sample.length);
    }
    let error = dataset.row(0).err().unwrap().to_string();
    assert!(error.contains("rows of tokens") && error.contains("`vectors`"), "{error}");
}

#[test]
fn a_streamed_split_has_the_manifest_and_the_rows_of_a_written_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let task = task(NEAREST);
    let plan = || TaskPlan::new(&*task, Split::Validation, 900, 400).unwrap();
    plan().execute(&at("written"), 2, false).unwrap();
    plan().streamed().execute(&at("streamed"), 2, false).unwrap();
    let files = bytes(&at("streamed/validation"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["manifest-sha256.txt", "manifest.json"]);
    assert!(files["manifest.json"] == bytes(&at("written/validation"))["manifest.json"]);
    let open = |name: &str| streamed::open(&at(name).join("validation")).unwrap();
    let read = |rows: &dyn Rows, row| {
        let mut into = Sequences::default();
        rows.read(row, true, &mut into).unwrap();
        let numbers = (bits(&into.numbers.inputs), bits(&into.numbers.targets));
        assert!(into.inputs.is_empty() && into.targets.is_empty());
        assert_eq!((into.positions(), into.starts.len()), (64, 64));
        assert_eq!(into.scored(), rows.targets_in(row).unwrap());
        assert_eq!(into.scored() + 1, u64::from(into.lengths[0]), "a target everywhere but at the key");
        (numbers, rows.documents_in_row(row).unwrap())
    };
    for row in [0, 1, 399, 400, 899] {
        assert_eq!(read(&*open("written"), row), read(&*open("streamed"), row), "row {row}");
    }
    let rows = streamed::StreamedRows::open(&at("streamed/validation")).unwrap();
    rows.check().unwrap();
}

#[test]
fn an_audit_finds_numbers_that_were_altered() {
    let folder = tempfile::tempdir().unwrap();
    let task = task(NEAREST);
    TaskPlan::new(&*task, Split::Test, 200, 128).unwrap().execute(folder.path(), 2, false).unwrap();
    let split = folder.path().join("test");
    let deep = AuditArgs { deep: Some(Amount::All), ..AuditArgs::new(vec![split.clone()]) };
    let report = audit(&deep).unwrap();
    assert!(report.clean, "{report:?}");
    assert_eq!(report.splits[0].deep.as_ref().unwrap().documents, 200);
    // The last bit of one number, in a shard that is written anew with the right shape.
    let dataset = Dataset::open(&split).unwrap();
    let shape = VectorShape { row_length: 64, width: 3 };
    let shard = split.join("shard-00001.arrow");
    let mut writer = VectorsWriter::create(&folder.path().join("altered.arrow"), shape).unwrap();
    for row in 128..200 {
        let row = dataset.vectors(row).unwrap().unwrap();
        let mut inputs = row.inputs.to_vec();
        inputs[2] = f32::from_bits(inputs[2].to_bits() ^ 1);
        let targets: Vec<_> = row.targets().collect();
        writer.push(&Row { inputs: &inputs, targets: &targets, length: row.length }).unwrap();
    }
    writer.finish().unwrap();
    drop(dataset);
    std::fs::rename(folder.path().join("altered.arrow"), &shard).unwrap();
    let report = audit(&AuditArgs::new(vec![split.clone()])).unwrap();
    assert!(!report.clean && format!("{report:?}").contains("shard-00001"), "{report:?}");
    let dataset = Dataset::open_checked(&split).unwrap();
    assert!(dataset.vectors(100).is_ok());
    let error = dataset.vectors(150).unwrap_err().to_string();
    assert!(error.contains("tokens_root") && error.contains("nothing was computed from it"), "{error}");
}

#[test]
fn the_program_prepares_plans_traces_and_exports_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("data");
    let sizes = ["--split", "validation", "--examples", "300", "--rows-per-shard", "256"];
    let arguments = |command, json: bool| {
        let mut all = vec![command, "task", NEAREST, "--out", text(&out)];
        all.extend(sizes);
        all.extend(json.then_some("--json"));
        all
    };
    let plan: Value = serde_json::from_str(&succeeds(&arguments("plan", true))).unwrap();
    let plan = &plan["splits"][0];
    assert_eq!((&plan["examples"], &plan["row_length"]), (&300.into(), &64.into()));
    succeeds(&arguments("prepare", false));
    let split = out.join("validation");
    let size: usize = bytes(&split).values().map(Vec::len).sum();
    let planned = plan["bytes"].as_u64().unwrap();
    assert!(planned.abs_diff(size as u64) < planned / 5, "planned {planned}, found {size}");
    assert!(succeeds(&["audit", "--deep", "all", text(&split)]).contains("300 of 300 documents"));

    // The solution says where the nearest vector stands.
    let sample = vectors(&*task(NEAREST), Split::Validation, 8).last().unwrap();
    let traced = succeeds(&["trace", text(&split), "--document", "7"]);
    let last = sample.length - 1;
    let target = sample.targets[last].unwrap();
    assert!(traced.contains(&format!("{target} (the value at ")), "{traced}");
    assert!(traced.contains(&format!("at {last}\n")) && traced.contains("the same row"), "{traced}");
    let traced = succeeds(&["trace", text(&split), "--document", "7", "--token", "1"]);
    assert!(traced.contains(&format!("position 1: inputs ({}, ", sample.inputs[3])), "{traced}");
    assert!(traced.contains(&format!("target {}", sample.targets[1].unwrap())), "{traced}");

    let row = succeeds(&["trace", text(&split), "--row", "299", "--token", "2"]);
    assert!(row.contains("position 2: inputs (") && row.contains("document 299"), "{row}");

    for records in ["documents", "rows"] {
        let table = folder.path().join(records);
        succeeds(&["export", text(&split), "--to", "parquet", "--as", records, "--out", text(&table)]);
        check_table(&table, &split);
    }
    let card = folder.path().join("card.json");
    succeeds(&["export", text(&split), "--to", "croissant", "--out", text(&card)]);
    let card = std::fs::read_to_string(&card).unwrap();
    assert!(card.contains("cr:Float32") && card.contains("\"192\"") && card.contains("3 real-valued inputs"));
    let refused =
        run(&["export", text(&split), "--to", "parquet", "--with-text", "--out", text(&out.join("x"))]);
    assert_eq!(refused.status.code(), Some(1));
}

fn check_table(table: &Path, split: &Path) {
    let dataset = Dataset::open(split).unwrap();
    let mut row = 0;
    for name in ["shard-00000.parquet", "shard-00001.parquet"] {
        let file = File::open(table.join(name)).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        for batch in reader {
            let batch: RecordBatch = batch.unwrap();
            let list = |name: &str| batch.column_by_name(name).unwrap().as_fixed_size_list().clone();
            let (inputs, targets) = (list("inputs"), list("targets"));
            for index in 0..batch.num_rows() {
                let stored = dataset.vectors(row).unwrap().unwrap();
                let inputs = inputs.value(index);
                assert_eq!(bits(inputs.as_primitive::<Float32Type>().values()), bits(stored.inputs));
                let targets = targets.value(index);
                assert!(targets.as_primitive::<Float32Type>().iter().eq(stored.targets()));
                row += 1;
            }
        }
    }
    assert_eq!(row, 300);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("data");
    let refused = |arguments: &[&str], said: &str| {
        let output = run(&[&["prepare", "task", NEAREST, "--out", text(&out)], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([Some(1), Some(2)].contains(&output.status.code()), "{arguments:?}: {:?}", output.status);
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(!out.exists(), "{arguments:?}");
    };
    refused(&["--length", "1..9"], "lengths of 2 (a key and a candidate) to");
    refused(&["--length", "2..99999"], "found length 2..99999");
    refused(&["--length", "9..3"], "MIN ≤ MAX");
    refused(&["--pairs", "4"], "has no parameter `pairs`");
    refused(&["--examples", "0"], "expected a count");
    refused(&["--seed", "9007199254740993"], "canonical");
}

#[test]
fn inputs_of_different_splits_are_never_equal() {
    let task = short();
    let prompts = |split| {
        let of = |sample: tasks::VectorExample| bits(&sample.inputs);
        vectors(&*task, split, 3000).map(of).collect::<std::collections::HashSet<_>>()
    };
    let [train, validation, test] = Split::ALL.map(prompts);
    assert!(train.is_disjoint(&validation) && train.is_disjoint(&test) && validation.is_disjoint(&test));
    // The rule: the first byte of SHA-256 over the inputs up to the length.
    for split in Split::ALL {
        for sample in vectors(&*task, split, 300) {
            let bytes: Vec<u8> =
                sample.inputs[..3 * sample.length].iter().flat_map(|number| number.to_le_bytes()).collect();
            let first = xlstm_manifests::Sha256Digest::of(&bytes).0[0];
            let expected = match first {
                0..64 => Split::Validation,
                64..128 => Split::Test,
                _ => Split::Train,
            };
            assert_eq!(split, expected);
        }
    }
}

/// The bits of the first samples: a machine that makes others would make another dataset under the same name.
#[test]
fn samples_are_pinned() {
    let task = task(NEAREST);
    let made: Vec<u8> = Split::ALL
        .into_iter()
        .flat_map(|split| vectors(&*task, split, 50).collect::<Vec<_>>())
        .flat_map(|sample| {
            let targets = sample.targets.iter().map(|target| target.unwrap_or(-1.0)).collect::<Vec<_>>();
            bits(&sample.inputs).into_iter().chain(bits(&targets)).chain([sample.length as u32])
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    let digest = xlstm_manifests::Sha256Digest::of(&made).to_string();
    assert_eq!(&digest[..16], "7d2b79e8c84a0929");
}

/// A row as a line of JSON: its positions without padding, each with a list of its own or all in one.
fn line(dataset: &Dataset, row: u64, by_position: bool) -> String {
    let row = dataset.vectors(row).unwrap().unwrap();
    let length = usize::from(row.length);
    let positions: Vec<&[f32]> = row.inputs.chunks(3).take(length).collect();
    let targets: Vec<Option<f32>> = row.targets().take(length).collect();
    let inputs = if by_position { json!(positions) } else { json!(positions.concat()) };
    json!({"inputs": inputs, "targets": targets, "set": "near"}).to_string()
}

/// A generated split, written down as lines and prepared from them: the same rows, to the last bit, found again in the file.
#[test]
fn numbers_from_a_file_are_the_rows_that_were_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    TaskPlan::new(&*short(), Split::Test, 300, 128).unwrap().execute(&at("made"), 2, false).unwrap();
    let made = Dataset::open(&at("made/test")).unwrap();
    for (name, by_position) in [("lists", true), ("one-list", false)] {
        let file = at(&format!("{name}.jsonl"));
        let lines: String = (0..300).map(|row| line(&made, row, by_position) + "\n").collect();
        std::fs::write(&file, lines).unwrap();
        let out = at(name);
        let said = succeeds(&[
            "prepare",
            "examples",
            text(&file),
            "--out",
            text(&out),
            "--split",
            "test",
            "--row-length",
            "4",
        ]);
        assert!(said.contains("300 examples, 1200 positions, 300 rows"), "{said}");
        let manifest = Manifest::load(&out.join("test")).unwrap();
        assert_eq!(manifest.tokens_root, made.manifest().tokens_root, "{name}");
        assert_eq!((manifest.layout.name(), manifest.packing.input_width), ("vectors", Some(3)));
        assert!(manifest.source.generator.is_none() && manifest.version == 3);
        let deep = AuditArgs { deep: Some(Amount::All), ..AuditArgs::new(vec![out.join("test")]) };
        let report = audit(&deep).unwrap();
        assert!(report.clean && report.splits[0].deep.as_ref().unwrap().documents == 300, "{report:?}");
        let said = succeeds(&["trace", text(&out.join("test")), "--row", "7", "--token", "1"]);
        assert!(said.contains(&format!("{name}.jsonl")) && said.contains("digest and text agree"), "{said}");
    }
    // The file is altered in one digit: the audit names the record.
    let file = at("lists.jsonl");
    let altered = std::fs::read_to_string(&file).unwrap().replacen("0.", "0.0", 1);
    std::fs::write(&file, altered).unwrap();
    let output = run(&["audit", text(&at("lists/test")), "--deep", "all"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    let numbers = "{\"inputs\": [[1, 2]], \"targets\": [0.5]}\n";
    for (lines, more, parts) in [
        (
            format!("{numbers}{{\"inputs\": [[1]], \"targets\": [0.5]}}\n"),
            &[][..],
            &["record 1", "numbers, 1 a position", "expected numbers, 2 a position"][..],
        ),
        (
            format!("{numbers}{{\"input_ids\": [1], \"targets\": [1]}}\n"),
            &["--on-bad-record", "skip"],
            &["is of tokens", "prepare each kind apart"],
        ),
        (numbers.to_owned(), &["--vocabulary-size", "5"], &["--vocabulary-size", "leave it out"]),
        ("{\"inputs\": [1e39], \"targets\": [1]}\n".into(), &[], &["finite numbers", "inf"]),
        ("{\"inputs\": [1], \"targets\": [null]}\n".into(), &[], &["at least one target", "none"]),
    ] {
        std::fs::write(&file, lines).unwrap();
        let mut arguments = vec!["prepare", "examples", text(&file), "--out", text(&out)];
        arguments.extend(more);
        let output = run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "`{part}` is not in {said}"));
        assert!(!out.join("train").exists());
    }
}
