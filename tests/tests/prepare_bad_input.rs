//! Bad input: an error that names file and record, what was expected and found, and what to do; nothing is
//! half-written, nothing is lost, and the run can go on.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;
use std::process::Command;

use xlstm_manifests::Manifest;
use xlstm_tests::corpus;
use xlstm_tests::program::{Ran, data, data_command, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Prepares a folder with the single file `name`.
fn prepare_file(name: &str, content: &[u8], more: &[&str]) -> (Ran, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs_err::create_dir_all(&input).unwrap();
    fs_err::write(input.join(name), content).unwrap();
    let out = folder.path().join("out");
    let mut arguments = vec!["prepare", "local", text(&input), "--out", text(&out), "--quiet"];
    arguments.extend(more);
    (data(arguments), folder)
}

#[track_caller]
fn assert_refused(name: &str, content: &[u8], expected: &[&str]) {
    let (ran, folder) = prepare_file(name, content, &[]);
    let error = ran.failure(1);
    for part in expected.iter().chain(&[name]) {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    let out = folder.path().join("out/train");
    assert!(!out.join("manifest.json").exists(), "no manifest stands for half a dataset");
    let partial = fs_err::read_dir(&out).unwrap().filter_map(Result::ok);
    assert!(partial.into_iter().all(|entry| !entry.path().to_string_lossy().ends_with(".partial")));
}

#[test]
fn records_that_cannot_be_used_are_named() {
    let good = "{\"text\": \"one\"}\n";
    for (bad, reason) in [
        ("{\"text\": \"two\"\n", "invalid-json"),
        ("[]\n", "json"),
        ("{\"body\": \"two\"}\n", "missing-text"),
        ("{\"text\": null}\n", "missing-text"),
        ("{\"text\": 2}\n", "text-not-a-string"),
        ("{\"text\": \"\\ud800\"}\n", "invalid"),
    ] {
        assert_refused(
            "a.jsonl",
            format!("{good}{bad}{good}").as_bytes(),
            &["record 1", reason, "--on-bad-record"],
        );
    }
    assert_refused("a.jsonl", b"{\"text\": \"\xff\"}\n", &["record 0", "invalid-utf-8"]);
    assert_refused("a.txt", b"caf\xe9", &["record 0", "invalid-utf-8"]);
}

#[test]
fn skipped_records_are_counted_by_reason() {
    let lines = b"{\"text\": \"one\"}\n{\"text\": 2}\n{}\n{\"text\": \"\xff\"}\n\n{\"text\": \"\"}\n{\"text\": \"three\"}\n";
    let (ran, folder) = prepare_file("a.jsonl", lines, &["--on-bad-record", "skip"]);
    ran.success();
    let manifest = Manifest::load(&folder.path().join("out/train")).unwrap();
    assert_eq!(manifest.totals.documents, 2);
    for reason in ["text-not-a-string", "missing-text", "invalid-utf-8", "empty"] {
        assert_eq!(
            manifest.totals.left_out.get(reason),
            Some(&1),
            "{reason}: {:?}",
            manifest.totals.left_out
        );
    }
}

#[test]
fn damaged_files_are_refused() {
    let documents = corpus::documents(5, 300_000);
    let lines = corpus::json_lines(&documents);
    let zstd = corpus::zstd_frames(&lines, 1);
    let gzip = corpus::gzip_members(&lines, 2);
    let parquet = corpus::parquet(&documents, 50);
    let cut = |bytes: &[u8]| bytes[..bytes.len() * 2 / 3].to_vec();
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xa5);
        bytes
    };
    assert_refused("a.jsonl.zst", &cut(&zstd), &["incomplete", "record"]);
    assert_refused("a.jsonl.zst", b"<html>error</html>", &["HTML"]);
    assert_refused("a.jsonl.gz", &cut(&gzip), &["record"]);
    assert_refused("a.jsonl.gz", &flipped(&gzip), &[]);
    assert_refused("a.jsonl.zst", &flipped(&zstd), &[]);
    assert_refused("a.parquet", &cut(&parquet), &[]);
    assert_refused("a.parquet", &flipped(&parquet), &[]);
}

