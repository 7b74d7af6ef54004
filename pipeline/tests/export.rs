//! `export`: what other tools get is what the split holds, with where it is from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod datasets;

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt16Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use datasets::{Built, Recipe, build};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use xlstm_manifests::{Dataset, END_OF_TEXT, Sha256Digest};
use xlstm_pipeline::export::{ExportArgs, ExportReport, Format, Records, export, run};

fn args(built: &Built, to: Format, out: PathBuf) -> ExportArgs {
    ExportArgs {
        path: built.split(),
        to,
        out,
        records: Records::Documents,
        with_text: false,
        url: None,
        creator: None,
        date_published: None,
        json: false,
    }
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    if path.extension().unwrap() == "parquet" {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        reader.map(Result::unwrap).collect()
    } else {
        StreamReader::try_new(file, None).unwrap().map(Result::unwrap).collect()
    }
}

/// All batches of an export, after its files were compared with what the report says of them.
fn batches(report: &ExportReport) -> Vec<RecordBatch> {
    let mut all = Vec::new();
    for file in &report.files {
        let bytes = fs_err::read(&file.path).unwrap();
        assert_eq!((bytes.len() as u64, Sha256Digest::of(&bytes)), (file.size, file.sha256));
        let batches = read(&file.path);
        assert_eq!(batches.iter().map(|b| b.num_rows() as u64).sum::<u64>(), file.records.unwrap());
        all.extend(batches);
    }
    all
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a dyn Array {
    batch.column_by_name(name).unwrap().as_ref()
}

#[test]
fn documents_come_with_text_and_origin_in_both_formats_and_layouts() {
    for (recipe, to) in [
        (Recipe::packed(), Format::Parquet),
        (Recipe::packed(), Format::ArrowStream),
        (Recipe::documents(), Format::Parquet),
        (Recipe::documents(), Format::ArrowStream),
    ] {
        let built = build(&recipe);
        let out = built.folder.path().join("export");
        let report = export(&ExportArgs { with_text: true, ..args(&built, to, out) }).unwrap();
        let manifest = built.manifest();
        assert_eq!(report.root, manifest.root);
        let mut number = 0;
        for batch in batches(&report) {
            for i in 0..batch.num_rows() {
                let (input, record) = (number / 14, number % 14);
                let text = column(&batch, "text").as_string::<i32>().value(i).to_owned();
                assert_eq!(text, recipe.inputs[input][record].text);
                let u64_of = |name: &str| column(&batch, name).as_primitive::<UInt64Type>().value(i);
                let text_of = |name: &str| column(&batch, name).as_string::<i32>().value(i).to_owned();
                assert_eq!(u64_of("document"), number as u64);
                assert_eq!((u64_of("record"), u64_of("bytes")), (record as u64, text.len() as u64));
                assert_eq!(text_of("input"), manifest.inputs[input].path.as_str());
                assert_eq!(text_of("input_sha256"), manifest.inputs[input].sha256.to_string());
                assert_eq!(text_of("digest"), Sha256Digest::of(text.as_bytes()).to_string());
                assert!(text_of("set").ends_with(recipe.inputs[input][record].set));
                number += 1;
            }
        }
        assert_eq!(number, 42);
    }
}

#[test]
fn rows_are_the_splits_rows_and_their_documents_tile_them() {
    let built = build(&Recipe::packed());
    let dataset = Dataset::open(&built.split()).unwrap();
    for to in [Format::Parquet, Format::ArrowStream] {
        let out = built.folder.path().join(format!("rows-{to:?}"));
        let report = export(&ExportArgs { records: Records::Rows, ..args(&built, to, out) }).unwrap();
        let mut number = 0;
        for batch in batches(&report) {
            for i in 0..batch.num_rows() {
                let row = dataset.row(number).unwrap();
                let ids = column(&batch, "input_ids").as_fixed_size_list().value(i);
                assert_eq!(ids.as_primitive::<UInt16Type>().values(), row.ids);
                let documents = column(&batch, "documents").as_list::<i32>().value(i);
                let documents = documents.as_struct();
                let expected = dataset.documents_in_row(number).unwrap();
                assert_eq!(documents.len(), expected.len(), "row {number}");
                let records = documents.column_by_name("record").unwrap().as_primitive::<UInt64Type>();
                let first = documents.column_by_name("first").unwrap().as_primitive::<UInt16Type>();
                let tokens = documents.column_by_name("tokens").unwrap().as_primitive::<UInt64Type>();
                let mut next = 0;
                for (j, span) in expected.iter().enumerate() {
                    assert_eq!((records.value(j), u64::from(first.value(j))), (span.record, next));
                    next += tokens.value(j);
                }
                assert_eq!(next, row.length as u64, "row {number}");
                number += 1;
            }
        }
        assert_eq!(number, dataset.rows());
    }
}

#[test]
fn tokens_of_documents_are_those_of_the_stream() {
    let built = build(&Recipe::packed());
    let report = export(&args(&built, Format::Parquet, built.folder.path().join("export"))).unwrap();
    let mut exported = Vec::new();
    for batch in batches(&report) {
        let lists = column(&batch, "input_ids").as_list::<i32>();
        for i in 0..batch.num_rows() {
            exported.extend_from_slice(lists.value(i).as_primitive::<UInt16Type>().values());
            exported.push(END_OF_TEXT);
        }
    }
    let dataset = Dataset::open(&built.split()).unwrap();
    let stream: Vec<u16> =
        (0..dataset.rows()).flat_map(|row| dataset.row(row).unwrap().tokens().to_vec()).collect();
    assert_eq!(exported, stream);
}

#[test]
fn checksums_name_the_dataset_and_its_inputs() {
    let built = build(&Recipe::packed());
    let out = built.folder.path().join("sums.txt");
    export(&args(&built, Format::Sha256sums, out.clone())).unwrap();
    let text = fs_err::read_to_string(out).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 1 + 2 * built.manifest().shards.len() + 3);
    for line in lines {
        let (digest, name) = line.split_once("  ").unwrap();
        let path = [built.split().join(name), built.inputs().join(name)].into_iter().find(|p| p.exists());
        assert_eq!(Sha256Digest::of(&fs_err::read(path.unwrap()).unwrap()).to_string(), digest);
    }
}

