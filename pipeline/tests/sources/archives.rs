//! Crate archives, and finding them in cargo's cache.

use flate2::write::GzEncoder;
use xlstm_manifests::Sha256Digest;
use xlstm_pipeline::sources::cargo_cache::{self, LockedCrate};
use xlstm_pipeline::sources::crate_archive::read_crate_licence;

use super::*;

const LONG_NAME: &str = "demo-1.0.0/src/a_folder_with_a_very_long_name_that_does_not_fit_in_the_old_header_of_tar/and_a_long_file_name.rs";

/// An archive with these entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn demo(manifest: &str) -> Vec<u8> {
    archive(&[
        ("demo-1.0.0/", b""),
        ("demo-1.0.0/Cargo.toml", manifest.as_bytes()),
        ("demo-1.0.0/src/lib.rs", b"//! Demo.\n"),
        ("demo-1.0.0/logo.png", b"\x89PNG"),
        ("demo-1.0.0/tests/latin.txt", b"caf\xe9"),
        (LONG_NAME, b"fn long() {}\n"),
        ("demo-1.0.0/big.txt", &vec![b'x'; (1 << 20) + 1]),
        ("demo-1.0.0/README.md", b"# Demo\n"),
        ("demo-1.0.0/LICENSE-MIT", b"MIT License\n"),
        ("demo-1.0.0/Cargo.lock", b"version = 4\n"),
    ])
}

#[test]
fn text_files_are_documents_numbered_as_entries() {
    let folder = Folder::new();
    let path = folder.file("demo-1.0.0.crate", &demo("[package]\nname = \"demo\"\n"));
    let found: Vec<_> = read(&path, &Fields::default())
        .into_iter()
        .map(|step| match step {
            Entry::Record(record) => (record.number, record.id.unwrap(), record.set.unwrap()),
            Entry::Bad { .. } => panic!("a crate has no bad records"),
        })
        .collect();
    let expected = [
        (1, "demo-1.0.0/Cargo.toml", "toml"),
        (2, "demo-1.0.0/src/lib.rs", "rust"),
        (5, LONG_NAME, "rust"),
        (7, "demo-1.0.0/README.md", "markdown"),
        (8, "demo-1.0.0/LICENSE-MIT", "text"),
    ];
    assert_eq!(found, expected.map(|(number, id, set)| (number, id.to_owned(), set.to_owned())));
    assert_any_start_agrees(&path, &Fields::default());
}

#[test]
fn the_licence_is_the_manifests() {
    let folder = Folder::new();
    let licence = |manifest| {
        let path = folder.file("demo-1.0.0.crate", &demo(manifest));
        read_crate_licence(&path).map_err(|error| error.to_string())
    };
    assert_eq!(licence("[package]\nlicense = \"MIT OR Apache-2.0\"\n"), Ok(Some("MIT OR Apache-2.0".into())));
    assert_eq!(licence("[package]\nlicense-file = \"LICENSE-MIT\"\n"), Ok(Some("see LICENSE-MIT".into())));
    assert_eq!(licence("[package]\nname = \"demo\"\n"), Ok(None));
    let error = licence("[package\n").unwrap_err();
    assert!(error.contains("demo-1.0.0.crate") && error.contains("Cargo.toml"), "{error}");
}

#[test]
fn a_broken_archive_is_an_error() {
    let folder = Folder::new();
    let sound = demo("[package]\nname = \"demo\"\n");
    let path = folder.file("demo-1.0.0.crate", &sound[..sound.len() / 2]);
    assert!(error(&path, &Fields::default()).contains("damaged crate archive at entry"));
    let path = folder.file("demo-1.0.0.crate", b"<html>404</html>");
    assert!(error(&path, &Fields::default()).contains("HTML"));
}

#[test]
fn locked_crates_are_found_in_any_registry_and_checked() {
    let folder = Folder::new();
    let bytes = demo("[package]\nname = \"demo\"\n");
    let checksum = Sha256Digest::of(&bytes);
    let lock = format!(
        "version = 4\n\n[[package]]\nname = \"demo\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\n\
         checksum = \"{checksum}\"\n\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n"
    );
    let lock = folder.file("Cargo.lock", lock.as_bytes());
    let demo = LockedCrate { name: "demo".into(), version: "1.0.0".into(), checksum };
    assert_eq!(cargo_cache::packages(&lock).unwrap().crates, std::slice::from_ref(&demo));

    let cache = folder.0.path().join("cache");
    let missing = cargo_cache::locate(&cache, &demo).unwrap_err().to_string();
    assert!(missing.contains("demo 1.0.0") && missing.contains("cargo fetch"), "{missing}");

    let wrong = folder.file("cache/a-mirror/demo-1.0.0.crate", b"other bytes");
    let mismatch = cargo_cache::locate(&cache, &demo).unwrap_err().to_string();
    assert!(mismatch.contains(&checksum.to_string()) && mismatch.contains("a-mirror"), "{mismatch}");

    let right = folder.file("cache/b-mirror/demo-1.0.0.crate", &bytes);
    assert_eq!(cargo_cache::locate(&cache, &demo).unwrap(), right);
    assert!(wrong.exists());
}

#[test]
fn a_lock_file_cannot_name_a_path() {
    let folder = Folder::new();
    let zeros = "0".repeat(64);
    for (text, word) in [
        (
            format!("[[package]]\nname = \"../evil\"\nversion = \"1.0.0\"\nchecksum = \"{zeros}\"\n"),
            "../evil",
        ),
        ("[[package]]\nname = \"a\"\nversion = \"1\"\nchecksum = \"12\"\n".to_owned(), "64"),
        ("not a lock file".to_owned(), "expected"),
    ] {
        let path = folder.file("Cargo.lock", text.as_bytes());
        let error = cargo_cache::packages(&path).unwrap_err().to_string();
        assert!(error.contains("Cargo.lock") && error.contains(word), "{error}");
    }
}

#[test]
fn this_projects_own_crates_are_in_the_cache() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let locked = cargo_cache::packages(&lock).unwrap().crates;
    let serde = locked.iter().find(|locked| locked.name == "serde").unwrap();
    let path = cargo_cache::locate(&cargo_cache::cache_folder(), serde).unwrap();
    assert_eq!(read_crate_licence(&path).unwrap().as_deref(), Some("MIT OR Apache-2.0"));
    assert!(read(&path, &Fields::default()).len() > 5);
}