#[test]
fn a_damaged_input_is_mended_and_the_run_goes_on_with_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs_err::create_dir_all(&input).unwrap();
    let documents = corpus::documents(6, 3 << 20);
    let (first, second) = documents.split_at(documents.len() * 3 / 4);
    fs_err::write(input.join("a.jsonl"), corpus::json_lines(first)).unwrap();
    fs_err::write(input.join("b.jsonl"), b"{\"text\": 1}\n").unwrap();
    let out = folder.path().join("out");
    let arguments =
        ["prepare", "local", text(&input), "--out", text(&out), "--quiet", "--rows-per-shard", "64"];
    data(arguments).failure(1);
    assert!(out.join("train/shard-00000.arrow").exists(), "what was durable stays");
    fs_err::write(input.join("b.jsonl"), corpus::json_lines(second)).unwrap();
    // The mended file makes another input list, which a journal never mixes with the one it began with.
    let error = data(arguments).failure(1);
    assert!(error.contains("--restart") && error.contains("input list"), "{error}");
    data(arguments.iter().chain(&["--restart"])).success();
    let clean = folder.path().join("clean");
    let arguments =
        ["prepare", "local", text(&input), "--out", text(&clean), "--quiet", "--rows-per-shard", "64"];
    data(arguments).success();
    xlstm_tests::program::assert_same_files(&clean.join("train"), &out.join("train"));
}

#[test]
fn inputs_are_named_once_and_exist() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    fs_err::write(&file, "text").unwrap();
    let out = folder.path().join("out");
    let twice = data(["prepare", "local", text(&file), text(&file), "--out", text(&out)]).failure(1);
    assert!(twice.contains("a.txt") && twice.contains("twice"), "{twice}");
    let missing =
        data(["prepare", "local", text(&folder.path().join("b.txt")), "--out", text(&out)]).failure(1);
    assert!(missing.contains("b.txt"), "{missing}");
    let empty = folder.path().join("empty");
    fs_err::create_dir(&empty).unwrap();
    let none = data(["prepare", "local", text(&empty), "--out", text(&out)]).failure(1);
    assert!(none.contains("no input") && none.contains(".jsonl"), "{none}");
    assert!(!out.exists());
}

/// The same bytes under two names may be meant (a license in each folder), so they are counted, and said.
#[test]
fn inputs_of_the_same_bytes_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs_err::create_dir(&input).unwrap();
    for name in ["a.jsonl", "b.jsonl", "c.jsonl"] {
        let line = if name == "b.jsonl" { "{\"text\": \"other\"}\n" } else { "{\"text\": \"one\"}\n" };
        fs_err::write(input.join(name), line).unwrap();
    }
    let out = folder.path().join("out");
    let said = data(["prepare", "local", text(&input), "--out", text(&out), "--quiet"]).success();
    assert!(said.contains("`c.jsonl` has the same bytes as `a.jsonl`"), "{said}");
    let json = data(["prepare", "local", text(&input), "--out", text(&out), "--json"]).success();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["splits"][0]["duplicate_inputs"], serde_json::json!([["a.jsonl", "c.jsonl"]]));
}

#[test]
fn a_folder_has_one_run_at_a_time_and_one_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus::write_all_formats(&input, 9, 24 << 20);
    let out = folder.path().join("out");
    let arguments = ["prepare", "local", text(&input), "--out", text(&out), "--quiet", "--json"];
    let mut first = data_command(arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    while !out.join("train/.work/journal.jsonl").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = data(arguments);
    assert!(first.try_wait().unwrap().is_none(), "the first run is still at work");
    assert!(second.failure(1).contains("in use by another run"));
    assert!(first.wait().unwrap().success());
    let again: serde_json::Value = serde_json::from_str(&data(arguments).success()).unwrap();
    assert_eq!(again["splits"][0]["was_finished"], true);
    let other = data(arguments.iter().chain(&["--exclude-set", "md"])).failure(1);
    assert!(other.contains("selection") && other.contains("--restart"), "{other}");
    // The refusal left the dataset as it was.
    data(["audit", text(&out)]).success();
}