#[test]
fn croissant_lists_every_file_with_its_digest_and_every_input_as_origin() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let out = built.folder.path().join("croissant.json");
        let creator = Some("Somebody".to_owned());
        export(&ExportArgs { creator, ..args(&built, Format::Croissant, out.clone()) }).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&fs_err::read(out).unwrap()).unwrap();
        assert_eq!(value["conformsTo"], "http://mlcommons.org/croissant/1.1");
        assert_eq!(value["identifier"], format!("urn:sha256:{}", built.manifest().root));
        assert_eq!(value["license"][0]["url"], "https://spdx.org/licenses/CC0-1.0.html");
        let files = value["distribution"].as_array().unwrap();
        let objects: Vec<_> = files.iter().filter(|file| file["@type"] == "cr:FileObject").collect();
        assert_eq!(objects.len(), 1 + 2 * built.manifest().shards.len());
        for file in objects {
            let bytes = fs_err::read(built.split().join(file["contentUrl"].as_str().unwrap())).unwrap();
            assert_eq!(file["sha256"], Sha256Digest::of(&bytes).to_string());
            assert_eq!(file["contentSize"], format!("{} B", bytes.len()));
        }
        let origins = value["prov:wasDerivedFrom"].as_array().unwrap();
        assert_eq!(origins.len(), 3);
        assert_eq!(origins[1]["sha256"], built.manifest().inputs[1].sha256.to_string());
        let sources: Vec<_> = value["recordSet"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|set| set["field"].as_array().unwrap())
            .map(|field| field["source"]["fileSet"]["@id"].as_str().unwrap())
            .collect();
        assert!(sources.iter().all(|id| files.iter().any(|file| file["@id"] == *id)));
    }
}

#[test]
fn damage_is_not_passed_on() {
    let built = build(&Recipe::packed());
    let path = built.split().join("shard-00001.arrow");
    let mut bytes = fs_err::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs_err::write(&path, bytes).unwrap();
    let out = built.folder.path().join("export");
    let message = export(&args(&built, Format::Parquet, out.clone())).unwrap_err().to_string();
    assert!(message.contains("shard-00001.arrow"), "{message}");
    // What was finished before stays whole; nothing is half-written.
    let names: Vec<_> = fs_err::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["shard-00000.parquet"]);
}

#[test]
fn documents_have_no_rows() {
    let built = build(&Recipe::documents());
    let out = built.folder.path().join("export");
    let args = ExportArgs { records: Records::Rows, ..args(&built, Format::Parquet, out) };
    assert!(export(&args).unwrap_err().to_string().contains("--as documents"));
}

#[test]
fn the_report_lists_what_was_written() {
    let built = build(&Recipe::packed());
    let mut out = Vec::new();
    let args = ExportArgs { json: true, ..args(&built, Format::Parquet, built.folder.path().join("export")) };
    assert_eq!(run(&args, &mut out).unwrap().exit_code(), 0);
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["files"].as_array().unwrap().len(), built.manifest().shards.len());
}
