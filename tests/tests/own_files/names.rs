//! Which files are inputs, and under which names.

use xlstm_tests::corpus;
use xlstm_tests::program::{assert_same_files, data_command, run};

use super::*;

#[cfg(unix)]
#[test]
fn links_are_followed_under_their_own_names() {
    use std::os::unix::fs::symlink;
    let folders = Folders::new(&[("real.txt", b"a real file")]);
    let elsewhere = folders.path("elsewhere");
    fs_err::create_dir_all(elsewhere.join("folder")).unwrap();
    fs_err::write(elsewhere.join("blob0123"), "{\"text\":\"from a blob\"}\n").unwrap();
    fs_err::write(elsewhere.join("folder/d.txt"), "in a linked folder").unwrap();
    symlink("../elsewhere/blob0123", folders.input().join("data.jsonl")).unwrap();
    symlink("../elsewhere/folder", folders.input().join("folder")).unwrap();
    folders.prepare(&[]).success();
    assert_eq!(folders.names(), ["data.jsonl", "folder/d.txt", "real.txt"]);
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
    // A link by its name, also where the file it leads to has no known ending.
    let named = Folders::new(&[]);
    named.prepare_from(&folders.input().join("data.jsonl"), &[]).success();
    assert_eq!(named.names(), ["data.jsonl"]);
    data(["audit", text(&named.path("out")), "--deep", "all"]).success();
    let trace = data(["trace", text(&named.split()), "--document", "0", "--token", "0"]).success();
    assert_says(&trace, &["digest and text agree"]);
    // In a circle, and to nowhere.
    symlink(".", folders.input().join("loop")).unwrap();
    assert_says(&folders.prepare(&["--restart"]).failure(1), &["in/loop", "symbolic link back to"]);
    fs_err::remove_file(folders.input().join("loop")).unwrap();
    symlink("../nowhere", folders.input().join("broken.txt")).unwrap();
    assert_says(&folders.prepare(&["--restart"]).failure(1), &["in/broken.txt", "leads nowhere"]);
}

#[cfg(unix)]
#[test]
fn what_is_passed_over_is_said_and_legal_names_are_read() {
    use std::os::unix::ffi::OsStrExt as _;
    let folders = Folders::new(&[
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
    let fifo = folders.input().join("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let ran = folders.prepare(&[]);
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
    assert_eq!(folders.names(), ["1:intro.md", "a\\b.txt", "c:notes.txt", "w.MD.zst", "z.txt.gz"]);
    assert_eq!(
        folders.texts(),
        ["intro", "backslash", "a drive, on another system", "frames of text", "zipped text"]
    );
    let formats: Vec<_> = folders.manifest().inputs.into_iter().map(|input| input.format).collect();
    assert_eq!(formats, ["text", "text", "text", "text.zst", "text.gz"]);
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
    // A pipe that is named would be waited for without end.
    let named = Folders::new(&[]);
    assert_says(&named.prepare_from(&fifo, &[]).failure(1), &["pipe.jsonl", "not a regular file"]);
    for (name, reason) in [(&b"a\nb.txt"[..], "control character"), (b"caf\xe9.txt", "not UTF-8")] {
        let folders = Folders::new(&[]);
        fs_err::write(folders.input().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        let error = folders.prepare(&[]).failure(1);
        assert_says(
            &error,
            &[reason, "rename the file", if name[0] == b'a' { "a\\nb.txt" } else { "caf\u{fffd}.txt" }],
        );
    }
}

#[test]
fn a_folder_with_its_own_output_is_the_same_input_again() {
    let folders =
        Folders::new(&[("a.jsonl", b"{\"text\":\"one two\"}\n"), ("b.jsonl", b"{\"text\":\"three\"}\n")]);
    let here = |out: &str, more: &[&str]| {
        let arguments = ["prepare", "local", ".", "--out", out, "--quiet"];
        run(data_command(arguments.into_iter().chain(more.iter().copied())).current_dir(folders.input()))
    };
    here("out", &[]).success();
    assert!(here("out", &[]).success().contains("was finished before"));
    let ran = here("other", &[]);
    assert_says(&ran.stderr, &["what this program wrote (`out/train`)"]);
    ran.success();
    here(".", &[]).success();
    assert!(here(".", &[]).success().contains("was finished before"));
    assert_same_files(&folders.input().join("out/train"), &folders.input().join("other/train"));
    assert_same_files(&folders.input().join("out/train"), &folders.input().join("train"));
    // A report of an evaluation, whose words are no text to learn from.
    let report = folders.input().join("evaluation");
    fs_err::create_dir(&report).unwrap();
    fs_err::write(report.join("report.json"), r#"{"format": "xlstm-evaluation", "version": 1}"#).unwrap();
    fs_err::write(report.join("report.md"), "# perplexity").unwrap();
    let ran = here("another", &[]);
    assert_says(&ran.stderr, &["`evaluation`"]);
    ran.success();
    assert_same_files(&folders.input().join("out/train"), &folders.input().join("another/train"));
    let named = Folders::new(&[]);
    let error = named.prepare_from(&folders.input().join("out/train"), &[]).failure(1);
    assert_says(&error, &["is a prepared split", "no inputs"]);
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