#[test]
fn a_full_disk_is_said_and_the_run_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus::write_all_formats(&input, 10, 3 << 20);
    let arguments = |out: &Path| {
        ["prepare", "local", text(&input), "--out", text(out), "--quiet", "--rows-per-shard", "100000"]
            .map(str::to_owned)
    };
    let out = folder.path().join("out");
    // No file may grow past 200 KiB, and the signal that says so is ignored: writes fail as on a full disk.
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", text(xlstm_tests::program::xlstm_data())]).args(arguments(&out));
    let error = run(&mut command).failure(1);
    assert!(error.contains("shard-00000.arrow") && error.contains("free some space"), "{error}");
    assert!(
        !out.join("train/shard-00000.arrow").exists()
            && !out.join("train/shard-00000.arrow.partial").exists()
    );
    data(arguments(&out)).success();
    let clean = folder.path().join("clean");
    data(arguments(&clean)).success();
    xlstm_tests::program::assert_same_files(&clean.join("train"), &out.join("train"));
}

#[test]
fn an_output_that_cannot_be_a_folder_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    fs_err::write(&file, "text").unwrap();
    let error = data(["prepare", "local", text(&file), "--out", text(&file)]).failure(1);
    assert!(error.contains("a.txt") && error.contains("is a file"), "{error}");
    let error = data(["prepare", "local", text(&file), "--out", "/proc/xlstm"]).failure(1);
    assert!(error.contains("/proc/xlstm") && error.contains("check that the path"), "{error}");
}

