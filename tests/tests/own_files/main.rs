//! What people's own files and folders do: everything that was named is read or told of, nothing is answered for inputs
//! that were not read, and every refusal names the file, what was found and what to do.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod duplicates;
mod estimate;
mod fields;
mod finished;
mod formats;
mod hub;
mod names;
mod parquet_files;
mod stored;

use std::path::{Path, PathBuf};

use arrow_array::StringArray;
use xlstm_manifests::{Dataset, Manifest};
use xlstm_tests::program::{Ran, data};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with an input folder `in` and an output folder `out`.
struct Folders(tempfile::TempDir);

impl Folders {
    fn new(inputs: &[(&str, &[u8])]) -> Self {
        let folders = Self(tempfile::tempdir().unwrap());
        fs_err::create_dir(folders.input()).unwrap();
        for (name, content) in inputs {
            folders.put(name, content);
        }
        folders
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
