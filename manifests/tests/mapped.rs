//! A file that is cut short while it is mapped: the program that reads it ends with the file's name.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::process::Command;

use xlstm_manifests::mapped::Mapped;

const FILE: &str = "XLSTM_TEST_MAPPED";

/// Done in a process of its own, which ends in it: see below.
#[test]
fn reads_what_was_cut() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let map = Mapped::open(path.as_ref()).unwrap();
    fs_err::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    let sum: u64 = map.iter().map(|&byte| u64::from(byte)).sum();
    panic!("a sum of {sum}");
}

#[test]
fn the_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a\u{1b}[31m.arrow");
    fs_err::write(&path, vec![1; 100_000]).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reads_what_was_cut", "--nocapture"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("error: `") && errors.contains("cut short") && !errors.contains('\u{1b}'),
        "{errors}"
    );
}

#[test]
fn maps_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for length in [0, 1, 5000] {
        fs_err::write(&path, vec![7; length]).unwrap();
        let maps: Vec<Mapped> = (0..50).map(|_| Mapped::open(&path).unwrap()).collect();
        assert!(maps.iter().all(|map| map.len() == length && map.iter().all(|&byte| byte == 7)));
        drop(maps);
    }
    assert!(Mapped::open(folder.path()).is_err());
}