/// `xlstm-data` as a user to whom permissions apply: they bind root only without the capability to override them.
fn bound_by_permissions(arguments: &[&str]) -> Command {
    let mut plain = data_command(arguments);
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o555);
    if fs_err::write(folder.path().join("probe"), "").is_err() {
        return plain;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.stdin(std::process::Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    plain = command;
    plain
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_read_only_folder_is_said_and_the_run_goes_on_once_it_may_write() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs_err::create_dir(&input).unwrap();
    let documents = corpus::documents(14, 3 << 20);
    let (first, second) = documents.split_at(documents.len() * 3 / 4);
    fs_err::write(input.join("a.jsonl"), corpus::json_lines(first)).unwrap();
    let second_file = input.join("b.jsonl.zst");
    let sound = corpus::zstd_frames(&corpus::json_lines(second), 1);
    fs_err::write(&second_file, &sound).unwrap();
    let out = folder.path().join("out");
    fs_err::create_dir(&out).unwrap();
    let arguments =
        ["prepare", "local", text(&input), "--out", text(&out), "--quiet", "--rows-per-shard", "64"];

    set_mode(&out, 0o555);
    let error = run(&mut bound_by_permissions(&arguments)).failure(1);
    assert!(error.contains(text(&out)) && error.contains("Permission denied"), "{error}");
    assert!(error.contains("choose another folder"), "{error}");
    assert_eq!(fs_err::read_dir(&out).unwrap().count(), 0, "nothing was written");
    set_mode(&out, 0o755);

    // The split's folder becomes read-only between two runs. The first ends at the second file's head.
    let mut damaged = sound.clone();
    damaged[20..84].iter_mut().for_each(|byte| *byte ^= 0xa5);
    fs_err::write(&second_file, &damaged).unwrap();
    run(&mut bound_by_permissions(&arguments)).failure(1);
    fs_err::write(&second_file, &sound).unwrap();
    let split = out.join("train");
    let before = xlstm_tests::program::files(&split);
    assert!(before.contains_key(Path::new("shard-00000.arrow")), "what was durable stays");
    set_mode(&split, 0o555);
    let error = run(&mut bound_by_permissions(&arguments)).failure(1);
    assert!(error.contains(text(&split)) && error.contains("choose another folder"), "{error}");
    assert!(xlstm_tests::program::files(&split) == before, "nothing was changed");
    set_mode(&split, 0o755);

    run(&mut bound_by_permissions(&arguments)).success();
    let clean = folder.path().join("clean");
    data(["prepare", "local", text(&input), "--out", text(&clean), "--quiet", "--rows-per-shard", "64"])
        .success();
    xlstm_tests::program::assert_same_files(&clean.join("train"), &split);
}

/// A file system of 1 MiB of its own, where the machine lets a user have one; elsewhere the test above it stands for
/// this one.
#[test]
fn a_file_system_without_room_is_said_and_the_run_goes_on_in_place() {
    let own_mounts = ["--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o size=1m none \"$1\"";
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs_err::create_dir(&out).unwrap();
    let probe = Command::new("unshare").args(own_mounts).args(["sh", "-c", mount, "sh", text(&out)]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("not run: no file system may be mounted here");
        return;
    }
    let input = folder.path().join("in");
    corpus::write_all_formats(&input, 15, 3 << 20);
    // Fails for want of room, leaves nothing half-written, and completes once the same place has room.
    let script = format!(
        "{mount} && shift && \"$@\"; echo \"first: $?\" >&2; find {out} -name '*.partial' >&2;\
         mount -o remount,size=64m {out} && \"$@\" && cp -r {out}/train {out}.copy",
        out = text(&out)
    );
    let program = text(xlstm_tests::program::xlstm_data());
    let arguments =
        ["prepare", "local", text(&input), "--out", text(&out), "--quiet", "--rows-per-shard", "64"];
    let mut command = Command::new("unshare");
    command.args(own_mounts).args(["sh", "-c", &script, "sh", text(&out), program]).args(arguments);
    let ran = run(&mut command);
    let said = ran.stderr.clone();
    ran.success();
    assert!(said.contains("No space left on device") && said.contains("free some space"), "{said}");
    assert!(said.contains("first: 1") && !said.contains(".partial\n"), "{said}");
    let clean = folder.path().join("clean");
    data(["prepare", "local", text(&input), "--out", text(&clean), "--quiet", "--rows-per-shard", "64"])
        .success();
    xlstm_tests::program::assert_same_files(&clean.join("train"), &folder.path().join("out.copy"));
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_by_every_command() {
    let (ran, folder) = prepare_file("a.jsonl", b"{\"text\": \"one\"}\n", &[]);
    ran.success();
    let (input, out) = (folder.path().join("in"), folder.path().join("out"));
    let path = out.join("train/manifest.json");
    let newer = fs_err::read_to_string(&path).unwrap().replace("\"version\": 1\n", "\"version\": 99\n");
    assert!(newer.contains("\"version\": 99\n"), "{newer}");
    fs_err::write(&path, &newer).unwrap();
    let before = xlstm_tests::program::files(&out);
    let (input, out) = (text(&input), text(&out));
    let split = format!("{out}/train");
    let target = folder.path().join("table.parquet");
    for arguments in [
        &["prepare", "local", input, "--out", out, "--quiet"][..],
        &["audit", out],
        &["trace", &split, "--row", "0"],
        &["diff", &split, &split],
        &["overlap", &split, &split],
        &["export", &split, "--to", "parquet", "--out", text(&target)],
        &["merge", &split, "--out", text(&folder.path().join("merged"))],
    ] {
        let ran = data(arguments);
        assert!(matches!(ran.code, Some(1 | 2)), "{arguments:?}: {ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        for part in ["manifest.json", "version 99", "update xlstm-data"] {
            assert!(said.contains(part), "{arguments:?}: `{part}` is not in: {said}");
        }
    }
    assert!(xlstm_tests::program::files(Path::new(out)) == before, "nothing was changed");
}

#[test]
fn parts_that_do_not_make_a_whole_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus::write_all_formats(&input, 11, 1 << 20);
    let out = folder.path().join("out");
    let task = |task: &str, more: &[&str]| {
        let mut arguments =
            vec!["prepare", "local", text(&input), "--out", text(&out), "--quiet", "--task", task];
        arguments.extend(more);
        data(arguments).success();
    };
    let merge = || data(["merge", "--out", text(&out)]);
    assert!(merge().failure(1).contains("no parts"));
    task("1/3", &[]);
    task("3/3", &[]);
    assert!(merge().failure(1).contains("parts 2 of 3 are missing"));
    task("2/3", &["--exclude-set", "nothing"]);
    assert!(merge().failure(1).contains("different wholes"));
    task("2/3", &["--restart"]);
    let shard = out.join("parts/00002-of-00003/train/shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    bytes[1000] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let error = merge().failure(1);
    assert!(error.contains("shard-00000.arrow") && error.contains("damaged"), "{error}");
    bytes[1000] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    merge().success();
    Manifest::load(&out.join("train")).unwrap();
}
