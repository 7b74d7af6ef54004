//! The command line: help texts as they stand, completions, exit codes, what goes to stdout.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;

use xlstm_tests::program::data;

/// Every command whose `--help` is kept under `tests/help/`.
const COMMANDS: &[&[&str]] = &[
    &[],
    &["prepare"],
    &["prepare", "slimpajama"],
    &["prepare", "paloma"],
    &["prepare", "crates"],
    &["prepare", "local"],
    &["prepare", "task"],
    &["prepare", "examples"],
    &["plan"],
    &["merge"],
    &["audit"],
    &["show"],
    &["trace"],
    &["diff"],
    &["count"],
    &["duplicates"],
    &["overlap"],
    &["export"],
    &["completions"],
];

/// Compares each help text with its file. `UPDATE_SNAPSHOTS=1` writes the files anew.
#[test]
fn help_texts_are_the_ones_that_were_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("help");
    for command in COMMANDS {
        let help = data(command.iter().chain(&["--help"])).success();
        let name = if command.is_empty() {
            "xlstm-data".to_owned()
        } else {
            format!("xlstm-data-{}", command.join("-"))
        };
        let path = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::write(&path, &help).unwrap();
        }
        let expected = fs_err::read_to_string(&path).unwrap();
        assert_eq!(help, expected, "`{}` differs; UPDATE_SNAPSHOTS=1 writes it anew", path.display());
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = data(["completions", shell]).success();
        assert!(script.contains("slimpajama") && script.contains("max-tokens"), "{shell}");
    }
}

#[test]
fn wrong_usage_ends_with_2_and_a_hint() {
    let error = data(["prepare", "local"]).failure(2);
    assert!(error.contains("--out"), "{error}");
    let error = data(["prepare", "locale", "--out", "x"]).failure(2);
    assert!(error.contains("local"), "the nearest command is named: {error}");
    let error = data(["prepare", "local", "x", "--out", "y", "--task", "4/3"]).failure(2);
    assert!(error.contains("I/N"), "{error}");
}

#[test]
fn json_is_one_object_on_stdout_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    fs_err::write(&file, "some text").unwrap();
    let out = folder.path().join("out");
    let stdout = data(["prepare", "local", file.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"])
        .success();
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["splits"][0]["totals"]["documents"], 1);
    assert_eq!(value["splits"][0]["totals"]["tokens"], 3);
}
