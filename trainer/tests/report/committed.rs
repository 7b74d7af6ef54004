//! Results that are kept without their data and checkpoints.

use std::path::{Path, PathBuf};

use crate::*;

/// Reports below a folder.
fn reports(folder: &Path) -> Vec<PathBuf> {
    let names = xlstm_tests::program::files(folder).into_keys().map(|path| folder.join(path));
    names.filter(|path| path.file_name().is_some_and(|name| name == "report.json")).collect()
}

#[test]
fn committed_reports_hold_as_far_as_their_files_are_here() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results");
    let found = reports(&results);
    assert!(found.len() >= 28, "{found:?}");
    for report in found {
        let output = eval(&["verify"], &[&report]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{}: {told}", report.display());
        assert!(told.contains(" 0 do not,"), "{}: {told}", report.display());
        for link in ["figures", "run", "recipe", "training split: manifest"] {
            assert!(
                told.lines().any(|line| line.starts_with("ok ") && line.contains(link)),
                "{}: no link `{link}`: {told}",
                report.display()
            );
        }
    }
}

#[test]
fn a_manifest_without_its_shards_is_not_at_hand_and_one_without_some_has_failed() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    let shard = fixture.train.join("shard-00000.arrow");
    fs_err::remove_file(&shard).unwrap();
    let output = eval(&["verify"], &[&run]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    for entry in fs_err::read_dir(&fixture.train).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name != "manifest.json") {
            fs_err::remove_file(path).unwrap();
        }
    }
    let output = eval(&["verify"], &[&run]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{told}");
    let line = told.lines().find(|line| line.starts_with("not at hand  training split: shards"));
    assert!(line.is_some(), "{told}");
    assert!(told.contains("the manifest is here alone, without its shards"), "{told}");
}
