//! Manifests and checksums that contradict themselves or what they describe.

use super::*;

#[test]
fn a_contradicting_manifest_is_named_whatever_its_digest_says() {
    let change = |edit: fn(&mut Manifest)| {
        let built = build(&Recipe::packed());
        let mut manifest = built.manifest();
        edit(&mut manifest);
        built.seal(manifest);
        built
    };
    let built = change(|m| m.inputs[0].counts.tokens += 1);
    assert_found(&built, MANIFEST_NAME, Check::Manifest);
    assert_found(&built, MANIFEST_NAME, Check::Counts);
    assert_found(&change(|m| m.sets[0].documents += 1), MANIFEST_NAME, Check::Counts);
    assert_found(&change(|m| m.shards[0].tokens -= 1), "shard-00000.arrow", Check::Counts);
    assert_found(&change(|m| m.shards[0].file.records -= 1), "shard-00000.arrow", Check::Format);
    assert_found(
        &change(|m| m.selection.exclude_sets = vec!["prose".into()]),
        "spans-00000.arrow",
        Check::Selection,
    );
    assert_found(
        &change(|m| {
            let fraction = "0.5".to_owned();
            m.selection.holdout = Some(xlstm_manifests::manifest::Holdout { fraction, held_out: true });
        }),
        "spans-00000.arrow",
        Check::Selection,
    );
}

#[test]
fn other_layouts_of_the_same_json_are_not_canonical() {
    let built = build(&Recipe::packed());
    let path = built.split().join(MANIFEST_NAME);
    let value: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    fs_err::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
    assert_found(&built, MANIFEST_NAME, Check::Canonical);
    assert_found(&built, MANIFEST_NAME, Check::Digest);
}

#[test]
fn a_newer_version_is_refused_and_says_what_to_do() {
    let built = build(&Recipe::packed());
    let mut manifest = built.manifest();
    manifest.version = VERSION + 1;
    built.seal(manifest);
    let found = findings(&built);
    assert!(
        found.iter().any(|f| f.file == MANIFEST_NAME && f.message.contains("update xlstm-data")),
        "{found:#?}"
    );
}

#[test]
fn a_damaged_line_of_the_checksums_is_told_from_a_damaged_manifest() {
    let built = build(&Recipe::packed());
    let path = built.split().join(CHECKSUMS_NAME);
    let text = fs_err::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.ends_with(MANIFEST_NAME)).unwrap();
    let other = if line.starts_with('0') { "1" } else { "0" };
    fs_err::write(&path, text.replace(line, &format!("{other}{}", &line[1..]))).unwrap();
    let found = findings(&built);
    assert_eq!(found.iter().map(|f| f.file.as_str()).collect::<Vec<_>>(), [CHECKSUMS_NAME], "{found:#?}");
}

#[test]
fn paths_that_name_no_split_say_what_to_name() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path().to_owned(), empty.path().join("nothing")] {
        let message = audit(&AuditArgs::new(vec![path])).unwrap_err().to_string();
        assert!(message.contains("--out"), "{message}");
    }
}
