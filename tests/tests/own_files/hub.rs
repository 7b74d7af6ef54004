//! Datasets of the Hub from files at hand, and mirrors of it.

use std::sync::Arc;

use xlstm_tests::corpus;
use xlstm_tests::program::{assert_same_files, data_command, run};

use super::*;

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

#[test]
fn records_of_paloma_keep_their_own_licenses() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    for (source, metadata) in [
        ("ptb", [r#"{"license":"MIT","source":"a.example"}"#, "{}", r#""{\"license\": \"CC-BY-4.0\"}""#]),
        ("gab", [r#"{"license":["MIT","0BSD"]}"#, "null", r#"{"license":"MIT"}"#]),
    ] {
        let lines: String = (0..)
            .zip(metadata)
            .map(|(id, metadata)| {
                format!("{{\"text\":\"words {id}\",\"id\":{id},\"metadata\":{metadata}}}\n")
            })
            .collect();
        let path = from.join(format!("{source}/val/val_{source}-00000000.jsonl.gz"));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, corpus::gzip_members(lines.as_bytes(), 1)).unwrap();
    }
    let paloma = |out: &Path, more: &[&str]| {
        let arguments =
            ["prepare", "paloma", "--offline", "--from", text(&from), "--split", "val", "--quiet"];
        data(arguments.into_iter().chain(["--out", text(out)]).chain(more.iter().copied())).success()
    };
    let out = folder.path().join("whole");
    paloma(&out, &[]);
    let manifest = Manifest::load(&out.join("validation")).unwrap();
    let licenses: Vec<_> = manifest.record_licenses.iter().map(|t| (t.name.as_str(), t.documents)).collect();
    let expected = [("MIT", 2), (r#"["MIT","0BSD"]"#, 1), ("CC-BY-4.0", 1)];
    assert_eq!(licenses.len(), 3);
    assert!(expected.iter().all(|license| licenses.contains(license)), "{licenses:?}");
    assert_eq!(manifest.record_sources.len(), 1);
    let audit = data(["audit", text(&out), "--deep", "all"]).success();
    assert_says(&audit, &["CC-BY-4.0", "(none of their own)", "6 of 6 documents read again"]);
    let said: String = (0..6)
        .map(|number| {
            data(["trace", text(&out.join("validation")), "--document", &number.to_string()]).success()
        })
        .collect();
    assert_says(&said, &["license MIT (the document's own)", "license CC-BY-4.0 (the document's own)"]);
    // Parts put together are the same bytes, licenses and all.
    let parts = folder.path().join("parts");
    paloma(&parts, &["--task", "1/2"]);
    paloma(&parts, &["--task", "2/2"]);
    data(["merge", "--out", text(&parts), "--remove-parts"]).success();
    assert_same_files(&out.join("validation"), &parts.join("validation"));
}
